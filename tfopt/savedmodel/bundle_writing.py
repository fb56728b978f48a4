"""Writing checkpoints of TensorFlow, tensor by tensor; `bundle` says what they are."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from tfopt.savedmodel import crc32c, dtypes, extents, protos, slices, strings, table
from tfopt.savedmodel.bundle import BundleReader, Entry
from tfopt.savedmodel.extents import Extent

_CHUNK = 1 << 20
_BUNDLE_VERSION = 1


class BundleWriter:
    """Writes a checkpoint, tensor by tensor, with one data file.

    Used as a context manager: leaving it normally writes the index; leaving it by an
    exception removes what was written. It writes in place: to replace a checkpoint
    atomically, write to a temporary prefix and rename.

    Args:
        prefix: Path without `.index`; the folder must exist.
        num_shards: Number of data files to announce. All tensors go to the first; the
            others must be made, empty, by the caller.

    Example:
        >>> import tempfile
        >>> from tfopt.savedmodel.bundle import BundleReader
        >>> prefix = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> with BundleWriter(prefix) as writer:
        ...     writer.add("names", np.array([b"a", b"bc"], object))
        >>> BundleReader(prefix).read("names").tolist()
        [b'a', b'bc']
    """

    def __init__(self, prefix: str | os.PathLike[str], *, num_shards: int = 1):
        self.prefix = os.fspath(prefix)
        self._num_shards = num_shards
        self._data_path = f"{self.prefix}.data-00000-of-{num_shards:05d}"
        self._entries: dict[bytes, Any] = {}
        self._out = extents.OutputFile(self._data_path)

    def __enter__(self) -> BundleWriter:
        return self

    def __exit__(self, exception_type: object, *rest: object) -> None:
        self._out.__exit__(exception_type, *rest)
        if exception_type is not None:
            os.unlink(self._data_path)
            return
        header = protos.message_class("BundleHeaderProto")(num_shards=self._num_shards)
        header.version.producer = _BUNDLE_VERSION
        pairs = {b"": header.SerializeToString()}
        pairs |= {key: e.SerializeToString() for key, e in self._entries.items()}
        table.write_table(self.prefix + ".index", pairs)

    def add(self, key: str, value: Any, *, dtype: int | None = None) -> None:
        """Writes an array.

        Args:
            key: Name in the checkpoint.
            value: Array or scalar; strings as `bytes` (or `str`, stored as UTF-8).
            dtype: TensorFlow's DataType number, default the one of the array; needed
                for quantized types, which NumPy knows as plain integers.

        Raises:
            ValueError: The key was written before.
            TfoptError: TensorFlow cannot store the type.
        """
        array = np.asarray(value)
        number = dtypes.from_numpy(array.dtype) if dtype is None else dtype
        entry = self._new_entry(key.encode(), number, array.shape)
        self._write_value(entry, array)

    def add_part(
        self, key: str, shape: tuple[int, ...], part: slices.Slice, value: Any
    ) -> None:
        """Writes one slice of a partitioned variable.

        Args:
            key: Name of the whole tensor.
            shape: Shape of the whole tensor.
            part: (start, length) by axis, as given by `value`.
            value: The slice's content.
        """
        array = np.asarray(value)
        number = dtypes.from_numpy(array.dtype)
        self._register_part(key, number, shape, part)
        entry = self._new_entry(slices.index_key(key, part), number, array.shape)
        self._write_value(entry, array)

    def copy(
        self, reader: BundleReader, key: str, *, new_key: str | None = None
    ) -> None:
        """Copies a tensor of any type, byte by byte, without holding it in memory.

        Raises:
            ValueError: The key was written before.
            TfoptError: The source is damaged (checksum).
        """
        name = key if new_key is None else new_key
        entry = reader.entry(key)
        sources = reader.raw_extents(key)
        if not entry.parts:
            self._copy_extent(name.encode(), entry, entry.shape, sources[0])
            return
        for part, source in zip(entry.parts, sources, strict=True):
            self._register_part(name, entry.dtype, entry.shape, part)
            shape = slices.lengths(slices.resolve(part, entry.shape))
            self._copy_extent(slices.index_key(name, part), entry, shape, source)

    def _copy_extent(
        self, raw_key: bytes, entry: Entry, shape: tuple[int, ...], source: Extent
    ) -> None:
        target = self._new_entry(raw_key, entry.dtype, shape)
        target.offset, target.size = self._out.position, source.size
        target.crc32c = source.masked_crc or 0
        if dtypes.item_size(entry.dtype) is None:
            # The checksum of strings isn't that of the bytes: decode to check.
            if entry.dtype == dtypes.STRING:
                strings.decode(source, math.prod(shape))
            source = dataclasses.replace(source, masked_crc=None)
        self._out.copy(source)

    def _new_entry(self, raw_key: bytes, dtype: int, shape: Iterable[int]) -> Any:
        if raw_key in self._entries:
            raise ValueError(
                "The checkpoint has this tensor already. Expected each key once. "
                f"Received: key={raw_key.decode(errors='replace')!r}"
            )
        entry = protos.message_class("BundleEntryProto")(dtype=dtype)
        for size in shape:
            entry.shape.dim.add(size=size)
        entry.shape.SetInParent()
        self._entries[raw_key] = entry
        return entry

    def _register_part(
        self, key: str, dtype: int, shape: Iterable[int], part: slices.Slice
    ) -> None:
        entry = self._entries.get(key.encode())
        if entry is None:
            entry = self._new_entry(key.encode(), dtype, shape)
        extents_proto = entry.slices.add().extent
        for start, length in part:
            extent = extents_proto.add()
            if length != slices.FULL_EXTENT:
                extent.start, extent.length = start, length

    def _write_value(self, entry: Any, array: np.ndarray) -> None:
        entry.offset = self._out.position
        if entry.dtype == dtypes.STRING:
            data, crc = strings.encode(array)
            self._out.write(data)
        else:
            crc = 0
            little = array.dtype.newbyteorder("<")
            array = np.ascontiguousarray(array.astype(little, copy=False))
            flat = array.reshape(-1).view(np.uint8)
            for start in range(0, flat.size, _CHUNK):
                chunk = flat[start : start + _CHUNK].tobytes()
                crc = crc32c.extend(crc, chunk)
                self._out.write(chunk)
        entry.size = self._out.position - entry.offset
        entry.crc32c = crc32c.mask(crc)
