"""Activation functions as sequences of what LiteRT has int8 kernels for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from tfopt._keras.flatten import Call, LayerSpec, Value
from tfopt.methods.quantize_aware._building import Builder
from tfopt.methods.quantize_aware._rules import activation_name


def split_off(build: Builder, call: Call) -> Value | None:
    """Gives a weighted layer's own activation a call of its own."""
    activation = build.once(
        call.layer, "activation", lambda: _own_activation(build, call.layer)
    )
    if activation is None:
        return None
    before = build.again(call)
    return build.call(activation, before, before.shape)


def _own_activation(build: Builder, spec: LayerSpec) -> LayerSpec | None:
    activation = spec.config["activation"]
    name = activation_name(activation)
    if name == "linear":
        return None
    cls, config = _layer_of(build, activation, name)
    config = {
        "dtype": spec.config["dtype"],
        **config,
        "name": build.unique_name(f"{spec.name}_{name or 'activation'}"),
        # It is about what the layer returns.
        "activity_regularizer": spec.config.get("activity_regularizer"),
    }
    if config["activity_regularizer"] is None:
        del config["activity_regularizer"]
    spec.config = {**spec.config, "activation": None, "activity_regularizer": None}
    return LayerSpec(cls, config, spec.path, weights=[])


def _layer_of(build: Builder, activation: Any, name: str) -> tuple[type, dict]:
    """Returns the class and the configuration of a layer that is an activation."""
    if not name and isinstance(activation, dict):
        # Layers without weights serve as functions: `activation=LeakyReLU(0.1)`.
        cls = getattr(build.keras.layers, str(activation.get("class_name")), None)
        if cls is not None and activation["class_name"] != "PReLU":
            return cls, dict(activation["config"])
    return build.keras.layers.Activation, {"activation": name or activation}


def expand(build: Builder, call: Call) -> Value | None:
    """Splits up an Activation layer, if LiteRT has no kernel of its name."""
    name = activation_name(call.layer.config["activation"])
    function = _FUNCTIONS.get(name)
    return function(build, call.layer, call.inputs[0]) if function else None


def elu_layer(build: Builder, call: Call) -> Value | None:
    """Splits up an ELU layer."""
    alpha = float(call.layer.config["alpha"])
    return _elu(build, call.layer, call.inputs[0], alpha)


def leaky_relu_layer(build: Builder, call: Call) -> Value | None:
    """Turns a ReLU layer with a slope, and nothing else, into a LeakyReLU."""
    config = call.layer.config
    slope = float(config.get("negative_slope") or 0)
    if not slope or config.get("max_value") is not None or config.get("threshold"):
        return None
    return _leaky(build, call.layer, call.inputs[0], slope)


def _swish(build: Builder, spec: LayerSpec, x: Value) -> Value:
    gate = _activation(build, spec, "sigmoid", x)
    return _join(build, spec, "multiply", "Multiply", x, gate)


def _hard_sigmoid(build: Builder, spec: LayerSpec, x: Value) -> Value:
    """Returns `relu6(x + 3) / 6`; in tf_keras it is `clip(0.2 x + 0.5, 0, 1)`."""
    legacy = build.keras.__name__ == "tf_keras"
    half = 2.5 if legacy else 3.0
    moved = _rescale(build, spec, "moved", x, offset=half)
    clip = build.layer(spec, "clip", "ReLU", {"max_value": 2 * half})
    clipped = build.call(clip, moved, x.shape)
    return _rescale(build, spec, "scaled", clipped, scale=0.5 / half)


def _hard_swish(build: Builder, spec: LayerSpec, x: Value) -> Value | None:
    if build.keras.__name__ != "tf_keras":
        return None
    gate = _hard_sigmoid(build, spec, x)
    return _join(build, spec, "multiply", "Multiply", x, gate)


def _hard_tanh(build: Builder, spec: LayerSpec, x: Value) -> Value:
    """Returns `clip(x + 1, 0, 2) - 1`."""
    moved = _rescale(build, spec, "moved", x, offset=1.0)
    clip = build.layer(spec, "clip", "ReLU", {"max_value": 2.0})
    clipped = build.call(clip, moved, x.shape)
    return _rescale(build, spec, "back", clipped, offset=-1.0)


def _softsign(build: Builder, spec: LayerSpec, x: Value) -> Value:
    """Returns `x / (1 + |x|)`."""
    size = build.operation(spec, "size", "math.abs", (x,), x.shape)
    divisor = _rescale(build, spec, "moved", size, offset=1.0)
    return build.operation(spec, "ratio", "math.divide", (x, divisor), x.shape)


