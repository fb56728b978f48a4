"""Kernels of lowered layers, in layers of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt._keras import fake_quantize, operations
from tfopt._keras.flatten import LayerSpec, Value
from tfopt.methods.quantize_aware._building import Builder

# What a layer whose weights have one scale is told.
_OPTIONS = ("weight_bits", "per_channel", "packed", "fixed_weight_range")


def layer(
    build: Builder,
    origin: LayerSpec,
    spec: LayerSpec,
    kind: str,
    config: Mapping[str, Any],
    kernel: np.ndarray,
    bias: np.ndarray | None,
) -> LayerSpec:
    """Returns the layer that computes with a lowered kernel.

    Args:
        build: What makes layers.
        origin: The layer that tells apart what the kernel was folded with.
        spec: The layer that had the kernel.
        kind: Class of the new layer.
        config: Its arguments.
        kernel: As that class has it.
        bias: As that class has it, if any.
    """
    weights = {"kernel": kernel.astype(np.float32)}
    if bias is not None:
        weights["bias"] = bias.astype(np.float32)
    cls: str | type = kind
    options = {"name": spec.name, "dtype": spec.config.get("dtype", "float32")}
    if hasattr(spec.cls, "base_class"):
        cls = fake_quantize.classes(build.keras).weighted[kind]
        options |= {key: spec.config[key] for key in _OPTIONS}
    config = {**options, **config, "use_bias": bias is not None}
    return build.layer(origin, f"{spec.name}_product", cls, config, weights)


def value(
    build: Builder, origin: LayerSpec, spec: LayerSpec, kernel: np.ndarray, tie: Value
) -> Value:
    """Returns a lowered kernel as a tensor; `tie` is any tensor of the graph."""
    cls = operations.classes(build.keras).Weight
    config = {"shape": list(kernel.shape), "weight_name": "kernel", "dtype": "float32"}
    made = build.layer(
        origin,
        f"{spec.name}_kernel",
        cls,
        config,
        {"kernel": kernel.astype(np.float32)},
    )
    tensor = build.call(made, tie, kernel.shape)
    limit = spec.config.get("fixed_weight_range")
    if limit is None:
        return tensor
    return build.operation(
        spec,
        "one_scale",
        "quantization.fake_quant_with_min_max_args",
        (tensor,),
        kernel.shape,
        min=-limit,
        max=limit,
        num_bits=8,
        narrow_range=True,
    )
