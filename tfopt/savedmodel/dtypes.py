"""TensorFlow's DataType numbers, their sizes and their NumPy types."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfopt.savedmodel import protos
from tfopt.types import TfoptError

FLOAT, INT32, STRING, INT64, BOOL = 1, 3, 7, 9, 10
RESOURCE, VARIANT = 20, 21

# A reference type (TF1's mutable tensors) is the plain type plus this.
REF_OFFSET = 100

_PLAIN = {
    "DT_FLOAT": np.float32,
    "DT_DOUBLE": np.float64,
    "DT_INT32": np.int32,
    "DT_UINT8": np.uint8,
    "DT_INT16": np.int16,
    "DT_INT8": np.int8,
    "DT_STRING": np.object_,
    "DT_COMPLEX64": np.complex64,
    "DT_INT64": np.int64,
    "DT_BOOL": np.bool_,
    "DT_QINT8": np.int8,
    "DT_QUINT8": np.uint8,
    "DT_QINT32": np.int32,
    "DT_QINT16": np.int16,
    "DT_QUINT16": np.uint16,
    "DT_UINT16": np.uint16,
    "DT_COMPLEX128": np.complex128,
    "DT_HALF": np.float16,
    "DT_UINT32": np.uint32,
    "DT_UINT64": np.uint64,
}


def name_of(dtype: int) -> str:
    """Returns the lower-case name without prefix, for example `"float"`.

    Example:
        >>> name_of(14)
        'bfloat16'
    """
    name = protos.data_types().get(dtype % REF_OFFSET, f"DT_UNKNOWN_{dtype}")
    return name.removeprefix("DT_").lower()


def to_numpy(dtype: int) -> np.dtype:
    """Returns the NumPy type whose memory layout TensorFlow uses for `dtype`.

    Quantized types map to plain integers. Types that NumPy lacks (bfloat16, float8,
    int4, ...) come from `ml_dtypes`, one byte per element for those below eight bits,
    as TensorFlow stores them. Strings are objects (`bytes`).

    Raises:
        TfoptError: Resources and variants, which have no array form.
    """
    name = protos.data_types().get(dtype % REF_OFFSET, "")
    if name in _PLAIN:
        return np.dtype(_PLAIN[name])
    import ml_dtypes

    extended = getattr(ml_dtypes, name.removeprefix("DT_").lower(), None)
    if extended is None:
        raise TfoptError(
            "This type has no array form. Expected numbers, booleans or strings. "
            f"Received: dtype={name or dtype}"
        )
    return np.dtype(extended)


def from_numpy(dtype: Any) -> int:
    """Returns TensorFlow's number for a NumPy (or `ml_dtypes`) type.

    Raises:
        TfoptError: TensorFlow has no such type.

    Example:
        >>> name_of(from_numpy(np.float16))
        'half'
    """
    wanted = np.dtype(dtype)
    if wanted.kind in "SU":
        return STRING
    for number, name in protos.data_types().items():
        if _PLAIN.get(name) == wanted.type and "QU" not in name and "QI" not in name:
            return number
        if name == f"DT_{wanted.name.upper()}" and number not in (RESOURCE, VARIANT):
            return number
    raise TfoptError(
        "TensorFlow cannot store this type. Expected numbers, booleans or strings. "
        f"Received: dtype={wanted.name}"
    )


def item_size(dtype: int) -> int | None:
    """Returns bytes per element; `None` for strings and variants (variable size)."""
    if dtype in (STRING, VARIANT, RESOURCE):
        return None
    return to_numpy(dtype).itemsize
