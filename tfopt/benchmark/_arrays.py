"""Inputs and outputs by name, and calls in several threads."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def rows_of(inputs: Arrays) -> int:
    """Returns how many examples inputs hold; scalars have no say."""
    return next((len(array) for array in inputs.values() if array.ndim), 1)


def in_threads(call: Any, calls: int, workers: int) -> None:
    """Calls a function so many times, from several threads."""
    if workers == 1:
        for _ in range(calls):
            call()
        return
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(call) for _ in range(calls)]:
            future.result()


def by_name(names: Sequence[str], values: Any) -> Arrays:
    """Returns outputs by name, from a mapping, a sequence or a single array."""
    if isinstance(values, Mapping):
        return {name: np.asarray(values[name]) for name in names}
    if isinstance(values, (list, tuple)):
        return dict(zip(names, map(np.asarray, values), strict=True))
    return {names[0]: np.asarray(values)}
