"""Which channels are constant, and what they contribute to the layers that read them.

A channel is constant if it has one and the same value at every position and for every
input of the model. That is derived from the weights alone, layer by layer, and never
guessed from samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras.flatten import Call, LayerSpec, Value, make_layer
from tfopt._keras.precision import full_precision_config
from tfopt.surgery._structure import Structure

Weights = Mapping[LayerSpec, "list[np.ndarray] | None"]


class Constants:
    """The constant channels of every value of a graph, under given weights."""

    def __init__(self, structure: Structure, weights: Weights):
        self.structure = structure
        self._weights = weights
        self._values: dict[Value, np.ndarray] = {}
        for call in structure.graph.calls:
            if call in structure.transfers:
                result = np.array(structure.transfers[call](self), np.float64)
                result[~np.isfinite(result)] = np.nan
                self._values[call.output] = result

    def of(self, value: Value) -> np.ndarray:
        """Returns float64 [channels], NaN for channels that are not constant."""
        if value in self._values:
            return self._values[value]
        return np.full(len(self.structure.layouts[value].atoms), np.nan)

    def along(self, value: Value, axis: int) -> np.ndarray:
        """Returns the constants if they are along that axis, else only NaN."""
        layout = self.structure.layouts.get(value)
        if layout is None or layout.axis != axis:
            return np.full((value.shape or ())[axis] or 0, np.nan)
        return self.of(value)

    def weights(self, spec: LayerSpec) -> dict[str, np.ndarray]:
        """Returns a layer's weights by name."""
        return dict(zip(spec.weight_names, self._weights[spec] or [], strict=True))

    def elementwise(self, call: Call) -> np.ndarray:
        """Returns what a layer without weights makes of constants, by running it."""
        known: list[np.ndarray] = []

        def tensor(value: Value) -> tf.Tensor:
            layout = self.structure.layouts[value]
            constants = self.of(value)
            shape = [1] * len(value.shape or ())
            shape[layout.axis] = len(constants)
            known.append(~np.isnan(constants))
            return tf.reshape(tf.constant(np.nan_to_num(constants), tf.float32), shape)

        args, kwargs = call.map_arguments(tensor)
        config = full_precision_config(call.layer.config)
        layer = make_layer(dataclasses.replace(call.layer, config=config))
        outputs = layer(*args, **kwargs)
        result = np.array(outputs, np.float64).reshape(-1)
        return np.where(np.logical_and.reduce(known), result, np.nan)


@dataclasses.dataclass(frozen=True)
class Taps:
    """A layer that sums over channels, without regard to positions.

    Attributes:
        sums: Weights summed over positions, [inputs, outputs].
        used: Whether an output reads an input at any position, bool, same shape.
        bias: Float [outputs].
        uniform: Whether constant inputs make constant outputs: nothing is padded.
    """

    sums: np.ndarray
    used: np.ndarray
    bias: np.ndarray
    uniform: bool


def taps(spec: LayerSpec, weights: Mapping[str, np.ndarray]) -> Taps:
    """Reads a Dense or (transposed, separable, grouped) convolution layer."""
    if spec.kind.startswith("Separable"):
        sums, used = _separable(
            weights["depthwise_kernel"], weights["pointwise_kernel"]
        )
    else:
        kernel = weights["kernel"]
        if spec.kind.endswith("Transpose"):
            kernel = np.swapaxes(kernel, -1, -2)
        groups = spec.config.get("groups") or 1
        if groups > 1:
            kernel = _ungrouped(kernel, groups)
        sums, used = over_positions(kernel)
    bias = weights.get("bias")
    return Taps(
        sums, used, np.zeros(sums.shape[1]) if bias is None else bias, is_uniform(spec)
    )


def is_uniform(spec: LayerSpec) -> bool:
    """Returns whether a layer computes the same from constants at every position."""
    if spec.kind == "Dense":
        return True
    if spec.kind.endswith("Transpose"):
        return False
    return spec.config["padding"] == "valid" or set(spec.config["kernel_size"]) == {1}


def over_positions(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns sum and use of a kernel [positions..., a, b] as [a, b]."""
    positions = tuple(range(kernel.ndim - 2))
    if not positions:
        return kernel, kernel != 0
    return kernel.sum(positions, dtype=np.float64), (kernel != 0).any(positions)


def contracted(inputs: np.ndarray, layer: Taps) -> np.ndarray:
    """Returns the constant outputs of a layer, before its activation function.

    Args:
        inputs: float64 [inputs], NaN where not constant.
        layer: The layer.
    """
    nonzero = np.nan_to_num(inputs, nan=0.0) != 0
    unknown = np.isnan(inputs) if layer.uniform else np.isnan(inputs) | nonzero
    varying = layer.used[unknown].any(axis=0)
    result = layer.bias + inputs[nonzero] @ layer.sums[nonzero]
    return np.where(varying, np.nan, result)


def activated(keras: Any, activation: Any, inputs: np.ndarray) -> np.ndarray:
    """Returns an activation function of constants; NaN stays NaN."""
    function = keras.activations.get(activation)
    values = function(tf.constant(np.nan_to_num(inputs), tf.float32))
    return np.where(np.isnan(inputs), np.nan, np.array(values, np.float64))


def _separable(
    depthwise: np.ndarray, pointwise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    per_channel, reads = over_positions(depthwise)  # [inputs, multiplier]
    mixing = pointwise.reshape(*per_channel.shape, -1)
    sums = np.einsum("im,imo->io", per_channel, mixing)
    used = (reads[:, :, None] & (mixing != 0)).any(axis=1)
    return sums, used


def _ungrouped(kernel: np.ndarray, groups: int) -> np.ndarray:
    """Spreads [..., inputs / groups, outputs] over all inputs, with zeros between."""
    size, outputs = kernel.shape[-2:]
    full = np.zeros((*kernel.shape[:-2], size * groups, outputs), kernel.dtype)
    step = outputs // groups
    for group in range(groups):
        made = slice(group * step, (group + 1) * step)
        full[..., group * size : (group + 1) * size, made] = kernel[..., made]
    return full
