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
from typing import Any, TypeVar

import numpy as np

from tfopt import _processes
from tfopt.runner._model_file import Entry
from tfopt.runner._port import Port
from tfopt.types import TfoptError

_START_SECONDS = 120.0  # to start Python, on a busy machine
_END_SECONDS = 5.0
_MAX_LOG_BYTES = 1 << 20
_START = _processes.server_code("tfopt.runner._worker")
_ERRORS = {"ValueError": ValueError, "TfoptError": TfoptError}

_AnyPeer = TypeVar("_AnyPeer", bound="_Peer")

_logger = logging.getLogger(__name__)


class Crash(RuntimeError):
    """The process of an interpreter ended, or was ended as it took too long."""


class Processes:
    """Starts the processes of engines.

    The first one loads the model and stays as the template; others are its forks and
    share its packed weights. Engines with several threads, and models whose template
    fails, get processes that start from nothing, of which a spare one is kept.

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
        self._spare: list[_Process] = []
        self._all: set[_Peer] = set()
        self._templates: dict[str, _Process | None] = {}
        self._template_lock = threading.Lock()
        # Reentrant: the garbage collector may call `close` from anywhere.
        self._lock = threading.RLock()
        self._is_closed = False

    def open(self, path: str, *, num_threads: int, entry: Entry) -> _Peer:
        """Returns a process that has loaded a model.

        Raises:
            Crash: The process ended while it loaded the model.
            RuntimeError, ValueError: The interpreter refuses the model.
            TfoptError: It cannot be started, or the Runner is closed.
        """
        request = {
            "do": "open",
            "path": path,
            "num_threads": num_threads,
            "entry": entry,
            "allocate": False,
        }
        self._check_open()
        if num_threads == 1:
            with self._template_lock:
                if path not in self._templates:
                    self._templates[path] = self._load_template(request)
                template = self._templates[path]
                try:
                    if template is not None:
                        return self._enlist(template.fork())
                except Crash:  # of the template, which someone ended
                    del self._templates[path]
        process = self.take()
        try:
            process.ask(request)
        except BaseException:
            self.give(process)
            raise
        return process

    def take(self) -> _Process:
        """Returns a process that waits for requests.

        Raises:
            TfoptError: It cannot be started, or the Runner is closed.
        """
        with self._lock:
            if self._spare:
                return self._spare.pop()
        return self._enlist(_Process(self._timeout_s))

    def give(self, process: _Peer) -> None:
        """Takes a process back as the spare one, or ends it."""
        with self._lock:
            if (
                isinstance(process, _Process)
                and process.is_usable
                and not self._is_closed
                and not self._spare
            ):
                self._spare.append(process)
                return
            self._all.discard(process)
        process.end()

    def close(self) -> None:
        """Ends all processes, whatever they are doing."""
        with self._lock:
            self._is_closed = True
            # Forks first, as their template buries them.
            processes = sorted(self._all, key=lambda peer: isinstance(peer, _Process))
            self._all.clear()
            self._spare.clear()
        for process in processes:
            process.end()

    def _load_template(self, request: dict[str, Any]) -> _Process | None:
        process = self.take()
        try:
            process.ask({**request, "allocate": True})
        except (RuntimeError, ValueError) as error:
            # Sizes of real inputs may do; if not, they will say it better.
            _logger.debug("weights are not shared: %s", error)
            self.give(process)
            return None
        except BaseException:
            self.give(process)
            raise
        return process

    def _enlist(self, process: _AnyPeer) -> _AnyPeer:
        with self._lock:
            if not self._is_closed:
                self._all.add(process)
                return process
        process.end()
        self._check_open()
        return process

    def _check_open(self) -> None:
        if self._is_closed:
            raise TfoptError("The Runner is closed. Expected an open one")


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
        self._process: _Peer | None = processes.open(
            path, num_threads=num_threads, entry=entry
        )

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
    def _opened(self) -> _Peer:
        if self._process is None:
            raise RuntimeError("the engine is closed")
        return self._process


class _Peer:
    """A process, and the questions it is asked, one at a time.

    Attributes:
        is_usable: Whether its last answer was complete.
    """

    def __init__(self, end: socket.socket, log: Any, timeout_s: float | None):
        self.is_usable = False
        self._port = Port(end, is_runner=True)
        # What C++ code writes to stderr; the last line is often the reason of an end.
        self._log = log
        self._timeout_s = timeout_s

    def ask(
        self,
        request: dict[str, Any],
        arrays: Sequence[np.ndarray] = (),
        *,
        descriptor: int | None = None,
    ) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Sends a request; returns the answer with views of its arrays.

        Raises:
            Crash: The process ended.
            TfoptError, ValueError, RuntimeError: What the request raised there.
        """
        self.is_usable = False  # until the answer is complete, whatever happens
        try:
            self._port.send(request, arrays, descriptor=descriptor)
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
        self._wait(kill=True)
        self._port.close()

    def _wait(self, *, kill: bool) -> int | None:
        """Waits a while for the end; returns the exit code, None if it goes on."""
        raise NotImplementedError

    def _answer(self, timeout_s: float | None) -> tuple[Any, list[np.ndarray]]:
        try:
            answer = self._port.receive(timeout_s)
        except TimeoutError:
            self._wait(kill=True)
            raise Crash(
                f"no answer within {timeout_s:g} s, so its process was ended; a "
                "larger `timeout_s` gives it more time"
            ) from None
        except (EOFError, OSError, ValueError):  # ValueError: no JSON
            raise Crash(self._describe_end()) from None
        self.is_usable = True
        return answer

    def _describe_end(self) -> str:
        code = self._wait(kill=False)
        if code is None:
            self._wait(kill=True)
            return "the process of the interpreter does not answer any more"
        how = f"ended with exit code {code}"
        if code < 0:
            # The exit code is the one that a shell shows.
            how = f"crashed with {_processes.how_it_ended(code)}"
            how += f" (exit code {128 - code})"
        if -code == signal.SIGKILL:
            how += ", perhaps for want of memory"
        words = self._last_words()
        return f"the process of the interpreter {how}" + (f": {words}" if words else "")

    def _last_words(self) -> str:
        try:
            return _processes.last_words(_processes.tail(self._log))
        except ValueError:  # closed meanwhile
            return ""

    def _shorten_log(self) -> None:
        if os.fstat(self._log.fileno()).st_size > _MAX_LOG_BYTES:
            os.ftruncate(self._log.fileno(), 0)


