"""Running Grappler in child processes: a crash or a hang is an outcome, not the end."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tfopt import artifacts
from tfopt.types import TfoptError

# For TensorFlow's start, beside the time of the jobs.
_START_S = 60.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one job.

    Attributes:
        status: `"done"`; `"failed"`: it raised; `"crashed"`: the process died;
            `"timeout"`: it took too long and was stopped.
        result: What the job returned, if it is done.
        message: Why not, in one line.
        log: What it wrote to stderr, TensorFlow's C++ log included.
        seconds: How long it took.
    """

    status: Literal["done", "failed", "crashed", "timeout"]
    result: Any
    message: str
    log: str
    seconds: float

    def __str__(self) -> str:
        return (
            self.status if self.status == "done" else f"{self.status}: {self.message}"
        )


def run(job: Mapping[str, Any], *, timeout_s: float, onednn: bool = True) -> Outcome:
    """Runs one job; see `run_all`."""
    return run_all([job], timeout_s=timeout_s, onednn=onednn)[0]


def run_all(
    jobs: Sequence[Mapping[str, Any]], *, timeout_s: float, onednn: bool = True
) -> list[Outcome]:
    """Runs jobs one after the other, each in a process of its own.

    One process imports TensorFlow and forks for each job, which so starts at once.

    Args:
        jobs: See `_worker`; plain data.
        timeout_s: Seconds that each may take.
        onednn: Whether TensorFlow may use oneDNN. With it, Grappler fuses into
            operations that only such machines have, whatever devices the nodes have.

    Raises:
        TfoptError: TensorFlow itself cannot be started.
    """
    with artifacts.temporary_folder() as folder:
        request = pathlib.Path(folder) / "request.json"
        answer = pathlib.Path(folder) / "answer.json"
        content = {
            "jobs": list(jobs),
            "timeout_s": timeout_s,
            "folder": folder,
            "answer": str(answer),
        }
        request.write_text(json.dumps(content), encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-m", "tfopt.grappler._worker", str(request)],
            env=_environment(onednn),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # All its forks can be ended with it.
            start_new_session=True,
        )
        try:
            _, log = process.communicate(timeout=_START_S + timeout_s * len(jobs))
        except subprocess.TimeoutExpired:
            raise TfoptError(
                "TensorFlow does not start. Expected `import tensorflow` to work in a "
                f"child process. Received: no answer in {_START_S:.0f} s"
            ) from None
        finally:
            _end(process)
        if process.returncode != 0 or not answer.exists():
            raise TfoptError(
                "TensorFlow cannot be run in a child process. Expected `import "
                f"tensorflow` to work there. Received: exit code {process.returncode}: "
                f"{log.decode(errors='replace').strip()[-500:]}"
            )
        return [Outcome(**item) for item in json.loads(answer.read_text("utf-8"))]


def _environment(onednn: bool) -> dict[str, str]:
    root = str(pathlib.Path(__file__).parents[2])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        # Grappler tells in its log, and only there, what it did and what it ignored.
        "TF_CPP_MIN_LOG_LEVEL": "0",
        "TF_CPP_VMODULE": "meta_optimizer=2",
        **({} if onednn else {"TF_ENABLE_ONEDNN_OPTS": "0"}),
    }


def _end(process: subprocess.Popen) -> None:
    """Ends the process with its forks, if it is still there (a Ctrl-C, a hang)."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
