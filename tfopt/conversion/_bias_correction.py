"""Bias correction: what quantization adds to a layer's outputs on average is removed.

Rounding errors of weights and inputs don't cancel: the mean of a channel moves. The
difference of the means, of the float model's outputs before the activation and of the
int8 file's, goes into the bias, layer by layer from the input on, so that each is
measured behind corrected ones.

Reference:
    Nagel et al., Data-Free Quantization Through Weight Equalization and Bias
    Correction, ICCV 2019, section 4.2; measured on data as in appendix D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt import tflite_file
from tfopt.conversion import _constants, _tensors
from tfopt.conversion._constants import Constants
from tfopt.conversion._operators import LayerOperator
from tfopt.tflite_file import Operator

Batches = Sequence[Mapping[str, np.ndarray]]

_BIAS = 2
_PADDING = ("SAME", "VALID")


def correct(
    floats: bytes, content: bytes, operators: Sequence[LayerOperator], batches: Batches
) -> tuple[bytes, dict[str, Any]]:
    """Corrects the biases of an int8 file.

    Args:
        floats: The float file that it was made from.
        content: The int8 file.
        operators: Operators of the float file with their layers.
        batches: Inputs, in order.

    Returns:
        The corrected file, and a report: `"layers"`: layer -> largest correction
        relative to the largest output, `"skipped"`: layer -> why not.
    """
    reference = tflite_file.read(floats).subgraphs[0]
    twins = _twins(reference, tflite_file.read(content).subgraphs[0])
    linear = [x for x in reference.operators if x.name in _constants.OUTPUT_AXIS]
    wanted = _float_means(floats, linear, batches)
    report: dict[str, Any] = {"layers": {}, "skipped": {}}
    for operator in linear:
        layer = operators[operator.index].layer
        twin = twins.get(operator.index)
        reason = "it is not quantized" if twin is None else _objection(content, twin)
        if twin is None or reason:
            report["skipped"][layer] = reason
            continue
        mean, peak = wanted[operator.index]
        error = mean - _quantized_mean(content, twin, batches)
        content = _shifted(content, twin, error)
        report["layers"][layer] = float(np.abs(error).max() / peak) if peak else 0.0
    return content, report


def _twins(reference: Any, quantized: Any) -> dict[int, Operator]:
    """Operators of the int8 file by the index of what they were made from."""
    makers = {
        quantized.tensors[index].name: operator
        for operator in quantized.operators
        for index in operator.outputs
    }
    found = {}
    for operator in reference.operators:
        name = reference.tensors[operator.outputs[0]].name
        # The last tensor of the file has a conversion behind it, and digits.
        twin = next(
            (
                makers[key]
                for key in (name, f"{name}1")
                if key in makers and makers[key].name == operator.name
            ),
            None,
        )
        if twin is not None:
            found[operator.index] = twin
    return found


def _objection(content: bytes, operator: Operator) -> str:
    graph = tflite_file.read(content).subgraphs[0]
    if len(operator.inputs) <= _BIAS:
        return "it has no bias"
    data, weights, bias = (graph.tensors[index] for index in operator.inputs[:3])
    if data.type != "INT8" or weights.type != "INT8" or bias.type != "INT32":
        return "it stays float"
    if not weights.is_constant or not bias.is_constant:
        return "its weights are no constants"
    return ""


def _float_means(
    content: bytes, operators: Sequence[Operator], batches: Batches
) -> dict[int, tuple[np.ndarray, float]]:
    """Mean of each channel before the activation, and largest absolute value."""
    tensors = tflite_file.read(content).subgraphs[0].tensors
    kept = [
        operator for operator in operators if tensors[operator.inputs[1]].is_constant
    ]
    sums = {operator.index: np.zeros(1) for operator in kept}
    counts = dict.fromkeys(sums, 0)
    peaks = dict.fromkeys(sums, 0.0)
    for read in _tensors.runs(content, batches):
        for operator in kept:
            rows = _rows(operator, tensors, read(operator.inputs[0]))
            sums[operator.index] = sums[operator.index] + rows.sum(0, np.float64)
            counts[operator.index] += len(rows)
            peaks[operator.index] = max(
                peaks[operator.index], float(np.abs(rows).max())
            )
    return {
        index: (total / max(counts[index], 1), peaks[index])
        for index, total in sums.items()
    }


def _quantized_mean(content: bytes, operator: Operator, batches: Batches) -> np.ndarray:
    tensors = tflite_file.read(content).subgraphs[0].tensors
    total, count = np.zeros(1), 0
    for read in _tensors.runs(content, batches):
        rows = _rows(operator, tensors, read(operator.inputs[0]))
        total, count = total + rows.sum(0, np.float64), count + len(rows)
    return total / max(count, 1)


def _rows(
    operator: Operator, tensors: Sequence[tflite_file.Tensor], data: np.ndarray
) -> np.ndarray:
    """Returns what an operator computes before its activation, as rows of channels."""
    weights, *bias = (tensors[index].values() for index in operator.inputs[1:])
    rows = _linear(operator, data, weights)
    return rows + bias[0] if bias else rows


def _linear(operator: Operator, data: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns what an operator computes without bias, as rows of channels."""
    if operator.name == "FULLY_CONNECTED":
        return data.reshape(-1, weights.shape[1]) @ weights.T
    options = operator.options
    settings = {
        "strides": [1, options.strideH, options.strideW, 1],
        "padding": _PADDING[options.padding],
    }
    dilations = [options.dilationHFactor, options.dilationWFactor]
    if operator.name == "CONV_2D":
        result = tf.nn.conv2d(
            data, weights.transpose(1, 2, 3, 0), dilations=dilations, **settings
        )
    else:
        _, height, width, _ = weights.shape
        kernel = weights.reshape(height, width, data.shape[-1], -1)
        result = tf.nn.depthwise_conv2d(data, kernel, dilations=dilations, **settings)
    return result.numpy().reshape(-1, result.shape[-1])


def _shifted(content: bytes, operator: Operator, error: np.ndarray) -> bytes:
    """Adds the missing means to the int32 bias, whose scale is input's by weights'."""
    constants = Constants(content)
    codes = constants.value(operator.index, _BIAS)
    scales = np.asarray(constants.tensor(operator.index, _BIAS).quantization.scale)
    limits = np.iinfo(np.int32)
    shifted = np.clip(codes + np.rint(error / scales), limits.min, limits.max)
    constants.set(operator.index, _BIAS, shifted.astype(np.int32))
    return constants.pack()
