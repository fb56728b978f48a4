"""The sorted string table that holds a checkpoint's index.

The format is LevelDB's: blocks of prefix-compressed key/value pairs, each followed by
one compression byte and a masked CRC-32C, a block that indexes the blocks, and a
48-byte footer. TensorFlow writes it uncompressed with blocks of about 256 KiB.

Reference:
    LevelDB `doc/table_format.md`; TensorFlow `tsl/lib/io/{format,block_builder}.cc`.
"""

from __future__ import annotations

import mmap
import os
import pathlib
import struct
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from tfopt.savedmodel import crc32c
from tfopt.types import TfoptError

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5
_BLOCK_BYTES = 262_144
_RESTART_INTERVAL = 16


def read_table(path: str | os.PathLike[str]) -> dict[bytes, bytes]:
    """Reads all pairs of a table, in key order.

    Raises:
        TfoptError: The file is missing, truncated, damaged (checksum) or compressed.
    """
    file = pathlib.Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise TfoptError(
            "Cannot read the checkpoint's index. Expected a file written by "
            f"TensorFlow's Saver or Checkpoint. Received: {file} ({error.strerror})"
        ) from error
    try:
        return _parse(data, file)
    except (IndexError, struct.error) as error:
        raise _damaged(file, f"it ends too early or is garbled ({error})") from error


def write_table(path: str | os.PathLike[str], pairs: Mapping[bytes, bytes]) -> None:
    """Writes pairs as a table that TensorFlow's BundleReader accepts.

    Example:
        >>> import tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "x.index"
        >>> write_table(file, {b"b": b"2", b"a": b"1"})
        >>> read_table(file)
        {b'a': b'1', b'b': b'2'}
    """
    with open(path, "wb") as file:
        handles: dict[bytes, bytes] = {}
        block: dict[bytes, bytes] = {}
        pending = 0
        for key in sorted(pairs):
            block[key] = pairs[key]
            pending += len(key) + len(pairs[key])
            if pending >= _BLOCK_BYTES:
                handles[key] = _write_block(file, block, _RESTART_INTERVAL)
                block, pending = {}, 0
        if block:
            handles[next(reversed(block))] = _write_block(
                file, block, _RESTART_INTERVAL
            )
        meta = _write_block(file, {}, _RESTART_INTERVAL)
        # Every key of the block index is a restart point: readers bisect it.
        index = _write_block(file, handles, 1)
        footer = (meta + index).ljust(_FOOTER_BYTES - 8, b"\0")
        file.write(footer + struct.pack("<Q", _MAGIC))


def _parse(data: bytes, file: pathlib.Path) -> dict[bytes, bytes]:
    if len(data) < _FOOTER_BYTES:
        raise _damaged(file, f"it has only {len(data)} bytes")
    footer = data[-_FOOTER_BYTES:]
    (magic,) = struct.unpack("<Q", footer[-8:])
    if magic != _MAGIC:
        raise _damaged(file, f"its last 8 bytes are {magic:#x}, not {_MAGIC:#x}")
    _, position = _handle(footer, 0)
    index, _ = _handle(footer, position)
    pairs: dict[bytes, bytes] = {}
    last = -1
    for _, value in _entries(_read_block(data, index, file)):
        block, _ = _handle(value, 0)
        if block[0] <= last:
            raise _damaged(file, f"the block at byte {block[0]} is listed again")
        last = block[0]
        pairs.update(_entries(_read_block(data, block, file)))
    return pairs


def _read_block(data: bytes, handle: tuple[int, int], file: pathlib.Path) -> bytes:
    offset, size = handle
    end = offset + size
    if end + _TRAILER_BYTES > len(data):
        raise _damaged(file, f"a block should end at byte {end} of {len(data)}")
    (stored,) = struct.unpack_from("<I", data, end + 1)
    actual = crc32c.mask(crc32c.extend(0, data[offset : end + 1]))
    if actual != stored:
        raise _damaged(
            file,
            f"crc32c mismatch in the block at byte {offset}: stored {stored:#010x}, "
            f"computed {actual:#010x}",
        )
    if data[end] != 0:
        raise TfoptError(
            "The checkpoint's index is compressed, which TensorFlow's checkpoints (V2) "
            "never are. Expected an uncompressed table; load and save the checkpoint "
            f"with tf.train.Saver. Received: {file} (compression type {data[end]})"
        )
    return data[offset:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    (num_restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 - 4 * num_restarts
    position = 0
    key = b""
    while position < end:
        shared, position = read_varint(block, position)
        unshared, position = read_varint(block, position)
        value_size, position = read_varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + value_size]
        position += value_size


def _write_block(file: BinaryIO, pairs: Mapping[bytes, bytes], interval: int) -> bytes:
    """Writes one block and returns its handle (offset and size as varints)."""
    body = bytearray()
    restarts = []
    previous = b""
    for count, (key, value) in enumerate(pairs.items()):
        shared = 0
        if count % interval:
            shared = _common_prefix(previous, key)
        else:
            restarts.append(len(body))
        body += varint(shared) + varint(len(key) - shared) + varint(len(value))
        body += key[shared:] + value
        previous = key
    restarts = restarts or [0]
    body += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
    handle = varint(file.tell()) + varint(len(body))
    body.append(0)  # Not compressed.
    checksum = crc32c.mask(crc32c.extend(0, bytes(body)))
    file.write(bytes(body) + struct.pack("<I", checksum))
    return handle


def _common_prefix(first: bytes, second: bytes) -> int:
    for count, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return count
    return min(len(first), len(second))


def varint(value: int) -> bytes:
    """Returns protobuf's base-128 encoding of a non-negative integer.

    Example:
        >>> varint(300).hex()
        'ac02'
    """
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_varint(data: bytes | mmap.mmap, position: int) -> tuple[int, int]:
    """Returns the integer at `position` and the position after it.

    Raises:
        IndexError: The data ends within the integer, or it has over 64 bits.
    """
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise IndexError(f"an integer of over 64 bits at byte {position}")


def _handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return (offset, size), position


def _damaged(file: pathlib.Path, what: str) -> TfoptError:
    return TfoptError(
        f"The checkpoint's index is damaged: {what}. Expected an intact file; copy the "
        f"checkpoint again from its source. Received: {file}"
    )