class _Process(_Peer):
    """A process that starts from nothing."""

    def __init__(self, timeout_s: float | None):
        log = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        _append_only(log.fileno())
        self._process, end = _processes.start_server(
            _START,
            log,
            stdin=subprocess.PIPE,  # tells it when this process is gone
        )
        super().__init__(end, log, timeout_s)
        self.lock = threading.Lock()  # of a template, which several threads ask
        try:
            self._answer(_START_SECONDS)
        except (Crash, OSError) as error:
            self.end()
            raise TfoptError(f"Cannot isolate the interpreter: {error}") from error
        except BaseException:
            self.end()
            raise
        _logger.debug("started process %d", self._process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self) -> _Fork:
        """Returns a process that goes on from here.

        Raises:
            Crash: This process, or the new one, ended.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs, self.lock:
                answer, _ = self.ask({"do": "fork"}, descriptor=theirs.fileno())
        except BaseException:
            ours.close()
            raise
        return _Fork(self, answer["pid"], ours, self._log, self._timeout_s)

    def end(self) -> None:
        super().end()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._log.close()

    def _wait(self, *, kill: bool) -> int | None:
        if kill:
            return _processes.end(self._process)
        try:
            return self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return None


class _Fork(_Peer):
    """A fork of a process, which alone can wait for its end."""

    def __init__(
        self,
        template: _Process,
        pid: int,
        end: socket.socket,
        log: Any,
        timeout_s: float | None,
    ):
        super().__init__(end, log, timeout_s)
        self.pid = pid
        self._template = template
        self._is_buried = False
        try:
            self._answer(_START_SECONDS)
        except BaseException:
            self.end()
            raise

    def _wait(self, *, kill: bool) -> int | None:
        if self._is_buried:
            return None
        request = {"do": "wait", "pid": self.pid, "kill": kill, "seconds": _END_SECONDS}
        try:
            with self._template.lock:
                answer, _ = self._template.ask(request)
        except (RuntimeError, ValueError, OSError):  # the template is gone
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            return -signal.SIGKILL
        code = answer["code"]
        self._is_buried = kill or code is not None
        return code


def _append_only(descriptor: int) -> None:
    import fcntl  # not on Windows, where `Processes` has refused already

    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
