"""Rewrites of flat graphs: float to fake-quantized for training, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfopt import affine
from tfopt._keras import fake_quantize
from tfopt._keras.flatten import Call, Graph, LayerSpec, Value
from tfopt.methods.quantize_aware._placement import Plan
from tfopt.methods.quantize_aware._ranges import Range
from tfopt.methods.quantize_aware._rules import activation_name
from tfopt.types import TfoptError


def split_activations(graph: Graph) -> None:
    """Gives each weighted layer's own activation a call of its own, in place.

    The activation then is placed like an Activation layer. It takes over the
    activity regularizer, which is about what it returns.
    """
    split: dict[LayerSpec, LayerSpec | None] = {}
    calls = []
    for call in graph.calls:
        spec = call.layer
        if spec not in split:
            split[spec] = _split_activation(graph, spec)
        calls.append(call)
        activation = split[spec]
        if activation is not None:
            after = call.output
            before = Value(after.shape, after.dtype, producer=call)
            call.outputs = [before]
            after.producer = Call(activation, (before,), {}, [after])
            calls.append(after.producer)
    graph.calls = calls


def _split_activation(graph: Graph, spec: LayerSpec) -> LayerSpec | None:
    if spec.kind not in fake_quantize.WEIGHTS:
        return None
    activation = spec.config["activation"]
    name = activation_name(activation)
    if name == "linear":
        return None
    config = {
        "name": graph.unique_name(f"{spec.name}_{name or 'activation'}"),
        "activation": name or activation,
        "dtype": spec.config["dtype"],
        "activity_regularizer": spec.config.get("activity_regularizer"),
    }
    spec.config = {**spec.config, "activation": None, "activity_regularizer": None}
    return LayerSpec(graph.keras.layers.Activation, config, spec.path, weights=[])


def insert_fake_quantization(
    graph: Graph,
    plan: Plan,
    *,
    weight_bits: int,
    per_channel: bool,
    range_tracking: str,
    ema_decay: float,
) -> None:
    """Puts fake-quantization into a graph, in place, as a plan says."""
    layers = fake_quantize.classes(graph.keras)
    for spec in plan.weighted:
        spec.cls = layers.weighted[spec.kind]
        spec.config = {
            **spec.config,
            "weight_bits": weight_bits,
            "per_channel": per_channel,
        }

    made: dict[Range, LayerSpec] = {}
    replacements: dict[Value, Value] = {}
    calls: list[Call] = []

    def range_layer(how: Range) -> LayerSpec:
        config: dict[str, Any] = {
            "name": graph.unique_name(f"{how.name}_range"),
            "dtype": "float32",
        }
        if how.fixed is not None:
            config |= {"minimum": how.fixed[0], "maximum": how.fixed[1]}
            return LayerSpec(layers.FixedActivationRange, config, how.path, weights=[])
        peaks = how.keep_peaks and range_tracking == "ema"
        config |= {
            "range_tracking": "peak" if peaks else range_tracking,
            "ema_decay": ema_decay,
            "nonnegative": how.nonnegative,
        }
        return LayerSpec(layers.ActivationRange, config, how.path)

    def append(spec: LayerSpec, value: Value, **kwargs: Any) -> Value:
        call = Call(spec, (value,), kwargs, [])
        call.outputs = [Value(value.shape, value.dtype, producer=call)]
        calls.append(call)
        graph.calls.append(call)  # so that its name is taken
        return call.output

    def quantize(value: Value, name: str, path: str) -> None:
        kept = value
        if value in plan.barriers:
            config = {"name": graph.unique_name(f"{name}_float"), "dtype": "float32"}
            kept = append(LayerSpec(layers.KeepFloat, config, path, weights=[]), value)
        point = plan.points[value]
        if point.range not in made:
            made[point.range] = range_layer(point.range)
        options = {} if point.follows else {"follow": False}
        if point.is_average:
            options["half_away"] = True
        replacements[value] = append(made[point.range], kept, **options)

    originals, graph.calls = graph.calls, list(graph.calls)
    for spec, value in graph.input_specs:
        if value in plan.points:
            quantize(value, spec.name, spec.path)
    for call in originals:
        call.args, call.kwargs = call.map_arguments(
            lambda value: replacements.get(value, value)
        )
        calls.append(call)
        for value in call.outputs:
            if value in plan.points:
                quantize(value, call.layer.name, call.layer.path)
    graph.calls = calls
    graph.outputs = tf.nest.map_structure(
        lambda value: replacements.get(value, value), graph.outputs
    )


def is_prepared(graph: Graph) -> bool:
    """Returns whether a graph holds fake-quantization for training."""
    return bool(_range_layers(graph))


def bake(graph: Graph) -> None:
    """Turns a trained fake-quantized graph into one of plain Keras layers, in place.

    Weights get their fake-quantized values, so that the TFLite converter finds the
    same scales and codes; ranges become constants; mixed precision becomes float32.

    Raises:
        TfoptError: No batch has been seen since `prepare`.
    """
    layers = fake_quantize.classes(graph.keras)
    weighted = frozenset(layers.weighted.values())
    ranges = {spec: _bounds(spec) for spec in _range_layers(graph)}
    if not any(low < high for low, high in ranges.values()):
        raise TfoptError(
            "No activation has a range yet. Expected a model that was trained or "
            "calibrated after `prepare`: fit it, or give `QuantizeAware` a "
            f"`representative_dataset`. Received: model={graph.name!r}"
        )
    for call in graph.calls:
        if call.layer in ranges:
            call.kwargs = {}
    for spec in graph.layers():
        if spec in ranges:
            spec.cls = layers.FixedActivationRange
            low, high = _representable(*ranges[spec])
            spec.config = {
                "name": spec.name,
                "dtype": "float32",
                "minimum": low,
                "maximum": high,
            }
            spec.weights = []
        elif spec.cls in weighted:
            _bake_weights(spec)
        if "dtype" in spec.config:
            spec.config = {**spec.config, "dtype": _float32(spec.config["dtype"])}


def _range_layers(graph: Graph) -> list[LayerSpec]:
    cls = fake_quantize.classes(graph.keras).ActivationRange
    return [spec for spec in graph.layers() if spec.cls is cls]


def _bounds(spec: LayerSpec) -> tuple[float, float]:
    bounds = dict(zip(spec.weight_names, spec.weights or [], strict=True))
    return float(bounds["minimum"]), float(bounds["maximum"])


def _representable(low: float, high: float) -> tuple[float, float]:
    # A tensor that was zero throughout (all its ReLUs dead) may have any range.
    return affine.representable_range(low, high if low < high else 1.0)


def _bake_weights(spec: LayerSpec) -> None:
    names, channel_axes = fake_quantize.WEIGHTS[spec.cls.base_class.__name__]
    config = dict(spec.config)
    bits, per_channel = config["weight_bits"], config["per_channel"]
    weights = dict(zip(spec.weight_names, spec.weights or [], strict=True))
    for name in weights.keys() & set(names):
        weights[name] = affine.fake_quantize_weights(
            weights[name], bits=bits, channel_axes=channel_axes if per_channel else ()
        )
        # One scale per tensor is something the converter must be told.
        config["fixed_weight_range"] = float(abs(weights[name]).max()) or 1.0
    spec.weights = list(weights.values())
    if per_channel:
        for key in ("weight_bits", "per_channel", "fixed_weight_range"):
            del config[key]
        spec.cls = spec.cls.base_class
    spec.config = config


def _float32(policy: Any) -> Any:
    name = policy
    if isinstance(policy, Mapping):
        name = policy.get("config", {}).get("name", "")
    return "float32" if "float16" in str(name) else policy
