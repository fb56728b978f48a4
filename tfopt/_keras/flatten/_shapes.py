"""Static shapes that the code of a model computes, such as `[tf.shape(x)[0], -1]`.

Keras infers the shape of each operation alone, and so loses what TensorFlow finds when
it sees several of them: a layer behind such a reshape could not be made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfopt._keras import operations
from tfopt._keras.flatten._graph import Call, Graph, Value

_RESHAPES = ("reshape", "compat.v1.reshape", "raw_ops.Reshape")
# Any two batch sizes: what differs between them depends on the batch.
_BATCHES = (2, 3)


def resolve_shapes(graph: Graph, functions: Mapping[Call, Callable[..., Any]]) -> None:
    """Finds unknown sizes, and makes computed shapes of reshapes constant, in place.

    Args:
        graph: Flat graph.
        functions: What each call runs: the layer of the model that it came from.
    """
    if not any(map(_is_vague, graph.calls)):
        return
    if any(_has_unknown_size(value) for _, value in graph.input_specs):
        return
    one, other = (_sizes(graph, functions, batch) for batch in _BATCHES)
    for call in graph.calls:
        for value in call.outputs:
            value.shape = _common(one[value], other[value])
    graph.calls = [_with_fixed_shape(graph.keras, call) for call in graph.calls]
    _drop_unused(graph)


def _is_vague(call: Call) -> bool:
    return any(map(_has_unknown_size, call.outputs))


def _has_unknown_size(value: Value) -> bool:
    return value.shape is None or None in value.shape[1:]


def _sizes(
    graph: Graph, functions: Mapping[Call, Callable[..., Any]], batch: int
) -> dict[Value, tf.TensorShape]:
    """Returns the shape of each value for a batch size, as TensorFlow infers it."""
    shapes: dict[Value, tf.TensorShape] = {}

    def trace(*inputs: tf.Tensor) -> None:
        tensors = {
            value: tensor
            for (_, value), tensor in zip(graph.input_specs, inputs, strict=True)
        }
        for call in graph.calls:
            args, kwargs = call.map_arguments(tensors.__getitem__)
            made = tf.nest.flatten(functions[call](*args, **kwargs))
            tensors.update(zip(call.outputs, made, strict=True))
        shapes.update({value: tensor.shape for value, tensor in tensors.items()})

    given = [
        tf.TensorSpec([batch if size is None else size for size in shape], value.dtype)
        for _, value in graph.input_specs
        for shape in [value.shape or ()]
    ]
    tf.function(trace, autograph=False).get_concrete_function(*given)
    return shapes


def _common(
    one: tf.TensorShape, other: tf.TensorShape
) -> tuple[int | None, ...] | None:
    if one.rank is None or one.rank != other.rank:
        return None
    pairs = zip(one.as_list(), other.as_list(), strict=True)
    return tuple(a if a == b else None for a, b in pairs)


def _with_fixed_shape(keras: Any, call: Call) -> Call:
    """Returns a call of reshape without tensors in its shape, or any other as it is."""
    if call.layer.config.get("function") not in _RESHAPES or len(call.inputs) < 2:
        return call
    shape = call.output.shape
    if shape is None or shape.count(None) > 1:
        return call
    return operations.call_of(
        keras,
        "reshape",
        (call.inputs[0], [-1 if size is None else size for size in shape]),
        outputs=call.outputs,
        name=call.layer.name,
        path=call.layer.path,
    )


def _drop_unused(graph: Graph) -> None:
    used = set(tf.nest.flatten(graph.outputs))
    kept = []
    for call in reversed(graph.calls):
        if used.intersection(call.outputs):
            used.update(call.inputs)
            kept.append(call)
    graph.calls = kept[::-1]
