"""TensorFlow checkpoints (format V2, "TensorBundle"): reading.

A checkpoint with prefix `p` is a table `p.index`, key -> BundleEntryProto (type, shape,
shard, offset, size, checksum), and data files `p.data-00000-of-0000N` with the tensors'
bytes. A partitioned variable has one entry that lists its slices, and one per slice.

Reference:
    TensorFlow `core/util/tensor_bundle/tensor_bundle.{h,cc}`.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from tfopt.savedmodel import dtypes, extents, protos, slices, strings, table
from tfopt.savedmodel.extents import Extent
from tfopt.types import TfoptError

_LITTLE_ENDIAN = 0
_MOST_AXES = 64  # of an array


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the index says of one tensor.

    Attributes:
        key: Its name in the checkpoint.
        dtype: TensorFlow's DataType number.
        shape: Sizes by axis.
        shard: Number of the data file.
        offset: First byte in the data file.
        size_bytes: Bytes in the data file; of a partitioned variable, 0.
        masked_crc: Checksum of these bytes.
        parts: The stored slices of a partitioned variable, else empty.
    """

    key: str
    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size_bytes: int
    masked_crc: int
    parts: tuple[slices.Slice, ...] = ()


class BundleReader:
    """Reads a checkpoint; checksums are verified wherever bytes are read.

    Args:
        prefix: Path without `.index`, for example `model/variables/variables`.

    Raises:
        TfoptError: The index is missing, truncated, damaged or of another byte order.

    Example:
        >>> import tempfile
        >>> from tfopt.savedmodel.bundle_writing import BundleWriter
        >>> prefix = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> with BundleWriter(prefix) as writer:
        ...     writer.add("w", np.arange(3, dtype=np.float32))
        >>> reader = BundleReader(prefix)
        >>> reader.keys(), reader.read("w").tolist()
        (['w'], [0.0, 1.0, 2.0])
    """

    def __init__(self, prefix: str | os.PathLike[str]):
        self.prefix = os.fspath(prefix)
        self._index = table.read_table(self.prefix + ".index")
        header = _parse("BundleHeaderProto", self._index.get(b"", b""), self.prefix)
        if header.endianness != _LITTLE_ENDIAN:
            raise TfoptError(
                "The checkpoint was written on a big-endian machine. Expected a "
                f"little-endian one. Received: {self.prefix}.index"
            )
        self.num_shards = header.num_shards
        for key in self._index:
            _check_name(key, self.prefix)

    def keys(self) -> list[str]:
        """Returns the tensors' names, sorted; slices of variables are not listed."""
        return [
            key.decode() for key in self._index if key and not key.startswith(b"\0")
        ]

    def __contains__(self, key: str) -> bool:
        return key.encode() in self._index

    def entry(self, key: str) -> Entry:
        """Returns type, shape and place of a tensor.

        Raises:
            TfoptError: There is no such tensor, or its entry is damaged.
        """
        return self._entry(key.encode(), key)

    def shard_path(self, shard: int) -> str:
        """Returns the path of a data file."""
        return f"{self.prefix}.data-{shard:05d}-of-{self.num_shards:05d}"

    def raw_extents(self, key: str) -> list[Extent]:
        """Returns where a tensor's bytes lie, as stored, slice by slice."""
        entry = self.entry(key)
        if not entry.parts:
            return [self._extent(entry)]
        return [self._extent(self._part_entry(entry, part)) for part in entry.parts]

    def extents(
        self, key: str, part: slices.Slice | None = None
    ) -> list[Extent] | None:
        """Returns the byte ranges that, joined, are a tensor in row-major order.

        Args:
            key: Name of the tensor.
            part: A slice of it; `None` for all.

        Returns:
            Byte ranges; `None` when the content is no sequence of stored bytes: strings
            and variants, and slices that cut any but the first axis. Use `read` then.

        Raises:
            TfoptError: The slice isn't covered by stored slices, or a range had to be
                verified as a part of its whole, and is damaged.
        """
        entry = self.entry(key)
        item = dtypes.item_size(entry.dtype)
        if item is None:
            return None
        wanted = slices.whole(entry.shape) if part is None else part
        found = []
        for source, place, overlap in self._overlaps(entry, wanted):
            local = slices.shift(overlap, place)
            if not slices.is_contiguous(local, slices.lengths(place)):
                return None
            if not slices.is_contiguous(
                slices.shift(overlap, wanted), slices.lengths(wanted)
            ):
                return None
            extent = self._sub_extent(source, local, slices.lengths(place), item)
            found.append((overlap, extent))
        # Contiguous runs of a row-major tensor follow each other by their starts.
        found.sort(key=lambda pair: [start for start, _ in pair[0]])
        return [extent for _, extent in found]

    def read(self, key: str, part: slices.Slice | None = None) -> np.ndarray:
        """Returns a tensor, or a slice of it, as an array.

        Strings are `bytes` in an object array; bfloat16, float8 and the like have
        `ml_dtypes` types.

        Raises:
            TfoptError: No such tensor, a damaged file, or a slice that isn't stored.
        """
        entry = self.entry(key)
        wanted = slices.whole(entry.shape) if part is None else part
        pieces = self._overlaps(entry, wanted)
        if not entry.parts and wanted == slices.whole(entry.shape):
            return self._read_entry(entry)
        self._check_room(pieces)
        result = np.empty(slices.lengths(wanted), self._numpy_type(entry))
        for source, place, overlap in pieces:
            content = self._read_entry(source)[
                slices.index(slices.shift(overlap, place))
            ]
            result[slices.index(slices.shift(overlap, wanted))] = content
        return result

    def verify(self, keys: Iterable[str] | None = None) -> None:
        """Reads all bytes of the tensors (default: of all) and checks the checksums.

        Raises:
            TfoptError: Names the first file and tensor that are damaged.
        """
        for key in self.keys() if keys is None else keys:
            entry = self.entry(key)
            for extent in self.raw_extents(key):
                if entry.dtype == dtypes.STRING:
                    strings.decode(extent, math.prod(entry.shape))
                else:
                    extents.verify(extent)

    def _entry(self, raw_key: bytes, name: str) -> Entry:
        if raw_key not in self._index:
            raise TfoptError(
                "The checkpoint has no such tensor. Expected one of "
                f"{_some(self.keys())}. Received: key={name!r} in {self.prefix}.index"
            )
        proto = _parse("BundleEntryProto", self._index[raw_key], self.prefix)
        fault = _fault(proto, self.num_shards)
        if fault:
            raise TfoptError(
                f"The checkpoint's index is damaged: {fault} of {name!r}. Expected an "
                f"intact file. Received: {self.prefix}.index"
            )
        entry = Entry(
            key=name,
            dtype=proto.dtype,
            shape=tuple(dim.size for dim in proto.shape.dim),
            shard=proto.shard_id,
            offset=proto.offset,
            size_bytes=proto.size,
            masked_crc=proto.crc32c,
            parts=tuple(slices.from_proto(part) for part in proto.slices),
        )
        item = dtypes.item_size(entry.dtype)
        expected = None if item is None else item * math.prod(entry.shape)
        if not entry.parts and expected not in (None, entry.size_bytes):
            raise TfoptError(
                "The checkpoint's index contradicts itself: size and shape differ. "
                f"Expected {expected} bytes. Received: {entry} in {self.prefix}.index"
            )
        return entry

    def _part_entry(self, entry: Entry, part: slices.Slice) -> Entry:
        found = self._entry(slices.index_key(entry.key, part), f"{entry.key} {part}")
        shape = slices.lengths(slices.resolve(part, entry.shape))
        if (found.shape, found.dtype, found.parts) != (shape, entry.dtype, ()):
            raise TfoptError(
                "The checkpoint's index contradicts itself: a slice isn't the part "
                f"that its variable says. Expected {shape} of {entry}. "
                f"Received: {found} in {self.prefix}.index"
            )
        return found

    def _extent(self, entry: Entry) -> Extent:
        # Of strings, the checksum covers the lengths as integers, not as stored.
        return Extent(
            path=self.shard_path(entry.shard),
            offset=entry.offset,
            size=entry.size_bytes,
            label=f"tensor {entry.key!r}",
            masked_crc=entry.masked_crc,
        )

    def _sub_extent(
        self, entry: Entry, local: slices.Slice, shape: tuple[int, ...], item: int
    ) -> Extent:
        extent = self._extent(entry)
        size = item * math.prod(slices.lengths(local))
        if size == extent.size:
            return extent
        # A part of the bytes has no checksum of its own: verify the whole.
        extents.verify(extent)
        first = [start for start, _ in local]
        offset = int(np.ravel_multi_index(first, shape)) * item if first else 0
        return dataclasses.replace(
            extent, offset=extent.offset + offset, size=size, masked_crc=None
        )

    def _overlaps(
        self, entry: Entry, wanted: slices.Slice
    ) -> list[tuple[Entry, slices.Slice, slices.Slice]]:
        """Returns (stored piece, where it lies in the tensor, what of it is wanted)."""
        if not entry.parts:
            return [(entry, slices.whole(entry.shape), wanted)]
        pieces = []
        covered = 0
        for part in entry.parts:
            place = slices.resolve(part, entry.shape)
            overlap = slices.intersect(place, wanted)
            if overlap is not None:
                covered += math.prod(slices.lengths(overlap))
                pieces.append((self._part_entry(entry, part), place, overlap))
        if covered != math.prod(slices.lengths(wanted)):
            raise TfoptError(
                "The checkpoint's slices do not cover the variable. Expected every "
                f"element in exactly one slice. Received: key={entry.key!r}, "
                f"slice={wanted}, stored={entry.parts} in {self.prefix}.index"
            )
        return pieces

    def _check_room(self, pieces: Iterable[tuple[Entry, Any, Any]]) -> None:
        """Raises if slices together claim more bytes than their files have."""
        sources = [source for source, _, _ in pieces]
        for source in sources:
            extents.check(self._extent(source))
        shards = {self.shard_path(source.shard) for source in sources}
        stored = sum(map(os.path.getsize, shards))
        needed = sum(source.size_bytes for source in sources)
        if needed > stored:
            raise TfoptError(
                "The checkpoint's slices overlap. Expected at most "
                f"{stored:,} bytes. Received: {needed:,} in {self.prefix}.index"
            )

    def _numpy_type(self, entry: Entry) -> np.dtype:
        try:
            return dtypes.to_numpy(entry.dtype)
        except TfoptError as error:
            raise TfoptError(
                f"{error}, of {entry.key!r} in {self.prefix}.index"
            ) from error

    def _read_entry(self, entry: Entry) -> np.ndarray:
        extent = self._extent(entry)
        if entry.dtype == dtypes.STRING:
            values = strings.decode(extent, math.prod(entry.shape))
            array = np.empty(len(values), object)
            array[:] = values
            return array.reshape(entry.shape)
        kind = self._numpy_type(entry)
        extents.check(extent)
        buffer = np.empty(entry.size_bytes, np.uint8)
        position = 0
        for chunk in extents.read(extent):
            buffer[position : position + len(chunk)] = np.frombuffer(chunk, np.uint8)
            position += len(chunk)
        return buffer.view(kind).reshape(entry.shape)


