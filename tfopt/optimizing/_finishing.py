"""The end of a search: finalists on held-out examples, the choice, the report."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tfopt.optimizing import _judging
from tfopt.optimizing._judging import Judgement
from tfopt.optimizing._planning import Stage
from tfopt.optimizing._result import Candidate, OptimizeResult, make_report
from tfopt.optimizing._search import FINALISTS, Search
from tfopt.optimizing._trials import BASELINE, Figures, Trial
from tfopt.report import Report
from tfopt.types import TfoptError

_LOGGER = logging.getLogger(__name__)

# Accepted candidates are measured together, so many; further ones only if none of
# these keeps the budget there. Each of them with at least so many calls.
_RUNS = 30
# Times and memory differ by so much from run to run: of candidates as close as that
# the smaller file is chosen, and of such files the most accurate one.
_NOISE = 0.03


def finish(search: Search, stages: Sequence[Stage], *, dry_run: bool) -> OptimizeResult:
    """Chooses among the trials and reports.

    Args:
        search: The search, all stages done.
        stages: What was to be done.
        dry_run: Whether nothing was done.
    """
    trials = [] if dry_run else list(search.study.trials.values())
    candidates, final = _final(search, trials)
    accepted = [
        item
        for item in candidates
        if item.judgement.verdict == "accepted" and item.holdout is not None
    ]
    best = _best(accepted, search)
    plan = [stage.to_json() for stage in stages]
    context = {
        "objective": search.objective,
        "max_accuracy_drop": search.budget,
        "metric": search.problem.quality.name,
        "seed": search.study.seed,
        "num_search_examples": len(search.problem.search),
        "num_holdout_examples": len(search.problem.holdout),
        "seconds": search.seconds_used,
    }
    return OptimizeResult(
        best=best,
        closest=_closest(candidates),
        candidates=candidates,
        objective=search.objective,
        max_accuracy_drop=search.budget,
        metric=search.problem.quality.name,
        report=make_report(
            candidates=candidates,
            best=best,
            final=final,
            context=context,
            plan=plan,
            notes=search.notes,
        ),
        trials_dir=str(search.study.folder),
        plan=plan,
        notes=tuple(search.notes),
    )


def _best(accepted: Sequence[Candidate], search: Search) -> Candidate | None:
    """Chooses by the final run: all in turn, and with more calls than in the search."""
    margin = 1.0 if search.objective == "size" else 1 + _NOISE
    left = list(accepted)
    for objective in (search.objective, "size"):
        costs = [_judging.cost(x.holdout, objective) for x in left if x.holdout]
        least = min(costs, default=0.0)
        left = [
            item
            for item, cost in zip(left, costs, strict=True)
            if cost <= margin * least
        ]
    return min(left, key=lambda item: item.judgement.drop or 0.0, default=None)


def _final(
    search: Search, trials: Sequence[Trial]
) -> tuple[list[Candidate], Report | None]:
    """Measures the finalists together, and gives every trial its verdict."""
    front = {trial.key for trial in _judging.pareto(trials, search.problem)}
    accepted = sorted(
        (x for x in trials if x.name != BASELINE and search.is_accepted(x)),
        key=lambda trial: _cost(trial.figures, search),
    )
    final: Report | None = None
    holdout: dict[str, Figures] = {}
    failures: dict[str, str] = {}
    for start in range(0, len(accepted), FINALISTS):
        group = accepted[start : start + FINALISTS]
        named = {_label(trial, group): trial for trial in group}
        files = {name: str(trial.path) for name, trial in named.items()}
        examples = search.problem.holdout
        _LOGGER.info("measuring %d finalists on held-out examples", len(group))
        final = search.study.judge.compare(files, examples, num_runs=_RUNS)
        for name, trial in named.items():
            try:
                holdout[trial.key] = search.study.judge.compared(final, name)
            except TfoptError as error:
                failures[trial.key] = str(error)
        if any(_held(search, trial, holdout) for trial in group):
            break
    candidates = []
    for trial in trials:
        found = holdout.get(trial.key)
        judgement = search.judge(trial)
        if trial.key in failures:
            judgement = Judgement("infeasible", failures[trial.key])
        elif found is not None:
            judgement = _on_holdout(search, trial, found, judgement)
        candidates.append(Candidate(trial, judgement, found, trial.key in front))
    return candidates, final


def _on_holdout(
    search: Search, trial: Trial, found: Figures, judgement: Judgement
) -> Judgement:
    again = _judging.judge_figures(
        found, search.problem, search.budget, trained=trial.recipe.trains
    )
    if again.verdict == "accepted":
        return judgement
    return Judgement(again.verdict, f"on held-out examples: {again.reason}", again.drop)


def _held(search: Search, trial: Trial, holdout: dict[str, Figures]) -> bool:
    found = holdout.get(trial.key)
    return (
        found is not None
        and _judging.judge_figures(
            found, search.problem, search.budget, trained=trial.recipe.trains
        ).verdict
        == "accepted"
    )


def _closest(candidates: Sequence[Candidate]) -> Candidate | None:
    measured = [
        item
        for item in candidates
        if item.judgement.drop is not None and item.name != BASELINE
    ]
    return min(measured, key=lambda item: item.judgement.drop or 0.0, default=None)


def _cost(figures: Figures | None, search: Search) -> float:
    if figures is None:
        return float("inf")
    return _judging.cost(figures, search.objective)


def _label(trial: Trial, group: Sequence[Trial]) -> str:
    twins = [item for item in group if item.name == trial.name]
    name = trial.name or "recipe"
    return name if len(twins) == 1 and name != BASELINE else f"{name} {trial.key[:6]}"
