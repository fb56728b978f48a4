"""Between bytes and the generated classes of the TFLite schema."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfopt import tflite_schema
from tfopt.types import TfoptError

IDENTIFIER = b"TFL3"


def unpack(source: bytes | str | os.PathLike[str]) -> Any:
    """Returns a `.tflite` file, given as content or path, as a `ModelT`.

    Raises:
        TfoptError: The file is missing, no `.tflite` file, or damaged.
    """
    try:
        content = (
            source if isinstance(source, bytes) else pathlib.Path(source).read_bytes()
        )
    except OSError as error:
        raise TfoptError(
            f"Cannot read the model: {error.strerror}. Expected a `.tflite` file. "
            f"Received: {_received(source)}"
        ) from error
    try:
        tflite_schema.check(content)
    except tflite_schema.Damaged as error:
        raise damaged(source, error) from error
    return schema.ModelT.InitFromPackedBuf(content)


def damaged(source: bytes | str | os.PathLike[str], why: object) -> TfoptError:
    """Returns the error for a file that is not what it should be."""
    return TfoptError(
        f"Not a complete `.tflite` file: {why}. Write or convert it again. "
        f"Received: {_received(source)}"
    )


def text(value: bytes | str | None) -> str:
    """Returns a string field; empty where it is left out."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def sizes(values: Any) -> tuple[int, ...]:
    """Returns a vector of integers; empty where it is left out."""
    return () if values is None else tuple(np.asarray(values).tolist())


def tensor_indices(values: Any) -> tuple[int, ...]:
    """Returns tensor indices without -1, which stands for an input left out."""
    return tuple(index for index in sizes(values) if index >= 0)


def _received(source: bytes | str | os.PathLike[str]) -> str:
    return f"{len(source)} bytes" if isinstance(source, bytes) else f"{source!s}"
