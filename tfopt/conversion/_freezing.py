"""Freezes a traced function and tidies its graph for the TFLite converter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from tfopt.conversion import _errors
from tfopt.types import ConversionError

_FAKE_QUANT = re.compile(r"FakeQuantWithMinMax.*|QuantizeAndDequantize.*")
_LOOPS = ("While", "StatelessWhile")
# Op types that change a variable, by their TensorFlow names.
_WRITES = re.compile(r"Assign\w*VariableOp|Resource(Apply|Scatter|Sparse)\w+")


def freeze(function: Any) -> Any:
    """Returns a concrete function whose variables have become constants.

    Reshapes that spell out the batch size, as Keras's Reshape and Flatten layers do,
    get the constant shape `[-1, ...]` instead. The values are the same, while the
    TFLite file loses five operators per layer and XNNPACK can take the whole graph.

    Args:
        function: A concrete function; its inputs and outputs keep order and names.

    Raises:
        ConversionError: The function changes variables, or cannot be frozen.
    """
    _check_stateless(function)
    try:
        frozen = convert_to_constants.convert_variables_to_constants_v2(
            function, lower_control_flow=False
        )
    except Exception as error:
        raise ConversionError(
            f"Cannot freeze the model: {_errors.condense(error)}"
        ) from error
    return _with_constant_shapes(frozen)


def has_fake_quant(function: Any) -> bool:
    """Returns whether a frozen function holds fake-quantization ops."""
    return any(_FAKE_QUANT.fullmatch(node.op) for node in _nodes(function))


def has_loop(function: Any) -> bool:
    """Returns whether a frozen function holds a while loop."""
    return any(node.op in _LOOPS for node in _nodes(function))


def input_ranges(function: Any) -> dict[int, tuple[float, float]]:
    """Returns the ranges to which fake quantization clips inputs, by position."""
    ranges = {}
    for position, tensor in enumerate(function.inputs):
        limits = _fake_quant_range(tensor)
        if limits is not None:
            ranges[position] = limits
    return ranges


def _fake_quant_range(tensor: tf.Tensor) -> tuple[float, float] | None:
    for consumer in tensor.consumers():
        if consumer.type == "FakeQuantWithMinMaxVars":
            low, high = (tf.get_static_value(item) for item in consumer.inputs[1:3])
            return None if low is None or high is None else (float(low), float(high))
        if consumer.type == "FakeQuantWithMinMaxArgs":
            return consumer.get_attr("min"), consumer.get_attr("max")
        if consumer.type in ("Reshape", "Identity", "ExpandDims", "Squeeze"):
            found = _fake_quant_range(consumer.outputs[0])
            if found is not None:
                return found
    return None


def _check_stateless(function: Any) -> None:
    writes = [node for node in _nodes(function) if _WRITES.fullmatch(node.op)]
    if writes:
        wrapped = any("prune_low_magnitude" in node.name for node in writes)
        raise ConversionError(
            "The model changes variables when it runs, and a TFLite file made from it "
            "would start with uninitialised ones. "
            + (
                "Remove TFMOT's wrappers first (`strip_pruning`). "
                if wrapped
                else "Pass the state in and out as tensors instead. "
            )
            + f"Received: {writes[0].op} {writes[0].name!r} and {len(writes) - 1} more"
        )


def _nodes(function: Any) -> Iterator[Any]:
    definition = function.graph.as_graph_def()
    yield from definition.node
    for inner in definition.library.function:
        yield from inner.node_def


def _with_constant_shapes(function: Any) -> Any:
    shapes = {
        operation.name: (shape, operation.inputs[1].dtype)
        for operation in function.graph.get_operations()
        if operation.type == "Reshape"
        and operation.inputs[1].op.type != "Const"
        and (shape := _shape_with_one_free(operation.outputs[0].shape)) is not None
    }
    if not shapes:
        return function
    definition = function.graph.as_graph_def()
    for node in list(definition.node):
        if node.name not in shapes:
            continue
        shape, dtype = shapes[node.name]
        constant = definition.node.add(name=f"{node.name}/constant_shape", op="Const")
        constant.attr["dtype"].type = dtype.as_datatype_enum
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(shape, dtype))
        node.input[1] = constant.name
    return _to_function(definition, function)


def _shape_with_one_free(shape: tf.TensorShape) -> list[int] | None:
    """Sizes with -1 for the free one; `None` where that would be ambiguous."""
    if shape.rank is None:
        return None
    sizes = shape.as_list()
    if sizes.count(None) > 1 or 0 in sizes:
        return None
    return [-1 if size is None else size for size in sizes]


def _to_function(definition: Any, like: Any) -> Any:
    imported = tf.compat.v1.wrap_function(
        lambda: tf.graph_util.import_graph_def(definition, name=""), []
    )
    feeds = [tensor.name for tensor in like.inputs]
    return imported.prune(feeds, [tensor.name for tensor in like.outputs])
