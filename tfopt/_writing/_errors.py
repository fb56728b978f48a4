"""What the operating system says about writing, in one line."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable

from tfopt.types import TfoptError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# Errors of write(2), which come without the name of the file.
_NAMELESS = (*_FULL, errno.EFBIG, errno.EIO)


def cannot_write(
    path: str | os.PathLike[str], error: OSError, *, what: str = "the output"
) -> TfoptError:
    """Returns the error to raise.

    Args:
        path: What the user named.
        error: What the system says.
        what: What was to be written.
    """
    # mkdir says "File exists" where the folder is to be below a file.
    blocked = isinstance(error, FileExistsError)
    reason = "its folder is a file" if blocked else error.strerror or str(error)
    if error.errno in _NAMELESS:  # HDF5 tells it in a long line
        reason = os.strerror(error.errno)
    return TfoptError(
        f"Cannot write {what}: {reason}. Expected a writable "
        f"folder with enough free space{_space(path, error)}. The old output, if any, "
        f"is untouched. Received: path={os.fspath(path)!r}"
    )


def is_about(error: OSError, folders: Iterable[pathlib.Path]) -> bool:
    """Returns whether an error is about writing below some folders."""
    if error.filename is None:
        return error.errno in _NAMELESS
    if isinstance(error.filename, int):
        return False
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name]
    return any(str(folder) in name for folder in folders for name in names)


def _space(path: str | os.PathLike[str], error: OSError) -> str:
    """Returns where how much is free: a full disk may be that of temporary files."""
    if error.errno not in _FULL:
        return ""
    place = pathlib.Path(os.path.realpath(path))
    while not place.is_dir():
        place = place.parent
    work = tempfile.gettempdir()
    free = {folder: shutil.disk_usage(folder).free for folder in (place, work)}
    return (
        f", there ({free[place]:,} bytes are free) and for temporary files in {work} "
        f"({free[work]:,}; TMPDIR names another folder)"
    )
