"""Which operations run in half precision: by kind, and by kernel."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from tfopt.savedmodel import dtypes
from tfopt.transforms import _ops

# Sums of products, where half precision pays: weights and data are half as large.
HEAVY = frozenset(
    {
        *("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Conv2D"),
        *("Conv2DBackpropInput", "Conv3D", "Conv3DBackpropInputV2"),
        *("DepthwiseConv2dNative", "Einsum", "MatMul"),
    }
)
# Bounded, or no worse than their inputs: half precision if that saves casts.
LIGHT = frozenset(
    {
        *("Abs", "Add", "AddN", "AddV2", "AvgPool", "AvgPool3D", "BiasAdd"),
        *("BiasAddV1", "Elu", "FusedBatchNormV2", "FusedBatchNormV3", "LeakyRelu"),
        *("Maximum", "Minimum", "Mul", "Neg", "RealDiv", "Relu", "Relu6", "Selu"),
        *("Sigmoid", "Softsign", "Sub", "Tanh"),
    }
)
# They move numbers about, choose or compare them.
MOVING = frozenset(
    {
        *("ArgMax", "ArgMin", "BatchToSpaceND", "BroadcastTo", "Concat", "ConcatV2"),
        *("DepthToSpace", "Equal", "ExpandDims", "Gather", "GatherNd", "GatherV2"),
        *("Greater", "GreaterEqual", "Identity", "Less", "LessEqual", "Max"),
        *("MaxPool", "MaxPool3D", "MaxPoolV2", "Min", "MirrorPad", "NotEqual"),
        *("OnesLike", "Pack", "Pad", "PadV2", "PreventGradient", "Rank", "Reshape"),
        *("Reverse", "ReverseV2", "Select", "SelectV2", "Shape", "ShapeN", "Size"),
        *("Slice", "Snapshot", "SpaceToBatchND", "SpaceToDepth", "Split", "SplitV"),
        *("Squeeze", "StopGradient", "StridedSlice", "Tile", "TopKV2", "Transpose"),
        *("Unpack", "ZerosLike"),
    }
)
# Powers overflow or vanish, and long sums of few bits stand still.
SENSITIVE = frozenset(
    {
        *("Cumprod", "Cumsum", "Erf", "Erfc", "Exp", "Expm1", "L2Loss", "Log"),
        *("Log1p", "LogSoftmax", "Mean", "Pow", "Prod", "Reciprocal", "Rsqrt"),
        *("Softmax", "SoftmaxCrossEntropyWithLogits", "Softplus", "Sqrt", "Square"),
        *("SparseSoftmaxCrossEntropyWithLogits", "SquaredDifference", "Sum"),
        "BatchNormWithGlobalNormalization",
    }
)
# Integers of these types are exact in half precision, or nearly so.
_SMALL = tuple(map(dtypes.from_numpy, ("uint8", "int8", "bool")))


@dataclasses.dataclass(frozen=True)
class Form:
    """How an operation changes to half precision.

    Attributes:
        attributes: The type attributes that change.
        inputs: Positions of the data inputs that are half then.
        outputs: Numbers of the outputs that are half then.
    """

    attributes: tuple[str, ...]
    inputs: frozenset[int]
    outputs: frozenset[int]


def form_of(node: Any, half: int) -> Form | str:
    """Returns how a node runs in half precision, or why it cannot.

    Args:
        node: The NodeDef.
        half: The DataType number of the half precision type.
    """
    definition = _ops.op_def(node.op)
    if definition is None:
        return "its operation isn't registered"
    if any(arg.is_ref for arg in (*definition.input_arg, *definition.output_arg)):
        return "it takes or makes references to variables"
    names = [
        attribute.name
        for attribute in definition.attr
        if attribute.type == "type"
        and type_of(node, definition, attribute.name) == dtypes.FLOAT
        and _allows(attribute, half)
    ]
    choices = [tuple(names), *((name,) for name in names if len(names) > 1)]
    for choice in choices if names else ():
        if has_kernel(node, dict.fromkeys(choice, half)):
            return Form(
                choice,
                _positions(node, definition.input_arg, choice),
                _positions(node, definition.output_arg, choice),
            )
    return f"it has no {dtypes.name_of(half)} kernel for CPUs"


def cast_form(node: Any) -> Form | None:
    """Returns how a Cast makes half precision numbers, if it takes small integers."""
    is_small = _ops.get(node, "SrcT") in _SMALL
    makes_floats = _ops.get(node, "DstT") == dtypes.FLOAT
    if not is_small or not makes_floats:
        return None
    return Form(("DstT",), frozenset(), frozenset({0}))


def type_of(node: Any, definition: Any, name: str) -> int:
    """Returns a type attribute, or its default."""
    if name in node.attr:
        return node.attr[name].type
    found = next(attribute for attribute in definition.attr if attribute.name == name)
    return found.default_value.type


def _allows(attribute: Any, kind: int) -> bool:
    allowed = attribute.allowed_values.list.type
    return not allowed or kind in allowed


def _positions(
    node: Any, arguments: Sequence[Any], attributes: Sequence[str]
) -> frozenset[int]:
    found, position = set(), 0
    for argument in arguments:
        count = _ops.count_of(node, argument)
        if argument.type_attr in attributes:
            found |= set(range(position, position + count))
        position += count
    return frozenset(found)


def has_kernel(node: Any, types: Mapping[str, int]) -> bool:
    """Whether TensorFlow has a CPU kernel for a node with these types.

    Args:
        node: The NodeDef.
        types: Type attribute -> DataType number, instead of the node's own.
    """
    definition = _ops.op_def(node.op)
    for constraints in _cpu_kernels(node.op):
        if all(
            types.get(name) in allowed
            if name in types
            else type_of(node, definition, name) in allowed
            for name, allowed in constraints.items()
            if name in types or _is_single_type(definition, name)
        ):
            return True
    return False


def _is_single_type(definition: Any, name: str) -> bool:
    return any(a.name == name and a.type == "type" for a in definition.attr)


@functools.cache
def _cpu_kernels(op: str) -> tuple[dict[str, frozenset[int]], ...]:
    """Returns, for each CPU kernel, which types it takes for which attribute."""
    from tensorflow.python.framework import kernels

    return tuple(
        {
            constraint.name: frozenset(constraint.allowed_values.list.type)
            for constraint in kernel.constraint
        }
        for kernel in kernels.get_registered_kernels_for_op(op).kernel
        if kernel.device_type == "CPU" and not kernel.label
    )
