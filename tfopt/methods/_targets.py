"""Which weights are pruned, how far, and with which others."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfopt import masks
from tfopt._keras import channels, kernels, variables
from tfopt.types import TfoptError

Arrays = Mapping[str, np.ndarray]

# What BatchNormalization trains, one value per channel.
_SCALING = ("gamma", "beta")


@dataclasses.dataclass(frozen=True)
class Rules:
    """What to prune, as the user says it; see `Prune` for the words."""

    include: variables.Patterns
    exclude: variables.Patterns
    per_layer: Mapping[str, float] | None
    structure: masks.Structure
    pooling: masks.Pooling
    scope: masks.Scope
    min_density: float
    strict: bool


@dataclasses.dataclass(frozen=True)
class Target:
    """Weights that are cut together, and the fraction of zeros in the end."""

    weights: tuple[variables.Weight, ...]
    final: float


@dataclasses.dataclass(frozen=True)
class Follower:
    """A vector with one value per output channel, zero where the kernel's is pruned."""

    weight: variables.Weight
    kernel: str


class Selection:
    """The weights that rules choose in a model.

    Args:
        targets: Groups of weights.
        followers: Vectors that go with channels.
        rules: The rules.
        report: One row per weight of the model, as `Prune.report` describes.
        skips: Why weight matrices are not pruned that the rules do not leave out, by
            name.
    """

    def __init__(
        self,
        targets: list[Target],
        followers: list[Follower],
        rules: Rules,
        report: list[dict[str, Any]],
        skips: dict[str, str],
    ):
        self.targets = targets
        self.followers = followers
        self.report = report
        self.skips = skips
        self.weights = [weight for target in targets for weight in target.weights]
        self._rules = rules
        self._layouts = {w.name: kernels.layout(w) for w in self.weights}
        self._options: dict[str, Any] = {
            "structure": rules.structure,
            "scope": rules.scope,
            "min_density": rules.min_density,
        }

    @property
    def vectors(self) -> list[variables.Weight]:
        """What goes with channels."""
        return [follower.weight for follower in self.followers]

    def only(self, name: str) -> Selection:
        """Returns a selection of one weight, cut on its own."""
        target = next(
            Target((weight,), target.final)
            for target in self.targets
            for weight in target.weights
            if weight.name == name
        )
        followers = [f for f in self.followers if f.kernel == name]
        return Selection([target], followers, self._rules, self.report, self.skips)

    def masks(
        self, scores: Arrays, sparsity_of: Callable[[float], float]
    ) -> dict[str, np.ndarray]:
        """Returns masks by weight name, at what each final sparsity is by now."""
        result = {}
        for target in self.targets:
            names = [weight.name for weight in target.weights]
            computed = masks.compute(
                [self._view(name, scores[name]) for name in names],
                sparsity_of(target.final),
                pooling=self._rules.pooling,
                **self._options,
            )
            for name, mask in zip(names, computed, strict=True):
                result[name] = self._unview(name, mask)
        return result

    def above(self, scores: Arrays, threshold: float) -> dict[str, np.ndarray]:
        """Returns masks by weight name that keep scores of at least a threshold."""
        return {
            name: self._unview(
                name,
                masks.above(
                    [self._view(name, score)],
                    threshold,
                    structure=self._rules.structure,
                    pooling=self._rules.pooling,
                )[0],
            )
            for name, score in scores.items()
        }

    def with_followers(self, found: Arrays) -> dict[str, np.ndarray]:
        """Returns the masks, and those of what goes with pruned channels."""
        result = dict(found)
        for follower in self.followers:
            alive = self._layouts[follower.kernel].matrices(found[follower.kernel])
            result[follower.weight.name] = alive.any(axis=(0, 1)).reshape(
                follower.weight.shape
            )
        return result

    def least_zeros(self, target: Target, sparsity: float) -> int:
        """Returns how many zeros the masks of a target make at least."""
        shapes = [self._view_shape(weight) for weight in target.weights]
        return masks.least_zeros(shapes, sparsity, **self._options)

    def all_least_zeros(self, sparsity_of: Callable[[float], float]) -> int:
        """Returns how many zeros all masks make at least."""
        return sum(self.least_zeros(t, sparsity_of(t.final)) for t in self.targets)

    def structured_zeros(self, weight: variables.Weight) -> int:
        """Returns how many zeros a weight has in units pruned as a whole."""
        value = self._view(weight.name, weight.variable.numpy())
        return masks.structured_zeros(value, self._rules.structure)

    def slack(self) -> int:
        """Returns by how many zeros masks may exceed `all_least_zeros`."""
        if self._rules.structure.kind == "unstructured":
            return 0
        return sum(
            layout.split[0] * layout.split[1]
            if self._rules.structure.kind == "channel"
            else self._rules.structure.first * self._rules.structure.second
            for layout in self._layouts.values()
        )

    def _view(self, name: str, array: np.ndarray) -> np.ndarray:
        # Unstructured masks do not care, and break ties in the weights' own order.
        if self._rules.structure.kind == "unstructured":
            return array
        return self._layouts[name].matrices(array)

    def _unview(self, name: str, array: np.ndarray) -> np.ndarray:
        if self._rules.structure.kind == "unstructured":
            return array
        return self._layouts[name].kernel(array)

    def _view_shape(self, weight: variables.Weight) -> tuple[int, ...]:
        if self._rules.structure.kind == "unstructured":
            return weight.shape
        return self._layouts[weight.name].split


