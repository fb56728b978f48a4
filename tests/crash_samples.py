"""Kills a writer with SIGKILL at a chosen moment, and judges what it leaves.

A writer runs in a fork, which is a session of its own. Its moments are the calls that
change files: Python announces them (`sys.addaudithook`), and `fsync` is announced here.
So every moment between two changes can be hit on purpose; moments inside of native
code, and in the middle of a write, are hit by the clock.
"""

import atexit
import contextlib
import dataclasses
import os
import pathlib
import random
import signal
import sys
import time

_CHANGES = {
    *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink"),
    *("os.chmod", "os.truncate", "fcntl.flock", "tfopt.fsync"),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ORPHAN_SECONDS = 10
_HANG_SECONDS = 600
TEMPORARY = (".tfopt-", "tfopt-", "tmp")


@dataclasses.dataclass
class Outcome:
    """How a run of a writer ended.

    Attributes:
        killed: Whether it was killed before it was done.
        events: Changes of files that it began.
        seconds: From the first change to the end.
        code: Exit code, of a run that was not killed.
        orphans: Whether processes of it lived on.
    """

    killed: bool
    events: int
    seconds: float
    code: int | None
    orphans: bool = False


class _Watch:
    """Counts changes below some folders, and kills the process at one of them."""

    def __init__(self, folders, at, report):
        self._folders = [os.fsencode(folder) for folder in folders]
        self._at = at
        self._report = report
        self._pid = os.getpid()
        self.count = 0

    def install(self):
        plain = os.fsync

        def fsync(descriptor):
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            sys.audit("tfopt.fsync", path)
            plain(descriptor)

        os.fsync = fsync
        sys.addaudithook(self._hook)

    def _hook(self, event, arguments):
        if event == "open":
            path, _, flags = arguments
            if not flags or not flags & _WRITING:
                return
        elif event not in _CHANGES:
            return
        elif event == "fcntl.flock":
            path = self._folders[0]
        else:
            path = arguments[0]
        if os.getpid() != self._pid or not self._is_below(path):
            return
        if self._at is not None and self.count == self._at:
            os.kill(os.getpid(), signal.SIGKILL)
        if not self.count:
            os.write(self._report, b"1")
        self.count += 1

    def _is_below(self, path):
        if isinstance(path, int) or path is None:
            return False
        name = os.fsencode(os.path.abspath(os.fsdecode(path)))
        return any(name.startswith(folder) for folder in self._folders)


def run(writer, folders, *, at=None, after=None, group=False):
    """Runs a writer in a fork.

    Args:
        writer: Function without arguments.
        folders: Below which changes count.
        at: Number of the change before which it is killed.
        after: Seconds after the first change after which it is killed.
        group: Whether `after` kills its children with it.
    """
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_writer(writer, folders, at, theirs)
    os.close(theirs)
    os.set_blocking(ours, True)
    begun = os.read(ours, 1)
    start = time.monotonic()
    if begun and after is not None:
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(pid, signal.SIGKILL)
    status = _wait(pid)
    seconds = time.monotonic() - start
    count = int(os.read(ours, 20) or 0)
    os.close(ours)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    code = None if killed else os.waitstatus_to_exitcode(status)
    return Outcome(killed, count, seconds, code, _orphans(pid))


def _be_writer(writer, folders, at, report):
    os.setsid()
    code = 1
    try:
        sink = os.open(
            os.environ.get("CRASH_LOG", os.devnull),
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
        )
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        watch = _Watch(folders, at, report)
        watch.install()
        try:
            code = writer() or 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else bool(stop.code)
        except BaseException:
            import traceback

            os.write(2, traceback.format_exc().encode())
        os.write(report, str(watch.count).encode())
        atexit._run_exitfuncs()  # as at the end of any process
    finally:
        os._exit(code)


def _wait(pid):
    deadline = time.monotonic() + _HANG_SECONDS
    pause = 0.001
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(pause)
        pause = min(0.02, pause * 1.2)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"The writer hung for {_HANG_SECONDS} seconds.")


def _orphans(pid):
    """Returns whether children of a writer live on; ends them."""
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while time.monotonic() < deadline:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return True


