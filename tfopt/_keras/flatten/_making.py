"""The Keras model that a flat graph describes."""

from __future__ import annotations

import copy
from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt._keras.flatten._graph import Graph, LayerSpec, Value
from tfopt._keras.flatten._training import has_functional_constructor
from tfopt.types import TfoptError


def to_model(graph: Graph) -> Any:
    """Makes the Keras model that a graph describes, with its weights.

    Each layer is new. A subclass of Model with a functional constructor is kept (and
    with it its `train_step`), and so are the methods for training of another class
    that has its own, with its attributes (`graph.training`). The names by which losses
    are assigned to outputs are kept too, though a reloaded model has the names of its
    last layers.

    Raises:
        TfoptError: A layer cannot be made from its configuration.
    """
    made: dict[LayerSpec, Any] = {}
    tensors: dict[Value, Any] = {}
    for spec, value in graph.input_specs:
        tensors[value] = _first(spec.cls.from_config(spec.config).output)
    for call in graph.calls:
        if call.layer not in made:
            made[call.layer] = make_layer(call.layer)
        args, kwargs = call.map_arguments(tensors.__getitem__)
        outputs = tf.nest.flatten(made[call.layer](*args, **kwargs))
        tensors.update(zip(call.outputs, outputs, strict=True))
    for spec, layer in made.items():
        if spec.weights is not None:
            _set_weights(layer, spec)
    keeps_class = has_functional_constructor(graph.model_class, graph.keras)
    model = (graph.model_class if keeps_class else graph.keras.Model)(
        tf.nest.map_structure(tensors.__getitem__, graph.inputs),
        tf.nest.map_structure(tensors.__getitem__, graph.outputs),
        name=graph.name,
    )
    if graph.output_names:
        model.output_names = graph.output_names
    if graph.training is not None:
        graph.training.put_on(model)
    return model


def make_layer(spec: LayerSpec) -> Any:
    """Makes the layer or operation that a specification describes, without weights.

    Raises:
        TfoptError: Its configuration does not lead back to it.
    """
    try:
        # Some layers take their own configuration apart.
        return spec.cls.from_config(copy.deepcopy(spec.config))
    except Exception as error:
        raise TfoptError(
            f"Cannot copy the layer {spec.path!r}: `from_config` must make it from "
            f"what `get_config` gave. Received: {spec.cls.__name__} ({error})"
        ) from error


def _set_weights(layer: Any, spec: LayerSpec) -> None:
    try:
        _keras.set_weights(layer, spec.weights or [])
    except ValueError as error:
        raise TfoptError(
            f"Cannot copy the layer {spec.path!r}: made from its configuration and "
            f"called, it has other weights. Received: {spec.cls.__name__} ({error})"
        ) from error


def _first(thing: Any) -> Any:
    return tf.nest.flatten(thing)[0]
