"""What quantization-aware training does with each kind of layer: one row a kind.

The placement follows what LiteRT's int8 kernels fuse, so that every fake-quantized
tensor of the training graph is a tensor of the converted model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfopt._keras import kernels, operations
from tfopt._keras.fake_quantize import WEIGHTS
from tfopt._keras.flatten import Call, Value
from tfopt.methods.quantize_aware._operation_rules import (
    has_low_numbers,
    operation_row,
)
from tfopt.methods.quantize_aware._recurrence import RECURRENT, objection
from tfopt.methods.quantize_aware._rule import Rule, Unsupported

# Of more channels, a normalized value is a few steps: 28 dB are left with 256 of them,
# 24 dB with 768.
MAX_UNIT_CHANNELS = 256

_COMPUTE = Rule("compute")
_ARITHMETIC = Rule("compute", fuses=("relu",))
_SAME_SCALE = Rule("same_scale")
_AVERAGES = Rule("same_scale", averages=True)
_IDENTITY = Rule("identity")
_RELU = Rule("relu")
_SELECTS = Rule("compute", one_scale=True, selects=True)
# Output ranges that LiteRT's int8 kernels fix: scales 1/256, 1/128 and 1/16.
_LOGISTIC = Rule("compute", output_range=(0.0, 255 / 256))
_TANH = Rule("compute", output_range=(-1.0, 127 / 128))
_LOG_SOFTMAX = Rule("compute", output_range=(-255 / 16, 0.0))

_ACTIVATIONS: Mapping[str, Rule] = {
    "exponential": _COMPUTE,
    "gelu": _COMPUTE,
    "hard_silu": _COMPUTE,
    "hard_swish": _COMPUTE,
    "leaky_relu": _COMPUTE,
    "linear": _IDENTITY,
    "log_softmax": _LOG_SOFTMAX,
    "relu": _RELU,
    "relu6": _RELU,
    "sigmoid": _LOGISTIC,
    "softmax": _LOGISTIC,
    "tanh": _TANH,
}


def rule_of(call: Call) -> Rule | Unsupported:
    """Returns how a call of a layer is quantized, or why it isn't."""
    spec = call.layer
    if spec.keeps_range:
        return _AVERAGES
    kind = operations.canonical_kind(spec)
    row: _Row | None
    if kind is not None:
        row = operation_row(kind)
    else:
        row = _RULES.get(spec.kind or operations.own_kind(spec))
    if row is None:
        reason = f" ({spec.closed})" if spec.closed else ""
        return Unsupported(f"no rule for layers of class {spec.cls.__name__}{reason}")
    rule = row if isinstance(row, Rule) else row(call)
    if isinstance(rule, Rule) and rule.role not in ("identity", "same_scale"):
        return _objection(call, rule) or rule
    return rule


def _objection(call: Call, rule: Rule) -> Unsupported | None:
    """Returns what about the inputs of a computation keeps it float."""
    config = call.layer.config
    if config.get("data_format") == "channels_first":
        return Unsupported("data_format='channels_first' has no LiteRT kernel")
    floats = [tf.as_dtype(value.dtype).is_floating for value in call.inputs]
    if rule.takes_floats and not all(floats):
        return Unsupported("its inputs are integers, which LiteRT casts to floats")
    if not rule.takes_floats and any(floats):
        return Unsupported("its indices are floats: give the Input an integer dtype")
    if any(map(has_low_numbers, (*call.inputs, *call.outputs))):
        return Unsupported(
            "a mask that is computed puts numbers such as -1e9 beside its values, and "
            "leaves them no int8 step"
        )
    return None


def activation_name(activation: Any) -> str:
    """Returns the name of a serialized activation function, `""` if it has none.

    Args:
        activation: A layer's `config["activation"]`: a name, or a dictionary for
            anything that isn't one of Keras's own functions.
    """
    if activation is None:
        return "linear"
    if isinstance(activation, dict):
        # A TensorFlow function such as tf.nn.relu6 passed as it is.
        known = activation.get("module") in ("builtins", None)
        activation = activation.get("config") if known else ""
    return activation if isinstance(activation, str) else ""


def _weighted(call: Call) -> Rule | Unsupported:
    config = call.layer.config
    if config.get("lora_rank") or config.get("quantization_config"):
        return Unsupported("its kernel is not a single float variable")
    return Rule("compute", weighted=True, fuses=("batch_norm", "relu"))


def _conv_transpose(call: Call) -> Rule | Unsupported:
    if any(rate != 1 for rate in call.layer.config["dilation_rate"]):
        return Unsupported("LiteRT's transposed convolution has no dilation")
    return _weighted(call)


