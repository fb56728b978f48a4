"""Ranges of activations from representative inputs, before any training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import fake_quantize

_BATCH_SIZE = 32


def calibrate(
    model: Any, dataset: Any, *, max_examples: int, max_batches: int | None = None
) -> None:
    """Runs inputs through a prepared model, whose ranges widen to hold all they see.

    Args:
        model: Prepared model; its ranges are changed.
        dataset: An array of examples [n, ...]; or an iterable, or a function that
            returns one, of examples or batches. Each is an array, a list or tuple in
            the order of the inputs, or a dictionary by input name.
        max_examples: Take no further batch after so many examples; not in force if
            `max_batches` is given.
        max_batches: Take so many batches.

    Raises:
        ValueError: There is no example, or one doesn't fit the model's inputs.
    """
    count = 0
    with fake_quantize.calibrating():
        for number, item in enumerate(_items(dataset), 1):
            tensors = _fitted(item, model.inputs)
            model(_structured(tensors, model), training=False)
            count += int(tensors[0].shape[0])
            is_enough = count >= max_examples
            if max_batches is not None:
                is_enough = number >= max_batches
            if is_enough:
                break
    if not count:
        raise ValueError(
            "`representative_dataset` must have at least one example. "
            f"Received: representative_dataset={type(dataset).__name__}"
        )


def _items(dataset: Any) -> Iterator[Any]:
    if callable(dataset):
        dataset = dataset()
    if not isinstance(dataset, (np.ndarray, tf.Tensor)):
        yield from dataset
        return
    for start in range(0, len(dataset), _BATCH_SIZE):
        yield dataset[start : start + _BATCH_SIZE]


def _structured(tensors: list[tf.Tensor], model: Any) -> Any:
    by_input = dict(zip(map(id, model.inputs), tensors, strict=True))
    return tf.nest.map_structure(lambda x: by_input[id(x)], model.input)


def _fitted(item: Any, inputs: Sequence[Any]) -> list[tf.Tensor]:
    names = [tensor.name for tensor in inputs]
    if isinstance(item, tuple) and item and isinstance(item[0], (Mapping, tuple)):
        item = item[0]  # what `fit` takes: inputs, labels, weights
    if isinstance(item, Mapping):
        values = [item.get(name) for name in names]
    else:
        values = list(item) if isinstance(item, (list, tuple)) else [item]
    if len(values) != len(inputs) or any(value is None for value in values):
        received = (
            sorted(item) if isinstance(item, Mapping) else f"{len(values)} arrays"
        )
        raise ValueError(
            f"Expected one array for each of the inputs {names}; labels don't belong "
            f"here. Received: an item of representative_dataset with {received}"
        )
    tensors = []
    for value, expected in zip(values, inputs, strict=True):
        tensor = tf.cast(value, expected.dtype)
        if tensor.shape.rank == len(expected.shape) - 1:
            tensor = tensor[tf.newaxis]
        if not tensor.shape.is_compatible_with(tuple(expected.shape)):
            raise ValueError(
                f"Expected the shape {tuple(expected.shape)}, or one example of it. "
                "Received: an item of representative_dataset of shape "
                f"{tuple(tensor.shape)} for the input {expected.name!r}"
            )
        tensors.append(tensor)
    return tensors
