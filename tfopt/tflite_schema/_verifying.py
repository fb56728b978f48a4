"""Checks that every offset of a `.tflite` file leads to what the schema says.

Reference:
    `flatbuffers::Verifier` in
    https://github.com/google/flatbuffers/blob/master/include/flatbuffers/verifier.h
"""

from __future__ import annotations

import functools
import struct
from typing import Any, NamedTuple

from tfopt.tflite_schema import tables
from tfopt.tflite_schema._table import IDENTIFIER, Damaged

# Writers store equal strings and shapes once. A reader unpacks them as often as they
# are referred to, so this many times the file's size is what they may come to.
_MOST_COPIES = 8
_SLACK_BYTES = 1 << 16
# A table takes its own offset and the one that leads to it.
_LEAST_TABLE_BYTES = 8

_U16 = struct.Struct("<H").unpack_from
_U32 = struct.Struct("<I").unpack_from
_I32 = struct.Struct("<i").unpack_from


class _Field(NamedTuple):
    """A slot that is used: `kind` is `number`, `text`, `table` or `union`."""

    slot: int
    kind: str
    name: str  # of the table or union
    width: int  # bytes inside of the table
    is_vector: bool
    item: int  # bytes of an item


def check_structure(data: Any) -> None:
    """Checks the offsets of a file.

    Raises:
        Damaged: One leads out of the file or to something else, or what it leads to
            takes more memory than the file has bytes for.
    """
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise Damaged("it does not begin as a TFLite FlatBuffer")
    _Verifier(data).follow(0, "Model")


class _Verifier:
    """Follows offsets; counts what a reader would unpack.

    Args:
        data: The file's content.
    """

    def __init__(self, data: Any):
        self._data = data
        self._size = len(data)
        self._tables = self._size // _LEAST_TABLE_BYTES
        self._bytes = _MOST_COPIES * self._size + _SLACK_BYTES

    def follow(self, position: int, name: str) -> None:
        """Checks the table that the offset at a position leads to."""
        self._table(self._target(position), name)

    def _table(self, position: int, name: str) -> None:
        self._tables -= 1
        if self._tables < 0:
            raise Damaged("its tables are referred to again and again")
        self._inside(position, 4, 4)
        vtable = position - _I32(self._data, position)[0]
        self._inside(vtable, 4, 2)
        vtable_size = _U16(self._data, vtable)[0]
        size = _U16(self._data, vtable + 2)[0]
        self._inside(vtable, vtable_size, 2)
        if vtable_size % 2 or vtable_size < 4 or size < 4:
            raise Damaged(f"a table of {name} has an impossible size")
        self._inside(position, size, 1)
        types: dict[int, int] = {}
        for field in _fields(name):
            at = 4 + 2 * field.slot
            if at + 2 > vtable_size:
                break
            offset = _U16(self._data, vtable + at)[0]
            if not offset:
                continue
            if offset < 4 or offset + field.width > size:
                raise Damaged(f"a field of {name} stands outside of its table")
            place = position + offset
            if field.kind == "number" and not field.is_vector:
                if place % field.width:
                    raise Damaged(f"a field of {name} is not aligned")
                if field.width == 1:
                    types[field.slot] = self._data[place]
            elif field.is_vector:
                self._vector(place, field)
            elif field.kind == "union":
                self._union(place, field.name, types.get(field.slot - 1, 0))
            elif field.kind == "table":
                self.follow(place, field.name)
            else:
                self._text(place)

    def _vector(self, place: int, field: _Field) -> None:
        start = self._target(place)
        self._inside(start, 4, 4)
        length = _U32(self._data, start)[0]
        self._inside(start + 4, length * field.item, field.item)
        if field.kind == "number":
            self._count(length * field.item)
            return
        self._count(4 * length)
        for item in range(start + 4, start + 4 + 4 * length, 4):
            if field.kind == "table":
                self.follow(item, field.name)
            else:
                self._text(item)

    def _text(self, place: int) -> None:
        start = self._target(place)
        self._inside(start, 4, 4)
        length = _U32(self._data, start)[0]
        self._inside(start + 4, length + 1, 1)
        if self._data[start + 4 + length]:
            raise Damaged("a text does not end")
        self._count(length)

    def _union(self, place: int, name: str, number: int) -> None:
        members = _members(name)
        # Members of later versions of the schema are nobody's business here.
        if 0 < number < len(members):
            self.follow(place, members[number])

    def _target(self, position: int) -> int:
        self._inside(position, 4, 4)
        offset = _U32(self._data, position)[0]
        if not 0 < offset < 1 << 31:
            raise Damaged(f"the offset at byte {position} leads nowhere")
        return position + offset

    def _inside(self, position: int, size: int, alignment: int) -> None:
        if position < 0:
            raise Damaged("an offset points before its start")
        if position + size > self._size:
            raise Damaged(
                f"it is cut off: something should end at byte {position + size} "
                f"of {self._size}"
            )
        if position % alignment:
            raise Damaged(f"what stands at byte {position} is not aligned")

    def _count(self, size: int) -> None:
        self._bytes -= size
        if self._bytes < 0:
            raise Damaged("its vectors are referred to again and again")


@functools.cache
def _fields(name: str) -> tuple[_Field, ...]:
    words = enumerate(tables.TABLES[name].split())
    return tuple(_field(slot, word) for slot, word in words if word != "-")


def _field(slot: int, word: str) -> _Field:
    inner = word.strip("[]")
    is_vector = inner != word
    if inner.isdigit():
        size = int(inner)
        return _Field(slot, "number", "", 4 if is_vector else size, is_vector, size)
    if inner.startswith("<"):
        return _Field(slot, "union", inner.strip("<>"), 4, is_vector, 4)
    kind = "text" if inner == "text" else "table"
    return _Field(slot, kind, inner, 4, is_vector, 4)


@functools.cache
def _members(name: str) -> tuple[str, ...]:
    return tuple(tables.UNIONS[name].split())
