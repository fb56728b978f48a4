"""Layers that compute with fake-quantized weights."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfopt import affine
from tfopt._keras import kernels
from tfopt._keras.fake_quantize._values import value_of

# Keras layer class -> attribute names of the weight it multiplies with (they differ
# between the two Keras) and the axes that have a scale each. A row here is all that a
# further layer with one such weight needs. EinsumDense's axes follow its equation.
WEIGHTS: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "Conv1D": (("kernel",), (-1,)),
    "Conv1DTranspose": (("kernel",), (-2,)),
    "Conv2D": (("kernel",), (-1,)),
    "Conv2DTranspose": (("kernel",), (-2,)),
    "Conv3D": (("kernel",), (-1,)),
    "Dense": (("kernel",), (-1,)),
    "DepthwiseConv1D": (("kernel", "depthwise_kernel"), (-2, -1)),
    "DepthwiseConv2D": (("kernel", "depthwise_kernel"), (-2, -1)),
    "EinsumDense": (("kernel",), ()),
}


def channel_axes(kind: str, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the axes of a layer's weight that have a scale each.

    Args:
        kind: A key of `WEIGHTS`.
        config: Configuration of the layer.
    """
    if kind == "EinsumDense":
        return kernels.einsum_axes(config["equation"])[2]
    return WEIGHTS[kind][1]


_thread = threading.local()


class QuantizedWeights:
    """A Keras layer that computes with fake-quantized weights.

    Args:
        weight_bits: 2 to 8; fewer than 8 are a coarser grid within int8.
        per_channel: Whether each output channel has its own scale.
        packed: Whether `weight_bits` are stored as such, rather than within int8.
        fixed_weight_range: Largest absolute weight, once it is final. The weight then
            is marked by a FakeQuant op, which makes the TFLite converter use one scale
            for the tensor; without the op it uses one per channel.
        **kwargs: The arguments of the base class.
    """

    base_class: type

    def __init__(
        self,
        *args: Any,
        weight_bits: int = 8,
        per_channel: bool = True,
        packed: bool = False,
        fixed_weight_range: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.weight_bits = weight_bits
        self.per_channel = per_channel
        self.packed = packed
        self.fixed_weight_range = fixed_weight_range

    def call(self, inputs: Any) -> Any:
        outer = getattr(_thread, "running", None)
        _thread.running = self
        try:
            return super().call(inputs)  # type: ignore[misc]
        finally:
            _thread.running = outer

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),  # type: ignore[misc]
            "weight_bits": self.weight_bits,
            "per_channel": self.per_channel,
            "packed": self.packed,
            "fixed_weight_range": self.fixed_weight_range,
        }

    def fake_quantized(self, variable: Any) -> tf.Tensor:
        """Returns a weight as the layer computes with it."""
        weights = value_of(variable)
        if self.fixed_weight_range is not None:
            return tf.quantization.fake_quant_with_min_max_args(
                weights,
                min=-self.fixed_weight_range,
                max=self.fixed_weight_range,
                num_bits=8,
                narrow_range=True,
            )
        axes = self._channel_axes() if self.per_channel else ()
        return fake_quantize_weights(weights, self.weight_bits, axes, self.packed)

    def _channel_axes(self) -> tuple[int, ...]:
        equation = getattr(self, "equation", "")
        return channel_axes(self.base_class.__name__, {"equation": equation})


class FakeQuantizedWeight:
    """Attribute that is a layer's float variable, or its fake-quantized value in call.

    Optimizers, saving and pruning thus see the variable, and only the computation
    sees the value.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, layer: Any, owner: Any) -> Any:
        if layer is None:
            return self
        if self._name in vars(layer):
            variable = vars(layer)[self._name]
        else:
            # Keras 3's Dense and Conv make the public name a property of their own.
            variable = getattr(super(QuantizedWeights, layer), self._name)
        running: Any = getattr(_thread, "running", None)
        if running is not layer:
            return variable
        return tf.cast(layer.fake_quantized(variable), layer.compute_dtype)

    def __set__(self, layer: Any, value: Any) -> None:
        vars(layer)[self._name] = value


def has_channel_scales(layer: Any) -> bool:
    """Returns whether a layer rounds its weights with a scale for each channel."""
    return isinstance(layer, QuantizedWeights) and layer.per_channel


def fake_quantize_weights(
    weights: tf.Tensor, bits: int, channel_axes: tuple[int, ...], packed: bool = False
) -> tf.Tensor:
    """`affine.fake_quantize_weights` in TensorFlow, with a straight-through gradient.

    Every weight is within its range, so the gradient passes unchanged everywhere
    (Bengio et al., 2013, https://arxiv.org/abs/1308.3432).
    """
    kept = {axis % weights.shape.rank for axis in channel_axes}
    reduced = [axis for axis in range(weights.shape.rank) if axis not in kept]
    coarse = affine.INT8_MAX / affine.symmetric_steps(bits)

    @tf.grad_pass_through
    def round_trip(values: tf.Tensor) -> tf.Tensor:
        peaks = tf.reduce_max(tf.abs(values), axis=reduced, keepdims=True)
        scale = peaks / affine.INT8_MAX
        scale = tf.where(scale > 0, scale, tf.ones_like(scale))
        steps = tf.round(values / (scale * coarse))
        codes = steps * coarse
        return (codes if packed else tf.round(codes)) * scale

    return round_trip(weights)
