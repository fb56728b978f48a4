"""Normalization of each example, by LiteRT's int8 L2_NORMALIZATION."""

from __future__ import annotations

import numpy as np

from tfopt._keras.flatten import Call, LayerSpec, Value
from tfopt.methods.quantize_aware._building import Builder
from tfopt.methods.quantize_aware._rules import MAX_UNIT_CHANNELS


def layer_norm(build: Builder, call: Call) -> Value | None:
    """Splits up a LayerNormalization over the last axis.

    With `d = x - mean(x)` over C channels, `d / sqrt(mean(d²))` is `sqrt(C) d / |d|`.
    LiteRT finds the length of d from its codes with 32 bits, so that the result is as
    good for a weak input as for a strong one; variances of 8 bits would not be. The
    layer's epsilon is left out: where it matters, d is a few codes.
    """
    spec, (x,) = call.layer, call.inputs[:1]
    if len(call.inputs) > 1 or not _is_over_channels(spec, x):
        return None
    if spec.config.get("rms_scaling"):
        return _normalized(build, spec, x)
    shape = (*(x.shape or ())[:-1], 1)
    mean = build.operation(
        spec, "mean", "math.reduce_mean", (x,), shape, axis=-1, keepdims=True
    )
    centered = build.layer(spec, "centered", "Subtract")
    return _normalized(build, spec, build.call(centered, [x, mean], x.shape))


def rms_norm(build: Builder, call: Call) -> Value | None:
    """Splits up an RMSNormalization over the last axis."""
    spec, (x,) = call.layer, call.inputs[:1]
    return _normalized(build, spec, x) if _is_over_channels(spec, x) else None


def _is_over_channels(spec: LayerSpec, x: Value) -> bool:
    axis = spec.config["axis"]
    axes = list(axis) if isinstance(axis, (list, tuple)) else [axis]
    shape = x.shape or (None,)
    last = axes in ([-1], [len(shape) - 1])
    return last and shape[-1] is not None and 1 < shape[-1] <= MAX_UNIT_CHANNELS


def _normalized(build: Builder, spec: LayerSpec, x: Value) -> Value:
    """Returns x divided by its root mean square, scaled and moved by the weights."""
    channels = int((x.shape or (1,))[-1] or 1)
    unit = build.layer(spec, "unit", "UnitNormalization")
    value = build.call(unit, x, x.shape)
    # A BatchNormalization with fixed statistics is the trainable scale and offset.
    epsilon = 1e-6
    weights = dict(zip(spec.weight_names, spec.weights or [], strict=True))
    if "scale" in weights:  # RMSNormalization's name of it
        weights["gamma"] = weights.pop("scale")
    config = {
        "epsilon": epsilon,
        "scale": "gamma" in weights,
        "center": "beta" in weights,
        "trainable": spec.config.get("trainable", True),
    }
    for name in ("gamma", "beta"):
        for end in ("regularizer", "constraint"):
            config[f"{name}_{end}"] = spec.config.get(f"{name}_{end}")
    weights["moving_mean"] = np.zeros(channels, np.float32)
    weights["moving_variance"] = np.full(channels, 1 / channels - epsilon, np.float32)
    affine = build.layer(spec, "affine", "BatchNormalization", config, weights)
    return build.call(affine, value, x.shape, training=False)
