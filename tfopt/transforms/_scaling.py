"""Operations that multiply channels by constants, or add constants to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfopt.transforms import _ops
from tfopt.transforms._graph import Body, Tensor
from tfopt.transforms._linear import Place, Unfit, size_at
from tfopt.transforms._values import Values

FUSED = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
BATCH_NORMS = (*FUSED, "BatchNormWithGlobalNormalization")
_BIASES = ("BiasAdd", "BiasAddV1")
_BINARY = ("Add", "AddV2", "Div", "Mul", "RealDiv", "Sub")


@dataclasses.dataclass(frozen=True)
class Step:
    """`y = scale * x + shift`, channel by channel.

    Attributes:
        scale: Factors in double precision: one for all [], or [channels].
        shift: Summands, likewise.
        controls: What the nodes behind its constants wait for.
        data: Position of `x` among the node's inputs.
        is_scale: Whether it multiplies at all.
    """

    scale: np.ndarray
    shift: np.ndarray
    controls: frozenset[str]
    data: int = 0
    is_scale: bool = True

    @property
    def size(self) -> int | None:
        """How many channels its constants are for; `None` for any number."""
        sizes = [len(part) for part in (self.scale, self.shift) if part.ndim]
        return sizes[0] if sizes else None


def step_of(body: Body, node: Any, place: Place | None, values: Values) -> Step | None:
    """Returns what a node does to channels; `None` if it isn't of this kind.

    Args:
        body: The body it is in.
        node: The node.
        place: Where the channels are in its data.
        values: The body's constants.

    Raises:
        Unfit: It is of this kind, but not with constants for these channels.
    """
    if node.op in BATCH_NORMS:
        step = batch_norm_step(body, node, values)
        if place is not None and _batch_norm_place(node) != place:
            raise Unfit("its channels are not those of the linear operation")
        return step
    if place is None:
        return None
    if node.op in _BIASES:
        known = values.get(body.input(node, 1))
        if known is None or not _fits_bias(node, place):
            return None
        bias = known.value.astype(np.float64)
        return Step(np.float64(1), bias, known.controls, is_scale=False)
    return _binary_step(body, node, place, values) if node.op in _BINARY else None


def batch_norm_step(body: Body, node: Any, values: Values) -> Step:
    """Returns what a batch normalization with constant statistics does.

    `y = (x - mean) / sqrt(variance + epsilon) * scale + offset`, as in
    `tensorflow/core/kernels/fused_batch_norm_op.cc` for inference.

    Raises:
        Unfit: It is in training mode, or its parameters are not constant.
    """
    fused = node.op in FUSED
    if fused and _ops.get(node, "is_training") is not False:
        raise Unfit("it is in training mode")
    found = [values.get(tensor) for tensor in body.inputs(node)[1:5]]
    known = [item for item in found if item is not None]
    if len(known) < 4:
        raise Unfit("its parameters are not constant")
    parts = [item.value.astype(np.float64).reshape(-1) for item in known]
    if len({len(part) for part in parts}) > 1:
        raise Unfit("its parameters differ in size")
    gamma, beta, mean, variance = parts
    epsilon = _ops.get(node, "epsilon")
    if not fused:
        mean, variance, beta, gamma = parts
        epsilon = _ops.get(node, "variance_epsilon")
        if not _ops.get(node, "scale_after_normalization"):
            gamma = np.ones_like(gamma)
    if fused and any(body.uses(Tensor(node.name, k)) for k in range(1, 6)):
        raise Unfit("its statistics are used as well")
    if epsilon is None:
        epsilon = 1e-4
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(variance + epsilon)
        shift = beta - mean * scale
    controls = frozenset().union(*(item.controls for item in known))
    return Step(scale, shift, controls)


def _batch_norm_place(node: Any) -> Place:
    written = (_ops.get(node, "data_format") or b"NHWC").decode()
    return Place(written.index("C"), len(written))


def _fits_bias(node: Any, place: Place) -> bool:
    if _ops.get(node, "data_format") == b"NCHW":
        return place.rank is not None and place.rank > 2 and place.axis == 1
    return place.is_last


def _binary_step(body: Body, node: Any, place: Place, values: Values) -> Step | None:
    tensors = body.inputs(node)
    found = [values.get(tensor) for tensor in tensors]
    if (found[0] is None) == (found[1] is None):
        return None
    data = 0 if found[0] is None else 1
    known = found[1 - data]
    vector = None if known is None else channel_vector(known.value, place)
    if known is None or vector is None:
        return None
    one, none = np.float64(1), np.float64(0)
    if node.op in ("Add", "AddV2"):
        return Step(one, vector, known.controls, data, is_scale=False)
    if node.op == "Sub" and data == 0:
        return Step(one, -vector, known.controls, data, is_scale=False)
    if node.op == "Sub":
        return Step(-one, vector, known.controls, data)
    if node.op == "Mul":
        return Step(vector, none, known.controls, data)
    if data == 1 or not np.all(vector):
        return None
    return Step(1 / vector, none, known.controls, data)


def channel_vector(value: np.ndarray, place: Place) -> np.ndarray | None:
    """Returns a constant as [channels], or [] if there is one number for all.

    `None` if it varies along another axis, or has more axes than the data.
    """
    if value.dtype.kind != "f" or value.ndim > (place.rank or 2):
        return None
    wide = value.astype(np.float64)
    if wide.size == 1:
        return wide.reshape(())
    from_end = place.axis - (place.rank or 0)
    if wide.ndim < -from_end or wide.shape[from_end] != wide.size:
        return None
    return wide.reshape(-1)


def as_constant(vector: np.ndarray, place: Place) -> np.ndarray:
    """Returns [channels] in a shape that is broadcast along the channels' axis."""
    if not vector.ndim:
        return vector
    behind = (place.rank or 0) - 1 - place.axis
    return vector.reshape(-1, *([1] * behind))


