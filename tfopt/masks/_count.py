"""How many weights stay, and which: exact counts, ties by index."""

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
    check_scope(scope)
    if scope == "local":
        return sum(num_kept(size, sparsity) for size in sizes)
    least = sum(minimum(size, sparsity, min_density) for size in sizes)
    return max(num_kept(sum(sizes), sparsity), least)


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


def minimum(size: int, sparsity: float, min_density: float) -> int:
    """Returns how many of `size` a tensor keeps at least under global scope."""
    return min(max(1, math.ceil(size * min_density)), num_kept(size, sparsity))


def check_scope(scope: str) -> None:
    """Raises unless `scope` is a known one.

    Raises:
        ValueError: It is not.
    """
    if scope not in SCOPES:
        raise ValueError(f"`scope` must be one of {SCOPES}. Received: scope={scope!r}")
