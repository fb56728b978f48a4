"""The process that keeps one interpreter for an isolated Runner; see `_isolation`.

Requests are mappings with `do`: what to do. Answers are mappings with a result, or
with `error` and `message`.

A process that has loaded a model can fork: the new ones share its packed weights, as
nobody writes to them. That is sound as long as the interpreter has one thread, so that
no other thread's locks and work are lost.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from tfopt import _processes
from tfopt.runner._engine import LocalEngine
from tfopt.runner._model_file import read_model_file
from tfopt.runner._port import Port
from tfopt.types import TfoptError

Answer = tuple[dict[str, Any], Sequence[np.ndarray]]


def main(descriptor: int) -> None:
    """Serves requests until the Runner is gone.

    Args:
        descriptor: The socket to the Runner.
    """
    _processes.settle()
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 about forking
    _serve(descriptor, _Server())


def _serve(descriptor: int, server: _Server) -> NoReturn:
    threading.Thread(target=_end_with_runner, daemon=True).start()
    port = Port(socket.socket(fileno=descriptor), is_runner=False)
    port.send({})  # ready
    while True:
        try:
            request, arrays = port.receive()
            if request["do"] == "fork":
                ours = port.take_descriptor()
                if (pid := os.fork()) == 0:
                    port.close()
                    _serve(ours, _Server(server.engine))
                os.close(ours)
                server.children.add(pid)
                port.send({"pid": pid})
            else:
                port.send(*server.answer(request, arrays))
        except (EOFError, OSError):
            # Without the destructors of a model that may be broken.
            os._exit(0)


class _Server:
    def __init__(self, engine: LocalEngine | None = None) -> None:
        self.engine = engine
        self.children: set[int] = set()

    def answer(self, request: dict[str, Any], arrays: Sequence[np.ndarray]) -> Answer:
        try:
            return getattr(self, f"_{request['do']}")(request, arrays)
        except Exception as error:
            kind = "ValueError" if isinstance(error, ValueError) else "RuntimeError"
            if isinstance(error, TfoptError):
                kind = "TfoptError"
            text = str(error) or type(error).__name__
            return {"error": kind, "message": text}, ()

    def _open(self, request: dict[str, Any], _: Sequence[np.ndarray]) -> Answer:
        self.engine = None
        entry = request["entry"]
        self.engine = LocalEngine(
            request["path"], num_threads=request["num_threads"], entry=entry
        )
        if request["allocate"]:
            self.engine.output_shapes(entry.input_shapes)  # packs the weights
        return {}, ()

    def _wait(self, request: dict[str, Any], _: Sequence[np.ndarray]) -> Answer:
        """Waits for the end of a fork, which comes at once or soon."""
        pid = request["pid"]
        if request["kill"] and pid in self.children:
            os.kill(pid, signal.SIGKILL)
        latest = time.monotonic() + request["seconds"]
        while pid in self.children:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self.children.discard(pid)
                return {"code": os.waitstatus_to_exitcode(status)}, ()
            if time.monotonic() > latest:
                break
            time.sleep(0.001)
        return {"code": None}, ()

    def _run(self, _: dict[str, Any], arrays: Sequence[np.ndarray]) -> Answer:
        return {}, self._opened.run(arrays)

    def _output_shapes(
        self, request: dict[str, Any], _: Sequence[np.ndarray]
    ) -> Answer:
        return {"shapes": self._opened.output_shapes(request["shapes"])}, ()

    def _specialize(self, request: dict[str, Any], _: Sequence[np.ndarray]) -> Answer:
        from tfopt.runner import _specialize

        path = request["path"]
        found = _specialize.specialize(
            path, read_model_file(path), rows=request["rows"]
        )
        if found is None:
            return {"changes": []}, ()
        content = np.frombuffer(found.content, np.uint8)
        return {"changes": list(found.changes)}, (content,)

    @property
    def _opened(self) -> LocalEngine:
        if self.engine is None:
            raise RuntimeError("no model is open")
        return self.engine


def _end_with_runner() -> None:
    # The Runner never writes to this pipe: it ends when its process does, even in the
    # middle of an invocation.
    while os.read(0, 1):
        pass
    os._exit(1)
