"""Runs a model and its frozen form on the same inputs; a child process of `verify`.

Both run in TF1 sessions, which load every kind of SavedModel and graph alike, several
calls in a row so that state shows. With Grappler off the results must be equal bit by
bit; with it on, constants can be folded that were variables, which rounds differently.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfopt import _processes, artifacts

_WORDS = (b"a", b"b", b"the", b"hello world", b"")
_CALLS = 3


def findings(request: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what running both models shows, by signature."""
    found = {}
    for key, signature in request["signatures"].items():
        inputs = [
            make_inputs(signature["inputs"], request["data"], seed)
            for seed in range(_CALLS)
        ]
        found[key] = _compare(request, signature, inputs)
    return found


def make_inputs(
    inputs: Mapping[str, Any], data: str | None, seed: int
) -> dict[str, np.ndarray]:
    """Returns an array for each input tensor, from a file or made up.

    Args:
        inputs: Input -> `{"tensor", "dtype", "shape"}`.
        data: A `.npz` file with an array per input, or `None`.
        seed: Of the random values.
    """
    if data is not None:
        with np.load(data, allow_pickle=False) as arrays:
            return {info["tensor"]: arrays[name] for name, info in inputs.items()}
    random = np.random.default_rng(seed)
    return {
        info["tensor"]: random_array(random, info["dtype"], info["shape"])
        for info in inputs.values()
    }


def random_array(
    random: np.random.Generator,
    dtype: str,
    shape: list[int] | None,
    *,
    free: tuple[int, int] = (2, 8),
) -> np.ndarray:
    """Returns made-up values of an input.

    Args:
        random: Where they come from.
        dtype: TensorFlow's name of the type.
        shape: Sizes, -1 where free; `None` is taken for a scalar.
        free: Sizes for a free first axis, and for other free ones: by default a batch
            of two, and more elsewhere, as convolutions need some room.
    """
    sizes = [] if shape is None else shape
    sizes = [free[min(axis, 1)] if n < 0 else n for axis, n in enumerate(sizes)]
    kind = tf.as_dtype(dtype)
    if kind == tf.string:
        return random.choice(np.array(_WORDS, object), sizes)
    if kind.is_floating or kind.is_complex:
        return random.standard_normal(sizes).astype(kind.as_numpy_dtype)
    return random.integers(0, 2, sizes).astype(kind.as_numpy_dtype)


def _compare(
    request: Mapping[str, Any], signature: Mapping[str, Any], inputs: list[Any]
) -> dict[str, Any]:
    original, frozen = request["original"], request["frozen"]
    exact = run(original, signature, inputs, grappler=False)
    again = run(original, signature, inputs, grappler=False)
    ours = run(frozen, signature, inputs, grappler=False)
    loose = run(original, signature, inputs, grappler=True)
    ours_loose = run(frozen, signature, inputs, grappler=True)
    outputs = compare(exact, again, ours)
    for name, found in outputs.items():
        found["optimized_difference"] = difference(loose[name], ours_loose[name])
    return outputs


def compare(
    exact: Mapping[str, list[np.ndarray]],
    again: Mapping[str, list[np.ndarray]],
    ours: Mapping[str, list[np.ndarray]],
) -> dict[str, dict[str, Any]]:
    """Returns, for each output, how far two models are apart.

    Args:
        exact: Output -> values of the original, call by call.
        again: The same of a second run, which differ if the model is random.
        ours: The same of the other model.
    """
    return {
        name: {
            "deterministic": equal(exact[name], again[name]),
            "equal": equal(exact[name], ours[name]),
            "same_shapes": [a.shape for a in exact[name]]
            == [a.shape for a in ours[name]],
            "difference": difference(exact[name], ours[name]),
            "scale": scale(exact[name]),
            "epsilon": epsilon(exact[name][0].dtype),
        }
        for name in exact
    }


def run(
    model: Mapping[str, Any],
    signature: Mapping[str, Any],
    inputs: list[dict[str, np.ndarray]],
    *,
    grappler: bool,
) -> dict[str, list[np.ndarray]]:
    """Returns, for each output, its values call by call."""
    outputs = signature["outputs"]
    with open_session(model, grappler) as session:
        calls = [session.run(list(outputs.values()), feed) for feed in inputs]
    return {
        name: [np.asarray(call[index]) for call in calls]
        for index, name in enumerate(outputs)
    }


