"""Layers that fake-quantize activations, and those that serve them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt._keras.fake_quantize import _statistics
from tfopt._keras.fake_quantize._values import value_of

_thread = threading.local()

# A file with int16 activations gets its ranges from data, and cuts off nothing of it;
# one of the 16 bits keeps the model in training from doing so.
INT16_HEADROOM = 2.0


@contextlib.contextmanager
def calibrating() -> Iterator[None]:
    """Makes every `ActivationRange` take the range of its inputs and pass them on.

    Ranges of several batches join: their mean for `"percentile"` and `"mse"`, and
    else the one that holds them all. Holds for eager calls in this thread.
    """
    _thread.batches = {}  # number of batches by layer
    try:
        yield
    finally:
        del _thread.batches


def _is_calibrating() -> bool:
    return hasattr(_thread, "batches")


class ActivationRange:
    """Fake-quantizes activations, with a range that it follows in training.

    The range always contains zero. While it is empty (before the first batch) the
    input passes through unquantized; the first batch's range is taken at once. With
    `trainable=False` it stays as it is.

    Args:
        range_tracking: How the range follows those of the batches. `"ema"`: as an
            exponential moving average. `"minmax"`: it only widens. `"peak"`: it
            widens at once and shrinks as a moving average. `"percentile"`, `"mse"`:
            as a moving average of ranges that leave out some values, or that have the
            least quantization error.
        ema_decay: Weight of the past per step, for all but `"minmax"`.
        percentile: Percentage of the values that are not above the range, and of
            those not below it, for `"percentile"`.
        nonnegative: The input is known to be >= 0, so only its maximum is computed.
        bits: 8: asymmetric int8 codes. 16: symmetric int16 codes.
        observing: Whether the range is followed but nothing is rounded yet.
        room: How far below the smallest value the range begins.
    """

    def __init__(
        self,
        *,
        range_tracking: str = "ema",
        ema_decay: float = 0.99,
        percentile: float = 99.9,
        nonnegative: bool = False,
        bits: int = 8,
        observing: bool = False,
        room: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.range_tracking = range_tracking
        self.ema_decay = ema_decay
        self.percentile = percentile
        self.nonnegative = nonnegative
        self.bits = bits
        self.observing = observing
        self.room = room

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
        if _is_calibrating():
            if follow:
                self._calibrate(inputs)
            return inputs
        low, high = value_of(self.minimum), value_of(self.maximum)
        if training and follow and self.trainable:  # type: ignore[attr-defined]
            low, high = self._follow(inputs, low, high)
            self._assign((low, high))
            # An empty range now means that all inputs are zero; the op keeps them.
            return inputs if self.observing else self._round(inputs, low, high)
        if self.observing:
            return inputs
        if half_away and self.bits == 8:
            inputs = _with_halves_away(inputs, low, high)
        return tf.where(high > low, self._round(inputs, low, high), inputs)

    def _round(self, inputs: Any, low: Any, high: Any) -> Any:
        if self.bits == 8:
            return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high)
        peak = INT16_HEADROOM * tf.maximum(high, -low)
        return tf.quantization.fake_quant_with_min_max_vars(
            inputs, -peak, peak, num_bits=self.bits, narrow_range=True
        )

    def _seen(self, inputs: Any) -> tuple[Any, Any]:
        """Returns the range of one batch, as scalars that no gradient flows through."""
        low, high = self._seen_alone(tf.stop_gradient(inputs))
        return low - self.room, high

    def _seen_alone(self, inputs: Any) -> tuple[Any, Any]:
        if self.range_tracking == "percentile":
            return _statistics.percentiles(inputs, self.nonnegative, self.percentile)
        if self.range_tracking == "mse":
            levels = 2**self.bits - 1
            return _statistics.least_error(inputs, self.nonnegative, levels)
        return _statistics.widest(inputs, self.nonnegative)

    def _follow(self, inputs: Any, low: Any, high: Any) -> tuple[Any, Any]:
        seen_low, seen_high = self._seen(inputs)
        if self.range_tracking == "minmax":
            return tf.minimum(low, seen_low), tf.maximum(high, seen_high)
        mean_low = self.ema_decay * low + (1 - self.ema_decay) * seen_low
        mean_high = self.ema_decay * high + (1 - self.ema_decay) * seen_high
        if self.range_tracking == "peak":
            return tf.minimum(mean_low, seen_low), tf.maximum(mean_high, seen_high)
        started = high > low
        return (
            tf.where(started, mean_low, seen_low),
            tf.where(started, mean_high, seen_high),
        )

    def _calibrate(self, inputs: Any) -> None:
        low, high = value_of(self.minimum), value_of(self.maximum)
        seen_low, seen_high = self._seen(inputs)
        if self.range_tracking in ("percentile", "mse"):
            count = _thread.batches[id(self)] = _thread.batches.get(id(self), 0) + 1
            low, high = (
                low + (seen_low - low) / count,
                high + (seen_high - high) / count,
            )
        else:
            low, high = tf.minimum(low, seen_low), tf.maximum(high, seen_high)
        self._assign((low, high))

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
            "percentile": self.percentile,
            "nonnegative": self.nonnegative,
            "bits": self.bits,
            "observing": self.observing,
            "room": self.room,
        }


class FixedActivationRange:
    """Fake-quantizes activations with a known range.

    Args:
        minimum: Smallest representable value, at most 0.
        maximum: Largest representable value, at least 0.
        bits: 8: asymmetric int8 codes. 16: symmetric int16 codes, up to the larger
            of the two absolute values.
    """

    def __init__(
        self, *, minimum: float, maximum: float, bits: int = 8, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.minimum = minimum
        self.maximum = maximum
        self.bits = bits

    def call(self, inputs: Any) -> Any:
        if _is_calibrating():
            return inputs
        low, high = self.minimum, self.maximum
        if self.bits != 8:
            high = max(high, -low)
            low = -high
        return tf.quantization.fake_quant_with_min_max_args(
            inputs, min=low, max=high, num_bits=self.bits, narrow_range=self.bits != 8
        )

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),  # type: ignore[misc]
            "minimum": self.minimum,
            "maximum": self.maximum,
            "bits": self.bits,
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


class Scheme:
    """Returns its input, and tells `tfopt.convert` what the model was trained for.

    The name of the operation tells: a plain model with rounded weights has no fake
    quantization that would.

    Args:
        scheme: `"int8_weights"` or `"int4"`.
    """

    def __init__(self, *, scheme: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.scheme = scheme

    def call(self, inputs: Any) -> Any:
        return tf.identity(inputs, name=f"tfopt_scheme_{self.scheme}")

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),  # type: ignore[misc]
            "scheme": self.scheme,
        }


class BatchNormalization:
    """BatchNormalization whose moving statistics can be frozen in training.

    Its `gamma` and `beta` go on learning, and it normalizes with the moving
    statistics, as inference does (Krishnamoorthi, 2018, section 3.2.2,
    https://arxiv.org/abs/1806.08342).

    Args:
        statistics_frozen: Whether they are.
        **kwargs: The arguments of the base class.
    """

    def __init__(self, *, statistics_frozen: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.statistics_frozen = statistics_frozen

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        if self.statistics_frozen:
            training = False
        return super().call(inputs, training=training, mask=mask)  # type: ignore[misc]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),  # type: ignore[misc]
            "statistics_frozen": self.statistics_frozen,
        }


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
