"""Files in which chosen operators of a model are quantized."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from tfopt import affine
from tfopt.conversion import _constants, _lowering, _selective
from tfopt.conversion._constants import Constants
from tfopt.conversion._operators import LayerOperator

# Bits of the weights, for methods that quantize nothing else.
_WEIGHT_BITS = {"int8_weights": 8, "int4_weights": 4}
METHODS = ("int8", "dynamic", *_WEIGHT_BITS, "float16")
# Axis that keeps a scale each, as the converter chooses it.
_CHANNEL_AXES = {**_constants.OUTPUT_AXIS, "TRANSPOSE_CONV": 0, "CONV_3D": 4}
OPTIONS = _lowering.Options("int8", "float32", "float32", allow_float=True)
DYNAMIC = _lowering.Options("dynamic", "float32", "float32", allow_float=False)
# The converter leaves constants of fewer elements as they are.
_MIN_ELEMENTS = 1024
# Operators that only relabel or move values: they follow what is around them.
VIEWS = frozenset(
    {
        *("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "SHAPE", "RANK", "CAST", "TRANSPOSE"),
        *("PACK", "UNPACK", "STRIDED_SLICE", "SLICE", "SPLIT", "SPLIT_V", "TILE"),
        *("BROADCAST_TO", "BROADCAST_ARGS", "REVERSE_V2"),
    }
)


def has_effect(method: str, operators: Sequence[LayerOperator]) -> bool:
    """Returns whether a method can change what a layer computes."""
    if method == "int8":
        return any(operator.kind not in VIEWS for operator in operators)
    least = 4 * _MIN_ELEMENTS if method == "dynamic" else 1
    return any(operator.constant_bytes >= least for operator in operators)


def variant(
    method: str,
    calibrated: bytes,
    operators: Sequence[LayerOperator],
    chosen: Collection[int],
    dynamic: Callable[[], bytes],
) -> bytes:
    """Returns a file in which only some operators are quantized.

    `"int8"` is done by the converter's own quantizer, with integer kernels for those
    operators and conversions around them; `"dynamic"` by giving the other ones their
    float weights back; weights alone are rounded in place.

    Args:
        method: One of `METHODS`.
        calibrated: The float file with ranges.
        operators: All its operators.
        chosen: Indices of those to quantize.
        dynamic: Returns the file with all of them in `"dynamic"`.
    """
    floats = [x for x in operators if x.index not in chosen]
    if method == "int8":
        keep = {name for operator in floats for name in operator.tensors}
        return _lowering.quantize(calibrated, OPTIONS, keep)
    if method == "dynamic":
        kept = [operator for operator in floats if operator.constant_bytes]
        return _selective.restore(dynamic(), calibrated, kept)
    constants = Constants(calibrated)
    for operator in operators:
        if operator.index in chosen:
            _round_constants(constants, operator, method)
    return constants.pack()


def _round_constants(
    constants: Constants, operator: LayerOperator, method: str
) -> None:
    inputs = constants.graph.operators[operator.index].inputs
    for position, index in enumerate(inputs):
        tensor = constants.graph.tensors[index]
        if tensor.type != "FLOAT32" or not constants.has(operator.index, position):
            continue
        value = constants.value(operator.index, position)
        if method == "float16":
            with np.errstate(over="ignore"):  # what float16 cannot hold is infinite
                rounded = value.astype(np.float16).astype(np.float32)
        elif value.ndim >= 2:
            axis = _CHANNEL_AXES.get(operator.kind)
            rounded = affine.fake_quantize_weights(
                value,
                bits=_WEIGHT_BITS[method],
                channel_axes=() if axis is None else (axis,),
            )
        else:
            continue  # biases stay float
        constants.set(operator.index, position, rounded)