def _conv_3d(call: Call) -> Rule | Unsupported:
    config = call.layer.config
    if any(rate != 1 for rate in config["dilation_rate"]) or config["groups"] != 1:
        return Unsupported("a Conv3D with dilation or groups has no int8 kernel")
    if _unknown_sizes(call.inputs[0]):
        return Unsupported("a Conv3D becomes a Conv2D only if its sizes are fixed")
    return _weighted(call)


def _einsum_dense(call: Call) -> Rule | Unsupported:
    config, given = call.layer.config, call.inputs[0]
    if _unknown_sizes(given):
        return Unsupported("it becomes a matrix product only if its sizes are fixed")
    filled = kernels.filled_equation(config["equation"], len(given.shape or ()))
    left, kernel, right = kernels.einsum_letters(filled)
    shared = set(left) & set(kernel) & set(right)
    if shared or not set(left) - set(kernel) <= set(right) or left[0] in kernel:
        return Unsupported(
            f"the equation {config['equation']!r} is no matrix product of an input "
            "with its batch first"
        )
    if set(config.get("bias_axes") or "") & set(left):
        return Unsupported("its bias differs along an axis of the input")
    rule = _weighted(call)
    if isinstance(rule, Rule) and right[-1] in left:
        return dataclasses.replace(rule, fuses=("relu",))
    return rule


def _unknown_sizes(value: Value) -> bool:
    return value.shape is None or None in value.shape[1:]


def _activation(call: Call) -> Rule | Unsupported:
    config = call.layer.config
    name = activation_name(config["activation"])
    if name not in _ACTIVATIONS:
        return Unsupported(f"no rule for the activation {name or 'function'!r}")
    return _ACTIVATIONS[name]


def _relu(call: Call) -> Rule | Unsupported:
    config = call.layer.config
    if not config.get("negative_slope") and not config["threshold"]:
        return _RELU
    return Unsupported("a ReLU with a threshold, or a slope and a limit, has no kernel")


def _recurrent(call: Call) -> Unsupported:
    """What could not be unrolled."""
    return Unsupported(objection(call) or "its directions give two outputs")


def _softmax(call: Call) -> Rule | Unsupported:
    axis = call.layer.config.get("axis", -1)
    if len(call.inputs) > 1:
        return Unsupported("it takes a mask")
    if isinstance(axis, int) or len(axis) == 1:
        return _LOGISTIC
    return Unsupported("LiteRT's softmax is over one axis only")


def _batch_norm(call: Call) -> Rule | Unsupported:
    if _is_last_axis(call, call.layer.config["axis"]):
        return Rule("batch_norm")
    return Unsupported("only normalization over the last axis folds into a kernel")


def _is_last_axis(call: Call, axis: object) -> bool:
    axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    shape = call.inputs[0].shape
    return axes == [-1] or (shape is not None and axes == [len(shape) - 1])


def _normalization(call: Call) -> Rule | Unsupported:
    axis = call.layer.config["axis"]
    if axis in (None, (), []) or _is_last_axis(call, axis):
        return _ARITHMETIC
    return Unsupported("LiteRT scales along the last axis only")


def _unit_norm(call: Call) -> Rule | Unsupported:
    if _is_last_axis(call, call.layer.config["axis"]):
        return _TANH
    return Unsupported("LiteRT normalizes along the last axis only")


def _rescaling(call: Call) -> Rule | Unsupported:
    config = call.layer.config
    if all(isinstance(config[key], (int, float)) for key in ("scale", "offset")):
        return _ARITHMETIC
    return Unsupported("its scale or offset is no number")


def _dot(call: Call) -> Rule | Unsupported:
    if call.layer.config["normalize"]:
        return Unsupported("a Dot that normalizes has no kernel")
    return _COMPUTE


def _resized(call: Call) -> Rule | Unsupported:
    config = call.layer.config
    options = ("crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias")
    chosen = [option for option in options if config.get(option)]
    if chosen:
        return Unsupported(f"LiteRT resizes without {chosen[0]}")
    if config.get("data_format") == "channels_first":
        return Unsupported("data_format='channels_first' has no LiteRT kernel")
    if config["interpolation"] == "nearest":
        return _SAME_SCALE
    if config["interpolation"] == "bilinear":
        return _AVERAGES
    return Unsupported("LiteRT resizes by interpolation 'nearest' or 'bilinear' only")


def _mean_over_time(call: Call) -> Rule | Unsupported:
    if _is_masked(call.inputs[0]):
        return Unsupported("its mask makes it a weighted mean, which has no kernel")
    return _COMPUTE


def _is_masked(value: Value) -> bool:
    """Returns whether Keras gives a value with time steps a mask."""
    call = value.producer
    if call is None or value.shape is None or len(value.shape) < 3:
        return False
    if call.layer.config.get("mask_zero") or call.layer.kind == "Masking":
        return True
    return any(_is_masked(before) for before in call.inputs)


