"""Which channels go: groups of channels, their scores, and the choice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from tfopt import masks
from tfopt._keras import variables
from tfopt._keras.flatten import LayerSpec
from tfopt.surgery._structure import Reason, Structure

Score = Literal["magnitude", "l1", "batch_norm", "random"]
Scope = Literal["local", "global"]


@dataclasses.dataclass(eq=False)
class Group:
    """Channels made by the same layers, each removable by itself.

    Attributes:
        layers: The layers that make them.
        labels: The class of atoms of each channel, int64 [channels].
        kept: Why they all stay, if they do.
        notes: Why some stay that would have gone.
    """

    layers: tuple[LayerSpec, ...]
    labels: np.ndarray
    kept: Reason | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """The layers' paths."""
        return [spec.path for spec in self.layers]


@dataclasses.dataclass(frozen=True)
class Limits:
    """How many channels of a group must stay.

    Attributes:
        round_to: A multiple of this number (or all).
        min_channels: At least this many (or all).
    """

    round_to: int = 1
    min_channels: int = 1

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"`{name}` must be a positive integer. Received: {name}={value!r}"
                )

    def kept(self, wanted: int, total: int) -> int:
        """Returns the number of channels that stay, at least those wanted."""
        kept = max(wanted, self.min_channels)
        return min(math.ceil(kept / self.round_to) * self.round_to, total)


def groups_of(
    structure: Structure,
    *,
    include: variables.Patterns = None,
    exclude: variables.Patterns = None,
) -> list[Group]:
    """Returns the groups of a graph, in the order of their first layers.

    Raises:
        ValueError: A pattern matches no layer that makes channels.
    """
    classes, frozen = structure.classes(), structure.frozen()
    makers: dict[int, dict[LayerSpec, None]] = {}
    for spec, cuts in structure.cuts.items():
        for cut in cuts:
            if cut.role == "out":
                for label in classes[cut.atoms].tolist():
                    makers.setdefault(label, {})[spec] = None
    labels: dict[tuple[frozenset[LayerSpec], Reason | None], list[int]] = {}
    for label, layers in makers.items():
        labels.setdefault((frozenset(layers), frozen.get(label)), []).append(label)
    groups = [
        Group(tuple(makers[found[0]]), np.array(found), kept=reason)
        for (_, reason), found in labels.items()
    ]
    _apply_patterns(groups, include, exclude)
    return groups


def scores(
    structure: Structure,
    groups: Sequence[Group],
    score: Score | Mapping[str, np.ndarray],
    *,
    seed: int = 0,
) -> dict[int, float]:
    """Returns how much each channel matters, by class of atoms.

    Args:
        structure: The graph.
        groups: Its groups; those without a score get a reason to stay.
        score: What `remove_channels` takes.
        seed: For `"random"`.

    Raises:
        ValueError: Given scores don't fit a layer.
    """
    classes = structure.classes()
    totals = np.zeros(len(classes))
    scored = np.zeros(len(classes), bool)
    if score == "random":
        totals = np.random.default_rng(seed).random(len(classes))
        scored[:] = True
    elif isinstance(score, Mapping):
        slices = _given(structure, score)
    else:
        slices = _measured(structure, score)
    for atoms, values in [] if score == "random" else slices:
        np.add.at(totals, classes[atoms], values)
        scored[classes[atoms]] = True
    if score == "magnitude":
        totals = np.sqrt(totals)
    for group in groups:
        if group.kept is None and not scored[group.labels].all():
            group.kept = Reason("not scored", refused=False)
    return dict(enumerate(totals.tolist()))


def lowest(
    groups: Sequence[Group],
    importance: Mapping[int, float],
    sparsity: float | Mapping[str, float],
    *,
    scope: Scope,
    limits: Limits,
) -> set[int]:
    """Returns the channels to remove for a sparsity, those that matter least.

    Args:
        groups: All groups; those with a reason to stay are passed over.
        importance: Scores by class of atoms.
        sparsity: Fraction of the channels, or fractions by globs for layers.
        scope: `"local"`: in each group; `"global"`: of all, by scores divided by
            their mean in the group.
        limits: How many must stay.
    """
    free = [group for group in groups if group.kept is None]
    wanted = [masks.num_kept(len(g.labels), _sparsity_of(g, sparsity)) for g in free]
    if scope == "global" and free and not isinstance(sparsity, Mapping):
        relative = [_relative(_values(group, importance)) for group in free]
        together = np.concatenate(relative)
        mask = masks.top_k(together, masks.num_kept(together.size, sparsity))
        ends = np.cumsum([len(group.labels) for group in free])[:-1]
        wanted = [int(part.sum()) for part in np.split(mask, ends)]
    removed: set[int] = set()
    for group, kept in zip(free, wanted, strict=True):
        order = np.argsort(-_values(group, importance), kind="stable")
        total = len(group.labels)
        removed.update(group.labels[order[limits.kept(kept, total) :]].tolist())
    return removed


def limited(
    groups: Sequence[Group],
    candidates: set[int],
    importance: Mapping[int, float],
    limits: Limits,
) -> set[int]:
    """Returns as many of the candidates as may go, those that matter least."""
    removed: set[int] = set()
    for group in groups:
        going = [label for label in group.labels.tolist() if label in candidates]
        total = len(group.labels)
        count = total - limits.kept(total - len(going), total)
        going.sort(key=lambda label: importance[label])
        removed.update(going[:count])
        if count < len(going):
            group.notes.append(
                f"{len(going) - count} more stay for round_to={limits.round_to} and "
                f"min_channels={limits.min_channels}"
            )
    return removed


