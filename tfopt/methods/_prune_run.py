"""The state of one `fit` with Prune: masks in force, and how they change."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from tfopt import schedules
from tfopt.methods import _ramp, _scores, _targets
from tfopt.methods._guarding import GuardedRun
from tfopt.methods._masking import Masks
from tfopt.methods._prune_log import Log
from tfopt.types import TfoptError

_log = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Run(GuardedRun):
    """The state of one `fit`.

    Attributes:
        guard: The masks in force.
        selection: What is pruned.
        scorer: Scores the weights.
        keep: Bool arrays by weight name; False is zero for good.
        schedule: None: the masks never change.
        fit: What the `fit` plans.
        due: The next step that updates the masks; None: no more.
        threshold: Prunes what scores less, instead of the schedule's sparsity.
        log: For TensorBoard.
        undo: What takes penalties off again.
        is_last_epoch: Whether the last planned epoch is running.
    """

    guard: Masks
    selection: _targets.Selection
    scorer: _scores.Scorer
    keep: dict[str, np.ndarray]
    schedule: schedules.Schedule | None
    fit: _ramp.Fit
    due: int | None
    threshold: float | None = None
    log: Log | None = None
    undo: list[Callable[[], None]] = dataclasses.field(default_factory=list)
    is_last_epoch: bool = False

    def values(self) -> dict[str, np.ndarray]:
        """Returns the weights that are pruned by name, as float arrays."""
        return {name: self.guard.value(name) for name in self.keep}

    def begin(
        self, values: dict[str, np.ndarray], batches: int
    ) -> dict[str, np.ndarray]:
        """Returns the masks to begin with, by weight name.

        A score that training has to show first is not there when training goes on in
        the middle of a schedule. Then what is zero stays zero, up to the first update
        for which there is a score.

        Args:
            values: The weights.
            batches: How many batches an execution has.
        """
        ramp, first = self.schedule, self.fit.first
        if ramp is None or not self.scorer.is_observed or first <= ramp.begin_step:
            return self.keep
        is_over = ramp.end_step is not None and first >= ramp.end_step
        if not is_over:
            _log.warning(
                "Training goes on at step %d with what it sees from now on as the "
                "score %r; masks may differ from those of an uninterrupted run.",
                first,
                self.scorer.score,
            )
        due = ramp.next_update(first + batches)
        self.due = first + batches + 1 if due is None and not is_over else due
        return {name: self.keep[name] & (value != 0) for name, value in values.items()}

    def update(self, step: int) -> None:
        """Computes and applies the masks of a step of the schedule.

        Raises:
            TfoptError: Weights are NaN, or there are no scores.
        """
        values = self.values()
        bad = [name for name, value in values.items() if np.isnan(value).any()]
        if bad:
            raise TfoptError(
                "The training has diverged: weights are NaN, so none is smallest. Try "
                f"a lower learning rate. Received: weights={bad}, step={step}"
            )
        if self.schedule is None:
            return
        sparsity_of = _ramp.sparsity_at(self.schedule, step)
        if self.threshold is not None:
            computed = self.selection.above(self._scores(values), self.threshold)
        elif any(sparsity_of(target.final) for target in self.selection.targets):
            computed = self.selection.masks(self._scores(values), sparsity_of)
        else:
            return  # nothing to prune yet, and perhaps no scores
        kept = {name: mask & self.keep[name] for name, mask in computed.items()}
        self.guard.assign(self.selection.with_followers(kept))

    def end(self, report: list[dict[str, Any]]) -> None:
        """Takes everything off the model again; fills in the report's sparsities."""
        self.scorer.remove()
        for undo in self.undo:
            undo()
        self.guard.remove()
        values = self.values()
        for row in report:
            if row["pruned"]:
                row["sparsity"] = float(np.mean(values[row["name"]] == 0))
        if self.log is not None:
            self.log.close()

    def _scores(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns scores; what is pruned already has the lowest."""
        scores = self.scorer.compute(values)
        if self.scorer.score == "magnitude":  # of zeros it is the lowest anyway
            return scores
        before, result = self.guard.numpy(), {}
        for name, score in scores.items():
            score = np.where(self.keep[name], score, score.min())
            result[name] = np.where(before[name] | ~self.keep[name], score, -np.inf)
        return result
