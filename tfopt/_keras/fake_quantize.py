"""Layers of quantization-aware training, written once for Keras 3 and tf_keras.

`classes(keras)` gives those of one Keras; they are registered as serializable, so
that `.keras` files with them load once `tfopt.QuantizeAware` was imported
(`tfopt._keras.load` sees to that itself).

* `ActivationRange` follows the range of a tensor and fake-quantizes it;
* `FixedActivationRange` fake-quantizes with a range that is known;
* `KeepFloat` keeps the TFLite converter from quantizing what comes before it;
* `weighted[kind]`, a subclass of the Keras layer of that name, computes with
  fake-quantized weights while its variables stay float.

Reference:
    Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, CVPR 2018, section 3.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from tfopt import _keras, affine

# Keras layer class -> attribute names of the weight it multiplies with (they differ
# between the two Keras) and the axes that have a scale each. A row here is all that a
# further layer with one such weight needs.
WEIGHTS: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "Conv2D": (("kernel",), (-1,)),
    "Dense": (("kernel",), (-1,)),
    "DepthwiseConv2D": (("kernel", "depthwise_kernel"), (-2, -1)),
}

_PACKAGE = "tfopt"
_thread = threading.local()


@dataclasses.dataclass(frozen=True)
class Classes:
    """The layer classes of one Keras; `weighted` is by the name of the base class."""

    ActivationRange: type
    FixedActivationRange: type
    KeepFloat: type
    weighted: Mapping[str, type]


@functools.cache
def classes(keras: Any) -> Classes:
    """Returns the layer classes for the module `keras` or `tf_keras`."""

    def make(name: str, *bases: type, **members: Any) -> type:
        made = type(name, bases, {"__module__": __name__, **members})
        return keras.saving.register_keras_serializable(_PACKAGE)(made)

    return Classes(
        ActivationRange=make("ActivationRange", _ActivationRange, keras.layers.Layer),
        FixedActivationRange=make(
            "FixedActivationRange", _FixedActivationRange, keras.layers.Layer
        ),
        KeepFloat=make("KeepFloat", _KeepFloat, keras.layers.Layer),
        weighted={
            kind: make(
                f"Quantized{kind}",
                _QuantizedWeights,
                base := getattr(keras.layers, kind),
                base_class=base,
                channel_axes=channel_axes,
                **{name: _FakeQuantizedWeight(name) for name in names},
            )
            for kind, (names, channel_axes) in WEIGHTS.items()
        },
    )


@contextlib.contextmanager
def calibrating() -> Iterator[None]:
    """Makes every `ActivationRange` widen its range and pass its input through.

    Holds for eager calls in this thread.
    """
    _thread.calibrating = True
    try:
        yield
    finally:
        _thread.calibrating = False


class _ActivationRange:
    """Fake-quantizes activations to int8, with a range that it follows in training.

    The range always contains zero. While it is empty (before the first batch) the
    input passes through unquantized; the first batch's range is taken at once.

    Args:
        range_tracking: How the range follows those of the batches. `"ema"`: as an
            exponential moving average. `"minmax"`: it only widens. `"peak"`: it
            widens at once and shrinks as a moving average.
        ema_decay: Weight of the past per step, for `"ema"` and `"peak"`.
        nonnegative: The input is known to be >= 0, so only its maximum is computed.
    """

    def __init__(
        self,
        *,
        range_tracking: str = "ema",
        ema_decay: float = 0.99,
        nonnegative: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.range_tracking = range_tracking
        self.ema_decay = ema_decay
        self.nonnegative = nonnegative

    def build(self, input_shape: Any) -> None:
        self.minimum = _add_state(self, "minimum")
        self.maximum = _add_state(self, "maximum")
        self.built = True

    def call(
        self,
        inputs: Any,
        training: Any = None,
        follow: bool = True,
        half_away: bool = False,
    ) -> Any:
        """Fake-quantizes a tensor.

        Args:
            inputs: float32 tensor of any shape.
            training: Whether the range follows the inputs first.
            follow: False where the range only holds for the inputs: they share it
                with the tensor that another call of this layer follows.
            half_away: Round halves away from code 0, as LiteRT averages; they are
                common there. Otherwise they go up.
        """
        low, high = _tensor(self.minimum), _tensor(self.maximum)
        if getattr(_thread, "calibrating", False):
            if follow:
                self._assign(self._follow(inputs, low, high, "minmax"))
            return inputs
        if training and follow and self.trainable:  # type: ignore[attr-defined]
            low, high = self._follow(inputs, low, high, self.range_tracking)
            self._assign((low, high))
            # An empty range now means that all inputs are zero; the op keeps them.
            return _fake_quantize(inputs, low, high)
        if half_away:
            inputs = _with_halves_away(inputs, low, high)
        return tf.where(high > low, _fake_quantize(inputs, low, high), inputs)

    def _follow(self, inputs: Any, low: Any, high: Any, how: str) -> tuple[Any, Any]:
        """Returns the new range, as scalars that no gradient flows through."""
        inputs = tf.stop_gradient(inputs)
        seen_high = tf.maximum(tf.reduce_max(inputs), 0.0)
        seen_low = (
            tf.zeros_like(seen_high)
            if self.nonnegative
            else tf.minimum(tf.reduce_min(inputs), 0.0)
        )
        if how == "minmax":
            return tf.minimum(low, seen_low), tf.maximum(high, seen_high)
        mean_low = self.ema_decay * low + (1 - self.ema_decay) * seen_low
        mean_high = self.ema_decay * high + (1 - self.ema_decay) * seen_high
        if how == "peak":
            return tf.minimum(mean_low, seen_low), tf.maximum(mean_high, seen_high)
        started = high > low
        return (
            tf.where(started, mean_low, seen_low),
            tf.where(started, mean_high, seen_high),
        )

    def _assign(self, bounds: tuple[Any, Any]) -> None:
        self.minimum.assign(bounds[0])
        self.maximum.assign(bounds[1])

    def bounds(self) -> tuple[float, float]:
        """Returns minimum and maximum; both are zero before the first batch."""
        return float(self.minimum.numpy()), float(self.maximum.numpy())

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),  # type: ignore[misc]
            "range_tracking": self.range_tracking,
            "ema_decay": self.ema_decay,
            "nonnegative": self.nonnegative,
        }


class _FixedActivationRange:
    """Fake-quantizes activations to int8 with a known range.

    Args:
        minimum: Smallest representable value, at most 0.
        maximum: Largest representable value, at least 0.
    """

    def __init__(self, *, minimum: float, maximum: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.minimum = minimum
        self.maximum = maximum

    def call(self, inputs: Any) -> Any:
        if getattr(_thread, "calibrating", False):
            return inputs
        return tf.quantization.fake_quant_with_min_max_args(
            inputs, min=self.minimum, max=self.maximum, num_bits=8
        )

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),  # type: ignore[misc]
            "minimum": self.minimum,
            "maximum": self.maximum,
        }


class _KeepFloat:
    """Returns its input, through arithmetic that only has float kernels.

    The TFLite converter quantizes every layer between two quantized tensors if it can.
    It cannot quantize ADD_N, and `(x + x) / 2` is exact.
    """

    def call(self, inputs: Any) -> Any:
        return tf.add_n([inputs, inputs]) * 0.5

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


class _QuantizedWeights:
    """A Keras layer that computes with fake-quantized weights.

    Args:
        weight_bits: 2 to 8; fewer than 8 are a coarser grid within int8.
        per_channel: Whether each output channel has its own scale.
        fixed_weight_range: Largest absolute weight, once it is final. The weight then
            is marked by a FakeQuant op, which makes the TFLite converter use one scale
            for the tensor; without the op it uses one per channel.
        **kwargs: The arguments of the base class.
    """

    base_class: type
    channel_axes: tuple[int, ...]

    def __init__(
        self,
        *args: Any,
        weight_bits: int = 8,
        per_channel: bool = True,
        fixed_weight_range: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.weight_bits = weight_bits
        self.per_channel = per_channel
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
            "fixed_weight_range": self.fixed_weight_range,
        }

    def fake_quantized(self, variable: Any) -> tf.Tensor:
        """Returns a weight as the layer computes with it."""
        weights = _tensor(variable)
        if self.fixed_weight_range is not None:
            return tf.quantization.fake_quant_with_min_max_args(
                weights,
                min=-self.fixed_weight_range,
                max=self.fixed_weight_range,
                num_bits=8,
                narrow_range=True,
            )
        axes = self.channel_axes if self.per_channel else ()
        return fake_quantize_weights(weights, self.weight_bits, axes)


class _FakeQuantizedWeight:
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
            variable = getattr(super(_QuantizedWeights, layer), self._name)
        running: Any = getattr(_thread, "running", None)
        if running is not layer:
            return variable
        return tf.cast(layer.fake_quantized(variable), layer.compute_dtype)

    def __set__(self, layer: Any, value: Any) -> None:
        vars(layer)[self._name] = value


def has_channel_scales(layer: Any) -> bool:
    """Returns whether a layer rounds its weights with a scale for each channel."""
    return isinstance(layer, _QuantizedWeights) and layer.per_channel


def fake_quantize_weights(
    weights: tf.Tensor, bits: int, channel_axes: tuple[int, ...]
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
        return tf.round(steps * coarse) * scale

    return round_trip(weights)


def _fake_quantize(inputs: Any, low: Any, high: Any) -> Any:
    return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high, num_bits=8)


def _with_halves_away(inputs: Any, low: Any, high: Any) -> Any:
    # A thousandth of a step moves nothing but halves, in averages of few values.
    step = (high - low) / 255
    code_zero = low + 128 * step
    return inputs + tf.where(inputs < code_zero, -step / 1000, step / 1000)


def _add_state(layer: Any, name: str) -> Any:
    return layer.add_weight(
        name=name,
        shape=(),
        dtype="float32",
        initializer="zeros",
        trainable=False,
        # Of the replicas' ranges under a distribution strategy.
        aggregation=(
            "mean" if _keras.is_keras3(layer) else tf.VariableAggregation.MEAN
        ),
    )


def _tensor(variable: Any) -> tf.Tensor:
    """Returns a variable's value as float32.

    Under mixed precision both Keras round variables when they are read in `call`;
    the variable inside (`_value` in Keras 3, `_variable` in tf_keras) is not rounded.
    """
    tensor = tf.convert_to_tensor(variable)
    if tensor.dtype != tf.float32:
        for inner in ("_value", "_variable"):
            if getattr(variable, inner, None) is not None:
                tensor = tf.convert_to_tensor(getattr(variable, inner))
    return tf.cast(tensor, tf.float32)
