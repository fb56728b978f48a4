"""Runs a graph after each transform; a child process of `_verifier`.

    python -m tfopt.transforms._execution

Requests come on stdin and answers go to stdout, as frames: a length, then JSON; the
graph, as bytes, is a frame of its own. A child of its own, as TensorFlow aborts its
process on some damaged graphs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.freezing import _execution
from tfopt.transforms import _frames

# Sizes for the first axis and for others, where free: tried in turn until the original
# graph takes them. The second call of a run has another batch, so that a transform that
# fixes the size shows.
_FREE_SIZES = ((2, 8), (1, 8), (1, 32), (2, 64), (1, 256), (1, 1), (2, 1))
_OTHER_BATCH = 3

Outputs = dict[str, list[np.ndarray]]


def main() -> None:
    """Answers requests until stdin ends."""
    # What TensorFlow prints must not get between the frames.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    tester: _Tester | None = None
    answer: dict[str, Any] = {"error": "there is nothing to compare with"}
    while (request := _frames.read_json(sys.stdin.buffer)) is not None:
        graph = _frames.read(sys.stdin.buffer) or b""
        try:
            if "calls" in request:
                tester = _Tester(request)
                answer = tester.start(graph)
            elif tester is not None:
                answer = tester.compare(graph)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        _frames.write_json(answers, answer)


class _Tester:
    """The original graph's results, and those of the last graph that was run.

    Args:
        request: `calls` (key -> `{"inputs", "outputs"}`, name -> tensor), `data`,
            `restoration`, `init_op` and `asset_feeds`, see `_sources.Source`.
    """

    def __init__(self, request: Mapping[str, Any]):
        self._request = request
        self._feeds: dict[str, list[dict[str, np.ndarray]]] = {}
        self._random: set[str] = set()
        self._original: Outputs = {}
        self._last: Outputs = {}

    def start(self, graph: bytes) -> dict[str, Any]:
        """Finds inputs for the original graph, runs it and notes its outputs."""
        parsed = _parse(graph)
        for key, call in self._request["calls"].items():
            self._feeds[key] = self._find_feeds(parsed, call)
        began = time.perf_counter()
        self._original = self._last = self._run(parsed)
        seconds = time.perf_counter() - began
        again = self._run(parsed)
        self._random = {
            name
            for name, values in self._original.items()
            if not _same(values, again[name])
        }
        return {"random": sorted(self._random), "seconds": seconds}

    def compare(self, graph: bytes) -> dict[str, Any]:
        """Runs a graph; compares it with the original and with the one before."""
        outputs = self._run(_parse(graph))
        findings = {name: self._found(name, values) for name, values in outputs.items()}
        self._last = outputs
        return {"outputs": findings}

    def _found(self, name: str, values: list[np.ndarray]) -> dict[str, Any]:
        last, original = self._last[name], self._original[name]
        dtype = original[0].dtype
        return {
            "random": name in self._random,
            "same_form": _forms(values) == _forms(original),
            "is_float": _execution.epsilon(dtype) > 0,
            "equal": _same(last, values),
            "step_error": _execution.difference(last, values),
            "max_error": _execution.difference(original, values),
            "mean_error": _mean_difference(original, values),
            "scale": _execution.scale(original),
        }

    def _find_feeds(
        self, graph: Any, call: Mapping[str, Any]
    ) -> list[dict[str, np.ndarray]]:
        """Returns the inputs of two calls; a file's are all of one."""
        if self._request["data"] is not None:
            return [self._from_file(call["inputs"])]
        reason = None
        with self._session(graph) as session:
            for free in _FREE_SIZES:
                feed = self._make_up(session, call, 0, free)
                try:
                    session.run(list(call["outputs"].values()), feed)
                except (tf.errors.OpError, ValueError) as error:
                    reason = reason or error
                    continue
                other = self._make_up(session, call, 1, (_OTHER_BATCH, free[1]))
                try:
                    session.run(list(call["outputs"].values()), other)
                except (tf.errors.OpError, ValueError):
                    other = self._make_up(session, call, 1, free)
                return [feed, other]
        raise RuntimeError(f"no inputs can be made up for the graph ({reason})")

    def _from_file(self, inputs: Mapping[str, str]) -> dict[str, np.ndarray]:
        with np.load(self._request["data"], allow_pickle=False) as arrays:
            missing = [name for name in inputs if name not in arrays]
            if missing:
                raise ValueError(
                    f"verify_data lacks {', '.join(missing)}; it has "
                    f"{', '.join(arrays.files)}"
                )
            return {tensor: arrays[name] for name, tensor in inputs.items()}

    def _make_up(
        self, session: Any, call: Mapping[str, Any], seed: int, free: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        feed = {}
        for name in call["inputs"].values():
            tensor = session.graph.get_tensor_by_name(name)
            rank = tensor.shape.rank
            shape = [-1] if rank is None else [size or -1 for size in tensor.shape]
            if rank is not None:
                shape = [-1 if size is None else int(size) for size in tensor.shape]
            feed[name] = _execution.random_array(
                random, tensor.dtype.name, shape, free=free
            )
        return feed

    def _run(self, graph: Any) -> Outputs:
        """Returns the outputs of all signatures, call by call, each in a session."""
        outputs: Outputs = {}
        for key, call in self._request["calls"].items():
            with self._session(graph) as session:
                fetches = list(call["outputs"].values())
                calls = [session.run(fetches, feed) for feed in self._feeds[key]]
            for index, name in enumerate(call["outputs"]):
                full = f"{key}/{name}" if key else name
                outputs[full] = [np.asarray(values[index]) for values in calls]
        return outputs

    def _session(self, graph: Any) -> Any:
        """Returns a new session with the graph in its first state."""
        config = _config()
        with tf.Graph().as_default() as loaded:
            tf.import_graph_def(graph, name="")
        session = tf.compat.v1.Session(graph=loaded, config=config)
        restoration = self._request["restoration"]
        if restoration is not None:
            session.run(
                restoration["operation"],
                {restoration["filename"]: restoration["prefix"]},
            )
        if self._request["init_op"] is not None:
            session.run(self._request["init_op"], self._request["asset_feeds"])
        return session


def _config() -> Any:
    """Returns a ConfigProto without TensorFlow's optimizers, and with one thread.

    So every node is computed as it stands, in an order that does not vary.
    """
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=1, inter_op_parallelism_threads=1
    )
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = -1
    return config


