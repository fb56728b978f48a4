"""What each kind of layer does with channels: one short rule per kind.

A rule ties atoms together, says which weights and configuration entries shrink, and how
constant channels pass. Whatever has no rule keeps all its channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras.flatten import Call, Graph, LayerSpec, Value
from tfopt.surgery import _constants
from tfopt.surgery._constants import Constants
from tfopt.surgery._structure import (
    Contraction,
    Layout,
    Reason,
    Refusal,
    Structure,
    weight_index,
)

Rule = Callable[[Structure, Call], None]

_INPUT = Reason("an input of the model", refused=False)
_OUTPUT = Reason("an output of the model", refused=False)

# Activation functions that compute each value from itself alone.
_ELEMENTWISE = frozenset(
    {
        *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu"),
        *("silu", "swish", "sigmoid", "hard_sigmoid", "hard_silu", "hard_swish"),
        *("tanh", "hard_tanh", "tanh_shrink", "softplus", "softsign", "mish"),
        *("exponential", "log_sigmoid", "squareplus", "sparse_plus"),
        *("sparse_sigmoid", "soft_shrink", "hard_shrink", "threshold"),
    }
)
# Functions of keras.ops (Keras 3) and of TensorFlow (tf_keras), which a model holds
# where it was written with operators instead of layers.
_UNARY_FUNCTIONS = frozenset(
    {
        *("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Silu"),
        *("Sigmoid", "HardSigmoid", "HardSilu", "HardTanh", "Tanh", "Softplus"),
        *("Softsign", "Mish", "Exp", "Absolute", "Abs", "Square", "Negative", "Clip"),
        *("LogSigmoid", "Identity", "Sqrt"),
        *("nn.relu", "nn.relu6", "nn.leaky_relu", "nn.elu", "nn.selu", "nn.gelu"),
        *("nn.silu", "math.sigmoid", "math.tanh", "math.softplus", "math.exp"),
        *("math.abs", "math.square", "math.negative", "math.sqrt", "clip_by_value"),
        *("identity", "__operators__.neg", "__operators__.abs"),
    }
)
_BINARY_FUNCTIONS = frozenset(
    {
        *("Add", "Subtract", "Maximum", "Minimum"),
        *("math.add", "math.subtract", "math.maximum", "math.minimum"),
        *("__operators__.add", "__operators__.sub"),
    }
)
_PRODUCTS = frozenset({"Multiply", "math.multiply", "__operators__.mul"})
_QUOTIENTS = frozenset(
    {"Divide", "TrueDivide", "math.divide", "math.truediv", "__operators__.truediv"}
)
_MEANS = frozenset({"Mean", "Max", "Min", "math.reduce_mean", "math.reduce_max"})


def analyse(graph: Graph) -> Structure:
    """Returns what may be cut in a flat graph, and what only together."""
    structure = Structure(graph)
    for _, value in graph.input_specs:
        structure.put_frozen(value, _INPUT)
    for call in graph.calls:
        try:
            if call.layer in structure.refused:
                raise Refusal(structure.refused[call.layer])
            _rule_of(call)(structure, call)
        except Refusal as refusal:
            structure.refuse(call, str(refusal))
    for value in tf.nest.flatten(graph.outputs):
        if value in structure.layouts:
            structure.freeze(structure.layouts[value].atoms, _OUTPUT)
    return structure


def _rule_of(call: Call) -> Rule:
    spec = call.layer
    if call.kwargs.get("training") is True:
        raise Refusal("is called with training=True")
    if len(call.outputs) != 1:
        raise Refusal("returns several tensors")
    if spec.weights is None or spec.kind == "TFOpLambda":
        return _function_rule(spec)
    if spec.kind not in _RULES:
        raise Refusal(
            f"is a {spec.kind} layer, which has no rule"
            if spec.kind
            else f"is a layer of its own class, {spec.cls.__name__}"
        )
    return _RULES[spec.kind]


def _function_rule(spec: LayerSpec) -> Rule:
    name = spec.kind if spec.weights is None else spec.config.get("function", "")
    if name in _UNARY_FUNCTIONS:
        return _elementwise
    if name in _BINARY_FUNCTIONS or name in _PRODUCTS or name in _QUOTIENTS:
        return _arithmetic
    if name in _MEANS:
        return _mean
    if name == "Concatenate":
        return _concatenate
    raise Refusal(f"is the operation {name or spec.cls.__name__}, which has no rule")


# Layers that sum over channels and make others.


def _dense(structure: Structure, call: Call) -> None:
    value = _single(call)
    axis = len(value.shape or ()) - 1
    _expect_weights(call, "kernel", "bias")
    _contract(structure, call, axis, "units", in_axis=0, out_axis=1)


def _convolution(structure: Structure, call: Call) -> None:
    spec = call.layer
    _single(call)
    _expect_weights(call, "kernel", "bias")
    if (spec.config.get("groups") or 1) > 1:
        _grouped_convolution(structure, call)
        return
    rank = len((spec.weights or [])[0].shape)
    out_axis, in_axis = rank - 1, rank - 2
    if spec.kind.endswith("Transpose"):
        out_axis, in_axis = in_axis, out_axis
    _contract(structure, call, _channel_axis(call), "filters", in_axis, out_axis)


def _contract(
    structure: Structure,
    call: Call,
    axis: int,
    key: str,
    in_axis: int,
    out_axis: int,
) -> None:
    spec, value = call.layer, _single(call)
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
    spec, value = call.layer, _single(call)
    _bind_bias(structure, spec, made, "out")
    structure.count(spec, key, made)
    structure.layouts[call.output] = Layout(axis, made)
    activation = _activation(structure, call, made)

    def transfer(constants: Constants) -> np.ndarray:
        layer = _constants.taps(spec, constants.weights(spec))
        sums = _constants.contracted(constants.along(value, axis), layer)
        return activation(sums)

    structure.transfers[call] = transfer


def _separable(structure: Structure, call: Call) -> None:
    spec, value, axis = call.layer, _single(call), _channel_axis(call)
    _expect_weights(call, "depthwise_kernel", "pointwise_kernel", "bias")
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
    spec, value, axis = call.layer, _single(call), _channel_axis(call)
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


def _embedding(structure: Structure, call: Call) -> None:
    spec = call.layer
    _expect_weights(call, "embeddings")
    made = structure.made_by(spec, 0, 1)
    structure.count(spec, "output_dim", made)
    structure.layouts[call.output] = Layout(len(call.output.shape or ()) - 1, made)

    def transfer(constants: Constants) -> np.ndarray:
        table = constants.weights(spec)["embeddings"]
        return np.where((table == table[:1]).all(axis=0), table[0], np.nan)

    structure.transfers[call] = transfer


# Layers that keep channels apart, with weights for each.


def _depthwise(structure: Structure, call: Call) -> None:
    spec, value, axis = call.layer, _single(call), _channel_axis(call)
    _expect_weights(call, "kernel", "depthwise_kernel", "bias")
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


def _batch_normalization(structure: Structure, call: Call) -> None:
    spec, value = call.layer, _single(call)
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    _expect_weights(call, *names)
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


def _prelu(structure: Structure, call: Call) -> None:
    spec, value = call.layer, _single(call)
    layout = _layout(structure, value)
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


# Layers that keep channels apart, without weights.


def _elementwise(structure: Structure, call: Call) -> None:
    structure.layouts[call.output] = _layout(structure, _single(call))
    structure.transfers[call] = lambda constants: constants.elementwise(call)


def _activation_layer(structure: Structure, call: Call) -> None:
    _check_elementwise(structure, call)
    _elementwise(structure, call)


def _dropout(structure: Structure, call: Call) -> None:
    # A shape of None and 1 says where noise is shared, others how many channels.
    if not set(call.layer.config.get("noise_shape") or ()) <= {None, 1}:
        raise Refusal("has a noise_shape with sizes")
    _elementwise(structure, call)


def _rescaling(structure: Structure, call: Call) -> None:
    if np.ndim(call.layer.config["scale"]) or np.ndim(call.layer.config["offset"]):
        raise Refusal("scales each channel by itself")
    _elementwise(structure, call)


def _normalization(structure: Structure, call: Call) -> None:
    """Its statistics are in its configuration; at home right behind inputs."""
    layout = _layout(structure, _single(call))
    text = f"{call.layer.path!r} normalizes each channel by itself"
    structure.freeze(layout.atoms, Reason(text, refused=True))
    structure.layouts[call.output] = layout


def _spatial(structure: Structure, call: Call) -> None:
    """Pooling, cropping, upsampling: constants stay what they are."""
    value, axis = _single(call), _channel_axis(call)
    structure.layouts[call.output] = Layout(axis, structure.channels(value, axis))
    structure.transfers[call] = lambda constants: constants.along(value, axis)


def _zero_padding(structure: Structure, call: Call) -> None:
    value, axis = _single(call), _channel_axis(call)
    structure.layouts[call.output] = Layout(axis, structure.channels(value, axis))
    structure.transfers[call] = lambda constants: np.where(
        constants.along(value, axis) == 0, 0.0, np.nan
    )


def _global_pooling(structure: Structure, call: Call) -> None:
    value, axis = _single(call), _channel_axis(call)
    atoms = structure.channels(value, axis)
    kept = axis if call.layer.config.get("keepdims") else 1
    structure.layouts[call.output] = Layout(kept, atoms)
    structure.transfers[call] = lambda constants: constants.along(value, axis)


def _mean(structure: Structure, call: Call) -> None:
    """The operations mean and maximum over axes that are not channels."""
    value = _single(call)
    layout = _layout(structure, value)
    given = {**call.layer.config, **call.kwargs}
    axes = given.get("axis", call.args[1] if len(call.args) > 1 else None)
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


def _flatten(structure: Structure, call: Call) -> None:
    value = _single(call)
    if call.layer.config.get("data_format") == "channels_first" and (
        len(value.shape or ()) > 2
    ):
        raise Refusal("flattens with data_format='channels_first'")
    _rearrange(structure, call)


def _reshape(structure: Structure, call: Call) -> None:
    _rearrange(structure, call)
    layout, spec = structure.layouts[call.output], call.layer
    if spec.config["target_shape"][layout.axis - 1] != -1:
        index = layout.axis - 1
        structure.count(spec, "target_shape", layout.atoms, index=index)


def _rearrange(structure: Structure, call: Call) -> None:
    """Follows channels into another shape of the same values in the same order."""
    value = _single(call)
    layout = _layout(structure, value)
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


def _permute(structure: Structure, call: Call) -> None:
    value = _single(call)
    layout = _layout(structure, value)
    axis = list(call.layer.config["dims"]).index(layout.axis) + 1
    structure.layouts[call.output] = Layout(axis, layout.atoms)
    structure.transfers[call] = lambda constants: constants.of(value)


def _repeat_vector(structure: Structure, call: Call) -> None:
    value = _single(call)
    structure.layouts[call.output] = Layout(2, structure.channels(value, 1))
    structure.transfers[call] = lambda constants: constants.along(value, 1)


# Layers that bring several values together.


def _arithmetic(structure: Structure, call: Call) -> None:
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
    is_product = _function_name(call.layer) in _PRODUCTS

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
    spec = call.layer
    if spec.weights is None or spec.kind == "TFOpLambda":
        ranks = {len(value.shape or ()) for value in call.inputs}
        if len(ranks) != 1:
            raise Refusal("combines tensors of several ranks")
    operands = [*call.args, *call.kwargs.values()]
    if any(not isinstance(x, Value) and np.size(x) > 1 for x in _leaves(operands)):
        raise Refusal("combines channels with a constant tensor")
    if _function_name(spec) in _QUOTIENTS and (
        len(call.inputs) != 1 or not isinstance(call.args[0], Value)
    ):
        raise Refusal("divides by channels")


def _concatenate(structure: Structure, call: Call) -> None:
    rank = len(call.output.shape or ())
    joined = call.layer.config.get("axis", -1) % rank
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


# What several rules share.


def _single(call: Call) -> Value:
    if len(call.inputs) != 1:
        raise Refusal("is called with several tensors")
    return call.inputs[0]


def _layout(structure: Structure, value: Value) -> Layout:
    if value not in structure.layouts:
        raise Refusal("takes a value without channels")
    return structure.layouts[value]


def _channel_axis(call: Call) -> int:
    if call.layer.config.get("data_format") == "channels_first":
        return 1
    return len(call.inputs[0].shape or ()) - 1


def _expect_weights(call: Call, *names: str) -> None:
    others = set(call.layer.weight_names) - set(names)
    if others:
        raise Refusal(f"has weights of another kind, {sorted(others)}")


def _bind_bias(
    structure: Structure, spec: LayerSpec, made: np.ndarray, role: Any
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
        _check_elementwise(structure, call)
    except Refusal as refusal:
        text = f"{call.layer.path!r} {refusal}"
        structure.freeze(made, Reason(text, refused=True))
        return lambda sums: np.full_like(sums, np.nan)
    return lambda sums: _constants.activated(keras, activation, sums)


def _check_elementwise(structure: Structure, call: Call) -> None:
    activation = call.layer.config["activation"]
    try:
        function = structure.graph.keras.activations.get(activation)
        name, module = function.__name__, function.__module__.split(".", 1)[0]
    except (ValueError, TypeError, AttributeError):
        name, module = "", ""
    if module not in ("keras", "tf_keras", "tensorflow") or name not in _ELEMENTWISE:
        raise Refusal(f"has the activation {activation!r}, which may mix channels")


def _function_name(spec: LayerSpec) -> str:
    return spec.config["function"] if spec.kind == "TFOpLambda" else spec.kind


def _leaves(thing: Any) -> list[Any]:
    if isinstance(thing, list | tuple):
        return [leaf for item in thing for leaf in _leaves(item)]
    return [thing]


def _by_rank(rule: Rule, *names: str) -> dict[str, Rule]:
    return {name.format(rank): rule for name in names for rank in ("1D", "2D", "3D")}


_RULES: dict[str, Rule] = {
    "Dense": _dense,
    "Embedding": _embedding,
    **_by_rank(_convolution, "Conv{}", "Conv{}Transpose"),
    **_by_rank(_separable, "SeparableConv{}"),
    **_by_rank(_depthwise, "DepthwiseConv{}"),
    "BatchNormalization": _batch_normalization,
    "SyncBatchNormalization": _batch_normalization,
    "PReLU": _prelu,
    "Activation": _activation_layer,
    "Rescaling": _rescaling,
    "Normalization": _normalization,
    **dict.fromkeys(
        (
            *("ReLU", "LeakyReLU", "ELU", "ThresholdedReLU", "Identity"),
            *("GaussianDropout", "GaussianNoise", "AlphaDropout"),
            "ActivityRegularization",
        ),
        _elementwise,
    ),
    "Dropout": _dropout,
    **_by_rank(_dropout, "SpatialDropout{}"),
    **_by_rank(_spatial, "MaxPooling{}", "AveragePooling{}", "Cropping{}"),
    **_by_rank(_spatial, "UpSampling{}"),
    **_by_rank(_zero_padding, "ZeroPadding{}"),
    **_by_rank(_global_pooling, "GlobalMaxPooling{}", "GlobalAveragePooling{}"),
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "RepeatVector": _repeat_vector,
    **dict.fromkeys(
        ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"), _arithmetic
    ),
    "Concatenate": _concatenate,
}
