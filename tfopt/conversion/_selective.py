"""Dynamic-range quantization with some layers left in float.

The converter quantizes the weights of all of them or of none. So both files are made,
and the listed operators get the float constants of the one that has them.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from tfopt import tflite_file
from tfopt.conversion._constants import drop_unused
from tfopt.conversion._operators import LayerOperator, is_named
from tfopt.types import ConversionError

_CALLERS = ("WHILE", "IF", "CALL", "CALL_ONCE", "STABLEHLO_COMPOSITE")


def restore(dynamic: bytes, plain: bytes, kept: Collection[LayerOperator]) -> bytes:
    """Gives operators of a dynamic-range file their float constants back.

    Args:
        dynamic: The file with int8 weights.
        plain: The same model without quantization.
        kept: Operators of `plain` that are to stay float.

    Returns:
        The dynamic-range file, in which they compute on floats.

    Raises:
        ConversionError: An operator of the list runs other subgraphs, or is not to
            be found in the quantized file.
    """
    loops = [str(operator) for operator in kept if operator.kind in _CALLERS]
    if loops:
        raise ConversionError(
            "Layers with loops or branches cannot stay float alone. Unroll them "
            f"(`unroll=True`), or leave them out of `keep_float`. Received: {loops}"
        )
    source, target = tflite_file.unpack(plain), tflite_file.unpack(dynamic)
    names = [
        [_name(tensor) for tensor in model.subgraphs[0].tensors]
        for model in (source, target)
    ]
    for operator in kept:
        twin = _twin(target.subgraphs[0], names[1], operator)
        original = source.subgraphs[0].operators[operator.index]
        _copy_constants(source, original, target, twin)
    drop_unused(target.subgraphs[0])
    target.signatureDefs = None  # tensors have other numbers now
    return tflite_file.pack(target, len(plain))


def _twin(graph: Any, names: list[str], operator: LayerOperator) -> Any:
    """Finds an operator in the other file, by the names of its outputs."""
    for candidate in graph.operators:
        if any(is_named(names[index], operator.tensors) for index in candidate.outputs):
            return candidate
    raise ConversionError(
        "The converter made another operator of it, so it cannot stay float. Leave it "
        f"out of `keep_float`. Received: {operator}"
    )


def _copy_constants(source: Any, original: Any, target: Any, twin: Any) -> None:
    """Gives an operator the constants that it has in the other file."""
    theirs, ours = source.subgraphs[0].tensors, target.subgraphs[0].tensors
    inputs = list(twin.inputs)
    for position, index in enumerate(original.inputs):
        if index < 0 or source.buffers[theirs[index].buffer].data is None:
            continue
        target.buffers.append(source.buffers[theirs[index].buffer])
        tensor = copy.copy(theirs[index])
        tensor.buffer = len(target.buffers) - 1
        ours.append(tensor)
        inputs[position] = len(ours) - 1
    twin.inputs = inputs


def _name(tensor: Any) -> str:
    name = tensor.name
    return name.decode() if isinstance(name, bytes) else name or ""
