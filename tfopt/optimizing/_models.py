"""What is to be optimized, in a form that every step takes."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfopt import _keras, transforms
from tfopt.savedmodel import reader
from tfopt.types import TfoptError

_GRAPHS = (".pb", ".pbtxt")


def open_model(model: Any, *, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """Returns a Keras model, the path of a SavedModel, or a function.

    Args:
        model: A Keras model, a `.keras` or `.h5` file, a SavedModel directory, a
            `tf.function`, or a frozen graph: a GraphDef, or a `.pb` or `.pbtxt` file.
        inputs: Tensors of a frozen graph that callers feed.
        outputs: Tensors that they fetch.

    Raises:
        ValueError: Names are missing, or given for a model that has them.
        TfoptError: The file is missing or cannot be read.
    """
    graph = _graph_def(model)
    if graph is not None:
        return _function(graph, inputs, outputs)
    if inputs or outputs:
        raise ValueError(
            "A model with signatures has named inputs and outputs already. Expected "
            "`inputs` and `outputs` for a frozen graph only. Received: "
            f"inputs={list(inputs)}, outputs={list(outputs)}"
        )
    if not isinstance(model, (str, os.PathLike)):
        return model
    path = pathlib.Path(model)
    if not path.exists():
        raise TfoptError(
            "No such model. Expected a .keras, .h5 or .pb file or a SavedModel "
            f"directory. Received: model={os.fspath(model)!r}"
        )
    return os.fspath(path) if path.is_dir() else _keras.load(path)


def _graph_def(model: Any) -> Any:
    if isinstance(model, tf.compat.v1.GraphDef):
        return model
    if not isinstance(model, (str, os.PathLike)):
        return None
    path = pathlib.Path(model)
    if path.suffix not in _GRAPHS:
        return None
    message = reader.read_message(path, "GraphDef")
    return tf.compat.v1.GraphDef.FromString(message.SerializeToString())


def _function(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """Returns a frozen graph as a function with a signature."""
    if not inputs or not outputs:
        raise ValueError(
            "A frozen graph doesn't say what its inputs and outputs are. Expected the "
            'names of tensors, such as inputs=["image"], outputs=["softmax"]. '
            f"Received: inputs={list(inputs)}, outputs={list(outputs)}"
        )
    if graph.library.function:
        graph = _without_calls(graph, inputs, outputs)
    keys = [_key(name) for name in outputs]
    nodes = {node.name: node for node in graph.node}
    specs = [_spec(nodes, name) for name in inputs]

    @tf.function(input_signature=specs)
    def frozen_graph(*tensors: Any) -> Any:
        feeds = {_tensor(x): y for x, y in zip(inputs, tensors, strict=True)}
        fetches = [_tensor(name) for name in outputs]
        found = tf.graph_util.import_graph_def(
            graph, input_map=feeds, return_elements=fetches, name=""
        )
        return dict(zip(keys, found, strict=True))

    try:
        return frozen_graph.get_concrete_function()
    except (KeyError, ValueError) as error:
        raise ValueError(
            "The graph has no such tensors. "
            f"Received: inputs={list(inputs)}, outputs={list(outputs)} ({error})"
        ) from error


def _without_calls(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """Returns the graph with the bodies of functions in the place of calls."""
    with tempfile.TemporaryDirectory(prefix="tfopt-") as folder:
        path = pathlib.Path(folder) / "inlined.pb"
        transforms.transform_graph(
            graph,
            path,
            "inline_functions",
            inputs=[_tensor(name) for name in inputs],
            outputs=[_tensor(name) for name in outputs],
            verify="structure",
        )
        return tf.compat.v1.GraphDef.FromString(path.read_bytes())


def _spec(nodes: Mapping[str, Any], name: str) -> Any:
    """Returns type and shape of a placeholder."""
    node = nodes.get(_tensor(name).split(":")[0])
    if node is None or "dtype" not in node.attr:
        found = [x.name for x in nodes.values() if x.op == "Placeholder"]
        raise ValueError(
            f"Expected placeholders of the graph, such as {found}. "
            f"Received: inputs with {name!r}"
        )
    shape = tf.TensorShape(node.attr["shape"].shape)
    return tf.TensorSpec(shape, tf.DType(node.attr["dtype"].type), _key(name))


def _tensor(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _key(name: str) -> str:
    return name.removesuffix(":0").replace("/", "_").replace(":", "_")
