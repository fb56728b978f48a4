"""What quantization-aware training does with each kind of layer: one row a kind.

The placement follows what LiteRT's int8 kernels fuse, so that every fake-quantized
tensor of the training graph is a tensor of the converted model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from tfopt._keras.fake_quantize import WEIGHTS
from tfopt._keras.flatten import Call


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a kind of layer is quantized.

    Attributes:
        role: `"compute"`: integer arithmetic, so its inputs and its output need a
            range. `"same_scale"`: the output has the range of the input (pooling,
            reshaping). `"identity"`: nothing is left of it in inference.
            `"batch_norm"`: folds into the weighted layer before it. `"relu"`: fuses
            into the computation before it, and computes if there is none.
        weighted: The layer has a kernel to quantize.
        fuses: Roles of the layers that its kernel can absorb, in this order.
        output_range: Range of the output where the kernel fixes it.
        one_scale: Inputs and output have one range.
        averages: The output has the range of the input, but is rounded anew.
    """

    role: Literal["compute", "same_scale", "identity", "batch_norm", "relu"]
    weighted: bool = False
    fuses: tuple[str, ...] = ()
    output_range: tuple[float, float] | None = None
    one_scale: bool = False
    averages: bool = False


@dataclasses.dataclass(frozen=True)
class Unsupported:
    """Why a layer stays float, and whether the user wants it so."""

    reason: str
    wanted: bool = False


_COMPUTE = Rule("compute")
_SAME_SCALE = Rule("same_scale")
_IDENTITY = Rule("identity")
_RELU = Rule("relu")
# Output ranges that LiteRT's int8 kernels fix: scale 1/256 and 1/128.
_LOGISTIC = Rule("compute", output_range=(0.0, 255 / 256))
_TANH = Rule("compute", output_range=(-1.0, 127 / 128))

_ACTIVATIONS: Mapping[str, Rule] = {
    "linear": _IDENTITY,
    "relu": _RELU,
    "relu6": _RELU,
    "sigmoid": _LOGISTIC,
    "softmax": _LOGISTIC,
    "tanh": _TANH,
}


def rule_of(call: Call) -> Rule | Unsupported:
    """Returns how a call of a layer is quantized, or why it isn't."""
    spec = call.layer
    row = _RULES.get(spec.kind)
    if row is None:
        return Unsupported(f"no rule for layers of class {spec.cls.__name__}")
    if isinstance(row, Rule):
        return row
    return row(call)


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
    if config.get("data_format") == "channels_first":
        return Unsupported("data_format='channels_first' has no LiteRT kernel")
    if config.get("lora_rank") or config.get("quantization_config"):
        return Unsupported("its kernel is not a single float variable")
    return Rule("compute", weighted=True, fuses=("batch_norm", "relu"))


def _activation(call: Call) -> Rule | Unsupported:
    config = call.layer.config
    name = activation_name(config["activation"])
    if name not in _ACTIVATIONS:
        return Unsupported(f"no rule for the activation {name or 'function'!r}")
    return _ACTIVATIONS[name]


def _relu(call: Call) -> Rule | Unsupported:
    config = call.layer.config
    slope = config.get("negative_slope") or 0
    if config.get("max_value") in (None, 6) and not slope and not config["threshold"]:
        return _RELU
    return Unsupported("only ReLU and ReLU with max_value=6 have a LiteRT kernel")


def _softmax(call: Call) -> Rule | Unsupported:
    config = call.layer.config
    if config.get("axis", -1) == -1:
        return _LOGISTIC
    return Unsupported("LiteRT's softmax is over the last axis only")


def _batch_norm(call: Call) -> Rule | Unsupported:
    config = call.layer.config
    axes = config["axis"]
    axes = list(axes) if isinstance(axes, (list, tuple)) else [axes]
    shape = call.inputs[0].shape
    if axes == [-1] or (shape is not None and axes == [len(shape) - 1]):
        return Rule("batch_norm")
    return Unsupported("only normalization over the last axis folds into a kernel")


# A rule, or a function that finds it for a call.
_Row = Rule | Callable[[Call], Rule | Unsupported]
_RULES: Mapping[str, _Row] = {
    "Activation": _activation,
    "ActivityRegularization": _IDENTITY,
    "Add": Rule("compute", fuses=("relu",)),
    "AveragePooling2D": Rule("same_scale", averages=True),
    "BatchNormalization": _batch_norm,
    "Concatenate": Rule("compute", one_scale=True),
    "Dropout": _IDENTITY,
    "Flatten": _SAME_SCALE,
    "GlobalAveragePooling2D": _COMPUTE,
    "MaxPooling2D": _SAME_SCALE,
    "ReLU": _relu,
    "Reshape": _SAME_SCALE,
    "Softmax": _softmax,
    "SpatialDropout2D": _IDENTITY,
    "ZeroPadding2D": _SAME_SCALE,
    **dict.fromkeys(WEIGHTS, _weighted),
}
