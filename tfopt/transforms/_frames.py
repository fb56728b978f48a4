"""Messages between a process and its child: a length, then as many bytes."""

from __future__ import annotations

import json
import struct
from typing import IO, Any

_LENGTH = struct.Struct("<Q")


def write(stream: IO[bytes], data: bytes) -> None:
    """Writes one frame."""
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def read(stream: IO[bytes]) -> bytes | None:
    """Returns the next frame; `None` if the stream ends."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = stream.read(length)
    return data if len(data) == length else None


def write_json(stream: IO[bytes], content: Any) -> None:
    """Writes one frame of JSON; infinite numbers as Python writes them."""
    write(stream, json.dumps(content).encode())


def read_json(stream: IO[bytes]) -> Any:
    """Returns the content of the next frame; `None` if the stream ends."""
    data = read(stream)
    return None if data is None else json.loads(data)
