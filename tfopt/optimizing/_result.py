"""What `optimize` returns, and its report."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from tfopt import artifacts, comparison
from tfopt.optimizing._judging import Judgement, Objective
from tfopt.optimizing._trials import Figures, Trial
from tfopt.report import Bars, Column, Report, Scatter, Table

_LOGGER = logging.getLogger(__name__)
_NOTES = (
    "Candidates were compared on one half of the examples; the chosen one had to keep "
    "the budget on the other half as well, which nothing had been searched on.",
)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A trial with the verdict over it.

    Attributes:
        trial: The recipe, the file and its figures.
        judgement: Verdict and reason, the held-out examples included.
        holdout: Figures on the held-out examples; None of trials that were no
            finalists.
        is_on_front: Whether no other candidate beats it in size, quality and latency.
    """

    trial: Trial
    judgement: Judgement
    holdout: Figures | None = None
    is_on_front: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.trial.name

    @property
    def path(self) -> str | None:
        """The file, or the SavedModel directory."""
        return self.trial.path

    @property
    def recipe(self) -> Any:
        """How it was made; a `tfopt.Recipe`."""
        return self.trial.recipe

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain data."""
        trial = self.trial
        return {
            "name": self.name,
            "key": trial.key,
            "parent": trial.parent,
            "verdict": self.judgement.verdict,
            "reason": self.judgement.reason,
            "drop": self.judgement.drop,
            "is_on_front": self.is_on_front,
            "path": trial.path,
            "seconds": trial.seconds,
            "search": trial.figures,
            "holdout": self.holdout,
            "kept_float": trial.kept_float,
            "recipe": trial.recipe,
        }


@dataclasses.dataclass(frozen=True)
class OptimizeResult:
    """What a search found.

    Attributes:
        best: The candidate that is best by the objective and keeps the budget on
            held-out examples; None if none does.
        closest: The one that came closest to the budget.
        candidates: All that were tried, in the order they were tried.
        objective: What was to be small.
        max_accuracy_drop: The budget.
        metric: Name of the metric.
        report: Tables and charts, see `tfopt.Report`.
        trials_dir: Folder of the trials.
        plan: What was to be done, with estimated seconds; all there is of a dry run.
        notes: What was decided on the way, and why.
    """

    best: Candidate | None
    closest: Candidate | None
    candidates: Sequence[Candidate]
    objective: Objective
    max_accuracy_drop: float
    metric: str
    report: Report
    trials_dir: str
    plan: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()

    @property
    def front(self) -> list[Candidate]:
        """The candidates that no other one beats in size, quality and latency."""
        return [item for item in self.candidates if item.is_on_front]

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain data."""
        return self.report.to_json()

    def write(self, output_dir: str | os.PathLike[str]) -> list[str]:
        """Writes the best file, its recipe, and the report; returns the paths.

        `best.tflite` or the SavedModel `best`, `recipe.json`, `report.json`, `.md` and
        `.html`, and PNG plots if matplotlib is installed. All appear together; a best
        file of an earlier search goes if there is none now, or of another kind.

        Raises:
            TfoptError: The folder cannot be written.
        """
        folder = pathlib.Path(output_dir)
        written = ["report.md", "report.html", "report.json"]
        with artifacts.atomic_set() as outputs:
            source = None
            if self.best is not None and self.best.path is not None:
                source = pathlib.Path(self.best.path)
                written += ["recipe.json", f"best{source.suffix}"]
            for name in _of_earlier_search(folder) - {*written}:
                _LOGGER.info("removing %s of an earlier search", folder / name)
                outputs.remove(folder / name)
            comparison.add(self.report, folder, outputs)
            if self.best is not None and source is not None:
                self.best.recipe.save(outputs.add(folder / "recipe.json"))
                copy = shutil.copytree if source.is_dir() else shutil.copyfile
                copy(source, outputs.add(folder / written[-1]))
        return [str(folder / name) for name in written]

    def __str__(self) -> str:
        shown = dataclasses.replace(self.report, tables=self.report.tables[:1])
        return shown.text() + ("\n\n" + self.summary() if self.candidates else "")

    def summary(self) -> str:
        """Returns what came out, in a few lines."""
        figures = None if self.best is None else self.best.holdout
        if self.best is None or figures is None:
            return self.failure()
        ratio = figures.baseline_gzip_bytes / figures.gzip_bytes
        return (
            f"best: {self.best.name}: {figures.gzip_bytes:,} bytes after gzip, "
            f"{ratio:.2f}× smaller; "
            f"{self.metric} {figures.value:.4g} on held-out examples, the original's "
            f"{figures.baseline:.4g}; latency {figures.latency_ratio:.2f}× the "
            "original's"
        )

    def failure(self) -> str:
        """Returns what came closest where nothing keeps the budget."""
        text = (
            f"No candidate keeps the budget: {self.metric} may be worse by "
            f"{self.max_accuracy_drop:g}."
        )
        if self.closest is None:
            return f"{text} Not one could be measured; the report has the reasons."
        return f"{text} Closest: {self.closest.name}, {self.closest.judgement.reason}"


