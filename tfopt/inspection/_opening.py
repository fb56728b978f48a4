"""Recognises what a model is, and reads it."""

from __future__ import annotations

import contextlib
import glob
import os
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tfopt import artifacts
from tfopt.inspection import _graph, _tflite
from tfopt.inspection._types import (
    Weights,
    bytes_by_dtype,
    make_layer,
    weights_of,
)
from tfopt.types import TfoptError

_DEFAULT = "serving_default"
_EXPECTED = (
    "Expected a .tflite file, a SavedModel directory, a GraphDef (.pb, .pbtxt), a "
    ".keras or .h5 file, a checkpoint's prefix, or a Keras model"
)


def fields_of(model: Any, signature_key: str | None) -> tuple[str, dict[str, Any]]:
    """Returns the format of a model, and the fields of `Inspection` that it gives.

    Raises:
        ValueError: `signature_key` for anything but a SavedModel.
        TfoptError: It is nothing known, damaged, or has no such signature.
    """
    on_disk = isinstance(model, (str, os.PathLike))
    path = pathlib.Path(model) if on_disk else pathlib.Path()
    in_memory = "tflite" if isinstance(model, bytes) else "keras"
    format = format_of(path) if on_disk else in_memory
    if format == "saved_model":
        return format, _of_saved_model(path, signature_key)
    if signature_key is not None:
        raise ValueError(
            "`signature_key` chooses among the signatures of a SavedModel. Expected "
            f"none for {format}. Received: signature_key={signature_key!r}"
        )
    if not on_disk:
        return format, (
            _tflite.inspect_tflite(model) if format == "tflite" else _of_keras(model)
        )
    readers = {
        "tflite": _tflite.inspect_tflite,
        "graph_def": _of_graph_file,
        "keras": _of_keras_file,
        "checkpoint": _of_checkpoint,
    }
    return format, readers[format](path)


def format_of(path: pathlib.Path) -> str:
    """Returns what stands at a path, by its content or suffix.

    Raises:
        TfoptError: Nothing that is known.
    """
    found = artifacts.format_of(path)
    if found is not None:
        return found
    if path.with_name(path.name + ".index").is_file():
        return "checkpoint"
    what = "It is no model that is known" if path.exists() else "No such model"
    raise TfoptError(f"{what}. {_EXPECTED}. Received: {os.fspath(path)!r}")


def sizes(
    model: str | os.PathLike[str], format: str, *, measure_up_to: int
) -> tuple[int, int | None]:
    """Returns the raw size of a model on disk, and its size after gzip if not large."""
    if format != "checkpoint":
        found = artifacts.describe(model, format, measure_up_to=measure_up_to)
        return found.size_bytes, found.gzip_bytes
    files = glob.glob(f"{glob.escape(os.fspath(model))}.*")
    raw = sum(map(artifacts.raw_size, files))
    if raw > measure_up_to:
        return raw, None
    return raw, sum(map(artifacts.gzip_size, files))


def _of_graph_file(path: pathlib.Path) -> dict[str, Any]:
    from tfopt.savedmodel import graphs, outside, reader

    graph = reader.read_message(path, "GraphDef")
    graphs.check(graph, path)
    fed = {name.split(":", 1)[0] for node in graph.node for name in node.input}
    inputs = [node.name for node in graph.node if node.op.startswith("Placeholder")]
    outputs = [
        node.name
        for node in graph.node
        if node.name not in fed and node.op not in ("Const", "NoOp", "Placeholder")
    ]
    fields = None
    if graph.library.function and outputs:
        with contextlib.suppress(TfoptError):  # then it is looked into as it is
            fields = _frozen(path, output_node_names=outputs)
    fields = fields or _graph.inspect_graph(graph)
    # A GraphDef has no signature.
    ends = (
        f"Placeholders: {', '.join(inputs) or 'none'}",
        f"Nodes that feed nothing: {', '.join(outputs[:20]) or 'none'}",
        *(["Counted is what all of them need together."] if len(outputs) > 1 else []),
    )
    notes = (*_reaching(outside.in_graph(graph)), *ends, *fields["notes"])
    return {"signatures": (), **fields, "notes": notes}


