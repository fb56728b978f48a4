"""Scores -> 0/1 masks, exactly as many ones as asked for.

A mask is a bool array of the shape of the weights; True keeps a weight, False makes it
zero. Which weights are worth keeping is the caller's business: any array of scores will
do, larger is better (magnitude pruning passes `abs(weights)`).

Counts are exact also when scores are equal: of equal scores the one with the lower
index (in C order; for several tensors, in their order) is kept. A threshold, as TFMOT
has it, would keep all of them, down to no pruning at all where many weights are equal.

A structure prunes weights by the unit (`Structure`). Then the number of units is exact;
where units have different sizes (channels of several layers, blocks cut off at an
edge), the number of zeros comes as near to the target as units allow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tfopt.masks._count import (
    MIN_DENSITY,
    SCOPES,
    Scope,
    check_scope,
    minimum,
    num_kept,
    top_k,
    total_kept,
)
from tfopt.masks._structure import POOLINGS, Pooling, Structure, Units

__all__ = [
    "MIN_DENSITY",
    "POOLINGS",
    "SCOPES",
    "Pooling",
    "Scope",
    "Structure",
    "above",
    "compute",
    "least_zeros",
    "num_kept",
    "structured_zeros",
    "top_k",
    "total_kept",
]


def compute(
    scores: Sequence[np.ndarray],
    sparsity: float,
    *,
    scope: Scope = "local",
    min_density: float = MIN_DENSITY,
    structure: str | Structure = "unstructured",
    pooling: Pooling = "avg",
) -> list[np.ndarray]:
    """Returns the masks that keep the best-scored weights.

    Args:
        scores: One array per tensor, any real dtype; larger is better. Any shape if
            unstructured, else `[positions, inputs, outputs]`.
        sparsity: Fraction of zeros, in [0, 1). For "m:n" the fraction of groups that
            have their zeros is `sparsity / (m/n)`, those first that lose least.
        scope: `"local"`: each tensor gets this sparsity. `"global"`: all tensors
            together do, cut by one threshold, so that tensors with large scores keep
            more of their weights.
        min_density: Global scope only: the fraction of its units that each tensor
            keeps at least (no more than its local share, and no less than one).
        structure: What is pruned together, as for `Structure.parse`.
        pooling: `"avg"`, `"max"` or `"norm"` (root mean square) of its weights is the
            score of a block or channel.

    Returns:
        Bool arrays of the shapes of `scores`; True keeps. Unstructured, local scope:
        each has `num_kept` True; global: together they have `total_kept` True.

    Raises:
        ValueError: An unknown scope, structure or pooling, a sparsity outside [0, 1),
            or scores with NaN.

    Example:
        >>> [mask.astype(int).tolist() for mask in compute([np.array([3, 1, 2, 0])], 0.5)]
        [[1, 0, 1, 0]]
        >>> compute([np.arange(8.0).reshape(1, 4, 2)], 0.5, structure="2:4")[0][0].T
        array([[False, False,  True,  True],
               [False, False,  True,  True]])
    """  # noqa: E501
    check_scope(scope)
    _check_pooling(pooling)
    if not 0 <= sparsity < 1:
        raise ValueError(
            f"`sparsity` must be in [0, 1). Received: sparsity={sparsity!r}"
        )
    structure = Structure.parse(structure)
    units = [Units(structure, score.shape) for score in scores]
    pooled = [
        unit.scores(score, pooling) for unit, score in zip(units, scores, strict=True)
    ]
    sizes = [unit.sizes for unit in units]
    if scope == "local":
        share = min(1.0, sparsity / structure.limit)
        sure = 0 if structure.kind == "m:n" else 1
        kept = [
            _keep(one, size, share, min(sure, one.size))
            for one, size in zip(pooled, sizes, strict=True)
        ]
    else:
        kept = _keep_globally(pooled, sizes, sparsity, structure, min_density)
    return [
        unit.expand(keep, score)
        for unit, keep, score in zip(units, kept, scores, strict=True)
    ]


def above(
    scores: Sequence[np.ndarray],
    threshold: float,
    *,
    structure: str | Structure = "unstructured",
    pooling: Pooling = "avg",
) -> list[np.ndarray]:
    """Returns masks that keep what scores at least a threshold, and one unit each.

    Args:
        scores: As for `compute`.
        threshold: Units that score less are pruned.
        structure: As for `compute`, but not "m:n", which leaves no choice.
        pooling: As for `compute`.

    Returns:
        Bool arrays of the shapes of `scores`; True keeps.

    Raises:
        ValueError: "m:n", an unknown pooling, or scores with NaN.

    Example:
        >>> above([np.array([0.3, 0.1, 0.2])], 0.2)[0].tolist()
        [True, False, True]
    """
    _check_pooling(pooling)
    structure = Structure.parse(structure)
    if structure.kind == "m:n":
        raise ValueError(
            "A threshold takes no structure m:n, which says how many zeros there are. "
            f"Received: structure={structure}"
        )
    result = []
    for score in scores:
        units = Units(structure, score.shape)
        pooled = units.scores(score, pooling)
        keep = (pooled >= threshold) | top_k(pooled, min(1, pooled.size))
        result.append(units.expand(keep, score))
    return result


def least_zeros(
    shapes: Sequence[tuple[int, ...]],
    sparsity: float,
    *,
    scope: Scope = "local",
    min_density: float = MIN_DENSITY,
    structure: str | Structure = "unstructured",
) -> int:
    """Returns how many zeros the masks of `compute` make at least, in all.

    It is the exact number where all units have one size; otherwise which units are
    cut decides, and the number may be higher.

    Args:
        shapes: Shape of each tensor, as for `compute`.
        sparsity: Fraction of zeros, in [0, 1).
        scope: As for `compute`.
        min_density: As for `compute`.
        structure: As for `compute`.

    Example:
        >>> least_zeros([(1, 10, 10)], 0.5, structure="2x5")
        50
    """
    check_scope(scope)
    structure = Structure.parse(structure)
    sizes = [Units(structure, shape).sizes for shape in shapes]
    share = min(1.0, sparsity / structure.limit)
    if structure.kind == "m:n":
        sure = [0 for _ in sizes]
    elif scope == "local":
        sure = [min(1, size.size) for size in sizes]
    else:
        sure = [minimum(size.size, sparsity, min_density) for size in sizes]
    if scope == "global" and sizes:
        sizes, sure = [np.concatenate(sizes)], [sum(sure)]
    return sum(
        _least_zeros(size, share, some) for size, some in zip(sizes, sure, strict=True)
    )


def structured_zeros(values: np.ndarray, structure: str | Structure) -> int:
    """Returns how many zeros of a tensor are in units that are pruned as a whole.

    Args:
        values: Weights, in the shape that `compute` takes.
        structure: As for `compute`.

    Example:
        >>> structured_zeros(np.array([[[0.0, 0.0], [0.0, 5.0]]]), "2x1")
        2
    """
    return Units(Structure.parse(structure), values.shape).zeros(values)


def _least_zeros(sizes: np.ndarray, share: float, sure: int) -> int:
    """Returns how many zeros at least result if `sure` units cannot be cut."""
    sizes = sizes[sizes > 0]
    if sizes.size == 0:
        return 0
    largest, total = int(sizes.max()), int(sizes.sum())
    if _is_uniform(sizes):
        return (sizes.size - _count(sizes.size, share, sure)) * largest
    if share == 1 and sure == 0:
        return total
    # Off the target by half a unit at most, unless there is nothing left to cut.
    target = share * total - largest / 2
    return max(0, min(math.floor(target), total - sure * largest))


def _count(size: int, share: float, sure: int) -> int:
    """Returns how many of `size` equal units stay, `sure` of them in any case."""
    if share == 1:
        return sure
    return max(num_kept(size, share) if sure else round(size * (1 - share)), sure)


def _keep(
    scores: np.ndarray, sizes: np.ndarray, share: float, sure: np.ndarray | int
) -> np.ndarray:
    """Returns which units stay; those that prune nothing always do.

    Args:
        scores: One score per unit.
        sizes: How many weights each unit makes zero.
        share: Fraction of them to make zero.
        sure: Which units stay in any case, as a bool array; or only how many.
    """
    if _is_uniform(sizes) and isinstance(sure, int):
        if sizes.size == 0 or sizes[0] == 0:
            return np.ones(scores.shape, bool)
        return top_k(scores, _count(scores.size, share, sure))
    fixed = sizes == 0
    if not isinstance(sure, int):
        fixed, sure = fixed | sure, 0
    keep = np.ones(scores.shape, bool)
    free = np.flatnonzero(~fixed)
    if _is_uniform(sizes):
        count = max(_count(sizes.size, share, 1) - np.count_nonzero(fixed), 0)
    else:
        count = _nearest_count(scores[free], sizes[free], share * sizes.sum(), sure)
    keep[free] = top_k(scores[free], count)
    return keep


def _nearest_count(
    scores: np.ndarray, sizes: np.ndarray, target: float, sure: int
) -> int:
    """Returns how many units to keep for a number of zeros next to the target."""
    order = np.argsort(-scores, kind="stable")[::-1]
    zeros = np.concatenate([[0], np.cumsum(sizes[order])])
    distance = np.abs(zeros[: sizes.size - min(sure, sizes.size) + 1] - target)
    return sizes.size - int(np.argmin(distance))


def _keep_globally(
    scores: Sequence[np.ndarray],
    sizes: Sequence[np.ndarray],
    sparsity: float,
    structure: Structure,
    min_density: float,
) -> list[np.ndarray]:
    """Returns which units of several tensors stay, cut by one threshold."""
    if not scores:
        return []
    sure: np.ndarray | int = 0  # n - m weights of each group stay anyway
    if structure.kind != "m:n":
        sure = np.concatenate(
            [
                top_k(one, minimum(one.size, sparsity, min_density)).ravel()
                for one in scores
            ]
        )
    share = min(1.0, sparsity / structure.limit)
    keep = _keep(np.concatenate(scores), np.concatenate(sizes), share, sure)
    return np.split(keep, np.cumsum([one.size for one in scores])[:-1])


def _is_uniform(sizes: np.ndarray) -> bool:
    # Unstructured, the array is a view of a single number.
    return sizes.size == 0 or sizes.strides == (0,) or bool((sizes == sizes[0]).all())


def _check_pooling(pooling: str) -> None:
    if pooling not in POOLINGS:
        raise ValueError(
            f"`pooling` must be one of {POOLINGS}. Received: pooling={pooling!r}"
        )
