"""Layers in float beside quantized ones: those whose return buys most for its cost."""

from __future__ import annotations

import dataclasses
import functools
import glob
from collections.abc import Callable, Mapping, Sequence

from tfopt.optimizing import _judging
from tfopt.optimizing._search import Search, convert
from tfopt.optimizing._trials import BASELINE, Figures, Trial
from tfopt.quantization import Layer, QuantizationSensitivity
from tfopt.recipe import Rule
from tfopt.types import TfoptError

# What is not kept in float becomes this; also the method of `tfopt.sensitivity`.
BASES = ("int8", "dynamic", "float16")
# Trials for one division, at most: to find a beginning that is enough, and to shorten.
FORWARD_TRIES, BACKWARD_TRIES = 8, 16
_NAMED = 3
# Bytes of a file for a layer of another precision, besides its weights.
_OVERHEAD = 256
# Conversions around a layer in float, as a share of all multiplications.
_OVERHEAD_SHARE = 0.005
# Smaller constants are no reason for layers to stay together.
_SHARED_BYTES = 1024
# What is left of a file, where it is not known because it fails as a whole; and the
# noise, relative to the signal, with which a model is expected to work again.
_SHARES = {"int8": 0.25, "dynamic": 0.25, "float16": 0.5}
_FINE_NOISE = 0.03
# A division that is expected to cost so much more than what is there is not tried.
_HOPELESS = 1.1


@dataclasses.dataclass(frozen=True)
class Unit:
    """Layers that stay float together, as they share weights.

    Attributes:
        layers: Their names.
        noise: What they add to the outputs, relative to the signal.
        cost: Of float: bytes, or for latency multiplications.
    """

    layers: tuple[str, ...]
    noise: float
    cost: float

    @property
    def worth(self) -> float:
        """How much noise goes for how little."""
        return self.noise / self.cost


@dataclasses.dataclass(frozen=True)
class _Division:
    """What may be kept in float beside one kind of quantization.

    Attributes:
        base: The quantization.
        plain: The trial without any layer in float.
        scores: Of its layers.
        units: From the most worth keeping to the least.
        expected: What a division that keeps the budget is expected to cost.
    """

    base: str
    plain: Trial
    scores: QuantizationSensitivity
    units: list[Unit]
    expected: float


def mixed(search: Search) -> None:
    """Keeps the layers in float whose return buys most for what it costs.

    For each kind of quantization that breaks the budget, from the saved scores follows
    an order of layers, by noise per cost. The shortest beginning of it that keeps the
    budget is found by doubling and halving; then one layer after the other is given
    back, the one that is least worth its cost first, each time measured anew.
    """
    found = [_division(search, base) for base in BASES if base in search.methods]
    divisions = [division for division in found if division is not None]
    # Of weights alone the scores foretell the sum well, so few trials are needed; with
    # activations, what follows a layer loses what that was given back.
    for division in sorted(
        divisions, key=lambda item: (item.base == "int8", item.expected)
    ):
        plain = division.plain
        best = _best_cost(search)
        known = plain.figures is not None
        if known and best is not None and best <= _cost(search, plain.figures):
            search.note(
                f"{division.base} with layers in float is not tried: what keeps the "
                "budget already costs no more than without them."
            )
        elif best is not None and division.expected > best * _HOPELESS:
            search.note(
                f"{division.base} with layers in float is not tried: it is expected to "
                f"cost {division.expected / best:.1f} times what keeps the budget."
            )
        else:
            _divide(search, division)


def explain(
    search: Search, base: str, plain: Trial, scores: QuantizationSensitivity
) -> None:
    """Notes why a quantization loses: which layers make the noise, and with what."""
    noises = {name: score.noise for name, score in scores.alone[base].items()}
    total = sum(noises.values()) or 1.0
    worst = sorted(noises, key=lambda name: noises[name], reverse=True)[:_NAMED]
    told = [
        f"{name} {noises[name] / total:.0%}{_why(base, scores.layers[name])}"
        for name in worst
        if noises[name] > 0
    ]
    whole = scores.whole[base].sqnr_db
    ratio = "" if whole is None else f" (signal to noise {whole:.1f} dB)"
    search.note(
        f"Why not {base} throughout: {search.judge(plain).reason}{ratio}. "
        f"The layers that make most of the noise: {'; '.join(told)}."
    )


