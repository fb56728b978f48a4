"""Affine (uniform) quantization: `real = scale * (code - zero_point)`.

The one place with this arithmetic. Two forms, those of the TFLite 8-bit quantization
specification (https://ai.google.dev/edge/litert/models/quantization_spec):

* weights are *symmetric* (`zero_point = 0`) and *narrow range* (-127..127), with one
  scale per tensor or per channel, so a zero weight is exactly code 0;
* activations are *asymmetric* int8 (-128..127), with a range that contains zero,
  nudged so that zero is exactly a code.

Rounding is to the nearest, halves to even. All results are float32 or int8; ranges
and scales are computed in float64 and rounded once.

Reference:
    Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, CVPR 2018, equations 1 and 12-13.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

INT8_MIN = -128
INT8_MAX = 127
INT16_MAX = 32767


def symmetric_scale(
    weights: npt.ArrayLike, *, channel_axes: tuple[int, ...] = (), bits: int = 8
) -> np.ndarray:
    """Returns the scale(s) of a weight tensor: `max(|weights|) / 127` for int8.

    Args:
        weights: Float array of any shape.
        channel_axes: Axes that keep a scale each; `()` gives one for the tensor.
            `(-1,)` for Dense and Conv2D kernels [..., out], `(-2, -1)` for
            DepthwiseConv2D kernels [height, width, in, multiplier].
        bits: 2 to 8: the largest code is `symmetric_steps(bits)`.

    Returns:
        float32 array that broadcasts to `weights` (reduced axes have size 1). A
        channel of zeros has scale 1.

    Raises:
        ValueError: A weight is not finite, an axis doesn't exist, or `bits` is out of
            range.

    Example:
        >>> symmetric_scale([[1.27, -0.1], [0.5, 2.54]], channel_axes=(-1,))
        array([[0.01, 0.02]], dtype=float32)
    """
    weights = _finite(weights, "weights")
    peaks = np.max(
        np.abs(weights),
        axis=_reduced_axes(weights.ndim, channel_axes),
        keepdims=True,
        initial=0.0,
    )
    scale = (peaks.astype(np.float64) / symmetric_steps(bits)).astype(np.float32)
    # Also where the peak is so small that its scale underflows to zero.
    return np.where(scale > 0, scale, np.float32(1))


def symmetric_codes(bits: int) -> np.ndarray:
    """Returns the int8 codes that a symmetric weight of this many bits may take.

    There are `2**bits - 1`, evenly spaced over -127..127 up to rounding, and they
    contain 0. Low-bit weights are thus a subset of the int8 grid: stored as int8
    and run by int8 kernels, smaller only after compression.

    Args:
        bits: 2 to 8.

    Returns:
        int8 array [2**bits - 1], increasing.

    Raises:
        ValueError: `bits` is out of range.

    Example:
        >>> symmetric_codes(3)
        array([-127,  -85,  -42,    0,   42,   85,  127], dtype=int8)
    """
    steps = symmetric_steps(bits)
    return np.rint(np.arange(-steps, steps + 1) * (INT8_MAX / steps)).astype(np.int8)


def symmetric_steps(bits: int) -> int:
    """Returns the number of positive levels of a symmetric grid, `2**(bits-1) - 1`."""
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ValueError(f"Expected an integer from 2 to 8. Received: bits={bits!r}")
    return 2 ** (bits - 1) - 1


def quantize_weights(
    weights: npt.ArrayLike,
    *,
    bits: int = 8,
    channel_axes: tuple[int, ...] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Quantizes weights symmetrically to int8 codes.

    With fewer than 8 bits, weights are rounded to `2**bits - 1` even steps and those
    to the int8 codes `symmetric_codes(bits)`.

    Args:
        weights: Float array of any shape.
        bits: 2 to 8.
        channel_axes: As in `symmetric_scale`.

    Returns:
        `(codes, scale)`: int8 array of the shape of `weights`, zero exactly where a
        weight is zero or rounds to it, and float32 scales that broadcast to it.

    Raises:
        ValueError: `bits` is out of range or a weight is not finite.

    Example:
        >>> codes, scale = quantize_weights([-1.0, 0.0, 0.3, 1.0], bits=4)
        >>> codes
        array([-127,    0,   36,  127], dtype=int8)
    """
    weights = _finite(weights, "weights")
    scale = symmetric_scale(weights, channel_axes=channel_axes)
    coarse = np.float32(INT8_MAX / symmetric_steps(bits))
    # float32 throughout, like the same steps inside the training graph.
    steps = np.rint(weights / (scale * coarse))
    return np.rint(steps * coarse).astype(np.int8), scale


