"""Which operations take weights, at which input, and which axes are their channels.

A weight may pass through operations that only present it differently (`Identity`,
`Reshape`, `Transpose`, ...). `View` follows its axes through them, so that the output
channels of the operation can be named as axes of the constant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from tfopt.savedmodel import dtypes
from tfopt.transforms import _constants, _ops
from tfopt.transforms._graph import Body, Tensor

# Operation -> (input that is the filter, its axes of output channels). The layout of
# filters doesn't depend on `data_format`.
_FILTERS = {
    "Conv": (1, (-1,)),
    "Conv2D": (1, (-1,)),
    "Conv3D": (1, (-1,)),
    "_FusedConv2D": (1, (-1,)),
    "_FusedConv3D": (1, (-1,)),
    "DepthwiseConv2dNative": (1, (-2, -1)),
    "_FusedDepthwiseConv2dNative": (1, (-2, -1)),
    # Transposed: the filter is [..., out, in].
    "Conv2DBackpropInput": (1, (-2,)),
    "Conv2DBackpropInputV2": (1, (-2,)),
    "Conv3DBackpropInput": (1, (-2,)),
    "Conv3DBackpropInputV2": (1, (-2,)),
    "DepthwiseConv2dNativeBackpropInput": (1, (-2, -1)),
    "LSTMBlockCell": (3, (-1,)),
    "BlockLSTM": (4, (-1,)),
    "BlockLSTMV2": (4, (-1,)),
}
# Operation -> attributes that transpose its first and its second matrix.
_PRODUCTS = {
    "MatMul": ("transpose_a", "transpose_b"),
    "_FusedMatMul": ("transpose_a", "transpose_b"),
    "SparseMatMul": ("transpose_a", "transpose_b"),
    "BatchMatMul": ("adj_x", "adj_y"),
    "BatchMatMulV2": ("adj_x", "adj_y"),
    "BatchMatMulV3": ("adj_x", "adj_y"),
}
LOOKUPS = ("Gather", "GatherV2", "GatherNd")
# One tensor in, the same values in the same places out.
SAME = frozenset(
    {
        *("Identity", "Snapshot", "StopGradient", "PreventGradient", "CheckNumerics"),
        *("Enter", "RefEnter", "Cast", "EnsureShape"),
        *("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel"),
        *("FakeQuantWithMinMaxArgs", "QuantizeAndDequantizeV2"),
        *("QuantizeAndDequantizeV3", "QuantizeAndDequantizeV4"),
    }
)
_RESHAPES = ("Reshape", "ExpandDims", "Squeeze")
# Parts of a weight, or several in one: the axes aren't followed any further.
_PARTS = {"Split": 1, "SplitV": 0, "Slice": 0, "StridedSlice": 0, "Unpack": 0}
FLOATS = ("float", "double", "half", "bfloat16")


@dataclasses.dataclass(frozen=True)
class View:
    """A constant as an operation sees it.

    Attributes:
        sizes: The shape.
        axes: For each axis the axes of the constant that it consists of; `None` when
            they are not known.
        is_in_order: Whether the elements are still in the constant's order.
    """

    sizes: tuple[int, ...]
    axes: tuple[frozenset[int], ...] | None
    is_in_order: bool = True

    @classmethod
    def of(cls, shape: Iterable[int]) -> View:
        """Returns the constant as it is."""
        sizes = tuple(shape)
        return cls(sizes, tuple(frozenset({axis}) for axis in range(len(sizes))))

    def source_axes(self, axes: Iterable[int]) -> tuple[int, ...] | None:
        """Returns the constant's axes behind some of the view's, in order."""
        if self.axes is None:
            return None
        try:
            found = frozenset().union(*(self.axes[axis] for axis in axes))
        except IndexError:  # The graph would fail there.
            return None
        return tuple(sorted(found))

    def reshaped(self, sizes: tuple[int, ...]) -> View:
        """Returns the view after a Reshape.

        Example:
            >>> View.of((6, 4)).reshaped((2, 3, 4)).axes
            (frozenset({0}), frozenset({0}), frozenset({1}))
        """
        if self.axes is None or int(np.prod(sizes)) != int(np.prod(self.sizes)):
            return dataclasses.replace(self, sizes=sizes, axes=None)
        axes: list[frozenset[int]] = [frozenset()] * len(sizes)
        for new, old in _blocks(sizes, self.sizes):
            merged = frozenset().union(*(self.axes[axis] for axis in old))
            for axis in new:
                axes[axis] = merged
        return dataclasses.replace(self, sizes=sizes, axes=tuple(axes))


def _blocks(
    first: tuple[int, ...], second: tuple[int, ...]
) -> list[tuple[list[int], list[int]]]:
    """Returns the smallest runs of axes that hold equally many elements in both."""
    one = [axis for axis, size in enumerate(first) if size != 1]
    two = [axis for axis, size in enumerate(second) if size != 1]
    blocks = []
    while one and two:
        left, right = [one.pop(0)], [two.pop(0)]
        size = first[left[0]]
        other = second[right[0]]
        while size != other:
            if size < other:
                left.append(one.pop(0))
                size *= first[left[-1]]
            else:
                right.append(two.pop(0))
                other *= second[right[-1]]
        blocks.append((left, right))
    return blocks


def through(body: Body, node: Any, position: int, view: View) -> View | None:
    """Returns what a node makes of a weight; `None` if it isn't a weight any more.

    Args:
        body: Where the node is.
        node: A node that takes the weight.
        position: As which input.
        view: The weight as the node sees it.
    """
    if _PARTS.get(node.op) == position or node.op in ("ConcatV2", "Pack"):
        return dataclasses.replace(view, axes=None, is_in_order=False)
    if position != 0:
        return None
    if node.op in SAME:
        is_float = node.op != "Cast" or output_type(node) in FLOATS
        return view if is_float else None
    if node.op in _RESHAPES:
        sizes = _reshaped_sizes(body, node, view)
        if sizes is None:
            return dataclasses.replace(view, axes=None, is_in_order=False)
        return view.reshaped(sizes)
    if node.op == "Transpose":
        order = _constants.value_of(body, body.input(node, 1))
        if order is None or view.axes is None or order.size != len(view.axes):
            return dataclasses.replace(view, axes=None, is_in_order=False)
        return View(
            tuple(view.sizes[axis] for axis in order),
            tuple(view.axes[axis] for axis in order),
            is_in_order=False,
        )
    return None


def output_type(node: Any) -> str:
    """Returns the name of the type that a Cast makes."""
    return dtypes.name_of(node.attr["DstT"].type)


def _reshaped_sizes(body: Body, node: Any, view: View) -> tuple[int, ...] | None:
    sizes = list(view.sizes)
    if node.op == "Squeeze":
        axes = _ops.get(node, "squeeze_dims") or [
            axis for axis, size in enumerate(sizes) if size == 1
        ]
        drop = {axis % max(len(sizes), 1) for axis in axes}
        return tuple(size for axis, size in enumerate(sizes) if axis not in drop)
    value = _constants.value_of(body, body.input(node, 1))
    if value is None:
        return None
    if node.op == "ExpandDims":
        axis = int(value.reshape(-1)[0])
        sizes.insert(axis % (len(sizes) + 1), 1)
        return tuple(sizes)
    wanted = [int(size) for size in value]
    known = int(np.prod([size for size in wanted if size >= 0], dtype=np.int64))
    rest = int(np.prod(sizes, dtype=np.int64)) // max(known, 1)
    return tuple(rest if size < 0 else size for size in wanted)


def channel_axes(
    body: Body, node: Any, position: int, rank: int
) -> tuple[int, ...] | None:
    """Returns the axes of a weight's output channels as its operation sees them.

    Args:
        body: Where the node is.
        node: The operation.
        position: Input that is the weight.
        rank: The weight's number of axes there.

    Returns:
        Axes, at least 0; `()` where they are not known. `None`: the operation takes
        no weight at this input.
    """
    if node.op in _FILTERS:
        where, axes = _FILTERS[node.op]
        return _positive(axes, rank) if position == where else None
    if node.op in _PRODUCTS:
        if position > 1:
            return None
        is_transposed = bool(_ops.get(node, _PRODUCTS[node.op][position]))
        # The axis that is not summed over: rows of the first, columns of the second.
        axis = -2 if bool(position) == is_transposed else -1
        return _positive((*range(rank - 2), axis), rank)
    if node.op == "SparseTensorDenseMatMul":
        axis = -2 if _ops.get(node, "adjoint_b") else -1
        return _positive((axis,), rank) if position == 3 else None
    if node.op == "GRUBlockCell":
        return _positive((-1,), rank) if position in (2, 3) else None
    if node.op == "Einsum":
        return _einsum_axes(_ops.get(node, "equation").decode(), position, rank)
    if node.op in LOOKUPS and position == 0:
        return lookup_axes(body, node, rank)
    return None


def _positive(axes: Iterable[int], rank: int) -> tuple[int, ...]:
    found = [axis % rank if rank else 0 for axis in axes if -rank <= axis < rank]
    return tuple(dict.fromkeys(found))


def _einsum_axes(equation: str, position: int, rank: int) -> tuple[int, ...]:
    """Returns the axes that the result keeps.

    Example:
        >>> _einsum_axes("abc,cde->abde", 1, 3)
        (1, 2)
    """
    operands, _, result = equation.replace(" ", "").partition("->")
    labels = operands.split(",")[position]
    before, dots, after = labels.partition("...")
    # Letters that name nothing stand for the axes behind the dots.
    hidden = "?" * (rank - len(before) - len(after)) if dots else ""
    return tuple(
        axis for axis, label in enumerate(before + hidden + after) if label in result
    )


def lookup_axes(body: Body, node: Any, rank: int) -> tuple[int, ...]:
    """Returns the axes of a table along which a lookup selects; `()` if not known."""
    if node.op == "Gather":
        return (0,)
    if node.op == "GatherNd":
        depth = _last_size(body, body.input(node, 1))
        return () if depth is None else tuple(range(depth))
    axis = _constants.value_of(body, body.input(node, 2))
    if axis is None:
        return ()
    batch = _ops.get(node, "batch_dims") or 0
    if batch < 0:  # Counted from the end of the indices' shape.
        return ()
    # Each entry of the batch has a table of its own.
    return tuple(dict.fromkeys((*range(batch), *_positive([int(axis)], rank))))


def _last_size(body: Body, tensor: Tensor) -> int | None:
    """Returns the last size of a tensor's shape if the graph says it."""
    node = body.producer(tensor)
    while node is not None and node.op in ("Identity", "Cast"):
        node = body.producer(body.input(node, 0))
    if node is None:
        return None
    if node.op == "Const":
        return int(_constants.to_array(node.attr["value"].tensor).shape[-1])
    shape = _ops.get(node, "shape") if node.op == "Placeholder" else None
    if node.op == "ExpandDims":
        axis = _constants.value_of(body, body.input(node, 1))
        return 1 if axis is not None and int(axis.reshape(-1)[0]) == -1 else None
    return shape[-1] if isinstance(shape, tuple) and shape else None
