"""Messages with arrays between a Runner and the process of one of its interpreters.

Messages go through a socket. Arrays go through shared memory, one region for each
direction that grows when needed; its file descriptor is sent along with the message.
What the Runner sends is pickled; what comes back is JSON, so that an interpreter gone
wild can at worst send nonsense, but no code.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import socket
import struct
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

_HEADER = struct.Struct("<QB")  # bytes that follow; what descriptor comes along
_REGION = 2  # the memory of the sender's arrays; 1: some other descriptor
_ALIGNMENT = 64
_MIN_REGION = 1 << 16


class Port:
    """One end of the connection; used by one thread at a time.

    Args:
        end: A connected Unix socket.
        is_runner: Which end this is.
    """

    def __init__(self, end: socket.socket, *, is_runner: bool):
        self._socket = end
        self._encode = pickle.dumps if is_runner else _to_json
        self._decode = json.loads if is_runner else pickle.loads
        self._outbox = _Outbox()
        self._inbox: mmap.mmap | None = None
        self._descriptor = -1

    def send(
        self,
        message: Any,
        arrays: Sequence[np.ndarray] = (),
        *,
        descriptor: int | None = None,
    ) -> None:
        """Sends a message and copies of some arrays.

        Args:
            message: What is sent.
            arrays: What is copied.
            descriptor: A file descriptor to hand over, with a message without arrays.

        Raises:
            OSError: The other end is gone.
            ValueError: An array of objects holds something other than strings.
        """
        places, region = self._outbox.pack(arrays)
        try:
            content = self._encode((message, places))
            kind = _REGION if region is not None else int(descriptor is not None)
            rights: list[Any] = []
            if kind:
                handed = descriptor if region is None else region
                packed = struct.pack("i", handed)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, packed)]
            data = _HEADER.pack(len(content), kind) + content
            sent = self._socket.sendmsg([data], rights)
            if sent < len(data):
                self._socket.sendall(data[sent:])
        finally:
            if region is not None:
                os.close(region)

    def receive(self, timeout_s: float | None = None) -> tuple[Any, list[np.ndarray]]:
        """Returns a message and its arrays, which are valid until the next message.

        Raises:
            EOFError: The other end is gone.
            TimeoutError: Nothing came in time.
        """
        if timeout_s != self._socket.gettimeout():
            self._socket.settimeout(timeout_s)
        flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        head, descriptors, _, _ = socket.recv_fds(
            self._socket, _HEADER.size, 1, flags=flags
        )
        size, kind = _HEADER.unpack(head + self._rest(_HEADER.size - len(head)))
        if kind == _REGION:
            # Views of the old region keep it alive while they are needed.
            self._inbox = mmap.mmap(descriptors[0], 0)
            os.close(descriptors[0])
        elif kind:
            self._descriptor = descriptors[0]
        message, places = self._decode(self._rest(size))
        return message, [_view(self._inbox, place) for place in places]

    def take_descriptor(self) -> int:
        """Returns the file descriptor that came with the last message."""
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor

    def close(self) -> None:
        """Closes this end."""
        self._socket.close()

    def _rest(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._socket.recv(min(size, 1 << 20))
            if not part:
                raise EOFError("the other end of the connection is gone")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class _Outbox:
    """The region that this end writes."""

    def __init__(self) -> None:
        self._region: mmap.mmap | None = None

    def pack(self, arrays: Sequence[np.ndarray]) -> tuple[list[Any], int | None]:
        """Writes arrays; returns their places, and the descriptor of a new region."""
        if not arrays:
            return [], None
        places: list[Any] = []
        end = 0
        for array in arrays:
            if array.dtype == object:
                places.append([list(array.shape), _to_texts(array)])
                continue
            places.append([array.dtype.str, list(array.shape), end])
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        descriptor = None
        if self._region is None or len(self._region) < end:
            size = max(end, 2 * len(self._region or b""), _MIN_REGION)
            descriptor = shared_file(size)
            self._region = mmap.mmap(descriptor, size)
        for array, place in zip(arrays, places, strict=True):
            if array.dtype != object and array.size:
                _view(self._region, place)[...] = array
        return places, descriptor


def shared_file(size: int) -> int:
    """Returns the descriptor of a nameless file in memory, where the system has such.

    Raises:
        OSError: There is no memory or room left.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("tfopt")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def _view(region: mmap.mmap | None, place: list[Any]) -> np.ndarray:
    if len(place) == 2:
        shape, texts = place
        strings = np.empty(len(texts), object)
        strings[:] = [text.encode("latin-1") for text in texts]
        return strings.reshape(shape)
    dtype, shape, offset = place
    array: np.ndarray = np.ndarray(
        shape, dtype, b"" if 0 in shape else region, 0 if 0 in shape else offset
    )
    return array


def _to_texts(array: np.ndarray) -> list[str]:
    """Strings as JSON can carry them: one character for each byte."""
    texts = []
    for item in array.ravel().tolist():
        content = item.encode("utf-8") if isinstance(item, str) else item
        if not isinstance(content, bytes):
            raise ValueError(
                "Expected strings (str or bytes) in an input of strings. "
                f"Received: {type(item).__name__}"
            )
        texts.append(content.decode("latin-1"))
    return texts


def _to_json(content: Any) -> bytes:
    return json.dumps(content).encode()
