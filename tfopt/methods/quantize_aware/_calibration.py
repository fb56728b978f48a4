"""Ranges of activations from representative inputs, before any training."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfopt import _samples
from tfopt._keras import fake_quantize
from tfopt.types import TensorInfo

_BATCH_SIZE = 32


def calibrate(
    model: Any, dataset: Any, *, max_examples: int, max_batches: int | None = None
) -> None:
    """Runs inputs through a prepared model, whose ranges widen to hold all they see.

    Args:
        model: Prepared model; its ranges are changed.
        dataset: See `tfopt._samples.read`.
        max_examples: Take no further batch after so many examples; not in force if
            `max_batches` is given.
        max_batches: Take so many batches.

    Raises:
        ValueError: There is no example, or one doesn't fit the model's inputs.
    """
    count = 0
    infos = [_info(tensor) for tensor in model.inputs]
    batches = _samples.read(dataset, infos, batch_size=_BATCH_SIZE)
    with fake_quantize.calibrating():
        for number, batch in enumerate(batches, 1):
            model(_structured(batch, model), training=False)
            count += len(batch[infos[0].name])
            is_enough = count >= max_examples
            if max_batches is not None:
                is_enough = number >= max_batches
            if is_enough:
                break
    if not count:
        raise _samples.empty(dataset)


def _info(tensor: Any) -> TensorInfo:
    dtype = tf.as_dtype(tensor.dtype)
    # NumPy cannot cast to it.
    numbers = tf.float32 if dtype == tf.bfloat16 else dtype
    shape = tuple(tensor.shape)
    return TensorInfo(tensor.name, np.dtype(numbers.as_numpy_dtype), shape)


def _structured(batch: _samples.Batch, model: Any) -> Any:
    return tf.nest.map_structure(lambda x: tf.cast(batch[x.name], x.dtype), model.input)
