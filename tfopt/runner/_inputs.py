"""Checks and arranges what a caller hands over, and integer input and output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfopt.types import Signature, TensorInfo

# Kinds of types that a Python number may become without loss of meaning.
_NUMBERS: Mapping[type, str] = {bool: "b", int: "iufc", float: "fc"}


def arrange(signature: Signature, inputs: Any) -> list[Any]:
    """Brings the inputs of one call into the order of the signature.

    Args:
        signature: What the model wants.
        inputs: One array (models with one input), a list or tuple with one array
            per input, or a mapping from input name to array.

    Returns:
        One value per input, not checked yet.

    Raises:
        ValueError: Inputs are missing, unknown or too many.
    """
    infos = signature.inputs
    names = [info.name for info in infos]
    if isinstance(inputs, Mapping):
        missing = [name for name in names if name not in inputs]
        unknown = [name for name in inputs if name not in names]
        if missing or unknown:
            raise ValueError(
                f"Wrong input names. Expected {_expected(infos)}. "
                f"Received: names={list(inputs)} (missing: {missing}, "
                f"unknown: {unknown})"
            )
        return [inputs[name] for name in names]
    if isinstance(inputs, (list, tuple)):
        if len(inputs) != len(infos):
            raise ValueError(
                "Wrong number of inputs: a list or tuple holds one array for each "
                f"input. Expected {_expected(infos)}; a list of rows becomes one "
                f"array by `np.stack`. Received: {len(inputs)} items"
            )
        return list(inputs)
    if len(infos) != 1:
        raise ValueError(
            f"Wrong number of inputs. Expected {len(infos)} arrays, as a mapping by "
            f"name or a list in this order: {_expected(infos)}. Received: one "
            f"{type(inputs).__name__}"
        )
    return [inputs]


def check(info: TensorInfo, value: Any, *, floats: bool) -> np.ndarray:
    """Checks one input against the signature, apart from its number of rows.

    Args:
        info: What the model wants; axes of size `None` are not checked.
        value: Array-like. Python numbers take the model's type.
        floats: Whether float32 may stand for a quantized integer tensor.

    Returns:
        The value as an array, not copied where it already is one.

    Raises:
        ValueError: Type, rank or size do not fit.
    """
    array = np.asarray(value)
    if type(value) in _NUMBERS and info.dtype.kind in _NUMBERS[type(value)]:
        array = array.astype(info.dtype)
    if array.dtype != info.dtype:
        if info.dtype == np.dtype(object) and array.dtype.kind in "SU":
            array = array.astype(object)
        elif not (floats and can_quantize(info) and array.dtype == np.float32):
            raise ValueError(_wrong(info, array, "dtype", _dtype_hint(info, floats)))
    if info.shape is None:
        return array
    if array.ndim != len(info.shape):
        hint = ""
        if array.ndim == len(info.shape) - 1:
            hint = " (a single example gets its batch axis by `array[np.newaxis]`)"
        raise ValueError(_wrong(info, array, "rank", hint))
    for size, wanted in zip(array.shape[1:], info.shape[1:], strict=True):
        if wanted is not None and size != wanted:
            raise ValueError(_wrong(info, array, "shape"))
    return array


def check_rows(
    signature: Signature,
    arrays: Sequence[np.ndarray],
    is_batched: Sequence[bool],
) -> int:
    """Checks the first axes of all inputs together; returns the number of rows.

    Args:
        signature: What the model wants.
        arrays: The inputs, checked one by one before.
        is_batched: For each input, whether it holds one entry per row.

    Raises:
        ValueError: An input that isn't batched has another size than the model's, or
            batched inputs differ in their number of rows.
    """
    rows: dict[str, int] = {}
    for info, array, batched in zip(signature.inputs, arrays, is_batched, strict=True):
        if batched:
            rows[info.name] = array.shape[0]
        elif info.shape and info.shape[0] not in (None, array.shape[0]):
            raise ValueError(_wrong(info, array, "shape"))
    if len(set(rows.values())) > 1:
        raise ValueError(
            "Inputs differ in their number of rows. Expected the same first axis "
            f"everywhere. Received: {rows}"
        )
    return next(iter(rows.values()), 1)


def can_quantize(info: TensorInfo) -> bool:
    """Whether the tensor is an integer one, of 8 or 16 bits, with a single scale."""
    is_small = info.dtype.kind in "iu" and info.dtype.itemsize <= 2
    return is_small and len(info.scale) == 1


def quantize(values: np.ndarray, info: TensorInfo) -> np.ndarray:
    """Quantizes float32 values to the integers of a tensor, saturating.

    `q = clip(round_half_even(x / scale) + zero_point)`, as in Jacob et al.,
    "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", https://arxiv.org/abs/1712.05877, eq. 1.

    Raises:
        ValueError: A value is NaN, which no integer stands for.
    """
    limits = np.iinfo(info.dtype)
    scaled = np.divide(values, np.float32(info.scale[0]), dtype=np.float32)
    np.rint(scaled, out=scaled)
    scaled += np.float32(info.zero_point[0])
    np.clip(scaled, limits.min, limits.max, out=scaled)
    if np.isnan(scaled).any():
        raise ValueError(
            f"Input {info.name!r} holds NaN, which cannot be quantized. Expected "
            f"finite float32 values or {info.dtype.name}"
        )
    return scaled.astype(info.dtype)


def dequantize(values: np.ndarray, info: TensorInfo) -> np.ndarray:
    """Returns the float32 values `scale * (q - zero_point)` of a quantized tensor."""
    result = values.astype(np.float32)
    result -= np.float32(info.zero_point[0])
    result *= np.float32(info.scale[0])
    return result


def random_input(
    random: np.random.Generator,
    info: TensorInfo,
    shape: tuple[int, ...],
    magnitude: float = 1.0,
) -> np.ndarray:
    """Makes up a value that any model takes: numbers, but no index that may be wrong.

    Args:
        random: Where the numbers come from.
        info: The input.
        shape: Its shape, without open axes.
        magnitude: Largest absolute value of floating-point numbers.

    Raises:
        ValueError: It is an input of strings.
    """
    if info.dtype == object:
        raise ValueError(f"input {info.name!r} is a string, which has no random value")
    if info.dtype.kind == "f":
        return (magnitude * random.uniform(-1, 1, shape)).astype(info.dtype)
    if info.dtype.itemsize == 1 and info.dtype.kind in "iu":
        limits = np.iinfo(info.dtype)
        return random.integers(limits.min, limits.max, shape, info.dtype, endpoint=True)
    return np.zeros(shape, info.dtype)  # indices, lengths: no other value is safe


def _expected(infos: tuple[TensorInfo, ...]) -> str:
    return ", ".join(map(str, infos)) or "no inputs"


def _wrong(info: TensorInfo, array: np.ndarray, what: str, hint: str = "") -> str:
    return (
        f"Input {info.name!r} has the wrong {what}. Expected {info}{hint}. "
        f"Received: dtype={array.dtype}, shape={array.shape}"
    )


def _dtype_hint(info: TensorInfo, floats: bool) -> str:
    if info.dtype == np.dtype(object):
        return " (strings)"
    hint = f" (as by `array.astype(np.{info.dtype.name})`)"
    if floats and can_quantize(info):
        hint = f" or float32, which is quantized by scale={info.scale[0]:.6g}"
    return hint
