"""How candidates are trained: how long, how often, and as which step of a recipe."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfopt import _keras, lifting, training
from tfopt.data import Split
from tfopt.finetuning import _objective
from tfopt.methods._base import Method
from tfopt.methods.quantize_aware import QuantizeAware
from tfopt.optimizing._search import Search
from tfopt.optimizing._trials import Trial
from tfopt.types import TfoptError

# Short trainings look for the sparsity that can be reached; long ones, which are given
# the other three quarters of the time, make the best of it.
SHORT, LONG = 5, 4
_SHORT_SHARE = 0.25
_MOST_SHORT_EPOCHS, _MOST_LONG_EPOCHS = 5, 60
_LONG_EPOCHS_WITHOUT_LIMIT = 30
# Parts of a training: pruning ends, clustering begins.
_PRUNED, _CLUSTERED = 0.5, 0.55
_L1_STRENGTH = 1e-4
_PROBE_CALLS = 6
_OVERHEAD_SECONDS = 3.0
_MOST_STEPS_PER_EXECUTION = 16
# A step that takes longer gains nothing from being made together with others.
_LONG_STEP_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long trainings are.

    Attributes:
        short: Epochs of those that look for what can be reached; 0: there is not even
            time for one.
        long: Epochs of those that make the best of it; 0: there are none.
    """

    short: int
    long: int


