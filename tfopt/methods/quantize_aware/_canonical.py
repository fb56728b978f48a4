"""Brings a flat graph into the form in which fake-quantization is placed.

Each integer kernel's result must be one tensor of the graph, so whatever computes
several of them at once is split up.
"""

from __future__ import annotations

from collections.abc import Callable

from tfopt._keras.fake_quantize import WEIGHTS
from tfopt._keras.flatten import Call, Graph, LayerSpec, Value
from tfopt.methods.quantize_aware._rules import activation_name


def canonicalize(graph: Graph) -> None:
    """Splits layers with an activation and additions of many, in place."""
    unique_name = graph.name_maker()
    _split_activations(graph, unique_name)
    _split_additions(graph, unique_name)


def _split_activations(graph: Graph, unique_name: Callable[[str], str]) -> None:
    """Gives each weighted layer's own activation a call of its own."""
    split: dict[LayerSpec, LayerSpec | None] = {}
    calls = []
    for call in graph.calls:
        spec = call.layer
        if spec not in split:
            split[spec] = _split_activation(graph, spec, unique_name)
        calls.append(call)
        activation = split[spec]
        if activation is not None:
            calls.append(_append(call, activation))
    graph.calls = calls


def _split_activation(
    graph: Graph, spec: LayerSpec, unique_name: Callable[[str], str]
) -> LayerSpec | None:
    if spec.kind not in WEIGHTS:
        return None
    activation = spec.config["activation"]
    name = activation_name(activation)
    if name == "linear":
        return None
    config = {
        "name": unique_name(f"{spec.name}_{name or 'activation'}"),
        "activation": name or activation,
        "dtype": spec.config["dtype"],
        # It is about what the layer returns.
        "activity_regularizer": spec.config.get("activity_regularizer"),
    }
    spec.config = {**spec.config, "activation": None, "activity_regularizer": None}
    return LayerSpec(graph.keras.layers.Activation, config, spec.path, weights=[])


def _split_additions(graph: Graph, unique_name: Callable[[str], str]) -> None:
    """Turns Add layers of many inputs into chains of Add layers of two."""
    calls: list[Call] = []
    for call in graph.calls:
        calls.append(call)
        if call.layer.kind != "Add" or len(call.inputs) < 3:
            continue
        first, second, *others = call.inputs
        call.args, call.kwargs = ([first, second],), {}
        for other in others:
            config = {
                **call.layer.config,
                "name": unique_name(f"{call.layer.name}_more"),
            }
            layer = LayerSpec(call.layer.cls, config, call.layer.path, weights=[])
            calls.append(_append(calls[-1], layer, other))
    graph.calls = calls


def _append(call: Call, layer: LayerSpec, *others: Value) -> Call:
    """Makes a call of a layer that takes over the output of a call, and others."""
    after = call.output
    before = Value(after.shape, after.dtype, producer=call)
    call.outputs = [before]
    after.producer = Call(
        layer, ([before, *others] if others else before,), {}, [after]
    )
    return after.producer
