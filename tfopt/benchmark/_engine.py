"""Any model as a function from NumPy arrays to NumPy arrays, in this process.

Both directions are part of every call, whatever the format: what is measured is what a
program pays that has NumPy arrays and wants NumPy arrays.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np

from tfopt.benchmark._arrays import Arrays, rows_of
from tfopt.types import Signature, TfoptError

# Handed at once to an engine that cuts them apart.
_BATCHES = 64


class Engine(Protocol):
    """A model that is ready to run.

    Attributes:
        signature: What it takes and gives.
        config: The options that it runs with, for the report.
        free_rows: Whether it takes any number of rows at once.
        cuts: Whether it cuts many rows into batches itself, for parallel workers.
    """

    signature: Signature
    config: dict[str, Any]
    free_rows: bool
    cuts: bool

    def run(self, inputs: Arrays) -> Arrays:
        """Returns the outputs of one call, all by name."""

    def run_parallel(self, inputs: Arrays, calls: int) -> None:
        """Runs so many calls with all its workers; the outputs are thrown away."""

    def profile(
        self, inputs: Arrays, runs: int
    ) -> tuple[list[list[dict[str, Any]]], str]:
        """Returns what the operators take, and what is to be known about it.

        For each run `name`, `op` and `time_us` of its operators.
        """

    def close(self) -> None:
        """Frees what it holds."""


def import_runtime(format: str) -> None:
    """Imports what runs models of a format, so that it isn't counted as loading."""
    name = "tfopt.runner" if format == "tflite" else "tensorflow"
    importlib.import_module(name)


def open_engine(path: str, format: str, **options: Any) -> Engine:
    """Loads a model.

    Args:
        path: Where it is.
        format: See `ModelFile`.
        **options: `rows` (of one call), `num_workers`, `num_threads`,
            `signature_key`, `inputs` and `outputs` (of graph files), `floats` (whether
            quantized inputs and outputs are floats).

    Raises:
        TfoptError: It cannot be loaded.
    """
    if format == "tflite":
        from tfopt.benchmark import _litert

        return _litert.open_tflite(path, **options)
    from tfopt.benchmark import _tensorflow

    return _tensorflow.open_model(path, format, **options)


def predict(engine: Engine, inputs: Arrays, rows: int) -> Arrays:
    """Returns a model's outputs for any number of rows, in calls of so many.

    Raises:
        TfoptError: An output doesn't have one row for each row of the inputs.
    """
    total = rows_of(inputs)
    if engine.cuts:
        rows *= _BATCHES
    parts: list[Arrays] = []
    for start in range(0, total, rows):
        part = {name: array[start : start + rows] for name, array in inputs.items()}
        given = rows_of(part)
        if given < rows and not engine.free_rows:  # filled up with the last row
            index = np.minimum(np.arange(rows), given - 1)
            part = {name: array[index] for name, array in part.items()}
        outputs = engine.run(part)
        for name, value in outputs.items():
            if not value.ndim or len(value) != rows_of(part):
                raise TfoptError(
                    "Outputs cannot be told apart by example. Expected as many rows as "
                    f"the inputs have. Received: output {name!r} {list(value.shape)}"
                )
        parts.append({name: value[:given] for name, value in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
