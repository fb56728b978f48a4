"""Checks by execution: a child process runs the graph after each transform."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from tfopt import _processes
from tfopt.transforms import _frames
from tfopt.transforms._base import Promise
from tfopt.transforms._sources import Source, serialize
from tfopt.types import VerificationError

# No graph of a sane size takes longer; one that hangs must not hang the caller.
_SECONDS = 600.0
# A run may take this many times as long as the original's.
_PATIENCE = 20.0


class Verifier:
    """A child process that holds the original's results."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        settings = {
            "TF_CPP_MIN_LOG_LEVEL": "2",
            # oneDNN rewrites graphs while they are loaded, and a GPU computes
            # otherwise: here every node is to be computed as it stands.
            "TF_ENABLE_ONEDNN_OPTS": "0",
            "CUDA_VISIBLE_DEVICES": "-1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tfopt.transforms._execution"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_processes.environment(settings),
        )
        self._limit = _SECONDS

    def start(self, source: Source, data: str | None) -> list[str]:
        """Runs the original graph.

        Args:
            source: The graph before any transform.
            data: A `.npz` file with an array per input; by default made up.

        Returns:
            The outputs that differ from run to run, so that only shapes can be checked.

        Raises:
            VerificationError: It cannot be run.
        """
        request = {
            "calls": {
                key: {"inputs": call.inputs, "outputs": call.outputs}
                for key, call in source.calls.items()
            },
            "data": None if data is None else os.path.abspath(data),
            "restoration": source.restoration,
            "init_op": source.init_op,
            "asset_feeds": dict(source.asset_feeds),
        }
        graph = serialize(source.graph.to_graph_def())
        self._limit = _SECONDS
        answer = self._ask(request, graph)
        if "error" in answer:
            raise VerificationError(
                "The graph cannot be run for comparison, even before it is "
                "transformed. Expected a graph that runs on inputs made up from its "
                "types and shapes; give real ones with verify_data (an .npz file), or "
                "check only the structure with verify='structure'. "
                f"Received: {source.where}: {answer['error']}"
            )
        self._limit = min(_SECONDS, 60.0 + _PATIENCE * answer["seconds"])
        return answer["random"]

    def compare(self, graph: bytes) -> dict[str, Any]:
        """Runs a transformed graph.

        Returns:
            `{"outputs": output -> findings}`, or `{"error": why it cannot be run}`.
        """
        return self._ask({}, graph)

    def close(self) -> None:
        """Ends the child."""
        _processes.end(self._process)
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _ask(self, request: Mapping[str, Any], graph: bytes) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise AssertionError("the child was started without pipes")
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            self._process.kill()

        timer = threading.Timer(self._limit, stop)
        timer.daemon = True
        timer.start()
        try:
            _frames.write_json(stdin, request)
            _frames.write(stdin, graph)
            answer = _frames.read_json(stdout)
        except OSError:
            answer = None
        finally:
            timer.cancel()
        return {"error": self._death(expired.is_set())} if answer is None else answer

    def _death(self, is_expired: bool) -> str:
        """Returns why the child died."""
        if is_expired:
            return f"it did not end within {self._limit:.0f} s"
        how = _processes.how_it_ended(self._process.wait())
        words = _processes.last_words(_processes.tail(self._log))
        return f"TensorFlow's process died ({how}): {words or 'no message'}"


@contextlib.contextmanager
def open_verifier() -> Iterator[Verifier]:
    """Yields a child process, which ends with the block."""
    verifier = Verifier()
    try:
        yield verifier
    finally:
        verifier.close()


def faults(
    outputs: Mapping[str, Any], promise: Promise, *, error: str = "step_error"
) -> list[str]:
    """Returns the outputs that break a promise.

    Args:
        outputs: Output -> findings of the child.
        promise: What was promised.
        error: Which difference is judged: to the graph before (`"step_error"`) or to
            the original (`"max_error"`).
    """
    found = []
    has_floats = any(one["is_float"] for one in outputs.values())
    for name, one in outputs.items():
        limit = promise.tolerance * one["scale"]
        if not one["same_form"]:
            found.append(f"output {name} has another type or shape")
        elif one["random"] or promise.outputs == "reported":
            continue
        elif promise.outputs == "equal":
            is_equal = one["equal"] if error == "step_error" else not one[error]
            if not is_equal:
                found.append(f"output {name} differs by {one[error]:.3g}, not by 0")
        elif not one["is_float"] and has_floats:
            # Classes, counts and the like can tip over at the smallest difference of
            # the numbers behind them, which are judged.
            continue
        elif one[error] > limit:
            found.append(
                f"output {name} differs by {one[error]:.3g}, more than {limit:.3g}"
            )
    return found
