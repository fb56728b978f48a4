"""What child processes have in common: how they start, how they end, their last words.

Nothing here imports TensorFlow, so that a child may do without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

from tfopt import artifacts

_ROOT = pathlib.Path(__file__).parents[1]
_LOG_BYTES = 1 << 16
_LONGEST = 500
# After a Ctrl-C, which children in the same terminal get as well.
_GRACE_S = 0.25
# Between looks at whether the parent is still there.
_WATCH_S = 0.5
# What C++ says before it ends a process.
_FATAL = re.compile(
    r"^F\d{4} |LLVM ERROR|Check failed|Assertion .* failed|terminate called|what\(\):"
    r"|free\(\)|corrupt|^loc\(.*error: |^error: |TFLITE_.*failed"
)
# The place in its source, before the message.
_PLACE = re.compile(
    r"^[FEWI]\d{4} .*?\] |^[\d-]+ [\d:.]+: [FEWI] \S+ |^\S+: [\w/.]+:\d+: |^loc\("
)
_CHATTER = re.compile(r"INFO:|[IW]\d{4} |[\d-]+ [\d:.]+: [IW] ")
# The line in which Python names an exception that wasn't caught.
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception)\b")
_ANSI = re.compile(r"\x1b\[\d+m")
_SERVER = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from {package} import {module}; {module}.main(int(sys.argv[1]))"
)


class Death(Exception):
    """A process ended without an answer; the message says how, with its last words."""


def ask(
    module: str,
    request: Any,
    *,
    timeout_s: float | None = None,
    settings: Mapping[str, str] | None = None,
    is_quiet: bool = True,
) -> Any:
    """Runs a module in a process of its own, which answers one request.

    Args:
        module: Calls `answer` when it is run.
        request: Plain data, for JSON.
        timeout_s: Seconds that it may take; None: no limit.
        settings: Environment variables to set.
        is_quiet: Whether what it writes is kept for its last words, and it is in a
            session of its own, so that all that it starts can be ended with it.
            Otherwise it writes to where this process does.

    Returns:
        The answer, as JSON reads it.

    Raises:
        TimeoutError: It took too long; it was ended.
        Death: It ended without an answer.
    """
    with artifacts.temporary_folder() as folder:
        paths = [pathlib.Path(folder) / name for name in ("request", "answer")]
        paths[0].write_text(json.dumps(request), encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, paths), str(os.getpid())],
            env=environment(settings or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if is_quiet else None,
            stderr=subprocess.PIPE if is_quiet else None,
            start_new_session=is_quiet,
        )
        try:
            _, log = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"no answer in {timeout_s:.0f} s") from None
        finally:
            end(process, grace_s=0 if is_quiet else _GRACE_S, is_group=is_quiet)
        if process.returncode or not paths[1].exists():
            words = last_words((log or b"").decode("utf-8", "replace"))
            how = how_it_ended(process.returncode)
            raise Death(f"{how}: {words}" if words else how)
        return json.loads(paths[1].read_text(encoding="utf-8"))


def answer(function: Callable[[Any], Any]) -> None:
    """Answers the request of `ask`, in the child, which ends with who asked.

    Args:
        function: Makes the answer, plain data, of the request.
    """
    request, path = map(pathlib.Path, sys.argv[1:3])
    watch = threading.Thread(target=_end_with, args=[int(sys.argv[3])], daemon=True)
    watch.start()
    found = function(json.loads(request.read_text(encoding="utf-8")))
    path.write_text(json.dumps(found), encoding="utf-8")


def _end_with(parent: int) -> None:
    """Ends this process, and its own session, once its parent was killed."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a child that imports tfopt from where this one does.

    Args:
        settings: Variables to set beside those of this process.
    """
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        **settings,
    }


def server_code(module: str) -> str:
    """Returns Python code for `start_server` that calls `main` of a module."""
    package, _, name = module.rpartition(".")
    return _SERVER.format(package=package, module=name)


def start_server(
    code: str, log: IO[bytes], *, stdin: int = subprocess.DEVNULL
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Starts a process that is talked to through a socket.

    Args:
        code: See `server_code`.
        log: What it writes to stdout and stderr.
        stdin: As for `subprocess.Popen`.

    Returns:
        The process, and this end of the socket.
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(theirs.fileno()), *sys.path],
                pass_fds=[theirs.fileno()],
                stdin=stdin,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this process
            )
    except BaseException:
        ours.close()
        raise
    return process, ours


def settle() -> None:
    """Makes a server, in the child, leave Ctrl-C to its user and dump no memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ImportError, ValueError):
        import resource

        # A crash is expected here; its memory image would only fill the disk.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def end(
    process: subprocess.Popen[Any], *, grace_s: float = 0, is_group: bool = False
) -> int:
    """Ends a process, if it is still there; returns its exit code.

    Args:
        process: As `subprocess.Popen` gave it.
        grace_s: Seconds in which it may end by itself.
        is_group: Whether its session is ended with it.
    """
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        if is_group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        return process.wait()
    finally:
        if process.stderr is not None:
            process.stderr.close()


def how_it_ended(code: int) -> str:
    """Returns the name of the signal of an exit code, or the code.

    Example:
        >>> how_it_ended(-11), how_it_ended(3)
        ('SIGSEGV', 'exit code 3')
    """
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def tail(log: IO[bytes], size: int = _LOG_BYTES) -> str:
    """Returns the end of what a process has written to a file.

    Raises:
        ValueError: The file is closed.
    """
    start = max(0, os.fstat(log.fileno()).st_size - size)
    return os.pread(log.fileno(), size, start).decode("utf-8", "replace")


def fatal_words(log: str) -> list[str]:
    """Returns the lines in which C++ code says why it ends the process."""
    lines = [" ".join(line.split()) for line in _ANSI.sub("", log).splitlines()]
    return [_PLACE.sub("", line)[:_LONGEST] for line in lines if _FATAL.search(line)]


def last_words(log: str) -> str:
    r"""Returns what a process said about its end, in one line; perhaps nothing.

    Example:
        >>> last_words("I0000 a.cc:1] hi\nF0000 b.cc:2] Check failed: x > 0\n#0 0x7")
        'Check failed: x > 0'
        >>> last_words("Traceback:\n  File x\nValueError: no\nshape")
        'ValueError: no shape'
    """
    fatal = fatal_words(log)
    if fatal:
        return fatal[-1]
    lines = _ANSI.sub("", log).strip().splitlines()
    starts = [n for n, line in enumerate(lines) if _EXCEPTION.match(line)]
    if starts:
        return " ".join(" ".join(lines[starts[-1] :]).split())[:_LONGEST]
    lines = [line.strip() for line in lines]
    lines = [line for line in lines if line and not _CHATTER.match(line)]
    telling = [line for line in lines if "rror" in line] or lines
    return _PLACE.sub("", telling[-1])[:_LONGEST] if telling else ""
