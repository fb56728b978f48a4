"""The range that one batch of activations asks for."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

# Histograms are of at most so many values, spread evenly over the tensor.
_SAMPLE = 8192
_BINS = 2048
_CANDIDATES = 64
# A prime: its multiples, modulo the size, reach all channels equally often.
_STRIDE = 1_000_003


def widest(inputs: Any, nonnegative: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns smallest and largest value of a tensor, widened to hold zero."""
    high = tf.maximum(tf.reduce_max(inputs), 0.0)
    if nonnegative:
        return tf.zeros_like(high), high
    return tf.minimum(tf.reduce_min(inputs), 0.0), high


def percentiles(
    inputs: Any, nonnegative: bool, percentile: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the range that leaves `100 - percentile` % of the values out each side.

    To the accuracy of a histogram with 2048 bins of at most 8192 values. A side
    whose percentile is zero keeps its outermost value.

    Args:
        inputs: float32 tensor of any shape.
        nonnegative: Whether all values are known to be >= 0.
        percentile: More than 50, at most 100.
    """
    low, high = widest(inputs, nonnegative)
    counts, width, _ = _histogram(inputs, low, high)
    below = tf.cumsum(counts) / tf.reduce_sum(counts)
    edges = low + width * tf.range(1, _BINS + 1, dtype=tf.float32)
    share = percentile / 100
    inner_high = tf.reduce_min(tf.where(below >= share, edges, high))
    inner_low = tf.reduce_max(tf.where(below <= 1 - share, edges, low))
    return (
        tf.where(inner_low < -width, inner_low, low),
        tf.where(inner_high > width, tf.minimum(inner_high, high), high),
    )


def least_error(
    inputs: Any, nonnegative: bool, levels: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the range with the least mean squared quantization error.

    Among 64 thresholds at which both sides are cut. Rounding costs `scale^2 / 12` for
    each value within, and nothing for zeros, which are exact; clipping costs the
    square of what is cut off (Nagel et al., A White Paper on Neural Network
    Quantization, 2021, section 3.1, https://arxiv.org/abs/2106.08295; Banner et al.,
    2019, https://arxiv.org/abs/1810.05723, equation 5).

    Args:
        inputs: float32 tensor of any shape.
        nonnegative: Whether all values are known to be >= 0.
        levels: Number of steps of the grid, 255 for 8 bits.
    """
    low, high = widest(inputs, nonnegative)
    counts, width, zeros = _histogram(inputs, low, high)
    shares = tf.range(1, _CANDIDATES + 1, dtype=tf.float32) / _CANDIDATES
    limits = shares * tf.maximum(high, -low)
    lows, highs = tf.maximum(low, -limits), tf.minimum(high, limits)
    centers = low + width * (tf.range(_BINS, dtype=tf.float32) + 0.5)
    # Sums over the bins outside of a bound c of n (x - c)^2 = n x^2 - 2 c n x + c^2 n.
    moments = counts * tf.stack([tf.ones_like(centers), centers, centers**2])
    above = _at(tf.cumsum(moments, axis=1, reverse=True), highs, low, width)
    below = _at(tf.cumsum(moments, axis=1, exclusive=True), lows, low, width)
    clipping = sum(
        sums[2] - 2 * bounds * sums[1] + bounds**2 * sums[0]
        for sums, bounds in ((above, highs), (below, lows))
    )
    within = tf.reduce_sum(counts) - zeros - above[0] - below[0]
    best = tf.argmin(clipping + within * ((highs - lows) / levels) ** 2 / 12)
    return tf.gather(lows, best), tf.gather(highs, best)


def _at(sums: tf.Tensor, bounds: tf.Tensor, low: Any, width: Any) -> tf.Tensor:
    """Returns cumulative sums [3, bins] at the first bin whose center is not below."""
    first = tf.cast(tf.math.ceil((bounds - low) / width - 0.5), tf.int32)
    return tf.gather(sums, tf.clip_by_value(first, 0, _BINS - 1), axis=1)


def _histogram(
    inputs: Any, low: tf.Tensor, high: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns counts [bins], the width of a bin, and how many values are zero."""
    values = tf.reshape(inputs, [-1])
    size = tf.size(values, tf.int64)
    picked = tf.range(tf.minimum(size, _SAMPLE)) * _STRIDE % size
    values = tf.gather(values, picked)
    width = (high - low) / _BINS
    width = tf.where(width > 0, width, tf.ones_like(width))
    bins = tf.clip_by_value(tf.cast((values - low) / width, tf.int32), 0, _BINS - 1)
    # tf.math.bincount computes the size of its result, which XLA cannot have.
    counts = tf.raw_ops.DenseBincount(
        input=bins, size=_BINS, weights=tf.constant([], tf.float32)
    )
    zeros = tf.reduce_sum(tf.cast(values == 0, tf.float32))
    return tf.ensure_shape(counts, [_BINS]), width, zeros
