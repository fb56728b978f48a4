"""Scores -> 0/1 masks, exactly as many ones as asked for.

A mask is a bool array of the shape of the weights; True keeps a weight, False makes it
zero. Which weights are worth keeping is the caller's business: any array of scores will
do, larger is better (magnitude pruning passes `abs(weights)`).

Counts are exact also when scores are equal: of equal scores the one with the lower
index (in C order; for several tensors, in their order) is kept. A threshold, as TFMOT
has it, would keep all of them, down to no pruning at all where many weights are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Scope = Literal["local", "global"]

SCOPES: tuple[Scope, ...] = ("local", "global")

# Under global scope every tensor keeps at least this fraction of its weights, so that
# no layer goes dead; the number of its local share, where that is smaller.
MIN_DENSITY = 0.01


def num_kept(size: int, sparsity: float) -> int:
    """Returns how many of `size` weights stay at a sparsity: at least one.

    `size * (1 - sparsity)`, rounded half to even, as TFMOT counts. It is computed in
    float32 as there: double precision would round halves such as 15 weights at 0.9 the
    other way. From 2**24 on float32 cannot count, so double precision takes over.

    Args:
        size: Number of weights, >= 0.
        sparsity: Fraction of zeros, in [0, 1).

    Example:
        >>> num_kept(10, 0.75), num_kept(5, 0.5), num_kept(3, 0.99)
        (2, 2, 1)
    """
    real = np.float32 if size < 2**24 else np.float64
    kept = int(np.rint(real(size) * (real(1) - real(sparsity))))
    return min(size, max(kept, 1))


def total_kept(
    sizes: Sequence[int],
    sparsity: float,
    *,
    scope: Scope = "local",
    min_density: float = MIN_DENSITY,
) -> int:
    """Returns how many weights of several tensors `compute` keeps in all.

    Args:
        sizes: Number of weights of each tensor.
        sparsity: Fraction of zeros, in [0, 1).
        scope: As for `compute`.
        min_density: As for `compute`.
    """
    _check_scope(scope)
    if scope == "local":
        return sum(num_kept(size, sparsity) for size in sizes)
    least = sum(_minimum(size, sparsity, min_density) for size in sizes)
    return max(num_kept(sum(sizes), sparsity), least)


def compute(
    scores: Sequence[np.ndarray],
    sparsity: float,
    *,
    scope: Scope = "local",
    min_density: float = MIN_DENSITY,
) -> list[np.ndarray]:
    """Returns the masks that keep the best-scored weights.

    Args:
        scores: One array per tensor, any shape and real dtype; larger is better.
        sparsity: Fraction of zeros, in [0, 1).
        scope: `"local"`: each tensor gets this sparsity. `"global"`: all tensors
            together do, cut by one threshold, so that tensors with large scores keep
            more of their weights.
        min_density: Global scope only: the fraction of its weights that each tensor
            keeps at least (no more than its local share, and no less than one weight).

    Returns:
        Bool arrays of the shapes of `scores`; True keeps. Local scope: each has
        `num_kept` True; global: together they have `total_kept` True.

    Raises:
        ValueError: An unknown scope, a sparsity outside [0, 1) or scores with NaN.

    Example:
        >>> [mask.astype(int).tolist() for mask in compute([np.array([3, 1, 2, 0])], 0.5)]
        [[1, 0, 1, 0]]
    """  # noqa: E501
    _check_scope(scope)
    if not 0 <= sparsity < 1:
        raise ValueError(
            f"`sparsity` must be in [0, 1). Received: sparsity={sparsity!r}"
        )
    if scope == "local":
        return [top_k(score, num_kept(score.size, sparsity)) for score in scores]
    return _global(scores, sparsity, min_density)


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Returns a mask that is True at exactly the `k` largest scores.

    Of equal scores the lower index wins, in C order.

    Args:
        scores: Array of any shape and real dtype.
        k: How many, 0 <= k <= scores.size.

    Returns:
        Bool array of the shape of `scores`.

    Raises:
        ValueError: `k` is out of range, or scores are NaN.

    Example:
        >>> top_k(np.array([[1.0, 2.0], [2.0, 0.0]]), 1).tolist()
        [[False, True], [False, False]]
    """
    if not 0 <= k <= scores.size:
        raise ValueError(f"`k` must be in [0, {scores.size}]. Received: k={k}")
    if np.isnan(scores).any():
        raise ValueError(
            f"Scores must not be NaN. Received: {np.isnan(scores).sum()} NaN in an "
            f"array of shape {scores.shape}"
        )
    if k in (0, scores.size):
        return np.full(scores.shape, k > 0)
    flat = scores.ravel()
    # Weights pruned before share the lowest score, and selection is slow among so many
    # equals: leave them out.
    threshold = flat.min()
    above = flat[flat > threshold]
    if above.size > k:
        threshold = np.partition(above, above.size - k)[above.size - k]
    mask = flat > threshold
    # No more than k are above the threshold; equals of it fill up.
    equals = np.flatnonzero(flat == threshold)
    mask[equals[: k - np.count_nonzero(mask)]] = True
    return mask.reshape(scores.shape)


def _global(
    scores: Sequence[np.ndarray], sparsity: float, min_density: float
) -> list[np.ndarray]:
    sizes = [score.size for score in scores]
    total = total_kept(sizes, sparsity, scope="global", min_density=min_density)
    sure = [
        top_k(score, _minimum(score.size, sparsity, min_density)) for score in scores
    ]
    mask = np.concatenate([part.ravel() for part in sure])
    rest = np.concatenate([score.ravel() for score in scores])[~mask]
    mask[~mask] = top_k(rest, total - np.count_nonzero(mask))
    parts = np.split(mask, np.cumsum(sizes)[:-1])
    return [
        part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)
    ]


def _minimum(size: int, sparsity: float, min_density: float) -> int:
    return min(max(1, math.ceil(size * min_density)), num_kept(size, sparsity))


def _check_scope(scope: str) -> None:
    if scope not in SCOPES:
        raise ValueError(f"`scope` must be one of {SCOPES}. Received: scope={scope!r}")