def _example_norm(call: Call) -> Unsupported:
    return Unsupported(
        "LiteRT's int8 L2_NORMALIZATION, in steps of 1/128, serves only for the last "
        f"axis of at most {MAX_UNIT_CHANNELS} channels"
    )


def _never(reason: str) -> Callable[[Call], Unsupported]:
    """Returns a row for layers, or what `_canonical` left of them, without a kernel."""
    return lambda call: Unsupported(reason)


_no_3d_pooling = _never("TFLite pools volumes only if their sizes are fixed")
_channels_first = _never("data_format='channels_first' has no LiteRT kernel")


# A rule, or a function that finds it for a call.
_Row = Rule | Callable[[Call], Rule | Unsupported]
_RULES: Mapping[str, _Row] = {
    **dict.fromkeys(WEIGHTS, _weighted),
    "Activation": _activation,
    "ActivityRegularization": _IDENTITY,
    "Add": _ARITHMETIC,
    "AlphaDropout": _IDENTITY,
    "AveragePooling1D": _AVERAGES,
    "AveragePooling2D": _AVERAGES,
    "AveragePooling3D": _no_3d_pooling,
    "BatchNormalization": _batch_norm,
    "Concatenate": Rule("compute", one_scale=True),
    "Conv1DTranspose": _conv_transpose,
    "Conv2DTranspose": _conv_transpose,
    "Conv3D": _conv_3d,
    "Conv3DTranspose": _never("LiteRT's CONV_3D_TRANSPOSE has no int8 kernel"),
    "Cropping1D": _SAME_SCALE,
    "Cropping2D": _SAME_SCALE,
    "Cropping3D": _SAME_SCALE,
    "Dot": _dot,
    "Dropout": _IDENTITY,
    "EinsumDense": _einsum_dense,
    # Rows of the table are looked up, so its values have the output's range.
    "Embedding": Rule("compute", takes_floats=False),
    "Flatten": _SAME_SCALE,
    "GaussianDropout": _IDENTITY,
    "GaussianNoise": _IDENTITY,
    "GlobalAveragePooling1D": _mean_over_time,
    "GlobalAveragePooling2D": _COMPUTE,
    "GlobalAveragePooling3D": _COMPUTE,
    "GlobalMaxPooling1D": _SAME_SCALE,
    "GlobalMaxPooling2D": _SAME_SCALE,
    "GlobalMaxPooling3D": _SAME_SCALE,
    "GroupNormalization": _never(
        "a mean of the squares of so many values is too coarse in int8"
    ),
    "Identity": _IDENTITY,
    "LayerNormalization": _example_norm,
    "LeakyReLU": _COMPUTE,
    "Masking": _never("it compares with a number exactly"),
    "MaxPooling1D": _SAME_SCALE,
    "MaxPooling2D": _SAME_SCALE,
    "MaxPooling3D": _no_3d_pooling,
    "Maximum": _SELECTS,
    "Minimum": _SELECTS,
    "Multiply": _ARITHMETIC,
    "Normalization": _normalization,
    "PReLU": _COMPUTE,
    "Permute": _SAME_SCALE,
    "RMSNormalization": _example_norm,
    "RandomBrightness": _IDENTITY,
    "RandomContrast": _IDENTITY,
    "RandomFlip": _IDENTITY,
    "RandomRotation": _IDENTITY,
    "RandomTranslation": _IDENTITY,
    "RandomZoom": _IDENTITY,
    "ReLU": _relu,
    "RepeatVector": _SAME_SCALE,
    "Rescaling": _rescaling,
    "Reshape": _SAME_SCALE,
    "Resizing": _resized,
    "SeparableConv1D": _channels_first,
    "SeparableConv2D": _channels_first,
    "Softmax": _softmax,
    **dict.fromkeys((*RECURRENT, "Bidirectional"), _recurrent),
    "SpatialDropout1D": _IDENTITY,
    "SpatialDropout2D": _IDENTITY,
    "SpatialDropout3D": _IDENTITY,
    "Subtract": _ARITHMETIC,
    "TimeDistributed": _never(
        "the layer in it cannot be called on all steps at once, of a fixed number"
    ),
    "UnitNormalization": _unit_norm,
    "UpSampling1D": _SAME_SCALE,
    "UpSampling2D": _resized,
    "UpSampling3D": _SAME_SCALE,
    "ZeroPadding1D": _SAME_SCALE,
    "ZeroPadding2D": _SAME_SCALE,
    "Weight": Rule("constant"),
    "ZeroPadding3D": _SAME_SCALE,
}