def _parse(name: str, data: bytes, prefix: str) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return protos.message_class(name).FromString(data)
    except DecodeError as error:
        raise TfoptError(
            f"The checkpoint's index is damaged: a {name} cannot be parsed. Expected "
            f"an intact file. Received: {prefix}.index"
        ) from error


def _check_name(key: bytes, prefix: str) -> None:
    if key.startswith(b"\0"):
        return  # of a slice
    try:
        key.decode()
    except UnicodeDecodeError as error:
        raise TfoptError(
            "The checkpoint's index is damaged: a name isn't UTF-8. Expected an intact "
            f"file. Received: {prefix}.index with {key[:100]!r}"
        ) from error


def _fault(proto: Any, num_shards: int) -> str:
    """Returns what is impossible about an entry, in words; empty if nothing is."""
    shape = [dim.size for dim in proto.shape.dim]
    if any(size < 0 for size in shape) or len(shape) > _MOST_AXES:
        return f"the shape {shape[:10]}"
    if proto.dtype not in protos.data_types() or proto.dtype == 0:
        return f"the type {proto.dtype}"
    if not 0 <= proto.shard_id < max(num_shards, 1):
        return f"the data file {proto.shard_id} (there are {num_shards})"
    if proto.offset < 0 or proto.size < 0:
        return f"the place ({proto.offset}, {proto.size})"
    for part in map(slices.from_proto, proto.slices):
        fits = len(part) == len(shape) and all(
            length == slices.FULL_EXTENT or (start >= 0 <= length <= size - start)
            for (start, length), size in zip(part, shape, strict=True)
        )
        if not fits:
            return f"the slice {part[:10]} of the shape {shape}"
    return ""


def _some(names: list[str], limit: int = 10) -> str:
    listed = ", ".join(names[:limit])
    return listed + (f", ... ({len(names)} in all)" if len(names) > limit else "")
