"""Recurrent layers, unrolled: the same kernels for each time step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfopt._keras.flatten import Call, LayerSpec, Value
from tfopt.methods.quantize_aware._building import Builder
from tfopt.methods.quantize_aware._recurrence import configs, objection

_MERGES = {"sum": "Add", "mul": "Multiply", "ave": "Average", "concat": "Concatenate"}


def recurrent(build: Builder, call: Call) -> Value | None:
    """Unrolls LSTM, GRU and SimpleRNN."""
    if objection(call):
        return None
    spec = call.layer
    cell = _Cell(build, spec, spec.config, spec.weights or [], "")
    return cell.unrolled(spec.kind, call.inputs[0])


def bidirectional(build: Builder, call: Call) -> Value | None:
    """Unrolls both directions."""
    spec, x = call.layer, call.inputs[0]
    merge = _MERGES.get(spec.config.get("merge_mode") or "")
    if objection(call) or merge is None:
        return None
    half = len(spec.weights or []) // 2
    halves = (spec.weights or [])[:half], (spec.weights or [])[half:]
    directions = ("forward", "backward")
    made = []
    for config, weights, part in zip(
        configs(spec.config), halves, directions, strict=True
    ):
        cell = _Cell(build, spec, config, weights, f"{part}_")
        # The backward sequence is turned round again.
        made.append(cell.unrolled(config["kind"], x, in_order=True))
    return build.call(build.layer(spec, "merge", merge), made, call.output.shape)


class _Cell:
    """The parts of one recurrent layer; each is made once and called at each step.

    Args:
        build: Makes the calls.
        origin: The layer that is replaced.
        config: Of the recurrent layer, which `origin` is or has inside.
        weights: kernel [inputs, gates * units], recurrent kernel [units, gates *
            units] and bias, if there is one.
        prefix: Of the names of the parts.
    """

    def __init__(
        self,
        build: Builder,
        origin: LayerSpec,
        config: Mapping[str, Any],
        weights: list[np.ndarray],
        prefix: str,
    ) -> None:
        self._build = build
        self._origin = origin
        self._config = config
        self._weights = weights
        self._prefix = prefix
        self._units = int(config["units"])

    def unrolled(self, kind: str, x: Value, *, in_order: bool = False) -> Value:
        """Returns the output for a sequence [batch, steps, values].

        Args:
            kind: `"LSTM"`, `"GRU"` or `"SimpleRNN"`.
            x: The sequence.
            in_order: Whether the output's steps are in the order of the input even
                where the layer runs backwards.
        """
        config, shape = self._config, x.shape
        assert shape is not None  # noqa: S101
        steps = range(int(shape[1] or 0))
        if config.get("dropout"):
            # One mask for all time steps, as the layer has.
            noise = {"rate": config["dropout"], "noise_shape": (None, 1, shape[2])}
            x = self._call("dropout", "Dropout", x, shape, noise)
        step = {"LSTM": self._lstm, "GRU": self._gru, "SimpleRNN": self._simple}[kind](
            x
        )
        states = [
            step(t) for t in (reversed(steps) if config["go_backwards"] else steps)
        ]
        if not config["return_sequences"]:
            return states[-1]
        if in_order and config["go_backwards"]:
            states.reverse()
        rows = [self._reshaped("row", state, (-1, 1, self._units)) for state in states]
        if len(rows) == 1:
            return rows[0]
        whole = (shape[0], len(rows), self._units)
        return self._call("sequence", "Concatenate", rows, whole, {"axis": 1})

    def _lstm(self, x: Value) -> Callable[[int], Value]:
        kernel, recurrent, *bias = self._weights
        inputs = self._inputs(x, kernel, bias)
        state: list[Value] = []

        def step(t: int) -> Value:
            gates = self._at(inputs, t)
            if state:
                gates = self._add(gates, self._recurrent(state[0], recurrent, []))
            i, f, o = (self._gate(self._part(gates, at)) for at in (0, 1, 3))
            cell = self._multiply(i, self._activation(self._part(gates, 2)))
            if state:
                cell = self._add(self._multiply(f, state[1]), cell)
            state[:] = [self._multiply(o, self._activation(cell)), cell]
            return state[0]

        return step

    def _gru(self, x: Value) -> Callable[[int], Value]:
        kernel, recurrent, *biases = self._weights
        given, own = biases[0] if biases else (None, None)
        inputs = self._inputs(x, kernel, [] if given is None else [given])
        # Zeros that have a range: those of a padded sequence.
        padded = (x.shape[0], 1 + x.shape[1], 3 * self._units)  # type: ignore[index,operator]
        zeros = self._operation("pad", inputs, ([[0, 0], [1, 0], [0, 0]],), padded)
        state = [self._part(self._at(zeros, 0), 0)]

        def step(t: int) -> Value:
            gates = self._at(inputs, t)
            inner = self._recurrent(state[0], recurrent, [] if own is None else [own])
            z, r = (
                self._gate(self._add(self._part(gates, at), self._part(inner, at)))
                for at in (0, 1)
            )
            reset = self._multiply(r, self._part(inner, 2))
            new = self._activation(self._add(self._part(gates, 2), reset))
            # z h + (1 - z) n
            change = self._binary("difference", "Subtract", state[0], new)
            state[0] = self._add(new, self._multiply(z, change))
            return state[0]

        return step

    def _simple(self, x: Value) -> Callable[[int], Value]:
        kernel, recurrent, *bias = self._weights
        inputs = self._inputs(x, kernel, bias)
        state: list[Value] = []

        def step(t: int) -> Value:
            value = self._at(inputs, t)
            if state:
                value = self._add(value, self._recurrent(state[0], recurrent, []))
            state[:] = [self._activation(value)]
            return state[0]

        return step

    def _inputs(self, x: Value, kernel: np.ndarray, bias: list[np.ndarray]) -> Value:
        """Returns what the inputs of all time steps add to the gates."""
        return self._dense("inputs", x, kernel, bias, "kernel")

    def _recurrent(
        self, state: Value, kernel: np.ndarray, bias: list[np.ndarray]
    ) -> Value:
        return self._dense("recurrent", state, kernel, bias, "recurrent")

    def _dense(
        self,
        part: str,
        x: Value,
        kernel: np.ndarray,
        bias: list[np.ndarray],
        options: str,
    ) -> Value:
        config = {
            "units": kernel.shape[-1],
            "use_bias": bool(bias),
            "trainable": self._config.get("trainable", True),
            "kernel_regularizer": self._config.get(f"{options}_regularizer"),
            "kernel_constraint": self._config.get(f"{options}_constraint"),
            "bias_regularizer": self._config.get("bias_regularizer"),
            "bias_constraint": self._config.get("bias_constraint"),
        }
        weights = dict(zip(("kernel", "bias"), (kernel, *bias), strict=False))
        shape = (*x.shape[:-1], kernel.shape[-1])  # type: ignore[index]
        return self._call(part, "Dense", x, shape, config, weights)

    def _gate(self, x: Value) -> Value:
        return self._activated("gate", x, "recurrent_activation")

    def _activation(self, x: Value) -> Value:
        return self._activated("activation", x, "activation")

    def _activated(self, part: str, x: Value, option: str) -> Value:
        config = {"activation": self._config[option]}
        return self._call(part, "Activation", x, x.shape, config)

    def _add(self, one: Value, other: Value) -> Value:
        return self._binary("sum", "Add", one, other)

    def _multiply(self, one: Value, other: Value) -> Value:
        return self._binary("product", "Multiply", one, other)

    def _binary(self, part: str, kind: str, one: Value, other: Value) -> Value:
        return self._call(part, kind, [one, other], one.shape)

    def _at(self, sequence: Value, t: int) -> Value:
        """Returns one time step of [batch, steps, values] as [batch, values]."""
        batch, _, values = sequence.shape  # type: ignore[misc]
        row = self._operation(
            "slice", sequence, ([0, t, 0], [-1, 1, values]), (batch, 1, values)
        )
        return self._reshaped("step", row, (-1, int(values or 0)))

    def _part(self, gates: Value, number: int) -> Value:
        """Returns one of the gates side by side in [batch, gates * units]."""
        begin, units = number * self._units, self._units
        shape = (gates.shape[0], units)  # type: ignore[index]
        return self._operation("slice", gates, ([0, begin], [-1, units]), shape)

    def _reshaped(self, part: str, x: Value, shape: tuple[int, ...]) -> Value:
        return self._build.reshape(self._origin, self._prefix + part, x, shape)

    def _operation(
        self, function: str, x: Value, args: tuple[Any, ...], shape: Any
    ) -> Value:
        return self._build.operation(
            self._origin, self._prefix + function, function, (x, *args), shape
        )

    def _call(
        self,
        part: str,
        kind: str,
        given: Value | list[Value],
        shape: Any,
        config: Mapping[str, Any] | None = None,
        weights: Mapping[str, Any] | None = None,
    ) -> Value:
        layer = self._build.layer(
            self._origin, self._prefix + part, kind, config, weights
        )
        return self._build.call(layer, given, shape)
