"""A model as one flat graph of layer calls: plain data."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras.flatten._training import Training


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
        closed: Why a layer of layers is one call in the graph, `""` for others.
        keeps_range: Quantized, its output has the range of its input.
    """

    cls: Any
    config: dict[str, Any]
    path: str
    weights: list[np.ndarray] | None = None
    weight_names: list[str] = dataclasses.field(default_factory=list)
    closed: str = ""
    keeps_range: bool = False

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
        output_names: Keras's names of the outputs, by which losses are assigned;
            empty for Keras to choose.
        calls: Every layer call.
        training: What a class with its own training step but another constructor than
            `cls(inputs, outputs)` has beside its layers; else `None`.
    """

    keras: Any
    model_class: Any
    name: str
    input_specs: list[tuple[LayerSpec, Value]]
    inputs: Any
    outputs: Any
    output_names: list[str]
    calls: list[Call]
    training: Training | None = None

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


def make_names_unique(
    input_specs: list[tuple[LayerSpec, Value]], calls: list[Call]
) -> None:
    """Gives each layer a name that no other has, in place.

    Names repeat across nested models; those that do become "outer_inner_name".
    """
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
