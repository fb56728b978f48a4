"""What is to be optimized, in a form that every step takes."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfopt import _keras
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
    graph = tf.compat.v1.GraphDef()
    try:
        if path.suffix == ".pb":
            graph.ParseFromString(path.read_bytes())
        else:
            from google.protobuf import text_format

            text_format.Parse(path.read_text(encoding="utf-8"), graph)
    except Exception as error:  # protobuf's own, which it doesn't export
        raise TfoptError(
            "Cannot read the graph. Expected an undamaged GraphDef. "
            f"Received: model={os.fspath(model)!r} ({error})"
        ) from error
    return graph


def _function(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """Returns a frozen graph as a function with a signature."""
    if not inputs or not outputs:
        raise ValueError(
            "A frozen graph doesn't say what its inputs and outputs are. Expected the "
            'names of tensors, such as inputs=["image"], outputs=["softmax"]. '
            f"Received: inputs={list(inputs)}, outputs={list(outputs)}"
        )
    try:
        whole = tf.compat.v1.wrap_function(
            lambda: tf.graph_util.import_graph_def(graph, name=""), []
        )
        feeds, fetches = (
            [whole.graph.as_graph_element(_tensor(name)) for name in names]
            for names in (inputs, outputs)
        )
    except (KeyError, ValueError) as error:
        raise ValueError(
            "The graph has no such tensors. "
            f"Received: inputs={list(inputs)}, outputs={list(outputs)} ({error})"
        ) from error
    pruned = whole.prune(feeds, fetches)
    keys = [_key(name) for name in outputs]
    specs = [
        tf.TensorSpec(feed.shape, feed.dtype, _key(name))
        for feed, name in zip(feeds, inputs, strict=True)
    ]

    @tf.function(input_signature=specs)
    def frozen_graph(*tensors: Any) -> Any:
        return dict(zip(keys, pruned(*tensors), strict=True))

    return frozen_graph.get_concrete_function()


def _tensor(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _key(name: str) -> str:
    return name.removesuffix(":0").replace("/", "_").replace(":", "_")
