"""The few plain types that cross module borders, and the errors."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np


class TfoptError(Exception):
    """An operation failed; the message says what, what was expected, how to fix."""


class UsageError(TfoptError, ValueError):
    """The flags of a command do not go together; the tool exits with 2."""


class ConversionError(TfoptError):
    """A model could not be converted to the requested form."""


class VerificationError(TfoptError):
    """A result does not keep what the operation promises."""


class RunError(TfoptError):
    """One batch of a longer run failed; the reason is in `__cause__`.

    Attributes:
        batch: Index of the batch, from 0.
        rows: Its first row and the one after its last, within what was handed over.
    """

    def __init__(self, message: str, *, batch: int, rows: tuple[int, int]):
        super().__init__(message)
        self.batch = batch
        self.rows = rows

    def __reduce__(self) -> tuple[Any, ...]:
        # By default only the message comes along to another process.
        return functools.partial(RunError, batch=self.batch, rows=self.rows), self.args


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Name, type and shape of one model input or output.

    Attributes:
        name: Name in the signature, for example `"image"`.
        dtype: NumPy type; strings are `np.dtype(object)`.
        shape: Sizes by axis, `None` where the size is free; `None` as a whole
            when the rank is unknown.
        scale: Quantization scale(s), float32 array [num_scales], empty for a
            tensor that is not quantized.
        zero_point: Quantization zero point(s), int64 array [num_scales].
    """

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...] | None
    scale: tuple[float, ...] = ()
    zero_point: tuple[int, ...] = ()

    @property
    def is_quantized(self) -> bool:
        """Whether values are integers that stand for `scale * (q - zero_point)`."""
        return bool(self.scale)

    def __str__(self) -> str:
        shape = (
            "?"
            if self.shape is None
            else ", ".join("?" if size is None else str(size) for size in self.shape)
        )
        return f"{self.name}: {self.dtype.name} [{shape}]"


@dataclasses.dataclass(frozen=True)
class Signature:
    """One callable entry of a model.

    Attributes:
        key: Its name, for example `"serving_default"`.
        inputs: What it takes, in order.
        outputs: What it returns, in order.
    """

    key: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def __str__(self) -> str:
        inputs = ", ".join(str(info) for info in self.inputs)
        outputs = ", ".join(str(info) for info in self.outputs)
        return f"{self.key}({inputs}) -> ({outputs})"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A model file or directory that tfopt wrote.

    Attributes:
        path: Where it is.
        format: `"tflite"`, `"saved_model"`, `"graph_def"`, `"keras"`,
            `"checkpoint"`, ...
        size_bytes: Raw size; of a directory, the sum over its files.
        gzip_bytes: Size after `gzip -9`, file by file; `None` where large content was
            not measured, see `artifacts.describe`.
        sha256: Hex digest of the content, `None` likewise.
        signature: The entry that was written, where there is one.
        history: What was applied, oldest first, each as a plain JSON object.
        details: Counts and findings of the operation (JSON-able).
    """

    path: str
    format: str
    size_bytes: int
    gzip_bytes: int | None
    sha256: str | None
    signature: Signature | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        size = f"{self.path}: {self.format}, {self.size_bytes:,} bytes"
        if self.gzip_bytes is None:
            return size
        return f"{size}, {self.gzip_bytes:,} after gzip"
