"""A Sequential or Functional model as one flat graph of layer calls, and back.

Nested models are inlined. The graph is plain data: rewriting it means replacing the
class and configuration of its layers or inserting calls, without any Keras version in
sight; `to_model` then makes a new Functional model with its own variables.

Private attributes of Keras that this file reads, on keras 3.12-3.15 and tf_keras
2.19-2.21 alike unless noted: `_nodes_by_depth`, `_keras_history`,
`_functional` (Keras 3's Sequential), `_inputs_struct`, `_outputs_struct`,
`node.arguments` (Keras 3), `_nested_inputs`, `_nested_outputs`, `node.call_args`,
`node.call_kwargs` (tf_keras).
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt.types import TfoptError


@dataclasses.dataclass(eq=False)
class Value:
    """One tensor of the graph: static shape (batch first), dtype name, and source.

    Values compare by identity. `producer` is `None` for an input of the model.
    """

    shape: tuple[int | None, ...] | None
    dtype: str
    producer: Call | None = None


@dataclasses.dataclass(eq=False)
class LayerSpec:
    """How to make one layer; several calls of one spec share its weights.

    Attributes:
        cls: Class of the layer, or of the operation that `keras.ops` recorded.
        config: Arguments for `cls.from_config`, with the name unique in the graph.
        path: Names from the outermost model inwards, `"block/conv"`.
        weights: Values in the layer's own order; `None` for an operation.
        weight_names: Last name component of each, `"kernel"`.
    """

    cls: Any
    config: dict[str, Any]
    path: str
    weights: list[np.ndarray] | None = None
    weight_names: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """Name in the flat graph."""
        return self.config["name"]

    @property
    def kind(self) -> str:
        """Class name if Keras itself defines the class, else `""`.

        User subclasses of Keras layers may compute anything, so they have no kind.
        """
        root = self.cls.__module__.split(".", 1)[0]
        return self.cls.__name__ if root in ("keras", "tf_keras") else ""

    def matches(self, pattern: str) -> bool:
        """Returns whether a glob fits the name, the path or a leading part of it."""
        parts = self.path.split("/")
        names = [self.name, *("/".join(parts[: n + 1]) for n in range(len(parts)))]
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a layer; `args` and `kwargs` hold `Value`s among plain data."""

    layer: LayerSpec
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Value]

    @property
    def inputs(self) -> list[Value]:
        """The values among the arguments, in order."""
        return [x for x in tf.nest.flatten(self._arguments()) if isinstance(x, Value)]

    @property
    def output(self) -> Value:
        """The single output."""
        (value,) = self.outputs
        return value

    def _arguments(self) -> tuple[Any, ...]:
        # A list, since tf.nest would sort a dictionary's keys.
        return (self.args, list(self.kwargs.values()))

    def map_arguments(
        self, function: Callable[[Value], Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns args and kwargs with `function` applied to each value."""
        args, kwargs = tf.nest.map_structure(
            lambda x: function(x) if isinstance(x, Value) else x, self._arguments()
        )
        return args, dict(zip(self.kwargs, kwargs, strict=True))


@dataclasses.dataclass(eq=False)
class Graph:
    """A flat model: `calls` are in an order in which they can be run.

    Attributes:
        keras: The module `keras` or `tf_keras`.
        model_class: Class of the model it came from.
        name: The model's name.
        input_specs: The model's InputLayers and the value each produces, in order.
        inputs: Structure of values as the model takes it.
        outputs: Structure of values as the model returns it.
        output_names: Keras's names of the outputs, by which losses are assigned.
        calls: Every layer call.
    """

    keras: Any
    model_class: Any
    name: str
    input_specs: list[tuple[LayerSpec, Value]]
    inputs: Any
    outputs: Any
    output_names: list[str]
    calls: list[Call]

    def consumers(self) -> dict[Value, list[Call]]:
        """Returns the calls that take each value, one entry per call."""
        found: dict[Value, list[Call]] = {}
        for call in self.calls:
            for value in dict.fromkeys(call.inputs):
                found.setdefault(value, []).append(call)
        return found

    def layers(self) -> list[LayerSpec]:
        """Returns each layer once, in order of its first call."""
        return list(dict.fromkeys(call.layer for call in self.calls))

    def name_maker(self) -> Callable[[str], str]:
        """Returns a function that makes names which no layer of the graph has.

        It returns the name that it is given, or `name_1`, ..., and never one twice.
        """
        taken = {spec.name for spec in self.layers()}
        taken |= {spec.name for spec, _ in self.input_specs}
        return lambda name: _unique(name, taken)


def flatten(model: Any) -> Graph:
    """Returns the flat graph of a built Sequential or Functional model.

    Args:
        model: Model of Keras 3 or tf_keras, possibly with nested models. It is not
            changed and shares nothing with the graph.

    Raises:
        TfoptError: The model is not built or is a subclassed one, a layer's
            configuration cannot be read, or Keras 3 runs on another backend than
            TensorFlow.
    """
    _keras.check_model(model)
    keras = _keras.module_of(model)
    network = _network(model)
    if network is None:
        raise TfoptError(
            f"The layers of the model {model.name!r} cannot be listed, because it is "
            "subclassed (it defines its own `call`) or has no fixed input. Expected a "
            "Sequential model with an Input or a Functional model: build it as "
            "`keras.Model(inputs, outputs)`. "
            f"Received: model of {type(model).__module__}.{type(model).__name__}"
        )
    if keras.__name__ == "keras" and keras.backend.backend() != "tensorflow":
        raise TfoptError(
            "Expected Keras 3 to run on TensorFlow (KERAS_BACKEND=tensorflow). "
            f"Received: the backend {keras.backend.backend()!r}"
        )
    walk = _Walk()
    values: dict[int, Value] = {}
    input_specs = []
    for tensor in network.inputs:
        values[id(tensor)] = _value_of(tensor)
        input_specs.append((_input_spec(keras, tensor), values[id(tensor)]))
    walk.run(network, values, prefix="", training=None)
    _make_names_unique(input_specs, walk.calls)
    return Graph(
        keras=keras,
        model_class=type(model),
        name=model.name,
        input_specs=input_specs,
        inputs=tf.nest.map_structure(lambda x: values[id(x)], _inputs_of(network)),
        outputs=tf.nest.map_structure(lambda x: values[id(x)], _outputs_of(network)),
        output_names=list(network.output_names),
        calls=walk.calls,
    )


def to_model(graph: Graph) -> Any:
    """Makes the Keras model that a graph describes, with its weights.

    Each layer is new. A subclass of Model with a functional constructor is kept (and
    with it its `train_step`); the names by which losses are assigned to outputs are
    kept too, though a reloaded model has the names of its last layers.

    Raises:
        TfoptError: A layer cannot be made from its configuration, or the model's
            class overrides training but cannot be called as `cls(inputs, outputs)`.
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
    model = _model_constructor(graph)(
        tf.nest.map_structure(tensors.__getitem__, graph.inputs),
        tf.nest.map_structure(tensors.__getitem__, graph.outputs),
        name=graph.name,
    )
    model.output_names = graph.output_names
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


class _Walk:
    """Collects the calls of a model and of the models inside it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._specs: dict[int, LayerSpec] = {}

    def run(
        self, network: Any, values: dict[int, Value], *, prefix: str, training: Any
    ) -> None:
        """Adds the calls of one network, whose inputs `values` already holds."""
        for layer, args, kwargs, outputs in _nodes(network):
            args, kwargs = tf.nest.map_structure(
                lambda x: values[id(x)] if _is_symbolic(x) else x, (args, kwargs)
            )
            inner = _network(layer)
            if inner is not None:
                results = self._inline(layer, inner, args, kwargs, prefix, training)
                values.update(zip(map(id, outputs), results, strict=True))
                continue
            if training is not None and _takes_training(layer):
                kwargs = {"training": training, **kwargs}
            call = Call(self._spec(layer, prefix), args, kwargs, [])
            for tensor in outputs:
                values[id(tensor)] = _value_of(tensor, call)
                call.outputs.append(values[id(tensor)])
            self.calls.append(call)

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
        if isinstance(given, dict) and not isinstance(_inputs_of(network), dict):
            given = [given[tensor.name] for tensor in network.inputs]
        given = tf.nest.flatten(given)
        matching = len(given) == len(network.inputs) and all(
            isinstance(value, Value) and _rank(value) == _rank(_value_of(tensor))
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
        return [values[id(x)] for x in tf.nest.flatten(_outputs_of(network))]

    def _spec(self, layer: Any, prefix: str) -> LayerSpec:
        if id(layer) not in self._specs:
            self._specs[id(layer)] = _layer_spec(layer, prefix + layer.name)
        return self._specs[id(layer)]


def _network(layer: Any) -> Any:
    """Returns the functional graph of a model whose layers may be inlined, or None."""
    if not _keras.is_model(layer):
        return None
    cls: Any = type(layer)
    keras = _keras.module_of(layer)
    network = layer
    if isinstance(layer, keras.Sequential):
        plain = cls.call is keras.Sequential.call
        if keras.__name__ == "keras":
            network = layer._functional
    else:
        bases = [base for base in cls.__mro__ if base.__name__ == "Functional"]
        plain = bool(bases) and cls.call is bases[0].call
    return network if plain and getattr(network, "_nodes_by_depth", None) else None


def _nodes(network: Any) -> Iterator[tuple[Any, tuple, dict, list]]:
    """Yields layer, args, kwargs and flat outputs of each call, inputs first."""
    for depth in sorted(network._nodes_by_depth, reverse=True):
        for node in network._nodes_by_depth[depth]:
            if node.is_input:
                continue
            outputs = tf.nest.flatten(node.outputs)
            if hasattr(node, "arguments"):
                arguments = node.arguments
                yield node.operation, arguments.args, arguments.kwargs, outputs
            else:
                yield node.layer, tuple(node.call_args), node.call_kwargs, outputs


def _inputs_of(network: Any) -> Any:
    if hasattr(network, "_inputs_struct"):
        return network._inputs_struct
    return network._nested_inputs


def _outputs_of(network: Any) -> Any:
    if hasattr(network, "_outputs_struct"):
        return network._outputs_struct
    return network._nested_outputs


def _is_symbolic(thing: Any) -> bool:
    return hasattr(thing, "_keras_history")


def _value_of(tensor: Any, producer: Call | None = None) -> Value:
    shape = tensor.shape
    if isinstance(shape, tf.TensorShape):
        shape = None if shape.rank is None else shape.as_list()
    return Value(
        shape=None if shape is None else tuple(shape),
        dtype=tf.as_dtype(tensor.dtype).name,
        producer=producer,
    )


def _rank(value: Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _takes_training(layer: Any) -> bool:
    return "training" in inspect.signature(layer.call).parameters


def _input_spec(keras: Any, tensor: Any) -> LayerSpec:
    layer = tensor._keras_history[0]
    if isinstance(layer, keras.layers.InputLayer):
        return LayerSpec(type(layer), layer.get_config(), layer.name)
    # A model that starts in the middle of another one's graph.
    name = f"{layer.name}_input"
    value = _value_of(tensor)
    config = {"batch_shape": value.shape, "dtype": value.dtype, "name": name}
    if keras.__name__ == "tf_keras":
        config["batch_input_shape"] = config.pop("batch_shape")
    return LayerSpec(keras.layers.InputLayer, config, name)


def _layer_spec(layer: Any, path: str) -> LayerSpec:
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
        spec.weight_names = [_last_name(variable) for variable in layer.weights]
    return spec


def _last_name(variable: Any) -> str:
    return variable.name.split(":", 1)[0].rsplit("/", 1)[-1]


def _set_weights(layer: Any, spec: LayerSpec) -> None:
    try:
        layer.set_weights(spec.weights)
    except ValueError as error:
        raise TfoptError(
            f"Cannot copy the layer {spec.path!r}: made from its configuration and "
            f"called, it has other weights. Received: {spec.cls.__name__} ({error})"
        ) from error


def _make_names_unique(
    input_specs: list[tuple[LayerSpec, Value]], calls: list[Call]
) -> None:
    # Names repeat across nested models; those that do become "outer_inner_name".
    specs = list(dict.fromkeys(call.layer for call in calls))
    taken = {spec.name for spec, _ in input_specs}
    count = Counter(spec.name for spec in specs)
    for spec in specs:
        if count[spec.name] > 1 or spec.name in taken:
            spec.config["name"] = spec.path.replace("/", "_")
    for spec in specs:
        spec.config["name"] = _unique(spec.name, taken)


def _unique(name: str, taken: set[str]) -> str:
    unique, number = name, 0
    while unique in taken:
        number += 1
        unique = f"{name}_{number}"
    taken.add(unique)
    return unique


def _model_constructor(graph: Graph) -> Any:
    Model = graph.keras.Model
    cls = graph.model_class
    if not issubclass(cls, Model) or cls in (Model, graph.keras.Sequential):
        return Model
    if cls.__module__.split(".", 1)[0] == graph.keras.__name__:
        return Model
    parameters = inspect.signature(cls).parameters.values()
    names = [parameter.name for parameter in parameters]
    variadic = {parameter.kind for parameter in parameters} >= {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }
    if names[:2] == ["inputs", "outputs"] or variadic:
        return cls
    overridden = [
        name
        for name in ("train_step", "test_step", "predict_step", "compute_loss")
        if getattr(cls, name, None) is not getattr(Model, name, None)
    ]
    if overridden:
        raise TfoptError(
            f"The model's class overrides {overridden} and its constructor takes no "
            "`inputs, outputs`, so a rewritten model would lose them. Let its "
            "constructor take `(inputs, outputs, **kwargs)`. "
            f"Received: {cls.__module__}.{cls.__name__}"
        )
    return Model


def _first(thing: Any) -> Any:
    return tf.nest.flatten(thing)[0]
