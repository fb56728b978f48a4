"""Rules for layers without weights: they keep, move or combine channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfopt._keras import operations
from tfopt._keras.flatten import Call, Value
from tfopt.surgery._common import (
    channel_axis,
    check_elementwise,
    layout_of,
    single,
)
from tfopt.surgery._constants import Constants
from tfopt.surgery._structure import Layout, Reason, Refusal, Structure

# Layers that keep channels apart, without weights.


def elementwise(structure: Structure, call: Call) -> None:
    structure.layouts[call.output] = layout_of(structure, single(call))
    structure.transfers[call] = lambda constants: constants.elementwise(call)


def activation_layer(structure: Structure, call: Call) -> None:
    check_elementwise(structure, call)
    elementwise(structure, call)


def dropout(structure: Structure, call: Call) -> None:
    # A shape of None and 1 says where noise is shared, others how many channels.
    if not set(call.layer.config.get("noise_shape") or ()) <= {None, 1}:
        raise Refusal("has a noise_shape with sizes")
    elementwise(structure, call)


def rescaling(structure: Structure, call: Call) -> None:
    if np.ndim(call.layer.config["scale"]) or np.ndim(call.layer.config["offset"]):
        raise Refusal("scales each channel by itself")
    elementwise(structure, call)


def normalization(structure: Structure, call: Call) -> None:
    """Its statistics are in its configuration; at home right behind inputs."""
    layout = layout_of(structure, single(call))
    text = f"{call.layer.path!r} normalizes each channel by itself"
    structure.freeze(layout.atoms, Reason(text, refused=True))
    structure.layouts[call.output] = layout


def spatial(structure: Structure, call: Call) -> None:
    """Pooling, cropping, upsampling: constants stay what they are."""
    value, axis = single(call), channel_axis(call)
    structure.layouts[call.output] = Layout(axis, structure.channels(value, axis))
    structure.transfers[call] = lambda constants: constants.along(value, axis)


def zero_padding(structure: Structure, call: Call) -> None:
    value, axis = single(call), channel_axis(call)
    structure.layouts[call.output] = Layout(axis, structure.channels(value, axis))
    structure.transfers[call] = lambda constants: np.where(
        constants.along(value, axis) == 0, 0.0, np.nan
    )


def global_pooling(structure: Structure, call: Call) -> None:
    value, axis = single(call), channel_axis(call)
    atoms = structure.channels(value, axis)
    kept = axis if call.layer.config.get("keepdims") else 1
    structure.layouts[call.output] = Layout(kept, atoms)
    structure.transfers[call] = lambda constants: constants.along(value, axis)


def reduction(structure: Structure, call: Call) -> None:
    """The operations mean and maximum over axes that are not channels."""
    value = single(call)
    layout = layout_of(structure, value)
    axes = operations.bound(call).get("axis")
    if axes is None:
        raise Refusal("reduces over all axes")
    rank = len(value.shape or ())
    reduced = {axis % rank for axis in np.atleast_1d(axes).tolist()}
    if layout.axis in reduced or 0 in reduced:
        raise Refusal("reduces over the channels or the batch")
    dropped = 0
    if len(call.output.shape or ()) != rank:
        dropped = sum(axis < layout.axis for axis in reduced)
    structure.layouts[call.output] = Layout(layout.axis - dropped, layout.atoms)
    structure.transfers[call] = lambda constants: constants.of(value)


# Layers that move channels.


def flatten(structure: Structure, call: Call) -> None:
    value = single(call)
    if call.layer.config.get("data_format") == "channels_first" and (
        len(value.shape or ()) > 2
    ):
        raise Refusal("flattens with data_format='channels_first'")
    _rearrange(structure, call)


def reshape(structure: Structure, call: Call) -> None:
    _rearrange(structure, call)
    layout, spec = structure.layouts[call.output], call.layer
    if spec.config["target_shape"][layout.axis - 1] != -1:
        index = layout.axis - 1
        structure.count(spec, "target_shape", layout.atoms, index=index)


def _rearrange(structure: Structure, call: Call) -> None:
    """Follows channels into another shape of the same values in the same order."""
    value = single(call)
    layout = layout_of(structure, value)
    old: Any = (value.shape or ())[1:]
    new: Any = (call.output.shape or ())[1:]
    if layout.axis == len(old) and new and new[-1] == old[-1]:
        structure.layouts[call.output] = Layout(len(new), layout.atoms)
        structure.transfers[call] = lambda constants: constants.of(value)
        return
    if None in old or None in new or not new:
        raise Refusal("changes a shape with free sizes")

    def spread(entries: np.ndarray) -> np.ndarray:
        """Entries by channel, as [others, new channels]."""
        shape = [1] * len(old)
        shape[layout.axis - 1] = len(entries)
        full = np.broadcast_to(entries.reshape(shape), old).reshape(new)
        return np.moveaxis(full, axis, -1).reshape(-1, full.shape[axis])

    # If the channels end up on one axis alone, that is it. Otherwise those that share
    # a place on the last axis have to go together.
    for axis in reversed(range(len(new))):
        rows = spread(layout.atoms)
        if new[axis] > 1 and (rows == rows[0]).all():
            break
    else:
        axis = len(new) - 1
        rows = spread(layout.atoms)
    if not (rows == rows[0]).all():
        for row in rows[1:]:
            structure.unite(rows[0], row)
    structure.layouts[call.output] = Layout(axis + 1, rows[0])

    def transfer(constants: Constants) -> np.ndarray:
        given = spread(constants.of(value))
        return np.where((given == given[0]).all(axis=0), given[0], np.nan)

    structure.transfers[call] = transfer


def permute(structure: Structure, call: Call) -> None:
    value = single(call)
    layout = layout_of(structure, value)
    axis = list(call.layer.config["dims"]).index(layout.axis) + 1
    structure.layouts[call.output] = Layout(axis, layout.atoms)
    structure.transfers[call] = lambda constants: constants.of(value)


def repeat_vector(structure: Structure, call: Call) -> None:
    value = single(call)
    structure.layouts[call.output] = Layout(2, structure.channels(value, 1))
    structure.transfers[call] = lambda constants: constants.along(value, 1)


# Layers that bring several values together.


def arithmetic(structure: Structure, call: Call) -> None:
    """Sums, products, extrema and the like, with broadcasting."""
    shape = call.output.shape
    _check_operands(call)
    if shape is None:
        raise Refusal("makes a tensor of free rank")
    full, layouts = [], []
    for value in call.inputs:
        layout = structure.layouts.get(value)
        if layout is None:
            continue
        place = layout.axis - len(value.shape or ())  # counted from the right
        if shape[place] == len(layout.atoms):
            full.append(value)
            layouts.append(layout)
        else:
            reason = Reason(f"{call.layer.path!r} broadcasts it", refused=True)
            structure.freeze(layout.atoms, reason)
    places = {
        layout.axis - len(value.shape or ())
        for value, layout in zip(full, layouts, strict=True)
    }
    if len(places) != 1:
        raise Refusal("combines channels of several axes")
    (place,) = places
    others = [value for value in call.inputs if value not in full]
    for value in others:
        if len(value.shape or ()) >= -place and (value.shape or ())[place] != 1:
            raise Refusal("combines channels with a value that has none")
    for layout in layouts[1:]:
        structure.unite(layouts[0].atoms, layout.atoms)
    structure.layouts[call.output] = Layout(len(shape) + place, layouts[0].atoms)
    is_product = (operations.canonical_kind(call.layer) or call.layer.kind) in (
        "mul",
        "Multiply",
    )

    def transfer(constants: Constants) -> np.ndarray:
        given = np.stack([constants.of(value) for value in full])
        if others:
            result = np.full(given.shape[1], np.nan)
        else:
            result = constants.elementwise(call)
        return np.where((given == 0).any(axis=0), 0.0, result) if is_product else result

    structure.transfers[call] = transfer


def _check_operands(call: Call) -> None:
    """Raises unless operations take tensors of one rank, and otherwise scalars."""
    kind = operations.canonical_kind(call.layer)
    if kind is None:
        return
    if len({len(value.shape or ()) for value in call.inputs}) != 1:
        raise Refusal("combines tensors of several ranks")
    operands = list(operations.bound(call).values())
    if any(not isinstance(x, Value) and np.size(x) > 1 for x in _leaves(operands)):
        raise Refusal("combines channels with a constant tensor")
    if kind == "div" and (len(call.inputs) != 1 or not isinstance(operands[0], Value)):
        raise Refusal("divides by channels")


def concatenate(structure: Structure, call: Call) -> None:
    rank = len(call.output.shape or ())
    joined = _axis(call) % rank
    values = call.inputs
    layouts = [structure.layouts.get(value) for value in values]
    if any(layout is not None and layout.axis != joined for layout in layouts):
        _join_positions(structure, call, layouts)
        return
    atoms = [structure.channels(value, joined) for value in values]
    structure.layouts[call.output] = Layout(joined, np.concatenate(atoms))
    structure.transfers[call] = lambda constants: np.concatenate(
        [constants.along(value, joined) for value in values]
    )


def _axis(call: Call) -> int:
    if operations.is_operation(call.layer):
        return int(operations.bound(call)["axis"])
    return call.layer.config.get("axis", -1)


def _join_positions(
    structure: Structure, call: Call, layouts: list[Layout | None]
) -> None:
    first = layouts[0]
    if first is None or any(x is None or x.axis != first.axis for x in layouts):
        raise Refusal("joins values along positions whose channels do not match")
    for layout in layouts:
        structure.unite(first.atoms, (layout or first).atoms)
    structure.layouts[call.output] = first

    def transfer(constants: Constants) -> np.ndarray:
        given = np.stack([constants.of(value) for value in call.inputs])
        return np.where((given == given[0]).all(axis=0), given[0], np.nan)

    structure.transfers[call] = transfer


def _leaves(thing: Any) -> list[Any]:
    if isinstance(thing, list | tuple):
        return [leaf for item in thing for leaf in _leaves(item)]
    return [thing]
