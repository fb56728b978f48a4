"""Packing models for shipping: zstd archives that any `zstd` and `tar` can open."""

from __future__ import annotations

import errno
import importlib
import os
import pathlib
import shutil
import tarfile
from collections.abc import Iterator
from typing import Any

from tfopt import artifacts
from tfopt.types import Artifact, TfoptError

_BLOCK = 1 << 20
# A small file may be a great deal of nothing; models are not.
_USUAL_BYTES = 1 << 30
_USUAL_EXPANSION = 100
_LEAST = 512  # what the header of an entry takes, and about a file without content
_ARCHIVE = ".tar.zst"
_FILE = ".zst"
# What entries with such names, or for one place, lead to.
_IMPOSSIBLE_NAMES = frozenset(
    {
        *(errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
        *(errno.EILSEQ, errno.EINVAL, errno.ELOOP),
    }
)


def pack(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    level: int = 19,
) -> Artifact:
    """Compresses a model file or directory for shipping.

    Zeros, repeated values and coarse grids cost hardly anything then: this is where
    pruning, clustering and rounding pay off. A file becomes `model.tflite.zst`, a
    directory `saved_model.tar.zst`. Both hold a checksum, and equal content gives
    equal bytes.

    Args:
        path: The file or directory.
        output: The archive to write, by default beside `path`. Its name ends in
            `.tar.zst` for a directory, in `.zst` for a file.
        level: zstd's level, 1 (fast) to 22 (small).

    Returns:
        The archive. `details` holds `raw_bytes`, `gzip_bytes` (of `gzip -9`, file by
        file) and `zstd_bytes`.

    Raises:
        ValueError: The level or the name of the archive is wrong.
        TfoptError: There is nothing at `path`, it cannot be written, or the package
            zstandard is missing.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "zeros.bin"
        >>> _ = file.write_bytes(bytes(100_000))
        >>> pack(file).details["raw_bytes"], pack(file).size_bytes < 100
        (100000, True)
    """
    if not 1 <= level <= 22:
        raise ValueError(f"`level` must be from 1 to 22. Received: level={level!r}")
    source = pathlib.Path(path)
    if not source.exists():
        raise TfoptError(
            "Nothing to pack. Expected a model file or directory. "
            f"Received: path={os.fspath(path)!r}"
        )
    suffix = _ARCHIVE if source.is_dir() else _FILE
    target = source.with_name(source.name + suffix)
    if output is not None:
        target = pathlib.Path(output)
        _check_name(target, suffix)
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise ValueError(
            "The archive would be in the folder that goes into it. Expected a path "
            f"outside of it. Received: output={os.fspath(target)!r}"
        )
    with artifacts.atomic_path(target) as temporary:
        _compress(source, temporary, level)
    size = artifacts.raw_size(target)
    details = {
        "raw_bytes": artifacts.raw_size(source),
        "gzip_bytes": artifacts.gzip_size(source),
        "zstd_bytes": size,
    }
    return artifacts.describe(target, suffix[1:], details=details)


def unpack(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    max_bytes: int | None = None,
) -> str:
    """Restores what `pack` compressed.

    Args:
        path: A `.zst` or `.tar.zst` file.
        output: The file or directory to write, by default `path` without the ending.
        max_bytes: What it may take unpacked, in bytes; by default 1 GiB, or 100 times
            the archive's size if that is more. Weights take a few times as much.

    Returns:
        The path that was written.

    Raises:
        ValueError: `max_bytes` is not positive.
        TfoptError: The archive is missing, damaged, larger than `max_bytes`, or
            holds paths that lead out of it; or the package zstandard is missing.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "weights.bin"
        >>> _ = file.write_bytes(b"weights")
        >>> archive = pack(file).path
        >>> pathlib.Path(unpack(archive)).read_bytes()
        b'weights'
    """
    source = pathlib.Path(path)
    is_archive = source.name.endswith(_ARCHIVE)
    suffix = _ARCHIVE if is_archive else _FILE
    if not source.is_file() or not source.name.endswith(suffix):
        raise TfoptError(
            "Nothing to unpack. Expected a file that ends in .zst or .tar.zst. "
            f"Received: path={os.fspath(path)!r}"
        )
    name = source.name.removesuffix(suffix)
    target = source.with_name(name) if output is None else pathlib.Path(output)
    limit = _Limit(source, max_bytes)
    zstandard = _zstandard()
    try:
        with (
            artifacts.atomic_path(target) as temporary,
            source.open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file) as stream,
        ):
            if is_archive:
                _extract(stream, temporary, source, limit)
            else:
                with temporary.open("wb") as plain:
                    while block := stream.read(_BLOCK):
                        limit.add(len(block))
                        plain.write(block)
                _check_size(source, temporary)
    except (zstandard.ZstdError, tarfile.TarError, EOFError, ValueError) as error:
        raise TfoptError(
            "The archive is damaged. Expected an intact file, written by `tfopt.pack`. "
            f"Received: path={os.fspath(path)!r} ({error})"
        ) from error
    return os.fspath(target)


