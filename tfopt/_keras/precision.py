"""Half-precision models as float32 ones, for comparisons that rounding would blur."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfopt._keras.flatten import Graph, LayerSpec


def full_precision(graph: Graph) -> Graph:
    """Returns a graph whose layers compute in float32 where they did in 16 bits.

    The graph that is given is not changed, and is returned itself if it has no such
    layers. A copy has the same values, so it is only good for `flatten.to_model`.
    Layers inside of wrappers keep their types.
    """
    if all(full_precision_config(x.config) is x.config for x in graph.layers()):
        return graph
    specs = {spec: _widened(spec) for spec in graph.layers()}
    return dataclasses.replace(
        graph,
        input_specs=[(_widened(spec), value) for spec, value in graph.input_specs],
        calls=[
            dataclasses.replace(call, layer=specs[call.layer]) for call in graph.calls
        ],
    )


def full_precision_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a layer's configuration with float32 in place of any 16-bit policy."""
    if "float16" in _policy_name(config.get("dtype")):  # and bfloat16, and mixed_...
        return {**config, "dtype": "float32"}
    return config


def _widened(spec: LayerSpec) -> LayerSpec:
    return dataclasses.replace(spec, config=full_precision_config(spec.config))


def _policy_name(dtype: Any) -> str:
    # Keras 3 and tf_keras write a policy as its name or as {"config": {"name": ...}}.
    if isinstance(dtype, dict):
        dtype = dtype.get("config", {}).get("name", "")
    return str(dtype or "")
