"""Stages with training: pruning, quantization-aware training and their combinations."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tfopt import _keras, artifacts, lifting, training
from tfopt.data import Split
from tfopt.finetuning import _objective
from tfopt.methods.quantize_aware import QuantizeAware
from tfopt.optimizing._after_training import INT8, best_conversion
from tfopt.optimizing._search import Search, convert
from tfopt.optimizing._trials import Trial
from tfopt.types import TfoptError

# Trainings of a whole search; the time is divided among them.
TRAININGS = 7
_MOST_EPOCHS = 15
_SPARSITY_TRIES = 3
_CHANNEL_TRIES = 3
# Parts of a training: pruning ends, clustering begins.
_PRUNED, _CLUSTERED = 0.5, 0.55
_CLUSTERS = 8
_L1_STRENGTH = 1e-4
_PROBE_STEPS = 10
_MOST_STEPS_PER_EXECUTION = 16


class Trainer:
    """Makes the steps that train, and knows how long they take.

    Args:
        search: The search.
        examples: Training examples.

    Raises:
        TfoptError: The model cannot be trained.

    Attributes:
        steps_per_epoch: Optimizer steps.
        seconds_per_epoch: Of quantization-aware training, measured on a few steps.
        epochs: Of each training; 0 if there is no time for one.
    """

    def __init__(self, search: Search, examples: Split):
        self._search = search
        self._examples = examples
        self._model = lifting.open_model(search.problem.model)
        size = search.training.batch_size
        self.steps_per_epoch = examples.num_batches(batch_size=size)
        self.seconds_per_epoch, self.epochs = self._planned()

    @property
    def seconds(self) -> float:
        """What one training is expected to take."""
        return self.epochs * self.seconds_per_epoch

    @property
    def has_batch_norm(self) -> bool:
        """Whether one scale per weight is ruled out."""
        return any(
            type(layer).__name__ == "BatchNormalization"
            for layer in _keras.leaf_layers(self._model)
        )

    def step(self, methods: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns the step that trains with some methods."""
        settings = self._search.training
        loss = {} if settings.loss is None else {"loss": settings.loss}
        return {
            "do": "train",
            "methods": list(methods),
            "epochs": self.epochs,
            "batch_size": settings.batch_size,
            "optimizer": settings.optimizer,
            "learning_rate": settings.learning_rate,
            "learning_rate_schedule": "cosine",
            "steps_per_execution": _divisor(self.steps_per_epoch),
            **loss,
        }

    def prune(self, sparsity: float) -> dict[str, Any]:
        """Returns pruning over all layers, under an L1 penalty."""
        return {
            "name": "prune",
            "initial_sparsity": min(0.5, sparsity / 2),
            "final_sparsity": sparsity,
            "end_step": max(1, int(_PRUNED * self._steps)),
            "scope": "global",
            "sparsity_penalty": {"kind": "l1", "strength": _L1_STRENGTH},
        }

    def cluster(self, *, channel_scales: bool) -> dict[str, Any]:
        """Returns clustering that begins where pruning has ended."""
        return {
            "name": "cluster",
            "num_clusters": _CLUSTERS,
            "begin_step": int(_CLUSTERED * self._steps),
            "channel_scales": channel_scales,
        }

    @property
    def _steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def _planned(self) -> tuple[float, int]:
        """Returns seconds of an epoch, and epochs; of an earlier run if there was one.

        So a search that goes on makes the same candidates.
        """
        search, settings = self._search, self._search.training
        asked = {
            "batch_size": settings.batch_size,
            "epochs": settings.epochs,
            "time_budget": search.time_budget,
        }
        place = search.study.folder / "training_plan.json"
        if place.exists():
            found = json.loads(place.read_text(encoding="utf-8"))
            if found["asked"] == asked:
                return float(found["seconds_per_epoch"]), int(found["epochs"])
        seconds = self._probe() * self.steps_per_epoch
        epochs = settings.epochs
        if epochs is None:
            left = search.seconds_left / TRAININGS / seconds
            epochs = int(min(_MOST_EPOCHS, max(left, 0)))
        plan = {"asked": asked, "seconds_per_epoch": seconds, "epochs": epochs}
        artifacts.write_json(place, plan)
        return seconds, epochs

    def _probe(self) -> float:
        """Returns the seconds of a step."""
        settings = self._search.training
        size = settings.batch_size
        inputs, labels = next(self._examples.batches(batch_size=size))
        calibration = self._search.problem.calibration
        methods = [QuantizeAware(representative_dataset=calibration)]
        student = training.prepare(self._model, methods)
        whole = self._examples.source
        known = whole[1] if isinstance(whole, tuple) else labels
        found = _objective.find(self._model, known, loss=settings.loss, metrics=())
        student.compile(settings.optimizer, found.loss)
        data = self._examples.dataset(batch_size=size)
        student.fit(inputs, labels, batch_size=size, verbose=0, callbacks=methods)
        start = time.perf_counter()
        steps = min(_PROBE_STEPS, self.steps_per_epoch)
        few = data.take(steps)
        student.fit(few, shuffle=False, verbose=0, callbacks=methods)
        return (time.perf_counter() - start) / steps