@contextlib.contextmanager
def open_session(model: Mapping[str, Any], grappler: bool) -> Iterator[Any]:
    """Yields a session with a model, in its first state.

    Args:
        model: See `checking.check_execution`.
        grappler: Whether TensorFlow optimizes the graph.
    """
    config = tf.compat.v1.ConfigProto()
    if not grappler:
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        # The older optimizer, too, folds constants.
        config.graph_options.optimizer_options.opt_level = -1
    with (
        artifacts.temporary_folder() as folder,
        tf.Graph().as_default(),
        tf.compat.v1.Session(config=config) as session,
    ):
        path = pathlib.Path(model["path"])
        calls = config.SerializeToString()
        if model["kind"] == "saved_model":
            edited = _edit_saved_model(path, pathlib.Path(folder), calls)
            tf.compat.v1.saved_model.load(session, model["tags"], str(edited))
        elif model["kind"] == "meta_graph":
            meta_graph = _read(path, tf.compat.v1.MetaGraphDef)
            adapt(meta_graph.graph_def, calls)
            saver = tf.compat.v1.train.import_meta_graph(meta_graph)
            saver.restore(session, model["checkpoint"])
        else:
            is_text = model["kind"] == "text"
            graph_def = _read(path, tf.compat.v1.GraphDef, is_text=is_text)
            adapt(graph_def, calls)
            tf.import_graph_def(graph_def, name="")
            if model["init_op"] is not None:
                session.run(model["init_op"], model["asset_feeds"])
        yield session


def _read(path: pathlib.Path, cls: Any, *, is_text: bool = False) -> Any:
    if is_text or path.suffix == ".pbtxt":
        from google.protobuf import text_format

        return text_format.Parse(path.read_bytes(), cls())
    return cls.FromString(path.read_bytes())


def _edit_saved_model(
    path: pathlib.Path, folder: pathlib.Path, calls: bytes
) -> pathlib.Path:
    """Returns a SavedModel after `adapt`."""
    name = next(file.name for file in path.glob("saved_model.pb*"))
    saved_model = _read(path / name, saved_model_pb2.SavedModel)
    for meta_graph in saved_model.meta_graphs:
        adapt(meta_graph.graph_def, calls)
    (folder / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    for part in ("variables", "assets"):
        if (path / part).exists():
            (folder / part).symlink_to((path / part).resolve())
    return folder


def adapt(graph_def: Any, calls: bytes) -> None:
    """Makes a graph run here, as the session says.

    Calls carry options of their own, Grappler on; and the devices of nodes may be those
    of the machines that trained the model.
    """
    bodies = [graph_def.node, *(f.node_def for f in graph_def.library.function)]
    for node in (node for body in bodies for node in body):
        node.device = ""
        if "config_proto" in node.attr:
            node.attr["config_proto"].s = calls


def equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    """Returns whether all bits are the same."""
    return all(
        a.dtype == b.dtype and a.shape == b.shape and _bits(a) == _bits(b)
        for a, b in zip(first, second, strict=True)
    )


def _bits(array: np.ndarray) -> Any:
    return array.tolist() if array.dtype == object else array.tobytes()


def difference(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """Returns the largest difference; infinite if the values cannot be subtracted."""
    largest = 0.0
    for a, b in zip(first, second, strict=True):
        if equal([a], [b]):
            continue
        if a.shape != b.shape or a.dtype != b.dtype or a.dtype == object:
            return float("inf")
        kind = np.complex128 if np.iscomplexobj(a) else np.float64
        gap = np.abs(a.astype(kind) - b.astype(kind))
        both_nan = np.isnan(a.astype(kind)) & np.isnan(b.astype(kind))
        gap = np.where(both_nan | (a == b), 0.0, gap)
        largest = max(largest, float(np.max(gap, initial=0.0)))
    return float("inf") if np.isnan(largest) else largest


def scale(arrays: list[np.ndarray]) -> float:
    """Returns the largest finite magnitude."""
    largest = 0.0
    for array in arrays:
        if array.dtype != object:
            values = np.abs(array.astype(np.complex128))
            finite = values[np.isfinite(values)]
            largest = max(largest, float(np.max(finite, initial=0.0)))
    return largest


def epsilon(dtype: np.dtype) -> float:
    """Returns the rounding unit of a floating type, 0 for others."""
    kind = tf.as_dtype(dtype)
    if not kind.is_floating and not kind.is_complex:
        return 0.0
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).eps)


if __name__ == "__main__":
    _processes.answer(findings)