def fake_quantize_weights(
    weights: npt.ArrayLike,
    *,
    bits: int = 8,
    channel_axes: tuple[int, ...] = (),
    packed: bool = False,
) -> np.ndarray:
    """Returns weights as float32 after a round trip through `quantize_weights`.

    Args:
        weights: Float array of any shape.
        bits: 2 to 8.
        channel_axes: As in `symmetric_scale`.
        packed: Even steps of `bits` bits, as in a tensor of that type, rather than
            the int8 codes next to them.

    Example:
        >>> fake_quantize_weights([-1.27, 0.004, 0.011])
        array([-1.27,  0.  ,  0.01], dtype=float32)
        >>> fake_quantize_weights([-7.0, 1.2, 3.0], bits=4, packed=True)
        array([-7.,  1.,  3.], dtype=float32)
    """
    if packed:
        weights = _finite(weights, "weights")
        scale = symmetric_scale(weights, channel_axes=channel_axes, bits=bits)
        return np.rint(weights / scale) * scale
    codes, scale = quantize_weights(weights, bits=bits, channel_axes=channel_axes)
    return dequantize(codes, scale)


def asymmetric_scale(minimum: float, maximum: float) -> tuple[np.float32, int]:
    """Returns int8 scale and zero point of an activation with values in a range.

    `scale = (maximum - minimum) / 255` and `zero_point = round(-128 - minimum /
    scale)`: the range is widened to contain zero and shifted by less than one scale
    so that zero is exactly a code (Jacob et al., section 3.1).

    Args:
        minimum: Smallest value; taken as 0 when positive.
        maximum: Largest value; taken as 0 when negative.

    Returns:
        `(scale, zero_point)`, with `zero_point` in -128..127.

    Raises:
        ValueError: The range is empty, reversed, not finite, or contains only zero.

    Example:
        >>> scale, zero_point = asymmetric_scale(0.0, 2.55)
        >>> round(float(scale), 6), zero_point
        (0.01, -128)
    """
    low, high = min(float(minimum), 0.0), max(float(maximum), 0.0)
    step = (high - low) / (INT8_MAX - INT8_MIN)
    scale = np.float32(step)
    if not minimum <= maximum or not np.isfinite(scale) or scale <= 0:
        raise ValueError(
            "Expected a finite range with minimum <= maximum that holds more than "
            f"zero. Received: minimum={minimum}, maximum={maximum}"
        )
    # Halves go up, as in TensorFlow's FakeQuant kernels and the TFLite converter.
    zero_point = math.floor(-low / step + 0.5) + INT8_MIN
    return scale, min(zero_point, INT8_MAX)


def representable_range(minimum: float, maximum: float) -> tuple[float, float]:
    """Returns the smallest and largest value that the int8 codes of a range stand for.

    The range as `asymmetric_scale` nudges it; nudging it again changes nothing.

    Example:
        >>> low, high = representable_range(-1.0, 1.0)
        >>> round(low, 4), round(high, 4)
        (-1.0039, 0.9961)
    """
    scale, zero_point = asymmetric_scale(minimum, maximum)
    return (
        float(scale) * (INT8_MIN - zero_point),
        float(scale) * (INT8_MAX - zero_point),
    )


