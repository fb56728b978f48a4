"""Which layer of a Keras model made each node of its graph.

Node names tell it only roughly: a layer called twice, or a model traced twice, gets
numbers behind its name, `add_1`, that other layers have in theirs. So the layer is
noted while it is being called.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import op_callbacks

from tfopt import _keras


def layer_paths(model: Any) -> dict[int, str]:
    """Returns the names of all layers from the model down, by the layers' `id`.

    The same names as in `variables.weights`, `"block/dense"`; a shared layer has the
    first of its places.

    Example:
        >>> {"image", "logits"} <= set(layer_paths(model).values())
        True
    """
    paths: dict[int, str] = {}

    def walk(layer: Any, prefix: str) -> None:
        for child in layer._flatten_layers(include_self=False, recursive=False):
            if id(child) not in paths:
                paths[id(child)] = prefix + child.name
                walk(child, f"{prefix}{child.name}/")

    walk(model, "")
    return paths


@contextlib.contextmanager
def recorded(model: Any) -> Iterator[dict[str, str]]:
    """Notes which layer makes each node, while a model is called in a graph.

    Enter it inside the function that is being traced: then nothing outside this trace
    is touched. Nodes that no layer makes are left out, as `keras.ops` between layers,
    and so are those of functions inside, which have names of their own.

    Args:
        model: A Keras model of either version, or anything else: nothing is noted.

    Yields:
        Node name -> path of the innermost layer, filled during the block.
    """
    nodes: dict[str, str] = {}
    if not _keras.is_model(model):
        yield nodes
        return
    paths = layer_paths(model)
    traced = tf.compat.v1.get_default_graph()
    current = _current_keras3 if _keras.is_keras3(model) else _current_tf_keras

    def note(
        op_type: str,
        inputs: Any,
        attrs: Any,
        outputs: Any,
        op_name: str | bytes | None = None,
        graph: Any = None,
    ) -> None:
        del op_type, inputs, attrs, outputs
        if graph is not traced:
            return
        path = next((paths[id(x)] for x in current() if id(x) in paths), None)
        if op_name is not None and path is not None:
            name = op_name.decode() if isinstance(op_name, bytes) else op_name
            nodes[name] = path

    op_callbacks.add_op_callback(note)
    try:
        yield nodes
    finally:
        op_callbacks.remove_op_callback(note)


def _current_keras3() -> Iterator[Any]:
    """Yields the layers that are being called, the innermost first."""
    state: Callable[..., Any] = importlib.import_module(
        "keras.src.backend.common.global_state"
    ).get_global_attribute
    for scope in reversed(state("name_scope_stack") or []):
        yield scope.caller


def _current_tf_keras() -> Iterator[Any]:
    context = importlib.import_module("tf_keras.src.engine.base_layer_utils")
    yield context.call_context().layer