class Trainer:
    """Makes the steps that train, and knows how long they take.

    Args:
        search: The search.
        examples: Training examples.

    Raises:
        TfoptError: The model cannot be trained.

    Attributes:
        model: The Keras model, lifted where it wasn't one.
        steps_per_epoch: Optimizer steps.
        seconds_per_epoch: At first of quantization-aware training, measured on a few
            steps; then of the last training.
        schedule: How long trainings are.
    """

    def __init__(self, search: Search, examples: Split):
        self._search = search
        self._examples = examples
        self.model = lifting.open_model(search.problem.model)
        settings = search.training
        size = settings.batch_size
        self.steps_per_epoch = examples.num_batches(batch_size=size)
        speed = search.kept(
            "speed",
            lambda: self._probe() * self.steps_per_epoch,
            batch_size=size,
            optimizer=settings.optimizer,
        )
        self.seconds_per_epoch = float(speed)
        # Of preparing, tracing, converting and measuring; the first training tells.
        self._overhead: float | None = None
        self.schedule = Schedule(0, 0)
        self._plan("schedule", self._planned)

    def seconds(self, epochs: int) -> float:
        """Returns what a training is expected to take, all that belongs to it."""
        overhead = self._search.study.baseline.seconds + _OVERHEAD_SECONDS
        known = self._overhead if self._overhead is not None else overhead
        return known + epochs * self.seconds_per_epoch

    def fitting(self, epochs: int) -> int:
        """Returns how many epochs, so many at most, there is time for."""
        left = self._search.seconds_left - self.seconds(0)
        return int(min(epochs, max(left, 0) / self.seconds_per_epoch))

    def learn(self, trial: Trial, epochs: int) -> None:
        """Takes over how long a training has taken."""
        if trial.figures is None:
            return
        if self._overhead is None:
            self._overhead = max(trial.seconds - epochs * self.seconds_per_epoch, 0.0)
            return
        measured = (trial.seconds - self._overhead) / epochs
        # A training that went on after an interruption seems short.
        self.seconds_per_epoch = max(measured, self.seconds_per_epoch / 2)

    def plan_long(self) -> None:
        """Plans long trainings anew, by what short ones have taken."""
        if self.schedule.long and self._search.time_budget is not None:
            self._plan("schedule_long", self._planned_long)

    def _plan(self, name: str, make: Callable[[], Schedule]) -> None:
        # Whatever budget and objective: so that their trainings are the same ones.
        schedule = self._search.kept(
            name,
            lambda: dataclasses.asdict(make()),
            time_budget=self._search.time_budget,
            epochs=self._search.training.epochs,
            batch_size=self._search.training.batch_size,
        )
        self.schedule = Schedule(**schedule)

    @property
    def has_batch_norm(self) -> bool:
        """Whether one scale per weight is ruled out."""
        return any(
            type(layer).__name__ == "BatchNormalization"
            for layer in _keras.leaf_layers(self.model)
        )

    def step(self, methods: Sequence[Mapping[str, Any]], epochs: int) -> dict[str, Any]:
        """Returns the step that trains with some methods."""
        settings = self._search.training
        loss = {} if settings.loss is None else {"loss": settings.loss}
        return {
            "do": "train",
            "methods": list(methods),
            "epochs": epochs,
            "batch_size": settings.batch_size,
            "optimizer": settings.optimizer,
            "learning_rate": settings.learning_rate,
            "learning_rate_schedule": "cosine",
            "steps_per_execution": _divisor(self.steps_per_epoch),
            **loss,
        }

    def prune(self, sparsity: float, epochs: int) -> dict[str, Any]:
        """Returns pruning over all layers, under an L1 penalty."""
        return {
            "name": "prune",
            "initial_sparsity": min(0.5, sparsity / 2),
            "final_sparsity": sparsity,
            "end_step": max(1, int(_PRUNED * epochs * self.steps_per_epoch)),
            "scope": "global",
            "sparsity_penalty": {"kind": "l1", "strength": _L1_STRENGTH},
        }

    def cluster(
        self, count: int, epochs: int, *, channel_scales: bool
    ) -> dict[str, Any]:
        """Returns clustering that begins where pruning has ended."""
        return {
            "name": "cluster",
            "num_clusters": count,
            "begin_step": int(_CLUSTERED * epochs * self.steps_per_epoch),
            "channel_scales": channel_scales,
        }

    def _planned(self) -> Schedule:
        epochs = self._search.training.epochs
        if epochs is not None:
            return Schedule(epochs, 0)
        left = self._search.seconds_left
        if left == float("inf"):
            return Schedule(_MOST_SHORT_EPOCHS, _LONG_EPOCHS_WITHOUT_LIMIT)
        fitting = max(left - self.seconds(0), 0) / self.seconds_per_epoch
        if fitting < 1:
            return Schedule(0, 0)
        each = _SHORT_SHARE * left / SHORT - self.seconds(0)
        short = min(int(each / self.seconds_per_epoch), _MOST_SHORT_EPOCHS)
        short = max(short, 1)
        return Schedule(short, self._long(short, left - SHORT * self.seconds(short)))

    def _planned_long(self) -> Schedule:
        short = self.schedule.short
        return Schedule(short, self._long(short, self._search.seconds_left))

    def _long(self, short: int, left: float) -> int:
        each = left / LONG - self.seconds(0)
        long = min(int(each / self.seconds_per_epoch), _MOST_LONG_EPOCHS)
        if long <= short:  # there is time for a few trainings only: a single long one
            long = int(max(left - self.seconds(0), 0) / self.seconds_per_epoch)
        return long if long > short else 0

    def _probe(self) -> float:
        """Returns the seconds of a step."""
        alone = self._timed(1)
        together = _divisor(self.steps_per_epoch)
        if alone > _LONG_STEP_SECONDS or together == 1:
            return alone
        return self._timed(together)

    def _timed(self, steps: int) -> float:
        """Returns the seconds of a step, where a call makes several."""
        settings = self._search.training
        size = settings.batch_size
        _, labels = next(self._examples.batches(batch_size=size))
        whole = self._examples.source
        known = whole[1] if isinstance(whole, tuple) else labels
        found = _objective.find(self.model, known, loss=settings.loss, metrics=())
        methods = [
            QuantizeAware(representative_dataset=self._search.problem.calibration)
        ]
        student = _prepared(self.model, methods)
        student.compile(settings.optimizer, found.loss, steps_per_execution=steps)
        ends: list[float] = []

        class Clock(Method):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                del batch, logs
                ends.append(time.perf_counter())

        student.fit(
            self._examples.epochs(range(1), batch_size=size).repeat(),
            steps_per_epoch=_PROBE_CALLS * steps,
            shuffle=False,
            verbose=0,
            callbacks=[*methods, Clock()],
        )
        # The first call traces. A machine that was busy for a moment decides nothing.
        return statistics.median(np.diff(ends)) / steps


def _prepared(model: Any, methods: list[Any]) -> Any:
    """Returns a model for the probe; plain, where none of it can be quantized."""
    try:
        return training.prepare(model, methods)
    except (TfoptError, ValueError):
        methods.clear()
        return training.prepare(model, methods)


def open_trainer(search: Search) -> Trainer | None:
    """Returns a trainer; None, with a note, if nothing can or need be trained."""
    examples = search.problem.train
    if examples is None:
        search.note("Nothing is trained: there are no training examples.")
        return None
    try:
        trainer = Trainer(search, examples.train)
    except (TfoptError, ValueError) as error:
        search.note(f"Nothing is trained: {error}")
        return None
    if trainer.schedule.short < 1:
        search.note(
            f"Nothing is trained: an epoch takes {trainer.seconds_per_epoch:.0f} s, "
            f"and {max(search.seconds_left, 0):.0f} s are left."
        )
        return None
    return trainer


def _divisor(steps: int) -> int:
    """Returns the most steps that one call can make without crossing an epoch."""
    most = min(_MOST_STEPS_PER_EXECUTION, steps)
    return max(number for number in range(1, most + 1) if steps % number == 0)
