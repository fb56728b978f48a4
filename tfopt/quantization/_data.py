"""Inputs and labels out of what a user calls data."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tfopt import _samples
from tfopt import data as datasets


def split(data: Any, num_inputs: int, *, limit: int) -> tuple[Any, np.ndarray | None]:
    """Separates inputs from labels.

    Args:
        data: `(inputs, labels)`, arrays of examples (inputs also a dictionary of
            them); or an iterable, such as a `tf.data.Dataset`, of `(inputs, labels)`
            batches; or an `.npz` file or `module:function` of either (see
            `tfopt.data.load_examples`); or inputs alone, in every form of a
            `representative_dataset`.
        num_inputs: How many inputs the model has.
        limit: At most so many examples are taken.

    Returns:
        Inputs in a form that `representative_dataset` may have, and labels [n, ...] or
        `None`.

    Raises:
        ValueError: Inputs and labels are of different numbers.
    """
    if isinstance(data, (str, os.PathLike)):
        if os.fspath(data).endswith(".npy"):
            return datasets.load_representative(data), None
        inputs, labels = datasets.load_examples(data)
        return inputs, None if labels is None else np.asarray(labels)[:limit]
    if isinstance(data, tuple) and len(data) == 2:
        inputs, labels = data
        in_order = num_inputs > 1 and isinstance(inputs, (tuple, list))
        _check_lengths(tuple(inputs) if in_order else inputs, labels)
        return [tuple(inputs)] if in_order else inputs, np.asarray(labels)[:limit]
    if isinstance(data, np.ndarray | Mapping):
        return data, None
    items = data() if callable(data) else data
    if not isinstance(items, Iterable):
        return data, None
    return _of_batches(items, num_inputs, limit)


def _of_batches(
    items: Iterable[Any], num_inputs: int, limit: int
) -> tuple[list[Any], np.ndarray | None]:
    inputs: list[Any] = []
    labels: list[np.ndarray] = []
    count = 0
    for item in itertools.islice(items, limit):
        batch, found = _parted(item, num_inputs)
        inputs.append(batch)
        if found is not None:
            labels.append(np.atleast_1d(np.asarray(found)))
        count += 1 if found is None else len(labels[-1])
        if count >= limit:
            break
    if labels and len(labels) != len(inputs):
        raise ValueError(
            "Expected labels in every batch or in none. "
            f"Received: data with {len(labels)} of {len(inputs)}"
        )
    return inputs, np.concatenate(labels)[:limit] if labels else None


def _parted(item: Any, num_inputs: int) -> tuple[Any, Any]:
    """Returns inputs and labels of what a dataset yields; None: there are none."""
    inputs = _samples.without_labels(item)
    if inputs is item:
        if not (num_inputs == 1 and isinstance(item, tuple) and len(item) in (2, 3)):
            return item, None
        inputs = item[0]
    return inputs, item[1] if len(item) > 1 else None


def _check_lengths(inputs: Any, labels: Any) -> None:
    arrays = [inputs]
    if isinstance(inputs, (Mapping, tuple)):
        arrays = [*(inputs.values() if isinstance(inputs, Mapping) else inputs)]
    lengths = [len(array) for array in arrays]
    if set(lengths) != {len(labels)}:
        raise ValueError(
            "Expected as many labels as examples. "
            f"Received: data with {lengths} examples and {len(labels)} labels"
        )
