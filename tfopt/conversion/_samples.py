"""Inputs to calibrate and verify with: the user's, or random ones."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_RANDOM_EXAMPLES = 16
# For a free axis other than the batch.
_FREE_SIZE = 16
_SEED = 0

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Samples:
    """Batches of inputs by name, in the order of the model's inputs.

    Attributes:
        batches: Of one example each, where the model leaves the batch size free.
        kind: `"representative"` or `"random"`.
    """

    batches: tuple[Batch, ...]
    kind: str

    def merged(self, examples: int, batch_size: int) -> tuple[Batch, ...]:
        """Returns the first examples, neighbours of equal shape in one batch."""
        merged: list[list[Batch]] = []
        for batch in self.batches[:examples]:
            shapes = [value.shape for value in batch.values()]
            same = merged and shapes == [v.shape for v in merged[-1][0].values()]
            if same and len(merged[-1]) < batch_size:
                merged[-1].append(batch)
            else:
                merged.append([batch])
        return tuple(
            {name: np.concatenate([item[name] for item in group]) for name in group[0]}
            if len(group) > 1
            else group[0]
            for group in merged
        )


def representative(
    dataset: Any, specs: Mapping[str, tf.TensorSpec], *, limit: int
) -> Samples:
    """Brings a representative dataset into one form.

    Args:
        dataset: An array of examples [n, ...]; a dictionary of such arrays by input
            name; or an iterable, or a function that returns one, of examples or
            batches. Each of those is an array, a tuple or list in the order of the
            inputs, or a dictionary by name.
        specs: Type and shape of each input, by name.
        limit: Take at most so many batches of one (or examples, where the batch size
            is free), so that endless generators end.

    Raises:
        ValueError: There is no example, or one doesn't fit the inputs, or holds NaN
            or infinity.
    """
    examples = (
        example
        for position, item in enumerate(_items(dataset, specs))
        for example in _split(_checked(item, specs, position), specs)
    )
    batches = list(itertools.islice(examples, limit))
    if not batches:
        raise ValueError(
            "The representative dataset is empty. Expected at least one example. "
            f"Received: representative_dataset={type(dataset).__name__}"
        )
    return Samples(tuple(batches), "representative")


def random(
    specs: Mapping[str, tf.TensorSpec], ranges: Mapping[int, tuple[float, float]]
) -> Samples:
    """Returns seeded random examples.

    Floats are uniform in the range that fake quantization declares for the input, else
    standard normal; bytes are uniform; wider integers are 0 or 1, which every table of
    two rows accepts.

    Args:
        specs: Type and shape of each input, by name.
        ranges: Declared ranges by position of the input.

    Raises:
        ValueError: An input holds strings, which have no random values.
    """
    generator = np.random.default_rng(_SEED)
    batches = tuple(
        {
            name: _random_array(generator, name, spec, ranges.get(position))
            for position, (name, spec) in enumerate(specs.items())
        }
        for _ in range(_RANDOM_EXAMPLES)
    )
    return Samples(batches, "random")


def is_batch_free(specs: Mapping[str, tf.TensorSpec]) -> bool:
    """Returns whether the first axis of every input is free."""
    return all(spec.shape.rank and spec.shape[0] is None for spec in specs.values())


def _items(dataset: Any, specs: Mapping[str, tf.TensorSpec]) -> Iterator[Any]:
    if callable(dataset):
        dataset = dataset()
    if isinstance(dataset, np.ndarray):
        yield from (dataset[rows] for rows in _row_slices(len(dataset), specs))
    elif isinstance(dataset, Mapping):
        lengths = {name: len(value) for name, value in dataset.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(
                "Expected arrays with the same number of examples. "
                f"Received: representative_dataset with lengths {lengths}"
            )
        for rows in _row_slices(next(iter(lengths.values())), specs):
            yield {name: np.asarray(value[rows]) for name, value in dataset.items()}
    elif isinstance(dataset, Iterable):
        yield from dataset
    else:
        raise ValueError(
            "Expected an array, a dictionary of arrays, an iterable of batches, or a "
            "function that returns one. "
            f"Received: representative_dataset={type(dataset).__name__}"
        )


def _row_slices(count: int, specs: Mapping[str, tf.TensorSpec]) -> Iterator[slice]:
    """Cuts rows into batches; those that don't fill a fixed batch are left out."""
    fixed = [spec.shape[0] for spec in specs.values() if spec.shape.rank]
    size = fixed[0] or 1 if fixed else 1
    for start in range(0, count - size + 1, size):
        yield slice(start, start + size)


