"""Typical inputs of a model: batches out of all forms in which users have them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfopt import data
from tfopt.types import TensorInfo

Batch = dict[str, np.ndarray]


def read(
    dataset: Any, inputs: Sequence[TensorInfo], *, batch_size: int = 1
) -> Iterator[Batch]:
    """Yields batches of inputs by name, in the order of the model's inputs.

    Args:
        dataset: An array of examples [n, ...]; a dictionary of such arrays by input
            name; a file of them (see `tfopt.data.load_representative`); or an
            iterable, or a function that returns one, of examples or batches. Each of
            those is an array, a tuple or list in the order of the inputs, or a
            dictionary by name; or a tuple of these and of labels, as `fit` takes it.
        inputs: Name, type and shape of each input.
        batch_size: Rows of arrays in a batch, where the model leaves that free.

    Raises:
        ValueError: Something doesn't fit the inputs, or holds NaN or infinity.
        TfoptError: The file is missing or damaged.

    Example:
        >>> image = TensorInfo("image", np.dtype("float32"), (None, 2))
        >>> [batch["image"].shape for batch in read(np.eye(3, 2), [image])]
        [(1, 2), (1, 2), (1, 2)]
    """
    for position, item in enumerate(_items(dataset, inputs, batch_size)):
        where = f"representative_dataset, item {position}"
        values = _in_order(without_labels(item), inputs, where)
        yield {
            info.name: _fitted(np.asarray(value), info, f"{where}, input {info.name!r}")
            for value, info in zip(values, inputs, strict=True)
        }


def without_labels(item: Any) -> Any:
    """Returns the inputs of `(inputs, labels, ...)`, if it is clear that it is one.

    A tuple of arrays may be the inputs; one that begins with several is not.
    """
    return item[0] if isinstance(item, tuple) and item and is_group(item[0]) else item


def is_group(value: Any) -> bool:
    """Returns whether a value is the arrays of several inputs, by name or in order."""
    is_list = isinstance(value, (tuple, list)) and bool(value)
    return isinstance(value, Mapping) or (is_list and _is_array(value[0]))


def empty(dataset: Any) -> ValueError:
    """Returns the error that there is no example."""
    return ValueError(
        "The representative dataset is empty. Expected at least one example. "
        f"Received: representative_dataset={type(dataset).__name__}"
    )


def _is_array(value: Any) -> bool:
    # Of NumPy, TensorFlow, h5py and others.
    return hasattr(value, "__array__") and hasattr(value, "shape")


def _items(
    dataset: Any, inputs: Sequence[TensorInfo], batch_size: int
) -> Iterator[Any]:
    if isinstance(dataset, (str, os.PathLike)):
        dataset = data.load_representative(dataset)
    if callable(dataset):
        dataset = dataset()
    if _is_array(dataset) and len(dataset.shape):
        for rows in _row_slices(len(dataset), inputs, batch_size):
            yield np.asarray(dataset[rows])
    elif isinstance(dataset, Mapping):
        arrays = dict(zip(_names(inputs), _in_order(dataset, inputs), strict=True))
        lengths = {name: len(value) for name, value in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(
                "Expected arrays with the same number of examples. "
                f"Received: representative_dataset with lengths {lengths}"
            )
        for rows in _row_slices(next(iter(lengths.values())), inputs, batch_size):
            yield {name: np.asarray(value[rows]) for name, value in arrays.items()}
    elif isinstance(dataset, Iterable) and not _is_array(dataset):
        yield from dataset
    else:
        raise ValueError(
            "Expected an array, a dictionary of arrays, a file of them, an iterable of "
            "batches, or a function that returns one. "
            f"Received: representative_dataset={type(dataset).__name__}"
        )


def _row_slices(
    count: int, inputs: Sequence[TensorInfo], batch_size: int
) -> Iterator[slice]:
    """Cuts rows into batches; those that don't fill a fixed batch are left out."""
    fixed = next((info.shape[0] for info in inputs if info.shape), None)
    size = fixed or batch_size
    for start in range(0, count - size + 1 if fixed else count, size):
        yield slice(start, start + size)


def _names(inputs: Sequence[TensorInfo]) -> list[str]:
    return [info.name for info in inputs]


def _in_order(
    item: Any, inputs: Sequence[TensorInfo], where: str = "representative_dataset"
) -> Sequence[Any]:
    names = _names(inputs)
    if isinstance(item, Mapping):
        if not set(names) <= set(item):
            raise ValueError(
                f"Expected the inputs {names}. Received: {where} with "
                f"{sorted(map(str, item))}"
            )
        return [item[name] for name in names]
    values = item if isinstance(item, (tuple, list)) else [item]
    if len(values) != len(names):
        raise ValueError(
            f"Expected {len(names)} arrays, one for each of the inputs {names}; labels "
            f"don't belong here. Received: {where} with {len(values)}"
        )
    return values


def _fitted(value: np.ndarray, info: TensorInfo, where: str) -> np.ndarray:
    if info.shape is not None and value.ndim == len(info.shape) - 1:
        value = value[np.newaxis]
    if not _is_compatible(value.shape, info.shape):
        raise ValueError(
            f"Expected the shape {_shape_text(info.shape)}, or one example of it. "
            f"Received: {where} of shape {value.shape}"
        )
    if info.dtype == object:
        return value.astype(object)
    if value.dtype.kind in "fc" and not np.all(np.isfinite(value)):
        raise ValueError(
            f"Expected finite values. Received: {where} with NaN or infinity"
        )
    if np.can_cast(value.dtype, info.dtype, "same_kind"):
        return value.astype(info.dtype)
    if value.dtype.kind in "fiu" and info.dtype.kind in "iu":
        with np.errstate(invalid="ignore"):  # out of range: then not equal
            whole = value.astype(info.dtype)
        if np.array_equal(whole, value):
            return whole
    raise ValueError(
        f"Expected {info.dtype.name} values. Received: {where} of {value.dtype}"
    )


def _is_compatible(
    found: tuple[int, ...], expected: tuple[int | None, ...] | None
) -> bool:
    return expected is None or (
        len(found) == len(expected)
        and all(n in (None, m) for m, n in zip(found, expected, strict=True))
    )


def _shape_text(shape: tuple[int | None, ...] | None) -> str:
    if shape is None:
        return "(any)"
    return "(" + ", ".join("?" if n is None else str(n) for n in shape) + ")"
