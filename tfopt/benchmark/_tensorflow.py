"""Keras files, SavedModels and graph files as engines; the only part with TensorFlow.

TensorFlow is imported when a model is opened, in the child process that measures it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tfopt.benchmark import _arrays
from tfopt.savedmodel import outside
from tfopt.types import Signature, TensorInfo, TfoptError

_DEFAULT_KEY = "serving_default"
# "name = Op(inputs)" in TensorFlow's step statistics.
_LABEL = re.compile(r"(?:\[[^]]*\])?\s*(\S+) = ([\w>]+)\(")


def open_model(
    path: str,
    format: str,
    *,
    rows: int,
    num_workers: int | Literal["auto"] = "auto",
    num_threads: int | Literal["auto"] = "auto",
    signature_key: str | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    floats: bool = False,
) -> TensorFlowEngine:
    """Opens a model; see `_engine.open_engine`.

    Raises:
        TfoptError: It cannot be loaded, or lacks what the options name.
    """
    import tensorflow as tf

    if num_threads != "auto":
        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    outside.check_file(path, "run")
    config = {
        "num_workers": 1 if num_workers == "auto" else num_workers,
        "num_threads": num_threads,
    }
    if format == "graph_def":
        return _from_graph(tf, path, inputs, outputs, config)
    if format == "saved_model":
        return _from_saved_model(tf, path, signature_key, config)
    return _from_keras(tf, path, config)


class TensorFlowEngine:
    """A model that TensorFlow runs; see `_engine.Engine`.

    Args:
        signature: What it takes and gives.
        call: Takes the inputs in order, returns the outputs in order.
        config: The options that it runs with.
        freeze: Returns the GraphDef and the tensor names of inputs and outputs.
        owner: Kept alive, as functions refer to their variables weakly.
    """

    cuts = False

    def __init__(
        self,
        signature: Signature,
        call: Callable[[list[np.ndarray]], Sequence[Any]],
        config: Mapping[str, Any],
        freeze: Callable[[], tuple[Any, list[str], list[str]]],
        owner: Any = None,
    ) -> None:
        self.signature = signature
        self.config = dict(config)
        self.free_rows = not any(
            info.shape and info.shape[0] is not None for info in signature.inputs
        )
        self._call = call
        self._freeze = freeze
        self._owner = owner
        self._input_names = [info.name for info in signature.inputs]
        self._output_names = [info.name for info in signature.outputs]

    def run(self, inputs: _arrays.Arrays) -> _arrays.Arrays:
        """Returns the outputs of one call, all by name."""
        values = self._call([inputs[name] for name in self._input_names])
        return _arrays.by_name(self._output_names, list(values))

    def run_parallel(self, inputs: _arrays.Arrays, calls: int) -> None:
        """Calls the model from so many threads as there are workers."""
        workers = self.config["num_workers"]
        _arrays.in_threads(lambda: self.run(inputs), calls, workers)

    def profile(
        self, inputs: _arrays.Arrays, runs: int
    ) -> tuple[list[list[dict[str, Any]]], str]:
        """Runs the frozen graph in a session that traces its operations.

        The times are those of `RunMetadata.step_stats` at full trace: wall-clock times
        of each node after TensorFlow's own optimization, in which parallel ones
        overlap.
        """
        import tensorflow as tf

        graph_def, feeds, fetches = self._freeze()
        v1 = tf.compat.v1
        options = v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE)
        feed = dict(
            zip(feeds, (inputs[name] for name in self._input_names), strict=True)
        )
        found = []
        with tf.Graph().as_default(), v1.Session(config=self._session_config()) as run:
            tf.import_graph_def(graph_def, name="")
            for _ in range(3):
                run.run(fetches, feed)
            for _ in range(runs):
                metadata = v1.RunMetadata()
                run.run(fetches, feed, options=options, run_metadata=metadata)
                found.append(_node_times(metadata.step_stats))
        return found, ""

    def close(self) -> None:
        """Does nothing: the process that holds the model ends."""

    def _session_config(self) -> Any:
        return _session_config(self.config)


def _from_keras(tf: Any, path: str, config: Mapping[str, Any]) -> TensorFlowEngine:
    from tfopt import _keras
    from tfopt._keras import inference

    model = _keras.load(path)
    call = inference.inference_call(model)
    function = tf.function(call.function).get_concrete_function(*call.arguments)
    specs = tf.nest.flatten(call.arguments)
    names = _unique(
        name or f"input_{index}" for index, name in enumerate(call.input_names)
    )
    outputs = tf.nest.flatten(function.structured_outputs)
    output_names = call.output_names
    if len(output_names) != len(outputs):
        output_names = tuple(f"output_{index}" for index in range(len(outputs)))
    signature = Signature(
        key=_DEFAULT_KEY,
        inputs=tuple(map(_info, names, specs)),
        outputs=tuple(map(_info, output_names, outputs)),
    )

    def run(values: list[np.ndarray]) -> list[np.ndarray]:
        tensors = [tf.constant(value) for value in values]
        arguments = tf.nest.pack_sequence_as(call.arguments, tensors)
        return [item.numpy() for item in tf.nest.flatten(function(*arguments))]

    return TensorFlowEngine(
        signature, run, config, lambda: _frozen(function), owner=model
    )


def _from_saved_model(
    tf: Any, path: str, key: str | None, config: Mapping[str, Any]
) -> TensorFlowEngine:
    try:
        loaded = tf.saved_model.load(path)
    except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
        raise TfoptError(
            "TensorFlow cannot load the SavedModel. Expected one that "
            f"tf.saved_model.load takes. Received: {path!r}: {error}"
        ) from error
    keys = list(loaded.signatures)
    if key is None:
        key = _DEFAULT_KEY if _DEFAULT_KEY in keys or len(keys) != 1 else keys[0]
    if key not in keys:
        raise TfoptError(
            f"No such signature. Expected one of {keys}. "
            f"Received: signature_key={key!r}"
        )
    function = loaded.signatures[key]
    specs = function.structured_input_signature[1]
    structured = function.structured_outputs
    names = sorted(structured)
    signature = Signature(
        key=key,
        inputs=tuple(_info(name, specs[name]) for name in specs),
        outputs=tuple(_info(name, structured[name]) for name in names),
    )

    def run(values: list[np.ndarray]) -> list[np.ndarray]:
        tensors = zip(specs, map(tf.constant, values), strict=True)
        results = function(**dict(tensors))
        return [results[name].numpy() for name in names]

    return TensorFlowEngine(
        signature, run, config, lambda: _frozen(function), owner=loaded
    )


def _from_graph(
    tf: Any,
    path: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    config: Mapping[str, Any],
) -> TensorFlowEngine:
    from tfopt.savedmodel import reader

    if not outputs:
        raise TfoptError(
            "A graph file doesn't say what its outputs are. Expected the names of its "
            f"output tensors or nodes. Received: outputs={outputs!r} for {path!r}"
        )
    message = reader.read_message(path, "GraphDef")
    graph_def = tf.compat.v1.GraphDef.FromString(message.SerializeToString())
    with tf.Graph().as_default() as graph:
        try:
            tf.import_graph_def(graph_def, name="")
        except ValueError as error:
            raise TfoptError(
                f"TensorFlow cannot load the graph. Received: {path!r}: {error}"
            ) from error
    feeds = [_tensor(graph, name, path) for name in inputs] or [
        node.outputs[0] for node in graph.get_operations() if node.type == "Placeholder"
    ]
    fetches = [_tensor(graph, name, path) for name in outputs]
    session = tf.compat.v1.Session(graph=graph, config=_session_config(config))
    run = session.make_callable(fetches, feed_list=feeds)
    signature = Signature(
        key=_DEFAULT_KEY,
        inputs=tuple(_info(_plain(tensor.name), tensor) for tensor in feeds),
        outputs=tuple(_info(_plain(tensor.name), tensor) for tensor in fetches),
    )
    names = [tensor.name for tensor in feeds], [tensor.name for tensor in fetches]
    return TensorFlowEngine(
        signature, lambda values: run(*values), config, lambda: (graph_def, *names)
    )


def _session_config(config: Mapping[str, Any]) -> Any:
    import tensorflow as tf

    options = tf.compat.v1.ConfigProto()
    if config["num_threads"] != "auto":
        options.intra_op_parallelism_threads = config["num_threads"]
        options.inter_op_parallelism_threads = 1
    return options


def _frozen(function: Any) -> tuple[Any, list[str], list[str]]:
    from tensorflow.python.framework import convert_to_constants

    frozen = convert_to_constants.convert_variables_to_constants_v2(function)
    feeds = [tensor.name for tensor in frozen.inputs]
    fetches = [tensor.name for tensor in frozen.outputs]
    return frozen.graph.as_graph_def(), feeds, fetches


def _tensor(graph: Any, name: str, path: str) -> Any:
    try:
        return graph.get_tensor_by_name(name if ":" in name else f"{name}:0")
    except (KeyError, ValueError) as error:
        raise TfoptError(
            "The graph has no such tensor. Expected the name of a node, or of one of "
            f"its outputs (name:0). Received: {name!r} for {path!r}"
        ) from error


def _plain(name: str) -> str:
    return name.removesuffix(":0")


def _info(name: str, spec: Any) -> TensorInfo:
    kind = spec.dtype.as_numpy_dtype
    shape = None if spec.shape.rank is None else tuple(spec.shape.as_list())
    return TensorInfo(name=name, dtype=np.dtype(kind), shape=shape)


def _unique(names: Any) -> list[str]:
    found: list[str] = []
    for name in names:
        found.append(name if name not in found else f"{name}_{len(found)}")
    return found


def _node_times(step_stats: Any) -> list[dict[str, Any]]:
    rows = []
    for device in step_stats.dev_stats:
        for node in device.node_stats:
            label = _LABEL.match(node.timeline_label)
            op = label[2] if label else node.node_name.split(":")[-1]
            if op in ("_SOURCE", "_SINK", "NoOp", "Const", "_Arg", "_Retval"):
                continue
            rows.append(
                {
                    "name": node.node_name,
                    "op": op,
                    "time_us": (node.op_end_rel_nanos - node.op_start_rel_nanos) / 1e3,
                }
            )
    return rows
