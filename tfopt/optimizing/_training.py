"""Stages with training: pruning, quantization-aware training and their combinations.

Short trainings find out what can be reached, one kind of candidate after the other;
what fails there by far is never trained for long. Long ones then make the best of the
kind that came out ahead, with what is left of the time.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from tfopt import surgery
from tfopt.optimizing import _judging
from tfopt.optimizing._after_training import INT8, best_conversion
from tfopt.optimizing._search import Search, convert
from tfopt.optimizing._trainer import Trainer
from tfopt.optimizing._trials import Trial
from tfopt.types import TfoptError

_CLUSTERS = 8
_LOW_BITS = "int4_weights"
# Zeros that every network stands and that none does, and where to begin.
_SPARSITY_LOW, _SPARSITY_HIGH, _SPARSITY_FIRST = 0.5, 0.99, 0.9
_SHORT_TRIES = (3, 2)
_LONG_TRIES, _CHANNEL_TRIES = 8, 5
# What a short training just doesn't reach, a long one goes beyond: by so much less.
_BEYOND = 1.5
# Short trainings don't tell kinds apart whose sizes differ by less.
_CLOSE = 1.2

# Epochs -> name and steps of a candidate.
_Candidate = Callable[[int], tuple[str, list[dict[str, Any]]]]


@dataclasses.dataclass
class Line:
    """One kind of sparse training, and what came of the short ones.

    Attributes:
        name: What tables call it.
        bits: Of the weights' grid; None: trained in float.
        clusters: Values in each weight; None: all that the grid has.
        accepted: Sparsity -> trial.
        rejected: Likewise.
    """

    name: str
    bits: int | None
    clusters: int | None = None
    accepted: dict[float, Trial] = dataclasses.field(default_factory=dict)
    rejected: dict[float, Trial] = dataclasses.field(default_factory=dict)

    @property
    def best(self) -> Trial | None:
        """The accepted one with the most zeros."""
        return self.accepted[max(self.accepted)] if self.accepted else None

    @property
    def bound(self) -> float | None:
        """The fewest zeros beyond the accepted ones that were too many."""
        low = max(self.accepted, default=0.0)
        return min((x for x in self.rejected if x > low), default=None)

    def interval(self) -> dict[str, float]:
        """Returns where long trainings look: `low`, `first` and `high`."""
        low = max(self.accepted, default=_SPARSITY_LOW)
        bound = _SPARSITY_HIGH if self.bound is None else self.bound
        high = 1 - (1 - bound) / _BEYOND
        first = _middle(low, bound) if self.accepted else bound
        return {"low": low, "first": first, "high": high}

    def expected_cost(self, search: Search) -> float:
        """Returns the size at the very edge of the budget, between two trials."""
        fine = self.best
        if fine is None or fine.figures is None:
            return float("inf")
        size = _judging.cost(fine.figures, search.objective)
        beyond = None if self.bound is None else self.rejected[self.bound]
        if beyond is None or beyond.figures is None:
            return size
        drops = search.drop(fine), search.drop(beyond)
        if not drops[0] <= search.budget < drops[1] < float("inf"):
            return size
        share = (search.budget - drops[0]) / (drops[1] - drops[0])
        other = _judging.cost(beyond.figures, search.objective)
        return float(size * (other / size) ** share)


def fine_tuned(search: Search, trainer: Trainer) -> None:
    """Trains candidates, as far as the time goes, for the objective."""
    planned = trainer.schedule
    later = f", then of {planned.long}" if planned.long else ""
    search.note(
        f"An epoch of training takes about {trainer.seconds_per_epoch:.2g} s: "
        f"trainings of {_epochs(planned.short)}{later}."
    )
    if search.objective == "size":
        _for_size(search, trainer)
    else:
        _for_speed(search, trainer)


def _for_size(search: Search, trainer: Trainer) -> None:
    lines = _lines(search)
    interval = {
        "low": _SPARSITY_LOW,
        "high": _SPARSITY_HIGH,
        "first": _SPARSITY_FIRST,
    }
    for line, tries in zip(lines, _SHORT_TRIES, strict=False):
        attempt = functools.partial(
            _sparse, search, trainer, line, trainer.schedule.short
        )
        search.bisect(attempt, **interval, tries=tries, relative=True)
        if line.accepted:  # the next line is not far from there
            first = max(line.accepted)
            low, high = 1 - 2 * (1 - first), 1 - (1 - first) / 2
            interval = {"low": low, "high": high, "first": first}
    if "quantize_aware" in search.methods and not any(x.accepted for x in lines):
        _quantize_aware(search, trainer)
    if trainer.schedule.long and lines:
        _at_the_front(search, trainer, lines)


def _lines(search: Search) -> list[Line]:
    if "prune" not in search.methods:
        return []
    if "quantize_aware" not in search.methods:
        return [Line("all values", None)]
    bits = 4 if "low_bit" in search.methods and _stands_low_bits(search) else 8
    found = [Line(f"{bits} bits", bits)]
    if "cluster" in search.methods:
        found.append(Line(f"{_CLUSTERS} clusters", 8, _CLUSTERS))
    return found


def _stands_low_bits(search: Search) -> bool:
    """Tests early what 4 bits cost: of the weights alone, activations in float.

    What breaks the budget there isn't worth a training.
    """
    quality = search.problem.quality
    try:
        found = search.sensitivity((_LOW_BITS,), "whole")
    except (TfoptError, ValueError) as error:
        search.note(f"Low bits are left out: they cannot be tested. {error}")
        return False
    value = found.whole[_LOW_BITS].metric
    if value is None or found.baseline is None:
        search.note(f"Low bits are left out: {quality.name} cannot be measured.")
        return False
    drop = quality.drop(found.baseline, value)
    fits = drop <= search.budget
    search.note(
        f"Weights of 4 bits alone, not trained for it, cost {drop:.4g} of "
        f"{quality.name}; the budget is {search.budget:.4g}: they are "
        + ("tried." if fits else "left out.")
    )
    return fits


def _at_the_front(search: Search, trainer: Trainer, lines: list[Line]) -> None:
    """Trains for long: each line once that may win, then the one that leads."""
    trainer.plan_long()
    expected = {line.name: line.expected_cost(search) for line in lines}
    lines = sorted(lines, key=lambda line: expected[line.name])
    least = expected[lines[0].name]
    racing = [x for x in lines if x is lines[0] or expected[x.name] <= _CLOSE * least]
    costs: list[float] = []
    intervals = []
    for line in racing:
        found = line.interval()
        trial = _sparse(search, trainer, line, trainer.schedule.long, found["first"])
        if trial is None:
            break
        is_fine = search.is_accepted(trial)
        found["low" if is_fine else "high"] = found["first"]
        found["first"] = _middle(found["low"], found["high"])
        intervals.append(found)
        figures = trial.figures if is_fine else None
        infinite = float("inf")
        cost = _judging.cost(figures, search.objective) if figures else infinite
        costs.append(cost)
    if len(costs) < len(racing):
        return
    leading = min(range(len(costs)), key=costs.__getitem__)
    line, interval = racing[leading], intervals[leading]
    search.note(
        f"{line.name} lead after a long training each: others go on from "
        f"{interval['first']:g} zeros."
        if len(racing) > 1
        else f"Long trainings go on from {interval['first']:g} zeros."
    )
    attempt = functools.partial(_sparse, search, trainer, line, trainer.schedule.long)
    search.bisect(attempt, **interval, tries=_LONG_TRIES, relative=True)


def _middle(low: float, high: float) -> float:
    """Returns the fraction in between by the logarithm of what is left."""
    return round(1 - math.sqrt((1 - low) * (1 - high)), 4)


def _sparse(
    search: Search, trainer: Trainer, line: Line, epochs: int, sparsity: float
) -> Trial | None:
    """Trains for zeros, few values and integers at once."""

    def candidate(epochs: int) -> tuple[str, list[dict[str, Any]]]:
        methods = [*_distilled(search), trainer.prune(sparsity, epochs)]
        last = convert(**INT8)
        if line.bits is None:
            last = best_conversion(search)
        else:
            per_channel = line.clusters is None or trainer.has_batch_norm
            quantize = {"name": "quantize_aware", "weight_bits": line.bits}
            methods.insert(0, {**quantize, "per_channel": per_channel})
            if line.clusters is not None:
                cluster = trainer.cluster(
                    line.clusters, epochs, channel_scales=per_channel
                )
                methods.append(cluster)
        kind = last["quantization"]
        name = f"trained for {kind}, {sparsity:g} zeros, {line.name}"
        return f"{name}, {_epochs(epochs)}", [trainer.step(methods, epochs), last]

    trial = _trained(search, trainer, candidate, epochs)
    if trial is not None and epochs == trainer.schedule.short:
        found = line.accepted if search.is_accepted(trial) else line.rejected
        found[sparsity] = trial
    return trial


def _for_speed(search: Search, trainer: Trainer) -> None:
    int8_is_fine = best_conversion(search)["quantization"] == "int8"
    if "quantize_aware" in search.methods and not int8_is_fine:
        _quantize_aware(search, trainer)
    if "remove_channels" in search.methods:
        Channels(search, trainer).run()


class Channels:
    """The search for the fewest channels."""

    def __init__(self, search: Search, trainer: Trainer):
        self._search = search
        self._trainer = trainer
        # Shapes of weights and epochs -> trial.
        self._known: dict[tuple[str, int], Trial] = {}
        self._rejected: set[float] = set()
        self._accepted: set[float] = {0.0}

    def run(self) -> None:
        """Looks with short trainings, then gives what just failed a long one."""
        planned = self._trainer.schedule
        options: dict[str, Any] = {"high": 0.95, "tries": _CHANNEL_TRIES}
        self._search.bisect(
            functools.partial(self._attempt, planned.short),
            low=0.0,
            first=0.5,
            **options,
        )
        best = max(self._accepted)
        beyond = [fraction for fraction in self._rejected if fraction > best]
        self._search.note(
            f"After short trainings, {best:.0%} of the channels can be spared"
            + (f", {min(beyond):.0%} cannot." if beyond else "; no more was tried.")
        )
        self._trainer.plan_long()
        planned = self._trainer.schedule
        if beyond and planned.long:
            attempt = functools.partial(self._attempt, planned.long)
            self._search.bisect(attempt, low=best, first=min(beyond), **options)
        best = max(self._accepted)
        if best and planned.long:  # as fast, but further from the edge of the budget
            self._train(planned.long, best)

    def _attempt(self, epochs: int, fraction: float) -> Trial | None:
        shapes = self._shapes(fraction)
        for length in (self._trainer.schedule.short, epochs):
            known = self._known.get((shapes, length))
            # Fractions that remove the same; what failed may do so for being short.
            if known and (length == epochs or self._search.is_accepted(known)):
                return self._noted(fraction, known)
        trial = self._train(epochs, fraction)
        if trial is not None:
            self._known[shapes, epochs] = trial
            self._noted(fraction, trial)
        return trial

    def _train(self, epochs: int, fraction: float) -> Trial | None:
        search = self._search

        def candidate(epochs: int) -> tuple[str, list[dict[str, Any]]]:
            methods: list[dict[str, Any]] = []
            if "quantize_aware" in search.methods:
                methods.append({"name": "quantize_aware"})
            methods += _distilled(search)
            last = convert(**INT8) if methods else best_conversion(search)
            name = f"{fraction:.0%} of the channels removed, {_epochs(epochs)}"
            remove = {"do": "remove_channels", **_removal(fraction)}
            return name, [remove, self._trainer.step(methods, epochs), last]

        return _trained(search, self._trainer, candidate, epochs)

    def _noted(self, fraction: float, trial: Trial) -> Trial:
        fine = self._search.is_accepted(trial)
        (self._accepted if fine else self._rejected).add(fraction)
        return trial

    def _shapes(self, fraction: float) -> str:
        """Returns what tells one removal from another."""
        try:
            removal = surgery.remove_channels_with_report(
                self._trainer.model, seed=self._search.study.seed, **_removal(fraction)
            )
        except (TfoptError, ValueError):
            return str(fraction)  # the trial will say why
        return str([weight.shape for weight in removal.model.get_weights()])


def _removal(fraction: float) -> dict[str, Any]:
    return {"sparsity": fraction, "round_to": 4}


def _quantize_aware(search: Search, trainer: Trainer) -> None:
    """Trains for int8 alone; for long, if a short training doesn't do."""

    def candidate(epochs: int) -> tuple[str, list[dict[str, Any]]]:
        methods = [{"name": "quantize_aware"}, *_distilled(search)]
        name = f"trained for int8, {_epochs(epochs)}"
        return name, [trainer.step(methods, epochs), convert(**INT8)]

    planned = trainer.schedule
    trial = _trained(search, trainer, candidate, planned.short)
    if trial is not None and not search.is_accepted(trial) and planned.long:
        _trained(search, trainer, candidate, planned.long)


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _distilled(search: Search) -> list[dict[str, Any]]:
    wanted = search.has_teacher and "distill" in search.methods
    return [{"name": "distill"}] if wanted else []


def _trained(
    search: Search, trainer: Trainer, candidate: _Candidate, epochs: int
) -> Trial | None:
    """Trains a candidate if there is time; a long one, at the end, for less epochs.

    What has been begun goes on in any case.
    """
    name, steps = candidate(epochs)
    recipe = search.recipe(name, steps)
    if not search.study.is_begun(recipe):
        fewest = epochs
        if epochs == trainer.schedule.long:
            fewest = max(epochs // 2, trainer.schedule.short + 1)
        epochs = search.kept(
            "epochs",
            functools.partial(trainer.fitting, epochs),
            recipe=recipe.digest(),
            time_budget=search.time_budget,
            budget=search.budget,
            objective=search.objective,
        )
        if epochs < fewest:
            search.note(f"Left out for lack of time: {name}.")
            return None
        name, steps = candidate(epochs)
    trial = search.attempt(name, steps, parent=search.study.baseline)
    trainer.learn(trial, epochs)
    return trial
