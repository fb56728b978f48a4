"""`.tflite` files as engines, through the Runner; never imports TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from tfopt import artifacts, tflite_file
from tfopt.benchmark import _arrays, _inputs, _litert_profile, _timing
from tfopt.runner import Runner
from tfopt.types import TensorInfo, TfoptError

_FIRST_RUNS = 3
_FIRST_RUNS_NOTE = (
    "The profile is of first runs after loading, as LiteRT's C interface runs a model "
    "whose outputs have computed shapes only once."
)
_TRIALS_ROWS = (8, 32, 128)
_TRIAL_MS = 60.0


def open_tflite(
    path: str,
    *,
    rows: int,
    num_workers: int | Literal["auto"] = "auto",
    num_threads: int | Literal["auto"] = "auto",
    signature_key: str | None = None,
    floats: bool = False,
    inputs: Any = (),
    outputs: Any = (),
) -> TfliteEngine:
    """Opens a file; see `_engine.open_engine`. Inputs and outputs have names already.

    Raises:
        TfoptError: It cannot be read or run.
    """
    threads = 1 if num_threads == "auto" else num_threads
    cores = len(os.sched_getaffinity(0))
    workers = max(1, cores // threads) if num_workers == "auto" else num_workers

    def runner(workers: int, rows: int | Literal["auto"]) -> Runner:
        # All is given: a Runner that measures its set-up would take longer to load.
        return Runner(
            path,
            num_workers=workers,
            num_threads=threads,
            batch_size=rows,
            signature_key=signature_key,
            quantized_io="float" if floats else "auto",
        )

    # A model with state takes one worker only, and like one with a fixed batch, or
    # without rows in its outputs, not any number of rows.
    attempts: list[tuple[int, int | Literal["auto"]]] = [(workers, rows)]
    attempts += [(1, rows)] if num_workers == "auto" else []
    attempts += [(count, "auto") for count, _ in attempts]
    for count, number in attempts[:-1]:
        with contextlib.suppress(ValueError):
            return TfliteEngine(path, runner(count, number))
    return TfliteEngine(path, runner(*attempts[-1]))


class TfliteEngine:
    """A `.tflite` file in a Runner; see `_engine.Engine`."""

    free_rows = True
    cuts = True

    def __init__(self, path: str, runner: Runner) -> None:
        self._path = path
        self._runner = runner
        self.signature = runner.signature
        self._names = [info.name for info in runner.signature.outputs]
        self.config = {
            "num_workers": runner.num_workers,
            "num_threads": runner.num_threads,
        }

    def run(self, inputs: _arrays.Arrays) -> _arrays.Arrays:
        """Returns the outputs of one call, all by name."""
        return _arrays.by_name(self._names, self._runner.run(inputs))

    def run_parallel(self, inputs: _arrays.Arrays, calls: int) -> None:
        """Lets all workers go through so many batches."""
        for _ in self._runner.map(itertools.repeat(inputs, calls)):
            pass

    def profile(
        self, inputs: _arrays.Arrays, runs: int
    ) -> tuple[list[list[dict[str, Any]]], str]:
        """Runs what the Runner loads in LiteRT's own C interface."""
        with _as_path(self._runner.loaded) as path:
            model = self._profiled(path, inputs)
            model.run()
            try:
                model.run()
            except TfoptError:
                # LiteRT takes outputs of computed shape in the first run only.
                found = [
                    self._profiled(path, inputs).profile()
                    for _ in range(min(runs, _FIRST_RUNS))
                ]
                return _rows(found), _FIRST_RUNS_NOTE
            return _rows([model.profile() for _ in range(runs)]), ""

    def _profiled(
        self, path: str, inputs: _arrays.Arrays
    ) -> _litert_profile.ProfiledModel:
        outputs = self.run(inputs)
        keys = [entry.key for entry in tflite_file.read(path).signatures]
        key = self.signature.key
        return _litert_profile.ProfiledModel(
            path,
            {
                info.name: self._as_stored(info, inputs)
                for info in self.signature.inputs
            },
            {
                info.name: (outputs[info.name].shape, info.dtype)
                for info in self.signature.outputs
            },
            signature_index=keys.index(key) if key in keys else 0,
            num_threads=self._runner.num_threads,
        )

    def _as_stored(self, info: TensorInfo, inputs: _arrays.Arrays) -> np.ndarray:
        """Returns an input as the file takes it; which values is all the same."""
        array = inputs[info.name]
        return array if array.dtype == info.dtype else array.astype(info.dtype)

    def close(self) -> None:
        """Ends the workers."""
        self._runner.close()


def _rows(runs: list[list[_litert_profile.Event]]) -> list[list[dict[str, Any]]]:
    return [
        [
            {"name": event.place, "op": event.name, "time_us": event.time_us}
            for event in events
        ]
        for events in runs
    ]


@contextlib.contextmanager
def _as_path(model: str | bytes) -> Iterator[str]:
    if isinstance(model, str):
        yield model
        return
    with artifacts.temporary_folder() as folder:
        path = os.path.join(folder, "model.tflite")
        with open(path, "wb") as file:
            file.write(model)
        yield path


def autotune(path: str, cores: int, **options: Any) -> list[dict[str, Any]]:
    """Tries workers x threads x rows on made-up inputs; returns the fastest first.

    Args:
        path: The `.tflite` file.
        cores: Workers times threads are at most this many.
        **options: Further ones of `open_tflite`.

    Returns:
        `num_workers`, `num_threads`, `rows` and `rows_per_second` of each that ran.

    Raises:
        TfoptError: None did.
    """
    splits = dict.fromkeys([(1, 1), (cores, 1), (1, cores)])
    found, problem = [], ""
    for (workers, threads), rows in itertools.product(splits, _TRIALS_ROWS):
        try:
            engine = open_tflite(
                path, rows=rows, num_workers=workers, num_threads=threads, **options
            )
        except (TfoptError, ValueError) as error:  # stateful ones take one worker
            problem = str(error)
            continue
        try:
            inputs = _inputs.random_inputs(engine.signature, rows=rows)
            calls = 2 * workers
            timing = _timing.interleave(
                {"": functools.partial(engine.run_parallel, inputs, calls)},
                rounds=3,
                min_sample_ms=_TRIAL_MS / 3,
            )[""]
            real = _arrays.rows_of(inputs)
            found.append(
                {
                    "num_workers": workers,
                    "num_threads": threads,
                    "rows": rows,
                    "rows_per_second": real * calls / timing.median_ms * 1e3,
                }
            )
        finally:
            engine.close()
    if not found:
        raise TfoptError(f"No set-up runs the model. Received: {path!r}: {problem}")
    return sorted(found, key=lambda row: -row["rows_per_second"])
