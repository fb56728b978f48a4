"""Ranges of tensors, and which tensors share one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable

from tfopt._keras.flatten import Call, Value


@dataclasses.dataclass(eq=False)
class Range:
    """One range, that of one tensor or of several; compared by identity.

    Attributes:
        name: Name of the layer (or input) whose output it is about.
        path: The same with the models it is in.
        fixed: Minimum and maximum where the int8 kernel fixes them.
        nonnegative: All the tensors come from ReLUs and the like.
        room: How far the range reaches below the smallest value, for masked places.
        keep_peaks: The largest values matter most: outputs of the model and inputs
            of softmax. A mean of batch maxima would clip them.
    """

    name: str
    path: str
    fixed: tuple[float, float] | None = None
    nonnegative: bool = False
    keep_peaks: bool = False
    room: float = 0.0


@dataclasses.dataclass(frozen=True)
class Point:
    """A tensor that is fake-quantized.

    Attributes:
        range: Its range.
        follows: Whether the range follows this tensor, or only holds for it.
        is_average: Whether LiteRT averages codes to make it.
    """

    range: Range
    follows: bool = True
    is_average: bool = False


def share_with_concatenations(
    points: dict[Value, Point],
    concatenations: Iterable[Call],
    source: Callable[[Value], Value],
    *,
    selected: Collection[Value] = (),
) -> None:
    """Gives the inputs and the output of each concatenation one range, in place.

    LiteRT's int8 CONCATENATION copies codes, so they have one scale; with several,
    each input would be rounded twice. The range follows the output of the last
    concatenation in a chain, which holds all the values. MAXIMUM and MINIMUM have one
    scale too; their range follows all the tensors. Ranges that a kernel fixes are left
    alone.

    Args:
        points: The fake-quantized tensors.
        concatenations: Calls of Concatenate, Maximum and Minimum that are quantized.
        source: Finds the tensor whose range holds for a tensor.
        selected: The outputs of Maximum and Minimum, which do not hold all values.
    """
    joined = _Joined()
    inside: set[Value] = set()
    outputs: set[Value] = set()
    nonnegative: dict[Range, bool] = {}
    for call in concatenations:
        outputs.add(call.output)
        own = points[call.output].range
        for value in map(source, call.inputs):
            other = points[value].range if value in points else None
            if other is None:
                continue
            if other.fixed is None:
                joined.join(own, other)
                inside.add(value)
            at_least_zero = (
                other.fixed[0] >= 0
                if other.fixed
                else other.nonnegative or value in outputs
            )
            nonnegative[own] = nonnegative.get(own, True) and at_least_zero
    for group in joined.groups():
        members = [value for value, point in points.items() if point.range in group]
        last = [value for value in members if value in outputs - inside]
        if any(value in selected for value in members):
            last = members
        shared = points[last[-1]].range
        shared.nonnegative = all(nonnegative.get(x, True) for x in group)
        # A mean over tensors that are seen in turn would be the range of none.
        shared.room = max(x.room for x in group)
        shared.keep_peaks = len(last) > 1 or any(x.keep_peaks for x in group)
        for value in members:
            points[value] = dataclasses.replace(
                points[value], range=shared, follows=value in last
            )


class _Joined:
    """Disjoint sets of ranges."""

    def __init__(self) -> None:
        self._sets: dict[Range, set[Range]] = {}

    def join(self, one: Range, other: Range) -> None:
        merged = self._sets.get(one, {one}) | self._sets.get(other, {other})
        self._sets.update(dict.fromkeys(merged, merged))

    def groups(self) -> list[set[Range]]:
        unique = {id(group): group for group in self._sets.values()}
        return list(unique.values())