def _parse(graph: bytes) -> Any:
    parsed = tf.compat.v1.GraphDef.FromString(graph)
    _execution.adapt(parsed, _config().SerializeToString())
    return parsed


def _forms(arrays: list[np.ndarray]) -> list[tuple[Any, ...]]:
    return [(array.dtype, array.shape) for array in arrays]


def _same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    """Whether all bits are the same, but for those that tell one NaN from another."""
    return _execution.equal([_plain(a) for a in first], [_plain(b) for b in second])


def _plain(array: np.ndarray) -> np.ndarray:
    if array.dtype == object or not _execution.epsilon(array.dtype):
        return array
    return np.where(np.isnan(array), np.array(np.nan, array.dtype), array)


def _mean_difference(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """Returns the mean difference; of values without one, the share that differs."""
    total, count = 0.0, 0
    for a, b in zip(first, second, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.dtype == object or not _execution.epsilon(a.dtype):
            gaps = np.asarray(a != b, np.float64)
        else:
            kind = np.complex128 if np.iscomplexobj(a) else np.float64
            gaps = np.abs(a.astype(kind) - b.astype(kind))
            gaps = gaps[np.isfinite(gaps)]
        total, count = total + float(gaps.sum()), count + gaps.size
    return total / max(count, 1)


if __name__ == "__main__":
    main()
