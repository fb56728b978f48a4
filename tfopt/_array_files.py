"""NumPy's files, read without believing them.

NumPy evaluates the header of an array as Python, and takes the memory that it asks for;
here both are checked against what the file can hold.

Reference:
    https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import contextlib
import lzma
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

_MAGIC = b"\x93NUMPY"
_MOST_HEADER_BYTES = 10_000
_MOST_AXES = 64
_NUMBERS = "biufcSU"
# As NumPy and others write it: keys in any order, spaces anywhere.
_FIELDS = {
    "descr": r"'(?P<descr>[<>|=]?[a-zA-Z]\d{0,9})'",
    "fortran_order": r"(?P<fortran_order>True|False)",
    "shape": r"\((?P<shape>[\d, ]*)\)",
}
_PAIR = re.compile(
    r"\s*'(?P<key>\w+)'\s*:\s*(?P<value>'[^']*'|True|False|\([\d, ]*\))\s*(?:,|$)"
)
# Deflate needs at least one bit for 129 bytes.
_MOST_INFLATION = 1032
_SLACK_BYTES = 1 << 10
_ERRORS = (
    *(OSError, ValueError, EOFError, OverflowError, struct.error, KeyError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(NotImplementedError, RuntimeError),  # of zipfile: encrypted, or unknown methods
)


class Unreadable(ValueError):
    """A file isn't what NumPy writes of numbers or texts; the message says why."""


def load(path: str | os.PathLike[str], *, mapped: bool = False) -> np.ndarray:
    """Returns the array of a `.npy` file.

    Args:
        path: The file.
        mapped: Whether it stays in the file until it is needed.

    Raises:
        FileNotFoundError: There is none.
        Unreadable: It is damaged, or holds Python objects.

    Example:
        >>> import tempfile
        >>> file = tempfile.mkdtemp() + "/x.npy"
        >>> np.save(file, np.arange(3))
        >>> load(file)
        array([0, 1, 2])
    """
    with _explained(), open(path, "rb") as file:
        dtype, shape, order = _header(file)
        start = file.tell()
        _check_room(dtype, shape, os.fstat(file.fileno()).st_size - start)
        if mapped and 0 not in shape:
            return np.memmap(path, dtype, "r", start, shape, order)
        return _content(file, dtype, shape, order)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Mapping[str, np.ndarray]]:
    """Yields the arrays of an `.npz` file by name, each read when it is asked for.

    Raises:
        FileNotFoundError: There is none.
        Unreadable: It is damaged, or holds Python objects; also on access.

    Example:
        >>> import tempfile
        >>> file = tempfile.mkdtemp() + "/x.npz"
        >>> np.savez(file, x=np.arange(3))
        >>> with opened(file) as arrays:
        ...     dict(arrays)
        {'x': array([0, 1, 2])}
    """
    with contextlib.ExitStack() as stack:
        with _explained():
            file = stack.enter_context(open(path, "rb"))
            archive = stack.enter_context(zipfile.ZipFile(file))
            size = os.fstat(file.fileno()).st_size
        yield _Arrays(archive, size)


class _Arrays(Mapping[str, np.ndarray]):
    """The members of an archive."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self._archive = archive
        self._size = size
        self._members = {
            info.filename.removesuffix(".npy"): info for info in archive.infolist()
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members  # Mapping would read the array

    def __getitem__(self, name: str) -> np.ndarray:
        info = self._members[name]
        with _explained():
            self._check_size(info)
            with self._archive.open(info) as file:
                dtype, shape, order = _header(file)
                _check_room(dtype, shape, info.file_size - file.tell())
                return _content(file, dtype, shape, order)

    def _check_size(self, info: zipfile.ZipInfo) -> None:
        most = info.compress_size
        if info.compress_type != zipfile.ZIP_STORED:
            most = most * _MOST_INFLATION + _SLACK_BYTES
        if info.compress_size > self._size or info.file_size > most:
            raise Unreadable(
                f"{info.filename!r} has {info.file_size:,} bytes by its header, made "
                f"of {info.compress_size:,}"
            )


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (Unreadable, FileNotFoundError):
        raise
    except _ERRORS as error:
        reason = error.strerror if isinstance(error, OSError) else ""
        raise Unreadable(reason or str(error) or type(error).__name__) from error


def _header(file: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], Any]:
    """Returns type, shape and order of the array that the file goes on with."""
    start = file.read(8)
    if start[:6] != _MAGIC or len(start) < 8 or start[6] not in (1, 2, 3):
        raise Unreadable("it does not begin as an array of NumPy")
    code = "<H" if start[6] == 1 else "<I"
    (length,) = struct.unpack(code, file.read(struct.calcsize(code)))
    if length > _MOST_HEADER_BYTES:
        raise Unreadable(f"its header has {length:,} bytes")
    text = file.read(length).decode("utf-8" if start[6] == 3 else "latin1").strip()
    found = dict(_pairs(text))
    values = {
        key: re.fullmatch(pattern, found.get(key, ""))
        for key, pattern in _FIELDS.items()
    }
    if not all(values.values()) or len(found) != len(values):
        raise Unreadable(
            "its header does not give type, order and shape of numbers or texts: "
            f"{text[:100]!r}"
        )
    matches = {key: match[key] for key, match in values.items() if match}
    try:
        dtype = np.dtype(matches["descr"])
    except TypeError as error:
        raise Unreadable(str(error)) from error
    shape = tuple(int(size) for size in matches["shape"].split(",") if size.strip())
    if dtype.kind not in _NUMBERS or len(shape) > _MOST_AXES:
        raise Unreadable(f"it holds {dtype} of {len(shape)} axes")
    return dtype, shape, "F" if matches["fortran_order"] == "True" else "C"


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    if not (text.startswith("{") and text.endswith("}")):
        return
    position, end = 1, len(text) - 1
    while match := _PAIR.match(text, position, end):
        yield match["key"], match["value"]
        position = match.end()
    if text[position:end].strip():
        yield "rest", ""


def _check_room(dtype: np.dtype, shape: tuple[int, ...], size: int) -> None:
    needed = dtype.itemsize * math.prod(shape)
    if needed > size:
        raise Unreadable(
            f"it is cut off: {dtype} of shape {shape} takes {needed:,} bytes, and it "
            f"has {size:,}"
        )
    # An empty array may be too large for NumPy, too.
    if any(length > np.iinfo(np.intp).max for length in shape):
        raise Unreadable(f"no array can have the shape {shape}")


def _content(
    file: IO[bytes], dtype: np.dtype, shape: tuple[int, ...], order: Any
) -> np.ndarray:
    array = np.empty(shape, dtype, order)
    # A view in the order of the file: of Fortran's, that is the transpose.
    flat = (array.T if order == "F" else array).reshape(-1)
    raw: Any = flat.view(np.uint8) if array.nbytes else b""
    left = memoryview(raw)
    while left:
        part = file.read(min(len(left), 1 << 20))
        if not part:
            raise Unreadable(f"it is cut off: {len(left):,} bytes are missing")
        left[: len(part)] = part
        left = left[len(part) :]
    return array
