"""Progress of long work: drawn by tools on a terminal, and nowhere else."""

import io
import os
import pathlib
import pty
import re
import subprocess
import sys

import pytest

from tfopt import _progress

ROOT = pathlib.Path(__file__).parent.parent
MODEL = ROOT / "testdata" / "basic_pitch" / "saved_model"


def command(target):
    """freeze_graph, which needs no TensorFlow and so starts fast."""
    return [
        sys.executable,
        str(ROOT / "tools" / "freeze_graph.py"),
        f"--input_saved_model_dir={MODEL}",
        f"--output_graph={target}",
    ]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}


def test_a_tool_draws_on_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    tool = subprocess.Popen(
        command(tmp_path / "f.pb"),
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment(),
    )
    os.close(theirs)
    seen = b""
    try:
        while block := os.read(ours, 1 << 16):
            seen += block
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(ours)
    out = tool.communicate()[0]
    assert tool.returncode == 0, seen
    assert b"freezing" in seen
    rest = seen.rpartition(b"\x1b[2K")[2]  # after the line was erased
    assert not re.sub(rb"\x1b\[[?0-9;]*[A-Za-z]|\s", b"", rest)
    assert b"\x1b" not in out
    assert b"f.pb" in out


def test_a_tool_is_silent_elsewhere(tmp_path):
    done = subprocess.run(
        command(tmp_path / "f.pb"), capture_output=True, env=environment(), check=True
    )
    assert done.stderr == b""
    assert b"\x1b" not in done.stdout


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self):
        return True


def as_terminal(monkeypatch):
    """Makes stderr a terminal from now on; pytest sets it anew for each test."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_the_library_draws_nothing(monkeypatch):
    terminal = as_terminal(monkeypatch)
    assert _progress.display() is None
    with _progress.task("working", total=2) as advance:
        advance()
        advance(what="still")
    assert list(_progress.each(range(3), "counting")) == [0, 1, 2]
    assert terminal.getvalue() == ""


def test_tasks_are_drawn_with_what_is_done_and_end(monkeypatch):
    terminal = as_terminal(monkeypatch)
    with _progress.shown():
        drawn = _progress.display()
        with _progress.task("[red]evil\x1b[2J", total=4) as advance:
            advance(3)
            task = drawn.tasks[0]
            assert (task.completed, task.total) == (3, 4)
            drawn.refresh()
            for _ in _progress.each(iter("ab"), "unknown number"):
                assert drawn.tasks[1].total is None
                drawn.refresh()
            advance(0, what="other words")
            drawn.refresh()
        assert not drawn.tasks
        print("a log line", file=sys.stderr)
    assert _progress.display() is None
    assert sys.stderr is terminal
    text = terminal.getvalue()
    assert r"[red]evil\x1b[2J" in text
    assert "3/4" in text
    assert "other words" in text
    assert "a log line" in text


def test_errors_pass_and_take_the_line_away(monkeypatch):
    terminal = as_terminal(monkeypatch)
    with (
        pytest.raises(KeyboardInterrupt),
        _progress.shown(),
        _progress.task("working"),
    ):
        raise KeyboardInterrupt
    assert _progress.display() is None
    assert sys.stderr is terminal


def test_nothing_is_drawn_where_no_terminal_is(monkeypatch):
    for stream in (None, io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        with _progress.shown():
            assert _progress.display() is None
