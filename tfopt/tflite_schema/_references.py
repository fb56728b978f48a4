"""Checks that what a `.tflite` file refers to by number exists."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tfopt.tflite_schema._table import Damaged, Table
from tfopt.tflite_schema.tables import UNIONS

_BEHIND = -1  # bytes that are not in the FlatBuffer
_CUSTOM = 32
# The second input of these, weights of the input gate, may be left out.
_LSTM = (16, 44, 52)
_ABSENT = -1  # an optional input that is left out
# Bits of an element by the number of its type; the others have no fixed size.
_BITS = {
    **{0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 8: 64, 9: 8, 10: 64, 11: 128},
    **{12: 64, 15: 32, 16: 16, 17: 4, 18: 16},
}
# Least and largest integer of the types that quantized tensors have.
_CODES = {3: (0, 255), 7: (-(1 << 15), (1 << 15) - 1), 9: (-128, 127), 17: (-8, 7)}
_ANY_CODE = (-(1 << 31), (1 << 31) - 1)
# A stack of 8 MB holds about a thousand; converters write a handful.
_MOST_CALLS = 64
_MOST_AXES = 32  # NumPy's limit was that for long, TFLite's is lower
# Options that name subgraphs: their slots.
_CALLERS: dict[str, tuple[int, ...]] = {
    "CallOnceOptions": (0,),
    "CallOptions": (0,),
    "IfOptions": (0, 1),
    "StableHLOCompositeOptions": (1,),
    "StablehloReduceOptions": (1,),
    "StablehloReduceWindowOptions": (5,),
    "StablehloScatterOptions": (6,),
    "StablehloSortOptions": (2,),
    "StablehloWhileOptions": (0, 1),
    "WhileOptions": (0, 1),
}
_CASES = "StablehloCaseOptions"


def check_references(model: Table) -> None:
    """Checks the numbers of tensors, buffers, operators and subgraphs.

    Args:
        model: The root table of a file whose offsets are right.

    Raises:
        Damaged: One of them is too large, or subgraphs call each other in a circle.
    """
    buffers = [_stored_bytes(buffer) for buffer in model.tables(4)]
    # Files from before 2020 have the 8-bit field only.
    codes = [max(code.number(0, "b"), code.number(3, "i")) for code in model.tables(1)]
    subgraphs = model.tables(2)
    if not subgraphs:
        raise Damaged("it holds no graph")
    counts = [subgraph.vector_length(0, 4) for subgraph in subgraphs]
    calls = [
        _check_subgraph(subgraph, count, buffers, codes, len(subgraphs))
        for subgraph, count in zip(subgraphs, counts, strict=True)
    ]
    _check_calls(calls)
    for item in model.tables(6):
        _check("metadata of buffer", [item.number(1, "I")], len(buffers))
    for signature in model.tables(7):
        number = signature.number(4, "I")
        _check("a signature of subgraph", [number], len(subgraphs))
        for item in (*signature.tables(0), *signature.tables(1)):
            _check("a signature with tensor", [item.number(1, "I")], counts[number])


def _stored_bytes(buffer: Table) -> int:
    # Models above 2 GB keep weights behind the FlatBuffer; the interpreter checks it.
    if buffer.number(1, "Q") > 1:
        return _BEHIND
    return buffer.vector_length(0, 1)


def _check_subgraph(
    subgraph: Table,
    tensors: int,
    buffers: list[int],
    codes: list[int],
    subgraphs: int,
) -> set[int]:
    """Checks one subgraph; returns which others it calls."""
    constants = set()
    for index, tensor in enumerate(subgraph.tables(0)):
        number = tensor.number(2, "I")
        _check("a tensor with buffer", [number], len(buffers))
        _check_tensor(tensor, buffers[number])
        if buffers[number]:
            constants.add(index)
    for slot in (1, 2):
        _check("a subgraph of tensor", subgraph.numbers(slot, "i"), tensors)
    _check_writable(subgraph.numbers(1, "i"), constants)
    called: set[int] = set()
    for operator in subgraph.tables(3):
        _check("an operator of code", [operator.number(0, "I")], len(codes))
        _check_presence(operator, codes[operator.number(0, "I")])
        for slot in (1, 2, 8):
            given = [n for n in operator.numbers(slot, "i") if n != _ABSENT]
            _check("an operator on tensor", given, tensors)
            if slot == 2:
                _check_writable(given, constants)
        numbers = [n for n in _called(operator) if n != _ABSENT]
        _check("an operator that calls subgraph", numbers, subgraphs)
        called.update(numbers)
    return called


def _check_presence(operator: Table, code: int) -> None:
    """Kernels ask for their first inputs and for outputs without looking."""
    if code == _CUSTOM:
        return
    needed = operator.numbers(1, "i")[: 1 if code in _LSTM else 2]
    if _ABSENT in needed or _ABSENT in operator.numbers(2, "i"):
        raise Damaged(f"an operator of kind {code} lacks an input or output")


def _check_writable(numbers: Iterable[int], constants: set[int]) -> None:
    # Constants are mapped read-only: writing to one ends the process.
    if not constants.isdisjoint(numbers):
        written = sorted(constants.intersection(numbers))
        raise Damaged(f"its constants {written[:5]} are computed or fed")


def _check_tensor(tensor: Table, stored: int) -> None:
    bits = _BITS.get(tensor.number(1, "b"))
    if stored > 0 and bits is not None and tensor.table(6) is None:  # not sparse
        count = math.prod(tensor.numbers(0, "i"))
        if stored != (count * bits + 7) // 8:
            raise Damaged(f"it has a constant of {count} elements in {stored} bytes")
    shape, free = tensor.numbers(0, "i"), tensor.numbers(7, "i")
    rank = len(shape)
    fits = len(free) == rank and all(
        size in (-1, fixed) for size, fixed in zip(free, shape, strict=True)
    )
    if rank > _MOST_AXES or (free and not fits):
        raise Damaged(
            f"it has a tensor of the shape {shape[:_MOST_AXES]}, and also "
            f"{free[:_MOST_AXES]}"
        )
    quantization = tensor.table(4)
    if quantization is None:
        return
    scales, zeros = quantization.vector_length(2, 4), quantization.vector_length(3, 8)
    axis = quantization.number(6, "i")
    if scales > 1 and not 0 <= axis < rank:
        raise Damaged(f"it has a tensor of {rank} axes with scales along axis {axis}")
    if scales > 1 and shape[axis] != scales:
        raise Damaged(
            f"it has a tensor with {scales} scales for {shape[axis]} channels"
        )
    low, high = _CODES.get(tensor.number(1, "b"), _ANY_CODE)
    if any(not low <= zero <= high for zero in quantization.numbers(3, "q")):
        raise Damaged("it has a tensor whose zero point is no value of its type")
    if scales and zeros not in (1, scales):
        raise Damaged(f"it has a tensor with {scales} scales and {zeros} zero points")


def _called(operator: Table) -> list[int]:
    """Returns the subgraphs that an operator's options name."""
    found: list[int] = []
    for slot, union in ((3, "BuiltinOptions"), (11, "BuiltinOptions2")):
        number = operator.number(slot, "B")
        members = UNIONS[union].split() if number else []
        name = members[number] if number < len(members) else ""
        if name != _CASES and name not in _CALLERS:
            continue
        options = operator.table(slot + 1)
        if options is not None:
            if name == _CASES:
                found += options.numbers(0, "i")
            else:
                found += [options.number(item, "i") for item in _CALLERS[name]]
    return found


def _check_calls(calls: list[set[int]]) -> None:
    """Raises if a subgraph calls itself, or calls go deeper than any stack."""
    callers: list[list[int]] = [[] for _ in calls]
    for number, called in enumerate(calls):
        for other in called:
            callers[other].append(number)
    left = [len(called) for called in calls]
    depth = [1] * len(calls)
    done = [number for number, count in enumerate(left) if count == 0]
    for number in done:
        for caller in callers[number]:
            depth[caller] = max(depth[caller], depth[number] + 1)
            left[caller] -= 1
            if left[caller] == 0:
                done.append(caller)
    if len(done) < len(calls):
        raise Damaged("its subgraphs call each other in a circle")
    if max(depth) > _MOST_CALLS:
        raise Damaged(f"its subgraphs call each other {max(depth)} deep")


def _check(what: str, numbers: Iterable[int], count: int) -> None:
    for number in numbers:
        if not 0 <= number < count:
            raise Damaged(f"it has {what} {number}, of {count}")
