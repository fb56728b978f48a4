"""Stages for SavedModels: rewriting of the graph, smaller weights, and training."""

from __future__ import annotations

import functools
import glob
from collections.abc import Mapping, Sequence
from typing import Any

from tfopt.optimizing._mixed import Unit, shortest, step_back
from tfopt.optimizing._search import Search
from tfopt.optimizing._trainer import Trainer
from tfopt.optimizing._trials import Trial
from tfopt.quantization import QuantizationSensitivity
from tfopt.types import TfoptError

_DEPLOY = "deploy"
# Name of the method -> name of the candidate -> steps; cheap and harmless ones first.
_CANDIDATES: dict[str, dict[str, list[dict[str, Any]]]] = {
    "deploy": {"deploy": [{"do": "transform_graph", "transforms": _DEPLOY}]},
    "grappler": {
        "Grappler, lossless": [{"do": "optimize_graph", "config": "lossless"}],
        "deploy, then Grappler": [
            {"do": "transform_graph", "transforms": _DEPLOY},
            {"do": "optimize_graph", "config": "default"},
        ],
    },
    "half": {
        "computed in bfloat16": [
            {"do": "transform_graph", "transforms": f"{_DEPLOY} cast_bfloat16"}
        ],
    },
}
# What weights may become, the smallest last: what it is called, and the method of
# `tfopt.sensitivity` that measures the same.
_WEIGHTS: dict[Any, tuple[str, str]] = {
    "float16": ("weights in float16", "float16"),
    8: ("weights in 8 bits", "int8_weights"),
    4: ("weights in 4 bits", "int4_weights"),
}
METHODS = (*_CANDIDATES, "small", "mixed", "prune_once", "prune")
TRIALS = sum(len(group) for group in _CANDIDATES.values()) + len(_WEIGHTS)
# Trials for weights left in float, and for sparsity, at most.
MIXED_TRIES, SPARSITY_TRIES, TRAININGS = 24, 4, 4
# Nodes that a weight left in float spares.
_NODE_BYTES = 300


def rewritten(search: Search) -> None:
    """Tries every rewriting that is wanted."""
    candidates = [
        candidate
        for method, group in _CANDIDATES.items()
        if method in search.methods
        for candidate in group.items()
    ]
    for name, steps in candidates:
        if search.seconds_left <= 0:
            search.note(f"Left out for lack of time: {name}.")
            continue
        search.attempt(name, steps, parent=search.study.baseline)
    if "small" not in search.methods:
        return
    for bits in _WEIGHTS:
        if search.seconds_left <= 0:
            search.note(f"Left out for lack of time: {_WEIGHTS[bits][0]}.")
            continue
        _small(search, bits)


def mixed(search: Search) -> None:
    """Leaves the weights in float whose rounding costs most, where all are too many."""
    for bits, (name, method) in _WEIGHTS.items():
        plain = _small(search, bits)
        if plain.figures is None or search.is_accepted(plain):
            continue
        if search.seconds_left <= 0:
            search.note(f"Left out for lack of time: {name}, some in float.")
            continue
        try:
            scores = search.sensitivity((method,), "alone")
        except (TfoptError, ValueError) as error:
            search.note(f"What rounding of each weight costs is unknown: {error}")
            return
        units = _units(_tensors(plain), scores, method)
        _note_worst(search, plain, name, units)
        attempt = functools.partial(_with_exceptions, search, bits, plain)
        kept = shortest(search, units, attempt)
        if kept is None:
            search.note(f"{name}, some in float: no division keeps the budget.")
        else:
            step_back(search, kept, attempt)


def pruned_at_once(search: Search) -> None:
    """Looks for the most zeros that weights stand without training."""
    last = best_weights(search)

    def attempt(sparsity: float) -> Trial:
        transforms = [
            _DEPLOY,
            ["prune_weights", {"sparsity": sparsity, "scope": "global"}],
            *last,
        ]
        steps = [{"do": "transform_graph", "transforms": transforms}]
        name = f"pruned at once to {sparsity:g}"
        return search.attempt(name, steps, parent=search.study.baseline)

    search.bisect(attempt, low=0.0, high=0.95, first=0.5, tries=SPARSITY_TRIES)