class _Limit:
    """Raises before an archive takes more than it may."""

    def __init__(self, source: pathlib.Path, max_bytes: int | None):
        if max_bytes is not None and max_bytes <= 0:
            raise ValueError(
                f"Expected a positive number of bytes. Received: max_bytes={max_bytes}"
            )
        usual = max(_USUAL_BYTES, _USUAL_EXPANSION * source.stat().st_size)
        self._left = self._limit = usual if max_bytes is None else max_bytes
        self._source = source

    def add(self, size: int) -> None:
        """Counts bytes that are about to be written."""
        self._left -= size
        if self._left < 0:
            raise TfoptError(
                "The archive takes more than it may when it is unpacked. Expected at "
                f"most {self._limit:,} bytes; allow more by max_bytes. "
                f"Received: path={os.fspath(self._source)!r}"
            )


def _check_name(target: pathlib.Path, suffix: str) -> None:
    right = target.name.endswith(suffix)
    if suffix == _FILE and target.name.endswith(_ARCHIVE):
        right = False
    if not right:
        kind = "directory" if suffix == _ARCHIVE else "file"
        raise ValueError(
            f"The archive of a {kind} must end in {suffix}, so that unpacking knows "
            f"what it is. Received: output={os.fspath(target)!r}"
        )


def _compress(source: pathlib.Path, target: pathlib.Path, level: int) -> None:
    zstandard = _zstandard()
    size = -1 if source.is_dir() else source.stat().st_size
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)
    with (
        target.open("wb") as file,
        compressor.stream_writer(file, size=size, closefd=False) as stream,
    ):
        if source.is_dir():
            _archive(source, stream)
        else:
            with source.open("rb") as plain:
                shutil.copyfileobj(plain, stream)


def _archive(folder: pathlib.Path, stream: Any) -> None:
    # Names and contents only: times and owners would make equal models differ.
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for entry in _entries(folder):
            info = tarfile.TarInfo(entry.relative_to(folder).as_posix())
            if entry.is_dir():
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            else:
                info.size = entry.stat().st_size
                with entry.open("rb") as content:
                    archive.addfile(info, content)


def _entries(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    yield from sorted(folder.rglob("*"), key=lambda entry: entry.as_posix())


def _check_size(archive: pathlib.Path, plain: pathlib.Path) -> None:
    """Raises if content is missing: the reader takes a cut archive for complete."""
    with archive.open("rb") as file:
        expected = _zstandard().get_frame_parameters(file.read(64)).content_size
    if plain.stat().st_size != expected:
        raise EOFError(f"{plain.stat().st_size} bytes of {expected}")


def _extract(
    stream: Any, target: pathlib.Path, source: pathlib.Path, limit: _Limit
) -> None:
    target.mkdir()
    root = target.resolve()
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for info in archive:
            place = (root / info.name).resolve()
            # Sparse files are a few bytes that stand for any number of them.
            plain = (info.isfile() or info.isdir()) and not info.issparse()
            if not place.is_relative_to(root) or not plain:
                raise TfoptError(
                    "The archive holds more than files and folders below it. Expected "
                    "one written by `tfopt.pack`. Received: entry "
                    f"{info.name[:200]!r} in path={os.fspath(source)!r}"
                )
            limit.add(_LEAST + info.size)
            try:
                _extract_one(archive, info, place)
            except OSError as error:
                if error.errno not in _IMPOSSIBLE_NAMES:
                    raise
                raise tarfile.TarError(
                    f"{error.strerror}: {info.name[:200]!r}"
                ) from error


def _extract_one(
    archive: tarfile.TarFile, info: tarfile.TarInfo, place: pathlib.Path
) -> None:
    if info.isdir():
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    content = archive.extractfile(info)
    if content is not None:
        with place.open("xb") as file:
            shutil.copyfileobj(content, file)


def _zstandard() -> Any:
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise TfoptError(
            "Packing needs the package zstandard. Install it: "
            f"pip install 'tfopt[zstd]'. Received: {error}"
        ) from error
