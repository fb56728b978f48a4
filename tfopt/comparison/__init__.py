"""Comparing models: quality, agreement, size, speed and content in one report."""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfopt import _trust, artifacts
from tfopt.benchmark import _measuring, _models, _process
from tfopt.comparison import _examples, _judging, _report
from tfopt.report import Report, find_metric
from tfopt.types import TfoptError

__all__ = ["compare"]

_logger = logging.getLogger(__name__)

Metric = str | Callable[[np.ndarray, np.ndarray], float]


@_trust.with_safe_mode
def compare(
    models: _models.Models | _models.Model,
    *,
    data: Any,
    reference: str | None = None,
    metric: Metric | Sequence[Metric] | None = None,
    output: str | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    num_examples: int | None = None,
    batch_size: int = 1,
    num_workers: Any = "auto",
    num_threads: Any = "auto",
    num_runs: int = 30,
    profile: bool = False,
    signature_key: str | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    cpus: Sequence[int] | None = None,
    timeout_s: float = 600.0,
    safe_mode: bool = True,
) -> Report:
    """Compares models of any formats on the same examples.

    Each model is loaded in a process of its own, where it is timed (in turn with the
    others, see `tfopt.benchmark_models`), runs all examples, and is looked into (see
    `tfopt.inspect`). Quantized inputs and outputs are handed over as floats. A model
    that fails anywhere is a row with the reason.

    Args:
        models: By name; or a list, or a single one. Each a path (`.tflite`, `.keras`,
            `.h5`, a SavedModel directory, a GraphDef), an `Artifact`, the bytes of a
            `.tflite` file, or a Keras model.
        data: Examples: a `tfopt.Data`, whose test part is taken; a pair
            (inputs, labels) of arrays [n, ...] or dictionaries of them by name; inputs
            alone, where only the agreement is of interest; or a data spec, a `.npz`
            file or `module:function`.
        reference: The model that the others have to agree with, by default the first.
        metric: `"accuracy"`, `"top_5"` (any number), `"auc"`, `"f1"`, `"mse"`, `"mae"`,
            `"cosine"`, `"mean_iou"`, `"module:function"` or a function
            (outputs, labels) -> number; or several. By default the accuracy, if there
            are labels.
        output: Which output is judged, as the reference names it; needed where there
            are several.
        output_dir: Folder for `report.md`, `.json` and `.html`, and PNG plots if
            matplotlib is installed.
        num_examples: Take only the first so many.
        batch_size: Examples in one call when time is measured.
        num_workers: See `tfopt.benchmark_models`, as for all that follow.
        num_threads: Threads inside of a call.
        num_runs: Calls of each model that are timed, at least.
        profile: Whether to measure what each operator takes.
        signature_key: The signature to run.
        inputs: Names of the inputs of graph files.
        outputs: Names of the outputs of graph files.
        cpus: Cores that the models' processes may use.
        timeout_s: Seconds that each step (loading, all examples) may take.
        safe_mode: Refuse model files that could run code, reach other files or the
            network. False opens and runs whatever they hold.

    Returns:
        The `Report`: tables, charts, and all figures in `data`.

    Raises:
        ValueError: There is no such reference, metric or output, or a metric without
            labels.
        TfoptError: The data cannot be read, or the reference fails.

    Example:
        >>> report = compare({"model": "model.tflite"}, data=images, num_runs=1)
        >>> report.tables[1].rows["model"]["max_difference"]
        0.0
    """
    settings = _measuring.Settings(
        batch_size=batch_size,
        num_workers=num_workers,
        num_threads=num_threads,
        num_runs=num_runs,
        profile=profile,
        signature_key=signature_key,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        cpus=None if cpus is None else tuple(cpus),
        timeout_s=timeout_s,
        floats=True,
    )
    if output_dir is not None:
        artifacts.prepare([pathlib.Path(output_dir) / "report.json"])
    examples = _examples.load(data, limit=num_examples)
    metrics = [find_metric(item) for item in _listed(metric, examples.labels)]
    if metrics and examples.labels is None:
        raise ValueError(
            "A metric needs labels. Expected data with labels, or metric=None for the "
            f"agreement alone. Received: metric={metric!r}, no labels"
        )
    with (
        _models.as_files(models) as files,
        artifacts.temporary_folder() as folder,
    ):
        names = [file.name for file in files]
        first = names[0] if reference is None else reference
        if first not in names:
            raise ValueError(
                f"No such model. Expected one of {names}. "
                f"Received: reference={reference!r}"
            )
        place = pathlib.Path(folder)
        written = _process.write_arrays(place / "data", examples.inputs)
        runs = _judging.Runs(place, written)
        benchmark = _measuring.measure(
            files, settings, data=written, finish=runs.finish
        )
        judged = _judging.judge(
            benchmark, runs, first, examples.labels, metrics, output
        )
    report = _report.make(judged, metrics, first, len(examples))
    if output_dir is not None:
        write(report, output_dir)
    return report


def write(report: Report, output_dir: str | os.PathLike[str]) -> None:
    """Writes `report.md`, `.json`, `.html` and, with matplotlib, a PNG for each plot.

    Raises:
        TfoptError: The folder cannot be written.
    """
    with artifacts.atomic_set() as outputs:
        add(report, output_dir, outputs)


def add(
    report: Report, output_dir: str | os.PathLike[str], outputs: artifacts.AtomicSet
) -> None:
    """Adds the files of `write` to a set of outputs, `report.json` last.

    Args:
        report: What is written.
        output_dir: The folder.
        outputs: The set.

    Raises:
        TfoptError: The folder cannot be written.
    """
    folder = pathlib.Path(output_dir)
    for x, y in _report.plots(report):
        place = folder / f"{y}_{x}.png"
        try:
            report.plot(outputs.add(place), x=x, y=y)
        except ValueError:  # no model has both figures
            outputs.forget(place)
            outputs.remove(place)  # nor is there a plot then from an earlier run
        except TfoptError as error:
            if "matplotlib" not in str(error):
                raise
            outputs.forget(place)
            _logger.info("no PNG: %s", error)
            break
    for suffix in ("md", "html", "json"):
        report.write(outputs.add(folder / f"report.{suffix}"))


def _listed(metric: Any, labels: Any) -> list[Any]:
    if metric is None:
        return [] if labels is None else ["accuracy"]
    if isinstance(metric, str) or callable(metric):
        return [metric]
    return list(metric)