def trained(search: Search, trainer: Trainer) -> None:
    """Lifts the graph, prunes while training, and freezes what came out."""
    last = best_weights(search)
    epochs = trainer.schedule.short

    def attempt(sparsity: float) -> Trial | None:
        steps = [
            trainer.step([trainer.prune(sparsity, epochs)], epochs),
            {"do": "transform_graph", "transforms": [_DEPLOY, *last]},
        ]
        name = f"trained, {sparsity:g} zeros, {epochs} epochs"
        is_begun = search.study.is_begun(search.recipe(name, steps))
        if not is_begun and search.seconds_left < trainer.seconds(epochs):
            search.note(f"Left out for lack of time: {name}.")
            return None
        return search.attempt(name, steps, parent=search.study.baseline)

    search.bisect(
        attempt, low=0.5, high=0.99, first=0.8, tries=TRAININGS, relative=True
    )


def best_weights(search: Search) -> list[Any]:
    """Returns the transforms of the fewest bits that keep the budget."""
    found: list[Any] = []
    for bits in _WEIGHTS:
        for trial in search.study.trials.values():
            steps = [item.to_json() for item in trial.recipe.steps]
            if steps == _small_steps(bits) and search.is_accepted(trial):
                found = [["quantize_weights", {"bits": bits}]]
    return found


def _small_steps(bits: Any, exclude: Sequence[str] = ()) -> list[dict[str, Any]]:
    options: dict[str, Any] = {"bits": bits}
    if exclude:
        options["exclude"] = list(exclude)
    transforms = [_DEPLOY, ["quantize_weights", options]]
    return [{"do": "transform_graph", "transforms": transforms}]


def _small(search: Search, bits: Any) -> Trial:
    name = _WEIGHTS[bits][0]
    return search.attempt(name, _small_steps(bits), parent=search.study.baseline)


def _tensors(trial: Trial) -> list[Mapping[str, Any]]:
    """Returns what a trial says about each of its rounded weights."""
    steps = trial.reports[-1]["details"]["steps"]
    return [
        tensor
        for step in steps
        if step["name"] == "quantize_weights"
        for tensor in step["findings"]["tensors"]
    ]


def _units(
    tensors: Sequence[Mapping[str, Any]], scores: QuantizationSensitivity, method: str
) -> list[Unit]:
    """Returns the weights, from the most worth keeping in float to the least.

    The noise is that of the layers that use a weight, as measured of the same model as
    a `.tflite` file, whose layers have the names of the graph's operations.
    """
    noises = {name: score.noise for name, score in scores.alone[method].items()}
    units = []
    for tensor in tensors:
        users = [tensor["node"], *tensor["users"]]
        noise = sum(
            value
            for layer, value in noises.items()
            if any(_belongs(user, layer) for user in users)
        )
        cost = tensor["bytes_before"] - tensor["bytes_after"] + _NODE_BYTES
        units.append(Unit((tensor["node"],), noise, float(max(cost, 1))))
    return sorted(units, key=lambda unit: unit.worth, reverse=True)


def _belongs(node: str, layer: str) -> bool:
    return node == layer or node.startswith(f"{layer}/") or layer.startswith(f"{node}/")


def _note_worst(search: Search, plain: Trial, name: str, units: Sequence[Unit]) -> None:
    total = sum(unit.noise for unit in units) or 1.0
    shown = ", ".join(
        f"{unit.layers[0]} {unit.noise / total:.0%}"
        for unit in sorted(units, key=lambda unit: unit.noise, reverse=True)[:3]
    )
    search.note(
        f"Why not {name} throughout: {search.judge(plain).reason}. The weights whose "
        f"rounding makes most of the noise: {shown}."
    )


def _with_exceptions(
    search: Search, bits: Any, plain: Trial, kept: Sequence[Unit]
) -> Trial:
    names = sorted(name for unit in kept for name in unit.layers)
    shown = ", ".join(names) if len(names) <= 3 else f"{len(names)} of them"
    return search.attempt(
        f"{_WEIGHTS[bits][0]}, in float: {shown}"[:200],
        _small_steps(bits, [glob.escape(name) for name in names]),
        parent=plain,
    )
