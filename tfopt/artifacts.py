"""Files on disk: atomic writing, sizes, digests and manifests."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfopt.types import Artifact, Signature, TfoptError

_TEMP_PREFIX = ".tfopt-"
_OWNER = re.compile(r"(\d+)\.[^.]+")
_CHUNK = 1 << 20
# Suffixes of model files.
_FORMATS = {
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".tflite": "tflite",
    ".pb": "graph_def",
    ".pbtxt": "graph_def",
}
# Whatever TensorFlow and Keras put at the top of a SavedModel.
_SAVED_MODEL = {
    *("saved_model.pb", "saved_model.pbtxt", "variables", "assets", "assets.extra"),
    *("fingerprint.pb", "keras_metadata.pb", "debug"),
}


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling of `path` that replaces it on success.

    The block creates a file or a directory there. When it ends normally the
    content is flushed to disk and renamed over `path`; when it raises, the
    temporary is removed and whatever stood at `path` is untouched. A symlink at
    `path` stays and its target is replaced. A directory is replaced only by a
    directory, and only if it holds nothing but an earlier output. Leftovers of
    killed processes that aimed at the same `path` are removed first.

    Args:
        path: Final file or directory; missing parent folders are created.

    Yields:
        A path in a private temporary folder, with the suffix of `path`.

    Raises:
        TfoptError: The folder cannot be written, the disk is full, or something else
            stands at `path`.

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


def write_if_changed(
    path: str | os.PathLike[str], content: bytes, *, always: bool = False
) -> bool:
    """Writes a file unless it holds this already: then its time stays as it was.

    Args:
        path: The file.
        content: All of it.
        always: Write it anyway.

    Returns:
        Whether it was written.

    Raises:
        TfoptError: The folder cannot be written, or the disk is full.

    Example:
        >>> import os, tempfile
        >>> target = os.path.join(tempfile.mkdtemp(), "a.tflite")
        >>> write_if_changed(target, b"TFL3"), write_if_changed(target, b"TFL3")
        (True, False)
    """
    file = pathlib.Path(path)
    if not always and file.is_file() and file.stat().st_size == len(content):
        try:
            if file.read_bytes() == content:
                return False
        except OSError:
            pass  # then it cannot be compared, but may still be replaced
    write_bytes(path, content)
    return True


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes `to_json(content)` to a file, which is either the old one or complete.

    Raises:
        TfoptError: The folder cannot be written, or the disk is full.
        TypeError: The content has no form in JSON.
    """
    write_bytes(path, (to_json(content) + "\n").encode())


def to_json(content: Any) -> str:
    """Returns indented JSON of nearly anything that tfopt returns.

    Mappings, sequences, sets, dataclasses, NumPy scalars and arrays, paths, and objects
    with a `to_json` method, which returns one of these. Numbers that JSON cannot
    write become the strings "NaN", "Infinity" and "-Infinity", as protobuf does.

    Raises:
        TypeError: The content holds something else.

    Example:
        >>> print(to_json({"sizes": (1, 2), "error": float("inf")}))
        {
          "sizes": [
            1,
            2
          ],
          "error": "Infinity"
        }
    """
    return json.dumps(_plain(content), indent=2, allow_nan=False)


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


def format_of(path: str | os.PathLike[str]) -> str | None:
    """Returns which kind of model stands at a path, by its content, else its suffix.

    Returns:
        `"tflite"`, `"saved_model"`, `"graph_def"` or `"keras"`; `None` for anything
        else, or nothing.

    Example:
        >>> import os, tempfile
        >>> target = os.path.join(tempfile.mkdtemp(), "model.bin")
        >>> write_bytes(target, b"....TFL3")
        >>> format_of(target)
        'tflite'
    """
    place = pathlib.Path(path)
    if place.is_dir():
        return "saved_model" if any(place.glob("saved_model.pb*")) else None
    if not place.is_file():
        return None
    with place.open("rb") as file:
        if file.read(8)[4:] == b"TFL3":
            return "tflite"
    return _FORMATS.get(place.suffix)


