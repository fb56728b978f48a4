"""Cutting borders off, and repeating rows and columns."""

from __future__ import annotations

import tensorflow as tf

from tfopt.lifting._match import Match, one_layer, produced_by
from tfopt.lifting._network import Network


def cropping(network: Network, operation: tf.Operation) -> Match | None:
    """StridedSlice that cuts borders off between batch and channels."""
    value, *bounds = network.operands(operation)
    begin, end, strides = (network.value(tensor) for tensor in bounds)
    rank = value.shape.rank
    if begin is None or end is None or strides is None or network.is_constant(value):
        return None
    if rank not in (3, 4, 5) or len(begin) > rank or (strides != 1).any():
        return None
    names = ("ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
    if any(operation.get_attr(name) for name in names):
        return None
    cuts = []
    for axis, size in enumerate(value.shape.as_list()):
        first, last = 0, size
        if axis < len(begin):
            if not operation.get_attr("begin_mask") >> axis & 1:
                first = int(begin[axis])
            if not operation.get_attr("end_mask") >> axis & 1:
                last = int(end[axis])
        if size is None:
            if first or last is not None:
                return None
            cuts.append((0, 0))
            continue
        start, stop, _ = slice(first, last).indices(size)
        cuts.append((start, size - stop))
    inner = tuple(cuts[1:-1])
    if any(cuts[0]) or any(cuts[-1]) or not any(map(any, inner)):
        return None
    return one_layer(
        operation,
        [value],
        f"Cropping{rank - 2}D",
        cropping=inner[0] if rank == 3 else inner,
    )


def repetition(network: Network, operation: tf.Operation) -> Match | None:
    """Each row and each column of images several times, as Keras 3 upsamples."""
    outer = _repeated(network, operation)
    if outer is None:
        return None
    operations, value, axis, count = outer
    sizes = {axis: count}
    before = produced_by(network, value, "Reshape")
    inner = before and _repeated(network, before)
    if inner and inner[2] not in sizes:
        operations += inner[0]
        value = inner[1]
        sizes[inner[2]] = inner[3]
    match = one_layer(
        operation,
        [value],
        "UpSampling2D",
        size=(sizes.get(1, 1), sizes.get(2, 1)),
        interpolation="nearest",
    )
    match.operations = operations
    return match


def _repeated(
    network: Network, operation: tf.Operation
) -> tuple[list[tf.Operation], tf.Tensor, int, int] | None:
    """Reads Reshape of Tile of ExpandDims.

    Returns:
        The operations, what is repeated, along which axis, and how often.
    """
    tile = produced_by(network, operation.inputs[0], "Tile")
    expand = tile and produced_by(network, tile.inputs[0], "ExpandDims")
    if not tile or not expand:
        return None
    value = network.source(expand.inputs[0])
    counts = network.value(tile.inputs[1])
    where = network.value(expand.inputs[1])
    if value.shape.rank != 4 or counts is None or where is None:
        return None
    axis = int(where) % 5 - 1
    repeated = [index for index, count in enumerate(counts) if count != 1]
    if axis not in (1, 2) or repeated != [axis + 1]:
        return None
    count = int(counts[axis + 1])
    old, new = value.shape.as_list(), operation.outputs[0].shape.as_list()
    if None in old[1:]:
        return None
    old[axis] *= count
    return ([operation, tile, expand], value, axis, count) if old == new else None


RULES = {
    "Reshape": (repetition,),
    "StridedSlice": (cropping,),
}
