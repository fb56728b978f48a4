"""Arguments of operations as plain JSON data, with placeholders for tensors.

JSON holds numbers, strings, booleans, null and lists as they are. Everything else is
a dictionary with one key: `{"tensor": 0}` is the first tensor, and the others are
`"constant"`, `"tuple"`, `"dict"`, `"slice"`, `"ellipsis"`, `"dtype"`, `"shape"`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.types import TfoptError


def encode(thing: Any, is_tensor: Callable[[Any], bool], tensors: list[Any]) -> Any:
    """Returns plain data for an argument, or a structure of them.

    Args:
        thing: What to encode.
        is_tensor: Whether something is to become a placeholder.
        tensors: What became placeholders is appended, each thing once.

    Raises:
        TfoptError: It holds something that has no plain form.
    """
    if is_tensor(thing):
        places = [i for i, tensor in enumerate(tensors) if tensor is thing]
        if not places:
            tensors.append(thing)
        return {"tensor": places[0] if places else len(tensors) - 1}
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, bytes):
        return thing.decode("latin1")
    if thing is Ellipsis:
        return {"ellipsis": True}

    def inner(things: Any) -> list[Any]:
        return [encode(each, is_tensor, tensors) for each in things]

    if isinstance(thing, list):
        return inner(thing)
    if isinstance(thing, tf.TensorShape):
        return {"shape": None if thing.rank is None else thing.as_list()}
    if isinstance(thing, tuple):
        return {"tuple": inner(thing)}
    if isinstance(thing, dict):
        return {"dict": [inner(item) for item in thing.items()]}
    if isinstance(thing, slice):
        return {"slice": inner((thing.start, thing.stop, thing.step))}
    return _encode_leaf(thing)


def decode(data: Any, tensors: Sequence[Any]) -> Any:
    """Returns what `encode` made data of, with tensors in the placeholders."""
    if isinstance(data, list):
        return [decode(each, tensors) for each in data]
    if not isinstance(data, dict):
        return data
    ((kind, value),) = data.items()
    match kind:
        case "tensor":
            return tensors[value]
        case "constant":
            return _constant(value)
        case "tuple":
            return tuple(decode(each, tensors) for each in value)
        case "dict":
            return {decode(k, tensors): decode(v, tensors) for k, v in value}
        case "slice":
            return slice(*decode(value, tensors))
        case "ellipsis":
            return Ellipsis
        case "dtype":
            return tf.as_dtype(value)
        case "shape":
            return tf.TensorShape(value)
    raise TfoptError(
        "An operation's arguments are damaged. Expected what `get_config` gave. "
        f"Received: {kind!r}"
    )


def placeholders(data: Any) -> int:
    """Returns how many different tensors encoded arguments take."""
    if isinstance(data, list):
        return max(map(placeholders, data), default=0)
    if not isinstance(data, dict):
        return 0
    ((kind, value),) = data.items()
    if kind == "tensor":
        return value + 1
    return placeholders(value) if kind in ("tuple", "dict", "slice") else 0


def dumps(data: Any) -> str:
    """Returns encoded arguments as text."""
    return json.dumps(data)


def loads(text: str) -> Any:
    """Returns the encoded arguments of a text."""
    return json.loads(text)


def _encode_leaf(thing: Any) -> Any:
    if isinstance(thing, (np.ndarray, np.generic)) or tf.is_tensor(thing):
        array = np.asarray(thing)
        if array.dtype.kind not in "OSU":
            return {
                "constant": {
                    "dtype": tf.as_dtype(array.dtype).name,
                    "shape": list(array.shape),
                    "data": base64.b64encode(array.tobytes()).decode("ascii"),
                }
            }
    if isinstance(thing, (tf.DType, np.dtype)) or (
        isinstance(thing, type) and issubclass(thing, np.generic)
    ):
        return {"dtype": tf.as_dtype(thing).name}
    raise TfoptError(
        "An operation's argument cannot be saved. Expected tensors, arrays, numbers, "
        "strings, dtypes, shapes, slices, and lists or dictionaries of them. "
        f"Received: {type(thing).__module__}.{type(thing).__name__}"
    )


def _constant(value: dict[str, Any]) -> np.ndarray:
    dtype = tf.as_dtype(value["dtype"]).as_numpy_dtype
    flat = np.frombuffer(base64.b64decode(value["data"]), dtype)
    return flat.reshape(value["shape"])
