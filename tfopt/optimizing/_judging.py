"""Verdicts over candidates, and which of them no other one beats."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

from tfopt.optimizing._problem import Problem
from tfopt.optimizing._trials import Figures, Trial

Objective = Literal["size", "latency", "memory"]
Verdict = Literal["accepted", "over budget", "anomalous", "infeasible"]

# At most so much better than a constant answer is no better.
_CHANCE_MARGIN = 1.2
# Rounding of the metric is no loss.
_SLACK = 1e-9


@dataclasses.dataclass(frozen=True)
class Judgement:
    """A verdict over a candidate.

    Attributes:
        verdict: `"accepted"`, `"over budget"`, `"anomalous"` or `"infeasible"`.
        reason: Why.
        drop: By how much the metric is worse than the original's; None if unknown.
    """

    verdict: Verdict
    reason: str
    drop: float | None = None


def judge(trial: Trial, problem: Problem, budget: float) -> Judgement:
    """Returns the verdict over a trial, by the examples that are searched on."""
    if trial.figures is None:
        return Judgement("infeasible", trial.error or "there is no file")
    return judge_figures(trial.figures, problem, budget, trained=trial.recipe.trains)


def judge_figures(
    figures: Figures, problem: Problem, budget: float, *, trained: bool
) -> Judgement:
    """Returns the verdict over measured figures.

    Args:
        figures: Of the candidate.
        problem: The task.
        budget: By how much the metric may be worse.
        trained: Whether it was trained: then outputs may differ from the original's
            by more than noise.
    """
    quality = problem.quality
    drop = quality.drop(figures.baseline, figures.value)
    name = quality.name
    shown = f"{name} {figures.value:.4g}, the original's {figures.baseline:.4g}"
    if not figures.is_finite:
        return Judgement("anomalous", f"outputs are not finite; {shown}", drop)
    chance = problem.chance
    if (
        chance is not None
        and figures.value <= chance * _CHANCE_MARGIN < figures.baseline
    ):
        reason = f"{shown}: a constant answer reaches {chance:.4g}"
        return Judgement("anomalous", reason, drop)
    ratio = figures.sqnr_db
    if ratio is not None and ratio <= 0 and not trained and drop > budget:
        reason = f"{shown}; outputs are more noise than signal ({ratio:.1f} dB)"
        return Judgement("anomalous", reason, drop)
    if drop > budget + _SLACK:
        reason = f"{shown}: worse by {drop:.4g}, allowed are {budget:.4g}"
        return Judgement("over budget", reason, drop)
    return Judgement("accepted", shown, drop)


def cost(figures: Figures, objective: Objective) -> float:
    """Returns what is to be small.

    The peak of a process is measured of finalists only; before, the sizes of the file
    and of the arena stand for it.
    """
    if objective == "size":
        return float(figures.gzip_bytes)
    if objective == "latency":
        return figures.latency_ratio
    for known in (figures.peak_bytes, figures.planned_bytes):
        if known is not None:
            return float(known)
    return float(figures.size_bytes)


def pareto(trials: Iterable[Trial], problem: Problem) -> list[Trial]:
    """Returns the trials that no other one beats in size, quality and latency.

    Anomalous and infeasible ones are no candidates.
    """
    usable = [
        trial
        for trial in trials
        if judge(trial, problem, float("inf")).verdict == "accepted"
    ]
    points = {
        trial.key: _point(trial.figures, problem)
        for trial in usable
        if trial.figures is not None
    }
    return [
        trial
        for trial in usable
        if not any(
            _beats(points[other.key], points[trial.key])
            for other in usable
            if other is not trial
        )
    ]


def _point(figures: Figures, problem: Problem) -> Sequence[float]:
    drop = problem.quality.drop(figures.baseline, figures.value)
    return figures.gzip_bytes, drop, figures.latency_ratio


def _beats(first: Sequence[float], second: Sequence[float]) -> bool:
    no_worse = all(a <= b for a, b in zip(first, second, strict=True))
    return no_worse and tuple(first) != tuple(second)