def make_report(
    *,
    candidates: Sequence[Candidate],
    best: Candidate | None,
    final: Report | None,
    context: Mapping[str, Any],
    plan: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
) -> Report:
    """Returns the report of a search.

    Args:
        candidates: All that were tried.
        best: The chosen one.
        final: Comparison of the finalists on held-out examples.
        context: Objective, budget, metric.
        plan: What was to be done.
        notes: What was decided.
    """
    metric = context["metric"]
    tables = [_candidate_table(candidates, context)] if candidates else []
    tables.append(_plan_table(plan))
    charts: list[Scatter | Bars] = []
    if candidates:
        charts += [
            Scatter(title=f"{metric} and size", x="gzip_bytes", y="value"),
            Scatter(title=f"{metric} and latency", x="latency_ms", y="value"),
        ]
    if final is not None:
        held_out = final.tables[0]
        title = f"Finalists on held-out examples. {held_out.title}"
        tables.append(dataclasses.replace(held_out, title=title))
        tables += final.tables[1:]
        charts += [chart for chart in final.charts if isinstance(chart, Bars)]
    return Report(
        title="Optimization",
        tables=tables,
        notes=[*notes, *(_NOTES if candidates else ())],
        data={
            **context,
            "best": best,
            "candidates": list(candidates),
            "plan": list(plan),
        },
        charts=charts,
    )


def _candidate_table(
    candidates: Sequence[Candidate], context: Mapping[str, Any]
) -> Table:
    rows: dict[str, dict[str, Any]] = {}
    reasons = {}
    for item in candidates:
        name = _free(item.name, rows)
        rows[name] = _row(item)
        if item.judgement.verdict != "accepted":
            reasons[name] = item.judgement.reason
    memory = Column(key="memory", title="file and arena", unit="bytes")
    columns = [
        Column(key="verdict"),
        Column(key="front", title="Pareto"),
        Column(key="value", title=str(context["metric"])),
        Column(key="drop", title="worse by"),
        Column(key="gzip_bytes", title="gzip", unit="bytes"),
        Column(key="ratio", title="gzip ratio", unit="×", format=".2f"),
        Column(key="latency_ms", title="latency", unit="ms"),
        Column(key="latency_ratio", title="of the original's", format=".2f"),
        *([memory] if context["objective"] == "memory" else []),
        Column(key="kept_macs", title="MACs in float", format=".1%"),
        Column(key="held_out", title="held out"),
        Column(key="seconds", unit="s", format=".1f"),
    ]
    return Table(
        title=f"Candidates, on the examples searched on ({context['objective']})",
        columns=columns,
        rows=rows,
        footnotes=reasons,
        corner="candidate",
    )


def _row(item: Candidate) -> dict[str, Any]:
    figures, kept = item.trial.figures, item.trial.kept_float
    row: dict[str, Any] = dict.fromkeys(
        ("value", "gzip_bytes", "latency_ms", "latency_ratio", "ratio")
    )
    if figures is not None:
        row |= {key: getattr(figures, key) for key in row if key != "ratio"}
        row["ratio"] = figures.baseline_gzip_bytes / figures.gzip_bytes
    return {
        **row,
        "memory": None if figures is None else figures.planned_bytes,
        "verdict": item.judgement.verdict,
        "front": "yes" if item.is_on_front else "",
        "drop": item.judgement.drop,
        "kept_macs": None if kept is None else kept["macs_share"],
        "held_out": None if item.holdout is None else item.holdout.value,
        "seconds": item.trial.seconds,
    }


def _plan_table(plan: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        title="Plan",
        columns=[
            Column(key="trials", title="trials at most"),
            Column(key="seconds", title="estimated", unit="s", format=",.0f"),
            Column(key="when"),
        ],
        rows={item["stage"]: item for item in plan},
        corner="stage",
    )


def _of_earlier_search(folder: pathlib.Path) -> set[str]:
    """Returns the best file and its recipe, if the report beside them has them."""
    try:
        text = (folder / "report.json").read_text(encoding="utf-8")
        if json.loads(text)["best"] is None:
            return set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    found = {name for name in ("best.tflite", "recipe.json") if _is_file(folder, name)}
    if artifacts.format_of(folder / "best") == "saved_model":
        found.add("best")
    return found


def _is_file(folder: pathlib.Path, name: str) -> bool:
    return (folder / name).is_file()


def _free(name: str, taken: Mapping[str, Any]) -> str:
    choice, number = name, 1
    while choice in taken:
        number += 1
        choice = f"{name} ({number})"
    return choice
