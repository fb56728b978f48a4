"""What Keras knows of its functional graphs, the same for both versions.

Private attributes of Keras that this file reads, on keras 3.12-3.15 and tf_keras
2.19-2.21 alike unless noted: `_nodes_by_depth`, `_keras_history`, `_inbound_nodes`,
`_functional` (Keras 3's Sequential), `_inputs_struct`, `_outputs_struct`,
`node.arguments` (Keras 3), `_nested_inputs`, `_nested_outputs`, `node.call_args`,
`node.call_kwargs` (tf_keras).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt._keras.flatten._graph import Call, Value


def network_of(layer: Any) -> Any:
    """Returns the functional graph of a model whose layers may be inlined, or None."""
    if not _keras.is_model(layer):
        return None
    cls: Any = type(layer)
    keras = _keras.module_of(layer)
    network = layer
    bases = [base for base in cls.__mro__ if base.__name__ == "Functional"]
    plain = bool(bases) and cls.call is bases[0].call
    if not plain and isinstance(layer, keras.Sequential):
        plain = cls.call is keras.Sequential.call
        if keras.__name__ == "keras":
            network = layer._functional
    return network if plain and getattr(network, "_nodes_by_depth", None) else None


@dataclasses.dataclass(frozen=True)
class Node:
    """One call that Keras recorded, with symbolic tensors among its arguments."""

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Any]


def nodes(network: Any) -> Iterator[Node]:
    """Yields each call of a functional graph, inputs first."""
    for depth in sorted(network._nodes_by_depth, reverse=True):
        for node in network._nodes_by_depth[depth]:
            if not node.is_input:
                yield _node(node)


def nodes_behind(tensors: Iterable[Any], known: Callable[[Any], bool]) -> list[Node]:
    """Returns the calls that make tensors from known ones, in a runnable order.

    Raises:
        ValueError: They come from a tensor that isn't known.
    """
    ordered: list[Node] = []
    done: set[int] = set()
    stack: list[tuple[Any, bool]] = [(tensor, False) for tensor in tensors][::-1]
    while stack:
        tensor, is_ready = stack.pop()
        if known(tensor):
            continue
        recorded = _producer(tensor)
        if is_ready:
            if id(recorded) not in done:
                done.add(id(recorded))
                ordered.append(_node(recorded))
        elif id(recorded) not in done:
            node = _node(recorded)
            needed = tf.nest.flatten((node.args, list(node.kwargs.values())))
            stack.append((tensor, True))
            stack += [(x, False) for x in reversed(needed) if is_symbolic(x)]
    return ordered


def _node(recorded: Any) -> Node:
    outputs = tf.nest.flatten(recorded.outputs)
    if hasattr(recorded, "arguments"):
        given = recorded.arguments
        return Node(recorded.operation, given.args, given.kwargs, outputs)
    return Node(
        recorded.layer, tuple(recorded.call_args), recorded.call_kwargs, outputs
    )


def _producer(tensor: Any) -> Any:
    layer, index = (*getattr(tensor, "_keras_history", (None, 0)), 0)[:2]
    recorded = layer._inbound_nodes[index] if layer is not None else None
    if recorded is None or recorded.is_input:
        raise ValueError(f"it uses a symbolic tensor from elsewhere, {tensor}")
    return recorded


def inputs_of(network: Any) -> Any:
    """Returns the structure of symbolic tensors that a network takes."""
    if hasattr(network, "_inputs_struct"):
        return network._inputs_struct
    return network._nested_inputs


def outputs_of(network: Any) -> Any:
    """Returns the structure of symbolic tensors that a network returns."""
    if hasattr(network, "_outputs_struct"):
        return network._outputs_struct
    return network._nested_outputs


def is_symbolic(thing: Any) -> bool:
    """Returns whether something is a KerasTensor."""
    return hasattr(thing, "_keras_history") or type(thing).__name__ == "KerasTensor"


def value_of(tensor: Any, producer: Call | None = None) -> Value:
    """Returns a new value of a graph for a symbolic tensor."""
    shape = tensor.shape
    if isinstance(shape, tf.TensorShape):
        shape = None if shape.rank is None else shape.as_list()
    return Value(
        shape=None if shape is None else tuple(shape),
        dtype=tf.as_dtype(tensor.dtype).name,
        producer=producer,
    )


def rank(value: Value) -> int | None:
    """Returns the rank of a value, if it is known."""
    return None if value.shape is None else len(value.shape)


def takes_training(layer: Any) -> bool:
    """Returns whether a layer's call depends on whether the model is in training."""
    return "training" in inspect.signature(layer.call).parameters
