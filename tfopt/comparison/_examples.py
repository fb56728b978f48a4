"""The examples that models are compared on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt import data as datasets
from tfopt.types import TfoptError

Arrays = datasets.Arrays


@dataclasses.dataclass(frozen=True)
class Examples:
    """Inputs, and labels where there are some.

    Attributes:
        inputs: Arrays [n, ...] by name; `""` for a single one without a name.
        labels: An array [n, ...], several by the name of the output, or None.
    """

    inputs: dict[str, np.ndarray]
    labels: Arrays | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def scaled(self, factor: float) -> Examples:
        """Returns them with float32 inputs times a factor; 1 changes nothing."""
        if factor == 1:
            return self
        number = np.float32(factor)
        inputs = {key: x.astype(np.float32) * number for key, x in self.inputs.items()}
        return Examples(inputs, self.labels)


def load(data: Any, *, limit: int | None = None) -> Examples:
    """Brings data into one form; see `compare`.

    Args:
        data: What the user gave.
        limit: Take only the first so many.

    Raises:
        ValueError: It is nothing of that kind, or the limit is no count.
        TfoptError: It cannot be read, or lengths differ.
    """
    if limit is not None and (isinstance(limit, bool) or limit < 1):
        raise ValueError(
            f"Expected a positive number. Received: num_examples={limit!r}"
        )
    inputs, labels = _parts(data)
    named = _named(inputs)
    leaves = [*named.values(), *([] if labels is None else _named(labels).values())]
    lengths = {len(item) if item.ndim else None for item in leaves}
    if len(lengths) != 1 or not lengths - {None, 0}:
        shapes = [list(item.shape) for item in leaves]
        raise TfoptError(
            "Expected arrays of the same length, at least 1. "
            f"Received: data with shapes {shapes}"
        )
    cut = {name: array[:limit] for name, array in named.items()}
    if isinstance(labels, Mapping):
        labels = {name: array[:limit] for name, array in labels.items()}
    elif labels is not None:
        labels = labels[:limit]
    return Examples(cut, labels)


def _parts(data: Any) -> tuple[Any, Any]:
    if isinstance(data, (str, os.PathLike)):
        return datasets.load_examples(data)
    if isinstance(data, datasets.Data):
        return data.test.arrays()
    if isinstance(data, datasets.Split):
        return data.arrays()
    if hasattr(data, "as_numpy_iterator"):
        return datasets.Split(data).arrays()
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return data[0], data[1] if data[1] is None else _as_arrays(data[1])
    if isinstance(data, (np.ndarray, Mapping)):
        return data, None
    raise ValueError(
        "Expected a tfopt.Data, a pair (inputs, labels), an array or arrays by name, "
        f"or a data spec. Received: data={type(data).__name__}"
    )


def _as_arrays(labels: Any) -> Any:
    if isinstance(labels, Mapping):
        return {str(name): np.asarray(item) for name, item in labels.items()}
    return np.asarray(labels)


def _named(arrays: Any) -> dict[str, np.ndarray]:
    if isinstance(arrays, Mapping):
        return {str(name): np.asarray(item) for name, item in arrays.items()}
    return {"": np.asarray(arrays)}
