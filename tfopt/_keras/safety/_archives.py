"""What is wrong with a Keras file as a container: its members, links and sizes."""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import pathlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

# Keras stores its archives uncompressed; others' tools may compress weights, zeros of
# pruned ones by much. Only what is large in memory and nothing on disk is refused.
_SMALL_BYTES = 1 << 28
_MAX_EXPANSION = 100
_WEIGHTS = "model.weights.h5"
_ARRAYS = "model.weights.npz"
_ENCRYPTED = 1
# What a damaged file leads to.
ERRORS = (
    *(OSError, KeyError, ValueError, EOFError, RecursionError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(NotImplementedError, RuntimeError),  # of zipfile: encrypted, or unknown methods
)
# A member's header: 26 bytes, the lengths of its name and extra field, and these.
_HEADER_BYTES = 30


def objection(archive: zipfile.ZipFile) -> str:
    """Returns what is wrong with the members of a `.keras` file, or ""."""
    members = archive.infolist()
    names = [member.filename for member in members]
    for member in members:
        reason = _of_member(member) or _of_place(archive, member)
        if reason:
            return f"its member {member.filename!r} {reason}"
    if len(set(names)) < len(names):
        return "it has two members of one name"
    if _ARRAYS in names:
        return _of_arrays(archive.read(_ARRAYS))
    if _WEIGHTS in names:
        import h5py

        with weights(archive) as stream, h5py.File(stream) as file:
            return _of_group(file)
    return ""


def read_config(archive: zipfile.ZipFile, name: str) -> bytes:
    """Returns a small member of a `.keras` file, such as `config.json`.

    Args:
        archive: The file.
        name: Of the member.

    Raises:
        ValueError: It is larger than any configuration.
        KeyError: There is none.
    """
    member = archive.getinfo(name)
    size = member.file_size
    if size > _SMALL_BYTES:
        raise ValueError(f"{name} would take {size:,} bytes of memory")
    reason = _of_place(archive, member)
    if reason:
        raise ValueError(f"{name} {reason}")
    return archive.read(name)


@contextlib.contextmanager
def weights(archive: zipfile.ZipFile) -> Iterator[Any]:
    """Yields the HDF5 file of a `.keras` file, whose members are fine.

    HDF5 jumps to and fro in a file. zipfile begins anew at each jump backwards, which
    takes minutes for many layers, so what is stored as it is gets read in its place.

    Raises:
        ValueError: The archive contradicts itself.
        KeyError: It has no such member.
    """
    member = archive.getinfo(_WEIGHTS)
    if reason := _of_member(member):
        raise ValueError(f"{_WEIGHTS} {reason}")
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
        yield io.BytesIO(archive.read(member))
        return
    archive.open(member).close()  # which compares the two headers
    with open(str(archive.filename), "rb") as file:
        header = os.pread(file.fileno(), _HEADER_BYTES, member.header_offset)
        start = (
            member.header_offset + _HEADER_BYTES + sum(struct.unpack("<26x2H", header))
        )
        size = os.fstat(file.fileno()).st_size
        if member.file_size != member.compress_size or start + member.file_size > size:
            raise ValueError(f"{_WEIGHTS} is cut off")
        yield _Part(file, start, member.file_size)


class _Part(io.RawIOBase):
    """Some bytes of a file, as a file of their own."""

    def __init__(self, file: IO[bytes], start: int, size: int):
        super().__init__()
        self._file, self._start, self._size = file, start, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer).cast("B")
        wanted = wanted[: max(0, self._size - self._position)]
        place = self._start + self._position
        count = os.preadv(self._file.fileno(), [wanted], place)
        self._position += count
        return count


def of_h5(path: pathlib.Path) -> tuple[str, str]:
    """Returns what is wrong with an `.h5` file, or "", and its model's JSON."""
    import h5py

    with h5py.File(path) as file:
        config: Any = file.attrs.get("model_config", "")
        text = config.decode() if isinstance(config, bytes) else str(config)
        return _of_group(file), text


def metadata(folder: pathlib.Path) -> Iterator[Any]:
    """Yields the configurations that tf_keras leaves beside a SavedModel's graph.

    Raises:
        ValueError: They cannot be read.
    """
    import json

    from tf_keras.protobuf import saved_metadata_pb2

    content = (folder / "keras_metadata.pb").read_bytes()
    message = saved_metadata_pb2.SavedMetadata.FromString(content)
    for node in message.nodes:
        if node.metadata:
            yield json.loads(node.metadata)


def _of_member(member: zipfile.ZipInfo) -> str:
    parts = member.filename.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or ":" in parts[0]:
        return "has a path that leads out of the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a symbolic link"
    return _expansion(member.file_size, member.compress_size)


def _of_place(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
    # zipfile asks for the memory of what it is going to read from the file.
    end = member.header_offset + member.compress_size
    return "is cut off" if end > archive.start_dir else ""


def _expansion(size: int, stored: int) -> str:
    if size <= _SMALL_BYTES or size <= _MAX_EXPANSION * stored:
        return ""
    return f"would take {size:,} bytes of memory for {stored:,} on disk"


def _of_arrays(content: bytes) -> str:
    """Looks at the headers only; NumPy reads arrays of objects by unpickling."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            reason = _of_member(member) or _of_place(archive, member)
            if reason:
                return f"its weights' member {member.filename!r} {reason}"
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read: Any = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                if read(stream)[2].hasobject:
                    return f"its weights {member.filename!r} are pickled objects"
    return ""


def _of_group(group: Any) -> str:
    """Looks at all that an HDF5 file holds, following no link out of it."""
    import h5py

    waiting = [group]
    seen = set()
    while waiting:
        current = waiting.pop()
        for name in current:
            link = current.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                return f"its entry {name!r} is a link to somewhere else"
            item = current[name]
            if isinstance(item, h5py.Group):
                if item.id not in seen:
                    seen.add(item.id)
                    waiting.append(item)
            elif isinstance(item, h5py.Dataset):
                reason = _of_dataset(item)
                if reason:
                    return f"its weights {item.name!r} {reason}"
    return ""


def _of_dataset(dataset: Any) -> str:
    if dataset.external:
        return "are in another file"
    if dataset.is_virtual:
        return "are a view of other files"
    return _expansion(dataset.nbytes, dataset.id.get_storage_size())