def quantize(
    values: npt.ArrayLike,
    scale: npt.ArrayLike,
    zero_point: npt.ArrayLike = 0,
    *,
    minimum: int = INT8_MIN,
    maximum: int = INT8_MAX,
) -> np.ndarray:
    """Returns codes `clip(round(values / scale) + zero_point, minimum, maximum)`.

    Args:
        values: Float array of any shape.
        scale: Positive float(s) that broadcast to `values`; see `broadcast_channels`.
        zero_point: Integer(s) that broadcast to `values`.
        minimum: Smallest code; -127 for narrow range.
        maximum: Largest code; 255 with minimum 0 for uint8, 32767 for int16.

    Returns:
        The smallest of int8, uint8, int16, int32 that holds minimum and maximum.

    Raises:
        ValueError: A scale is not positive.

    Example:
        >>> quantize([-1.0, 0.0, 0.26, 9.0], 0.1, -20)
        array([-30, -20, -17,  70], dtype=int8)
    """
    scale = np.asarray(scale, np.float32)
    if not np.all(scale > 0):
        raise ValueError(f"Expected positive scales. Received: scale={scale}")
    codes = np.rint(np.asarray(values, np.float32) / scale)
    if np.any(zero_point):
        codes = codes + np.asarray(zero_point)
    return np.clip(codes, minimum, maximum).astype(_code_type(minimum, maximum))


def dequantize(
    codes: npt.ArrayLike, scale: npt.ArrayLike, zero_point: npt.ArrayLike = 0
) -> np.ndarray:
    """Returns `scale * (codes - zero_point)` as float32.

    Args:
        codes: Integer array of any shape.
        scale: Float(s) that broadcast to `codes`.
        zero_point: Integer(s) that broadcast to `codes`.

    Example:
        >>> dequantize(np.int8([-30, 70]), 0.1, -20)
        array([-1.,  9.], dtype=float32)
    """
    # 64 bits: int8 minus its zero point does not fit int8.
    shifted = np.asarray(codes, np.int64) - np.asarray(zero_point, np.int64)
    return shifted.astype(np.float32) * np.asarray(scale, np.float32)


def fake_quantize(
    values: npt.ArrayLike, *, minimum: float, maximum: float
) -> np.ndarray:
    """Returns activations as float32 after a round trip through int8.

    Args:
        values: Float array of any shape.
        minimum: Smallest value of the range.
        maximum: Largest value of the range.

    Raises:
        ValueError: As `asymmetric_scale`.

    Example:
        >>> fake_quantize([-1.0, 0.0, 1.006, 3.0], minimum=0.0, maximum=2.55)
        array([0.  , 0.  , 1.01, 2.55], dtype=float32)
    """
    scale, zero_point = asymmetric_scale(minimum, maximum)
    return dequantize(quantize(values, scale, zero_point), scale, zero_point)


def broadcast_channels(parameter: npt.ArrayLike, axis: int, ndim: int) -> np.ndarray:
    """Reshapes per-channel scales or zero points to broadcast to their tensor.

    Args:
        parameter: Array [channels], as TFLite stores it.
        axis: The tensor's quantized dimension.
        ndim: The tensor's rank.

    Returns:
        View of shape [1, ..., channels, ..., 1].

    Example:
        >>> broadcast_channels([0.1, 0.2, 0.3], 0, 4).shape
        (3, 1, 1, 1)
    """
    shape = [1] * ndim
    shape[axis] = -1
    return np.asarray(parameter).reshape(shape)


def _finite(values: npt.ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(values, np.float32)
    if not np.all(np.isfinite(array)):
        raise ValueError(
            f"Expected finite values. Received: {name} with "
            f"{np.count_nonzero(~np.isfinite(array))} of {array.size} infinite or NaN"
        )
    return array


def _reduced_axes(ndim: int, channel_axes: tuple[int, ...]) -> tuple[int, ...]:
    kept = set()
    for axis in channel_axes:
        if not -ndim <= axis < ndim:
            raise ValueError(
                f"Expected axes of an array of rank {ndim}. "
                f"Received: channel_axes={channel_axes}"
            )
        kept.add(axis % ndim)
    return tuple(axis for axis in range(ndim) if axis not in kept)


def _code_type(minimum: int, maximum: int) -> np.dtype:
    for kind in (np.int8, np.uint8, np.int16, np.int32):
        if np.iinfo(kind).min <= minimum <= maximum <= np.iinfo(kind).max:
            return np.dtype(kind)
    raise ValueError(
        "Expected minimum <= maximum within int32. "
        f"Received: minimum={minimum}, maximum={maximum}"
    )
