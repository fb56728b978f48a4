"""Scaling and moving of channels, which are depthwise convolutions of size 1."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from tfopt._keras import fake_quantize
from tfopt._keras.flatten import Call, Graph, LayerSpec, Value
from tfopt.methods.quantize_aware._building import Builder
from tfopt.methods.quantize_aware._rules import Rule, rule_of

_KINDS = ("BatchNormalization", "Normalization", "Rescaling", "UnitNormalization")


def of_batch_norm(spec: LayerSpec) -> tuple[np.ndarray, np.ndarray]:
    """Returns what inference multiplies each channel with, and adds to it."""
    weights = dict(zip(spec.weight_names, spec.weights or [], strict=True))
    scale = 1 / np.sqrt(
        weights["moving_variance"].astype(np.float64) + spec.config["epsilon"]
    )
    scale = scale * weights.get("gamma", np.float64(1))
    return scale, weights.get("beta", np.float64(0)) - weights["moving_mean"] * scale


def find(graph: Graph, weighted: Collection[LayerSpec]) -> frozenset[Call]:
    """Returns the calls of `_KINDS` that are int8 kernels of their own."""
    ranges = fake_quantize.classes(graph.keras)
    consumers = graph.consumers()

    def is_alone(call: Call) -> bool:
        if call.layer.kind not in _KINDS:
            return False
        following = consumers.get(call.output, [])
        if any(other.layer.cls is ranges.KeepFloat for other in following):
            return False
        value = call.inputs[0]
        while value.producer is not None:
            layer = value.producer.layer
            if layer.cls is ranges.FixedActivationRange:
                return True
            rule = rule_of(value.producer)
            moves = isinstance(rule, Rule) and rule.role in ("same_scale", "identity")
            if layer in weighted or not moves:
                return False
            value = value.producer.inputs[0]
        return False

    return frozenset(filter(is_alone, graph.calls))


def lowered(build: Builder, call: Call) -> Value | None:
    """Replaces a call of `_KINDS` by what LiteRT computes in one int8 kernel."""
    spec, (x,) = call.layer, call.inputs
    if spec.kind == "UnitNormalization":
        return build.operation(spec, "unit", "math.l2_normalize", (x, -1), x.shape)
    if x.shape is None or x.shape[-1] is None:
        return None
    factors = _factors(spec)
    if factors is None:
        return None
    sizes = x.shape[1:]
    planes = _planes(sizes)
    if planes is None:
        return None
    channels = int(x.shape[-1])
    scale, shift = (
        np.broadcast_to(factor, (channels,)).astype(np.float32) for factor in factors
    )
    layer = build.layer(
        spec,
        "affine",
        "DepthwiseConv2D",
        {"kernel_size": 1, "dtype": "float32"},
        {"kernel": scale.reshape(1, 1, channels, 1), "bias": shift},
    )
    if planes == sizes:
        return build.call(layer, x, x.shape)
    if len(sizes) == 2:
        rows = build.operation(spec, "rows", "expand_dims", (x, 1), (None, *planes))
        value = build.call(layer, rows, rows.shape)
        return build.operation(spec, "steps", "squeeze", (value, [1]), x.shape)
    config = {"target_shape": planes}
    before = build.layer(spec, "planes", "Reshape", config)
    config = {"target_shape": sizes}
    after = build.layer(spec, "shaped", "Reshape", config)
    x_planes = build.call(before, x, (x.shape[0], *planes))
    value = build.call(layer, x_planes, x_planes.shape)
    return build.call(after, value, x.shape)


def _planes(sizes: tuple[int | None, ...]) -> tuple[int | None, ...] | None:
    """Returns a shape of three axes for one of any number, None if it is not known."""
    if len(sizes) <= 3:
        return (1,) * (3 - len(sizes)) + sizes
    if None in sizes:
        return None
    return (int(np.prod(sizes[:-2])), *sizes[-2:])  # type: ignore[arg-type]


def _factors(spec: LayerSpec) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns scale and offset; None if a kernel of the converter's does."""
    config = spec.config
    if spec.kind == "BatchNormalization":
        return of_batch_norm(spec)
    if spec.kind == "Rescaling":
        scale, offset = float(config["scale"]), float(config["offset"])
        if scale == 1 or offset == 0:
            return None
        return np.array(scale), np.array(offset)
    weights: dict[str, Any] = {**config}
    weights |= zip(spec.weight_names, spec.weights or [], strict=True)
    mean, variance = (
        np.ravel(weights[name]).astype(np.float64) for name in ("mean", "variance")
    )
    deviation = np.maximum(np.sqrt(variance), 1e-7)
    if config.get("invert"):
        return deviation, mean
    return 1 / deviation, -mean / deviation
