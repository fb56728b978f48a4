"""The process that keeps one interpreter for an isolated Runner; see `_isolation`.

Requests are mappings with `do`: what to do. Answers are mappings with a result, or
with `error` and `message`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

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
    # Ctrl-C is for the Runner, which then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ImportError, ValueError):
        import resource

        # A crash is expected here; its memory image would only fill the disk.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.Thread(target=_end_with_runner, daemon=True).start()
    port = Port(socket.socket(fileno=descriptor), is_runner=False)
    server = _Server()
    port.send({})  # ready
    while True:
        try:
            request, arrays = port.receive()
        except (EOFError, OSError):
            break
        try:
            port.send(*server.answer(request, arrays))
        except OSError:
            break
    # Without the destructors of a model that may be broken.
    os._exit(0)


class _Server:
    def __init__(self) -> None:
        self._engine: LocalEngine | None = None

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
        self._engine = None
        self._engine = LocalEngine(
            request["path"],
            num_threads=request["num_threads"],
            entry=request["entry"],
        )
        return {}, ()

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
        if self._engine is None:
            raise RuntimeError("no model is open")
        return self._engine


def _end_with_runner() -> None:
    # The Runner never writes to this pipe: it ends when its process does, even in the
    # middle of an invocation.
    while os.read(0, 1):
        pass
    os._exit(1)
