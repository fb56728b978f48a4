"""From what covers a graph to the flat graph of Keras layers that it describes."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import operations
from tfopt._keras.flatten import Call, Graph, LayerSpec, Value
from tfopt.lifting import _naming, _sizes
from tfopt.lifting._covering import Item, Raw
from tfopt.lifting._match import Match, Step
from tfopt.lifting._network import Network
from tfopt.types import TfoptError


@dataclasses.dataclass
class Assembled:
    """A flat graph, and which tensor of the original one each value is.

    Attributes:
        graph: The graph of Keras layers.
        values: Name of the tensor -> value, in order of computation.
    """

    graph: Graph
    values: dict[str, Value]


def assemble(network: Network, items: list[Item], keras: Any, name: str) -> Assembled:
    """Makes the flat graph.

    Args:
        network: The original graph.
        items: What computes its outputs.
        keras: The module `keras` or `tf_keras`.
        name: Name of the model.

    Raises:
        TfoptError: An operation cannot be one of a Keras model.
    """
    return _Assembly(network, items, keras, name).run()


class _Assembly:
    def __init__(
        self, network: Network, items: list[Item], keras: Any, name: str
    ) -> None:
        self._network = network
        self._items = items
        self._keras = keras
        self._name = name
        self._values: dict[str, Value] = {}
        self._calls: list[Call] = []
        # Calls of one layer have the same constants.
        self._specs: list[tuple[Step, LayerSpec]] = []
        self._weights: dict[str, Value] = {}

    def run(self) -> Assembled:
        network = self._network
        input_specs = list(self._inputs())
        self._names = _naming.Names(
            self._items, taken=[spec.name for spec, _ in input_specs]
        )
        for item in self._items:
            if isinstance(item, Raw):
                self._add_operation(item)
            else:
                self._add_layers(item)
        outputs = {
            name: self._values[network.source(tensor).name]
            for name, tensor in network.outputs.items()
        }
        inputs = {
            name: self._values[tensor.name] for name, tensor in network.inputs.items()
        }
        graph = Graph(
            keras=self._keras,
            model_class=self._keras.Model,
            name=self._name,
            input_specs=input_specs,
            inputs=_alone(inputs),
            outputs=_alone(outputs),
            output_names=list(outputs),
            calls=self._calls,
        )
        return Assembled(graph, self._values)

    def _inputs(self) -> Iterator[tuple[LayerSpec, Value]]:
        cls = self._keras.layers.InputLayer
        known = inspect.signature(cls).parameters
        key = "batch_shape" if "batch_shape" in known else "batch_input_shape"
        for name, tensor in self._network.inputs.items():
            if tensor.shape.rank in (None, 0):
                raise TfoptError(
                    "The shape of an input isn't known, or has no axis for the "
                    "examples. Expected `input_shapes` with its shape, None for sizes "
                    f"that are free. Received: input {name!r} of shape {tensor.shape}"
                )
            value = _value(tensor)
            self._values[tensor.name] = value
            valid = re.sub(r"[^\w.-]", "_", name)
            config = {key: value.shape, "dtype": value.dtype, "name": valid}
            yield LayerSpec(cls, config, valid), value

    def _add_layers(self, match: Match) -> None:
        values = [self._values[tensor.name] for tensor in match.inputs]
        for position, step in enumerate(match.steps):
            is_last = position == len(match.steps) - 1
            arguments: Any = values if match.is_list and position == 0 else values[0]
            spec = self._spec(step, match)
            call = Call(spec, (arguments,), {}, [])
            # Only the last value is a tensor of the graph.
            made = _value(match.outputs[0]) if is_last else Value(None, values[0].dtype)
            made.producer = call
            call.outputs = [made]
            self._calls.append(call)
            values = [made]
        self._values[match.outputs[0].name] = values[0]

    def _spec(self, step: Step, match: Match) -> LayerSpec:
        cls = getattr(self._keras.layers, step.kind)
        dtype = match.outputs[0].dtype
        config = {
            "dtype": dtype.name if dtype.is_floating else "float32",
            **_renamed(cls, step.config),
        }
        for other, spec in self._specs if step.origin else ():
            if _is_same(step, other) and spec.cls is cls:
                return spec
        name = self._names.of(match, step)
        spec = LayerSpec(cls, {**config, "name": name}, name, list(step.weights))
        self._specs.append((step, spec))
        return spec

    def _add_operation(self, raw: Raw) -> None:
        operation = raw.operation
        outputs = [_value(tensor) for tensor in operation.outputs]
        name = self._names.of(raw)
        try:
            call = operations.call_of(
                self._keras,
                f"raw_ops.{operation.type}",
                kwargs=self._keywords(raw, name),
                outputs=outputs,
                name=name,
            )
        except TfoptError as error:
            raise TfoptError(
                "The graph has an operation that cannot be one of a Keras model. "
                f"Received: {operation.type} {operation.name!r} in "
                f"{self._network.where}: {error}"
            ) from error
        self._calls.append(call)
        for tensor, value in zip(operation.outputs, outputs, strict=True):
            self._values[tensor.name] = value
        if any(_sizes.sizes(tensor) is not None for tensor in raw.inputs):
            self._fix_shape(operation.outputs[0], name)

    def _fix_shape(self, tensor: tf.Tensor, name: str) -> None:
        """Tells Keras the shape of what is made by sizes, which it doesn't compute."""
        shape = tensor.shape.as_list()
        if not tensor.dtype.is_floating or len(shape) < 2 or None in shape[1:]:
            return
        unique = self._names.unique(f"{name}_shape")
        config = {"name": unique, "dtype": tensor.dtype.name}
        cls = self._keras.layers.Reshape
        spec = LayerSpec(cls, config | {"target_shape": tuple(shape[1:])}, unique, [])
        call = Call(spec, (self._values[tensor.name],), {}, [])
        call.outputs = [_value(tensor)]
        call.output.producer = call
        self._calls.append(call)
        self._values[tensor.name] = call.output

    def _keywords(self, raw: Raw, name: str) -> dict[str, Any]:
        """Returns what `tf.raw_ops` takes: operands and attributes."""
        operation = raw.operation
        definition = operation.op_def
        words = _python_words(operation.type, definition)
        operands = [
            self._operand(tensor, raw, name)
            for tensor in self._network.operands(operation)
        ]
        keywords: dict[str, Any] = {}
        for argument in definition.input_arg:
            count = None
            if argument.number_attr:
                count = operation.get_attr(argument.number_attr)
            elif argument.type_list_attr:
                count = len(operation.get_attr(argument.type_list_attr))
            if count is None:
                keywords[words[argument.name]] = operands.pop(0)
            else:
                keywords[words[argument.name]] = operands[:count]
                del operands[:count]
        for attribute in definition.attr:
            if attribute.name in words:
                value = operation.get_attr(attribute.name)
                keywords[words[attribute.name]] = _plain(value)
        return keywords

    def _operand(self, tensor: tf.Tensor, raw: Raw, name: str) -> Any:
        network = self._network
        value = network.value(tensor)
        if value is None:
            return self._values[tensor.name]
        is_weight = (
            network.variables is not None
            and value.dtype.kind == "f"
            and value.size > 1
            and network.is_trainable([tensor])
        )
        return self._weight(tensor, value, raw, name) if is_weight else value

    def _weight(
        self, tensor: tf.Tensor, value: np.ndarray, raw: Raw, name: str
    ) -> Value:
        """Makes a variable of a constant that was one."""
        if tensor.name not in self._weights:
            unique = self._names.unique(f"{name}_weight")
            config = {"name": unique, "dtype": value.dtype.name, "shape": value.shape}
            cls = operations.classes(self._keras).Weight
            # The input ties it to the model, and nothing else.
            tied = self._values[next(iter(self._network.inputs.values())).name]
            call = Call(LayerSpec(cls, config, unique, [value]), (tied,), {}, [])
            made = Value(tuple(value.shape), value.dtype.name, call)
            call.outputs = [made]
            self._calls.append(call)
            self._weights[tensor.name] = made
        return self._weights[tensor.name]


