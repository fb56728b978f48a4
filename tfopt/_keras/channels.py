"""Which layers' channels leave a model, and which normalizations scale them."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from tfopt._keras import flatten
from tfopt.types import TfoptError


@dataclasses.dataclass(frozen=True)
class Channels:
    """What becomes of the output channels of layers, by their path in the model.

    Attributes:
        leaving: Layers whose channels are channels of the model's outputs.
        normalized: For a layer, the BatchNormalizations that take its channels, each
            called once, with nothing but layers without weights between.
    """

    leaving: frozenset[str]
    normalized: dict[str, tuple[str, ...]]


def trace(model: Any) -> Channels | None:
    """Returns where channels go, or None for a model whose graph is not known.

    Args:
        model: Built model; the graph of Sequential and Functional ones is known.
    """
    try:
        graph = flatten.flatten(model)
    except TfoptError:
        return None
    leaving = {
        source.path
        for value in tf.nest.flatten(graph.outputs)
        for source in _sources(value)
    }
    normalized: dict[str, tuple[str, ...]] = {}
    for call in graph.calls:
        once = sum(other.layer is call.layer for other in graph.calls) == 1
        if call.layer.kind == "BatchNormalization" and once and _is_last_axis(call):
            # Behind a joint of several layers, zeros of one are not zeros of the sum.
            source = _only_source(call.inputs[0])
            if source is not None:
                found = normalized.get(source.path, ())
                normalized[source.path] = (*found, call.layer.path)
    return Channels(frozenset(leaving), normalized)


def _sources(value: flatten.Value) -> list[flatten.LayerSpec]:
    """Returns the nearest layers with kernels before a value."""
    if value.producer is None:
        return []
    if _has_kernel(value.producer.layer):
        return [value.producer.layer]
    return [spec for given in value.producer.inputs for spec in _sources(given)]


def _only_source(value: flatten.Value) -> flatten.LayerSpec | None:
    while value.producer is not None:
        call = value.producer
        if _has_kernel(call.layer):
            return call.layer
        widths = [given.shape[-1] for given in call.inputs if given.shape]
        if call.layer.weights or len(call.inputs) != 1 or not value.shape:
            return None
        if widths != [value.shape[-1]]:
            return None
        value = call.inputs[0]
    return None


def _has_kernel(spec: flatten.LayerSpec) -> bool:
    return any(array.ndim >= 2 for array in spec.weights or ())


def _is_last_axis(call: flatten.Call) -> bool:
    axis, shape = call.layer.config.get("axis", -1), call.inputs[0].shape
    axis = axis[0] if isinstance(axis, (list, tuple)) else axis
    return shape is not None and axis in (-1, len(shape) - 1)
