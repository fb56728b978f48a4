"""String tensors as a checkpoint's data file holds them.

The lengths as varints, a masked CRC-32C of the lengths, then the strings. The entry's
checksum covers the lengths as fixed-size integers, their checksum and the strings.

Reference:
    TensorFlow `WriteStringTensor` in `core/util/tensor_bundle/tensor_bundle.cc`.
"""

from __future__ import annotations

import dataclasses
import struct

import numpy as np

from tfopt.savedmodel import crc32c, extents, table
from tfopt.savedmodel.extents import Extent
from tfopt.types import TfoptError


def encode(array: np.ndarray) -> tuple[bytes, int]:
    """Returns lengths, their checksum and the strings, and the CRC-32C of all."""
    values = [
        value.encode() if isinstance(value, str) else bytes(value)
        for value in array.reshape(-1).tolist()
    ]
    crc = 0
    for value in values:
        crc = crc32c.extend(crc, _length_word(len(value)))
    checksum = struct.pack("<I", crc32c.mask(crc))
    body = b"".join(values)
    crc = crc32c.extend(crc32c.extend(crc, checksum), body)
    lengths = b"".join(table.varint(len(value)) for value in values)
    return lengths + checksum + body, crc


def decode(extent: Extent, count: int) -> list[bytes]:
    """Reads `count` strings.

    Raises:
        TfoptError: The file is missing, too short, or its checksum differs.
    """
    unchecked = dataclasses.replace(extent, masked_crc=None)
    data = b"".join(extents.read(unchecked))
    try:
        lengths = []
        position = crc = 0
        for _ in range(count):
            length, position = table.read_varint(data, position)
            lengths.append(length)
            crc = crc32c.extend(crc, _length_word(length))
        crc = crc32c.extend(crc, data[position:])
        position += 4  # The checksum of the lengths; the one checked covers it.
    except IndexError as error:
        raise _damaged(extent) from error
    if crc32c.mask(crc) != extent.masked_crc or position + sum(lengths) != len(data):
        raise _damaged(extent)
    values = []
    for length in lengths:
        values.append(data[position : position + length])
        position += length
    return values


def _length_word(length: int) -> bytes:
    # TensorFlow checksums lengths as 32 bits where they fit (older readers did).
    return struct.pack("<I" if length <= 0xFFFFFFFF else "<Q", length)


def _damaged(extent: Extent) -> TfoptError:
    return TfoptError(
        f"The file is damaged: crc32c mismatch for {extent.label} (strings) at byte "
        f"{extent.offset}. Expected an intact checkpoint; copy it again from its "
        f"source. Received: {extent.path}"
    )