def moved(
    body: Body, node: Any, position: int, place: Place, channels: int, values: Values
) -> Place | None:
    """Returns where channels are behind a node that only passes numbers on.

    Args:
        body: The body it is in.
        node: The node.
        position: Which of its inputs the data are.
        place: Where the channels are in the data.
        channels: How many there are.
        values: The body's constants.
    """
    if position != 0:
        return None
    if node.op in ("Identity", "Snapshot"):
        return place
    if node.op == "Reshape":
        return _reshaped(body, node, place, channels, values)
    if node.op in _MOVES and place.rank is not None:
        return _MOVES[node.op](body, node, place, values)
    return None


def _reshaped(
    body: Body, node: Any, place: Place, channels: int, values: Values
) -> Place | None:
    # Rows of channels stay rows of channels.
    shape = body.input(node, 1)
    if not place.is_last or size_at(body, shape, -1, values) != channels:
        return None
    source = body.producer(shape)
    known = values.integers(shape)
    if known is not None:
        rank = len(known)
    elif source is not None and source.op == "Pack":
        rank = len(body.inputs(source))
    else:
        return Place(-1, None)
    return Place(rank - 1, rank) if rank > 1 else None


def _squeezed(body: Body, node: Any, place: Place, values: Values) -> Place | None:
    rank = place.rank or 0
    axes = [axis % rank for axis in _ops.get(node, "squeeze_dims") or ()]
    if not axes or place.axis in axes or rank - len(axes) < 2:
        return None
    before = sum(axis < place.axis for axis in axes)
    return Place(place.axis - before, rank - len(axes))


def _expanded(body: Body, node: Any, place: Place, values: Values) -> Place | None:
    axes = values.integers(body.input(node, 1))
    rank = (place.rank or 0) + 1
    if not axes:
        return None
    return Place(place.axis + (axes[0] % rank <= place.axis), rank)


def _transposed(body: Body, node: Any, place: Place, values: Values) -> Place | None:
    order = values.integers(body.input(node, 1))
    if not order or len(order) != place.rank:
        return None
    return Place(order.index(place.axis), place.rank)


Move = Callable[[Body, Any, Place, Values], "Place | None"]
_MOVES: dict[str, Move] = {
    "ExpandDims": _expanded,
    "Squeeze": _squeezed,
    "Transpose": _transposed,
}


def compose(steps: Sequence[Step]) -> tuple[np.ndarray, np.ndarray]:
    """Returns scale and shift of steps taken one after the other."""
    scale, shift = np.float64(1), np.float64(0)
    for step in steps:
        scale, shift = scale * step.scale, shift * step.scale + step.shift
    return np.asarray(scale), np.asarray(shift)
