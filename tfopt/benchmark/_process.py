"""Child processes that hold one model each: a crash there is a reason here."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any, cast

import numpy as np

from tfopt import artifacts
from tfopt.types import TfoptError

_ROOT = pathlib.Path(__file__).parents[2]
_REASON_LENGTH = 300
# Log lines of absl and TensorFlow begin like this; what follows is the message.
_LOG_PREFIX = re.compile(r"^(F|E|W|I)\d{4} .*?\] |^[\d-]+ [\d:.]+: [FEWI] \S+ ")
_CHATTER = re.compile(r"INFO:|[IW]\d{4} |[\d-]+ [\d:.]+: [IW] ")
_FATAL = re.compile(r"^F\d{4}|Check failed|what\(\)|terminate|free\(\)|corrupt|rror")


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
            env=_environment(),
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
        request = {"task": task, "arguments": arguments}
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
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
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
        what = f"exit code {code}"
        if code < 0:
            what = f"killed by {signal.Signals(-code).name}"
        self._log.seek(0)
        reason = _last_words(self._log.read().decode(errors="replace"))
        return f"the process died, {what}" + (f": {reason}" if reason else "")


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


def _environment() -> dict[str, str]:
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


def _last_words(log: str) -> str:
    """Returns the line that says why a process died."""
    lines = [line.strip() for line in log.splitlines()]
    lines = [line for line in lines if line and not _CHATTER.match(line)]
    telling = [line for line in lines if _FATAL.search(line)] or lines[-1:]
    return _LOG_PREFIX.sub("", telling[-1])[:_REASON_LENGTH] if telling else ""
