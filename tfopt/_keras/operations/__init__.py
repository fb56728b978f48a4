"""TensorFlow operations in Keras models: layers that survive saving, and their kinds.

`classes(keras).Operation` computes one TensorFlow function, `classes(keras).Weight`
holds one variable that no layer has. `call_of` puts a function into a flat graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt._keras.flatten._graph import Call, LayerSpec, Value
from tfopt._keras.operations import _arguments, _names
from tfopt._keras.operations._kinds import (
    bound,
    canonical_kind,
    function_name,
    is_operation,
    own_kind,
)
from tfopt._keras.operations._layers import Classes, classes
from tfopt.types import TfoptError

__all__ = [
    "MASK",
    "Classes",
    "allowed",
    "bound",
    "call_of",
    "call_of_layer",
    "call_of_variable",
    "canonical_kind",
    "classes",
    "dtype_in_call",
    "find",
    "function_name",
    "is_operation",
    "name_of",
    "operation_config",
    "own_kind",
    "recorded",
]

name_of = _names.name_of
allowed = _names.allowed
# Name of the variable of a Weight that holds what scores of attention may be at most.
MASK = "mask_limits"
find = _names.find


def operation_config(
    function: str, args: Sequence[Any], kwargs: dict[str, Any], is_tensor: Any
) -> tuple[dict[str, Any], list[Any]]:
    """Returns the configuration of an Operation, and the tensors it takes, in order.

    Args:
        function: Name such as "nn.relu" or "raw_ops.Relu".
        args: Positional arguments: tensors, and constants such as arrays, numbers,
            dtypes, shapes, slices, and lists, tuples and dictionaries of them.
        kwargs: Keyword arguments, likewise. (All that raw_ops take.)
        is_tensor: Function that says what among them is a tensor.

    Raises:
        TfoptError: Something among them has no plain form.

    Example:
        >>> config, tensors = operation_config(
        ...     "raw_ops.AddV2", (), {"x": "a tensor", "y": 1.0},
        ...     lambda thing: thing == "a tensor")
        >>> config["keywords"]
        {'x': {'tensor': 0}, 'y': 1.0}
    """
    tensors: list[Any] = []
    _names.function_of(function)
    arguments = [_arguments.encode(x, is_tensor, tensors) for x in args]
    keywords = {
        key: _arguments.encode(x, is_tensor, tensors)
        for key, x in kwargs.items()
        if key != "name"
    }
    config = {"function": function, "arguments": arguments, "keywords": keywords}
    return config, tensors


def call_of(
    keras: Any,
    function: str,
    args: Sequence[Any] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    outputs: Sequence[Value],
    name: str,
    path: str | None = None,
) -> Call:
    """Returns a call of a TensorFlow function for a flat graph.

    Args:
        keras: The module `keras` or `tf_keras`.
        function: Name such as "nn.relu" or "raw_ops.Relu".
        args: Positional arguments, with `Value`s for tensors.
        kwargs: Keyword arguments, likewise.
        outputs: What it returns, flat; the call becomes their producer.
        name: Name of the layer, unique in the graph.
        path: Its path, by default the name.

    Raises:
        TfoptError: The function isn't one that an operation may be, no argument is a
            `Value`, or one has no plain form.
    """
    config, tensors = operation_config(
        function, args, kwargs or {}, lambda thing: isinstance(thing, Value)
    )
    _names.check_tensors(function, tensors)
    config |= {"name": name, "dtype": "float32"}
    spec = LayerSpec(classes(keras).Operation, config, path or name, weights=[])
    given: Any = tensors if len(tensors) > 1 else tensors[0]
    call = Call(spec, (given,), {}, list(outputs))
    for value in outputs:
        value.producer = call
    return call


def call_of_layer(
    keras: Any,
    layer: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    outputs: Sequence[Value],
    path: str,
) -> Call | None:
    """Returns the call of a function that tf_keras recorded as a layer, or `None`.

    Args:
        keras: The module `keras` or `tf_keras`.
        layer: Any layer; tf_keras makes a TFOpLambda of a function.
        args: Positional arguments, with `Value`s for tensors.
        kwargs: Keyword arguments, likewise.
        outputs: What it returns, flat.
        path: Its path.
    """
    kind = type(layer).__name__
    if kind not in ("TFOpLambda", "SlicingOpLambda"):
        return None
    name = name_of(layer.function)
    if name is None:
        return None
    if kind == "SlicingOpLambda":
        args, kwargs = _with_slices(args), _with_slices(kwargs)
    try:
        return call_of(
            keras, name, args, kwargs, outputs=outputs, name=layer.name, path=path
        )
    except TfoptError:
        return None


def call_of_variable(layer: Any, variable: Any, anchor: Value, prefix: str) -> Call:
    """Returns a call that gives a variable of an opened layer.

    Args:
        layer: The layer that has it.
        variable: The variable.
        anchor: Any value that is known before; it ties the call to the graph.
        prefix: Path of the layer, with a slash behind it.
    """
    name = variable.name.split(":", 1)[0].rsplit("/", 1)[-1]
    keras = _keras.module_of(layer)
    shape = tuple(int(size) for size in variable.shape)
    dtype, own = dtype_in_call(layer, variable), tf.as_dtype(variable.dtype).name
    policy = own if dtype == own else f"mixed_{dtype}"
    config = {
        "name": name,
        "dtype": policy,
        "trainable": bool(variable.trainable and layer.trainable),
        "shape": list(shape),
        "weight_name": name,
    }
    array = np.asarray(tf.convert_to_tensor(variable))
    cls = classes(keras).Weight
    spec = LayerSpec(cls, config, prefix + name, [array], [name])
    value = Value(shape, dtype)
    value.producer = Call(spec, (anchor,), {}, [value])
    return value.producer


def dtype_in_call(layer: Any, variable: Any) -> str:
    """Returns the dtype that a layer's own variable has while its `call` runs."""
    dtype = tf.as_dtype(variable.dtype)
    computes = tf.as_dtype(layer.compute_dtype or dtype)
    return (computes if dtype.is_floating and computes.is_floating else dtype).name


def recorded(function: str, args: Any, kwargs: Any, is_tensor: Any) -> Any:
    """Calls a TensorFlow function on symbolic tensors of Keras 3.

    Args:
        function: Name of the function.
        args: Positional arguments.
        kwargs: Keyword arguments.
        is_tensor: Says what among them is a symbolic tensor.

    Returns:
        What the function returns, with symbolic tensors.
    """
    config, tensors = operation_config(function, args, kwargs, is_tensor)
    keras = _keras.module_of(tensors[0])
    layer = classes(keras).Operation(**config, name=function.rsplit(".", 1)[-1])
    return layer(tensors if len(tensors) > 1 else tensors[0])


def _with_slices(thing: Any) -> Any:
    """Returns arguments with slices where tf_keras has dictionaries of three."""
    if isinstance(thing, dict):
        if set(thing) == {"start", "stop", "step"}:
            return slice(thing["start"], thing["stop"], thing["step"])
        return {key: _with_slices(inner) for key, inner in thing.items()}
    if isinstance(thing, (list, tuple)):
        return type(thing)(map(_with_slices, thing))
    return thing
