"""Stages without training: quantization of whole models, and pruning at once."""

from __future__ import annotations

from typing import Any

from tfopt.optimizing._search import Search, convert
from tfopt.optimizing._trials import Trial

INT8: dict[str, Any] = {"quantization": "int8"}
REFINED: dict[str, Any] = {**INT8, "equalize": True, "correct_bias": True}
# Trials for sparsity at once, at most.
SPARSITY_TRIES = 4
# Correcting biases runs the model once per layer, without its fast kernels. It is left
# out where that takes more than this share of the time.
_SLOWER, _REFINED_SHARE = 3.0, 0.1
_CORRECTION_EXAMPLES = 128
_LINEAR = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def quantization(search: Search) -> None:
    """Tries every plain kind of quantization, the refined ones only where needed."""
    for name in ("float16", "dynamic", "int8"):
        if name in search.methods:
            search.attempt(name, [convert(quantization=name)])
    if "int8" not in search.methods:
        return
    plain = search.attempt("int8", [convert(**INT8)])
    if search.is_accepted(plain):
        return
    if "equalize" in search.methods and _has_time_to_refine(search, plain):
        search.attempt(
            "int8, equalized, biases corrected", [convert(**REFINED)], parent=plain
        )
    if "int16x8" in search.methods:
        steps = [convert(quantization="int16x8")]
        search.attempt("int16x8", steps, parent=plain)


def _has_time_to_refine(search: Search, plain: Trial) -> bool:
    """Whether biases can be corrected in a small part of the time; notes if not."""
    if search.time_budget is None or plain.figures is None:
        return True
    report = plain.reports[-1]["report"]
    layers = sum(report["operators"].get(kind, 0) for kind in _LINEAR)
    examples = min(report["calibration_examples"], _CORRECTION_EXAMPLES)
    seconds = layers * examples * plain.figures.latency_ms / 1e3 * _SLOWER
    decided = search.kept(
        "refined",
        lambda: {"seconds": seconds},
        time_budget=search.time_budget,
        trial=plain.key,
    )
    if decided["seconds"] <= search.time_budget * _REFINED_SHARE:
        return True
    search.note(
        "int8 with equalized weights and corrected biases is left out: it would take "
        f"about {decided['seconds']:.0f} s."
    )
    return False


def pruned_at_once(search: Search) -> None:
    """Looks for the most zeros that weights stand without training."""
    last = best_conversion(search)

    def attempt(sparsity: float) -> Trial:
        prune = {"do": "prune_once", "sparsity": sparsity, "scope": "global"}
        name = f"pruned at once to {sparsity:g}, {last['quantization']}"
        return search.attempt(name, [prune, last], parent=search.study.baseline)

    search.bisect(attempt, low=0.0, high=0.95, first=0.5, tries=SPARSITY_TRIES)


def best_conversion(search: Search) -> dict[str, Any]:
    """Returns the smallest plain conversion that is accepted; else that to float16."""
    for options in (INT8, REFINED, {"quantization": "dynamic"}):
        step = convert(**options)
        for trial in search.study.trials.values():
            same = [item.to_json() for item in trial.recipe.steps] == [step]
            if same and not trial.recipe.rules and search.is_accepted(trial):
                return step
    return convert(quantization="float16")
