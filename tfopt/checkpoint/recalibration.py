"""Re-estimating BatchNorm statistics by forward passes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from tfopt import _keras
from tfopt.types import TfoptError


def recalibrate_batch_norm(model: Any, data: Any, *, batch_size: int = 32) -> list[str]:
    """Computes the moving mean and variance of all BatchNorm layers anew.

    Each batch goes through the model once, with BatchNorm as in training and all other
    layers, dropout for example, as in inference. The new statistics are the averages
    over all batches, weighted by their sizes, so nothing of the old ones is left.
    For weights restored without statistics, and after pruning or averaging weights.

    Args:
        model: A built model of either Keras. It is changed in place.
        data: Inputs like those in training: an array, a list of arrays (one per input)
            or a dict of them; or an iterable of batches, such as a tf.data.Dataset,
            each an input or a tuple that begins with it, `(x, y)`.
        batch_size: Samples per batch for arrays. Larger batches estimate the variance
            better.

    Returns:
        Names of the layers that were recalibrated.

    Raises:
        TfoptError: The model has no BatchNorm layer, or statistics became infinite or
            NaN. The old ones are put back then, as on any failure.
        ValueError: `data` is empty, or `batch_size` isn't positive.

    Reference:
        Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021 ("PreciseBN").

    Example:
        >>> recalibrate_batch_norm(model, images)
        Traceback (most recent call last):
        tfopt.types.TfoptError: The model has no BatchNorm layer...
    """
    _keras.check_model(model)
    if batch_size < 1:
        raise ValueError(
            "The batch size must be positive. Expected an integer of at least 1. "
            f"Received: batch_size={batch_size}"
        )
    layers = [layer for layer in _keras.leaf_layers(model) if _is_batch_norm(layer)]
    if not layers:
        raise TfoptError(
            "The model has no BatchNorm layer, so there is nothing to recalibrate. "
            "Expected a model with layers that have a moving mean and variance. "
            f"Received: model={model.name!r}"
        )
    states = [(layer.moving_mean, layer.moving_variance) for layer in layers]
    before = [[variable.numpy() for variable in pair] for pair in states]
    try:
        with contextlib.ExitStack() as stack:
            for layer in layers:
                stack.enter_context(_averaging(layer))
            batches = 0
            for batch in _batches(data, batch_size):
                model(batch, training=False)
                batches += 1
        if not batches:
            raise ValueError(
                "There is no data. Expected at least one batch. Received: data is empty"
            )
        for layer, pair in zip(layers, states, strict=True):
            _check_finite(layer, pair)
    except BaseException:
        for pair, values in zip(states, before, strict=True):
            for variable, value in zip(pair, values, strict=True):
                variable.assign(value)
        raise
    return [layer.name for layer in layers]


def _is_batch_norm(layer: Any) -> bool:
    # By what it has, so that derived and synchronized layers count as well.
    needed = ("moving_mean", "moving_variance", "momentum")
    return all(getattr(layer, name, None) is not None for name in needed)


@contextlib.contextmanager
def _averaging(layer: Any) -> Iterator[None]:
    """Lets a layer act as in training and average over all it sees, equally.

    With a momentum of seen / (seen + n), the moving average of its statistics is their
    mean over all samples so far.
    """
    call: Callable[..., Any] = layer.call
    momentum, trainable = layer.momentum, layer.trainable
    seen = 0

    def call_and_count(inputs: Any, *rest: Any, **options: Any) -> Any:
        nonlocal seen
        count = int(inputs.shape[0])
        layer.momentum = seen / (seen + count)
        seen += count
        return call(inputs, *rest, **{**options, "training": True})

    # A frozen layer would not update its statistics.
    layer.trainable = True
    layer.call = call_and_count
    try:
        yield
    finally:
        del layer.call
        layer.momentum, layer.trainable = momentum, trainable


def _batches(data: Any, batch_size: int) -> Iterator[Any]:
    if hasattr(data, "shape"):
        yield from _split([data], batch_size, lambda parts: parts[0])
    elif isinstance(data, dict):
        names = list(data)
        arrays = [data[name] for name in names]
        yield from _split(
            arrays, batch_size, lambda parts: dict(zip(names, parts, strict=True))
        )
    elif isinstance(data, list) and data and all(hasattr(x, "shape") for x in data):
        yield from _split(data, batch_size, list)
    elif isinstance(data, Iterable):
        for batch in data:
            yield batch[0] if isinstance(batch, tuple) else batch
    else:
        raise ValueError(
            "Cannot read the data. Expected an array, a list or dict of arrays, or an "
            f"iterable of batches. Received: data of type {type(data).__name__}"
        )


def _split(
    arrays: list[Any], batch_size: int, join: Callable[[list[Any]], Any]
) -> Iterator[Any]:
    sizes = {int(array.shape[0]) for array in arrays}
    if len(sizes) != 1:
        raise ValueError(
            "The arrays differ in their number of samples. Expected the same first "
            f"axis for all. Received: sizes={sorted(sizes)}"
        )
    for start in range(0, sizes.pop(), batch_size):
        yield join([array[start : start + batch_size] for array in arrays])


def _check_finite(layer: Any, pair: tuple[Any, Any]) -> None:
    for variable in pair:
        if not np.isfinite(np.asarray(variable.numpy(), np.float64)).all():
            raise TfoptError(
                "Recalibration gave statistics that are infinite or NaN; the old ones "
                "are back. Expected finite inputs and weights. "
                f"Received: layer={layer.name!r}"
            )
