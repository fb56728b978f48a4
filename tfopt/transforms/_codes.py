"""Weights as small numbers: int8 or 4-bit codes with scales, or 16-bit floats."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tfopt import affine

# Elements at a time: what fits into a core's cache.
_CHUNK = 1 << 18


class Group(NamedTuple):
    """How inputs of a weight are cut into groups.

    Attributes:
        first: First axis of the run of axes that is cut, taken as one.
        end: The axis behind the last one.
        width: Size of a group.
    """

    first: int
    end: int
    width: int


@dataclasses.dataclass(frozen=True)
class Codes:
    """A weight as codes.

    Attributes:
        codes: int8 codes (also of 4 bits), or 16-bit floats. Of the weight's shape, or
            of one with an axis split into groups.
        scale: float32 factors that broadcast to `codes`; `None` for 16-bit floats.
        shape: The weight's shape.

    With groups the scales are bfloat16 numbers, and may be stored as such.
    """

    codes: np.ndarray
    scale: np.ndarray | None
    shape: tuple[int, ...]

    def decode(self) -> np.ndarray:
        """Returns the values they stand for, as float32."""
        values = self.codes.astype(np.float32)
        if self.scale is not None:
            values *= self.scale
        return values.reshape(self.shape)

    def errors(self, array: np.ndarray) -> dict[str, float | None]:
        """Returns how far the values are from the weight.

        Args:
            array: The weight.

        Returns:
            `max_error`, `mean_error` (of magnitudes) and `sqnr_db`: the weight's power
            over that of the error in decibels, `None` where there is no error.
        """
        largest = total = noise = power = 0.0
        weights = array.reshape(self.codes.shape)
        for part in _parts(self.codes.shape):
            values = self.codes[part].astype(np.float32)
            if self.scale is not None:
                values *= _of(self.scale, part)
            chunk = weights[part]
            gap = np.abs(values - chunk).ravel()
            largest = max(largest, float(gap.max(initial=0)))
            total += float(gap.sum(dtype=np.float64))
            noise += float(np.dot(gap, gap))
            flat = np.asarray(chunk, np.float32).ravel()
            power += float(np.dot(flat, flat))
        has_ratio = noise > 0 and power > 0
        return {
            "max_error": largest,
            "mean_error": total / max(array.size, 1),
            "sqnr_db": 10 * math.log10(power / noise) if has_ratio else None,
        }


def to_integers(
    array: np.ndarray,
    *,
    bits: int,
    channel_axes: tuple[int, ...] = (),
    group: Group | None = None,
) -> Codes:
    """Quantizes a weight symmetrically, to -127..127 or with 4 bits to -7..7.

    Args:
        array: Finite float array.
        bits: 8 or 4.
        channel_axes: Axes that keep a scale each; with groups all axes do.
        group: How inputs are cut into groups that share a scale.
    """
    view = array
    if group is not None:
        shape = array.shape
        view = array.reshape(
            *shape[: group.first], -1, group.width, *shape[group.end :]
        )
        within = group.first + 1
        channel_axes = tuple(a for a in range(view.ndim) if a != within)
    scale = affine.symmetric_scale(view, channel_axes=channel_axes, bits=bits)
    if group is not None:
        scale = as_bfloat16(scale).astype(np.float32)
    steps = affine.symmetric_steps(bits)
    codes = np.empty(view.shape, np.int8)
    for part in _parts(view.shape):
        codes[part] = affine.quantize(
            view[part], _of(scale, part), minimum=-steps, maximum=steps
        )
    return Codes(codes, scale, array.shape)


def to_floats(array: np.ndarray, dtype: str) -> Codes:
    """Rounds a weight to `"float16"` or `"bfloat16"`.

    Raises:
        OverflowError: A value is too large for the type.
    """
    if dtype == "bfloat16":
        import ml_dtypes

        kind = np.dtype(ml_dtypes.bfloat16)
    else:
        kind = np.dtype(np.float16)
    with np.errstate(over="ignore"):
        codes = array.astype(np.float32, copy=False).astype(kind)
    if not np.isfinite(codes.astype(np.float32)).all():
        peak = float(np.max(np.abs(array)))
        raise OverflowError(f"has values too large for {dtype} (up to {peak:g})")
    return Codes(codes, None, array.shape)


def pack(codes: np.ndarray) -> np.ndarray:
    """Packs 4-bit codes two per byte: halves of the last axis over each other.

    The first half is in the low bits, the second in the high ones, so that unpacking
    needs a concatenation rather than an interleaving. An odd axis is filled up.

    Args:
        codes: int8 array [..., n] of -8..7.

    Returns:
        int8 array [..., ceil(n / 2)].

    Example:
        >>> pack(np.array([1, -1, 7], np.int8))
        array([113,  15], dtype=int8)
    """
    half = (codes.shape[-1] + 1) // 2
    low, high = codes[..., :half], codes[..., half:]
    packed = low & np.int8(15)
    packed[..., : high.shape[-1]] |= high << np.int8(4)
    return packed


def as_bfloat16(scale: np.ndarray) -> np.ndarray:
    """Returns scales as bfloat16, rounded up so that no code exceeds its range."""
    import ml_dtypes

    bits = np.ascontiguousarray(scale, np.float32).view(np.uint32)
    return ((bits + np.uint32(0xFFFF)) >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)


def _parts(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Yields slices of the first axis that hold about `_CHUNK` elements each."""
    if not shape:
        yield ()
        return
    row = int(np.prod(shape[1:], dtype=np.int64))
    rows = max(1, _CHUNK // max(row, 1))
    for start in range(0, shape[0], rows):
        yield (slice(start, start + rows),)


def _of(scale: np.ndarray, part: tuple[slice, ...]) -> np.ndarray:
    return scale[part] if part and scale.ndim and scale.shape[0] > 1 else scale
