"""TensorProto <-> NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfopt.savedmodel import dtypes, protos
from tfopt.types import TfoptError

# Elements that repeat the last one are left out, so a few bytes may stand for any
# number of them. What is not in the file may take this much.
_MOST_BYTES = 1 << 28

# Field of a TensorProto that lists the elements of a type one by one.
_FIELDS = {
    "half": "half_val",
    "bfloat16": "half_val",
    "float": "float_val",
    "double": "double_val",
    "int64": "int64_val",
    "bool": "bool_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "string": "string_val",
    "complex64": "scomplex_val",
    "complex128": "dcomplex_val",
}


def to_array(proto: Any) -> np.ndarray:
    """Returns the value of a TensorProto; read-only where it shares memory.

    Raises:
        TfoptError: It has no array form (resources, variants), or is damaged.
    """
    dtype = dtypes.to_numpy(proto.dtype)
    shape = [dim.size for dim in proto.tensor_shape.dim]
    size = math.prod(shape)
    try:
        if size * dtype.itemsize > max(_MOST_BYTES, len(proto.tensor_content)):
            raise ValueError(f"{size:,} elements, most of them not in the file")
        if proto.tensor_content:
            return np.frombuffer(proto.tensor_content, dtype).reshape(shape)
        values = _listed(proto, dtype)
        if not len(values):
            return np.zeros(shape, dtype)
        # The last element listed stands for all that follow.
        short = size - len(values)
        return np.concatenate([values, np.repeat(values[-1:], short)]).reshape(shape)
    except (ValueError, OverflowError) as error:
        raise TfoptError(
            "A constant is damaged. Expected as many elements as its shape says. "
            f"Received: {dtypes.name_of(proto.dtype)} {shape} ({error})"
        ) from error


def _listed(proto: Any, dtype: np.dtype) -> np.ndarray:
    name = dtypes.name_of(proto.dtype)
    values = getattr(proto, _FIELDS.get(name, "int_val"))
    if name in ("half", "bfloat16"):
        return np.array(values, np.uint16).view(dtype)
    if name.startswith("complex"):
        parts = np.array(values, np.float64)
        return (parts[0::2] + 1j * parts[1::2]).astype(dtype)
    if name == "string":
        listed = np.empty(len(values), object)
        listed[:] = list(values)
        return listed
    return np.array(values).astype(dtype)


def to_proto(array: np.ndarray, *, dtype: int | None = None) -> Any:
    """Returns an array as TensorProto, all elements of numbers as bytes.

    Args:
        array: Any array; strings as objects (`bytes`).
        dtype: TensorFlow's type, if NumPy's doesn't tell it (quantized types).
    """
    number = dtypes.from_numpy(array.dtype) if dtype is None else dtype
    if array.dtype == object and dtype is None:
        number = dtypes.STRING
    proto = protos.message_class("TensorProto")(dtype=number)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if number == dtypes.STRING:
        proto.string_val.extend(array.reshape(-1).tolist())
    else:
        proto.tensor_content = np.ascontiguousarray(array).tobytes()
    return proto
