"""Weights in int8 or float16 with those of some layers left in float.

The converter changes the weights of all of them or of none. So both files are made,
and the listed operators get the float constants of the one that has them.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Any

from tfopt import tflite_file
from tfopt.conversion._constants import drop_unused
from tfopt.conversion._operators import LayerOperator
from tfopt.types import ConversionError

_CALLERS = ("WHILE", "IF", "CALL", "CALL_ONCE", "STABLEHLO_COMPOSITE")


def restore(smaller: bytes, plain: bytes, kept: Collection[LayerOperator]) -> bytes:
    """Gives operators of a file with smaller weights their float constants back.

    Args:
        smaller: The file with weights in int8 (`"dynamic"`) or float16.
        plain: The same model without quantization.
        kept: Operators of `plain` that are to stay float.

    Returns:
        The file with smaller weights, in which they have those of `plain`.

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
    source, target = tflite_file.unpack(plain), tflite_file.unpack(smaller)
    pairs = _Pairs(source, target)
    copied: dict[int, int] = {}
    for operator in kept:
        original = source.subgraphs[0].operators[operator.index]
        twin = pairs.twin(original)
        if twin is None:
            raise ConversionError(
                "The converter made another operator of it, so it cannot stay float. "
                f"Leave it out of `keep_float`. Received: {operator}"
            )
        _copy_constants(source, original, target, twin, copied)
    drop_unused(target.subgraphs[0])
    target.signatureDefs = None  # tensors have other numbers now
    return tflite_file.pack(target, len(plain))


class _Pairs:
    """Operators of a file by what they are in another file of the same model."""

    def __init__(self, source: Any, target: Any):
        self._source, self._target = source, target
        self._names = [
            [_name(tensor) for tensor in model.subgraphs[0].tensors]
            for model in (source, target)
        ]
        self._groups = [_by_kind(model) for model in (source, target)]

    def twin(self, original: Any) -> Any:
        """Returns the operator of the target that one of the source became, or None.

        The converter keeps their order; names get other digits where it adds tensors.
        """
        kind = _kind(self._source, original)
        before, after = (groups.get(kind, []) for groups in self._groups)
        wanted = self._outputs(0, original)
        if len(before) == len(after):
            place = next(i for i, x in enumerate(before) if x is original)
            if _bare(self._outputs(1, after[place])) == _bare(wanted):
                return after[place]
        return next((x for x in after if self._outputs(1, x) == wanted), None)

    def _outputs(self, which: int, operator: Any) -> list[str]:
        return [self._names[which][index] for index in operator.outputs]


def _by_kind(model: Any) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for operator in model.subgraphs[0].operators:
        groups.setdefault(_kind(model, operator), []).append(operator)
    return groups


def _kind(model: Any, operator: Any) -> tuple[int, Any]:
    code = model.operatorCodes[operator.opcodeIndex]
    return max(code.builtinCode, code.deprecatedBuiltinCode), code.customCode


def _bare(names: Sequence[str]) -> list[str]:
    return [name.rstrip("0123456789") for name in names]


def _copy_constants(
    source: Any, original: Any, target: Any, twin: Any, copied: dict[int, int]
) -> None:
    """Gives an operator the constants that it has in the other file.

    Args:
        source: The float file.
        original: The operator in it.
        target: The file that is changed.
        twin: The operator in that.
        copied: Buffer of `source` -> buffer of `target`, of those that are there
            already: operators may share constants.
    """
    theirs, ours = source.subgraphs[0].tensors, target.subgraphs[0].tensors
    inputs = list(twin.inputs)
    for position, index in enumerate(original.inputs):
        if index < 0 or source.buffers[theirs[index].buffer].data is None:
            continue
        buffer = theirs[index].buffer
        if buffer not in copied:
            copied[buffer] = len(target.buffers)
            target.buffers.append(source.buffers[buffer])
        tensor = copy.copy(theirs[index])
        tensor.buffer = copied[buffer]
        ours.append(tensor)
        inputs[position] = len(ours) - 1
    twin.inputs = inputs


def _name(tensor: Any) -> str:
    name = tensor.name
    return name.decode() if isinstance(name, bytes) else name or ""
