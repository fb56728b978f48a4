"""Figures of a candidate beside the unquantized model.

In the search, `.tflite` files run in this process, which takes a tenth of the time of
a comparison with a process for each model; finalists and SavedModels are compared so.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt import artifacts, benchmark, comparison, inspection, report
from tfopt.comparison import _judging
from tfopt.comparison._examples import Examples
from tfopt.optimizing._problem import Problem, single
from tfopt.report import Report
from tfopt.runner import Runner
from tfopt.types import TfoptError

BASELINE = "float"
_CANDIDATE = "candidate"
_RUNS = 10
_ROUNDS, _SAMPLE_MS = 7, 5.0


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured of a file, beside the unquantized one in the same run.

    Attributes:
        value: The metric.
        baseline: That of the unquantized model.
        gzip_bytes: Size after `gzip -9`.
        baseline_gzip_bytes: That of the unquantized model.
        size_bytes: Raw size.
        latency_ms: Median time of one call.
        latency_ratio: The same, divided by that of the unquantized model.
        peak_bytes: How far a process's memory rose; None where it was not measured.
        planned_bytes: The file and the arena for its activations, by their sizes; None
            of a SavedModel.
        sqnr_db: Energy of the original's outputs over that of the difference; None if
            nothing differs.
        is_finite: Whether all outputs are numbers wherever the original's are.
    """

    value: float
    baseline: float
    gzip_bytes: int
    baseline_gzip_bytes: int
    size_bytes: int
    latency_ms: float
    latency_ratio: float
    peak_bytes: int | None
    sqnr_db: float | None
    is_finite: bool
    planned_bytes: int | None = None


class Judge:
    """Measures files of one task.

    Args:
        problem: The task.
        baseline: The unquantized file, or SavedModel directory.
        output: The output that is judged, where there are several.

    Attributes:
        output: Likewise; the first one, if only differences are asked for.
    """

    def __init__(
        self, problem: Problem, baseline: str | os.PathLike[str], output: str | None
    ):
        self._problem = problem
        self._baseline = os.fspath(baseline)
        self.output = output
        if output is None and problem.quality.metric is None:
            # Differences are over all outputs; only classes are those of one.
            self.output = _first_output(self._baseline)
        self._expected: dict[str, np.ndarray] | None = None

    def compare(
        self, files: Mapping[str, str], examples: Examples, *, num_runs: int = _RUNS
    ) -> Report:
        """Compares files with the unquantized one, all in one interleaved run."""
        return comparison.compare(
            {BASELINE: self._baseline, **files},
            data=(single(examples.inputs), examples.labels),
            reference=BASELINE,
            metric=self._problem.quality.metric or [],
            output=self.output,
            num_runs=num_runs,
        )

    def compared(self, found: Report, name: str) -> Figures:
        """Returns what a comparison says about a file.

        Raises:
            TfoptError: It failed.
        """
        item, base = (found.data["models"][key] for key in (name, BASELINE))
        if item["error"]:
            raise TfoptError(str(item["error"]))
        own, first = item["measurement"], base["measurement"]
        latency = own.percentile_ms(50)
        return self._figures(
            metrics=item["metrics"],
            agreement=item["agreement"],
            baseline={**base["metrics"], **base["agreement"]},
            gzip_bytes=own.gzip_bytes,
            baseline_gzip_bytes=first.gzip_bytes,
            size_bytes=own.size_bytes,
            latency_ms=latency,
            latency_ratio=latency / first.percentile_ms(50),
            peak_bytes=own.peak_added_bytes,
        )

    def measure(self, path: str) -> Figures:
        """Returns the figures of one file on the examples that are searched on.

        Raises:
            TfoptError: It cannot be run, or its outputs cannot be compared.
        """
        if os.path.isdir(path):
            report_ = self.compare({_CANDIDATE: path}, self._problem.search)
            return self.compared(report_, _CANDIDATE)
        inputs = single(self._problem.search.inputs)
        row = _first_row(inputs)
        with Runner(self._baseline) as first, Runner(path) as own:
            if self._expected is None:
                self._expected = _named(first, first.run(inputs))
            outputs, _ = _judging.aligned(_named(own, own.run(inputs)), self._expected)
            timings = benchmark.interleave(
                {BASELINE: lambda: first.run(row), _CANDIDATE: lambda: own.run(row)},
                rounds=_ROUNDS,
                min_sample_ms=_SAMPLE_MS,
            )
        own_ms, first_ms = (
            np.asarray(timings[name].samples_ms) for name in (_CANDIDATE, BASELINE)
        )
        return self._figures(
            metrics=self._metrics(outputs),
            agreement=self._agreement(outputs),
            baseline={
                **self._metrics(self._expected),
                **self._agreement(self._expected),
            },
            gzip_bytes=artifacts.gzip_size(path),
            baseline_gzip_bytes=artifacts.gzip_size(self._baseline),
            size_bytes=artifacts.raw_size(path),
            latency_ms=timings[_CANDIDATE].median_ms,
            # Of each round alone: what disturbs one of them disturbs both.
            latency_ratio=float(np.median(own_ms / first_ms)),
            peak_bytes=None,
            planned_bytes=_planned_bytes(path),
        )

    def _metrics(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        quality, labels = self._problem.quality, self._problem.search.labels
        if quality.metric is None:
            return {}
        judged = self._judged(outputs)
        wanted: Any = labels[judged] if isinstance(labels, Mapping) else labels
        function = report.find_metric(quality.metric).function
        return {quality.name: float(function(outputs[judged], wanted))}

    def _agreement(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float | None]:
        expected = self._expected or {}
        return report.agreement(outputs, expected, self._judged(expected))

    def _judged(self, outputs: Mapping[str, np.ndarray]) -> str:
        names = list(outputs)
        is_open = self.output is None and len(names) > 1
        if is_open or self.output not in (None, *names):
            raise ValueError(
                "Which output is judged is unclear. Expected `output` to be one of "
                f"{names}. Received: output={self.output!r}"
            )
        return self.output or names[0]

    def _figures(
        self,
        *,
        metrics: Mapping[str, float],
        agreement: Mapping[str, float | None],
        baseline: Mapping[str, float | None],
        **measured: Any,
    ) -> Figures:
        name = self._problem.quality.name
        value, first = {**agreement, **metrics}.get(name), baseline.get(name)
        if value is None or first is None:
            raise TfoptError(
                "The outputs are no classes. Expected another metric. "
                f"Received: metric={name!r}"
            )
        ratio = agreement["sqnr_db"]
        same = ratio is None or ratio == float("inf")
        return Figures(
            value=float(value),
            baseline=float(first),
            sqnr_db=None if same else max(float(ratio or 0.0), -1e3),
            is_finite=agreement["max_difference"] != float("inf"),
            **measured,
        )


def _planned_bytes(path: str) -> int:
    found = inspection.inspect(path)
    return artifacts.raw_size(path) + (found.arena_bytes or 0)


def _named(runner: Runner, outputs: Any) -> dict[str, np.ndarray]:
    if isinstance(outputs, Mapping):
        return dict(outputs)
    return {runner.signature.outputs[0].name: outputs}


def _first_row(inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return {name: array[:1] for name, array in inputs.items()}
    return inputs[:1]


def _first_output(path: str) -> str | None:
    names = [info.name for info in inspection.inspect(path).signatures[0].outputs]
    return names[0] if len(names) > 1 else None