def _why(base: str, layer: Layer) -> str:
    """Returns what numbers of a layer a quantization cannot hold, in plain words."""
    if base == "int8":
        return "" if layer.outputs is None else f" ({layer.outputs})"
    constants = [item for item in layer.constants.values() if item.largest]
    if not constants:
        return ""
    lost = sum(item.lost_in_float16 for item in constants)
    smallest = min(item.smallest for item in constants)
    largest = max(item.largest for item in constants)
    if smallest == largest:
        text = f" (its constant is {smallest:.2g}"
    else:
        text = f" (its constants are {smallest:.2g} to {largest:.2g} in size"
    if base == "float16" and lost:
        text += f", {lost} of them 0 or infinite in float16"
    return text + ")"


def _division(search: Search, base: str) -> _Division | None:
    """Returns what may be kept; None, mostly with a note, if there is nothing to do."""
    plain = search.attempt(base, [convert(quantization=base)])
    if search.is_accepted(plain):
        return None
    if search.seconds_left <= 0:
        search.note(f"Left out for lack of time: {base} with layers in float.")
        return None
    try:
        scores = search.sensitivity((base,), "alone")
    except (TfoptError, ValueError) as error:
        search.note(f"The sensitivity of layers to {base} is unknown: {error}")
        return None
    explain(search, base, plain, scores)
    units = _units(search, base, scores)
    expected = _expected(search, base, plain, units)
    return _Division(base, plain, scores, units, expected)


def _units(search: Search, base: str, scores: QuantizationSensitivity) -> list[Unit]:
    layers = scores.layers
    noises = {name: score.noise for name, score in scores.alone[base].items()}
    by_macs = search.objective == "latency" and all(
        layer.macs is not None for layer in layers.values()
    )
    groups = [[name] for name in noises] if by_macs else sharing(layers, list(noises))
    overhead = _OVERHEAD_SHARE * sum(layer.macs or 0 for layer in layers.values())
    units = []
    for group in groups:
        if by_macs:
            cost = sum(layers[name].macs or 0 for name in group) + max(overhead, 1.0)
        else:
            constants = {
                key: constant.bytes
                for name in group
                for key, constant in layers[name].constants.items()
            }
            cost = float(sum(constants.values()) + _OVERHEAD)
        units.append(Unit(tuple(group), sum(noises[name] for name in group), cost))
    noisy = [unit for unit in units if unit.noise > 0]
    return sorted(noisy, key=lambda unit: unit.worth, reverse=True)


def sharing(layers: Mapping[str, Layer], names: Sequence[str]) -> list[list[str]]:
    """Divides layers into groups that share weights, which a file holds once."""
    groups: list[tuple[set[str], list[str]]] = []
    for name in names:
        keys = {
            key
            for key, constant in layers[name].constants.items()
            if constant.bytes >= _SHARED_BYTES
        }
        members = [name]
        rest = []
        for known, group in groups:
            if known & keys:
                keys |= known
                members = [*group, *members]
            else:
                rest.append((known, group))
        groups = [*rest, (keys, members)]
    return [members for _, members in groups]


def _expected(search: Search, base: str, plain: Trial, units: Sequence[Unit]) -> float:
    """Estimates what the shortest beginning that keeps the budget costs.

    Noises add up. Differences grow with the root of their power; so does the loss of
    other metrics here, which expects too much rather than too little to be kept.
    """
    drop = search.drop(plain)
    total = sum(unit.noise for unit in units) or 1.0
    whole = sum(unit.cost for unit in units) or 1.0
    left, kept = total, 0.0
    for unit in units:
        is_known = drop < float("inf")
        if is_known and drop * (left / total) ** 0.5 <= search.budget:
            break
        if not is_known and left <= _FINE_NOISE:
            break
        left -= unit.noise
        kept += unit.cost
    everything = _cost(search, search.study.baseline.figures)
    first = everything * _SHARES[base]
    if plain.figures is not None:
        first = _cost(search, plain.figures)
    return first + kept / whole * max(everything - first, 0.0)


