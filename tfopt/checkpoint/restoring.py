"""Restoring a slim checkpoint into a Keras model, all or nothing."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from tfopt import _keras
from tfopt.checkpoint import matching, objects, sources
from tfopt.checkpoint.matching import Located
from tfopt.checkpoint.plan import Metadata, read_metadata
from tfopt.savedmodel.bundle import BundleReader
from tfopt.types import TfoptError


def restore_slim_checkpoint(
    model: Any, path: str | os.PathLike[str], *, part: str | None = None
) -> list[str]:
    """Gives a Keras model the weights of a slim checkpoint.

    Weights are found by their place in the model, never by the layers' names, which
    count up within a process (`dense_2`). Every weight must be there with its shape,
    and every tensor must have a weight; else nothing is changed. Values are cast to
    the types of the variables.

    A checkpoint made from a TF1 one has names only: they must be those of the model's
    weights (`"dense/kernel"`).

    Args:
        model: A built model of either Keras.
        path: The slim checkpoint: its prefix, one of its files, or a directory of which
            the latest is meant.
        part: If it was made from a checkpoint of several models,
            `tf.train.Checkpoint(generator=..., discriminator=...)`, the name of the one
            to restore. By default the one that fits.

    Returns:
        Names of the weights that the checkpoint doesn't hold by intention, and that
        keep their values: none for `keep="inference"`, such as BatchNorm statistics
        for `keep="trainable"`, after which `recalibrate_batch_norm` is due.

    Raises:
        TfoptError: The checkpoint doesn't fit (lists what is missing, unexpected and
            mismatched), is damaged, or no slim checkpoint.

    Example:
        >>> from tfopt.checkpoint import slim_checkpoint
        >>> _ = slim_checkpoint(model, "light", dtype="float16")
        >>> restore_slim_checkpoint(model, "light")
        []
    """
    _keras.check_model(model)
    reader = BundleReader(sources.resolve(path))
    metadata = read_metadata(reader)
    weights = matching.weights(model)
    shapes = {entry.key: entry.shape for entry in metadata.weights}
    if metadata.model_weights is not None:
        located = _by_position(metadata, weights)
    else:
        graph = objects.read_graph(reader)
        located = matching.locate(graph, shapes, model, weights, part=part)
    untouched = []
    if metadata.keep == "trainable":
        untouched = [weight.name for weight in weights if not weight.trainable]
        located.missing = [name for name in located.missing if name not in untouched]
    located.check(reader.prefix)
    # All is read and checked before the first weight changes.
    reader.verify(located.keys.values())
    for position, key in located.keys.items():
        _assign(weights[position].variable, reader.read(key))
    restored = {weights[position].name for position in located.keys}
    return [weight.name for weight in weights if weight.name not in restored]


def _by_position(metadata: Metadata, weights: list[Any]) -> Located:
    found = Located({}, [], [], [])
    if metadata.model_weights != len(weights):
        found.mismatched.append(
            f"the model, which has {len(weights)} weights; the saved one had "
            f"{metadata.model_weights}"
        )
    for entry in metadata.weights:
        position = -1 if entry.position is None else entry.position
        if not 0 <= position < len(weights):
            found.unexpected.append(entry.name)
            continue
        weight = weights[position]
        last = entry.name.rsplit("/", 1)[-1].split("#", 1)[0]
        if entry.shape != weight.shape or last != weight.last_name:
            found.mismatched.append(
                f"{weight.name} {list(weight.shape)} is {entry.name} "
                f"{list(entry.shape)} in the checkpoint"
            )
        else:
            found.keys[position] = entry.key
    present = {entry.position for entry in metadata.weights}
    found.missing = [
        weight.name for i, weight in enumerate(weights) if i not in present
    ]
    return found


def _assign(variable: Any, value: np.ndarray) -> None:
    dtype = getattr(variable.dtype, "name", variable.dtype)
    if dtype != "string" and value.dtype.name != dtype:
        if dtype == "bfloat16":
            import ml_dtypes

            value = value.astype(ml_dtypes.bfloat16)
        else:
            value = value.astype(dtype)
    try:
        variable.assign(value)
    except (TypeError, ValueError) as error:
        raise TfoptError(
            f"Cannot assign to {variable.name}: {str(error).splitlines()[0]}. Expected "
            f"a variable that takes {value.dtype} {list(value.shape)}. "
            f"Received: dtype={dtype}"
        ) from error
