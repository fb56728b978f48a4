"""Sizes that a graph computes from the shapes of tensors, as far as they are known."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

# An array of whole numbers, with `None` for those that depend on the inputs.
Sizes = np.ndarray


def sizes(tensor: tf.Tensor) -> Sizes | None:
    """Returns what is known of a tensor of sizes, `None` if it isn't one.

    Args:
        tensor: A scalar or vector of integers.
    """
    value = tf.get_static_value(tensor)
    if value is not None:
        return np.asarray(value).astype(object)
    read = _READERS.get(tensor.op.type)
    return None if read is None else read(tensor.op)


def known(tensor: tf.Tensor) -> np.ndarray | None:
    """Returns the value of a tensor of sizes, if all of it is known."""
    found = sizes(tensor)
    if found is None or any(size is None for size in found.reshape(-1)):
        return None
    return found.astype(tensor.dtype.as_numpy_dtype)


def _shape(operation: tf.Operation) -> Sizes | None:
    shape = operation.inputs[0].shape
    return None if shape.rank is None else np.array(shape.as_list(), object)


def _strided_slice(operation: tf.Operation) -> Sizes | None:
    whole = sizes(operation.inputs[0])
    bounds = [tf.get_static_value(tensor) for tensor in operation.inputs[1:]]
    if (
        whole is None
        or whole.ndim != 1
        or any(x is None or x.size != 1 for x in bounds)
    ):
        return None
    names = ("ellipsis_mask", "new_axis_mask", "begin_mask", "end_mask")
    ellipsis, new_axis, no_begin, no_end = map(operation.get_attr, names)
    if ellipsis or new_axis:
        return None
    begin, end, step = (int(x.reshape(())) for x in bounds)
    if operation.get_attr("shrink_axis_mask"):
        return np.array(whole[begin], object)
    return whole[slice(None if no_begin else begin, None if no_end else end, step)]


def _gather(operation: tf.Operation) -> Sizes | None:
    whole = sizes(operation.inputs[0])
    indices = tf.get_static_value(operation.inputs[1])
    if whole is None or whole.ndim != 1 or indices is None:
        return None
    return np.asarray(whole[indices], object)


def _pack(operation: tf.Operation) -> Sizes | None:
    parts = [sizes(tensor) for tensor in operation.inputs]
    if any(part is None or part.ndim for part in parts):
        return None
    return np.array([part.reshape(-1)[0] for part in parts if part is not None], object)


def _concat(operation: tf.Operation) -> Sizes | None:
    parts = [sizes(tensor) for tensor in list(operation.inputs)[:-1]]
    if any(part is None or part.ndim != 1 for part in parts):
        return None
    return np.concatenate([part for part in parts if part is not None])


def _product(operation: tf.Operation) -> Sizes | None:
    whole = sizes(operation.inputs[0])
    if whole is None or whole.ndim != 1 or operation.get_attr("keep_dims"):
        return None
    unknown = any(size is None for size in whole)
    return np.array(None if unknown else int(np.prod(whole.astype(np.int64))), object)


def _same(operation: tf.Operation) -> Sizes | None:
    return sizes(operation.inputs[0])


def _arithmetic(function: Callable[[Any, Any], Any]) -> Any:
    def read(operation: tf.Operation) -> Sizes | None:
        first, second = (sizes(tensor) for tensor in operation.inputs)
        if first is None or second is None:
            return None
        apply = np.frompyfunc(
            lambda a, b: None if a is None or b is None else function(a, b), 2, 1
        )
        return np.asarray(apply(first, second), object)

    return read


_READERS: dict[str, Callable[[tf.Operation], Sizes | None]] = {
    "Add": _arithmetic(operator.add),
    "AddV2": _arithmetic(operator.add),
    "Cast": _same,
    "ConcatV2": _concat,
    "FloorDiv": _arithmetic(operator.floordiv),
    "GatherV2": _gather,
    "Identity": _same,
    "Maximum": _arithmetic(max),
    "Minimum": _arithmetic(min),
    "Mul": _arithmetic(operator.mul),
    "Pack": _pack,
    "Prod": _product,
    "Shape": _shape,
    "StridedSlice": _strided_slice,
    "Sub": _arithmetic(operator.sub),
}
