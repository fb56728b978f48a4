"""Slices of partitioned variables: their text, keys in the index, and overlaps.

A slice is a tuple of (start, length) pairs, one per axis; a length of -1 stands for the
full axis, as in TensorFlow's TensorSlice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfopt.types import TfoptError

Slice = tuple[tuple[int, int], ...]

FULL_EXTENT = -1


def parse(text: str) -> tuple[tuple[int, ...], Slice] | None:
    """Parses RestoreV2's `shape_and_slice`; empty text means the whole tensor.

    Returns:
        The shape of the whole tensor and the slice, or `None`.

    Example:
        >>> parse("10 4 5,5:-")
        ((10, 4), ((5, 5), (0, 4)))
    """
    if not text:
        return None
    try:
        *sizes, extents = text.split(" ")
        shape = tuple(int(size) for size in sizes)
        pairs = []
        for size, extent in zip(shape, extents.split(":"), strict=True):
            if extent == "-":
                pairs.append((0, size))
            else:
                start, length = extent.split(",")
                pairs.append((int(start), int(length)))
    except ValueError as error:
        raise TfoptError(
            "Cannot read a variable's slice. Expected sizes, then start,length or - "
            f'for each axis, such as "10 4 0,5:-". Received: {text!r}'
        ) from error
    return shape, tuple(pairs)


def from_proto(proto: Any) -> Slice:
    """Returns the slice of a TensorSliceProto."""
    return tuple(
        (extent.start, extent.length) if extent.HasField("length") else (0, FULL_EXTENT)
        for extent in proto.extent
    )


def resolve(part: Slice, shape: Sequence[int]) -> Slice:
    """Replaces full extents by the sizes in `shape`.

    Example:
        >>> resolve(((2, 3), (0, -1)), (8, 4))
        ((2, 3), (0, 4))
    """
    return tuple(
        (0, size) if length == FULL_EXTENT else (start, length)
        for (start, length), size in zip(part, shape, strict=True)
    )


def intersect(first: Slice, second: Slice) -> Slice | None:
    """Returns the common part of two resolved slices, `None` if there is none."""
    common = []
    for (start, length), (other, other_length) in zip(first, second, strict=True):
        begin = max(start, other)
        end = min(start + length, other + other_length)
        if end <= begin:
            return None
        common.append((begin, end - begin))
    return tuple(common)


def is_contiguous(part: Slice, shape: Sequence[int]) -> bool:
    """Returns whether a resolved slice is one run of a row-major tensor of `shape`.

    Example:
        >>> is_contiguous(((2, 3), (0, 4)), (8, 4))
        True
        >>> is_contiguous(((0, 8), (0, 2)), (8, 4))
        False
    """
    partial = [length != size for (_, length), size in zip(part, shape, strict=True)]
    lengths = [length for _, length in part]
    if True not in partial:
        return True
    # After the last axis that is cut, all is full; before it, single indices only.
    last = max(axis for axis, cut in enumerate(partial) if cut)
    return all(length == 1 for length in lengths[:last])


def index_key(name: str, part: Slice) -> bytes:
    """Returns the index key under which a slice of tensor `name` is stored.

    Reference:
        TensorFlow `EncodeTensorNameSlice` in
        `core/util/saved_tensor_slice_util.cc`, over `OrderedCode`.
    """
    key = _unsigned(0) + _string(name.encode()) + _unsigned(len(part))
    for start, length in part:
        key += _signed(start) + _signed(length)
    return key


def _unsigned(value: int) -> bytes:
    body = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(body)]) + body


def _string(value: bytes) -> bytes:
    escapes = {0x00: b"\x00\xff", 0xFF: b"\xff\x00"}
    body = b"".join(escapes.get(byte, bytes([byte])) for byte in value)
    return body + b"\x00\x01"


def _signed(value: int) -> bytes:
    """Encodes so that bytes compare as integers: a length in unary, then the value."""
    magnitude = ~value if value < 0 else value
    length = magnitude.bit_length() // 7 + 1
    if length == 1:
        return bytes([0x80 ^ (value & 0xFF)])
    body = bytearray(value.to_bytes(length, "big", signed=True))
    header = ((1 << length) - 1) << (16 - length)
    body[0] ^= header >> 8
    body[1] ^= header & 0xFF
    return bytes(body)


def whole(shape: Sequence[int]) -> Slice:
    """Returns the slice that is all of a tensor."""
    return tuple((0, size) for size in shape)


def lengths(part: Slice) -> tuple[int, ...]:
    """Returns the shape of a slice."""
    return tuple(length for _, length in part)


def shift(part: Slice, origin: Slice) -> Slice:
    """Returns a slice in coordinates relative to the start of another one."""
    return tuple(
        (start - base, length)
        for (start, length), (base, _) in zip(part, origin, strict=True)
    )


def index(part: Slice) -> tuple[slice, ...]:
    """Returns what picks a slice out of an array."""
    return tuple(slice(start, start + length) for start, length in part)
