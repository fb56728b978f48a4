"""Interpreters in processes of their own: a model that crashes is an error, no more."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfopt.runner._model_file import Entry
from tfopt.runner._port import Port
from tfopt.types import TfoptError

_START_SECONDS = 120.0  # to start Python, on a busy machine
_END_SECONDS = 5.0
_MAX_LOG_BYTES = 1 << 20
_START = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from tfopt.runner import _worker; _worker.main(int(sys.argv[1]))"
)
_ERRORS = {"ValueError": ValueError, "TfoptError": TfoptError}

_logger = logging.getLogger(__name__)


class Crash(RuntimeError):
    """The process of an interpreter ended, or was ended as it took too long."""


class Processes:
    """Starts processes for engines and keeps one that is free.

    Args:
        timeout_s: Seconds that one answer may take; None: no limit.

    Raises:
        TfoptError: This system cannot do it.
    """

    def __init__(self, timeout_s: float | None):
        if not (hasattr(socket, "recv_fds") and sys.executable):
            raise TfoptError(
                "Cannot isolate the interpreter. Expected a Unix system and a Python "
                "executable that can be started; use isolate=False. Received: "
                f"{sys.platform}, sys.executable={sys.executable!r}"
            )
        self._timeout_s = timeout_s
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        # Reentrant: the garbage collector may call `close` from anywhere.
        self._lock = threading.RLock()
        self._is_closed = False

    def take(self) -> _Process:
        """Returns a process that waits for requests.

        Raises:
            TfoptError: It cannot be started, or the Runner is closed.
        """
        with self._lock:
            if self._idle:
                return self._idle.pop()
        process = _Process(self._timeout_s)
        with self._lock:
            if not self._is_closed:
                self._all.add(process)
                return process
        process.end()
        raise TfoptError("The Runner is closed. Expected an open one")

    def give(self, process: _Process) -> None:
        """Takes a process back as the spare one, or ends it."""
        with self._lock:
            if process.is_usable and not self._is_closed and not self._idle:
                self._idle.append(process)
                return
            self._all.discard(process)
        process.end()

    def close(self) -> None:
        """Ends all processes, whatever they are doing."""
        with self._lock:
            self._is_closed = True
            processes = list(self._all)
            self._all.clear()
            self._idle.clear()
        for process in processes:
            process.end()


class IsolatedEngine:
    """An `Engine` in a process of its own.

    Args:
        processes: Where the process comes from.
        path: The model; also a path below /proc.
        num_threads: Threads of the interpreter.
        entry: The signature.

    Raises:
        Crash: The process ended while it loaded the model.
        RuntimeError, ValueError: The interpreter refuses the model.
    """

    def __init__(
        self, processes: Processes, path: str, *, num_threads: int, entry: Entry
    ):
        self.last_thread = 0
        self._processes = processes
        self._process: _Process | None = processes.take()
        request = {
            "do": "open",
            "path": path,
            "num_threads": num_threads,
            "entry": entry,
        }
        try:
            self._process.ask(request)
        except BaseException:
            self.close()
            raise

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Engine`.

        Raises:
            Crash: The process ended.
        """
        _, outputs = self._opened.ask({"do": "run"}, arrays)
        return [output.copy() for output in outputs]

    def output_shapes(self, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """See `Engine`.

        Raises:
            Crash: The process ended.
        """
        request = {"do": "output_shapes", "shapes": list(shapes)}
        answer, _ = self._opened.ask(request)
        return [tuple(shape) for shape in answer["shapes"]]

    def close(self) -> None:
        """See `Engine`."""
        process, self._process = self._process, None
        if process is not None:
            self._processes.give(process)

    @property
    def _opened(self) -> _Process:
        if self._process is None:
            raise RuntimeError("the engine is closed")
        return self._process


class _Process:
    """One process, and the questions it is asked, one at a time."""

    def __init__(self, timeout_s: float | None):
        self._timeout_s = timeout_s
        self.is_usable = False
        ours, theirs = socket.socketpair()
        # What C++ code writes to stderr; the last line is often the reason of an end.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        _append_only(self._log.fileno())
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs.fileno()), *sys.path],
                stdin=subprocess.PIPE,  # tells it when this process is gone
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for this process
            )
        self._port = Port(ours, is_runner=True)
        try:
            self._answer(_START_SECONDS)
        except (Crash, OSError) as error:
            self.end()
            raise TfoptError(f"Cannot isolate the interpreter: {error}") from error
        except BaseException:
            self.end()
            raise
        _logger.debug("started process %d", self._process.pid)

    def ask(
        self, request: dict[str, Any], arrays: Sequence[np.ndarray] = ()
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Sends a request; returns the answer with views of its arrays.

        Raises:
            Crash: The process ended.
            TfoptError, ValueError, RuntimeError: What the request raised there.
        """
        self.is_usable = False  # until the answer is complete, whatever happens
        try:
            self._port.send(request, arrays)
        except (BrokenPipeError, ConnectionResetError):
            raise Crash(self._describe_end()) from None
        answer, outputs = self._answer(self._timeout_s)
        if "error" in answer:
            self._shorten_log()
            raise _ERRORS.get(answer["error"], RuntimeError)(answer["message"])
        return answer, outputs

    def end(self) -> None:
        """Ends the process and waits until it is gone."""
        self.is_usable = False
        self._process.kill()
        self._process.wait()
        self._port.close()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._log.close()

    def _answer(self, timeout_s: float | None) -> tuple[Any, list[np.ndarray]]:
        try:
            answer = self._port.receive(timeout_s)
        except TimeoutError:
            self._process.kill()
            raise Crash(
                f"no answer within {timeout_s:g} s, so its process was ended; a "
                "larger `timeout_s` gives it more time"
            ) from None
        except (EOFError, OSError, ValueError):  # ValueError: no JSON
            raise Crash(self._describe_end()) from None
        self.is_usable = True
        return answer

    def _describe_end(self) -> str:
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return "the process of the interpreter does not answer any more"
        how = f"ended with exit code {code}"
        if code < 0:
            # The exit code is the one that a shell shows.
            how = f"crashed with {_signal_name(-code)} (exit code {128 - code})"
        if -code == signal.SIGKILL:
            how += ", perhaps for want of memory"
        words = self._last_words()
        return f"the process of the interpreter {how}" + (f": {words}" if words else "")

    def _last_words(self) -> str:
        try:
            size = os.fstat(self._log.fileno()).st_size
            tail = os.pread(self._log.fileno(), 4096, max(0, size - 4096))
        except ValueError:  # closed meanwhile
            return ""
        lines = [line.strip() for line in tail.decode(errors="replace").splitlines()]
        lines = [line for line in lines if line and not line.startswith("INFO:")]
        return lines[-1][:300] if lines else ""

    def _shorten_log(self) -> None:
        if os.fstat(self._log.fileno()).st_size > _MAX_LOG_BYTES:
            os.ftruncate(self._log.fileno(), 0)


def _append_only(descriptor: int) -> None:
    import fcntl  # not on Windows, where `Processes` has refused already

    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
