"""Convolutions and matrix products with constant weights: where their channels are.

The weights' layouts are those of TensorFlow's operation definitions
(`tensorflow/core/api_def/base_api/api_def_Conv2D.pbtxt` and its siblings).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from tfopt.savedmodel import dtypes
from tfopt.transforms import _ops
from tfopt.transforms._graph import Body, Tensor
from tfopt.transforms._values import Values

# How far results may be off, as a part of their magnitude, where sums are taken in
# another order. A float32 network of 50 layers is itself about 1e-5 off its results in
# float64; a softmax at its end multiplies that by the size of the logits.
ROUNDING = 1e-4

FLOATS = (dtypes.FLOAT, 2)  # float32, float64


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the channels are in a tensor.

    Attributes:
        axis: Their axis; -1 if the rank isn't known.
        rank: Number of axes, `None` if it isn't known (then at least 2).
    """

    axis: int
    rank: int | None

    @property
    def is_last(self) -> bool:
        """Whether the channels are the last axis."""
        return self.axis == (-1 if self.rank is None else self.rank - 1)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an operation takes its data and its weights.

    Attributes:
        data: Position of the data input.
        weights: Position of the weights.
        rank: Number of axes of the output, `None` if it varies.
        padded: Whether it pads as its attribute `padding` says.
        is_transposed: Whether it spreads inputs over the output (a transposed
            convolution): weights are [..., outputs, inputs].
    """

    data: int
    weights: int
    rank: int | None
    padded: bool = True
    is_transposed: bool = False


LAYOUTS = {
    "BatchMatMul": Layout(0, 1, None, padded=False),
    "BatchMatMulV2": Layout(0, 1, None, padded=False),
    "BatchMatMulV3": Layout(0, 1, None, padded=False),
    "Conv2D": Layout(0, 1, 4),
    "Conv2DBackpropInput": Layout(2, 1, 4, is_transposed=True),
    "Conv3D": Layout(0, 1, 5),
    "Conv3DBackpropInputV2": Layout(2, 1, 5, is_transposed=True),
    "DepthwiseConv2dNative": Layout(0, 1, 4),
    "MatMul": Layout(0, 1, 2, padded=False),
}


class Unfit(Exception):
    """Says why a linear operation cannot take up a scale or shift."""


class Linear:
    """A linear operation whose weights are constant.

    Args:
        body: The body it is in.
        node: Its node, of an operation in `LAYOUTS`.
        values: The body's constants.

    Attributes:
        weights: The weights, in double precision.
        dtype: Their DataType number.
        controls: What the nodes behind the weights wait for.
        place: Where the output's channels are.
        channels: How many there are.

    Raises:
        Unfit: It isn't one, or not in a form that is understood.
    """

    def __init__(self, body: Body, node: Any, values: Values):
        self.node = node
        self.layout = LAYOUTS[node.op]
        self.dtype = _ops.get(node, "T")
        if self.dtype not in FLOATS:
            raise Unfit("neither float32 nor float64: rounded weights would tell")
        known = values.get(body.input(node, self.layout.weights), arithmetic=False)
        if known is None:
            raise Unfit("its linear operation's weights are not constant")
        self.controls = known.controls
        self.weights = known.value.astype(np.float64)
        if self.weights.ndim != (self.layout.rank or self.weights.ndim):
            raise Unfit("its linear operation's weights have an unusual shape")
        self.place = _output_place(node, self.layout)
        self._flipped = bool(
            _ops.get(node, "transpose_b" if node.op == "MatMul" else "adj_y")
        )
        self.channels = self._count_channels(body, values)

    @property
    def data(self) -> int:
        """Position of the data input."""
        return self.layout.data

    @property
    def input_place(self) -> Place | None:
        """Where the data's channels are; `None` if not along one axis of it."""
        turned = "transpose_a" if self.node.op == "MatMul" else "adj_x"
        if not self.layout.padded and _ops.get(self.node, turned):
            return None
        return self.place

    @property
    def is_padded(self) -> bool:
        """Whether zeros meet the weights beside the data."""
        if not self.layout.padded:
            return False
        if self.layout.is_transposed:
            return True
        padding = _ops.get(self.node, "padding")
        if padding == b"EXPLICIT":
            return any(_ops.get(self.node, "explicit_paddings") or [1])
        spatial = self.weights.shape[:-2]
        return padding != b"VALID" and any(size != 1 for size in spatial)

    @property
    def input_channels(self) -> int | None:
        """How many channels the data has; `None` if there may be groups of them."""
        if self.node.op == "Conv2D":
            return None
        return self.weights.shape[self._input_axis]

    def check_inputs(self, size: int | None) -> None:
        """Checks that constants for `size` channels fit the data.

        Raises:
            Unfit: They don't.
        """
        if size is not None:
            fitting = self._per_input(np.ones(size)).shape
            np.broadcast_shapes(fitting, self.weights.shape)

    def scale_outputs(self, scale: np.ndarray) -> None:
        """Multiplies the output's channels: `scale` has shape [channels] or []."""
        if scale.ndim:
            if self.node.op == "DepthwiseConv2dNative":
                scale = scale.reshape(self.weights.shape[-2:])
            else:
                scale = self._along(scale, self._output_axis)
        self.weights = self.weights * scale

    def scale_inputs(self, scale: np.ndarray) -> None:
        """Multiplies the data's channels: `scale` has shape [channels] or []."""
        self.weights = self.weights * self._per_input(scale)

    def shift_inputs(self, shift: np.ndarray) -> np.ndarray:
        """Returns what a shift of the data's channels adds to each output channel."""
        product = self.weights * self._per_input(shift)
        if self.node.op == "DepthwiseConv2dNative":
            return product.sum((0, 1)).reshape(-1)
        kept = self._output_axis % product.ndim
        return product.sum(tuple(a for a in range(product.ndim) if a != kept))

    @property
    def can_shift_inputs(self) -> bool:
        """Whether a shift of the data is the same shift of all output positions."""
        is_batched = self.layout.rank is None and self.weights.ndim > 2
        return not self.is_padded and not is_batched

    @property
    def _output_axis(self) -> int:
        return -2 if self._flipped or self.layout.is_transposed else -1

    @property
    def _input_axis(self) -> int:
        return -1 if self._flipped or self.layout.is_transposed else -2

    def _along(self, vector: np.ndarray, axis: int) -> np.ndarray:
        shape = [1] * self.weights.ndim
        shape[axis] = len(vector)
        return vector.reshape(shape)

    def _per_input(self, vector: np.ndarray) -> np.ndarray:
        if not vector.ndim:
            return vector
        if self.node.op != "Conv2D":
            return self._along(vector, self._input_axis)
        # A group of output channels sees a group of input channels.
        inputs, outputs = self.weights.shape[-2:]
        groups = len(vector) // inputs
        if groups * inputs != len(vector) or outputs % groups:
            raise Unfit("its size does not fit the weights")
        seen = np.repeat(vector.reshape(groups, inputs), outputs // groups, axis=0)
        return seen.T

    def _count_channels(self, body: Body, values: Values) -> int:
        shape = self.weights.shape
        if self.node.op == "DepthwiseConv2dNative":
            return math.prod(shape[-2:])
        if self.layout.is_transposed:
            index = -1 if self.place.is_last else 1
            if size_at(body, body.input(self.node, 0), index, values) != shape[-2]:
                raise Unfit("its linear operation's number of channels isn't known")
        return shape[self._output_axis]


def _output_place(node: Any, layout: Layout) -> Place:
    if not layout.padded:
        return Place(-1 if layout.rank is None else 1, layout.rank)
    rank = layout.rank or 4
    written = _ops.get(node, "data_format") or b"N-C"
    if written.endswith(b"C"):
        return Place(rank - 1, rank)
    if written in (b"NCHW", b"NCDHW"):
        return Place(1, rank)
    raise Unfit(f"its linear operation's data format is {written.decode()}")


def size_at(body: Body, shape: Tensor, index: int, values: Values) -> int | None:
    """Returns an element (-1: the last) of a tensor that is a shape, if known."""
    known = values.integers(shape)
    if known is not None:
        return known[index] if len(known) > max(index, 0) else None
    node = body.producer(shape)
    if node is None:
        return None
    inputs = body.inputs(node)
    if node.op == "Pack" and len(inputs) > max(index, 0):
        found = values.integers(inputs[index])
        return found[0] if found else None
    if node.op == "ConcatV2" and index == -1:
        return size_at(body, inputs[-2], index, values)
    if node.op == "Identity":
        return size_at(body, inputs[0], index, values)
    return None
