"""A model of either Keras as one flat graph of layer calls, and back.

Nested models are inlined, and layers that are made of layers are opened. The graph is
plain data: rewriting it means replacing the class and configuration of its layers or
inserting calls, without any Keras version in sight; `to_model` then makes a new
Functional model with its own variables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt._keras import inference
from tfopt._keras.flatten._graph import Call, Graph, LayerSpec, Value, make_names_unique
from tfopt._keras.flatten._making import make_layer, to_model
from tfopt._keras.flatten._networks import (
    inputs_of,
    network_of,
    outputs_of,
    value_of,
)
from tfopt._keras.flatten._opening import CannotOpen
from tfopt._keras.flatten._shapes import resolve_shapes
from tfopt._keras.flatten._training import training_of
from tfopt._keras.flatten._walk import Walk, input_spec
from tfopt.types import TfoptError

__all__ = ["Call", "Graph", "LayerSpec", "Value", "flatten", "make_layer", "to_model"]


def flatten(model: Any, *, open_layers: bool = True) -> Graph:
    """Returns the flat graph of a built model.

    A subclassed model, a custom layer that holds layers, and attention layers are
    opened: their `call` is run on symbolic tensors, and the layers, `keras.ops` and
    `tf.*` functions that it calls become calls of the graph. Variables of their own
    become layers that return them. Python code runs once, as in inference: of
    `if training:` the other branch is taken. Layers such as Dropout and
    BatchNormalization are called themselves, so these behave in training as ever.
    A custom layer whose code cannot run on symbolic tensors stays one call, and so
    does one without layers inside whose `call` takes `training`.

    Args:
        model: Model of Keras 3 or tf_keras, possibly with nested models. It is not
            changed and shares nothing with the graph.
        open_layers: Whether layers that are made of layers are opened. Otherwise only
            a subclassed model is, and the layers that it calls are the graph's.

    Raises:
        TfoptError: The model is not built, it is subclassed and cannot be opened or
            has no known inputs, a layer's configuration cannot be read, or Keras 3
            runs on another backend than TensorFlow.
    """
    _keras.check_model(model)
    keras = _keras.module_of(model)
    if keras.__name__ == "keras" and keras.backend.backend() != "tensorflow":
        raise TfoptError(
            "Expected Keras 3 to run on TensorFlow (KERAS_BACKEND=tensorflow). "
            f"Received: the backend {keras.backend.backend()!r}"
        )
    with _as_it_was(model):
        network = network_of(model)
        walk = Walk(keras, open_layers=open_layers)
        graph = (
            _subclassed(model, walk)
            if network is None
            else _functional(model, network, walk)
        )
        resolve_shapes(graph, walk.functions)
    make_names_unique(graph.input_specs, graph.calls)
    graph.training = training_of(model)
    return graph


def _functional(model: Any, network: Any, walk: Walk) -> Graph:
    keras = _keras.module_of(model)
    values: dict[int, Value] = {}
    input_specs = []
    for tensor in network.inputs:
        values[id(tensor)] = value_of(tensor)
        input_specs.append((input_spec(keras, tensor), values[id(tensor)]))
    walk.run(network, values, prefix="", training=None)
    return Graph(
        keras=keras,
        model_class=type(model),
        name=model.name,
        input_specs=input_specs,
        inputs=tf.nest.map_structure(lambda x: values[id(x)], inputs_of(network)),
        outputs=tf.nest.map_structure(lambda x: values[id(x)], outputs_of(network)),
        output_names=list(network.output_names),
        calls=walk.calls,
    )


def _subclassed(model: Any, walk: Walk) -> Graph:
    keras = _keras.module_of(model)
    try:
        arguments = inference.inference_call(model).arguments
    except ValueError as error:
        raise TfoptError(str(error)) from error
    input_specs: list[tuple[LayerSpec, Value]] = []
    taken = [_declared(keras, spec, "input", input_specs) for spec in arguments]
    try:
        outputs = walk.open(model, taken, {}, "", None)
    except CannotOpen as error:
        raise TfoptError(
            f"The layers of the subclassed model {model.name!r} cannot be listed: its "
            f"`call` does not run on symbolic tensors ({error}). Expected a `call` of "
            "layers and `keras.ops` or `tf` functions, without Python code that "
            "depends on values of tensors; or build the model as "
            "`keras.Model(inputs, outputs)`. "
            f"Received: model of {type(model).__module__}.{type(model).__name__}"
        ) from error
    return Graph(
        keras=keras,
        model_class=type(model),
        name=model.name,
        input_specs=input_specs,
        inputs=taken[0] if len(taken) == 1 else taken,
        outputs=outputs,
        output_names=[],
        calls=walk.calls,
    )


def _declared(
    keras: Any, spec: Any, name: str, input_specs: list[tuple[LayerSpec, Value]]
) -> Any:
    """Makes inputs for a structure of tensors, and returns it with their values."""
    if isinstance(spec, dict):
        return {
            key: _declared(keras, inner, str(key), input_specs)
            for key, inner in spec.items()
        }
    if isinstance(spec, (list, tuple)):
        return type(spec)(
            _declared(keras, inner, f"{name}_{i}", input_specs)
            for i, inner in enumerate(spec)
        )
    shape, name = spec.shape.as_list(), spec.name or name
    tensor = keras.Input(
        shape[1:], batch_size=shape[0], dtype=spec.dtype.name, name=name
    )
    value = value_of(tensor)
    input_specs.append((input_spec(keras, tensor), value))
    return value


@contextlib.contextmanager
def _as_it_was(model: Any) -> Iterator[None]:
    """Takes back what calling layers on symbolic tensors records in them."""
    names = ("_inbound_nodes", "_outbound_nodes")
    layers = list(model._flatten_layers(include_self=True, recursive=True))
    before = [
        (nodes, len(nodes))
        for layer in layers
        for nodes in (getattr(layer, name, None) for name in names)
        if nodes is not None
    ]
    try:
        yield
    finally:
        for nodes, count in before:
            del nodes[count:]
