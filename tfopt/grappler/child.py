"""Running Grappler in child processes: a crash or a hang is an outcome, not the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tfopt import _processes, artifacts
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
    settings = {
        # Grappler tells in its log, and only there, what it did and what it ignored.
        "TF_CPP_MIN_LOG_LEVEL": "0",
        "TF_CPP_VMODULE": "meta_optimizer=2",
        **({} if onednn else {"TF_ENABLE_ONEDNN_OPTS": "0"}),
    }
    limit = _START_S + timeout_s * len(jobs)
    try:
        # The folder is of this process, which survives the other.
        with artifacts.temporary_folder() as folder:
            request = {"jobs": list(jobs), "timeout_s": timeout_s, "folder": folder}
            answer = _processes.ask(
                "tfopt.grappler._worker", request, timeout_s=limit, settings=settings
            )
    except TimeoutError as error:
        raise TfoptError(
            "TensorFlow does not start. Expected `import tensorflow` to work in a "
            f"child process. Received: {error}"
        ) from None
    except _processes.Death as death:
        raise TfoptError(
            "TensorFlow cannot be run in a child process. Expected `import "
            f"tensorflow` to work there. Received: {death}"
        ) from None
    return [Outcome(**item) for item in answer]
