"""Files on disk: atomic writing, sizes, digests and manifests."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tfopt import _json_files
from tfopt._writing import (
    AtomicSet,
    atomic_path,
    atomic_set,
    locked,
    make_folder,
    prepare,
    remove,
    temporary_folder,
    work_lock,
)
from tfopt.types import Artifact, Signature, TfoptError

__all__ = [
    "AtomicSet",
    "Outcome",
    "atomic_path",
    "atomic_set",
    "describe",
    "format_of",
    "gzip_size",
    "locked",
    "make_folder",
    "prepare",
    "raw_size",
    "read_manifest",
    "remove",
    "sha256",
    "temporary_folder",
    "to_json",
    "work_lock",
    "write_bytes",
    "write_files",
    "write_if_changed",
    "write_json",
    "write_manifest",
]

_CHUNK = 1 << 20
# Suffixes of Keras models in HDF5, and of all Keras models.
HDF5_SUFFIXES = (".h5", ".hdf5")
KERAS_SUFFIXES = (".keras", *HDF5_SUFFIXES)
# Suffixes of model files.
_FORMATS = {
    **dict.fromkeys(KERAS_SUFFIXES, "keras"),
    ".tflite": "tflite",
    ".pb": "graph_def",
    ".pbtxt": "graph_def",
}


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


def write_files(
    contents: Mapping[str, bytes], *, always: bool = True
) -> dict[str, bool]:
    """Writes files that belong together, so that all are complete or none is changed.

    A process that is killed while they are put in place leaves some old and some new;
    the next one that writes any of them, or `prepare`, completes the set.

    Args:
        contents: By path, the main file last.
        always: Whether to write also what is there already; else its time stays.

    Returns:
        Whether each was written.

    Raises:
        TfoptError: A folder cannot be written, or the disk is full.
        ValueError: Two paths are the same.

    Example:
        >>> import os, tempfile
        >>> place = os.path.join(tempfile.mkdtemp(), "model")
        >>> files = {place + ".h": b"header", place + ".c": b"source"}
        >>> list(write_files(files).values())
        [True, True]
        >>> list(write_files(files, always=False).values())
        [False, False]
    """
    prepare(contents)
    written = {
        path: always or not _holds(path, content) for path, content in contents.items()
    }
    with atomic_set() as outputs:
        for path, content in contents.items():
            if written[path]:
                outputs.add(path).write_bytes(content)
    return written


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
    return write_files({os.fspath(path): content}, always=always)[os.fspath(path)]


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
        content = _json_files.make(dict[str, Any], _json_files.read(path))
    except (FileNotFoundError, _json_files.Damaged) as error:
        raise TfoptError(
            "Cannot read the manifest. Expected a JSON file written by "
            f"`write_manifest`. Received: path={os.fspath(path)!r} ({error})"
        ) from error
    if not {"path", "format", "sha256"} <= set(content):
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


def _holds(path: str, content: bytes) -> bool:
    file = pathlib.Path(path)
    try:
        return (
            file.is_file()
            and file.stat().st_size == len(content)
            and file.read_bytes() == content
        )
    except OSError:
        return False  # it cannot be compared, but may still be replaced


def _file_digest(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
