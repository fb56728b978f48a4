"""Pooling, padding, means, resizing, joining, and what only moves elements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.lifting._match import (
    Match,
    Step,
    is_scalar,
    one_layer,
    produced_by,
    split_constant,
)
from tfopt.lifting._network import Network

_MERGING = {
    "Add": "Add",
    "AddN": "Add",
    "AddV2": "Add",
    "Maximum": "Maximum",
    "Minimum": "Minimum",
    "Mul": "Multiply",
    "Sub": "Subtract",
}


def pooling(network: Network, operation: tf.Operation) -> Match | None:
    """Max and average pooling of images and volumes."""
    sizes = list(operation.get_attr("ksize"))
    strides = list(operation.get_attr("strides"))
    padding = operation.get_attr("padding").decode().lower()
    inside = {sizes[0], sizes[-1], strides[0], strides[-1]} == {1}
    if padding == "explicit" or not inside:
        return None
    kind = "Max" if operation.type.startswith("Max") else "Average"
    return one_layer(
        operation,
        network.operands(operation),
        f"{kind}Pooling{len(sizes) - 2}D",
        pool_size=tuple(sizes[1:-1]),
        strides=tuple(strides[1:-1]),
        padding=padding,
    )


def pooling1d(network: Network, operation: tf.Operation) -> Match | None:
    """Squeeze of a pooling of ExpandDims: that of a sequence."""
    pool = produced_by(network, operation.inputs[0], "MaxPool", "AvgPool")
    expand = pool and produced_by(network, pool.inputs[0], "ExpandDims")
    if not pool or not expand:
        return None
    where = network.value(expand.inputs[1])
    inner = pooling(network, pool)
    squeezed = {index % 4 for index in operation.get_attr("squeeze_dims")}
    axis = 0 if where is None else int(where) % 4
    if inner is None or squeezed != {axis} or axis not in (1, 2):
        return None
    config = inner.steps[0].config
    if config["pool_size"][axis - 1] != 1 or config["strides"][axis - 1] != 1:
        return None
    match = one_layer(
        operation,
        [network.source(expand.inputs[0])],
        inner.steps[0].kind.replace("2D", "1D"),
        pool_size=config["pool_size"][2 - axis],
        strides=config["strides"][2 - axis],
        padding=config["padding"],
    )
    match.operations += [pool, expand]
    return match


def padding(network: Network, operation: tf.Operation) -> Match | None:
    """Pad with zeros along the axes between batch and channels."""
    value, *others = network.operands(operation)
    pairs = network.value(others[0])
    if pairs is None or network.is_constant(value):
        return None
    if len(others) > 1:
        filling = network.value(others[1])
        if filling is None or filling.any():
            return None
    rank = len(pairs) - 2
    if rank not in (1, 2, 3) or pairs[0].any() or pairs[-1].any():
        return None
    inner = tuple(tuple(map(int, pair)) for pair in pairs[1:-1])
    return one_layer(
        operation,
        [value],
        f"ZeroPadding{rank}D",
        padding=inner[0] if rank == 1 else inner,
    )


def reduction(network: Network, operation: tf.Operation) -> Match | None:
    """Mean and Max over all axes between batch and channels."""
    value, axes = network.operands(operation)
    indices = network.value(axes)
    rank = value.shape.rank
    if indices is None or rank not in (3, 4, 5) or not value.dtype.is_floating:
        return None
    if sorted(int(i) % rank for i in indices.reshape(-1)) != list(range(1, rank - 1)):
        return None
    kind = "Average" if operation.type == "Mean" else "Max"
    return one_layer(
        operation,
        [value],
        f"Global{kind}Pooling{rank - 2}D",
        keepdims=operation.get_attr("keep_dims"),
    )


def reshape(network: Network, operation: tf.Operation) -> Match | None:
    """Reshape, Squeeze and ExpandDims that keep the examples apart."""
    value = network.operands(operation)[0]
    old, new = value.shape, operation.outputs[0].shape
    if old.rank == 0 or new.rank == 0 or network.is_constant(value):
        return None
    before, after = old.as_list(), new.as_list()
    if None in before[1:] or None in after[1:]:
        return None
    if math.prod(before[1:]) != math.prod(after[1:]):
        return None
    if before[0] is not None and before[0] != after[0]:
        return None
    if after == before:
        return one_layer(operation, [value], "Activation", activation="linear")
    if len(after) == 2:
        return one_layer(operation, [value], "Flatten")
    return one_layer(operation, [value], "Reshape", target_shape=tuple(after[1:]))


def permute(network: Network, operation: tf.Operation) -> Match | None:
    """Transpose that leaves the batch in its place."""
    value, order = network.operands(operation)
    axes = network.value(order)
    if axes is None or int(axes[0]) != 0 or len(axes) < 3:
        return None
    dims = tuple(int(axis) for axis in axes[1:])
    return one_layer(operation, [value], "Permute", dims=dims)


def concatenate(network: Network, operation: tf.Operation) -> Match | None:
    """ConcatV2 along another axis than that of the batch."""
    *values, axis_tensor = network.operands(operation)
    axis = network.value(axis_tensor)
    rank = operation.outputs[0].shape.rank
    if axis is None or int(axis) % rank == 0 or len(values) < 2:
        return None
    if any(map(network.is_constant, values)):
        return None
    position = int(axis) % rank
    return one_layer(
        operation,
        values,
        "Concatenate",
        is_list=True,
        axis=-1 if position == rank - 1 else position,
    )


def merging(network: Network, operation: tf.Operation) -> Match | None:
    """Elementwise operations of tensors of one rank."""
    values = network.operands(operation)
    if len(values) < 2 or any(map(network.is_constant, values)):
        return None
    ranks = {value.shape.rank for value in values}
    if ranks != {operation.outputs[0].shape.rank} or 0 in ranks or 1 in ranks:
        return None
    # Along the batch nothing is repeated.
    if len({value.shape[0] for value in values}) > 1:
        return None
    return one_layer(operation, values, _MERGING[operation.type], is_list=True)


def resizing(network: Network, operation: tf.Operation) -> Match | None:
    """Resizing by whole factors, with centres of pixels as Keras has them."""
    value = network.operands(operation)[0]
    old, new = value.shape.as_list()[1:3], operation.outputs[0].shape.as_list()[1:3]
    if None in old or None in new or operation.get_attr("align_corners"):
        return None
    if any(after % before for before, after in zip(old, new, strict=True)):
        return None
    size = tuple(after // before for before, after in zip(old, new, strict=True))
    centres = operation.get_attr("half_pixel_centers")
    nearest = operation.type == "ResizeNearestNeighbor"
    # By whole factors, nearest neighbours are the same either way.
    if not centres and not nearest:
        return None
    return one_layer(
        operation,
        [value],
        "UpSampling2D",
        size=size,
        interpolation="nearest" if nearest else "bilinear",
    )


def embedding(network: Network, operation: tf.Operation) -> Match | None:
    """Rows of a constant table."""
    table, indices, axis = network.operands(operation)
    value = network.value(table) if network.is_constant(table) else None
    if value is None or value.ndim != 2 or value.dtype.kind != "f":
        return None
    where = network.value(axis)
    if where is None or int(where) != 0 or operation.get_attr("batch_dims"):
        return None
    if network.is_constant(indices) or indices.shape.rank == 0:
        return None
    operations, indices = _from_the_end(network, indices, len(value))
    config: dict[str, Any] = {
        "input_dim": len(value),
        "output_dim": int(value.shape[1]),
    }
    if not network.is_trainable([table]):
        config["trainable"] = False
    step = Step("Embedding", config, [np.asarray(value)])
    step.origin = network.leaves([table])
    return Match([operation, *operations], [indices], [step])


def _from_the_end(
    network: Network, indices: tf.Tensor, size: int
) -> tuple[list[tf.Operation], tf.Tensor]:
    """Skips Keras 3's way of counting negative indices from the end of a table.

    That is `where(indices < 0, indices + size, indices)`, which no valid index needs.
    """
    choice = produced_by(network, indices, "SelectV2")
    if choice is None:
        return [], indices
    is_negative, moved, given = network.operands(choice)
    less = produced_by(network, is_negative, "Less")
    add = produced_by(network, moved, "Add", "AddV2")
    compared, added = (x and split_constant(network, x) for x in (less, add))
    if not less or not add or not compared or not added:
        return [], indices
    if {compared[0].name, added[0].name} != {given.name} or compared[2] != 1:
        return [], indices
    if not is_scalar(compared[1], 0) or not is_scalar(added[1], size):
        return [], indices
    return [choice, less, add], given


RULES = {
    **dict.fromkeys(("AvgPool", "AvgPool3D", "MaxPool", "MaxPool3D"), (pooling,)),
    "ConcatV2": (concatenate,),
    "ExpandDims": (reshape,),
    "GatherV2": (embedding,),
    "Max": (reduction,),
    "Mean": (reduction,),
    "Pad": (padding,),
    "PadV2": (padding,),
    "Reshape": (reshape,),
    "ResizeBilinear": (resizing,),
    "ResizeNearestNeighbor": (resizing,),
    "Squeeze": (pooling1d, reshape),
    "Transpose": (permute,),
    **dict.fromkeys(_MERGING, (merging,)),
}
