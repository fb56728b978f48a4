"""Where clusters begin: k-means in one dimension, in NumPy.

In one dimension a cluster is an interval of the sorted values, so that prefix sums give
the mean of each at once: an iteration costs as many binary searches as there are
clusters, however many values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Initialization = Literal["kmeans++", "linear", "density", "random"]
INITIALIZATIONS: tuple[str, ...] = get_args(Initialization)

_MAX_ITERATIONS = 300
# Seeds are drawn from at most so many evenly spaced ranks of the sorted values.
_MAX_CANDIDATES = 1 << 16


def find(
    values: npt.ArrayLike,
    count: int,
    *,
    initialization: Initialization = "kmeans++",
    pinned: Sequence[float] = (),
    seed: int = 0,
) -> np.ndarray:
    """Returns the centroids that k-means (Lloyd's algorithm) ends with.

    If the values are `count` different ones or fewer, those are the centroids.

    Args:
        values: Float array of any shape, finite and not empty.
        count: Number of centroids, with the pinned ones.
        initialization: Where the iterations begin. `"kmeans++"`: at values drawn with
            a probability that grows with the squared distance to those drawn before.
            `"linear"`: evenly spaced from the smallest value to the largest.
            `"density"`: at evenly spaced quantiles. `"random"`: anywhere between the
            smallest and the largest value.
        pinned: Centroids that stay where they are, distinct; at most `count`.
        seed: For `"kmeans++"` and `"random"`.

    Returns:
        float64 array [count], increasing; some may be equal if there are fewer
        different values.

    Reference:
        Arthur and Vassilvitskii, k-means++: the advantages of careful seeding, SODA
        2007. Han et al., Deep Compression, https://arxiv.org/abs/1510.00149, for the
        others.

    Example:
        >>> find([0.0, 0.1, 1.0, 1.1, 5.0], 3)
        array([0.05, 1.05, 5.  ])
        >>> find([0.1, 0.5, 0.6, 2.0], 3, pinned=[0.0])
        array([0.  , 0.55, 2.  ])
    """
    ordered = np.sort(np.asarray(values, np.float64), axis=None)
    fixed = np.array(sorted(pinned), np.float64)
    free = count - len(fixed)
    distinct = np.setdiff1d(ordered, fixed)
    if len(distinct) <= free:
        # Surplus ones sit on others and stay empty until values come to differ.
        last = distinct[-1:] if len(distinct) else fixed[-1:]
        surplus = np.repeat(last, free - len(distinct))
        return np.sort(np.concatenate([fixed, distinct, surplus]))
    seeds = _seeds(ordered, free, fixed, initialization, np.random.default_rng(seed))
    return _iterate(ordered, seeds, fixed)


def _seeds(
    ordered: np.ndarray,
    count: int,
    fixed: np.ndarray,
    initialization: str,
    rng: np.random.Generator,
) -> np.ndarray:
    low, high = ordered[0], ordered[-1]
    if initialization == "linear":
        return np.linspace(low, high, count) if count > 1 else ordered[-1:]
    if initialization == "density":
        return np.quantile(ordered, (np.arange(count) + 0.5) / count)
    if initialization == "random":
        return rng.uniform(low, high, count)
    step = -(-len(ordered) // _MAX_CANDIDATES)
    candidates = ordered[::step]
    distances = np.full(len(candidates), np.inf)
    for centre in fixed:
        distances = np.minimum(distances, (candidates - centre) ** 2)
    found: list[float] = []
    while len(found) < count:
        total = distances.sum()
        if np.isinf(total):  # the first
            centre = rng.choice(candidates)
        elif total == 0:  # fewer different candidates than seeds
            centre = rng.choice(ordered)
        else:
            centre = rng.choice(candidates, p=distances / total)
        found.append(centre)
        distances = np.minimum(distances, (candidates - centre) ** 2)
    return np.array(found)


def _iterate(ordered: np.ndarray, seeds: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """Moves the seeds to the means of their members until nothing changes."""
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    free, borders = np.sort(seeds), None
    for _ in range(_MAX_ITERATIONS):
        order = np.argsort(np.concatenate([fixed, free]), kind="stable")
        centroids = np.concatenate([fixed, free])[order]
        middles = (centroids[1:] + centroids[:-1]) / 2
        # As in the training step, a value in the middle belongs to the lower one.
        inner = np.searchsorted(ordered, middles, side="right")
        new_borders = np.concatenate([[0], inner, [len(ordered)]])
        if borders is not None and np.array_equal(borders, new_borders):
            break
        borders = new_borders
        sizes = np.diff(borders)
        means = np.where(
            sizes > 0, np.diff(sums[borders]) / np.maximum(sizes, 1), centroids
        )
        free = np.sort(means[order >= len(fixed)])
    return np.sort(np.concatenate([fixed, free]))
