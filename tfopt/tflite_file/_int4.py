"""Stores weights of 4 bits in 4 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfopt.tflite_file._content import Operator, Subgraph, Tensor, read
from tfopt.tflite_file._flatbuffer import unpack
from tfopt.tflite_file._rewriting import check_writable, pack

# Operators with kernels for int8 activations and int4 weights.
_OPERATORS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_INT8_MAX, _INT4_MAX = 127, 7


def pack_int4(content: bytes) -> bytes:
    """Returns an int8 file whose 4-bit weights take half of the bytes.

    Weights `k * peak / 7` with an integer k, |k| <= 7, have the int8 codes
    `round(k * 127 / 7)` of the scale `peak / 127`. They become the int4 codes k of the
    scale `peak / 7`: the same weights, and the bias is rounded anew to its coarser
    scale. Weights with any other code stay as they are.

    Args:
        content: A `.tflite` file.

    Raises:
        TfoptError: The content is no `.tflite` file that can be written back.
    """
    graph = read(content).subgraphs[0]
    model = unpack(content)
    check_writable(model)
    readers: dict[int, list[Operator]] = {}
    for operator in graph.operators:
        for index in operator.inputs:
            readers.setdefault(index, []).append(operator)
    packed = False
    for index, users in readers.items():
        weights = graph.tensors[index]
        biases = {number for user in users for number in user.inputs[2:3]}
        together = all(_multiplies(graph, user, index) for user in users) and all(
            user in users for bias in biases for user in readers[bias]
        )
        if together and _is_even(weights):
            packed = True
            _pack_weights(model, weights)
            for number in biases:
                _coarsen_bias(model, graph.tensors[number])
    return pack(model, len(content)) if packed else content


def _multiplies(graph: Subgraph, operator: Operator, weights: int) -> bool:
    """Returns whether an operator multiplies int8 activations with a tensor."""
    return (
        operator.name in _OPERATORS
        and operator.inputs[1] == weights
        and weights not in operator.inputs[2:]
        and graph.tensors[operator.inputs[0]].type == "INT8"
    )


def _is_even(weights: Tensor) -> bool:
    if weights.type != "INT8" or not weights.is_constant or weights.is_sparse:
        return False
    codes = weights.codes()
    return np.array_equal(_widened(_narrowed(codes)), codes)


def _narrowed(codes: np.ndarray) -> np.ndarray:
    return np.rint(codes.astype(np.int32) * _INT4_MAX / _INT8_MAX).astype(np.int8)


def _widened(codes: np.ndarray) -> np.ndarray:
    return np.rint(codes.astype(np.int32) * _INT8_MAX / _INT4_MAX).astype(np.int8)


def _pack_weights(model: Any, weights: Tensor) -> None:
    halves = _narrowed(weights.codes()).reshape(-1).view(np.uint8) & 15
    halves = np.append(halves, np.zeros(len(halves) % 2, np.uint8))
    tensor = model.subgraphs[0].tensors[weights.index]
    _set_data(model, tensor, halves[0::2] | halves[1::2] << 4)
    tensor.type = schema.TensorType.INT4
    _set_scale(tensor, weights)


def _coarsen_bias(model: Any, bias: Tensor) -> None:
    tensor = model.subgraphs[0].tensors[bias.index]
    codes = np.rint(bias.codes() * (_INT4_MAX / _INT8_MAX)).astype("<i4")
    _set_data(model, tensor, codes.reshape(-1).view(np.uint8))
    _set_scale(tensor, bias)


def _set_data(model: Any, tensor: Any, data: np.ndarray) -> None:
    # A buffer of its own: others may share the old one.
    tensor.buffer = len(model.buffers)
    model.buffers.append(schema.BufferT(data=data))


def _set_scale(tensor: Any, old: Tensor) -> None:
    scale = np.asarray(old.scale, np.float64) * _INT8_MAX / _INT4_MAX
    tensor.quantization.scale = scale.astype(np.float32)
