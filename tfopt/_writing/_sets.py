"""One or several outputs that appear together, complete, or not at all.

How a set is put in place:
1. Each output is written into a temporary folder beside it and brought to the disk.
2. Each folder gets a note that names the folder of the last output, and that folder a
   note with the inodes of all: from here on the set counts as written.
3. The outputs are put in place in the order they were added, so the main one comes
   last. A failure puts back what was there.

A process killed before 2 leaves the old outputs, and folders that the next one that
writes there removes. Killed during 3 it leaves some old and some new ones, and the next
one that writes any of them, or calls `prepare`, completes the set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator

from tfopt._writing import _claims, _errors, _locks, _replacing
from tfopt.types import TfoptError

# Notes in temporary folders. Outputs in there have the name they are going to have,
# which none of these is.
_SET = ".set"
_COMMITTED = ".committed"
_ATTEMPTS = 3
# Names of what the process was started with, which are no files to replace.
_STREAM = re.compile(r"/dev/(?:stdout|stderr|fd/(\d+))|/proc/self/fd/(\d+)")
_NUMBERS = {"/dev/stdout": 1, "/dev/stderr": 2}


@dataclasses.dataclass
class _Member:
    """One output on its way.

    Attributes:
        path: As the user named it.
        final: Where it belongs, links resolved.
        claim: Its temporary folder.
        created: Folders that were made for it, the deepest first.
        goes: Whether it is to be taken away, not written.
        is_stream: Whether it is a device or pipe, which is written, not replaced.
    """

    path: str
    final: pathlib.Path
    claim: _claims.Claim
    created: list[pathlib.Path]
    goes: bool = False
    is_stream: bool = False

    @property
    def temporary(self) -> pathlib.Path:
        """Where it is written."""
        return self.claim.folder / self.final.name


class AtomicSet:
    """Outputs that are put in place together when the block of `atomic_set` ends.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> with atomic_set() as outputs:
        ...     _ = outputs.add(folder / "model.h").write_text("header")
        ...     _ = outputs.add(folder / "model.c").write_text("source")
        >>> sorted(path.name for path in folder.iterdir())
        ['model.c', 'model.h']
    """

    def __init__(self) -> None:
        self._members: list[_Member] = []

    def add(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Returns where to write an output; the main one is added last.

        Args:
            path: Final file or directory; missing parent folders are created. A link
                stays, and what it leads to is replaced.

        Raises:
            TfoptError: Its folder cannot be written.
            ValueError: It is in the set already.
        """
        return self._begun(path).temporary

    def remove(self, path: str | os.PathLike[str]) -> None:
        """Takes away an output of an earlier run, if there is one, with the others.

        Args:
            path: File or directory.

        Raises:
            TfoptError: Its folder cannot be written.
            ValueError: It is in the set already.
        """
        if os.path.lexists(path):
            self._begun(path).goes = True

    def forget(self, path: str | os.PathLike[str]) -> None:
        """Leaves an output of the set as it is.

        Args:
            path: As it was given to `add`.
        """
        for member in self._members:
            if member.path == os.fspath(path):
                _clear(member)
        self._members = [m for m in self._members if m.path != os.fspath(path)]

    def _begun(self, path: str | os.PathLike[str]) -> _Member:
        member = _begin(path)
        if any(other.final == member.final for other in self._members):
            _clear(member)
            raise ValueError(
                "An output is written twice. Expected different paths. "
                f"Received: path={os.fspath(path)!r}"
            )
        self._members.append(member)
        return member

    def _folders(self) -> list[pathlib.Path]:
        return [member.claim.folder for member in self._members]

    def _clear(self) -> None:
        for member in self._members:
            _clear(member)

    def _commit(self) -> None:
        for member in self._members:
            if not member.goes:
                _replacing.flush(member.temporary)
        streams = [member for member in self._members if member.is_stream]
        placed = [member for member in self._members if not member.is_stream]
        for member in streams:
            _pour(member)
        parents = {member.final.parent for member in placed}
        # Putting one file in place is one step already.
        several = len(placed) > 1 or any(m.temporary.is_dir() for m in placed)
        with _locks.locked(*(parents if several else ())):
            for member in placed:
                if not member.goes:
                    _replacing.check(member.temporary, member.final)
            if len(placed) > 1:
                _note(placed)
            _put_in_place(placed)
        for parent in parents:
            _replacing.sync(parent)

    def _owner(self, error: OSError) -> str:
        """Returns the output that an error is about."""
        for member in self._members:
            if error.filename and _errors.is_about(error, [member.claim.folder]):
                return member.path
        return self._members[-1].path