def _elu(
    build: Builder, spec: LayerSpec, x: Value, alpha: float = 1.0, scale: float = 1.0
) -> Value:
    """Returns `scale * (max(x, 0) + alpha * (exp(min(x, 0)) - 1))`.

    Where LiteRT has an int8 ELU, TensorFlow 2.21's converter does not use it.
    """
    positive, negative = _parts(build, spec, x)
    power = _activation(build, spec, "exponential", negative)
    if scale * alpha != 1:
        power = _rescale(build, spec, "weighted", power, scale=scale * alpha)
    if scale != 1:
        positive = _rescale(build, spec, "scaled", positive, scale=scale)
    total = _join(build, spec, "sum", "Add", positive, power)
    return _rescale(build, spec, "moved", total, offset=-scale * alpha)


def _selu(build: Builder, spec: LayerSpec, x: Value) -> Value:
    # Constants of Klambauer et al., Self-Normalizing Neural Networks, NIPS 2017.
    return _elu(build, spec, x, 1.6732632423543772, 1.0507009873554805)


def _softplus(build: Builder, spec: LayerSpec, x: Value) -> Value:
    """Returns `max(x, 0) - log(sigmoid(|x|))`, in which no large values occur."""
    positive, _ = _parts(build, spec, x)
    rest = _log_sigmoid_of_size(build, spec, x)
    return _join(build, spec, "difference", "Subtract", positive, rest)


def _log_sigmoid(build: Builder, spec: LayerSpec, x: Value) -> Value:
    """Returns `min(x, 0) + log(sigmoid(|x|))`."""
    _, negative = _parts(build, spec, x)
    rest = _log_sigmoid_of_size(build, spec, x)
    return _join(build, spec, "sum", "Add", negative, rest)


def _mish(build: Builder, spec: LayerSpec, x: Value) -> Value:
    gate = _activation(build, spec, "tanh", _softplus(build, spec, x))
    return _join(build, spec, "multiply", "Multiply", x, gate)


def _tanh_shrink(build: Builder, spec: LayerSpec, x: Value) -> Value:
    value = _activation(build, spec, "tanh", x)
    return _join(build, spec, "difference", "Subtract", x, value)


def _log_sigmoid_of_size(build: Builder, spec: LayerSpec, x: Value) -> Value:
    size = build.operation(spec, "size", "math.abs", (x,), x.shape)
    gate = _activation(build, spec, "sigmoid", size)
    return build.operation(spec, "log", "math.log", (gate,), x.shape)


def _parts(build: Builder, spec: LayerSpec, x: Value) -> tuple[Value, Value]:
    """Returns `max(x, 0)` and `min(x, 0)`, in steps of x, so that one of them is zero.

    Without a ReLU, as the converter would compute whatever is before x a second time,
    with the ReLU fused into it.
    """
    args = (x, 0.0)
    negative = build.operation(spec, "negative", "math.minimum", args, x.shape)
    positive = _join(build, spec, "positive", "Subtract", x, negative)
    for value in (negative, positive):
        cast(Call, value.producer).layer.keeps_range = True
    return positive, negative


def _leaky(build: Builder, spec: LayerSpec, x: Value, slope: float) -> Value:
    key = "alpha" if build.keras.__name__ == "tf_keras" else "negative_slope"
    layer = build.layer(spec, "leaky_relu", "LeakyReLU", {key: slope})
    return build.call(layer, x, x.shape)


def _activation(build: Builder, spec: LayerSpec, name: str, x: Value) -> Value:
    layer = build.layer(spec, name, "Activation", {"activation": name})
    return build.call(layer, x, x.shape)


def _join(
    build: Builder, spec: LayerSpec, part: str, kind: str, x: Value, y: Value
) -> Value:
    return build.call(build.layer(spec, part, kind), [x, y], x.shape)


def _rescale(
    build: Builder,
    spec: LayerSpec,
    part: str,
    x: Value,
    *,
    scale: float = 1.0,
    offset: float = 0.0,
) -> Value:
    config = {"scale": scale, "offset": offset}
    return build.call(build.layer(spec, part, "Rescaling", config), x, x.shape)


_FUNCTIONS: Mapping[str, Callable[[Builder, LayerSpec, Value], Value | None]] = {
    "celu": _elu,
    "elu": _elu,
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": _hard_swish,
    "hard_swish": _hard_swish,
    "hard_tanh": _hard_tanh,
    "log_sigmoid": _log_sigmoid,
    "mish": _mish,
    "selu": _selu,
    "silu": _swish,
    "softplus": _softplus,
    "softsign": _softsign,
    "swish": _swish,
    "tanh_shrink": _tanh_shrink,
}
