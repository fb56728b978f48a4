"""Puts what is complete in the place of what stands there, in one step if possible."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import pathlib
import shutil
import stat
from collections.abc import Callable

from tfopt.types import TfoptError

# Names in a temporary folder that no output has, as these are beside it.
_ASIDE = ".aside"
_GONE = ".gone"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # <linux/fs.h>
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
# Whatever TensorFlow and Keras put at the top of a SavedModel.
_SAVED_MODEL = {
    *("saved_model.pb", "saved_model.pbtxt", "variables", "assets", "assets.extra"),
    *("fingerprint.pb", "keras_metadata.pb", "debug"),
}


def flush(path: pathlib.Path) -> None:
    """Brings a file, or a folder with all it holds, to the disk.

    Raises:
        TfoptError: There is nothing.
        OSError: The disk is full or fails.
    """
    if not path.exists():
        raise TfoptError(
            f"Nothing was written for {path.name}; this is a bug in tfopt."
        )
    entries = [path, *path.rglob("*")] if path.is_dir() else [path]
    for entry in entries:
        if entry.is_dir() or entry.is_file():
            sync(entry)


def sync(path: pathlib.Path) -> None:
    """Brings one file, or the names in one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems know it for files only.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP) or path.is_file():
            raise
    finally:
        os.close(descriptor)


def check(temporary: pathlib.Path, final: pathlib.Path) -> None:
    """Raises unless one may take the place of the other.

    A folder only takes the place of a folder that is empty or an earlier output.

    Raises:
        TfoptError: Something else stands there.
    """
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


def replace(
    temporary: pathlib.Path, final: pathlib.Path, *, keep_old: bool
) -> Callable[[], None]:
    """Puts a file or folder in place; readers see the old one or the new one.

    A new file gets the permissions of the one that it replaces, as if that had been
    overwritten.

    Args:
        temporary: The new one, alone in a temporary folder on the same file system.
        final: Where it belongs.
        keep_old: Whether an old file is kept, to put it back; a folder always is.

    Returns:
        A function that puts the old one back, while the temporary folder is there.

    Raises:
        OSError: It cannot be done; the old one is in its place.
    """
    is_folder = temporary.is_dir()
    with contextlib.suppress(FileNotFoundError):
        mode = stat.S_IMODE(os.stat(final).st_mode)
        # A folder can only be moved by who may write it.
        os.chmod(temporary, mode | stat.S_IRWXU if is_folder else mode)
    if is_folder:
        return _replace_folder(temporary, final)
    return _replace_file(temporary, final, keep_old=keep_old)


def withdraw(final: pathlib.Path, folder: pathlib.Path) -> Callable[[], None]:
    """Takes a file or folder away.

    Args:
        final: What goes.
        folder: A temporary folder on the same file system that takes it up.

    Returns:
        A function that puts it back.

    Raises:
        OSError: It cannot be done.
    """
    gone = folder / _GONE
    os.rename(final, gone)
    return lambda: os.rename(gone, final)


def rescue(folder: pathlib.Path, final: pathlib.Path) -> None:
    """Brings back a folder that a killed process had moved aside.

    Args:
        folder: The temporary folder that the process left.
        final: Where the old one stood.

    Raises:
        OSError: It cannot be brought back.
    """
    aside = folder / _ASIDE
    if aside.is_dir() and not final.exists():
        os.rename(aside, final)


def _replace_file(
    temporary: pathlib.Path, final: pathlib.Path, *, keep_old: bool
) -> Callable[[], None]:
    aside = temporary.parent / _ASIDE
    old = os.path.lexists(final)
    if old and keep_old:
        try:
            os.link(final, aside, follow_symlinks=False)
        except OSError:  # a file system without links, or a link to nowhere
            shutil.copy2(final, aside, follow_symlinks=False)
    os.replace(temporary, final)
    return lambda: os.replace(aside, final) if old else os.unlink(final)


def _replace_folder(temporary: pathlib.Path, final: pathlib.Path) -> Callable[[], None]:
    if not final.exists():
        os.rename(temporary, final)
        return lambda: os.rename(final, temporary)
    if _exchange(temporary, final):
        return lambda: None if _exchange(temporary, final) else _unable(final)
    # Two steps, where the system cannot exchange two names: should the process be
    # killed in between, the next one brings the old folder back (`rescue`).
    aside = temporary.parent / _ASIDE
    os.rename(final, aside)
    try:
        os.rename(temporary, final)
    except BaseException:
        os.rename(aside, final)
        raise

    def undo() -> None:
        os.rename(final, temporary)
        os.rename(aside, final)

    return undo


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchanges two names in one step; returns False where that is not possible."""
    function = _renameat2()
    if function is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    if not function(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), os.fspath(one), None, os.fspath(other))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    # rename(2) does not replace a folder that holds something; Linux's renameat2 can
    # exchange it with another one. glibc has had it since 2.28.
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.restype = ctypes.c_int
        function.argtypes = [
            *(ctypes.c_int, ctypes.c_char_p) * 2,
            ctypes.c_uint,
        ]
    return function


def _unable(final: pathlib.Path) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), os.fspath(final))


def _strangers(final: pathlib.Path, temporary: pathlib.Path) -> list[str]:
    """Returns what a directory would lose that no output of this kind has."""
    if not final.is_dir():
        return []
    known = {entry.name for entry in temporary.iterdir()} | _SAVED_MODEL
    return sorted({entry.name for entry in final.iterdir()} - known)