@contextlib.contextmanager
def atomic_set() -> Iterator[AtomicSet]:
    """Yields a set of outputs that appear together when the block ends.

    When it raises, nothing is changed.

    Yields:
        The set, empty.

    Raises:
        TfoptError: A folder cannot be written, the disk is full, or something else
            stands at a path.
    """
    outputs = AtomicSet()
    try:
        try:
            yield outputs
            outputs._commit()
        except OSError as error:
            if outputs._members and _errors.is_about(error, outputs._folders()):
                raise _errors.cannot_write(outputs._owner(error), error) from error
            raise
    finally:
        outputs._clear()


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling of `path` that replaces it on success.

    The block creates a file or a directory there. When it ends normally the
    content is flushed to disk and takes the place of `path` in one step; when it
    raises, the temporary is removed and whatever stood at `path` is untouched. A
    symlink at `path` stays and its target is replaced. A directory is replaced only by
    a directory, and only if it holds nothing but an earlier output. Leftovers of
    killed processes that aimed at the same `path` are removed first. Devices and
    pipes, such as `/dev/stdout`, are written when the content is complete.

    Args:
        path: Final file or directory; missing parent folders are created.

    Yields:
        A path in a private temporary folder, with the name of `path`.

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
    with atomic_set() as outputs:
        yield outputs.add(path)


