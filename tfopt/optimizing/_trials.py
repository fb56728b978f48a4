"""Trials: one recipe applied, measured and kept on disk; none is done twice."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from tfopt import artifacts, comparison, inspection
from tfopt.comparison._examples import Examples
from tfopt.optimizing._problem import Problem
from tfopt.recipe import Recipe
from tfopt.report import Report
from tfopt.types import TfoptError

_LOGGER = logging.getLogger(__name__)
_FILE = "trial.json"
BASELINE = "float"
_RUNS = 10


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
        peak_bytes: How far the process's memory rose; None where unknown.
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


@dataclasses.dataclass(frozen=True)
class Trial:
    """One candidate.

    Attributes:
        key: Digest of its recipe; the name of its folder.
        recipe: How it was made.
        parent: Key of the trial that it was derived from; None of the first ones.
        path: The file, or the SavedModel directory; None if there is none.
        figures: On the examples that are searched on; None if there are none.
        error: Why there is no file; None if there is one.
        seconds: What making and measuring it took.
        reports: What the steps of the recipe told.
    """

    key: str
    recipe: Recipe
    parent: str | None
    path: str | None
    figures: Figures | None
    error: str | None
    seconds: float
    reports: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.recipe.name

    @property
    def kept_float(self) -> Mapping[str, Any] | None:
        """What the conversion says about layers left in float; None if there are none.

        `"layers"`, `"macs_share"` and `"bytes_share"`, see `tfopt.Conversion`.
        """
        last = self.reports[-1] if self.reports else {}
        return last.get("report", {}).get("kept_float")


class Study:
    """All trials of one model on one set of examples.

    Args:
        problem: The task.
        folder: Where trials are kept; those of another task are told apart.
        teacher: For recipes that distill.
        seed: Of all recipes.
        baseline: The recipe of the model as it is.
        output: The output that is judged, where there are several.

    Attributes:
        folder: Where the trials of this task are.
        output: The output that is judged; None where there is only one.
        trials: Those that were run or found, by key.
        spent: Seconds that they took, also those of earlier runs.
    """

    def __init__(
        self,
        problem: Problem,
        folder: pathlib.Path,
        *,
        teacher: Any,
        seed: int,
        baseline: Recipe,
        output: str | None = None,
    ):
        self.problem = problem
        self.trials: dict[str, Trial] = {}
        self.spent = 0.0
        self.seed = seed
        self._teacher = teacher
        self.output = output
        first = folder / "baseline" / _file_of(baseline)
        first.parent.mkdir(parents=True, exist_ok=True)
        baseline.apply(problem.model, first, representative_dataset=problem.calibration)
        identity = first.read_bytes() if first.is_file() else _digest(first)
        self.folder = folder / problem.fingerprint(identity)
        self._baseline_file = first
        if output is None and problem.quality.metric is None:
            # Differences are over all outputs; only classes are those of one.
            self.output = _first_output(first)
        self.baseline = self.run(baseline)
        if self.baseline.figures is None:
            raise TfoptError(f"The model cannot be measured. {self.baseline.error}")

    def run(self, recipe: Recipe, *, parent: Trial | None = None) -> Trial:
        """Returns the trial of a recipe, made now or found on disk.

        What goes wrong is part of the trial: its `error`.
        """
        key = recipe.digest()
        if key in self.trials:
            return self.trials[key]
        folder = self.folder / key
        trial = _read(folder)
        if trial is None:
            _LOGGER.info("trying %s", recipe)
            trial = self._make(recipe, folder, parent)
        self.trials[key] = trial
        self.spent += trial.seconds
        return trial

    def compare(
        self, trials: Mapping[str, Trial], examples: Examples, *, num_runs: int = _RUNS
    ) -> Report:
        """Compares trials with the unquantized model, all in one interleaved run."""
        inputs = examples.inputs
        single = inputs[""] if list(inputs) == [""] else inputs
        files = {name: str(trial.path) for name, trial in trials.items()}
        return comparison.compare(
            {BASELINE: str(self._baseline_file), **files},
            data=(single, examples.labels),
            reference=BASELINE,
            metric=self.problem.quality.metric or [],
            output=self.output,
            num_runs=num_runs,
        )

    def figures(self, report: Report, name: str) -> Figures:
        """Returns what a comparison says about a model.

        Raises:
            TfoptError: It failed.
        """
        models = report.data["models"]
        return _figures(models[name], models[BASELINE], self.problem)

    def _make(
        self, recipe: Recipe, folder: pathlib.Path, parent: Trial | None
    ) -> Trial:
        start = time.monotonic()
        name = _file_of(recipe)
        trial = Trial(
            key=recipe.digest(),
            recipe=recipe,
            parent=None if parent is None else parent.key,
            path=str(folder / name),
            figures=None,
            error=None,
            seconds=0.0,
        )
        with artifacts.atomic_path(folder) as temporary:
            temporary.mkdir()
            try:
                trial = self._filled(trial, temporary / name)
            except (TfoptError, ValueError) as error:
                trial = dataclasses.replace(trial, path=None, error=str(error))
            seconds = time.monotonic() - start
            trial = dataclasses.replace(trial, seconds=seconds)
            fields = [field.name for field in dataclasses.fields(trial)]
            plain = {field: getattr(trial, field) for field in fields}
            plain["seed"] = recipe.seed
            artifacts.write_json(temporary / _FILE, plain)
        return trial

    def _filled(self, trial: Trial, place: pathlib.Path) -> Trial:
        """Makes the file at a place and measures it there."""
        applied = trial.recipe.apply(
            self.problem.model,
            place,
            representative_dataset=self.problem.calibration,
            examples=self.problem.train,
            teacher=self._teacher,
            stages_dir=self.folder / "stages",
        )
        measured = dataclasses.replace(trial, path=str(place))
        report = self.compare({"candidate": measured}, self.problem.search)
        return dataclasses.replace(
            trial,
            figures=self.figures(report, "candidate"),
            reports=tuple(applied.reports),
        )


def _figures(
    item: Mapping[str, Any], base: Mapping[str, Any], problem: Problem
) -> Figures:
    if item["error"]:
        raise TfoptError(str(item["error"]))
    quality = problem.quality
    group = "agreement" if quality.metric is None else "metrics"
    value, baseline = (x[group][quality.name] for x in (item, base))
    if value is None:
        raise TfoptError(
            "The outputs are no classes. Expected another metric. "
            f"Received: metric={quality.name!r}"
        )
    found, first = item["measurement"], base["measurement"]
    latency, reference = found.percentile_ms(50), first.percentile_ms(50)
    ratio = item["agreement"]["sqnr_db"]
    largest = item["agreement"]["max_difference"]
    return Figures(
        value=float(value),
        baseline=float(baseline),
        gzip_bytes=found.gzip_bytes,
        baseline_gzip_bytes=first.gzip_bytes,
        size_bytes=found.size_bytes,
        latency_ms=latency,
        latency_ratio=latency / reference,
        peak_bytes=found.peak_added_bytes,
        sqnr_db=None if ratio == float("inf") else max(ratio, -1e3),
        is_finite=largest != float("inf"),
    )


def _read(folder: pathlib.Path) -> Trial | None:
    """Returns a trial from its folder; None if there is none."""
    try:
        content = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    try:
        content.pop("seed")
        figures = content.pop("figures")
        return Trial(
            recipe=Recipe.from_json(content.pop("recipe")),
            figures=None if figures is None else Figures(**figures),
            reports=tuple(content.pop("reports")),
            **content,
        )
    except (KeyError, TypeError, AttributeError, TfoptError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: pathlib.Path, error: Exception) -> TfoptError:
    return TfoptError(
        "Cannot read a trial. Expected what an earlier run wrote; delete the folder "
        f"to make it again. Received: {folder} ({error})"
    )


def _file_of(recipe: Recipe) -> str:
    return "model.tflite" if recipe.target == "tflite" else "model"


def _first_output(path: pathlib.Path) -> str | None:
    names = [info.name for info in inspection.inspect(path).signatures[0].outputs]
    return names[0] if len(names) > 1 else None


def _digest(folder: pathlib.Path) -> bytes:
    return artifacts.sha256(folder).encode()
