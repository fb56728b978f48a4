"""Collects the calls of a model, of the models inside it and of opened layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from tfopt._keras import operations
from tfopt._keras.flatten import _composites, _opening
from tfopt._keras.flatten._graph import Call, LayerSpec, Value
from tfopt._keras.flatten._networks import (
    Node,
    inputs_of,
    is_symbolic,
    network_of,
    nodes,
    nodes_behind,
    outputs_of,
    rank,
    takes_training,
    value_of,
)
from tfopt._keras.flatten._opening import CannotOpen
from tfopt.types import TfoptError


class Walk:
    """One walk over a model; `calls` grows in an order in which they can be run."""

    def __init__(self, keras: Any, *, open_layers: bool) -> None:
        self.calls: list[Call] = []
        # What each call runs.
        self.functions: dict[Call, Callable[..., Any]] = {}
        self._keras = keras
        self._open_layers = open_layers
        self._specs: dict[int, LayerSpec] = {}
        # Variables of opened layers, once a call provides them. The variables are
        # kept, so that no other gets the identity of one.
        self._variables: dict[int, tuple[Any, Value]] = {}

    def run(
        self, network: Any, values: dict[int, Value], *, prefix: str, training: Any
    ) -> None:
        """Adds the calls of one network, whose inputs `values` already holds."""
        self._add_all(nodes(network), values, prefix, training)

    def open(
        self, layer: Any, args: Any, kwargs: dict[str, Any], prefix: str, training: Any
    ) -> Any:
        """Adds the calls that a layer's `call` makes, and returns its outputs.

        Args:
            layer: Layer, or operation of Keras 3, that can be opened.
            args: Positional arguments, with `Value`s for tensors.
            kwargs: Keyword arguments, likewise.
            prefix: Path of the calls inside.
            training: What `training` is, `None` if it is left open.

        Raises:
            CannotOpen: Its code doesn't work on symbolic tensors.
        """
        given = [x for x in tf.nest.flatten((args, kwargs)) if isinstance(x, Value)]
        if not given:
            raise CannotOpen("it is called without tensors")
        made = {
            value: _opening.symbolic(self._keras, value.shape, value.dtype)
            for value in given
        }
        values = {id(tensor): value for value, tensor in made.items()}
        args, kwargs = tf.nest.map_structure(
            lambda x: made[x] if isinstance(x, Value) else x, (args, kwargs)
        )
        run = _composites.run_of(layer, args, kwargs, training)
        opened = _opening.opened(layer, run)
        outputs = tf.nest.flatten(opened.outputs)
        if not outputs or not all(map(is_symbolic, outputs)):
            raise CannotOpen("it returns something else than tensors")
        stand_ins = {id(x): variable for variable, x in opened.variables}
        try:
            found = nodes_behind(
                outputs, lambda x: id(x) in values or id(x) in stand_ins
            )
        except ValueError as error:
            raise CannotOpen(str(error)) from error
        constants = [
            constant
            for node in found
            for constant in _opening.check_plain((node.args, list(node.kwargs.items())))
        ]
        opened.check_constants(constants)
        for node in found:
            for tensor in tf.nest.flatten((node.args, node.kwargs)):
                self._provide(layer, tensor, stand_ins, values, given[0], prefix)
        for tensor in outputs:
            self._provide(layer, tensor, stand_ins, values, given[0], prefix)
        self._add_all(found, values, prefix, training)
        return tf.nest.map_structure(lambda x: values[id(x)], opened.outputs)

    def _add_all(
        self,
        found: Iterable[Node],
        values: dict[int, Value],
        prefix: str,
        training: Any,
    ) -> None:
        for node in found:
            args, kwargs = tf.nest.map_structure(
                lambda x: values[id(x)] if is_symbolic(x) else x,
                (node.args, node.kwargs),
            )
            results = self._inside(node, args, kwargs, prefix, training)
            if results is None:
                self._append(node, args, kwargs, values, prefix, training)
            else:
                values.update(zip(map(id, node.outputs), results, strict=True))

    def _inside(
        self,
        node: Node,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        prefix: str,
        training: Any,
    ) -> list[Value] | None:
        """Adds the calls inside of a layer; returns None for one to keep whole."""
        layer = node.layer
        network = network_of(layer)
        if network is not None:
            return self._inline(layer, network, args, kwargs, prefix, training)
        if not self._open_layers or _composites.why_closed(layer) is not None:
            return None
        before = len(self.calls), dict(self._specs), dict(self._variables)
        options = dict(kwargs)
        own = options.pop("training", None)
        inner = f"{prefix}{layer.name}/"
        try:
            _composites.check_no_masks(node)
            results = self.open(
                layer, args, options, inner, training if own is None else own
            )
        except CannotOpen as error:
            del self.calls[before[0] :]
            self._specs, self._variables = before[1:]
            self._spec(layer, prefix).closed = str(error)
            return None
        return tf.nest.flatten(results)

    def _append(
        self,
        node: Node,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        values: dict[int, Value],
        prefix: str,
        training: Any,
    ) -> None:
        if training is not None and takes_training(node.layer):
            kwargs = {"training": training, **kwargs}
        outputs = [value_of(tensor) for tensor in node.outputs]
        values.update(zip(map(id, node.outputs), outputs, strict=True))
        layer = node.layer
        call = operations.call_of_layer(
            self._keras, layer, args, kwargs, outputs, prefix + layer.name
        )
        if call is None:
            call = Call(self._spec(layer, prefix), args, kwargs, outputs)
            for value in outputs:
                value.producer = call
        else:
            layer = call.layer.cls.from_config(call.layer.config)
        self.calls.append(call)
        self.functions[call] = _inference(layer)

    def _provide(
        self,
        layer: Any,
        tensor: Any,
        stand_ins: dict[int, Any],
        values: dict[int, Value],
        anchor: Value,
        prefix: str,
    ) -> None:
        """Adds the call that returns a variable, where a tensor stands for one."""
        if not is_symbolic(tensor) or id(tensor) not in stand_ins:
            return
        variable = stand_ins[id(tensor)]
        if id(variable) not in self._variables:
            call = operations.call_of_variable(layer, variable, anchor, prefix)
            self.calls.append(call)
            dtype = call.output.dtype
            self.functions[call] = lambda _: tf.cast(
                tf.convert_to_tensor(variable), dtype
            )
            self._variables[id(variable)] = (variable, call.output)
        values[id(tensor)] = self._variables[id(variable)][1]

    def _inline(
        self,
        model: Any,
        network: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        prefix: str,
        training: Any,
    ) -> list[Value]:
        # The transfer-learning idiom `base(x, training=False)` holds for all layers.
        kwargs = dict(kwargs)
        inner_training = kwargs.pop("training", None)
        given = args[0] if args else kwargs.pop("inputs", None)
        if isinstance(given, dict) and not isinstance(inputs_of(network), dict):
            given = [given[tensor.name] for tensor in network.inputs]
        given = tf.nest.flatten(given)
        matching = len(given) == len(network.inputs) and all(
            isinstance(value, Value) and rank(value) == rank(value_of(tensor))
            for value, tensor in zip(given, network.inputs, strict=False)
        )
        others = [*args[1:], *tf.nest.flatten(list(kwargs.values()))]
        if not matching or any(other is not None for other in others):
            raise TfoptError(
                f"Cannot inline the nested model {model.name!r}: it is called with "
                "other arguments than tensors of the ranks that it declares (and "
                f"`training`). Received: {len(given)} inputs, "
                f"keywords {sorted(kwargs)}"
            )
        values = {
            id(tensor): value
            for tensor, value in zip(network.inputs, given, strict=True)
        }
        self.run(
            network,
            values,
            prefix=f"{prefix}{model.name}/",
            training=training if inner_training is None else inner_training,
        )
        return [values[id(x)] for x in tf.nest.flatten(outputs_of(network))]

    def _spec(self, layer: Any, prefix: str) -> LayerSpec:
        if id(layer) not in self._specs:
            self._specs[id(layer)] = layer_spec(layer, prefix + layer.name)
        return self._specs[id(layer)]


def _inference(layer: Any) -> Callable[..., Any]:
    if not takes_training(layer):
        return layer
    return lambda *args, **kwargs: layer(*args, **{**kwargs, "training": False})


def input_spec(keras: Any, tensor: Any) -> LayerSpec:
    """Returns the InputLayer of a network's input."""
    layer = tensor._keras_history[0]
    if isinstance(layer, keras.layers.InputLayer):
        return LayerSpec(type(layer), layer.get_config(), layer.name)
    # A model that starts in the middle of another one's graph.
    name = f"{layer.name}_input"
    value = value_of(tensor)
    config = {"batch_shape": value.shape, "dtype": value.dtype, "name": name}
    if keras.__name__ == "tf_keras":
        config["batch_input_shape"] = config.pop("batch_shape")
    return LayerSpec(keras.layers.InputLayer, config, name)


def layer_spec(layer: Any, path: str) -> LayerSpec:
    """Returns how to make a layer.

    Raises:
        TfoptError: Its configuration cannot be read.
    """
    try:
        config = dict(layer.get_config())
    except Exception as error:
        raise TfoptError(
            f"Cannot copy the layer {path!r}: a custom layer must implement "
            f"`get_config`. Received: {type(layer).__name__} ({error})"
        ) from error
    spec = LayerSpec(type(layer), {**config, "name": layer.name}, path)
    if hasattr(layer, "get_weights"):
        spec.weights = layer.get_weights()
        spec.weight_names = [last_name(variable) for variable in layer.weights]
    return spec


def last_name(variable: Any) -> str:
    """Returns the last component of a variable's name."""
    return variable.name.split(":", 1)[0].rsplit("/", 1)[-1]
