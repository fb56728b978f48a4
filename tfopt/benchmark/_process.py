"""Child processes that hold one model each: a crash there is a reason here."""

from __future__ import annotations

import contextlib
import json
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any, cast

import numpy as np

from tfopt import _processes, _trust, artifacts
from tfopt.types import TfoptError


class ModelProcess:
    """A child process; `call` runs one of the tasks of `_worker.Worker` in it.

    Args:
        cpus: Cores that it may use; None: all that this process may.
        timeout_s: Seconds that each task may take.
    """

    def __init__(self, *, cpus: Sequence[int] | None = None, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        # A new interpreter, not a fork: threads of TensorFlow don't survive one.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tfopt.benchmark._worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_processes.environment({"TF_CPP_MIN_LOG_LEVEL": "2"}),
            text=True,
            encoding="utf-8",
        )
        # Popen gives both, as it was asked to.
        self._requests = cast("IO[str]", self._process.stdin)
        self._output = cast("IO[str]", self._process.stdout)
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.call("start", path=sys.path, cpus=None if cpus is None else list(cpus))
        except BaseException:
            self.close()
            raise

    def call(self, task: str, **arguments: Any) -> Any:
        """Runs a task and returns its result.

        Raises:
            TfoptError: It failed, took too long, or the process died; the message says
                why.
        """
        if self._log.closed:
            raise TfoptError(f"the process was ended (before: {task})")
        trusted = _trust.is_trusted()
        request = {"task": task, "arguments": arguments, "trusted": trusted}
        line = json.dumps(json.loads(artifacts.to_json(request)))
        try:
            self._requests.write(line + "\n")
            self._requests.flush()
            answer = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            self.close()
            raise TfoptError(
                f"no result after {self._timeout_s:g} s (while: {task})"
            ) from None
        except (BrokenPipeError, ValueError):
            answer = ""
        if not answer:
            raise TfoptError(f"{self._death()} (while: {task})")
        content = json.loads(answer)
        if "error" in content:
            raise TfoptError(content["error"])
        return content["result"]

    def close(self) -> None:
        """Ends the process."""
        _processes.end(self._process)
        self._reader.join()
        with contextlib.suppress(BrokenPipeError):  # an unsent rest for a dead process
            self._requests.close()
        self._output.close()
        self._log.close()

    def __enter__(self) -> ModelProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self) -> None:
        for line in self._output:
            self._answers.put(line)
        self._answers.put("")  # the process is gone

    def _death(self) -> str:
        code = self._process.wait()
        how = _processes.how_it_ended(code)
        reason = _processes.last_words(_processes.tail(self._log))
        what = f"the process died, {'killed by ' if code < 0 else ''}{how}"
        return f"{what}: {reason}" if reason else what


def write_arrays(folder: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Writes arrays for a child process; returns what its tasks call `data`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "names.json").write_text(json.dumps(list(arrays)), encoding="utf-8")
    for index, array in enumerate(arrays.values()):
        if array.dtype == np.dtype(object):
            has_bytes = any(isinstance(item, bytes) for item in array.flat)
            array = array.astype("S" if has_bytes else "U")
        np.save(folder / f"{index}.npy", array, allow_pickle=False)
    return str(folder)