def fast_place():
    """Returns a folder in memory, if there is one, else None."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def snapshot(paths):
    """Returns the content of each file, and of each folder by name; None if absent."""
    found = {}
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            files = sorted(item for item in path.rglob("*") if item.is_file())
            names = [item.relative_to(path).as_posix() for item in files]
            found[path.name] = {
                name: item.read_bytes() for name, item in zip(names, files, strict=True)
            }
        else:
            found[path.name] = path.read_bytes() if path.exists() else None
    return found


def leftovers(folder, temporary):
    """Returns what is left beside outputs and in the place for temporary files."""
    beside = [
        str(path.relative_to(folder))
        for path in pathlib.Path(folder).rglob("*")
        if path.name.startswith(TEMPORARY)
    ]
    # TensorFlow's own, which a killed process leaves and nobody can tell apart.
    work = [name for name in os.listdir(temporary) if "autograph" not in name]
    return beside + sorted(work)


@dataclasses.dataclass
class Case:
    """A writer under test.

    Attributes:
        name: Of the tool or function.
        old, new: Write the old and the new output into the current `out`.
        outputs: Paths of the outputs.
        normal: Makes content comparable that differs from run to run.
    """

    name: str
    old: object
    new: object
    outputs: tuple
    normal: object = staticmethod(lambda content: content)


@dataclasses.dataclass
class Tally:
    """What came out of many runs."""

    runs: int = 0
    killed: int = 0
    old: int = 0
    new: int = 0
    mixed: int = 0
    broken: list = dataclasses.field(default_factory=list)
    left: int = 0
    uncleaned: list = dataclasses.field(default_factory=list)
    orphans: int = 0
    failed: list = dataclasses.field(default_factory=list)
    events: int = 0
    seconds: float = 0.0

    @property
    def is_good(self):
        return not (self.broken or self.uncleaned or self.orphans or self.failed)


def crash(case, folder, temporary, *, runs, seed, by_clock=0.3, recover=None):
    """Kills a writer many times and judges each time.

    Args:
        case: The writer.
        folder: Where its outputs are.
        temporary: Where temporary files are.
        runs: How often.
        seed: Of the moments.
        by_clock: Share of kills by the clock.
        recover: Called with the outputs where a set is mixed, to complete it.
    """
    folders = (folder,)
    old, new, whole = _references(case, folders)
    tally = Tally(events=whole.events, seconds=whole.seconds)
    drawn = random.Random(seed)
    moments = list(range(whole.events))
    drawn.shuffle(moments)
    for number in range(runs):
        assert run(case.old, folders).code == 0
        if drawn.random() < by_clock:
            after = drawn.uniform(0, whole.seconds)
            outcome = run(case.new, folders, after=after, group=drawn.random() < 0.5)
            moment = f"{after:.4f} s"
        else:
            moment = moments[number % len(moments)]
            outcome = run(case.new, folders, at=moment)
        tally.runs += 1
        tally.killed += outcome.killed
        tally.orphans += outcome.orphans
        if not outcome.killed and outcome.code != 0:
            tally.failed.append((moment, f"exit {outcome.code}"))
        _judge(case, tally, old, new, moment, recover)
        tally.left += bool(leftovers(folder, temporary))
        again = run(case.new, folders)
        found = case.normal(snapshot(case.outputs))
        if again.code != 0 or found != new:
            tally.failed.append((moment, f"again: exit {again.code}"))
        if remains := leftovers(folder, temporary):
            tally.uncleaned.append((moment, remains))
    return tally


def _references(case, folders):
    """Returns the old and the new content, and how a whole run went."""
    assert run(case.old, folders).code == 0, f"{case.name}: the old output"
    old = case.normal(snapshot(case.outputs))
    whole = run(case.new, folders)
    assert whole.code == 0, f"{case.name}: the new output"
    new = case.normal(snapshot(case.outputs))
    assert whole.events, f"{case.name}: nothing was seen"
    same = [name for name in old if old[name] == new[name] and old[name] is not None]
    assert not same, f"{case.name}: {same} cannot be told apart"
    return old, new, whole


def _judge(case, tally, old, new, moment, recover):
    found = case.normal(snapshot(case.outputs))
    if found == old:
        tally.old += 1
        return
    if found == new:
        tally.new += 1
        return
    wrong = [name for name in found if found[name] not in (old[name], new[name])]
    if wrong or recover is None:
        tally.broken.append((moment, wrong or sorted(found)))
        return
    tally.mixed += 1
    recover(case.outputs)
    if case.normal(snapshot(case.outputs)) != new:
        tally.broken.append((moment, "not completed"))