def check_per_layer(per_layer: Any, structure: masks.Structure) -> None:
    """Raises unless `per_layer` is None or sparsities by pattern.

    Raises:
        ValueError: It is something else, or does not go with the structure.
    """
    if per_layer is None:
        return
    good = isinstance(per_layer, Mapping) and all(
        isinstance(pattern, str)
        and pattern
        and isinstance(value, numbers.Real)
        and 0 <= float(value) < 1
        for pattern, value in per_layer.items()
    )
    if not good or not per_layer:
        raise ValueError(
            "`per_layer` must map globs to fractions of zero weights in [0, 1). "
            f"Received: per_layer={per_layer!r}"
        )
    if structure.kind == "m:n":
        raise ValueError(
            "`per_layer` must not be given: the structure m:n says how sparse all "
            f"layers are; use `exclude`. Received: per_layer={dict(per_layer)!r}"
        )


def select(model: Any, rules: Rules, final: float | None) -> Selection:
    """Chooses the weights to prune.

    Args:
        model: Built model.
        rules: The rules.
        final: Final sparsity of what `per_layer` does not name. None: that stays as it
            is if there is a `per_layer`; without, all is chosen and no zeros are asked
            for.

    Raises:
        ValueError: A pattern matches nothing, nothing is chosen, or rules are strict
            and a weight matrix is skipped that they do not exclude.
        TfoptError: Channels of a subclassed model, without `include` or `exclude`.
    """
    candidates = variables.weights(model)
    patterns = list(rules.per_layer or ())
    chosen, reasons = variables.select(
        candidates, include=rules.include, exclude=rules.exclude, naming=patterns
    )
    _check_patterns(patterns, chosen, candidates)
    finals, asked = {}, set()
    for weight in chosen:
        pattern = next((p for p in patterns if variables.matches(p, weight.name)), None)
        value = final if pattern is None else (rules.per_layer or {})[pattern]
        if value is None and patterns:
            reasons[weight.name] = "not in `per_layer`"
            asked.add(weight.name)
        elif pattern is not None and value == 0:
            reasons[weight.name] = f"`per_layer` gives {pattern!r} 0"
            asked.add(weight.name)
        else:
            finals[weight.name] = float(value or 0.0)
    graph = _channels_of(model, rules)
    for weight in chosen:
        reason = _against_structure(weight, rules.structure, graph)
        if reason and weight.name in finals:
            reasons[weight.name] = reason
            del finals[weight.name]
    chosen = [weight for weight in chosen if weight.name in finals]
    if not chosen:
        raise ValueError(
            "No weight can be pruned. Expected a trainable kernel or embedding table "
            f"that the structure fits. Received: {reasons}"
        )
    followers = []
    if rules.structure.kind == "channel":
        followers = _followers(chosen, candidates, graph)
    for follower in followers:
        reasons[follower.weight.name] = f"follows the channels of {follower.kernel!r}"
    skips = _skips(candidates, reasons, asked, rules)
    if skips and rules.strict:
        raise ValueError(
            "strict=True, and weight matrices would not be pruned. Name them in "
            "`include` if they can be (a weight that is not a kernel by its full "
            f"name), or in `exclude`. Received: skipped={skips}"
        )
    report = [_row(weight, reasons.get(weight.name)) for weight in candidates]
    targets = _targets(chosen, finals, patterns, rules.scope)
    return Selection(targets, followers, rules, report, skips)


