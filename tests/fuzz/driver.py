"""Runs the cases of a reader in child processes, and counts what comes of them.

A process that has made its samples forks a child for the cases. The child notes in
shared memory which case it is at and since when, so that a crash, an endless case and
the memory that a case takes are known by its number; the next child goes on behind it.
The same seed and number always give the same case.
"""

import collections
import contextlib
import dataclasses
import json
import mmap
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PAGE = os.sysconf("SC_PAGE_SIZE")
KINDS = ("read", "named error", "wrong exception", "memory", "hang", "crash")
FAILURES = KINDS[2:]
KEPT_FINDINGS = 60
_ANSWER = "tfopt-fuzz: "


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one case may take."""

    seconds: float = 5.0
    memory_bytes: int = 512 << 20


class Status:
    """What a child notes of its work, in memory that its parent shares.

    Attributes by name: see `FIELDS`; all are float64.
    """

    FIELDS = (
        *("case", "since", "slowest", "slowest_case", "peak_bytes", "peak_case"),
        *KINDS,
    )

    def __init__(self):
        self._memory = mmap.mmap(-1, PAGE)

    def __getitem__(self, name):
        return struct.unpack_from("d", self._memory, 8 * self.FIELDS.index(name))[0]

    def __setitem__(self, name, value):
        struct.pack_into("d", self._memory, 8 * self.FIELDS.index(name), value)


@dataclasses.dataclass
class Result:
    """What came of the cases of one reader."""

    reader: str
    cases: int
    counts: dict[str, int]
    slowest_s: float
    slowest_case: int
    peak_bytes: int
    peak_case: int
    seconds: float
    findings: list[dict]

    @property
    def failures(self):
        return {kind: self.counts[kind] for kind in FAILURES if self.counts[kind]}

    def row(self):
        """The cells of a markdown table."""
        cells = [self.reader, f"{self.cases:,}"]
        cells += [f"{self.counts[kind]:,}" for kind in KINDS]
        cells += [
            f"{1000 * self.slowest_s:.0f} (#{self.slowest_case})",
            f"{self.peak_bytes / (1 << 20):.0f} (#{self.peak_case})",
            f"{self.cases / self.seconds:.0f}",
        ]
        return "| " + " | ".join(cells) + " |"


HEAD = (
    "| reader | cases | " + " | ".join(KINDS) + " | slowest ms | peak MiB | cases/s |\n"
    "|---|" + "---:|" * (len(KINDS) + 4)
)


def fuzz(names, *, cases, samples, seed=0, limits=None):
    """Runs cases of readers, one after the other, in a process of their own.

    Args:
        names: Of the readers, see `readers`.
        cases: How many of each; or by name.
        samples: Folder of the files that are damaged; what is missing is made.
        seed: Of all cases.
        limits: What a case may take.

    Yields:
        A `Result` for each reader.

    Raises:
        RuntimeError: The process itself failed: no case, but the fuzzer is wrong.
    """
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="tfopt-fuzz-", dir=_fast_folder()) as work:
        request = {
            "cases": {
                name: cases[name] if isinstance(cases, dict) else cases
                for name in names
            },
            "seed": seed,
            "limits": dataclasses.asdict(limits),
            "samples": os.fspath(samples),
            "work": work,
        }
        log = pathlib.Path(work) / "log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "fuzz.driver", json.dumps(request)],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
                    "TF_CPP_MIN_LOG_LEVEL": "3",
                },
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        with process:
            for line in process.stdout:
                if line.startswith(_ANSWER):
                    yield Result(**json.loads(line.removeprefix(_ANSWER)))
        if process.returncode:
            words = log.read_text(errors="replace")[-4000:]
            raise RuntimeError(f"the fuzzer of {', '.join(names)} failed:\n{words}")


def _fast_folder():
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def replay(name, case, *, samples, seed=0):
    """Runs one case in this process, and returns the exception it ends with."""
    with tempfile.TemporaryDirectory(prefix="tfopt-fuzz-") as work:
        reader = _reader(name, samples, work)
        given = reader.mutate(_random(seed, name, case))
        try:
            reader.read(given)
        except BaseException as error:
            return error
    return None


def _reader(name, samples, work):
    from fuzz import readers

    return readers.find(name)(pathlib.Path(samples), pathlib.Path(work))


def _random(seed, name, case):
    return random.Random(f"{seed} {name} {case}")


def main(request):
    """The process of readers: prints a line of JSON for each."""
    from fuzz import samples

    samples.make(request["samples"])
    for name, cases in request["cases"].items():
        work = pathlib.Path(request["work"]) / name
        work.mkdir()
        start = time.monotonic()
        reader = _reader(name, request["samples"], work)
        answer = _run(reader, name, cases, request, work)
        answer["seconds"] = time.monotonic() - start
        print(_ANSWER + json.dumps(answer), flush=True)
        shutil.rmtree(work, ignore_errors=True)


def _run(reader, name, cases, request, work):
    """Runs the cases of one reader; returns the fields of a `Result`."""
    limits = Limits(**request["limits"])
    status = Status()
    log = work / "findings.jsonl"
    log.touch()
    position = 0
    while position < cases:
        status["since"] = 0
        child = os.fork()
        if child == 0:
            code = 1
            try:
                job = (name, request["seed"], position, cases)
                _work(reader, job, limits, status, log)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        kind, how = _watch(child, limits, status)
        if kind is None:
            break
        if kind == "broken":
            raise RuntimeError(f"case {int(status['case'])} cannot be made: {how}")
        case = int(status["case"])
        status[kind] += 1
        with log.open("a") as file:
            file.write(json.dumps({"kind": kind, "case": case, "what": how}) + "\n")
        position = case + 1
    return {
        "reader": name,
        "cases": cases,
        "counts": {kind: int(status[kind]) for kind in KINDS},
        "slowest_s": status["slowest"],
        "slowest_case": int(status["slowest_case"]),
        "peak_bytes": int(status["peak_bytes"]),
        "peak_case": int(status["peak_case"]),
        "findings": [json.loads(line) for line in log.read_text().splitlines()],
    }


def _watch(child, limits, status):
    """Waits for a child; returns the kind of its failure, if any, and words."""
    killed = False
    while True:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            break
        since = status["since"]
        if since and time.monotonic() - since > limits.seconds and not killed:
            os.kill(child, signal.SIGKILL)
            killed = True
        time.sleep(0.005)
    if killed:
        return "hang", f"no end within {limits.seconds:g} s"
    if os.WIFSIGNALED(code):
        return "crash", signal.Signals(os.WTERMSIG(code)).name
    if os.WEXITSTATUS(code) == 0:
        return None, ""
    if status["since"]:
        return "crash", f"exit code {os.WEXITSTATUS(code)}"
    return "broken", f"exit code {os.WEXITSTATUS(code)}"


def _work(reader, job, limits, status, log):
    """Runs cases until the last one."""
    name, seed, first, last = job
    _limit_memory(limits)
    before = _peak_memory()
    seen = collections.Counter()
    for case in range(first, last):
        status["case"], status["since"] = case, 0
        given = reader.mutate(_random(seed, name, case))
        start = time.monotonic()
        status["since"] = start
        kind, what = _outcome(reader, given)
        seconds = time.monotonic() - start
        status["since"] = 0
        if seconds > status["slowest"]:
            status["slowest"], status["slowest_case"] = seconds, case
        taken = _peak_memory() - before
        if taken > status["peak_bytes"]:
            status["peak_bytes"], status["peak_case"] = taken, case
        status[kind] += 1
        if kind in FAILURES:
            seen[what] += 1
            if seen[what] <= 3 and len(seen) <= KEPT_FINDINGS:
                with log.open("a") as file:
                    item = {"kind": kind, "case": case, "what": what}
                    file.write(json.dumps(item) + "\n")


def _outcome(reader, given):
    try:
        reader.read(given)
    except BaseException as error:
        return judge(error, reader.names(given))
    return "read", ""


def judge(error, names):
    """Returns the kind of an exception, and words about it.

    An error is named if it is a TfoptError or ValueError whose message has one of the
    names, say the file's. One that was raised for want of memory is a failure whatever
    became of it: the file asked for more than it may.
    """
    from tfopt.types import TfoptError

    link = error
    while link is not None:
        if isinstance(link, MemoryError):
            return "memory", _where(link)
        link = link.__cause__ or link.__context__
    if not isinstance(error, (TfoptError, ValueError)):
        return "wrong exception", _where(error)
    text = str(error)
    if not any(name in text for name in names):
        return "wrong exception", f"names no file: {_where(error)}"
    return "named error", ""


def _where(error):
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/tfopt/" in frame.filename]
    place = ""
    if ours:
        file = pathlib.Path(ours[-1].filename)
        place = f" at {file.parent.name}/{file.name}:{ours[-1].lineno}"
    message = re.sub(r"\d+", "N", str(error))[:90]
    return f"{type(error).__name__}{place}: {message}"


def _limit_memory(limits):
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * PAGE
    limit = size + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Reset, so that the peak is that of the cases.
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def _peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
