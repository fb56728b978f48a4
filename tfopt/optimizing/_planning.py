"""The plan: which stages there are, in order, and how long they may take."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from tfopt.optimizing import _after_training, _graphs, _training
from tfopt.optimizing._search import Search, convert
from tfopt.optimizing._trials import BASELINE
from tfopt.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the search.

    Attributes:
        name: What the plan calls it.
        run: Does it.
        trials: How many it makes at most.
        seconds: What one of them is expected to take.
        when: On what it depends.
    """

    name: str
    run: Callable[[], object]
    trials: int
    seconds: float
    when: str = ""

    def to_json(self) -> Mapping[str, Any]:
        """Returns it as a row of the plan."""
        return {
            "stage": self.name,
            "trials": self.trials,
            "seconds": self.trials * self.seconds,
            "when": self.when,
        }


def baseline(target: str, seed: int) -> Recipe:
    """Returns the recipe of the model as it is, in the form that is wanted."""
    if target == "tflite":
        steps = [convert(quantization="none")]
    else:
        steps = [{"do": "transform_graph", "transforms": "strip_unused_nodes"}]
    return Recipe(steps=steps, name=BASELINE, seed=seed)


def stages(search: Search, target: str, recipe: Recipe | None) -> list[Stage]:
    """Returns what is to be done.

    Args:
        search: The search.
        target: What is to come out.
        recipe: Only this one, if it is given.
    """
    seconds = search.study.baseline.seconds
    if recipe is not None:
        replay = functools.partial(search.study.run, recipe)
        return [Stage(f"replay {recipe.name}".strip(), replay, 1, seconds)]
    if target == "saved_model":
        run = functools.partial(_graphs.rewritten, search)
        return [Stage("rewrite the graph", run, _graphs.TRIALS, seconds)]
    return [*_untrained(search, seconds), *_trained(search, seconds)]


def _untrained(search: Search, seconds: float) -> list[Stage]:
    methods = search.methods
    found = [
        Stage(
            "quantize",
            functools.partial(_after_training.quantization, search),
            len({"float16", "dynamic", "int8", "equalize", "int16x8"} & methods),
            seconds,
            "refinements only if plain int8 breaks the budget",
        )
    ]
    if {"int8", "mixed"} <= methods:
        found.append(
            Stage(
                "keep layers in float",
                functools.partial(_after_training.mixed, search),
                _after_training.MIXED_TRIES,
                seconds,
                "only if int8 breaks the budget",
            )
        )
    if "prune_once" in methods:
        found.append(
            Stage(
                "prune at once",
                functools.partial(_after_training.pruned_at_once, search),
                _after_training.SPARSITY_TRIES,
                seconds,
            )
        )
    return found


def _trained(search: Search, seconds: float) -> list[Stage]:
    wanted = {"prune", "quantize_aware", "cluster", "remove_channels"}
    if not wanted & search.methods:
        return []

    def run() -> None:
        trainer = _training.open_trainer(search)
        if trainer is None:
            return
        fine = _after_training.weights_alone(search)
        _training.fine_tuned(search, trainer, low_bit="int4_weights" in fine)

    trials, each, when = 0, seconds, "there are no training examples"
    if search.problem.train is not None:
        trials, when = _training.TRAININGS, "as far as the time goes"
        each += _expected_training(search)
    return [Stage("train", run, trials, each, when)]


def _expected_training(search: Search) -> float:
    trainer = _training.open_trainer(search)
    search.notes.clear()  # said again when it is done
    return 0.0 if trainer is None else trainer.seconds