def _checked(item: Any, specs: Mapping[str, tf.TensorSpec], position: int) -> Batch:
    where = f"representative_dataset, item {position}"
    if isinstance(item, Mapping):
        if set(item) != set(specs):
            raise ValueError(
                f"Expected the inputs {list(specs)}. Received: {where} with "
                f"{sorted(map(str, item))}"
            )
        values: Sequence[Any] = [item[name] for name in specs]
    elif isinstance(item, (tuple, list)):
        values = item
    else:
        values = [item]
    if len(values) != len(specs):
        raise ValueError(
            f"Expected {len(specs)} arrays, one for each of the inputs {list(specs)}; "
            "labels don't belong here. "
            f"Received: {where} with {len(values)}"
        )
    return {
        name: _fitted(np.asarray(value), spec, f"{where}, input {name!r}")
        for value, (name, spec) in zip(values, specs.items(), strict=True)
    }


def _fitted(value: np.ndarray, spec: tf.TensorSpec, where: str) -> np.ndarray:
    rank = spec.shape.rank
    if rank is not None and value.ndim == rank - 1:
        value = value[np.newaxis]
    if not spec.shape.is_compatible_with(value.shape):
        raise ValueError(
            f"Expected the shape {_shape_text(spec.shape)}, or one example of it. "
            f"Received: {where} of shape {value.shape}"
        )
    dtype = spec.dtype.as_numpy_dtype
    if spec.dtype == tf.string:
        return value.astype(object)
    if not np.can_cast(value.dtype, dtype, "same_kind"):
        raise ValueError(
            f"Expected {spec.dtype.name} values. Received: {where} of {value.dtype}"
        )
    if value.dtype.kind in "fc" and not np.all(np.isfinite(value)):
        raise ValueError(
            f"Expected finite values. Received: {where} with NaN or infinity"
        )
    return value.astype(dtype)


def _split(batch: Batch, specs: Mapping[str, tf.TensorSpec]) -> Iterator[Batch]:
    """Yields examples as batches of one, where the batch size is free."""
    sizes = {value.shape[0] for value in batch.values() if value.ndim}
    if not is_batch_free(specs) or len(sizes) != 1:
        yield batch
        return
    for i in range(sizes.pop()):
        yield {name: value[i : i + 1] for name, value in batch.items()}


def _random_array(
    generator: np.random.Generator,
    name: str,
    spec: tf.TensorSpec,
    limits: tuple[float, float] | None,
) -> np.ndarray:
    shape = _random_shape(spec.shape)
    dtype = spec.dtype
    if dtype == tf.string:
        raise ValueError(
            "There are no random strings to verify with. Give a "
            f"`representative_dataset`, or `verify=False`. Received: input {name!r}"
        )
    if dtype.is_floating or dtype.is_complex:
        if limits is not None:
            return generator.uniform(*limits, shape).astype(dtype.as_numpy_dtype)
        return generator.standard_normal(shape).astype(dtype.as_numpy_dtype)
    if dtype.size == 1 and dtype.is_integer:
        limit = np.iinfo(dtype.as_numpy_dtype)
        return generator.integers(limit.min, limit.max, shape, endpoint=True).astype(
            dtype.as_numpy_dtype
        )
    return generator.integers(0, 1, shape, endpoint=True).astype(dtype.as_numpy_dtype)


def _random_shape(shape: tf.TensorShape) -> list[int]:
    if shape.rank is None:
        return [1]
    return [
        (1 if axis == 0 else _FREE_SIZE) if size is None else size
        for axis, size in enumerate(shape)
    ]


def _shape_text(shape: tf.TensorShape) -> str:
    if shape.rank is None:
        return "(any)"
    return "(" + ", ".join("?" if n is None else str(n) for n in shape) + ")"