def _divide(search: Search, division: _Division) -> None:
    attempt = functools.partial(_attempt, search, division)
    limit = _best_cost(search)

    def is_too_much(trial: Trial) -> bool:
        return limit is not None and _cost(search, trial.figures) >= limit

    kept = shortest(search, division.units, attempt, is_too_much)
    if kept is None:
        search.note(
            f"No division into {division.base} and float layers was found that keeps "
            "the budget and costs less than what keeps it already."
        )
        return
    step_back(search, kept, attempt)


def _attempt(search: Search, division: _Division, kept: Sequence[Unit]) -> Trial:
    # What only moves values, and so has no score, goes with the majority: a reshaped
    # input that stays int8 would be as coarse as all that follows.
    names = {name for unit in kept for name in unit.layers}
    layers = division.scores.layers
    few = division.base != "int8" or 2 * len(names) <= len(layers)
    rules = [] if few else [Rule(layers="*", precision="float")]
    precision = "float" if few else "quantized"
    named = names if few else set(layers) - names
    rules += [Rule(glob.escape(name), precision) for name in sorted(named)]
    shown = ", ".join(sorted(names)) if len(names) <= _NAMED else f"{len(names)} layers"
    return search.attempt(
        f"{division.base}, float: {shown}"[:200],
        [convert(quantization=division.base)],
        rules=rules,
        parent=division.plain,
    )


def shortest(
    search: Search,
    order: list[Unit],
    attempt: Callable[[Sequence[Unit]], Trial],
    is_too_much: Callable[[Trial], bool] = lambda trial: False,
) -> list[Unit] | None:
    """Returns the shortest beginning of an order that keeps the budget.

    Args:
        search: The search.
        order: From the most worth keeping to the least.
        attempt: Makes and measures a beginning.
        is_too_much: Whether a trial costs too much, so that longer ones do, too.
    """
    low, high = 0, len(order)
    best: list[Unit] | None = None
    length = min(1, high)
    for _ in range(FORWARD_TRIES):
        if low >= high or search.seconds_left <= 0:
            break
        trial = attempt(order[:length])
        if search.is_accepted(trial):
            best, high = order[:length], length
        elif is_too_much(trial):
            break
        else:
            low = length
        if best is not None and high - low <= 1:
            break
        # Few layers are to blame, mostly: doubled first, then halved.
        length = min(2 * low, high) if best is None else (low + high) // 2
    return best


def step_back(
    search: Search,
    kept: list[Unit],
    attempt: Callable[[Sequence[Unit]], Trial],
) -> list[Unit]:
    """Gives layers back while the budget is kept, the least worth their cost first.

    What one of them is worth beside the others only a measurement tells. A layer that
    is needed stays needed when others have gone, so each is tried once.

    Returns:
        Those that are left.
    """
    for tries, unit in enumerate(sorted(kept, key=lambda unit: unit.worth)):
        if len(kept) == 1:
            break
        if tries >= BACKWARD_TRIES or search.seconds_left <= 0:
            search.note(
                f"Of {len(kept)} groups of layers in float some may not be needed: "
                "there was no time to try without each of them."
            )
            break
        fewer = [item for item in kept if item is not unit]
        if search.is_accepted(attempt(fewer)):
            kept = fewer
    return kept


def _best_cost(search: Search) -> float | None:
    """What the best trial that keeps the budget costs, the original left out."""
    costs = [
        _cost(search, trial.figures)
        for trial in search.study.trials.values()
        if trial.name != BASELINE and search.is_accepted(trial)
    ]
    return min(costs, default=None)


def _cost(search: Search, figures: Figures | None) -> float:
    if figures is None:
        return float("inf")
    return _judging.cost(figures, search.objective)
