"""Multiply-accumulate operations of operators, from the shapes of their tensors."""

from __future__ import annotations

import math
from collections.abc import Callable

from tfopt.tflite_file._content import Operator, Subgraph

# Operator -> sizes to multiply, from the shapes of input, weights and output. Filters
# are [out, h, w, in], depthwise [1, h, w, out], in 3D [d, h, w, in,
# out]; weights are [out, in].
_RULES: dict[str, Callable[[list, list, list], list]] = {
    "CONV_2D": lambda x, w, y: y + w[1:],
    "CONV_3D": lambda x, w, y: y + w[:-1],
    "DEPTHWISE_CONV_2D": lambda x, w, y: y + w[1:-1],
    "FULLY_CONNECTED": lambda x, w, y: y + w[-1:],
}
_RECURRENT = ("UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN")


def macs(operator: Operator, subgraph: Subgraph) -> int | None:
    """Returns the multiply-accumulates of one operator for one example.

    Args:
        operator: An operator.
        subgraph: The subgraph that it is in.

    Returns:
        0 for operators that multiply no matrices; `None` for custom operators, and
        where sizes other than the batch are free.
    """
    if operator.name in _RECURRENT:
        return _recurrent(operator, subgraph)
    if operator.name == "TRANSPOSE_CONV":
        # Inputs are the output's shape, the filters and the data: each value of the
        # data meets the whole filter.
        filters, data = (_shape(index, subgraph) for index in operator.inputs[1:3])
        return _product(data + filters[:-1])
    if operator.name != "BATCH_MATMUL" and operator.name not in _RULES:
        return None if operator.is_custom else 0
    given, output = (
        _shape(index, subgraph) for index in (operator.inputs[0], operator.outputs[0])
    )
    if operator.name == "BATCH_MATMUL":
        is_transposed = operator.options is not None and operator.options.adjX
        return _product([*output, given[-2 if is_transposed else -1]])
    weights = list(subgraph.tensors[operator.inputs[1]].shape)
    return _product(_RULES[operator.name](given, weights, output))


def _shape(index: int, subgraph: Subgraph) -> list[int | None]:
    shape = list(subgraph.tensors[index].shape)
    if shape and shape[0] is None:
        shape[0] = 1  # the batch
    return shape


def _product(sizes: list[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def _recurrent(operator: Operator, subgraph: Subgraph) -> int | None:
    given = _shape(operator.inputs[0], subgraph)
    steps = given[0] if getattr(operator.options, "timeMajor", False) else given[1]
    matrices = [
        math.prod(size or 0 for size in subgraph.tensors[index].shape)
        for index in operator.inputs
        if subgraph.tensors[index].is_constant
        and len(subgraph.tensors[index].shape) == 2
    ]
    return None if steps is None else steps * sum(matrices)
