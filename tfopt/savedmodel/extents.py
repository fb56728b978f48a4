"""Byte ranges of files: checksummed reading, and copying from file to file.

Large ranges go from the page cache of one file to that of the other inside the kernel
(`copy_file_range`), so copying a gigabyte takes no memory here. Each chunk is read for
its checksum just before it is copied, unless the caller checks the copy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator

from tfopt.savedmodel import crc32c
from tfopt.types import TfoptError

_CHUNK = 1 << 20
_SMALL = 1 << 16
_WRITEBACK = 16 << 20

# What the kernel answers where it cannot copy between these two files.
_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


@dataclasses.dataclass(frozen=True)
class Extent:
    """A range of bytes in a file.

    Attributes:
        path: The file.
        offset: First byte.
        size: Number of bytes.
        label: What is stored there, for messages.
        masked_crc: The masked CRC-32C of the range, `None` if none is recorded.
    """

    path: str
    offset: int
    size: int
    label: str
    masked_crc: int | None = None


class OutputFile:
    """A file written front to back, with small writes gathered.

    Args:
        path: Where it is written.
        checksums: Whether `copy` compares checksums of large ranges. Turn it off only
            to check the copy itself, so that the bytes are read once.

    Example:
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "x")
        >>> with OutputFile(path) as out:
        ...     out.write(b"abc")
        ...     print(out.position)
        3
    """

    def __init__(self, path: str | os.PathLike[str], *, checksums: bool = True):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        self._descriptor = os.open(path, flags, 0o666)
        self._checksums = checksums
        self._kernel_copy = hasattr(os, "copy_file_range")
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._written = 0
        self._scheduled = 0
        self.position = 0

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, exception_type: object, *_: object) -> None:
        try:
            if exception_type is None:
                self._flush()
        finally:
            os.close(self._descriptor)

    def write(self, data: bytes) -> None:
        """Appends bytes."""
        self._pending.append(data)
        self._pending_bytes += len(data)
        self.position += len(data)
        if self._pending_bytes >= _CHUNK:
            self._flush()

    def copy(self, extent: Extent) -> None:
        """Appends a range of another file.

        Raises:
            TfoptError: The file is missing or too short, or its checksum differs; of
                large ranges that is checked unless `checksums=False` was given.
        """
        if extent.size <= _SMALL:
            for chunk in read(extent):
                self.write(chunk)
            return
        self._flush()
        with _open(extent) as source:
            rest = extent
            if not self._checksums:
                done = self._copy(source, extent.offset, extent.size)
                rest = dataclasses.replace(
                    extent,
                    offset=extent.offset + done,
                    size=extent.size - done,
                    masked_crc=None,
                )
            offset = rest.offset
            for chunk in _chunks(source, rest):
                done = self._copy(source, offset, len(chunk))
                self._append(memoryview(chunk)[done:])
                offset += len(chunk)
        self.position += extent.size

    def _copy(self, source: int, offset: int, size: int) -> int:
        """Appends bytes of an open file; returns how many the kernel would copy."""
        done = 0
        while self._kernel_copy and done < size:
            length = min(_WRITEBACK, size - done)
            try:
                count = os.copy_file_range(
                    source, self._descriptor, length, offset + done
                )
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
                count = 0
            # At the end of the file, but some file systems also answer so for "no".
            self._kernel_copy = count > 0
            done += count
            self._count(count)
        return done

    def _append(self, data: memoryview) -> None:
        while data:
            count = os.write(self._descriptor, data)
            data = data[count:]
            self._count(count)

    def _count(self, count: int) -> None:
        """Notes what was written, and lets the disk start with it.

        Writing to disk while more is copied hides most of the time of the fsync that
        atomic replacement ends with. There is no plain call for it, but pages that are
        declared unneeded while they are dirty are scheduled to be written.
        """
        self._written += count
        size = self._written - self._scheduled
        if size >= _WRITEBACK and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(
                self._descriptor, self._scheduled, size, os.POSIX_FADV_DONTNEED
            )
            self._scheduled = self._written

    def _flush(self) -> None:
        self._append(memoryview(b"".join(self._pending)))
        self._pending = []
        self._pending_bytes = 0


def read(extent: Extent) -> Iterator[bytes]:
    """Yields the bytes in chunks of at most 1 MiB; the last chunk comes checked.

    Raises:
        TfoptError: The file is missing, too short, or its checksum differs.
    """
    with _open(extent) as source:
        yield from _chunks(source, extent)


def checksum(extent: Extent) -> int:
    """Returns the masked CRC-32C of the bytes, ignoring the recorded one."""
    crc = 0
    for chunk in read(dataclasses.replace(extent, masked_crc=None)):
        crc = crc32c.extend(crc, chunk)
    return crc32c.mask(crc)


def verify(extent: Extent) -> None:
    """Reads the range once and compares its checksum with the recorded one.

    Raises:
        TfoptError: The file is missing, too short, or its checksum differs.
    """
    for _ in read(extent):
        pass


def check(extent: Extent) -> None:
    """Raises unless the file is there and goes on to the end of the range.

    Raises:
        TfoptError: The file is missing or too short.
    """
    with _open(extent):
        pass


def _chunks(source: int, extent: Extent) -> Iterator[bytes]:
    crc = 0
    position = extent.offset
    end = extent.offset + extent.size
    while True:
        chunk = os.pread(source, min(_CHUNK, end - position), position)
        if not chunk and position < end:
            raise _truncated(extent, position)
        if extent.masked_crc is not None:
            crc = crc32c.extend(crc, chunk)
        position += len(chunk)
        # The check precedes the last chunk, so that nobody gets all bytes unchecked.
        if position == end:
            _check(extent, crc)
        yield chunk
        if position == end:
            return


def _check(extent: Extent, crc: int) -> None:
    stored, computed = extent.masked_crc, crc32c.mask(crc)
    if stored is not None and computed != stored:
        raise TfoptError(
            f"The file is damaged: crc32c mismatch for {extent.label} at byte "
            f"{extent.offset}: stored {stored:#010x}, computed {computed:#010x}. "
            "Expected an intact checkpoint; copy it again from its source. "
            f"Received: {extent.path}"
        )


@contextlib.contextmanager
def _open(extent: Extent) -> Iterator[int]:
    try:
        descriptor = os.open(extent.path, os.O_RDONLY)
    except OSError as error:
        raise TfoptError(
            f"Cannot open the file that holds {extent.label}: {error.strerror}. "
            "Expected all files of the checkpoint side by side. "
            f"Received: {extent.path}"
        ) from error
    try:
        size = os.fstat(descriptor).st_size
        if extent.offset + extent.size > size:
            raise _truncated(extent, size)
        yield descriptor
    finally:
        os.close(descriptor)


def _truncated(extent: Extent, size: int) -> TfoptError:
    return TfoptError(
        f"The file is truncated: {extent.label} ends at byte "
        f"{extent.offset + extent.size}, the file at byte {size}. Expected an intact "
        f"checkpoint; copy it again from its source. Received: {extent.path}"
    )
