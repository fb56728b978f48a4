"""Freezes a traced function and tidies its graph for the TFLite converter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from tfopt.conversion import _errors
from tfopt.types import ConversionError

_FAKE_QUANT = re.compile(r"FakeQuantWithMinMax.*|QuantizeAndDequantize.*")
# The name of an operation of `tfopt._keras.fake_quantize.Scheme`.
_SCHEME = re.compile(r"tfopt_scheme_(int8_weights|int4)")
_LOOPS = ("While", "StatelessWhile")
# Op types that change a variable, by their TensorFlow names.
_WRITES = re.compile(r"Assign\w*VariableOp|Resource(Apply|Scatter|Sparse)\w+")


def freeze(function: Any) -> Any:
    """Returns a concrete function whose variables have become constants.

    Reshapes that spell out the batch size, as Keras's Reshape and Flatten layers do,
    get the constant shape `[-1, ...]` instead. The values are the same, while the
    TFLite file loses five operators per layer and XNNPACK can take the whole graph.
    Empty weight ranges of channels that pruning has emptied are opened.

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
    return _tidied(frozen)


def has_fake_quant(function: Any) -> bool:
    """Returns whether a frozen function holds fake-quantization ops."""
    return any(_FAKE_QUANT.fullmatch(node.op) for node in _nodes(function))


def trained_scheme(function: Any) -> str | None:
    """Returns what `tfopt.QuantizeAware` trained a frozen function for.

    Returns:
        `"int8"`, `"int4"` (the same with packed weights), `"int8_weights"`,
        `"int16x8"`, or `None`. Any other fake quantization counts as `"int8"`.
    """
    scheme = None
    for node in _nodes(function):
        mark = _SCHEME.search(node.name)
        if mark:
            return mark[1]
        if _FAKE_QUANT.fullmatch(node.op):
            bits = node.attr["num_bits"].i if "num_bits" in node.attr else 8
            scheme = "int16x8" if bits == 16 else "int8"
    return scheme


def without_fake_quant(function: Any) -> Any:
    """Returns a frozen function that doesn't round activations.

    For schemes whose fake quantization the converter doesn't know.
    """
    definition = function.graph.as_graph_def()
    for node in definition.node:
        if _FAKE_QUANT.fullmatch(node.op):
            node.op = "Identity"
            del node.input[1:]
            for name in [name for name in node.attr if name != "T"]:
                del node.attr[name]
            node.attr["T"].type = tf.float32.as_datatype_enum
    return _to_function(definition, function)


def with_outputs(function: Any, names: Sequence[str]) -> Any:
    """Returns a frozen function that returns these of its tensors, by name."""
    return _to_function(function.graph.as_graph_def(), function, names)


def has_loop(function: Any) -> bool:
    """Returns whether a frozen function holds a while loop."""
    return any(node.op in _LOOPS for node in _nodes(function))


def has_lists(function: Any) -> bool:
    """Returns whether a frozen function holds tensor lists, as loops over steps do."""
    return any(node.op == "TensorListReserve" for node in _nodes(function))


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


def _tidied(function: Any) -> Any:
    edits = {
        operation.name: inputs
        for operation in function.graph.get_operations()
        if (inputs := _better_constants(operation))
    }
    if not edits:
        return function
    definition = function.graph.as_graph_def()
    for node in list(definition.node):
        for position, value in edits.get(node.name, {}).items():
            constant = definition.node.add(
                name=f"{node.name}/constant_{position}", op="Const"
            )
            tensor = tf.make_tensor_proto(value)
            constant.attr["dtype"].type = tensor.dtype
            constant.attr["value"].tensor.CopyFrom(tensor)
            node.input[position] = constant.name
    return _to_function(definition, function)


def _better_constants(operation: Any) -> dict[int, np.ndarray]:
    """Returns the inputs of an operation to replace, by position."""
    if operation.type == "Reshape" and operation.inputs[1].op.type != "Const":
        shape = _shape_with_one_free(operation.outputs[0].shape)
        if shape is not None:
            return {1: np.array(shape, operation.inputs[1].dtype.as_numpy_dtype)}
    if operation.type == "FakeQuantWithMinMaxVarsPerChannel":
        return _open_ranges(operation)
    return {}


def _open_ranges(operation: Any) -> dict[int, np.ndarray]:
    # A channel pruned to zeros has an empty range. The converter would give it the
    # scale 0, which loses its bias; all zeros, it is exact with every other range.
    low, high = (_constant(tensor) for tensor in operation.inputs[1:3])
    if low is None or high is None:
        return {}
    empty = low >= high
    if not empty.any():
        return {}
    limit = np.abs([low, high]).max() or np.float32(1)
    return {1: np.where(empty, -limit, low), 2: np.where(empty, limit, high)}


def _constant(tensor: tf.Tensor) -> np.ndarray | None:
    while tensor.op.type == "Identity":
        tensor = tensor.op.inputs[0]
    return tf.get_static_value(tensor)


def _shape_with_one_free(shape: tf.TensorShape) -> list[int] | None:
    """Sizes with -1 for the free one; `None` where that would be ambiguous."""
    if shape.rank is None:
        return None
    sizes = shape.as_list()
    if sizes.count(None) > 1 or 0 in sizes:
        return None
    return [-1 if size is None else size for size in sizes]


def _to_function(
    definition: Any, like: Any, outputs: Sequence[str] | None = None
) -> Any:
    imported = tf.compat.v1.wrap_function(
        lambda: tf.graph_util.import_graph_def(definition, name=""), []
    )
    feeds = [tensor.name for tensor in like.inputs]
    if outputs is None:
        outputs = [tensor.name for tensor in like.outputs]
    return imported.prune(feeds, list(outputs))
