"""Layers that fake-quantize activations."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt._keras.fake_quantize._values import value_of

_thread = threading.local()


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


class ActivationRange:
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
        low, high = value_of(self.minimum), value_of(self.maximum)
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


class FixedActivationRange:
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


class KeepFloat:
    """Returns its input, through arithmetic that only has float kernels.

    The TFLite converter quantizes every layer between two quantized tensors if it can.
    It cannot quantize ADD_N, and `(x + x) / 2` is exact.
    """

    def call(self, inputs: Any) -> Any:
        return tf.add_n([inputs, inputs]) * 0.5

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


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
