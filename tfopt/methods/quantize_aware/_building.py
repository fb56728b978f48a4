"""Replaces calls of a flat graph by sequences of other calls."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import tensorflow as tf

from tfopt._keras import operations
from tfopt._keras.flatten import Call, Graph, LayerSpec, Value

Shape = tuple[int | None, ...] | None
# Adds calls to a builder and returns what takes the place of the call's output, or
# None if the call stays.
Expansion = Callable[["Builder", Call], Value | None]


class Builder:
    """Makes calls that take the place of others.

    What is made for a layer is made once, so that a layer that is called twice stays
    one whose weights are shared.
    """

    def __init__(self, graph: Graph) -> None:
        self.keras = graph.keras
        self.unique_name = graph.name_maker()
        # Of the graph as it was: values stay when what makes them is replaced.
        self.consumers = graph.consumers()
        for value in tf.nest.flatten(graph.outputs):
            self.consumers.pop(value, None)
        self._layers: dict[tuple[LayerSpec, str], LayerSpec | None] = {}
        self._calls: list[Call] = []

    def replace(self, expansion: Expansion, call: Call) -> list[Call] | None:
        """Returns the calls that an expansion makes of a call, None if it stays."""
        outer, self._calls = self._calls, []
        value = expansion(self, call)
        made, self._calls = self._calls, outer
        if value is None:
            return None
        producer = cast(Call, value.producer)
        producer.outputs = [call.output]
        call.output.producer = producer
        return made

    def once(
        self, origin: LayerSpec, part: str, make: Callable[[], LayerSpec | None]
    ) -> LayerSpec | None:
        """Returns what `make` makes for a part of a layer; it is called only once."""
        key = (origin, part)
        if key not in self._layers:
            self._layers[key] = make()
        return self._layers[key]

    def layer(
        self,
        origin: LayerSpec,
        part: str,
        kind: str | type,
        config: Mapping[str, Any] | None = None,
        weights: Mapping[str, Any] | None = None,
    ) -> LayerSpec:
        """Returns the layer that takes over a part of another one.

        Args:
            origin: The layer that is replaced; `include` and `exclude` find the part
                by its path.
            part: Word for the part, which ends the layer's name.
            kind: Name of a class of Keras, or a class.
            config: Its arguments; without `dtype`, it has the dtype of `origin`.
            weights: Values by name, in the layer's order.
        """
        cls: Any = getattr(self.keras.layers, kind) if isinstance(kind, str) else kind

        def make() -> LayerSpec:
            whole = {
                "dtype": origin.config.get("dtype", "float32"),
                **(config or {}),
                "name": self.unique_name(f"{origin.name}_{part}"),
            }
            # With what the class has by default.
            full = cls.from_config(whole).get_config()
            values = dict(weights or {})
            return LayerSpec(
                cls, full, origin.path, list(values.values()), list(values)
            )

        return cast(LayerSpec, self.once(origin, part, make))

    def call(
        self,
        spec: LayerSpec,
        given: Value | Sequence[Value],
        shape: Shape,
        **kwargs: Any,
    ) -> Value:
        """Calls a layer; returns its output."""
        values = given if isinstance(given, Value) else list(given)
        first = values if isinstance(values, Value) else values[0]
        made = Call(spec, (values,), kwargs, [])
        made.outputs = [Value(shape, first.dtype, producer=made)]
        self._calls.append(made)
        return made.output

    def again(self, call: Call) -> Value:
        """Calls the layer of a call with the same arguments; returns its output."""
        old = call.output
        made = Call(call.layer, call.args, call.kwargs, [])
        made.outputs = [Value(old.shape, old.dtype, producer=made)]
        self._calls.append(made)
        return made.output

    def operation(
        self,
        origin: LayerSpec,
        part: str,
        function: str,
        args: Sequence[Any],
        shape: Shape,
        **kwargs: Any,
    ) -> Value:
        """Calls a function of TensorFlow, by its name; returns its output."""
        output = Value(shape, "float32")
        made = operations.call_of(
            self.keras,
            function,
            args,
            kwargs,
            outputs=[output],
            name=self.unique_name(f"{origin.name}_{part}"),
            path=origin.path,
        )
        self._calls.append(made)
        return output

    def reshape(
        self, origin: LayerSpec, part: str, value: Value, shape: Sequence[int]
    ) -> Value:
        """Reshapes a value; -1 in the new shape, with the batch, is free."""
        free = tuple(None if size == -1 else size for size in shape)
        return self.operation(origin, part, "reshape", (value, list(shape)), free)


def expand_all(
    graph: Graph, builder: Builder, row_of: Callable[[Call], Expansion | None]
) -> None:
    """Replaces calls, and what they are replaced by, until nothing is to replace.

    Args:
        graph: Its calls are changed in place.
        builder: What makes the calls.
        row_of: Finds the expansion for a call.
    """

    def expanded(call: Call) -> list[Call]:
        row = row_of(call)
        made = builder.replace(row, call) if row else None
        if made is None:
            return [call]
        # A layer that is called again was only stripped of something.
        return list(
            itertools.chain.from_iterable(
                [each] if each.layer is call.layer else expanded(each) for each in made
            )
        )

    graph.calls = list(itertools.chain.from_iterable(map(expanded, graph.calls)))
