"""Locks between processes; each vanishes with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import threading
import time
from collections.abc import Iterator

from tfopt._writing import _errors
from tfopt.types import TfoptError

_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.01
_LOCK_FILE = ".tfopt.lock"
# Temporary folders are locked as long as their process lives, and nobody else's.
_PRIVATE = re.compile(r"\.?tfopt-([0-9a-f]{16}\.)?[0-9a-f]{8}\.[a-z0-9_]{8}")
# What says that a file system knows no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)


class _Folder:
    """One folder's lock within this process: a thread may take it again."""

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.count = 0


_folders: dict[str, _Folder] = {}
# Descriptors whose locks belong to this process.
_descriptors: set[int] = set()


def open_for_lock(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Opens what is to be locked, without following a link, and not for children.

    Args:
        path: A file or folder.
        flags: Further ones, as of `os.open`.

    Returns:
        A descriptor for `take` and `close`.

    Raises:
        OSError: It cannot be opened.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    _descriptors.add(descriptor)
    return descriptor


def close(descriptor: int) -> bool:
    """Closes a descriptor, and so unlocks; returns whether it was this process's."""
    if descriptor not in _descriptors:  # in a fork, which has closed it
        return False
    _descriptors.discard(descriptor)
    os.close(descriptor)
    return True


def owned() -> frozenset[int]:
    """Returns the descriptors whose locks are this process's, not a parent's."""
    return frozenset(_descriptors)


def take(descriptor: int, *, wait: bool = False) -> bool | None:
    """Locks.

    Args:
        descriptor: From `open_for_lock`.
        wait: Whether to wait for another one to let go.

    Returns:
        Whether it was got; None where the file system has no locks.

    Raises:
        OSError: Anything else went wrong.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def is_same(descriptor: int, path: str | os.PathLike[str]) -> bool:
    """Returns whether a descriptor's file or folder still stands at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(*folders: str | os.PathLike[str]) -> Iterator[None]:
    """Holds folders for a moment, while files that belong together are put in place.

    Other processes that want them wait. A thread that holds one may take it again. The
    lock is on the folder itself (flock), so it leaves nothing behind. Where the file
    system has no locks there is none; on network drives it holds within one machine.

    Args:
        *folders: Folders, which exist.

    Raises:
        TfoptError: Another process holds one for a minute.
        OSError: A folder cannot be opened.

    Example:
        >>> import tempfile
        >>> with locked(tempfile.gettempdir()):
        ...     pass
    """
    with contextlib.ExitStack() as stack:
        # In one order, so that two processes never wait for each other.
        for name in sorted({os.path.realpath(folder) for folder in folders}):
            if not _PRIVATE.fullmatch(os.path.basename(name)):
                stack.enter_context(_holding(name))
        yield


@contextlib.contextmanager
def work_lock(folder: str | os.PathLike[str], *, name: str) -> Iterator[None]:
    """Keeps other processes out of a folder in which this one works for long.

    Args:
        folder: The folder; made if needed, and removed again if it stayed empty.
        name: The argument by which the user named it, for the message.

    Raises:
        TfoptError: Another process works there, or it cannot be written.

    Example:
        >>> import tempfile
        >>> with work_lock(tempfile.mkdtemp(), name="output_dir"):
        ...     pass
    """
    is_new = not os.path.isdir(folder)
    try:
        os.makedirs(folder, exist_ok=True)
        path = pathlib.Path(os.path.realpath(folder)) / _LOCK_FILE
        descriptor = _lock_file(path, folder, name)
    except OSError as error:
        raise _errors.cannot_write(folder, error) from error
    try:
        yield
    finally:
        if descriptor in _descriptors:
            with contextlib.suppress(OSError):
                os.unlink(path)
            close(descriptor)
            if is_new:
                with contextlib.suppress(OSError):  # it holds results
                    os.rmdir(path.parent)


def _lock_file(path: pathlib.Path, folder: str | os.PathLike[str], name: str) -> int:
    while True:
        descriptor = open_for_lock(path, os.O_RDWR | os.O_CREAT)
        try:
            taken = take(descriptor)
            if taken is False:
                raise _busy(descriptor, folder, name)
            # The one who held it may have removed it meanwhile.
            if is_same(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)
                return descriptor
        except BaseException:
            close(descriptor)
            raise
        close(descriptor)


def _busy(descriptor: int, folder: str | os.PathLike[str], name: str) -> TfoptError:
    owner = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
    return TfoptError(
        "Another process works in the folder. Expected another folder, or to wait "
        "until that one has ended; two would overwrite each other. Received: "
        f"{name}={os.fspath(folder)!r}, held by {owner or 'another process'}"
    )


@contextlib.contextmanager
def _holding(name: str) -> Iterator[None]:
    folder = _folders.setdefault(name, _Folder())
    with folder.mutex:
        if folder.count:
            yield
            return
        descriptor = open_for_lock(name)
        folder.count += 1
        try:
            _wait(descriptor, name)
            yield
        finally:
            folder.count -= 1
            close(descriptor)


def _wait(descriptor: int, name: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while take(descriptor) is False:
        if time.monotonic() > deadline:
            raise TfoptError(
                "Another process holds the folder. Expected it to be free within "
                f"{_WAIT_SECONDS:g} seconds. Received: {name!r}"
            )
        time.sleep(_POLL_SECONDS)


def _close_in_fork() -> None:
    # Locks belong to the process that took them, not to children that live longer.
    for descriptor in _descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()
    _folders.clear()


os.register_at_fork(after_in_child=_close_in_fork)