def _reaching(found: Iterable[Any]) -> Iterator[str]:
    listed = ", ".join(map(str, found))
    if listed:
        yield f"WARNING: this model reaches outside of itself when it is run: {listed}."


def _of_saved_model(path: pathlib.Path, signature_key: str | None) -> dict[str, Any]:
    from tfopt.savedmodel import outside, reader

    where = os.fspath(path)
    meta_graph = reader.select_meta_graph(reader.read_saved_model(path), None, where)
    wanted = None if signature_key is None else [signature_key]
    if wanted:
        reader.select_signatures(meta_graph, wanted, where)
    try:
        all_keys = list(reader.select_signatures(meta_graph, None, where))
        key = signature_key or (_DEFAULT if _DEFAULT in all_keys else all_keys[0])
        fields = _frozen(path, signature_keys=[key])
    except TfoptError as error:
        all_keys, key = [], ""
        fields = _unfrozen(path, meta_graph, error)
    fields["signatures"] = tuple(
        reader.signature_of(name, meta_graph.signature_def[name]) for name in all_keys
    )
    if len(all_keys) > 1:
        fields["notes"] = (f"Looked into is the signature {key}.", *fields["notes"])
    fields["notes"] = (
        *_reaching(outside.in_meta_graph(meta_graph)),
        *fields["notes"],
        *_stored(path, fields["weights"]),
    )
    return fields


