"""What the quickstart measures: accuracy, three timings and the sizes of the files."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from tfopt import artifacts, benchmark, report
from tfopt.runner import Runner

BATCH = 32
_ROUNDS = 7

Measured = dict[str, dict[str, float | int | None]]


def measure(
    keras_models: Mapping[str, Any],
    files: Mapping[str, pathlib.Path],
    images: np.ndarray,
    labels: np.ndarray,
) -> Measured:
    """Measures all models in one process, in turn, so that ratios can be trusted.

    Args:
        keras_models: Keras models by name; `"base"` is what speed-ups and size ratios
            refer to.
        files: The file of every model by name; those that are no Keras models are
            `.tflite` files.
        images: float32 array [n, 28, 28].
        labels: Integer array [n].

    Returns:
        By model: `accuracy` (fraction), `raw_bytes`, `gzip_bytes`, `gzip_ratio`, and
        for `batch32` (one batch of 32 images; `.tflite` files through the Runner),
        `loop` (all images, in batches of 32; `.tflite` files by one interpreter in a
        plain loop) and `threads` (the same through the multithreaded Runner)
        the median `*_ms` and `*_speedup` over the base model's Keras `predict`. None
        where something does not apply.
    """
    tflite = {name: path for name, path in files.items() if name not in keras_models}
    batch = images[:BATCH]
    batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    measured: Measured = {}
    runners = {name: Runner(path, batch_size=BATCH) for name, path in tflite.items()}
    try:
        once = {name: _predict(model, batch) for name, model in keras_models.items()}
        loop = {name: _predict(model, images) for name, model in keras_models.items()}
        threads: dict[str, Callable[[], object]] = {"base": loop["base"]}
        for name, path in tflite.items():
            once[name] = functools.partial(runners[name].run, batch)
            loop[name] = _plain_loop(path, batches)
            threads[name] = functools.partial(runners[name].run, images)
        for name, path in files.items():
            if name in runners:
                outputs = runners[name].run(images)
            else:
                outputs = keras_models[name].predict(images, verbose=0)
            measured[name] = {
                "accuracy": report.accuracy(outputs, labels),
                "raw_bytes": artifacts.raw_size(path),
                "gzip_bytes": artifacts.gzip_size(path),
            }
        _add_timing(measured, "batch32", once)
        _add_timing(measured, "loop", loop)
        _add_timing(measured, "threads", threads)
    finally:
        for runner in runners.values():
            runner.close()
    base_bytes = artifacts.gzip_size(files["base"])
    for row in measured.values():
        row["gzip_ratio"] = base_bytes / int(row["gzip_bytes"] or 0)
    # The base model's predict was timed again only to compare within one run.
    measured["base"]["threads_ms"] = measured["base"]["threads_speedup"] = None
    return measured


def _add_timing(
    measured: Measured, key: str, candidates: Mapping[str, Callable[[], object]]
) -> None:
    timings = benchmark.interleave(dict(candidates), rounds=_ROUNDS)
    for name, row in measured.items():
        time = timings[name].median_ms if name in timings else None
        row[f"{key}_ms"] = time
        row[f"{key}_speedup"] = time and timings["base"].median_ms / time


def _predict(model: Any, images: np.ndarray) -> Callable[[], object]:
    return lambda: model.predict(images, batch_size=BATCH, verbose=0)


def _plain_loop(path: pathlib.Path, batches: list[np.ndarray]) -> Callable[[], object]:
    """One interpreter as its documentation uses it: set, invoke, get, per batch."""
    interpreter = Interpreter(str(path))
    image, output = interpreter.get_input_details()[0], interpreter.get_output_details()
    rows = 0

    def run() -> list[np.ndarray]:
        nonlocal rows
        results = []
        for batch in batches:
            if len(batch) != rows:
                rows = len(batch)
                interpreter.resize_tensor_input(image["index"], batch.shape)
                interpreter.allocate_tensors()
            interpreter.set_tensor(image["index"], batch)
            interpreter.invoke()
            results.append(interpreter.get_tensor(output[0]["index"]))
        return results

    return run