def named(
    structure: Structure,
    groups: Sequence[Group],
    channels: Mapping[str, Sequence[int]],
) -> set[int]:
    """Returns the channels that a user names by layer and index.

    Raises:
        ValueError: There is no such layer or channel, or it must stay.
    """
    classes = structure.classes()
    kept = {label: g.kept for g in groups for label in g.labels.tolist() if g.kept}
    removed: set[int] = set()
    for path, indices in channels.items():
        made = classes[_made(structure, "channels", path)]
        for index in indices:
            if not -len(made) <= index < len(made):
                raise ValueError(
                    f"The layer {path!r} makes {len(made)} channels. "
                    f"Received: channels[{path!r}]={list(indices)}, of which {index} "
                    "is none"
                )
        labels = set(made[list(indices)].tolist())
        for label in labels & kept.keys():
            raise ValueError(
                f"Channels of the layer {path!r} must stay: {kept[label].text}. "
                f"Received: channels[{path!r}]={list(indices)}"
            )
        removed |= labels
    return removed


def check_sparsity(sparsity: float | Mapping[str, float]) -> None:
    """Raises ValueError unless it is fractions in [0, 1)."""
    values = sparsity.values() if isinstance(sparsity, Mapping) else [sparsity]
    if not all(isinstance(x, int | float) and 0 <= x < 1 for x in values):
        raise ValueError(
            "`sparsity` must be a fraction of the channels in [0, 1), or such "
            f"fractions by globs for layers. Received: sparsity={sparsity!r}"
        )


def made_channels(structure: Structure, spec: LayerSpec) -> np.ndarray | None:
    """Returns the atoms of the channels that a layer makes, None if it makes none."""
    made = [
        cut.atoms
        for cut in structure.cuts.get(spec, [])
        if cut.role == "out" and (spec.weights or [])[cut.weight].ndim > 1
    ]
    return made[0] if made else None


def _made(structure: Structure, argument: str, path: str) -> np.ndarray:
    makers = {spec.path: made_channels(structure, spec) for spec in structure.cuts}
    made = makers.get(path)
    if made is None:
        raise ValueError(
            f"A key of `{argument}` is no layer that makes channels. Expected one of "
            f"{[name for name, atoms in makers.items() if atoms is not None]}. "
            f"Received: {path!r}"
        )
    return made


def _given(
    structure: Structure, score: Mapping[str, np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for path, values in score.items():
        made, values = _made(structure, "score", path), np.asarray(values, np.float64)
        if values.shape != made.shape or not np.isfinite(values).all():
            raise ValueError(
                f"Expected {len(made)} finite scores, one for each channel of the "
                f"layer. Received: score[{path!r}] of shape {values.shape}"
            )
        yield made, values


def _measured(
    structure: Structure, score: Score
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields atoms and what the slices of one weight are worth."""
    for spec, cuts in structure.cuts.items():
        for cut in cuts:
            weight = (spec.weights or [])[cut.weight]
            kernel = score != "batch_norm" and weight.ndim > 1 and spec.kind != "PReLU"
            scale = score == "batch_norm" and spec.weight_names[cut.weight] == "gamma"
            if cut.role == "in" or not (kernel or scale):
                continue
            values = np.abs(weight.astype(np.float64))
            values = values**2 if score == "magnitude" else values
            others = tuple(axis for axis in range(weight.ndim) if axis != cut.axis)
            yield cut.atoms, values.sum(others)


def _values(group: Group, importance: Mapping[int, float]) -> np.ndarray:
    return np.array([importance[label] for label in group.labels.tolist()])


def _relative(values: np.ndarray) -> np.ndarray:
    return values / (values.mean() or 1.0)


def _sparsity_of(group: Group, sparsity: float | Mapping[str, float]) -> float:
    if not isinstance(sparsity, Mapping):
        return sparsity
    for pattern, value in sparsity.items():
        if any(spec.matches(pattern) for spec in group.layers):
            return value
    return 0.0


def _apply_patterns(
    groups: Sequence[Group], include: variables.Patterns, exclude: variables.Patterns
) -> None:
    included = variables.as_patterns("include", include)
    excluded = variables.as_patterns("exclude", exclude)
    for name, patterns in (("include", included), ("exclude", excluded)):
        check_patterns(groups, name, patterns or ())
    for group in groups:
        if group.kept is not None:
            continue
        if included is not None and not _matches(group, included):
            group.kept = Reason("not in `include`", refused=False)
        elif _matches(group, excluded or []):
            group.kept = Reason("in `exclude`", refused=False)


def check_patterns(groups: Sequence[Group], name: str, patterns: Iterable[str]) -> None:
    """Raises ValueError for a glob that matches no layer that makes channels."""
    for pattern in patterns:
        if not any(_matches(group, [pattern]) for group in groups):
            known = [path for group in groups for path in group.paths]
            raise ValueError(
                f"A pattern of `{name}` matches no layer that makes channels. Expected "
                f"globs for {list(dict.fromkeys(known))}. Received: {pattern!r}"
            )


def _matches(group: Group, patterns: Sequence[str]) -> bool:
    return any(spec.matches(glob) for spec in group.layers for glob in patterns)
