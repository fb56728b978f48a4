"""Rules for layers with weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from tfopt._keras.flatten import Call, LayerSpec
from tfopt.surgery import _constants
from tfopt.surgery._common import (
    channel_axis,
    check_elementwise,
    expect_weights,
    layout_of,
    single,
)
from tfopt.surgery._constants import Constants
from tfopt.surgery._structure import (
    Contraction,
    Layout,
    Reason,
    Refusal,
    Structure,
    weight_index,
)

# Layers that sum over channels and make others.


def dense(structure: Structure, call: Call) -> None:
    value = single(call)
    axis = len(value.shape or ()) - 1
    expect_weights(call, "kernel", "bias")
    _contract(structure, call, axis, "units", in_axis=0, out_axis=1)


def convolution(structure: Structure, call: Call) -> None:
    spec = call.layer
    single(call)
    expect_weights(call, "kernel", "bias")
    if (spec.config.get("groups") or 1) > 1:
        _grouped_convolution(structure, call)
        return
    rank = len((spec.weights or [])[0].shape)
    out_axis, in_axis = rank - 1, rank - 2
    if spec.kind.endswith("Transpose"):
        out_axis, in_axis = in_axis, out_axis
    _contract(structure, call, channel_axis(call), "filters", in_axis, out_axis)


def _contract(
    structure: Structure,
    call: Call,
    axis: int,
    key: str,
    in_axis: int,
    out_axis: int,
) -> None:
    spec, value = call.layer, single(call)
    kernel = weight_index(spec, "kernel")
    inputs = structure.channels(value, axis)
    structure.bind(spec, kernel, in_axis, inputs, "in")
    made = structure.made_by(spec, kernel, out_axis)
    structure.contractions.append(Contraction(call, value, inputs, made))
    _make(structure, call, axis, key, made)


def _make(
    structure: Structure, call: Call, axis: int, key: str, made: np.ndarray
) -> None:
    """Ends the rule of a layer that makes channels by summing over others."""
    spec, value = call.layer, single(call)
    _bind_bias(structure, spec, made, "out")
    structure.count(spec, key, made)
    structure.layouts[call.output] = Layout(axis, made)
    activation = _activation(structure, call, made)

    def transfer(constants: Constants) -> np.ndarray:
        layer = _constants.taps(spec, constants.weights(spec))
        sums = _constants.contracted(constants.along(value, axis), layer)
        return activation(sums)

    structure.transfers[call] = transfer


def separable(structure: Structure, call: Call) -> None:
    spec, value, axis = call.layer, single(call), channel_axis(call)
    expect_weights(call, "depthwise_kernel", "pointwise_kernel", "bias")
    depthwise = weight_index(spec, "depthwise_kernel")
    pointwise = weight_index(spec, "pointwise_kernel")
    rank = len((spec.weights or [])[depthwise].shape)
    multiplier = (spec.weights or [])[depthwise].shape[-1]
    inputs = structure.channels(value, axis)
    structure.bind(spec, depthwise, rank - 2, inputs, "in")
    spread = np.repeat(inputs, multiplier)
    structure.bind(spec, pointwise, rank - 2, spread, "in")
    made = structure.made_by(spec, pointwise, rank - 1)
    structure.contractions.append(Contraction(call, value, inputs, made))
    _make(structure, call, axis, "filters", made)


def _grouped_convolution(structure: Structure, call: Call) -> None:
    """Only whole groups can go: with all channels that they read and make."""
    spec, value, axis = call.layer, single(call), channel_axis(call)
    kernel = weight_index(spec, "kernel")
    inputs = structure.channels(value, axis)
    groups = spec.config["groups"]
    made = structure.made_by(spec, kernel, len((spec.weights or [])[kernel].shape) - 1)
    for read, written in zip(
        np.split(inputs, groups), np.split(made, groups), strict=True
    ):
        both = np.concatenate([read, written])
        structure.unite(both[:-1], both[1:])
    structure.count(spec, "groups", made, divisor=len(made) // groups)
    _make(structure, call, axis, "filters", made)


def embedding(structure: Structure, call: Call) -> None:
    spec = call.layer
    expect_weights(call, "embeddings")
    made = structure.made_by(spec, 0, 1)
    structure.count(spec, "output_dim", made)
    structure.layouts[call.output] = Layout(len(call.output.shape or ()) - 1, made)

    def transfer(constants: Constants) -> np.ndarray:
        table = constants.weights(spec)["embeddings"]
        return np.where((table == table[:1]).all(axis=0), table[0], np.nan)

    structure.transfers[call] = transfer


# Layers that keep channels apart, with weights for each.


def depthwise(structure: Structure, call: Call) -> None:
    spec, value, axis = call.layer, single(call), channel_axis(call)
    expect_weights(call, "kernel", "depthwise_kernel", "bias")
    kernel = weight_index(spec, "kernel", "depthwise_kernel")
    *positions, _, multiplier = (spec.weights or [])[kernel].shape
    inputs = structure.channels(value, axis)
    structure.bind(spec, kernel, len(positions), inputs, "through")
    made = np.repeat(inputs, multiplier)
    _bind_bias(structure, spec, made, "through")
    structure.layouts[call.output] = Layout(axis, made)
    activation = _activation(structure, call, made)

    def transfer(constants: Constants) -> np.ndarray:
        weights = constants.weights(spec)
        sums, used = _constants.over_positions(constants_kernel(weights))
        given = constants.along(value, axis)[:, None]
        padded = (given != 0) & (not _constants.is_uniform(spec))
        varying = used & (np.isnan(given) | padded)
        result = np.where(varying, np.nan, np.nan_to_num(given) * sums).reshape(-1)
        return activation(result + weights.get("bias", 0.0))

    def constants_kernel(weights: dict[str, np.ndarray]) -> np.ndarray:
        return weights[spec.weight_names[kernel]]

    structure.transfers[call] = transfer


def batch_normalization(structure: Structure, call: Call) -> None:
    spec, value = call.layer, single(call)
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    expect_weights(call, *names)
    axes = spec.config["axis"]
    axes = [axes] if isinstance(axes, int) else list(axes)
    if len(axes) != 1:
        raise Refusal("normalizes over several axes")
    axis = axes[0] % len(value.shape or ())
    atoms = structure.channels(value, axis)
    for index in range(len(spec.weights or [])):
        structure.bind(spec, index, 0, atoms, "through")
    structure.layouts[call.output] = Layout(axis, atoms)

    def transfer(constants: Constants) -> np.ndarray:
        weights = {
            name: array.astype(np.float64)
            for name, array in constants.weights(spec).items()
        }
        scale = weights.get("gamma", 1.0) / np.sqrt(
            weights["moving_variance"] + spec.config["epsilon"]
        )
        centred = constants.along(value, axis) - weights["moving_mean"]
        # A channel that is scaled by zero is constant whatever comes in.
        scaled = np.where(scale == 0, 0.0, centred * scale)
        return scaled + weights.get("beta", 0.0)

    structure.transfers[call] = transfer


def prelu(structure: Structure, call: Call) -> None:
    spec, value = call.layer, single(call)
    layout = layout_of(structure, value)
    axis = layout.axis - 1  # of alpha, which has no batch axis
    if (spec.weights or [])[0].shape[axis] == len(layout.atoms):
        structure.bind(spec, 0, axis, layout.atoms, "through")
    structure.layouts[call.output] = layout

    def transfer(constants: Constants) -> np.ndarray:
        given = constants.of(value)
        alpha = np.moveaxis(constants.weights(spec)["alpha"], axis, 0)
        alpha = np.broadcast_to(alpha, (len(given), *alpha.shape[1:]))
        alpha = alpha.reshape(len(given), -1)
        same = (alpha == alpha[:, :1]).all(axis=1)
        negative = np.where(same, alpha[:, 0], np.nan) * given
        return np.where(given < 0, negative, given)

    structure.transfers[call] = transfer


def _bind_bias(
    structure: Structure,
    spec: LayerSpec,
    made: np.ndarray,
    role: Literal["out", "through"],
) -> None:
    if "bias" in spec.weight_names:
        structure.bind(spec, weight_index(spec, "bias"), 0, made, role)


def _activation(
    structure: Structure, call: Call, made: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what a layer's own activation function makes of constants.

    Channels that the function mixes stay.
    """
    keras, activation = structure.graph.keras, call.layer.config["activation"]
    try:
        check_elementwise(structure, call)
    except Refusal as refusal:
        text = f"{call.layer.path!r} {refusal}"
        structure.freeze(made, Reason(text, refused=True))
        return lambda sums: np.full_like(sums, np.nan)
    return lambda sums: _constants.activated(keras, activation, sums)