def _row(weight: variables.Weight, reason: str | None) -> dict[str, Any]:
    return {
        "name": weight.name,
        "shape": weight.shape,
        "size": weight.size,
        "pruned": reason is None,
        "reason": reason or "",
        "sparsity": None,
    }


def _targets(
    chosen: Sequence[variables.Weight],
    finals: Mapping[str, float],
    patterns: Sequence[str],
    scope: masks.Scope,
) -> list[Target]:
    """Returns one target per weight or, globally, one for all without a pattern."""
    if scope == "local":
        return [Target((weight,), finals[weight.name]) for weight in chosen]
    together: list[variables.Weight] = []
    alone = []
    for weight in chosen:
        if any(variables.matches(pattern, weight.name) for pattern in patterns):
            alone.append(Target((weight,), finals[weight.name]))
        else:
            together.append(weight)
    if together:
        alone.insert(0, Target(tuple(together), finals[together[0].name]))
    return alone


def _check_patterns(
    patterns: Sequence[str],
    chosen: Sequence[variables.Weight],
    candidates: Sequence[variables.Weight],
) -> None:
    for pattern in patterns:
        if not any(variables.matches(pattern, weight.name) for weight in chosen):
            names = [weight.name for weight in candidates if weight.is_kernel]
            raise ValueError(
                "A pattern of `per_layer` matches no weight that is pruned. Expected "
                f"globs for names such as {names[:20]}. Received: per_layer={pattern!r}"
            )


def _channels_of(model: Any, rules: Rules) -> channels.Channels | None:
    if rules.structure.kind != "channel":
        return None
    graph = channels.trace(model)
    if graph is None and rules.include is None and rules.exclude is None:
        raise TfoptError(
            "Which layers make the outputs of the model is not known, and their "
            "channels must stay. Expected a Sequential or Functional model, or "
            "`exclude` for the last layer. "
            f"Received: model={model.name!r} of {type(model).__name__}"
        )
    return graph


def _against_structure(
    weight: variables.Weight,
    structure: masks.Structure,
    graph: channels.Channels | None,
) -> str:
    """Returns why a structure does not fit a weight, or nothing."""
    if structure.kind == "unstructured":
        return ""
    _, inputs, outputs = kernels.layout(weight).split
    if structure.kind == "m:n" and inputs <= structure.second - structure.first:
        return (
            f"{inputs} inputs per output: {structure.first}:{structure.second} leaves "
            "nothing to prune"
        )
    if structure.kind != "channel":
        return ""
    if kernels.is_recurrent(weight):
        return "the gates of a recurrent cell share their units"
    if outputs == 1:
        return "has one channel"
    paths = () if graph is None else graph.leaving
    if any(weight.name.startswith(f"{path}/") for path in paths):
        return "its channels are the model's outputs"
    return ""


def _followers(
    chosen: Sequence[variables.Weight],
    candidates: list[variables.Weight],
    graph: channels.Channels | None,
) -> list[Follower]:
    """Returns the biases and BatchNormalizations that channels take along.

    With these zero, a pruned channel is zero behind the normalization too; with a
    `beta` it would be a constant.
    """
    found = []
    by_name = {weight.name: weight for weight in candidates}
    normalized = {} if graph is None else graph.normalized
    for kernel in chosen:
        followers = [kernels.bias_of(kernel, candidates)]
        for path, norms in normalized.items():
            if kernel.name.startswith(f"{path}/") and not kernels.is_inner(kernel):
                names = [f"{norm}/{last}" for norm in norms for last in _SCALING]
                followers += [by_name.get(name) for name in names]
        found += [Follower(f, kernel.name) for f in followers if f and f.trainable]
    outputs = {weight.name: kernels.layout(weight).split[2] for weight in chosen}
    return [f for f in found if f.weight.size == outputs[f.kernel]]


def _skips(
    candidates: Sequence[variables.Weight],
    reasons: Mapping[str, str],
    asked: set[str],
    rules: Rules,
) -> dict[str, str]:
    """Returns why matrices are not pruned that no rule leaves out, by name."""
    exclude = variables.as_patterns("exclude", rules.exclude) or []
    include = variables.as_patterns("include", rules.include)
    skips = {}
    for weight in candidates:
        name = weight.name
        if name not in reasons or name in asked or not weight.is_matrix:
            continue
        if "float" not in str(weight.variable.dtype):
            continue  # the state of a random generator, token ids
        if any(variables.matches(pattern, name) for pattern in exclude):
            continue
        if include is not None and not any(
            variables.matches(pattern, name) for pattern in include
        ):
            continue
        skips[name] = reasons[name]
    return skips
