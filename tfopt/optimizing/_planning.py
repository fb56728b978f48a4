"""The plan: which stages there are, in order, and how long they may take."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from tfopt.optimizing import _after_training, _graphs, _mixed, _trainer, _training
from tfopt.optimizing._search import FINALISTS, Search, convert
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
        found = _of_graphs(search, seconds)
    else:
        found = [*_untrained(search, seconds), *_trained(search, seconds)]
    each = search.seconds_of_finalists / FINALISTS
    text = "on held-out examples, in processes of their own"
    return [*found, Stage("measure finalists", _nothing, FINALISTS, each, text)]


def _of_graphs(search: Search, seconds: float) -> list[Stage]:
    methods = search.methods
    run = functools.partial(_graphs.rewritten, search)
    found = [Stage("rewrite the graph", run, _graphs.TRIALS, seconds)]
    if {"small", "mixed"} <= methods:
        run = functools.partial(_graphs.mixed, search)
        text = "only of the widths that break the budget"
        found.append(
            Stage("keep weights in float", run, _graphs.MIXED_TRIES, seconds, text)
        )
    # Zeros make the compressed file smaller, and nothing else.
    if "prune_once" in methods and search.objective == "size":
        run = functools.partial(_graphs.pruned_at_once, search)
        found.append(Stage("prune at once", run, _graphs.SPARSITY_TRIES, seconds))
    if "prune" in methods and search.objective == "size":
        trainer = _trainer.open_trainer(search)
        if trainer is None:
            return [*found, _no_training(search, seconds)]
        run = functools.partial(_graphs.trained, search, trainer)
        each = seconds + trainer.seconds(trainer.schedule.short)
        text = f"{trainer.schedule.short} epochs each, as far as the time goes"
        found.append(Stage("train", run, _graphs.TRAININGS, each, text))
    return found


def _no_training(search: Search, seconds: float) -> Stage:
    why = "there is no time" if search.problem.train else "there are no examples"
    return Stage("train", _nothing, 0, seconds, f"{why}: see the notes")


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
    bases = methods.intersection(_mixed.BASES)
    if "mixed" in methods and bases:
        found.append(
            Stage(
                "keep layers in float",
                functools.partial(_mixed.mixed, search),
                len(bases) * (_mixed.FORWARD_TRIES + _mixed.BACKWARD_TRIES),
                seconds,
                "only of those quantizations that break the budget",
            )
        )
    # Single zeros make files smaller, not faster.
    if "prune_once" in methods and search.objective == "size":
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
    trainer = _trainer.open_trainer(search)
    if trainer is None:
        return [_no_training(search, seconds)]
    run = functools.partial(_training.fine_tuned, search, trainer)

    planned = trainer.schedule
    short = trainer.seconds(planned.short)
    text = f"{planned.short} epochs each, to find out what can be reached"
    found = [Stage("train", run, _trainer.SHORT, short, text)]
    if planned.long:
        long = trainer.seconds(planned.long)
        text = f"{planned.long} epochs each, as far as the time goes"
        found.append(Stage("train for long", _nothing, _trainer.LONG, long, text))
    return found


def _nothing() -> None:
    """Of stages that another one does, or none."""
