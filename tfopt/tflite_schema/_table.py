"""Tables of a FlatBuffer, read field by field.

Reference:
    https://flatbuffers.dev/internals/
"""

from __future__ import annotations

import struct
from typing import Any

IDENTIFIER = b"TFL3"


class Damaged(Exception):
    """A `.tflite` file that contradicts itself; the message says how."""


class Table:
    """One table; fields are asked for by slot, absent ones are empty.

    Args:
        data: The file's content, as bytes or a memory map.
        position: Where the table begins.

    Raises:
        Damaged: An offset leads out of the file. Every method raises this.
    """

    __slots__ = ("_data", "_position", "_vtable", "_vtable_size")

    def __init__(self, data: Any, position: int):
        self._data = data
        self._position = position
        self._vtable = position - unpack("i", data, position)
        self._vtable_size = unpack("H", data, self._vtable)

    def number(self, field: int, code: str) -> Any:
        """A scalar field, by `struct` code; 0 where it is absent."""
        position = self._field(field)
        return unpack(code, self._data, position) if position else 0

    def table(self, field: int) -> Table | None:
        """A table field; None where it is absent."""
        position = self._field(field)
        return Table(self._data, self._target(position)) if position else None

    def tables(self, field: int) -> list[Table]:
        """A vector of tables."""
        start, length = self._vector(field, 4)
        return [Table(self._data, self._target(start + 4 * i)) for i in range(length)]

    def numbers(self, field: int, code: str) -> tuple:
        """A vector of scalars, by `struct` code."""
        start, length = self._vector(field, struct.calcsize("<" + code))
        return struct.unpack_from(f"<{length}{code}", self._data, start)

    def text(self, field: int) -> str:
        """A string; empty where it is absent."""
        start, length = self._vector(field, 1)
        return bytes(self._data[start : start + length]).decode("utf-8", "replace")

    def vector_length(self, field: int, item_bytes: int) -> int:
        """The number of items in a vector."""
        return self._vector(field, item_bytes)[1]

    def _field(self, field: int) -> int:
        slot = 4 + 2 * field
        if slot + 2 > self._vtable_size:
            return 0
        offset = unpack("H", self._data, self._vtable + slot)
        return self._position + offset if offset else 0

    def _target(self, position: int) -> int:
        return position + unpack("I", self._data, position)

    def _vector(self, field: int, item_bytes: int) -> tuple[int, int]:
        position = self._field(field)
        if not position:
            return 0, 0
        start = self._target(position)
        length = unpack("I", self._data, start)
        if start + 4 + length * item_bytes > len(self._data):
            raise Damaged("it is cut off")
        return start + 4, length


def root(data: Any) -> Table:
    """Returns the root table of a file, a Model.

    Raises:
        Damaged: It doesn't begin as a `.tflite` file does.
    """
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise Damaged("it does not begin as a TFLite FlatBuffer")
    return Table(data, unpack("I", data, 0))


def unpack(code: str, data: Any, position: int) -> Any:
    """Returns the scalar at a position, by `struct` code."""
    # A negative position would silently count from the end.
    if position < 0:
        raise Damaged("an offset points before its start")
    try:
        return struct.unpack_from("<" + code, data, position)[0]
    except struct.error as error:
        raise Damaged(f"it is cut off: {error}") from error
