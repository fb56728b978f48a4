"""Opens engines on one model: in this process, or each in a process of its own."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from tfopt import artifacts
from tfopt.runner._engine import (
    Engine,
    LocalEngine,
    cannot_run,
    check_operators,
    explain,
)
from tfopt.runner._model_file import Entry, ModelFile, fingerprint
from tfopt.runner._port import shared_file
from tfopt.runner._tuning import auto_batch_rows
from tfopt.types import TfoptError


class Opener:
    """Opens engines on one signature of a model.

    Attributes:
        source: As given.
        file: As given.

    Args:
        source: Path or content of the model.
        file: Its facts.
        entry: The signature.
        isolate: Whether each engine gets a process of its own.
        timeout_s: Seconds that loading or one invocation may take there.

    Raises:
        TfoptError: The model has operators that the interpreter lacks, or processes
            cannot be started.
    """

    def __init__(
        self,
        source: str | bytes,
        file: ModelFile,
        entry: Entry,
        *,
        isolate: bool = False,
        timeout_s: float | None = None,
    ):
        check_operators(source, file)
        self.source = source
        self.file = file
        self._entry = entry
        self._loaded: Any = source  # path or content of what is loaded
        self._is_rewritten = False
        self._processes: Any = None
        self._shared = contextlib.ExitStack()
        if isolate:
            from tfopt.runner import _isolation  # most Runners do without

            self._isolation = _isolation
            self._processes = _isolation.Processes(timeout_s)
            self._loaded = self._as_path(source)

    def __str__(self) -> str:
        """Says how the model is loaded, for the name of what was measured with it."""
        place = "isolated" if self._processes is not None else "local"
        return f"{place}, rewritten" if self._is_rewritten else place

    @property
    def loaded(self) -> str | bytes:
        """Path or content of what engines load: the model, or its faster equal."""
        return self._loaded

    def specialize(self, batch: int | str | None) -> tuple[str, ...]:
        """Has a faster equal of the model loaded from now on, if there is one.

        Args:
            batch: Rows of an invocation, "auto", or None.

        Returns:
            What was changed, one line for each operator.
        """
        if not self.file.has_narrow_convolution:
            return ()
        rows = auto_batch_rows(self._entry.activation_bytes)
        if isinstance(batch, int):
            rows = batch
        if self._processes is not None:
            return self._specialize_apart(rows)
        from tfopt.runner import _specialize  # takes 20 ms, which few models need

        found = _specialize.specialize(self.source, self.file, rows=rows)
        if found is None:
            return ()
        self._loaded = found.content
        self._is_rewritten = True
        return found.changes

    def open(self, num_threads: int) -> Engine:
        """Opens an engine.

        Raises:
            TfoptError: The interpreter refuses the model, or crashed; the message
                names the operator where one is to blame.
        """
        source = self.source
        if isinstance(source, str):
            try:
                is_same = fingerprint(os.stat(source)) == self.file.fingerprint
            except OSError:
                is_same = False
            if not is_same:
                reason = "the file was replaced since the Runner was opened"
                raise cannot_run(source, reason)
        try:
            if self._processes is not None:
                return self._isolation.IsolatedEngine(
                    self._processes,
                    self._loaded,
                    num_threads=num_threads,
                    entry=self._entry,
                )
            return LocalEngine(self._loaded, num_threads=num_threads, entry=self._entry)
        except (ValueError, RuntimeError) as error:
            raise explain(source, self.file, error) from error

    def close(self) -> None:
        """Ends all processes; what they are doing is lost."""
        if self._processes is not None:
            self._processes.close()
        self._shared.close()

    def _specialize_apart(self, rows: int) -> tuple[str, ...]:
        process = self._processes.take()
        request = {"do": "specialize", "path": self._loaded, "rows": rows}
        try:
            answer, arrays = process.ask(request)
        except (RuntimeError, ValueError, TfoptError):
            return ()  # the original says best what is wrong with it
        else:
            if arrays:
                self._loaded = self._as_path(arrays[0].tobytes())
                self._is_rewritten = True
            return tuple(answer["changes"])
        finally:
            self._processes.give(process)

    def _as_path(self, source: str | bytes) -> str:
        """A path under which other processes find the model, bytes without a copy."""
        if isinstance(source, str):
            return os.path.abspath(source)
        if os.path.isdir("/proc/self/fd"):
            descriptor = shared_file(0)
            self._shared.callback(os.close, descriptor)
            with open(descriptor, "wb", closefd=False) as memory:
                memory.write(source)
            return f"/proc/{os.getpid()}/fd/{descriptor}"
        folder = self._shared.enter_context(artifacts.temporary_folder())
        path = os.path.join(folder, "model.tflite")
        with open(path, "wb") as file:
            file.write(source)
        return path
