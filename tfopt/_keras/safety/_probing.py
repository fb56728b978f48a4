"""Reads HDF5 files in a process of their own first.

Damaged ones lead the HDF5 library into endless loops and crashes, from which nothing in
this process could be saved.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import zipfile
from typing import Any

from tfopt._keras.safety import _archives
from tfopt.types import TfoptError

# A second is enough for a gigabyte that is in memory; from a slow drive or network
# it takes longer.
_SECONDS, _BYTES_PER_SECOND = 30.0, 1e7
_CODE = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from tfopt._keras.safety import _probing; _probing.walk(sys.argv[1])"
)
# Files that are fine, by device, inode, size and time: written here, or probed.
_fine: set[tuple[int, ...]] = set()


def note(path: str | os.PathLike[str]) -> None:
    """Notes that a file was just written by this process, and so is not damaged."""
    with contextlib.suppress(OSError):
        _fine.add(_identity(path))


def check(path: pathlib.Path) -> None:
    """Raises unless the HDF5 library survives a `.keras` or `.h5` file.

    Raises:
        TfoptError: Reading it crashes, or does not end.
    """
    identity = _identity(path)
    if identity in _fine or not sys.executable:
        return
    reason = _probe(path)
    if reason:
        raise TfoptError(
            "Cannot load the model. Expected an undamaged `.keras` or `.h5` file. "
            f"Received: path={os.fspath(path)!r} (the HDF5 library {reason})"
        )
    _fine.add(identity)


def _probe(path: pathlib.Path) -> str:
    seconds = _SECONDS + os.path.getsize(path) / _BYTES_PER_SECOND
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CODE, os.fspath(path), *sys.path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"does not get through it within {seconds:.0f} s"
    if done.returncode >= 0:
        return ""
    return f"crashes on it with signal {-done.returncode}"


def walk(path: str) -> None:
    """Reads all groups, attributes and small datasets, whatever they hold.

    What Python can raise is left to the real reading, which says it better.
    """
    import h5py

    with contextlib.suppress(Exception):
        room = 8 * os.path.getsize(path) + (1 << 20)
        with contextlib.ExitStack() as stack:
            source: Any = path
            if zipfile.is_zipfile(path):
                archive = stack.enter_context(zipfile.ZipFile(path))
                source = stack.enter_context(_archives.weights(archive))
            file = stack.enter_context(h5py.File(source))
            _visit(file)
            file.visititems(lambda _, item: _visit(item, room))


def _visit(item: Any, room: int = 0) -> None:
    for name in list(item.attrs):
        with contextlib.suppress(Exception):
            item.attrs[name]
    with contextlib.suppress(Exception):
        if item.nbytes <= room:
            item[()]


def _identity(path: str | os.PathLike[str]) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
