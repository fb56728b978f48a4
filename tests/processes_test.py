"""How child processes start, how they end, and what they said."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from tfopt import _processes

ROOT = pathlib.Path(__file__).parent.parent
CHILD = """
import os, sys, time
from tfopt import _processes

def run(request):
    if "pid" in request:
        with open(request["pid"], "w") as file:
            file.write(str(os.getpid()))
        time.sleep(60)
    if "signal" in request:
        os.kill(os.getpid(), request["signal"])
    if "error" in request:
        raise ValueError(request["error"])
    return {"twice": 2 * request["number"], "heavy": "tensorflow" in sys.modules}

if __name__ == "__main__":
    _processes.answer(run)
"""


@pytest.fixture
def ask(tmp_path):
    """Asks a child that runs the code above."""
    (tmp_path / "some_child.py").write_text(CHILD)
    settings = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}

    def call(request, **options):
        return _processes.ask("some_child", request, settings=settings, **options)

    return call


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("is_quiet", [True, False])
def test_an_answer(ask, is_quiet):
    found = ask({"number": float("inf")}, is_quiet=is_quiet)
    assert found == {"twice": float("inf"), "heavy": False}


def test_a_death_with_last_words(ask):
    with pytest.raises(_processes.Death, match=r"^exit code 1: ValueError: no\. Yes$"):
        ask({"error": "no.\nYes"})
    with pytest.raises(_processes.Death, match=r"^SIGSEGV$"):
        ask({"signal": signal.SIGSEGV})


def test_what_takes_too_long_is_ended(ask, tmp_path):
    with pytest.raises(TimeoutError, match="no answer in 3 s"):
        ask({"pid": str(tmp_path / "pid")}, timeout_s=3)
    assert not is_alive(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("is_quiet", [True, False])
def test_an_interrupt_ends_the_child(ask, tmp_path, is_quiet):
    file = tmp_path / "pid"

    def interrupt():
        deadline = time.monotonic() + 30
        while not (file.exists() and file.read_text()):
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        ask({"pid": str(file)}, timeout_s=40, is_quiet=is_quiet)
    assert not is_alive(int(file.read_text()))


@pytest.mark.parametrize("is_quiet", [True, False])
def test_a_child_ends_with_a_killed_parent(ask, tmp_path, is_quiet):
    file = tmp_path / "pid"
    code = (
        "from tfopt import _processes; "
        f"_processes.ask('some_child', {{'pid': {str(file)!r}}}, is_quiet={is_quiet})"
    )
    paths = os.pathsep.join([str(ROOT), str(tmp_path)])
    parent = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}
    )
    assert comes_true(lambda: file.exists() and file.read_text())
    parent.kill()
    parent.wait()
    child = int(file.read_text())
    assert comes_true(lambda: not is_alive(child))


def comes_true(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_process_that_ends_by_itself_is_not_killed():
    def start(code):
        return subprocess.Popen([sys.executable, "-c", code])

    assert _processes.end(start("raise SystemExit(3)"), grace_s=20) == 3
    assert _processes.end(start("import time; time.sleep(60)")) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ""),
        ("INFO: ready\nI0000 00:00:1.5  7 a.cc:1] hello\n", ""),
        ("2026-01-01 00:00:00.1: F tf/a.cc:3] Check failed: x\n*** stack\n", "Check"),
        ("an error: first\nsomething else\n", "an error: first"),
        ("first\nlast\n", "last"),
        ("E0000 00:00:1.5 7 a.cc:1] a crror\n", "a crror"),
        ("terminate called\n  what():  std::bad_alloc\n", "what(): std::bad_alloc"),
        ("\x1b[1mLLVM ERROR: no\x1b[0m\n#0 0x7f\n", "LLVM ERROR: no"),
        ("Traceback\nx.NotFoundError: a\n\n  b\n", "x.NotFoundError: a b"),
    ],
)
def test_last_words(log, words):
    found = _processes.last_words(log)
    assert found.startswith(words)
    assert bool(found) == bool(words)


def test_names_of_ends():
    assert _processes.how_it_ended(0) == "exit code 0"
    assert _processes.how_it_ended(-6) == "SIGABRT"
    assert _processes.how_it_ended(-(signal.SIGRTMIN + 3)).startswith("signal ")


def test_the_tail_of_a_log(tmp_path):
    with (tmp_path / "log").open("w+b") as log:
        log.write(b"x" * 100 + "\u00e4nd".encode())
        log.flush()
        assert _processes.tail(log, 4) == "\u00e4nd"
        assert len(_processes.tail(log)) == 103