def prepare(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Completes what a killed process had begun; raises where nothing can be written.

    For the begin of long work, which otherwise would fail at its end.

    Args:
        paths: Files that are going to be written.

    Raises:
        TfoptError: A path cannot be written.
    """
    for path in paths:
        final = _resolved(path)
        if final is None:
            continue
        try:
            if final.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            place = final.parent
            while not os.path.lexists(place):
                place = place.parent
            check_folder(place)
            if place == final.parent:
                _recover(final)
        except OSError as error:
            raise _errors.cannot_write(path, error) from error


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Makes a folder that is going to be written to, with its parents.

    Args:
        folder: Where; it may be there already.

    Raises:
        TfoptError: It cannot be made or written.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        check_folder(pathlib.Path(folder))
    except OSError as error:
        raise _errors.cannot_write(folder, error) from error


def check_folder(folder: pathlib.Path) -> None:
    """Raises unless files can be made in a folder.

    Raises:
        OSError: It is a file, protected, or on a file system that is read-only.
    """
    if not folder.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        fixed = os.statvfs(folder).f_flag & os.ST_RDONLY
        number = errno.EROFS if fixed else errno.EACCES
        raise OSError(number, os.strerror(number), str(folder))


def remove(path: str | os.PathLike[str]) -> None:
    """Removes a file or directory so that no part of it stays, whenever one is killed.

    Args:
        path: What goes, if it is there.

    Raises:
        TfoptError: It cannot be removed.
    """
    with atomic_set() as outputs:
        outputs.remove(path)


def _begin(path: str | os.PathLike[str]) -> _Member:
    final = _resolved(path)
    name = os.fspath(path)
    try:
        if final is None:
            claim = _claims.work_claim()
            return _Member(name, pathlib.Path("stream"), claim, [], is_stream=True)
        for attempt in range(_ATTEMPTS):
            created = _make_folder(final.parent)
            try:
                _recover(final)
                claim = _claims.Claim(final.parent, _claims.prefix_for(final.name))
                return _Member(name, final, claim, created)
            except FileNotFoundError:
                # Another process has removed the folder that it had made.
                if attempt == _ATTEMPTS - 1:
                    raise
            except BaseException:
                _remove_folders(created)
                raise
    except OSError as error:
        raise _errors.cannot_write(path, error) from error
    raise AssertionError("unreachable")


def _resolved(path: str | os.PathLike[str]) -> pathlib.Path | None:
    """Returns where a path leads; None if to a device or pipe."""
    if _STREAM.fullmatch(os.path.abspath(path)):
        return None
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return None
    except (OSError, ValueError):
        pass  # it is going to be made, or fails there
    return pathlib.Path(os.path.realpath(path))


def _make_folder(folder: pathlib.Path) -> list[pathlib.Path]:
    """Makes a folder; returns it and its parents that were made, the deepest first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_folders(folders: Iterable[pathlib.Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # others use it now
            folder.rmdir()


def _clear(member: _Member) -> None:
    member.claim.remove()
    _remove_folders(member.created)


def _note(members: list[_Member]) -> None:
    """Notes what is to be done, so that another process can complete it."""
    main = members[-1].claim.folder
    moves = {}
    for member in members:
        new = 0 if member.goes else member.temporary.stat().st_ino
        moves[member.claim.folder.name] = [new, _inode(member.final)]
        note = os.path.relpath(main / _COMMITTED, member.claim.folder)
        (member.claim.folder / _SET).write_bytes(os.fsencode(note))
    draft = main / f"{_COMMITTED}.new"
    draft.write_text(json.dumps(moves), encoding="utf-8")
    _replacing.sync(draft)
    os.replace(draft, main / _COMMITTED)
    _replacing.sync(main)


def _pour(member: _Member) -> None:
    """Writes content to a device, a pipe, or what standard output leads to."""
    name = os.path.abspath(member.path)
    stream = _STREAM.fullmatch(name)
    target: int | str = member.path
    if stream:
        # Opened anew, a file that output leads to would begin again.
        target = os.dup(_NUMBERS.get(name) or int(stream[1] or stream[2]))
    with member.temporary.open("rb") as new, open(target, "wb") as old:
        shutil.copyfileobj(new, old)


def _put_in_place(members: list[_Member]) -> None:
    undo: list[Callable[[], None]] = []
    try:
        for member in members:
            undo.append(_put(member, keep_old=len(members) > 1))
    except KeyboardInterrupt:
        # The set counts as written: complete it, which takes no time.
        for member in members[len(undo) :]:
            _put(member, keep_old=False)
        raise
    except BaseException:
        for back in reversed(undo):
            back()
        (members[-1].claim.folder / _COMMITTED).unlink(missing_ok=True)
        raise


def _put(member: _Member, *, keep_old: bool) -> Callable[[], None]:
    if member.goes:
        return _replacing.withdraw(member.final, member.claim.folder)
    try:
        return _replacing.replace(member.temporary, member.final, keep_old=keep_old)
    except OSError as error:
        raise _errors.cannot_write(member.path, error) from error


def _recover(final: pathlib.Path) -> None:
    """Completes the set of a dead process that an output belongs to; else cleans up."""
    for folder in _claims.leftovers(final.parent, _claims.prefix_for(final.name)):
        move = _noted(folder)
        if move is None:
            _replacing.rescue(folder, final)
        else:
            _complete(folder / final.name, final, *move)
        _claims.remove_tree(folder)


def _complete(temporary: pathlib.Path, final: pathlib.Path, new: int, old: int) -> None:
    """Does one step of a set, unless it is done or somebody else has written there."""
    if _inode(final) not in (0, old):
        return
    if new and _inode(temporary) == new:
        with contextlib.suppress(TfoptError):  # something else stands there by now
            _replacing.check(temporary, final)
            _replacing.replace(temporary, final, keep_old=False)
    elif not new and _inode(final):
        _replacing.withdraw(final, temporary.parent)


def _noted(folder: pathlib.Path) -> tuple[int, int] | None:
    """Returns the inodes of the new and the old output, if its set was complete."""
    try:
        place = folder / os.fsdecode((folder / _SET).read_bytes())
        new, old = json.loads(place.read_text(encoding="utf-8"))[folder.name]
        return int(new), int(old)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _inode(path: pathlib.Path) -> int:
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return 0
