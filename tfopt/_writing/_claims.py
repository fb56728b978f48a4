"""Temporary folders that belong to a process, and vanish with it or soon after.

A folder is locked by `flock` as long as its process lives, however it ends. So a
folder whose lock is free is a leftover; numbers of processes, which are used again and
differ between containers, play no part. Locks hold within one machine, so a folder of
another machine, told by the kernel's boot id in its name, counts as a leftover only
after a day without any change.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import pathlib
import platform
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from tfopt._writing import _errors, _locks

_ATTEMPTS = 10
_FOREIGN_SECONDS = 24 * 3600
_RANDOM = r"[a-z0-9_]{8}"
_WORK = "tfopt-"


class Claim:
    """A new folder of this process.

    Attributes:
        folder: Where it is.
    """

    def __init__(self, parent: pathlib.Path, prefix: str):
        """Makes the folder.

        Args:
            parent: Where.
            prefix: From `prefix_for`.

        Raises:
            OSError: It cannot be made.
        """
        for _ in range(_ATTEMPTS):
            self.folder = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            with contextlib.suppress(FileNotFoundError):
                self._descriptor = _locks.open_for_lock(self.folder)
                _locks.take(self._descriptor, wait=True)
                if _locks.is_same(self._descriptor, self.folder):
                    return
                _locks.close(self._descriptor)  # a cleaner was quicker
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), os.fspath(self.folder))

    def remove(self) -> None:
        """Removes the folder with all it holds; does nothing in a fork."""
        if self._descriptor in _locks.owned():
            remove_tree(self.folder)
            _locks.close(self._descriptor)

    def abandon(self) -> None:
        """Leaves the folder to the next process that looks for leftovers."""
        _locks.close(self._descriptor)


def prefix_for(name: str) -> str:
    """Returns how the folders of an output are named, whatever the output's name.

    Args:
        name: Of the output, without its folder.
    """
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return f".tfopt-{digest}.{_machine()}."


def leftovers(parent: pathlib.Path, prefix: str) -> Iterator[pathlib.Path]:
    """Yields folders whose process is surely dead; each is locked while it is out.

    Args:
        parent: Where to look.
        prefix: From `prefix_for`.
    """
    head = prefix[: -len(_machine()) - 1]
    pattern = re.compile(rf"{re.escape(head)}([0-9a-f]{{8}})\.{_RANDOM}")
    try:
        entries = sorted(os.scandir(parent), key=lambda entry: entry.name)
    except OSError:
        return  # what is wrong shows when something is written there
    for entry in entries:
        match = pattern.fullmatch(entry.name)
        if match and _is_ours(entry, match[1]):
            folder = pathlib.Path(entry.path)
            with _free(folder) as is_free:
                if is_free:
                    yield folder


def work_claim() -> Claim:
    """Returns a folder for intermediate files; removes those of dead processes.

    Raises:
        OSError: It cannot be made.
    """
    place = pathlib.Path(tempfile.gettempdir())
    prefix = f"{_WORK}{_machine()}."
    _clean_once(place, prefix)
    return Claim(place, prefix)


@contextlib.contextmanager
def temporary_folder() -> Iterator[str]:
    """Yields a folder for intermediate files, in the system's place for these.

    It is removed at the end. That of a process that was killed is removed by the next
    one that asks for a folder.

    Yields:
        Its path.

    Raises:
        TfoptError: It cannot be made, or the disk is full.

    Example:
        >>> with temporary_folder() as folder:
        ...     os.path.isdir(folder)
        True
        >>> os.path.exists(folder)
        False
    """
    place = tempfile.gettempdir()
    try:
        claim = work_claim()
    except OSError as error:
        raise _errors.cannot_write(place, error, what="temporary files") from error
    try:
        yield str(claim.folder)
    except OSError as error:
        if error.filename is not None and _errors.is_about(error, [claim.folder]):
            raise _errors.cannot_write(place, error, what="temporary files") from error
        raise
    finally:
        claim.remove()


def remove_tree(folder: pathlib.Path) -> None:
    """Removes a folder, write-protected ones in it too; what cannot go stays."""

    def unprotect(function: Any, path: str, _: Any) -> None:
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(path), stat.S_IRWXU)
            function(path)

    shutil.rmtree(folder, onerror=unprotect)


@functools.cache
def _clean_once(place: pathlib.Path, prefix: str) -> None:
    for folder in leftovers(place, prefix):
        remove_tree(folder)


@functools.cache
def _machine() -> str:
    """Returns 8 hexadecimal digits that another machine, or another boot, lacks."""
    try:
        name = pathlib.Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        name = platform.node().encode()
    return hashlib.sha256(name).hexdigest()[:8]


def _is_ours(entry: os.DirEntry[str], machine: str) -> bool:
    """Returns whether a lock can tell, of a folder of this user, if it is in use."""
    try:
        found = entry.stat(follow_symlinks=False)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return False
        if machine == _machine():
            return True
        times = [found.st_mtime]
        times += [item.lstat().st_mtime for item in pathlib.Path(entry).rglob("*")]
        return time.time() - max(times) > _FOREIGN_SECONDS
    except OSError:
        return False


@contextlib.contextmanager
def _free(folder: pathlib.Path) -> Iterator[bool]:
    """Yields whether nobody holds a folder, which then is held meanwhile."""
    try:
        descriptor = _locks.open_for_lock(folder, os.O_DIRECTORY)
    except OSError:
        yield False
        return
    try:
        # Without locks nobody knows, and it stays.
        yield _locks.take(descriptor) is True and _locks.is_same(descriptor, folder)
    finally:
        _locks.close(descriptor)
