"""Messages too big for memory: writing them, and reading them without their tensors.

A protobuf message with a length-delimited field is the tag, the length and the content.
So a graph can be written front to back once the sizes of its parts are known: the nodes
come from memory, the tensors' bytes straight from the files that hold them.

Reference:
    https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import dataclasses
import functools
import mmap
import os
from collections.abc import Iterator, Mapping
from typing import Any

from tfopt.savedmodel import extents, table
from tfopt.savedmodel.extents import Extent, OutputFile
from tfopt.types import TfoptError

# protobuf's limit for a serialized message.
MAX_BYTES = 2**31 - 1

_LENGTH_DELIMITED = 2
_SIGNATURE = 1  # Of a FunctionDef; holds its name.
_FIXED_BYTES = {1: 8, 5: 4}

# Field numbers on the way to a tensor's bytes, outermost first.
_TENSOR_CONTENT: Any = {8: {4: None}}  # AttrValue.tensor.tensor_content
_NODE: Any = {5: {2: _TENSOR_CONTENT}}  # NodeDef.attr[].value
_FUNCTION: Any = {3: _NODE}  # FunctionDef.node_def
_GRAPH: Any = {1: _NODE, 2: {1: _FUNCTION}}  # node; library.function
PATHS: Mapping[str, Any] = {
    "GraphDef": _GRAPH,
    "SavedModel": {2: {2: _GRAPH}},  # meta_graphs[].graph_def
}


@dataclasses.dataclass(frozen=True)
class FileBytes:
    """The content of a `bytes` field: ranges of files, joined."""

    extents: tuple[Extent, ...]

    @property
    def size(self) -> int:
        """Number of bytes."""
        return sum(extent.size for extent in self.extents)


@dataclasses.dataclass
class Tree:
    """A message, of which some fields are given apart.

    Attributes:
        message: The fields that are in memory.
        children: Name and content of further fields of `message`, in order; a repeated
            field appears once per element.

    Example:
        >>> from tfopt.savedmodel import protos
        >>> node = protos.message_class("NodeDef")(name="x", op="NoOp")
        >>> Tree(protos.message_class("GraphDef")(), [("node", Tree(node))]).size
        11
    """

    message: Any
    children: list[tuple[str, Tree | FileBytes]] = dataclasses.field(
        default_factory=list
    )

    @functools.cached_property
    def head(self) -> bytes:
        """The fields that are in memory, serialized."""
        return self.message.SerializeToString(deterministic=True)

    @functools.cached_property
    def size(self) -> int:
        """Bytes of the whole, serialized."""
        total = len(self.head)
        for name, child in self.children:
            total += len(self._tag(name, child)) + child.size
        return total

    def _tag(self, name: str, child: Tree | FileBytes) -> bytes:
        number = self.message.DESCRIPTOR.fields_by_name[name].number
        return table.varint(number << 3 | _LENGTH_DELIMITED) + table.varint(child.size)

    def write(self, out: OutputFile) -> None:
        """Appends the serialized message to a file.

        Raises:
            TfoptError: A file that holds tensors is missing, truncated or damaged.
        """
        out.write(self.head)
        for name, child in self.children:
            out.write(self._tag(name, child))
            if isinstance(child, Tree):
                child.write(out)
            else:
                for extent in child.extents:
                    out.copy(extent)

    def write_text(self, out: OutputFile, *, indent: int = 0) -> None:
        """Appends the message in protobuf's text format to a file."""
        from google.protobuf import text_format

        out.write(text_format.MessageToString(self.message, indent=indent).encode())
        margin = b" " * indent
        for name, child in self.children:
            if isinstance(child, Tree):
                out.write(margin + name.encode() + b" {\n")
                child.write_text(out, indent=indent + 2)
                out.write(margin + b"}\n")
            else:
                out.write(margin + name.encode() + b': "')
                for extent in child.extents:
                    for chunk in extents.read(extent):
                        out.write(b"".join([_ESCAPES[byte] for byte in chunk]))
                out.write(b'"\n')


def _escape(byte: int) -> bytes:
    if byte in b'"\\':
        return b"\\" + bytes([byte])
    return bytes([byte]) if 32 <= byte < 127 else b"\\%03o" % byte


_ESCAPES = [_escape(byte) for byte in range(256)]


@dataclasses.dataclass
class Content:
    """Where the bytes of a large tensor lie.

    Attributes:
        extent: The bytes.
        node: The rest of the tensor's NodeDef, serialized.
        function: The OpDef of the function it is in, serialized; empty in a graph.
    """

    extent: Extent
    node: bytes = b""
    function: bytes = b""


@dataclasses.dataclass
class Skeleton:
    """A file's message without large tensors.

    Attributes:
        data: The serialized message, without the `tensor_content` of large tensors.
        contents: Where these lie, in the order of the file.
    """

    data: bytes
    contents: list[Content]


def read_skeleton(
    path: str | os.PathLike[str], message: str, *, limit: int = 1 << 16
) -> Skeleton:
    """Reads a graph file without the content of its large tensors.

    Args:
        path: A binary GraphDef or SavedModel file of any size.
        message: `"GraphDef"` or `"SavedModel"`.
        limit: Tensors of up to this many bytes stay.

    Raises:
        TfoptError: The file is missing or no such message.
    """
    file = os.fspath(path)
    try:
        with open(file, "rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                return Skeleton(b"", [])
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                scanner = _Scanner(data, file, limit)
                stripped = scanner.strip(0, len(data), PATHS[message])
                return Skeleton(stripped, scanner.contents)
    except (OSError, IndexError) as error:
        raise TfoptError(
            f"Cannot read the file as a {message}. Expected a binary protobuf file. "
            f"Received: {file} ({error})"
        ) from error


class _Scanner:
    def __init__(self, data: mmap.mmap, path: str, limit: int):
        self._data = data
        self._path = path
        self._limit = limit
        self.contents: list[Content] = []

    def strip(self, start: int, end: int, path: Any) -> bytes:
        """Returns the message in [start, end) without the fields that `path` ends in.

        Only fields on the path and over the limit are entered; all else is copied.
        """
        kept = []
        signature = b""
        found = len(self.contents)
        for number, tag_at, value_at, next_at in self._fields(start, end):
            size = next_at - value_at
            if path is _FUNCTION and number == _SIGNATURE:
                signature = self._data[value_at:next_at]
            if number not in path or size <= self._limit:
                kept.append(self._data[tag_at:next_at])
            elif path[number] is None:
                extent = Extent(self._path, value_at, size, "a constant")
                self.contents.append(Content(extent))
            else:
                inner = self.strip(value_at, next_at, path[number])
                tag = table.varint(number << 3 | _LENGTH_DELIMITED)
                kept.append(tag + table.varint(len(inner)) + inner)
        stripped = b"".join(kept)
        for content in self.contents[found:]:
            content.node = content.node or (stripped if path is _NODE else b"")
            content.function = content.function or signature
        return stripped

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yields each field's number and the starts of its tag, value and successor."""
        position = start
        while position < end:
            tag_at = position
            tag, position = table.read_varint(self._data, position)
            kind = tag & 7
            value_at = position
            if kind == _LENGTH_DELIMITED:
                size, value_at = table.read_varint(self._data, position)
                position = value_at + size
            elif kind == 0:
                _, position = table.read_varint(self._data, position)
            elif kind in _FIXED_BYTES:
                position += _FIXED_BYTES[kind]
            else:
                raise IndexError(f"wire type {kind} at byte {tag_at}")
            if position > end:
                raise IndexError(f"the field at byte {tag_at} ends at {position}")
            yield tag >> 3, tag_at, value_at, position
