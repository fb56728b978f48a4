"""Looking into any model: what it holds, what it costs, how two of them differ."""

from __future__ import annotations

import os
from typing import Any

from tfopt import _progress, _trust, artifacts
from tfopt.inspection import _opening
from tfopt.inspection._difference import Difference, diff
from tfopt.inspection._tflite import arithmetic
from tfopt.inspection._types import Inspection, Layer, Weights
from tfopt.savedmodel import graphs

__all__ = [
    "Difference",
    "Inspection",
    "Layer",
    "Weights",
    "arithmetic",
    "diff",
    "inspect",
]

_MEASURE_UP_TO = 1 << 28


@_trust.with_safe_mode
@_progress.task("inspecting")
def inspect(
    model: Any, *, signature_key: str | None = None, safe_mode: bool = True
) -> Inspection:
    """Finds out what is inside a model, from its content alone.

    Args:
        model: The path of a `.tflite` file, a SavedModel directory, a GraphDef (`.pb`
            or `.pbtxt`), a `.keras` or `.h5` file, or a checkpoint (its prefix); the
            content of a `.tflite` file; or a built model of Keras 3 or tf_keras.
        signature_key: Which signature of a SavedModel is looked into, by default
            `"serving_default"` if there is one.
        safe_mode: Refuse model files that could run code, reach other files or the
            network. False opens and runs whatever they hold.

    Returns:
        Signatures, operations, layers with their weights, sizes, multiplications,
        types and zeros. Of a SavedModel and a Keras model it is what inference needs
        that counts; the notes say what else the file stores.

    Raises:
        ValueError: `signature_key` for another format.
        TfoptError: It is nothing of that kind, damaged, or has no such signature.

    Example:
        >>> found = inspect("model.tflite")
        >>> found.format, found.operations["FULLY_CONNECTED"]
        ('tflite', 1)
        >>> found.parameters, found.macs
        (7840, 7840)
    """
    with graphs.errors_of(model):
        format, fields = _opening.fields_of(model, signature_key)
    if not isinstance(model, (str, os.PathLike)):
        size = len(model) if isinstance(model, bytes) else None
        gzip = artifacts.gzip_size(model) if isinstance(model, bytes) else None
        return Inspection(
            path="", format=format, size_bytes=size, gzip_bytes=gzip, **fields
        )
    size, gzip = _opening.sizes(model, format, measure_up_to=_MEASURE_UP_TO)
    return Inspection(
        path=os.fspath(model),
        format=format,
        size_bytes=size,
        gzip_bytes=gzip,
        **fields,
    )
