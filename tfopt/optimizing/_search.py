"""What all stages of the search share: trials, verdicts, time, and noted decisions."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfopt import _json_files, artifacts, report
from tfopt.optimizing import _judging
from tfopt.optimizing._judging import Objective
from tfopt.optimizing._problem import Problem, single
from tfopt.optimizing._trials import Study, Trial
from tfopt.quantization import QuantizationSensitivity, measure
from tfopt.recipe import Recipe, Rule
from tfopt.runner import Runner
from tfopt.types import TfoptError

_LOGGER = logging.getLogger(__name__)
# Of each layer alone, and of the model as a whole, which is measured once.
_SENSITIVITY_EXAMPLES, _WHOLE_EXAMPLES = 512, 2048
_SENSITIVITY_VALUES, _FEWEST_EXAMPLES = 1 << 19, 8
# A narrower interval of fractions is not worth another trial, nor is a smaller gain.
_BISECTION_STEP, _BISECTION_GAIN = 0.015, 1.06
# What the end takes: finalists, a process each; reports, and whatever the clock of a
# search doesn't see, such as the start of a tool.
FINALISTS = 6
_REPORT_SHARE, _FINALIST_SECONDS = 0.05, 2.5


@dataclasses.dataclass(frozen=True)
class Training:
    """How candidates are trained.

    Attributes:
        epochs: Passes of each training; None: as many as there is time for.
        batch_size: Examples in each step.
        learning_rate: At the start; it falls to zero along a cosine.
        optimizer: Name of a Keras optimizer.
        loss: Name of a Keras loss; None: found out, see `tfopt.finetune`.
    """

    epochs: int | None
    batch_size: int
    learning_rate: float
    optimizer: str
    loss: str | None


@dataclasses.dataclass
class Search:
    """The state of a search.

    Attributes:
        problem: The task.
        study: The trials.
        budget: By how much the metric may be worse.
        objective: What is to be small.
        methods: Names of the methods that may be used.
        time_budget: Seconds for everything; None: no limit.
        training: How candidates are trained.
        has_teacher: Whether there is one to learn from.
        started: When the call began, by `time.monotonic`.
        notes: What was decided, and why.
    """

    problem: Problem
    study: Study
    budget: float
    objective: Objective
    methods: frozenset[str]
    time_budget: float | None
    training: Training
    has_teacher: bool
    started: float
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def seconds_used(self) -> float:
        """What went by, and what trials took that an earlier call has made."""
        return time.monotonic() - self.started + self.study.found_seconds

    @property
    def seconds_left(self) -> float:
        """What is left of the time for trials."""
        if self.time_budget is None:
            return float("inf")
        return self.time_budget - self.seconds_at_the_end - self.seconds_used

    @property
    def seconds_at_the_end(self) -> float:
        """What is set aside for finalists, reports and delays."""
        return self.seconds_of_finalists + _REPORT_SHARE * (self.time_budget or 0.0)

    @property
    def seconds_of_finalists(self) -> float:
        """What measuring them is expected to take."""
        return FINALISTS * (_FINALIST_SECONDS + self.study.baseline.seconds)

    def note(self, text: str) -> None:
        """Notes a decision, for the report and for who watches."""
        if text not in self.notes:
            self.notes.append(text)
            _LOGGER.info("%s", text)

    def kept(self, name: str, make: Callable[[], Any], **asked: Any) -> Any:
        """Returns what was decided by the clock, as it was decided first.

        So a search that goes on plans what it had planned.

        Args:
            name: Of the decision.
            make: Decides; returns plain JSON data.
            asked: On what it depends beside the clock.
        """
        digest = hashlib.sha256(artifacts.to_json(asked).encode()).hexdigest()[:8]
        place = self.study.folder / "decisions" / f"{name}_{digest}.json"
        if place.exists():
            try:
                return _json_files.read(place)
            except _json_files.Damaged as error:
                raise TfoptError(
                    "Cannot read what an earlier search decided. Expected what it "
                    f"wrote; delete it to decide anew. Received: {place} ({error})"
                ) from error
        decided = make()
        place.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_json(place, decided)
        return decided

    def recipe(
        self, name: str, steps: Sequence[Mapping[str, Any]], rules: Sequence[Rule] = ()
    ) -> Recipe:
        """Returns the recipe of a candidate."""
        return Recipe(steps=steps, rules=rules, name=name, seed=self.study.seed)

    def attempt(
        self,
        name: str,
        steps: Sequence[Mapping[str, Any]],
        *,
        rules: Sequence[Rule] = (),
        parent: Trial | None = None,
    ) -> Trial:
        """Makes and measures a candidate, unless it is there already."""
        recipe = self.recipe(name, steps, rules)
        is_known = recipe.digest() in self.study.trials
        trial = self.study.run(recipe, parent=parent)
        if not is_known:
            _LOGGER.info("%s", self._told(trial))
        return trial

    def _told(self, trial: Trial) -> str:
        verdict = self.judge(trial)
        text = f"{trial.name}: {verdict.verdict}, {verdict.reason}"
        if trial.figures is not None:
            ratio = trial.figures.baseline_gzip_bytes / trial.figures.gzip_bytes
            text += f"; {ratio:.1f}× smaller"
        left = self.seconds_left
        rest = "" if left == float("inf") else f", {max(left, 0):.0f} s left"
        return f"{text} ({trial.seconds:.0f} s{rest})"

    def judge(self, trial: Trial) -> _judging.Judgement:
        """Returns the verdict over a trial."""
        return _judging.judge(trial, self.problem, self.budget)

    def is_accepted(self, trial: Trial) -> bool:
        """Whether a trial keeps the budget on the examples that are searched on."""
        return self.judge(trial).verdict == "accepted"

    def drop(self, trial: Trial) -> float:
        """Returns by how much a trial is worse; infinite where it failed."""
        found = self.judge(trial).drop
        return float("inf") if found is None else found

    def bisect(
        self,
        attempt: Callable[[float], Trial | None],
        *,
        low: float,
        high: float,
        first: float,
        tries: int,
        relative: bool = False,
    ) -> Trial | None:
        """Looks for the highest fraction whose trial is accepted.

        Args:
            attempt: Fraction -> trial; None ends it.
            low: A fraction that is surely fine.
            high: One that surely isn't.
            first: Where to begin.
            tries: Trials at most.
            relative: Whether what is left counts by its logarithm, not linearly: from
                0.9 to 0.95 is as far as from 0.8 to 0.9. That is what sizes do.

        Returns:
            The accepted trial with the highest fraction; None if there is none.
        """
        best, value = None, first
        for _ in range(tries):
            if self.seconds_left <= 0:
                self.note("A bisection ended early: no time was left.")
                break
            trial = attempt(value)
            if trial is None:
                break
            if self.is_accepted(trial):
                best, low = trial, value
            else:
                high = value
            if relative:
                value = round(1 - math.sqrt((1 - low) * (1 - high)), 4)
                is_close = (1 - low) / (1 - high) < _BISECTION_GAIN
            else:
                value = round((low + high) / 2, 3)
                is_close = high - low < 2 * _BISECTION_STEP
            if is_close:
                break
        return best

    def sensitivity(self, methods: Sequence[str], mode: str) -> QuantizationSensitivity:
        """Returns scores of layers, from the file of scores where they are there.

        Args:
            methods: See `tfopt.sensitivity`.
            mode: Likewise.
        """
        place = self.study.folder / f"sensitivity_{'_'.join(methods)}_{mode}.json"
        if place.exists():
            return QuantizationSensitivity.load(place)
        limit = _WHOLE_EXAMPLES if mode == "whole" else self._sensitivity_examples
        inputs = {
            name: array[:limit] for name, array in self.problem.search.inputs.items()
        }
        given = single(inputs)
        count = len(next(iter(inputs.values())))
        # Of SavedModels only the noise is measured: scores are those of `.tflite`
        # files, whose outputs may have other names.
        is_file = self.study.baseline.recipe.target == "tflite"
        found = measure(
            self.problem.model,
            (given, np.arange(count)) if is_file else given,
            methods=methods,
            mode=mode,
            metric=self._metric(given) if is_file else None,
            higher_is_better=self.problem.quality.higher_is_better,
            examples=count,
            cache=self.study.folder / f"sensitivity_scores_{count}.json",
        )
        found.save(place)
        return found

    @property
    def _sensitivity_examples(self) -> int:
        """How many examples layers are measured on: fewer of large ones."""
        inputs = self.problem.search.inputs.values()
        values = sum(array[:1].size for array in inputs)
        few = max(_SENSITIVITY_VALUES // max(values, 1), _FEWEST_EXAMPLES)
        return min(few, _SENSITIVITY_EXAMPLES)

    def _metric(self, inputs: Any) -> Callable[[Any, Any], float]:
        """Returns the metric as a function of outputs and numbers of examples."""
        quality = self.problem.quality
        if quality.metric is not None:
            labels: Any = self.problem.search.labels
            function = report.find_metric(quality.metric).function

            def task_metric(outputs: Any, rows: np.ndarray) -> float:
                judged, wanted = outputs, labels
                if isinstance(outputs, Mapping):
                    judged = outputs[self.study.judge.output]
                if isinstance(labels, Mapping):
                    wanted = labels[self.study.judge.output]
                return float(function(judged, wanted[rows]))

            return task_metric
        with Runner(str(self.study.baseline.path)) as runner:
            reference = _by_name(runner.run(inputs))

        def agreement(outputs: Any, rows: np.ndarray) -> float:
            found = _by_name(outputs)
            expected = {name: value[rows] for name, value in reference.items()}
            judged = self.study.judge.output or next(iter(expected))
            value = report.agreement(found, expected, judged)[quality.name]
            return float("nan") if value is None else value

        return agreement


def convert(**options: Any) -> dict[str, Any]:
    """Returns the last step of a recipe for a `.tflite` file.

    The trial judges by the metric, so the converter's own limit on noise is lifted;
    names inside of the file are left out.
    """
    integer = options.get("quantization") in ("int8", "int16x8")
    more: dict[str, Any] = {"allow_float_fallback": True} if integer else {}
    more |= {"strip_debug_info": True, "min_sqnr": -100.0}
    return {"do": "convert", **options, **more}


def _by_name(outputs: Any) -> Mapping[str, np.ndarray]:
    return outputs if isinstance(outputs, Mapping) else {"": outputs}
