"""What a model is fed with: seeded random values, or the user's data."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt.types import Signature, TensorInfo, TfoptError

# For a free axis other than the batch.
FREE_SIZE = 16
_WORDS = ("a", "b", "the", "hello world", "")

Arrays = np.ndarray | Mapping[str, np.ndarray]


def fixed_rows(signature: Signature) -> int | None:
    """Returns the batch size that the signature prescribes; None if it is free."""
    sizes = {info.shape[0] for info in signature.inputs if info.shape}
    return sizes.pop() if len(sizes) == 1 else None


def random_inputs(
    signature: Signature, *, rows: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Makes up an array for each input, the same ones for the same seed and name.

    Floats are normal, integers of one byte take all their values, wider ones are 0 or
    1, as they may be indices; strings are short words. Axes of free size get 16.

    Args:
        signature: What the model takes.
        rows: Size of a free first axis.
        seed: Of the values.

    Raises:
        TfoptError: An input whose rank or type isn't known.
    """
    return {info.name: _random(info, rows, seed) for info in signature.inputs}


def match(signature: Signature, inputs: Arrays) -> dict[str, np.ndarray]:
    """Returns the user's arrays by the names of a model's inputs.

    Args:
        signature: What the model takes.
        inputs: One array for a single input, or arrays by name. A model's input
            `serving_default_image` takes `image` as well, since freezing adds prefixes.

    Raises:
        TfoptError: They don't belong together.
    """
    names = [info.name for info in signature.inputs]
    if not isinstance(inputs, Mapping):
        inputs = {"": inputs}
    if len(names) == 1 and len(inputs) == 1:
        return {names[0]: next(iter(inputs.values()))}
    chosen = {name: _key_for(name, inputs) for name in names}
    if None in chosen.values() or len(set(chosen.values())) != len(inputs):
        raise TfoptError(
            "The data don't fit the model's inputs. Expected one array for each of "
            f"{names}. Received: {[name or 'a single array' for name in inputs]}"
        )
    return {name: inputs[key] for name, key in chosen.items() if key is not None}


def fitted(info: TensorInfo, array: np.ndarray, *, floats: bool = False) -> np.ndarray:
    """Returns an array in the type that an input takes.

    Args:
        info: The input.
        array: Values [rows, ...].
        floats: Whether a quantized input is given its values as float32.

    Raises:
        TfoptError: The shape doesn't fit, or values would be lost.
    """
    shape = info.shape
    if shape is not None and (
        len(shape) != array.ndim
        or any(
            want is not None and want != got
            for want, got in zip(shape[1:], array.shape[1:], strict=True)
        )
    ):
        raise TfoptError(
            f"The data don't fit the input {info}. Expected this shape, rows first. "
            f"Received: {list(array.shape)}"
        )
    dtype = np.dtype(np.float32) if floats and info.is_quantized else info.dtype
    if array.dtype == dtype or dtype == np.dtype(object):
        return array.astype(dtype, copy=False)
    if array.dtype.kind in "biu" and dtype.kind in "iu" and array.size:
        limits: Any = np.iinfo(dtype)
        if int(array.min()) >= limits.min and int(array.max()) <= limits.max:
            return array.astype(dtype)
    if array.dtype.kind in {"f": "biuf", "c": "biufc"}.get(dtype.kind, ""):
        return array.astype(dtype)
    raise TfoptError(
        f"The data don't fit the input {info}. Expected values that {dtype.name} holds "
        f"without loss. Received: {array.dtype.name}"
    )


def cut(signature: Signature, inputs: Arrays, rows: int) -> dict[str, np.ndarray]:
    """Returns so many rows of the user's data, from the start again where they end.

    Quantized inputs get float32, as data are before quantization.
    """
    arrays = match(signature, inputs)
    return {
        info.name: fitted(
            info,
            np.resize(arrays[info.name], (rows, *arrays[info.name].shape[1:])),
            floats=True,
        )
        for info in signature.inputs
    }


def _key_for(name: str, inputs: Mapping[str, np.ndarray]) -> str | None:
    if name in inputs:
        return name
    plain = name.split(":")[0]
    found = [key for key in inputs if plain == key or plain.endswith(f"_{key}")]
    return found[0] if len(found) == 1 else None


def _random(info: TensorInfo, rows: int, seed: int) -> np.ndarray:
    if info.shape is None:
        raise TfoptError(
            "There are no made-up values for an input of unknown rank. Expected data "
            f"for it. Received: {info}"
        )
    shape = [
        (FREE_SIZE if axis else rows) if size is None else size
        for axis, size in enumerate(info.shape)
    ]
    # By name, so that the order of inputs, which formats change, doesn't matter.
    random = np.random.default_rng([seed, zlib.crc32(info.name.encode())])
    kind = info.dtype.kind
    if kind == "O":
        return random.choice(np.array(_WORDS, object), shape)
    if kind == "b":
        return random.integers(0, 2, shape).astype(bool)
    if kind in "iu" and info.dtype.itemsize == 1:
        limits: Any = np.iinfo(info.dtype)
        values = random.integers(limits.min, limits.max, shape, endpoint=True)
        return values.astype(info.dtype)
    if kind in "iu":
        return random.integers(0, 2, shape).astype(info.dtype)
    if kind in "fc":
        return random.standard_normal(shape).astype(info.dtype)
    raise TfoptError(
        f"There are no made-up values of this type. Expected data. Received: {info}"
    )
