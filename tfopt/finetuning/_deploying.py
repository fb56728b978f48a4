"""The `.tflite` file of a fine-tuned model."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from tfopt import artifacts, conversion, report
from tfopt.data import Data, Split
from tfopt.runner import Runner
from tfopt.types import Artifact

_CALIBRATION_EXAMPLES = 256


def convert(
    model: Any, quantization: Any, examples: Data, path: pathlib.Path
) -> tuple[Artifact, dict[str, float]]:
    """Writes a `.tflite` file and measures it.

    Args:
        model: Finalized Keras model.
        quantization: See `tfopt.convert`.
        examples: Training examples to calibrate on, test examples to measure on.
        path: The file.

    Returns:
        The file, and its accuracy on the test examples where these are classes.
    """
    given: dict[str, Any] = {}
    if quantization in ("int8", "int16x8"):  # ranges learned in training go first
        inputs, _ = next(examples.train.batches(batch_size=_CALIBRATION_EXAMPLES))
        given["representative_dataset"] = inputs
    done = conversion.convert_with_report(model, quantization=quantization, **given)
    artifacts.write_bytes(path, done.content)
    written = artifacts.describe(
        path, format="tflite", signature=done.signature, details=done.report
    )
    return written, _measure(path, examples.test)


def _measure(path: pathlib.Path, test: Split) -> dict[str, float]:
    inputs, labels = test.arrays()
    if isinstance(labels, dict) or not np.issubdtype(labels.dtype, np.integer):
        return {}
    with Runner(path) as runner:
        outputs = runner.run(inputs)
    if isinstance(outputs, dict):
        return {}
    return {"accuracy": report.accuracy(outputs, labels)}
