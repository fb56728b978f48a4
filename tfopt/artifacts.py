"""Files on disk: atomic writing, sizes, digests and manifests."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfopt.types import Artifact, Signature, TfoptError

_TEMP_PREFIX = ".tfopt-"
_CHUNK = 1 << 20


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling of `path` that replaces it on success.

    The block creates a file or a directory there. When it ends normally the
    content is flushed to disk and renamed over `path`; when it raises, the
    temporary is removed and whatever stood at `path` is untouched. A symlink at
    `path` stays and its target is replaced. Leftovers of killed processes that
    aimed at the same `path` are removed first.

    Args:
        path: Final file or directory; missing parent folders are created.

    Yields:
        A path in a private temporary folder, with the suffix of `path`.

    Raises:
        TfoptError: The folder cannot be written, or the disk is full.

    Example:
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "model.bin"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_bytes(b"done")
        >>> target.read_bytes()
        b'done'
    """
    final = pathlib.Path(os.path.realpath(path))
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(final)
        prefix = f"{_TEMP_PREFIX}{final.name}.{os.getpid()}."
        folder = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        temporary = folder / final.name
        try:
            yield temporary
            _flush(temporary)
            _replace(temporary, final, folder)
        except OSError as error:
            if error.filename is None or str(folder) in str(error.filename):
                raise _cannot_write(path, error) from error
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file so that it is either the old one or complete.

    Raises:
        TfoptError: The folder cannot be written, or the disk is full.

    Example:
        >>> import os, tempfile
        >>> target = os.path.join(tempfile.mkdtemp(), "a.tflite")
        >>> write_bytes(target, b"TFL3")
        >>> raw_size(target)
        4
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def raw_size(path: str | os.PathLike[str]) -> int:
    """Returns the bytes of a file, or of all files below a directory."""
    return sum(file.stat().st_size for file in _files(path))


def gzip_size(source: str | os.PathLike[str] | bytes) -> int:
    """Returns the bytes after `gzip -9`; a directory is summed file by file.

    Args:
        source: A path, or the content itself.

    Example:
        >>> gzip_size(bytes(100_000)) < 200
        True
    """
    if isinstance(source, bytes):
        return len(gzip.compress(source, compresslevel=9, mtime=0))
    return sum(gzip_size(file.read_bytes()) for file in _files(source))


def sha256(path: str | os.PathLike[str]) -> str:
    """Returns the hex SHA-256 of a file; of a directory, over names and contents."""
    root = pathlib.Path(path)
    if not root.is_dir():
        return _file_digest(root)
    total = hashlib.sha256()
    for file in _files(root):
        name = file.relative_to(root).as_posix()
        total.update(f"{name}\0{_file_digest(file)}\n".encode())
    return total.hexdigest()


def describe(
    path: str | os.PathLike[str],
    format: str,
    *,
    signature: Signature | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    details: Mapping[str, Any] | None = None,
) -> Artifact:
    """Measures what stands at `path` and returns its `Artifact`.

    Raises:
        TfoptError: There is nothing at `path`.
    """
    if not os.path.exists(path):
        raise TfoptError(
            "Nothing to describe: the path does not exist. Expected a file or a "
            f"directory that was written before. Received: path={os.fspath(path)!r}"
        )
    return Artifact(
        path=os.fspath(path),
        format=format,
        size_bytes=raw_size(path),
        gzip_bytes=gzip_size(path),
        sha256=sha256(path),
        signature=signature,
        history=tuple(history),
        details=dict(details or {}),
    )


def write_manifest(path: str | os.PathLike[str], artifact: Artifact) -> None:
    """Writes an artifact's description as JSON for build scripts."""
    text = json.dumps(_to_json(dataclasses.asdict(artifact)), indent=2, sort_keys=True)
    write_bytes(path, (text + "\n").encode())


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a manifest back as a plain dictionary.

    Raises:
        TfoptError: The file is not a manifest.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TfoptError(
            "Cannot read the manifest. Expected a JSON file written by "
            f"`write_manifest`. Received: path={os.fspath(path)!r} ({error})"
        ) from error
    if not isinstance(content, dict) or not {"path", "format", "sha256"} <= set(
        content
    ):
        raise TfoptError(
            "Not a tfopt manifest. Expected the keys path, format and sha256. "
            f"Received: path={os.fspath(path)!r}"
        )
    return content


def _to_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def _files(path: str | os.PathLike[str]) -> list[pathlib.Path]:
    root = pathlib.Path(path)
    if not root.is_dir():
        return [root]
    return sorted(file for file in root.rglob("*") if file.is_file())


def _file_digest(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _flush(path: pathlib.Path) -> None:
    if not path.exists():
        raise TfoptError(
            f"Nothing was written for {path.name}; this is a bug in tfopt."
        )
    entries = [path, *path.rglob("*")] if path.is_dir() else [path]
    for entry in entries:
        _fsync(entry)


def _fsync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(
    temporary: pathlib.Path, final: pathlib.Path, folder: pathlib.Path
) -> None:
    # rename(2) replaces a file, but neither a non-empty directory nor a file by a
    # directory: then the old one moves aside first and comes back on failure.
    if final.exists() and (final.is_dir() or temporary.is_dir()):
        aside = folder / "replaced"
        os.rename(final, aside)
        try:
            os.rename(temporary, final)
        except OSError:
            os.rename(aside, final)
            raise
    else:
        os.replace(temporary, final)
    _fsync(final.parent)


def _remove_leftovers(final: pathlib.Path) -> None:
    prefix = f"{_TEMP_PREFIX}{final.name}."
    for entry in final.parent.glob(f"{_TEMP_PREFIX}*"):
        if not entry.name.startswith(prefix):
            continue
        owner = entry.name[len(prefix) :].split(".", 1)[0]
        if owner.isdigit() and not _is_alive(int(owner)):
            _rescue(entry, final)
            shutil.rmtree(entry, ignore_errors=True)


def _rescue(leftover: pathlib.Path, final: pathlib.Path) -> None:
    # Killed between the two renames of a directory: bring the old one back.
    aside = leftover / "replaced"
    if aside.exists() and not final.exists():
        os.rename(aside, final)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _cannot_write(path: str | os.PathLike[str], error: OSError) -> TfoptError:
    return TfoptError(
        f"Cannot write the output: {error.strerror or error}. Expected a writable "
        "folder with enough free space. The old output, if any, is untouched. "
        f"Received: path={os.fspath(path)!r}"
    )
