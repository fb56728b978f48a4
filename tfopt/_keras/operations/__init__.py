"""TensorFlow operations in Keras models: layers that survive saving, and their kinds.

`classes(keras).Operation` computes one TensorFlow function, `classes(keras).Weight`
holds one variable that no layer has. `call_of` puts a function into a flat graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfopt._keras.flatten import Call, LayerSpec, Value
from tfopt._keras.operations import _arguments, _names
from tfopt._keras.operations._layers import Classes, classes

__all__ = ["Classes", "call_of", "classes", "decoded", "name_of", "operation_config"]

name_of = _names.name_of


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
        ...     "raw_ops.AddV2", (), {"x": x, "y": np.float32(1.0)},
        ...     lambda thing: thing is x)
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


def decoded(call: Call) -> tuple[list[Any], dict[str, Any]]:
    """Returns the arguments of an Operation's call, with its `Value`s in place."""
    config, tensors = call.layer.config, call.inputs
    return (
        _arguments.decode(config["arguments"], tensors),
        {k: _arguments.decode(x, tensors) for k, x in config["keywords"].items()},
    )
