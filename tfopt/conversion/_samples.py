"""Inputs to calibrate and verify with: the user's, or random ones."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt import _samples
from tfopt._samples import Batch
from tfopt.types import TensorInfo

_RANDOM_EXAMPLES = 16
# For a free axis other than the batch.
_FREE_SIZE = 16
_SEED = 0


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
        dataset: See `tfopt._samples.read`.
        specs: Type and shape of each input, by name.
        limit: Take at most so many batches of one (or examples, where the batch size
            is free), so that endless generators end.

    Raises:
        ValueError: There is no example, or one doesn't fit the inputs, or holds NaN
            or infinity.
    """
    infos = [_info(name, spec) for name, spec in specs.items()]
    examples = (
        example
        for batch in _samples.read(dataset, infos)
        for example in _split(batch, specs)
    )
    batches = tuple(itertools.islice(examples, limit))
    if not batches:
        raise _samples.empty(dataset)
    return Samples(batches, "representative")


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


def _info(name: str, spec: tf.TensorSpec) -> TensorInfo:
    shape = None if spec.shape.rank is None else tuple(spec.shape)
    return TensorInfo(name, np.dtype(spec.dtype.as_numpy_dtype), shape)


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
