"""Physical removal of channels from Keras models.

A channel is a place on the axis that a layer's filters or units make. Cutting one out
of a layer cuts it out of everything that is tied to it: the normalization behind it,
the layers that read it, and where values are added, the channels of the other branch.
The result is a plain Keras model of the same Keras, only narrower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from tfopt._keras import flatten, precision
from tfopt.surgery import _check, _rebuild, _rules, _selection
from tfopt.surgery._constants import Constants, Weights
from tfopt.surgery._cost import Cost, cost
from tfopt.surgery._report import ChannelGroup, Removal
from tfopt.surgery._selection import Group, Limits, Scope, Score
from tfopt.surgery._structure import Reason, Structure
from tfopt.types import TfoptError

__all__ = [
    "ChannelGroup",
    "Cost",
    "Removal",
    "remove_channels",
    "remove_channels_with_report",
]


def remove_channels(
    model: Any,
    *,
    sparsity: float | Mapping[str, float] | None = None,
    channels: Mapping[str, Sequence[int]] | None = None,
    score: Score | Mapping[str, np.ndarray] = "magnitude",
    scope: Scope = "local",
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    round_to: int = 1,
    min_channels: int = 1,
    seed: int = 0,
    strict: bool = False,
    verify: bool = True,
    data: Any = None,
) -> Any:
    """Returns a smaller model without some of the channels inside a model.

    Without `sparsity` and `channels` those are removed that have no effect any more,
    as after `Prune(structure="channel")`: channels that are zero, and channels whose
    readers have only zeros for them. With either, the chosen channels are first made
    zero: the weights and biases that make them, and scale, offset and moving mean of
    their BatchNormalization. Accuracy then falls, and fine-tuning brings it back.

    Either way the result equals the model with these zeros in place (`masked_model` of
    the report), up to rounding. A removed channel that is constant but not zero (from
    a bias or offset, or an activation such as sigmoid that isn't zero at zero) is made
    up for in the biases of the layers that read it: Dense layers, and convolutions
    with `padding="valid"` or 1x1 kernels, which get a bias if they had none. Where
    zeros are padded around such a constant, or a shared layer would need several
    biases, the channel stays, and the report says so.

    Channels that are tied together go together: through all convolutions (depthwise,
    separable, transposed; grouped ones by whole groups), Dense, Embedding,
    BatchNormalization, elementwise activations, PReLU, pooling, padding, cropping,
    upsampling, dropout, Rescaling, Flatten, Reshape, Permute, RepeatVector,
    Concatenate, arithmetic with broadcasting, shared layers and nested models. Inputs
    and outputs of the model keep their channels, and so do those that other layers
    touch: recurrent, attention and custom layers, and LayerNormalization,
    GroupNormalization and softmax, whose results depend on all channels at once.

    Args:
        model: A built Sequential or Functional model of Keras 3 or tf_keras. It is not
            changed.
        sparsity: Fraction of the channels to remove, in [0, 1); or fractions by globs
            for layers, where the first glob that matches a group counts and others
            keep all.
        channels: Indices of the output channels to remove, by path of the layer.
        score: How much a channel matters, summed over all kernels whose slices go with
            it: `"magnitude"`, the L2 norm; `"l1"`; `"batch_norm"`, the absolute
            scales of BatchNormalization (Liu et al., "Learning efficient
            convolutional networks through network slimming",
            https://arxiv.org/abs/1708.06519); `"random"`, as a control; or scores of
            your own, float arrays [channels] by path of the layer, summed over the
            layers of a group.
        scope: `"local"`: every group loses the fraction. `"global"`: all together do,
            and groups with relatively small scores (divided by the group's mean) lose
            more.
        include: Globs for paths such as `"block/conv"` or leading parts of them; only
            groups with a layer that matches are cut. `None`: all.
        exclude: Globs of layers to leave alone.
        round_to: Groups keep a multiple of this many channels (or all), which suits
            vectorized kernels; more channels than asked for may stay.
        min_channels: Groups keep at least this many channels.
        seed: For the score `"random"` and for the inputs to verify with.
        strict: Raise where a layer cannot be handled, instead of leaving it alone.
        verify: Run both models and compare their outputs, and layer by layer what is
            left. Models that compute in 16 bits are compared in float32.
        data: Inputs to verify with, as the model takes them; random ones by default.

    Returns:
        A Functional model (nested models are inlined) with the layers' names,
        trainability, types and regularizers. It is not compiled, and optimizer state
        is not carried over.

    Raises:
        ValueError: An argument is wrong; a pattern matches nothing; or channels named
            in `channels` have to stay.
        TfoptError: The model is not built, or its code cannot be read; or, if
            `strict`, a layer cannot be handled.
        VerificationError: The outputs of the small model differ from those of the
            masked one by more than 1e-5 of their largest absolute value, or what a
            layer inside returns by more than 1e-3.

    Example:
        >>> from tensorflow import keras
        >>> layers = [keras.layers.Dense(16, name="hidden"), keras.layers.Dense(2)]
        >>> wide = keras.Sequential([keras.layers.Input((8,)), *layers])
        >>> remove_channels(wide, sparsity=0.75).get_layer("hidden").units
        4
    """
    return _run(
        model,
        _Options(
            sparsity=sparsity,
            channels=channels,
            score=score,
            scope=scope,
            include=include,
            exclude=exclude,
            limits=Limits(round_to, min_channels),
            seed=seed,
            strict=strict,
            verify=verify,
            data=data,
        ),
    ).model


def remove_channels_with_report(model: Any, **options: Any) -> Removal:
    """Does what `remove_channels` does, and returns the report as well.

    Args:
        model: As in `remove_channels`.
        **options: As in `remove_channels`.

    Returns:
        The model, what was removed from it and what it costs now.

    Raises:
        TypeError: There is no such option.
        ValueError: As `remove_channels`.
        TfoptError: As `remove_channels`.
        VerificationError: As `remove_channels`.

    Example:
        >>> from tensorflow import keras
        >>> layers = [keras.layers.Dense(16, name="hidden"), keras.layers.Dense(2)]
        >>> wide = keras.Sequential([keras.layers.Input((8,)), *layers])
        >>> removal = remove_channels_with_report(wide, sparsity=0.75)
        >>> print(removal)
        parameters: 178 -> 46, 3.87x fewer
        multiply-adds: 160 -> 40, 4.00x fewer
        hidden: 16 -> 4 channels
        dense...: 2 -> 2 channels (an output of the model)
        >>> removal.masked_model().get_layer("hidden").units
        16
    """
    limits = Limits(options.pop("round_to", 1), options.pop("min_channels", 1))
    return _run(model, _Options(limits=limits, **options))


@dataclasses.dataclass(frozen=True)
class _Options:
    """The arguments of `remove_channels`."""

    sparsity: float | Mapping[str, float] | None = None
    channels: Mapping[str, Sequence[int]] | None = None
    score: Score | Mapping[str, np.ndarray] = "magnitude"
    scope: Scope = "local"
    include: str | Sequence[str] | None = None
    exclude: str | Sequence[str] | None = None
    limits: Limits = dataclasses.field(default_factory=Limits)
    seed: int = 0
    strict: bool = False
    verify: bool = True
    data: Any = None

    def __post_init__(self) -> None:
        if self.sparsity is not None:
            _selection.check_sparsity(self.sparsity)
        if self.sparsity is not None and self.channels is not None:
            raise ValueError(
                "Expected either `sparsity` or `channels`, not both. Received: "
                f"sparsity={self.sparsity!r}, channels={self.channels!r}"
            )
        if self.scope not in get_args(Scope):
            raise ValueError(
                f"Expected one of {get_args(Scope)}. Received: scope={self.scope!r}"
            )
        if self.scope == "global" and isinstance(self.sparsity, Mapping):
            raise ValueError(
                "With fractions by layers there is nothing left to share out globally. "
                "Expected one fraction. "
                f"Received: scope='global', sparsity={self.sparsity!r}"
            )
        if not isinstance(self.score, Mapping) and self.score not in get_args(Score):
            raise ValueError(
                f"Expected one of {get_args(Score)}, or scores by layer. "
                f"Received: score={self.score!r}"
            )


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Atoms to remove, those without effect (bool [atoms]), weights with zeros."""

    removed: np.ndarray
    without_effect: np.ndarray
    weights: Weights
    constants: Constants


def _run(model: Any, options: _Options) -> Removal:
    graph = flatten.flatten(model, open_layers=False)
    structure = _rules.analyse(graph)
    groups = _selection.groups_of(
        structure, include=options.include, exclude=options.exclude
    )
    if isinstance(options.sparsity, Mapping):
        _selection.check_patterns(groups, "sparsity", options.sparsity)
    if options.strict:
        _raise_refusals(structure, groups)
    if options.sparsity is None and options.channels is None:
        choice = _choose_dead(structure, groups, options)
    else:
        choice = _choose(structure, groups, options)
    masked = _rebuild.with_weights(graph, choice.weights)
    cut, folded = _rebuild.cut(
        structure, choice.weights, choice.constants, choice.removed
    )
    small = flatten.to_model(cut)
    error = None
    if options.verify:
        inputs = options.data
        if inputs is None:
            inputs = _check.random_inputs(graph, seed=options.seed)
        wide = precision.full_precision(cut)
        error = _check.compare(
            structure,
            wide,
            precision.full_precision(masked),
            model=small if wide is cut else None,
            removed=choice.removed,
            without_effect=choice.without_effect,
            inputs=inputs,
        )
    return Removal(
        model=small,
        groups=tuple(_reported(structure, group, choice) for group in groups),
        refused={spec.path: text for spec, text in structure.refused.items()},
        folded=tuple(folded),
        before=cost(graph),
        after=cost(flatten.flatten(small, open_layers=False)),
        max_error=error,
        masked=masked,
    )


def _choose_dead(
    structure: Structure, groups: Sequence[Group], options: _Options
) -> _Choice:
    """Chooses the channels that can go as the weights are."""
    weights: Weights = {spec: spec.weights for spec in structure.graph.layers()}
    constants = Constants(structure, weights)
    free = [group for group in groups if group.kept is None]
    candidates = {label for group in free for label in group.labels.tolist()}
    # What only removed channels read has no effect either: from all channels back to
    # those that nothing needs.
    while True:
        removed = _atoms(structure, candidates)
        needed, reasons = _rebuild.blocked(structure, constants, removed)
        if not needed.any():
            break
        candidates -= set(structure.classes()[needed].tolist())
        _note(structure, groups, reasons)
    importance = _selection.scores(structure, [], "magnitude")
    removable = _selection.limited(free, candidates, importance, options.limits)
    chosen = _atoms(structure, removable)
    return _Choice(chosen, removed, weights, constants)


def _choose(
    structure: Structure, groups: Sequence[Group], options: _Options
) -> _Choice:
    """Chooses by score or as told, and makes what is chosen zero."""
    importance = _selection.scores(structure, groups, options.score, seed=options.seed)
    while True:
        if options.channels is not None:
            chosen = _selection.named(structure, groups, options.channels)
            _check_limits(groups, chosen, importance, options)
        else:
            chosen = _selection.lowest(
                groups,
                importance,
                options.sparsity or 0.0,
                scope=options.scope,
                limits=options.limits,
            )
        removed = _atoms(structure, chosen)
        weights = _rebuild.masked_weights(structure, removed)
        constants = Constants(structure, weights)
        needed, reasons = _rebuild.blocked(structure, constants, removed)
        if not needed.any():
            return _Choice(removed, removed, weights, constants)
        # Their groups stay as a whole, and others are chosen.
        _keep_needed(structure, groups, needed, reasons)
        if options.strict:
            _raise_refusals(structure, groups)


def _keep_needed(
    structure: Structure,
    groups: Sequence[Group],
    needed: np.ndarray,
    reasons: Mapping[int, str],
) -> None:
    classes = structure.classes()
    labels = set(classes[needed].tolist())
    texts = {int(classes[atom]): text for atom, text in reasons.items()}
    for group in groups:
        found = labels.intersection(group.labels.tolist())
        if found:
            text = texts.get(min(found), "they vary even if their weights are zero")
            group.kept = Reason(f"masked, {text}", refused=True)


def _note(
    structure: Structure, groups: Sequence[Group], reasons: Mapping[int, str]
) -> None:
    classes = structure.classes()
    texts = {int(classes[atom]): text for atom, text in reasons.items()}
    for group in groups:
        found = [texts[label] for label in group.labels.tolist() if label in texts]
        for text in dict.fromkeys(found):
            group.notes.append(f"{found.count(text)} dead ones stay: {text}")


def _check_limits(
    groups: Sequence[Group],
    chosen: set[int],
    importance: Mapping[int, float],
    options: _Options,
) -> None:
    if _selection.limited(groups, chosen, importance, options.limits) != chosen:
        raise ValueError(
            f"Too few or too odd a number of channels would stay, for {options.limits}."
            " Expected channels that can all be removed. "
            f"Received: channels={options.channels!r}"
        )


def _atoms(structure: Structure, labels: set[int]) -> np.ndarray:
    return np.isin(structure.classes(), list(labels))


def _raise_refusals(structure: Structure, groups: Sequence[Group]) -> None:
    problems = [
        f"{spec.path!r} {text}"
        for spec, text in structure.refused.items()
        if any(array.ndim > 1 for array in spec.weights or [])
    ]
    problems += [
        f"channels of {group.paths} stay: {group.kept.text}"
        for group in groups
        if group.kept is not None and group.kept.refused
    ]
    if problems:
        raise TfoptError(
            "Not all channels can be removed. Expected layers that can be handled, or "
            f"strict=False, which leaves the others alone. Received: {problems}"
        )


def _reported(structure: Structure, group: Group, choice: _Choice) -> ChannelGroup:
    classes = structure.classes()
    gone = choice.removed[group.labels]  # a class is labelled by one of its atoms
    indices = {}
    for spec in group.layers:
        made = _selection.made_channels(structure, spec)
        mine = np.isin(classes[made], group.labels[gone])
        indices[spec.path] = tuple(np.flatnonzero(mine).tolist())
    reason = group.kept.text if group.kept else "; ".join(group.notes)
    return ChannelGroup(
        layers=tuple(group.paths),
        channels=len(group.labels),
        removed=int(gone.sum()),
        indices=indices,
        reason=reason,
        refused=group.kept is not None and group.kept.refused,
    )