def _frozen(
    source: Any,
    *,
    signature_keys: list[str] | None = None,
    output_node_names: list[str] | tuple[str, ...] = (),
    layers: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Inspects what inference needs of a model."""
    from tfopt import freezing
    from tfopt.savedmodel import reader

    with artifacts.temporary_folder() as folder:
        target = os.path.join(folder, "frozen.pb")
        freezing.freeze(
            source,
            target,
            signature_keys=signature_keys,
            output_node_names=output_node_names,
            inline_functions=True,
            verify="structure",
        )
        graph = reader.read_message(target, "GraphDef")
        return _graph.inspect_graph(graph, prefer=layers)


def _unfrozen(path: pathlib.Path, meta_graph: Any, error: TfoptError) -> dict[str, Any]:
    """What a SavedModel tells that cannot be frozen: variables and operations."""
    nodes = [
        *meta_graph.graph_def.node,
        *(n for f in meta_graph.graph_def.library.function for n in f.node_def),
    ]
    weights = list(_variables(path / "variables" / "variables"))
    return {
        **_listed(weights),
        "operations": dict(sorted(Counter(node.op for node in nodes).items())),
        "macs": None,
        "notes": (
            "Listed is all that is stored, as the model cannot be brought into the "
            f"form that inference needs: {error}",
        ),
    }


def _stored(path: pathlib.Path, weights: tuple[Weights, ...]) -> Iterator[str]:
    prefix = path / "variables" / "variables"
    if not prefix.with_name("variables.index").exists():
        return
    stored = sum(item.size_bytes for item in _variables(prefix, count=False))
    needed = sum(item.size_bytes for item in weights)
    if stored > needed:
        yield (
            f"The checkpoint stores {stored:,} bytes of numbers; inference needs "
            f"{needed:,} of them (`slim_checkpoint` leaves out the rest)."
        )


def _variables(prefix: pathlib.Path, *, count: bool = True) -> Iterator[Weights]:
    from tfopt.savedmodel import dtypes
    from tfopt.savedmodel.bundle import BundleReader

    checkpoint = BundleReader(prefix)
    for key in checkpoint.keys():  # noqa: SIM118 (no mapping)
        entry = checkpoint.entry(key)
        dtype = _graph.type_name(dtypes.name_of(entry.dtype))
        item_size = dtypes.item_size(entry.dtype)
        if item_size is None:
            continue  # strings: the object graph, vocabularies
        array = checkpoint.read(key) if count else None
        if array is not None:
            yield weights_of(key, dtype, array, array.nbytes)
        else:
            size = item_size
            for length in entry.shape:
                size *= length
            yield Weights(key, dtype, entry.shape, size, 0, None)


def _of_checkpoint(prefix: pathlib.Path) -> dict[str, Any]:
    return {**_listed(list(_variables(prefix))), "operations": {}, "notes": ()}


def _listed(weights: list[Weights]) -> dict[str, Any]:
    groups: dict[str, list[Weights]] = {}
    for item in weights:
        # TensorFlow 2 keys end in "/.ATTRIBUTES/VARIABLE_VALUE".
        name = item.name.split("/.ATTRIBUTES", 1)[0]
        groups.setdefault(name.rsplit("/", 1)[0], []).append(item)
    return {
        "signatures": (),
        "layers": tuple(
            make_layer(name, "variables", group, None) for name, group in groups.items()
        ),
        "weights": tuple(sorted(weights, key=lambda item: -item.size_bytes)),
        "macs": None,
        "arena_bytes": None,
        "precision": {"weight_bytes": bytes_by_dtype(weights)},
    }


def _of_keras_file(path: pathlib.Path) -> dict[str, Any]:
    from tfopt import _keras

    return _of_keras(_keras.load(path))


def _of_keras(model: Any) -> dict[str, Any]:
    from tfopt import _keras
    from tfopt._keras import variables

    _keras.check_model(model)
    found = variables.weights(model)
    groups: dict[str, list[Any]] = {}
    for weight in found:
        groups.setdefault(weight.name.rpartition("/")[0] or weight.name, []).append(
            weight
        )
    weights = {weight.name: _keras_weights(weight) for weight in found}
    graph, notes = _keras_graph(model, tuple(groups))
    macs = {layer.name: layer.macs for layer in graph["layers"]} if graph else {}
    layers = [
        make_layer(
            name,
            type(group[0].layer).__name__,
            [weights[weight.name] for weight in group],
            macs.get(name, 0 if graph else None),
        )
        for name, group in groups.items()
    ]
    return {
        "signatures": _keras_signature(model),
        "operations": dict(
            sorted(Counter(type(x).__name__ for x in _keras.leaf_layers(model)).items())
        ),
        "layers": tuple(layers),
        "weights": tuple(sorted(weights.values(), key=lambda item: -item.size_bytes)),
        "macs": graph["macs"] if graph else None,
        "arena_bytes": None,
        "precision": {
            "weight_bytes": bytes_by_dtype(weights.values()),
            "macs": graph["precision"]["macs"] if graph else {},
        },
        "notes": notes,
        "trainable": sum(weight.size for weight in found if weight.trainable),
    }


def _keras_graph(
    model: Any, layers: tuple[str, ...]
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    try:
        graph = _frozen(model, layers=layers)
    except (TfoptError, ValueError) as error:
        reason = " ".join(str(error).split())
        return None, (f"Multiplications are not counted: {reason}",)
    return graph, graph["notes"]


def _keras_weights(weight: Any) -> Weights:
    array = weight.variable.numpy()
    name = "bfloat16" if "bfloat16" in str(array.dtype) else array.dtype.name
    return weights_of(weight.name, name, array, array.nbytes)


def _keras_signature(model: Any) -> tuple[Any, ...]:
    import numpy as np
    import tensorflow as tf

    from tfopt._keras import inference
    from tfopt.types import Signature, TensorInfo

    try:
        call = inference.inference_call(model)
    except (TfoptError, ValueError):
        return ()
    inputs = [
        TensorInfo(
            name or f"input_{number}",
            np.dtype(spec.dtype.as_numpy_dtype),
            None if spec.shape.rank is None else tuple(spec.shape.as_list()),
        )
        for number, (name, spec) in enumerate(
            zip(call.input_names, tf.nest.flatten(call.arguments), strict=True)
        )
    ]
    outputs = [
        TensorInfo(
            name,
            np.dtype(tf.as_dtype(tensor.dtype).as_numpy_dtype),
            tuple(tensor.shape),
        )
        for name, tensor in zip(
            call.output_names, getattr(model, "outputs", None) or (), strict=False
        )
    ]
    return (Signature("call", tuple(inputs), tuple(outputs)),)