def describe(
    path: str | os.PathLike[str],
    format: str,
    *,
    signature: Signature | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    details: Mapping[str, Any] | None = None,
    measure_up_to: int | None = None,
) -> Artifact:
    """Measures what stands at `path` and returns its `Artifact`.

    Args:
        path: A file or directory.
        format: What it is, as `Artifact.format`.
        signature: The entry that was written.
        history: What was applied, oldest first.
        details: Counts and findings.
        measure_up_to: Content of more bytes gets no gzip size and no digest: both
            take far longer than writing it. By default all is measured.

    Raises:
        TfoptError: There is nothing at `path`.
    """
    if not os.path.exists(path):
        raise TfoptError(
            "Nothing to describe: the path does not exist. Expected a file or a "
            f"directory that was written before. Received: path={os.fspath(path)!r}"
        )
    size = raw_size(path)
    measure = measure_up_to is None or size <= measure_up_to
    return Artifact(
        path=os.fspath(path),
        format=format,
        size_bytes=size,
        gzip_bytes=gzip_size(path) if measure else None,
        sha256=sha256(path) if measure else None,
        signature=signature,
        history=tuple(history),
        details=dict(details or {}),
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command prints about an artifact; subclasses say how.

    Attributes:
        artifact: What was written.
    """

    artifact: Artifact

    def to_json(self) -> Artifact:
        """Returns the artifact, for `--report`."""
        return self.artifact

    def state_lines(self) -> list[str]:
        """Returns what must be run before a graph without signatures is used."""
        details = self.artifact.details
        if self.artifact.format != "graph_def" or not details["init_op"]:
            return []
        feeds = details["asset_feeds"].items()
        return [
            f"run before use: {details['init_op']}",
            *(f"  feeding {tensor} with {file}" for tensor, file in feeds),
        ]


def write_manifest(path: str | os.PathLike[str], artifact: Artifact) -> None:
    """Writes an artifact's description as JSON for build scripts."""
    write_json(path, artifact)


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


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"
    if hasattr(value, "to_json"):
        return _plain(value.to_json())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [_plain(item) for item in sorted(value, key=str)]
    if hasattr(value, "tolist"):  # NumPy arrays and scalars
        return _plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "name") and hasattr(value, "newbyteorder"):  # NumPy data types
        return value.name
    raise TypeError(f"Cannot write as JSON. Received: {type(value).__name__}")


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
    if final.exists() and final.is_dir() != temporary.is_dir():
        kinds = ("a directory", "a file")
        old, new = kinds if final.is_dir() else reversed(kinds)
        raise TfoptError(
            f"Cannot write {new} in the place of {old}. Expected a path that is free "
            f"or holds {new}; choose another or remove it. "
            f"Received: path={os.fspath(final)!r}"
        )
    strangers = _strangers(final, temporary)
    if strangers:
        raise TfoptError(
            "Cannot replace a directory that holds other things. Expected a new path, "
            "an empty directory or an earlier output. "
            f"Received: path={os.fspath(final)!r} with {strangers[:5]}"
        )
    # rename(2) does not replace a directory that holds something: then the old one
    # moves aside first and comes back on failure.
    if final.is_dir():
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


def _strangers(final: pathlib.Path, temporary: pathlib.Path) -> list[str]:
    """Returns what a directory would lose that no output of this kind has."""
    if not final.is_dir():
        return []
    known = {entry.name for entry in temporary.iterdir()} | _SAVED_MODEL
    return sorted({entry.name for entry in final.iterdir()} - known)


def _remove_leftovers(final: pathlib.Path) -> None:
    prefix = f"{_TEMP_PREFIX}{final.name}."
    for entry in final.parent.glob(f"{_TEMP_PREFIX}*"):
        if not entry.name.startswith(prefix):
            continue
        # `model` must not touch the temporaries of `model.1`: <pid>.<random> only.
        owner = _OWNER.fullmatch(entry.name, len(prefix))
        if owner and not _is_alive(int(owner[1])):
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
    # mkdir says "File exists" where the folder is to be below a file.
    blocked = isinstance(error, FileExistsError)
    reason = "its folder is a file" if blocked else error.strerror or str(error)
    return TfoptError(
        f"Cannot write the output: {reason}. Expected a writable "
        "folder with enough free space. The old output, if any, is untouched. "
        f"Received: path={os.fspath(path)!r}"
    )