def _value(tensor: tf.Tensor) -> Value:
    rank = tensor.shape.rank
    shape = None if rank is None else tuple(tensor.shape.as_list())
    return Value(shape, tensor.dtype.name)


def _alone(values: dict[str, Value]) -> Any:
    """Returns the value itself if it is the only one."""
    return values if len(values) > 1 else next(iter(values.values()))


def _is_same(step: Step, other: Step) -> bool:
    return (
        (step.kind, step.config, step.origin)
        == (other.kind, other.config, other.origin)
    ) and all(map(np.array_equal, step.weights, other.weights))


def _renamed(cls: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Returns a configuration with the words of this Keras."""
    if "slope" not in config:
        return config
    known = inspect.signature(cls).parameters
    word = "negative_slope" if "negative_slope" in known else "alpha"
    return {word: config["slope"]}


def _python_words(kind: str, definition: Any) -> dict[str, str]:
    """Returns how `tf.raw_ops` calls an operation's operands and attributes.

    Some have other names in Python; attributes that it infers have none.
    """
    function = getattr(tf.raw_ops, kind, None)
    known = inspect.signature(function).parameters if function else {}
    operands = [argument.name for argument in definition.input_arg]
    attributes = [attribute.name for attribute in definition.attr]
    words = {name: name for name in [*operands, *attributes] if name in known}
    renamed = [name for name in operands if name not in known]
    renamed += [
        attribute.name
        for attribute in definition.attr
        if attribute.name not in known and "type" not in attribute.type
    ]
    unknown = [name for name in known if name not in words and name != "name"]
    return words | dict(zip(renamed, unknown, strict=False))


def _plain(value: Any) -> Any:
    """Returns an attribute as `tf.raw_ops` takes it."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if hasattr(value, "dim") and hasattr(value, "unknown_rank"):
        return tf.TensorShape(value)
    return value
