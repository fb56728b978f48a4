"""From Prune's words to a schedule, and the schedule against what `fit` plans.

The usual way for pruning to go wrong unnoticed is a schedule that does not fit the
training: too late, too long, or counted from another step. All of that is known before
the first batch, and said then, with the numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tfopt import schedules
from tfopt.methods._guarding import warn

_COUNTING = (
    "Steps count from `optimizer.iterations`: compile the model anew to start at 0, "
    "choose later steps, or leave `end_step` out."
)


@dataclasses.dataclass(frozen=True)
class Fit:
    """What one `fit` plans, in optimizer steps.

    Attributes:
        origin: Steps at the start of the training, if the epochs that this `fit`
            leaves out (`initial_epoch`) belong to it.
        first: Steps that the optimizer has made before.
        last: Steps that it will have made in the end; None: not known.
        batches: Batches per epoch; None: not known.
        epochs: How many epochs are to come.
    """

    origin: int
    first: int
    last: int | None
    batches: int | None
    epochs: int

    def __str__(self) -> str:
        last = "an unknown one" if self.last is None else self.last
        batches = "an unknown number of" if self.batches is None else self.batches
        return (
            f"training from step {self.first} to {last} "
            f"({self.epochs} epochs of {batches} batches)"
        )


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights to prune, as far as a schedule is concerned.

    Attributes:
        size: How many there are.
        zeros: How many of them are zero.
        least_zeros: Returns how many zeros masks make at least, at sparsities that are
            a function of the final ones.
        slack: By how many zeros masks may exceed that.
    """

    size: int
    zeros: int
    least_zeros: Callable[[Callable[[float], float]], int]
    slack: int

    def missing_zeros(self, schedule: schedules.Schedule, step: int) -> int:
        """Returns how many zeros are missing at a step; < 0 is a surplus."""
        update = schedule.last_update(step)
        if update is None:
            return -self.zeros
        missing = self.least_zeros(sparsity_at(schedule, update)) - self.zeros
        return missing if missing > 0 else min(0, missing + self.slack)


def sparsity_at(schedule: schedules.Schedule, step: int) -> Callable[[float], float]:
    """Returns a function: final sparsity -> sparsity at a step, all on one schedule."""

    def sparsity(final: float) -> float:
        if isinstance(schedule, schedules.ConstantSparsity):
            return final
        initial = min(schedule.initial_sparsity, final)
        ramp = dataclasses.replace(
            schedule, final_sparsity=final, initial_sparsity=initial
        )
        return ramp(step)

    return sparsity


def make(
    kind: str,
    *,
    final_sparsity: float,
    initial_sparsity: float,
    begin_step: int,
    end_step: int | None,
    power: float,
    frequency: int | None,
) -> schedules.Schedule:
    """Makes a schedule from Prune's arguments; `"polynomial"` needs an `end_step`."""
    if kind == "constant":
        frequency = 100 if frequency is None else frequency
        return schedules.ConstantSparsity(
            final_sparsity, begin_step, end_step, frequency
        )
    if end_step is None:
        raise ValueError("`end_step` must be a step. Received: end_step=None")
    if frequency is None:
        frequency = schedules.default_frequency(begin_step, end_step)
    return schedules.PolynomialDecay(
        initial_sparsity, final_sparsity, begin_step, end_step, power, frequency
    )


def derive(
    make_ramp: Callable[[int, int], schedules.Schedule],
    *,
    begin_step: int,
    weights: Weights,
    fit: Fit,
    delay: int = 0,
) -> schedules.Schedule:
    """Returns a ramp that suits the length of a training.

    It begins at `begin_step` or where the training does, whichever is later, and
    leaves the last quarter of the steps to the final masks.

    Args:
        make_ramp: Makes a schedule of a begin and an end step.
        begin_step: Where it may begin at the earliest.
        weights: The weights to prune.
        fit: What `fit` plans.
        delay: How many steps of training it waits for at least.

    Raises:
        ValueError: The number of steps is not known.
    """
    if fit.last is None:
        raise ValueError(
            "`end_step` must be given, because the number of steps per epoch is not "
            "known (or give fit a `steps_per_epoch`). Received: end_step=None"
        )
    # If left-out epochs were pruned too (a restored backup), this is the ramp that
    # they had; weights that are not as sparse show that pruning starts only now.
    for origin in (fit.origin, fit.first):
        begin = max(begin_step, origin + delay)
        end = schedules.default_end_step(begin, max(fit.last, begin + 1))
        ramp = make_ramp(begin, end)
        if weights.missing_zeros(ramp, fit.first) <= 0:
            break
    return ramp


def check(
    schedule: schedules.Schedule,
    *,
    weights: Weights,
    fit: Fit,
    keep_existing_zeros: bool,
) -> None:
    """Checks a schedule against the training that is about to start.

    Raises:
        ValueError: The schedule begins after the training, or ended before it.

    Warns:
        UserWarning: It ends after the training, starts with a jump, or lets weights
            grow back that are zero.
    """
    begin, end = schedule.begin_step, schedule.end_step
    received = f"Received: begin_step={begin}, end_step={end}; {fit}"
    missing, size = weights.missing_zeros(schedule, fit.first), weights.size
    if fit.last is not None and begin > fit.last:
        raise ValueError(
            "The schedule begins after the training, so nothing would be pruned. "
            "Train longer, choose an earlier `begin_step`, or pass Prune only to the "
            f"fit that reaches it. {received}"
        )
    if missing > 0 and end is not None and fit.first >= end:
        raise ValueError(
            "The schedule ended before the training, and the model is not that sparse. "
            f"{_COUNTING} {received}"
        )
    if isinstance(schedule, schedules.PolynomialDecay):
        _check_ramp(schedule, fit=fit, missing=missing, received=received)
    if -missing > 0.01 * size and not keep_existing_zeros:
        warn(
            f"{-missing} of {size} weights are zero beyond what the schedule asks for "
            "at first; they will be trained. To keep them zero pass "
            f"keep_existing_zeros=True. {received}"
        )


def _check_ramp(
    ramp: schedules.PolynomialDecay, *, fit: Fit, missing: int, received: str
) -> None:
    if fit.last is not None and ramp.end_step > fit.last:
        reached = ramp(ramp.last_update(fit.last) or 0)
        warn(
            f"The schedule ends after the training: the sparsity will be {reached:.4f} "
            f"and not {ramp.final_sparsity}. Train longer or choose an earlier "
            f"`end_step`. {received}"
        )
    if missing > 0 and fit.first > ramp.begin_step:
        warn(
            f"The schedule began before the training: {missing} weights are pruned at "
            f"once. {_COUNTING} {received}"
        )
