"""Cross-layer equalization: channels of neighbouring layers get equal ranges.

Between two linear layers with a ReLU, channel `i` of the first can be divided by any
`s_i > 0` if the second multiplies it by `s_i`: the model computes the same. With
`s_i = sqrt(r1_i / r2_i)`, where `r` are the largest absolute weights of the channel in
either layer, both get the range `sqrt(r1_i r2_i)`, so that one scale for all channels
of the activation between them (and of the second layer's inputs) wastes least.

Reference:
    Nagel et al., Data-Free Quantization Through Weight Equalization and Bias
    Correction, ICCV 2019, section 4.1 and appendix A.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfopt import affine
from tfopt.conversion import _constants
from tfopt.conversion._constants import Constants
from tfopt.conversion._operators import LayerOperator
from tfopt.tflite_file import Operator

# Operators that treat channels alone and commute with a positive factor.
_PASSING = ("MAX_POOL_2D", "AVERAGE_POOL_2D", "PAD", "MEAN", "RESHAPE", "SQUEEZE")
_SWEEPS = 50
_CONVERGED = 1e-3
# A bound at 6 that values don't come near in calibration is none in the int8 file,
# which ends at the largest calibrated value anyway.
_BOUND = 6.0


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Two linear operators with nothing between them but ReLU and pooling."""

    first: Operator
    second: Operator


def equalize(
    content: bytes, operators: Sequence[LayerOperator]
) -> tuple[bytes, dict[str, Any]]:
    """Equalizes a calibrated float file.

    Args:
        content: The file; its ranges hold no longer afterwards.
        operators: Its operators with their layers.

    Returns:
        The file that computes the same, up to rounding, and a report: `"pairs"` of
        layers with the largest factor of each, `"skipped"`: pair -> why not.
    """
    constants = Constants(content)
    names = [operator.layer for operator in operators]
    pairs, skipped = _pairs(constants, names)
    factors = _solve(constants, pairs)
    report = []
    for pair, factor in zip(pairs, factors, strict=True):
        _divide(constants, pair, factor)
        largest = np.exp(np.abs(np.log(factor)).max())
        report.append([*_labels(pair, names), float(largest)])
    return constants.pack(), {"pairs": report, "skipped": skipped}


def _pairs(
    constants: Constants, names: Sequence[str]
) -> tuple[list[_Pair], dict[str, str]]:
    graph = constants.graph
    readers: dict[int, list[Operator]] = {}
    for operator in graph.operators:
        for index in operator.inputs:
            readers.setdefault(index, []).append(operator)
    pairs, skipped = [], {}
    for first in graph.operators:
        if first.name not in _constants.OUTPUT_AXIS:
            continue
        second = _next_linear(constants, first, readers)
        if second is None:
            continue
        pair = _Pair(first, second)
        reason = _objection(constants, pair)
        if reason:
            skipped[" - ".join(_labels(pair, names))] = reason
        else:
            pairs.append(pair)
    return pairs, skipped


def _next_linear(
    constants: Constants, first: Operator, readers: dict[int, list[Operator]]
) -> Operator | None:
    """Follows the only reader through operators that leave channels alone."""
    graph, operator = constants.graph, first
    channels = graph.tensors[first.outputs[0]].shape[-1]
    while True:
        (output,) = operator.outputs
        following = readers.get(output, [])
        if len(following) != 1 or output in graph.outputs:
            return None
        operator = following[0]
        if operator.name in _constants.INPUT_AXIS and operator.inputs[0] == output:
            return operator
        passes = operator.name in _PASSING and operator.inputs[0] == output
        if not passes or graph.tensors[operator.outputs[0]].shape[-1] != channels:
            return None


def _objection(constants: Constants, pair: _Pair) -> str:
    """Returns why a pair cannot be equalized, `""` if it can."""
    first, second = pair.first, pair.second
    if not all(constants.has(item.index, 1) for item in (first, second)):
        return "the weights are no constants"
    weights = [constants.value(item.index, 1) for item in (first, second)]
    if any(constants.is_shared(item.index, 1) for item in (first, second)):
        return "other layers share the weights"
    outputs = weights[0].shape[_constants.OUTPUT_AXIS[first.name]]
    inputs = weights[1].shape[_constants.INPUT_AXIS[second.name]]
    if outputs != inputs:
        return f"{outputs} channels meet {inputs} inputs"
    activation = first.options.fusedActivationFunction
    if activation in (_constants.NO_ACTIVATION, _constants.RELU):
        return ""
    if activation != _constants.RELU6:
        return "the activation between them is no ReLU"
    largest = constants.tensor(second.index, 0).quantization
    largest = None if largest is None or largest.max is None else max(largest.max)
    if largest is None or largest >= _BOUND * (1 - 1e-6):
        return "ReLU6 between them reaches its bound, which has one value for all"
    return ""


def _solve(constants: Constants, pairs: Sequence[_Pair]) -> list[np.ndarray]:
    """Returns the factors `s` of each pair; pairs share layers, so it iterates."""
    weights = {
        item.index: np.abs(constants.value(item.index, 1))
        for pair in pairs
        for item in (pair.first, pair.second)
    }
    factors = [
        np.ones(weights[p.first.index].shape[_constants.OUTPUT_AXIS[p.first.name]])
        for p in pairs
    ]
    for _ in range(_SWEEPS):
        change = 0.0
        for pair, total in zip(pairs, factors, strict=True):
            first, second = (weights[x.index] for x in (pair.first, pair.second))
            out_axis = _constants.OUTPUT_AXIS[pair.first.name]
            in_axis = _constants.INPUT_AXIS[pair.second.name]
            r1, r2 = _peaks(first, out_axis), _peaks(second, in_axis)
            # A channel that is zero in either layer has no range to equalize.
            used = (r1 > 0) & (r2 > 0)
            step = np.ones(len(r1))
            step[used] = np.sqrt(r1[used] / r2[used])
            first /= _along(step, out_axis, first.ndim)
            second *= _along(step, in_axis, second.ndim)
            total *= step
            change = max(change, float(np.abs(np.log(step)).max()))
        if change < _CONVERGED:
            break
    return factors


def _divide(constants: Constants, pair: _Pair, factor: np.ndarray) -> None:
    """Writes `W1 / s`, `b1 / s` and `s W2`."""
    first, second = pair.first, pair.second
    for item, axis, by in (
        (first, _constants.OUTPUT_AXIS[first.name], 1 / factor),
        (second, _constants.INPUT_AXIS[second.name], factor),
    ):
        value = constants.value(item.index, 1)
        scaled = value * _along(by, axis, value.ndim)
        constants.set(item.index, 1, scaled.astype(np.float32))
    if constants.has(first.index, 2):
        bias = constants.value(first.index, 2)
        constants.set(first.index, 2, (bias / factor).astype(np.float32))
    if first.options.fusedActivationFunction == _constants.RELU6:
        constants.set_activation(first.index, _constants.RELU)


def _peaks(weights: np.ndarray, axis: int) -> np.ndarray:
    others = tuple(i for i in range(weights.ndim) if i != axis)
    return weights.max(axis=others).astype(np.float64)


def _along(vector: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    return affine.broadcast_channels(vector, axis, ndim)


def _labels(pair: _Pair, names: Sequence[str]) -> tuple[str, str]:
    return names[pair.first.index], names[pair.second.index]