def open_trainer(search: Search) -> Trainer | None:
    """Returns a trainer; None, with a note, if nothing can or need be trained."""
    examples = search.problem.train
    if examples is None:
        search.notes.append("Nothing is trained: there are no training examples.")
        return None
    try:
        trainer = Trainer(search, examples.train)
    except (TfoptError, ValueError) as error:
        search.notes.append(f"Nothing is trained: {error}")
        return None
    if trainer.epochs < 1:
        search.notes.append(
            f"Nothing is trained: an epoch takes {trainer.seconds_per_epoch:.0f} s, "
            f"and {max(search.seconds_left, 0):.0f} s are left for {TRAININGS} "
            "trainings."
        )
        return None
    return trainer


def fine_tuned(search: Search, trainer: Trainer, low_bit: bool) -> None:
    """Trains candidates, as far as the time goes, for the objective."""
    if search.objective == "size":
        _for_size(search, trainer, low_bit)
    else:
        _for_speed(search, trainer)


def _for_size(search: Search, trainer: Trainer, low_bit: bool) -> None:
    methods = search.methods
    if "prune" in methods:
        name = "trained to 0.8 zeros"
        step = trainer.step([trainer.prune(0.8)])
        _timed(search, trainer, name, [step, best_conversion(search)])
    if "quantize_aware" not in methods:
        return
    if "prune" not in methods:
        _quantize_aware(search, trainer)
        return
    bits = 4 if low_bit and "low_bit" in methods else 8
    smallest = search.bisect(
        functools.partial(_sparse, search, trainer, bits, None),
        **_interval(0.9, trainer),
    )
    first = 0.9 if smallest is None else _sparsity_of(smallest)
    if "cluster" in methods:
        search.bisect(
            functools.partial(_sparse, search, trainer, 8, _CLUSTERS),
            **_interval(first, trainer),
        )
    if smallest is None:
        _quantize_aware(search, trainer)


def _for_speed(search: Search, trainer: Trainer) -> None:
    int8_is_fine = best_conversion(search)["quantization"] == "int8"
    if "quantize_aware" in search.methods and not int8_is_fine:
        _quantize_aware(search, trainer)
    if "remove_channels" not in search.methods:
        return

    def attempt(fraction: float) -> Trial:
        remove = {"do": "remove_channels", "sparsity": fraction, "round_to": 4}
        methods: list[dict[str, Any]] = []
        if "quantize_aware" in search.methods:
            methods.append({"name": "quantize_aware"})
        methods += _distilled(search)
        last = convert(**INT8) if methods else best_conversion(search)
        name = f"{fraction:.0%} of the channels removed, trained for int8"
        steps = [remove, trainer.step(methods), last]
        return search.attempt(name, steps, parent=search.study.baseline)

    search.bisect(
        attempt,
        low=0.0,
        high=0.95,
        first=0.5,
        tries=_CHANNEL_TRIES,
        seconds=trainer.seconds,
    )


def _quantize_aware(search: Search, trainer: Trainer) -> None:
    methods = [{"name": "quantize_aware"}, *_distilled(search)]
    steps = [trainer.step(methods), convert(**INT8)]
    _timed(search, trainer, "trained for int8", steps)


def _sparse(
    search: Search, trainer: Trainer, bits: int, clusters: int | None, sparsity: float
) -> Trial:
    """Trains for zeros, few values and integers at once."""
    per_channel = clusters is None or trainer.has_batch_norm
    quantize = {
        "name": "quantize_aware",
        "weight_bits": bits,
        "per_channel": per_channel,
    }
    methods = [quantize, *_distilled(search), trainer.prune(sparsity)]
    if clusters is not None:
        methods.append(trainer.cluster(channel_scales=per_channel))
    grid = f"{bits} bits" if clusters is None else f"{clusters} clusters"
    name = f"trained for int8, {sparsity:g} zeros, {grid}"
    steps = [trainer.step(methods), convert(**INT8)]
    return search.attempt(name, steps, parent=search.study.baseline)


def _distilled(search: Search) -> list[dict[str, Any]]:
    wanted = search.has_teacher and "distill" in search.methods
    return [{"name": "distill"}] if wanted else []


def _timed(
    search: Search, trainer: Trainer, name: str, steps: list[dict[str, Any]]
) -> None:
    if search.seconds_left < trainer.seconds:
        search.notes.append(f"Left out for lack of time: {name}.")
        return
    search.attempt(name, steps, parent=search.study.baseline)


def _interval(first: float, trainer: Trainer) -> dict[str, Any]:
    return {
        "low": 0.5,
        "high": 0.99,
        "first": first,
        "tries": _SPARSITY_TRIES,
        "seconds": trainer.seconds,
    }


def _sparsity_of(trial: Trial) -> float:
    train = next(step for step in trial.recipe.steps if step.do == "train")
    named = {item["name"]: item for item in train.options["methods"]}
    return float(named["prune"]["final_sparsity"])


def _divisor(steps: int) -> int:
    """Returns the most steps that one call can make without crossing an epoch."""
    most = min(_MOST_STEPS_PER_EXECUTION, steps)
    return max(number for number in range(1, most + 1) if steps % number == 0)
