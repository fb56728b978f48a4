"""Stages without training: quantization, layers kept in float, pruning at once."""

from __future__ import annotations

import functools
import glob
from collections.abc import Sequence
from typing import Any

from tfopt.optimizing._search import Search, convert
from tfopt.optimizing._trials import Trial
from tfopt.quantization import QuantizationSensitivity
from tfopt.recipe import Rule
from tfopt.types import TfoptError

INT8: dict[str, Any] = {"quantization": "int8"}
REFINED: dict[str, Any] = {**INT8, "equalize": True, "correct_bias": True}
# Trials for the division of layers and for sparsity at once, at most.
MIXED_TRIES, SPARSITY_TRIES = 24, 4
_NAMED = 3


def quantization(search: Search) -> None:
    """Tries every plain kind of quantization, the refined ones only where needed."""
    for name in ("float16", "dynamic", "int8"):
        if name in search.methods:
            search.attempt(name, [convert(quantization=name)])
    plain = int8_trial(search)
    if plain is None or search.is_accepted(plain):
        return
    if "equalize" in search.methods:
        search.attempt(
            "int8, equalized, biases corrected", [convert(**REFINED)], parent=plain
        )
    if "int16x8" in search.methods:
        steps = [convert(quantization="int16x8")]
        search.attempt("int16x8", steps, parent=plain)


def mixed(search: Search) -> None:
    """Keeps the layers in float whose return buys most for what it costs.

    From the saved scores follows an order of layers, by noise per cost. The shortest
    beginning of it that keeps the budget is found by bisection; then one layer after
    the other is given back, the dearest that can be spared first, each time measured
    anew.
    """
    plain = int8_trial(search)
    if plain is None or search.is_accepted(plain):
        return
    try:
        scores = search.sensitivity(("int8",), "alone")
    except (TfoptError, ValueError) as error:
        search.notes.append(f"The sensitivity of layers is unknown: {error}")
        return
    explain(search, plain, scores)
    costs = _costs(search, scores)
    order = _order(scores, costs)
    attempt = functools.partial(_attempt_mixed, search, plain, list(scores.layers))
    kept = _shortest(search, order, attempt)
    if kept is None:
        search.notes.append("No division into int8 and float layers keeps the budget.")
        return
    _step_back(search, kept, costs, attempt)


def int8_trial(search: Search) -> Trial | None:
    """Returns the trial with all layers in int8; None if it isn't wanted."""
    if "int8" not in search.methods:
        return None
    return search.attempt("int8", [convert(**INT8)])


def explain(search: Search, plain: Trial, scores: QuantizationSensitivity) -> None:
    """Notes why full int8 loses: which layers make the noise."""
    noises = {name: score.noise for name, score in scores.alone["int8"].items()}
    total = sum(noises.values()) or 1.0
    worst = sorted(noises, key=lambda name: noises[name], reverse=True)[:_NAMED]
    shares = ", ".join(f"{name} {noises[name] / total:.0%}" for name in worst)
    whole = scores.whole["int8"].sqnr_db
    ratio = "" if whole is None else f" (signal to noise {whole:.1f} dB)"
    search.notes.append(
        f"Why not int8 throughout: {search.judge(plain).reason}{ratio}. "
        f"The layers that make most of the noise: {shares}."
    )


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


def _costs(search: Search, scores: QuantizationSensitivity) -> dict[str, float]:
    """What each layer costs in float: bytes, or for latency multiplications."""
    layers = scores.layers
    by_macs = search.objective == "latency" and all(
        layer.macs is not None for layer in layers.values()
    )
    return {
        name: float(max(layer.macs or 0 if by_macs else layer.constant_bytes, 1))
        for name, layer in layers.items()
    }


def _order(scores: QuantizationSensitivity, costs: dict[str, float]) -> list[str]:
    noises = {name: score.noise for name, score in scores.alone["int8"].items()}
    noisy = [name for name, noise in noises.items() if noise > 0]
    return sorted(noisy, key=lambda name: noises[name] / costs[name], reverse=True)


def _attempt_mixed(
    search: Search, plain: Trial, layers: Sequence[str], kept: Sequence[str]
) -> Trial:
    # What only moves values, and so has no score, goes with the majority: a reshaped
    # input that stays int8 would be as coarse as all that follows.
    few = 2 * len(kept) <= len(layers)
    rules = [] if few else [Rule(layers="*", precision="float")]
    precision = "float" if few else "quantized"
    named = kept if few else set(layers) - set(kept)
    rules += [Rule(glob.escape(name), precision) for name in sorted(named)]
    shown = ", ".join(sorted(kept)) if len(kept) <= _NAMED else f"{len(kept)} layers"
    name = f"int8, float: {shown}"
    return search.attempt(name, [convert(**INT8)], rules=rules, parent=plain)


def _shortest(search: Search, order: list[str], attempt: Any) -> list[str] | None:
    """Returns the shortest beginning of an order that keeps the budget."""
    low, high, best = 0, len(order), None
    length = min(1, high)
    while low < high and search.seconds_left > 0:
        if search.is_accepted(attempt(order[:length])):
            best, high = order[:length], length
        else:
            low = length
        if high - low <= 1 and best is not None:
            break
        # Few layers are to blame, mostly: doubled first, then halved.
        length = min(2 * low, high) if best is None else (low + high) // 2
    return best


def _step_back(
    search: Search, kept: list[str], costs: dict[str, float], attempt: Any
) -> None:
    """Gives layers back while the budget is kept, the dearest that can be first."""
    tries = 0
    spared = True
    while spared and len(kept) > 1:
        spared = False
        for name in sorted(kept, key=lambda name: costs[name], reverse=True):
            if tries >= MIXED_TRIES or search.seconds_left <= 0:
                return
            tries += 1
            fewer = [item for item in kept if item != name]
            if search.is_accepted(attempt(fewer)):
                kept, spared = fewer, True
                break
