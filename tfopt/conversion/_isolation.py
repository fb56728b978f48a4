"""Calls the converter in a process of its own: a crash is an error, and no more.

`TFLiteConverter` leaks (about 20 MB a call for a DenseNet121), and some graphs abort
it or make it loop for ever.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import IO, Any

import numpy as np

from tfopt import _processes
from tfopt.conversion import _errors, _lowering, _verification
from tfopt.types import ConversionError, Signature, TfoptError, VerificationError

_START = _processes.server_code("tfopt.conversion._fork_server")
_START_SECONDS = 180.0  # to load TensorFlow, on a busy machine
_END_SECONDS = 5.0
_ERRORS = {
    kind.__name__: kind
    for kind in (TfoptError, ConversionError, VerificationError, ValueError)
}


def is_possible() -> bool:
    """Returns whether this system can isolate conversions."""
    return hasattr(socket, "send_fds") and hasattr(os, "fork") and bool(sys.executable)


class Local:
    """The functions of `_lowering` and `_verification.run`, in this process."""

    lower = staticmethod(_lowering.lower)
    calibrate = staticmethod(_lowering.calibrate)
    recalibrate = staticmethod(_lowering.recalibrate)
    quantize = staticmethod(_lowering.quantize)
    run = staticmethod(_verification.run)


class Isolated:
    """What `Local` does, each call in a process of its own.

    Args:
        time_limit: Seconds that a call may take; None: no limit.
        memory_limit: Bytes that a call may allocate; None: no limit.

    Raises:
        TfoptError: This system cannot do it.
    """

    def __init__(self, time_limit: float | None, memory_limit: int | None):
        if not is_possible():
            raise TfoptError(
                "Cannot isolate the converter. Expected a Unix system and a Python "
                "executable that can be started; use isolate=False. Received: "
                f"{sys.platform}, sys.executable={sys.executable!r}"
            )
        self._limits = (time_limit, memory_limit)
        _start()

    def lower(
        self,
        function: Any,
        options: _lowering.Options,
        calibration: Sequence[Mapping[str, np.ndarray]] = (),
    ) -> bytes:
        """Does what `_lowering.lower` does."""
        return self._call("lower", *_packed(function), options, list(calibration))

    def calibrate(
        self,
        function: Any,
        options: _lowering.Options,
        calibration: Sequence[Mapping[str, np.ndarray]],
    ) -> bytes:
        """Does what `_lowering.calibrate` does."""
        return self._call("calibrate", *_packed(function), options, list(calibration))

    def recalibrate(
        self, content: bytes, calibration: Sequence[Mapping[str, np.ndarray]]
    ) -> bytes:
        """Does what `_lowering.recalibrate` does."""
        return self._call("recalibrate", content, list(calibration))

    def quantize(
        self, content: bytes, options: _lowering.Options, keep: Collection[str] = ()
    ) -> bytes:
        """Does what `_lowering.quantize` does."""
        return self._call("quantize", content, options, sorted(keep))

    def run(
        self,
        content: bytes,
        signature: Signature,
        batches: Sequence[Mapping[str, np.ndarray]],
    ) -> list[dict[str, np.ndarray]]:
        """Does what `_verification.run` does."""
        try:
            return self._call("run", content, signature, list(batches))
        except ConversionError as error:
            raise VerificationError(
                f"The file cannot be run as the model can: {error}"
            ) from error

    def _call(self, job: str, *arguments: Any) -> Any:
        with _lock:
            kind, value = _start().do((job, arguments), *self._limits)
        if kind == "result":
            return value
        if kind == "MemoryError":
            value = _errors.out_of_memory(self._limits[1])
            raise ConversionError(f"The TFLite converter cannot do it: {value}")
        raise _ERRORS[kind](value)


class _Server:
    """A running fork server."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._is_ready = False
        self._process, self._control = _processes.start_server(_START, self._log)

    @property
    def is_usable(self) -> bool:
        return self.owner == os.getpid() and self._process.poll() is None

    def do(
        self, request: Any, time_limit: float | None, memory_limit: int | None
    ) -> tuple[str, Any]:
        """Returns `"result"` and what a job returns, or the name of an error and why.

        Raises:
            ConversionError: The job crashed, or took too long.
            TfoptError: The server is gone.
        """
        try:
            return self._do(request, time_limit, memory_limit)
        except TfoptError:
            raise
        except BaseException:
            self.end()  # it may be waiting for the rest of the request
            raise

    def _do(
        self, request: Any, time_limit: float | None, memory_limit: int | None
    ) -> tuple[str, Any]:
        from tfopt.conversion._fork_server import NUMBER

        if not self._is_ready:
            self._number(NUMBER, _START_SECONDS)
            self._is_ready = True
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as log, Connection(ours.detach()) as port:
            limit = NUMBER.pack(-1 if memory_limit is None else memory_limit)
            with theirs:
                descriptors = [theirs.fileno(), log.fileno()]
                try:
                    socket.send_fds(self._control, [limit], descriptors)
                except OSError:
                    self._gone()
            pid = self._number(NUMBER, _START_SECONDS)
            answer: tuple[str, Any] | None = None
            is_late = False
            with contextlib.suppress(EOFError, ConnectionError):
                port.send(request)
                if port.poll(time_limit):
                    answer = port.recv()
                else:
                    is_late = True
                    os.kill(pid, signal.SIGKILL)
            status = self._number(NUMBER, None)
            if answer is not None:
                return answer
            text = _processes.tail(log)
        why = _errors.crash(
            text,
            status,
            time_limit=time_limit if is_late else None,
            memory_limit=memory_limit,
        )
        raise ConversionError(f"The TFLite converter {why}")

    def end(self) -> None:
        """Ends the server and the job it runs."""
        self._control.close()
        _processes.end(self._process, grace_s=_END_SECONDS)
        self._log.close()

    def abandon(self) -> None:
        """Lets go of a server that belongs to the process this one is a fork of."""
        self._control.close()
        self._log.close()
        self._process.returncode = 0

    def _number(self, number: Any, timeout: float | None) -> int:
        self._control.settimeout(timeout)
        content = b""
        while len(content) < number.size:
            try:
                part = self._control.recv(number.size - len(content))
            except OSError:
                part = b""
            if not part:
                self._gone()
            content += part
        return number.unpack(content)[0]

    def _gone(self) -> None:
        words = _processes.last_words(_processes.tail(self._log))
        self.end()
        raise TfoptError(
            "The process for conversions cannot be started, or was ended by someone; "
            "try again, or convert with isolate=False. "
            f"Received: {words or 'no message'}"
        )


_lock = threading.RLock()
_server: _Server | None = None


def _start() -> _Server:
    """Returns the server; a new one loads TensorFlow while this process goes on."""
    global _server
    with _lock:
        if _server is not None and not _server.is_usable:
            if _server.owner == os.getpid():
                _server.end()
            else:
                _server.abandon()
            _server = None
        if _server is None:
            _server = _Server()
        return _server


@atexit.register
def _stop() -> None:
    if _server is not None and _server.owner == os.getpid():
        _server.end()


def _packed(function: Any) -> tuple[bytes, list[str], list[str]]:
    """A frozen function as what another process can make it from again."""
    return (
        function.graph.as_graph_def().SerializeToString(),
        [tensor.name for tensor in function.inputs],
        [tensor.name for tensor in function.outputs],
    )
