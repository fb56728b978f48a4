"""One model in a process of its own; see `_process`.

    python -m tfopt.benchmark._worker

Reads requests from stdin and answers them, each a line of JSON.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt import _trust, artifacts
from tfopt.benchmark import _arrays, _engine, _inputs, _memory, _timing
from tfopt.types import TfoptError


class Worker:
    """The tasks; each method is one, with JSON in and out."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._again: Any = None
        self._can_reset = False
        self._resident: int | None = None
        self._inputs: dict[str, np.ndarray] = {}

    def start(self, *, path: list[str], cpus: list[int] | None) -> None:
        """Takes over the import path, and stays on some cores."""
        sys.path[:] = path
        if cpus:
            os.sched_setaffinity(0, cpus)

    def open(
        self,
        *,
        file: str,
        format: str,
        rows: int,
        data: str | None,
        seed: int,
        options: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Loads the model, makes its inputs and runs it once.

        Returns:
            What it took, and what the model is. Memory is in bytes above that of the
            process with the runtime imported; `None` where the kernel does not tell.
        """
        begin = time.perf_counter()
        _engine.import_runtime(format)
        imported = time.perf_counter()
        private = _memory.private_bytes()
        self._can_reset = _memory.reset_peak()
        self._resident = _memory.resident_bytes()
        loading = time.perf_counter()
        self._again = functools.partial(_engine.open_engine, file, format, **options)
        engine = self._again(rows=rows)
        loaded = time.perf_counter()
        fixed = _inputs.fixed_rows(engine.signature)
        if format != "tflite" and fixed is not None:
            rows = fixed  # a Runner cuts and fills up; TensorFlow doesn't
        if data is None:
            inputs = _inputs.random_inputs(engine.signature, rows=rows, seed=seed)
        else:
            inputs = _inputs.cut(engine.signature, _load(data), rows)
        ready = time.perf_counter()
        engine.run(inputs)
        ran = time.perf_counter()
        self._engine, self._inputs = engine, inputs
        return {
            "import_ms": (imported - begin) * 1e3,
            "load_ms": (loaded - loading) * 1e3,
            "first_ms": (ran - ready) * 1e3,
            "rows": _arrays.rows_of(inputs),
            "signature": str(engine.signature),
            "config": engine.config,
            "private_bytes": _above(_memory.private_bytes(), private),
            "tensorflow": "tensorflow" in sys.modules,
        }

    def warm_up(self, *, calls: int) -> None:
        """Runs the model some times."""
        for _ in range(calls):
            self._engine.run(self._inputs)

    def sample(self, *, calls: int, min_ms: float) -> dict[str, Any]:
        """Times single calls, until they are enough and have taken long enough.

        Returns:
            `calls_ms`, and the share of the time that threads waited for a core.
        """
        times: list[float] = []
        before = _timing.run_queue_delays()
        begin = end = time.perf_counter()
        while len(times) < calls or (end - begin) * 1e3 < min_ms:
            last = time.perf_counter()
            self._engine.run(self._inputs)
            end = time.perf_counter()
            times.append((end - last) * 1e3)
        after = _timing.run_queue_delays()
        share = _timing.queue_share(before, after, end - begin)
        return {"calls_ms": times, "queue_share": share}

    def throughput(self, *, calls: int) -> dict[str, Any]:
        """Times a number of calls that all workers share.

        Returns:
            `seconds`, and the share of the time that threads waited for a core.
        """
        before = _timing.run_queue_delays()
        begin = time.perf_counter()
        self._engine.run_parallel(self._inputs, calls)
        seconds = time.perf_counter() - begin
        after = _timing.run_queue_delays()
        share = _timing.queue_share(before, after, seconds)
        return {"seconds": seconds, "queue_share": share}

    def memory(self) -> dict[str, Any]:
        """Returns the largest added resident set since loading began."""
        peak = _memory.peak_bytes() if self._can_reset else None
        return {"peak_added_bytes": _above(peak, self._resident)}

    def predict(self, *, data: str, output: str, rows: int) -> list[str]:
        """Runs all examples; writes `0.npy`, `1.npy`, ... and returns their names."""
        engine = self._engine
        if not engine.cuts:
            rows = _inputs.fixed_rows(engine.signature) or rows
        else:  # it goes through all examples in batches of its own
            engine.close()
            engine = self._engine = self._again(rows=rows)
        arrays = _inputs.match(engine.signature, _load(data))
        inputs = {
            info.name: _inputs.fitted(info, arrays[info.name], floats=True)
            for info in engine.signature.inputs
        }
        outputs = _engine.predict(engine, inputs, rows)
        for index, value in enumerate(outputs.values()):
            text = value.dtype == np.dtype(object)
            values = value.astype(str) if text else value
            np.save(pathlib.Path(output) / f"{index}.npy", values)
        return list(outputs)

    def profile(self, *, runs: int) -> dict[str, Any]:
        """Returns for each run what its operators took, and a note about it."""
        found, note = self._engine.profile(self._inputs, runs)
        return {"runs": found, "note": note}

    def call(self, *, target: str, arguments: Mapping[str, Any]) -> Any:
        """Calls `module:function`."""
        module, _, name = target.partition(":")
        return getattr(importlib.import_module(module), name)(**arguments)


def main() -> None:
    """Answers requests until stdin ends."""
    # What C++ code or a model prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            with _trust.scope(safe_mode=not request.get("trusted")):
                result = getattr(worker, request["task"])(**request["arguments"])
            answer: dict[str, Any] = {"result": result}
        except (KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            answer = {"error": _reason(error)}
        answers.write(json.dumps(json.loads(artifacts.to_json(answer))) + "\n")
        answers.flush()
    # Neither TensorFlow's threads nor a Runner's have anything left to do.
    os._exit(0)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, (TfoptError, ValueError)):
        return text
    return f"{type(error).__name__}: {text}"


def _load(data: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a folder that the parent wrote."""
    folder = pathlib.Path(data)
    names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    return {
        name: np.load(folder / f"{index}.npy", allow_pickle=False)
        for index, name in enumerate(names)
    }


def _above(value: int | None, base: int | None) -> int | None:
    if value is None or base is None or not math.isfinite(value):
        return None
    return max(value - base, 0)


if __name__ == "__main__":
    main()
