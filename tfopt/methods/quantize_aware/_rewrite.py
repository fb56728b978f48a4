"""Rewrites of flat graphs: float to fake-quantized for training, and back."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt import affine
from tfopt._keras import fake_quantize, operations
from tfopt._keras.flatten import Call, Graph, LayerSpec, Value
from tfopt.methods.quantize_aware._placement import Plan
from tfopt.methods.quantize_aware._ranges import Range
from tfopt.types import TfoptError

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """How the numbers of a model are rounded; `QuantizeAware` describes the fields."""

    weight_bits: int
    packed: bool
    per_channel: bool
    activation_bits: int
    range_tracking: str
    ema_decay: float
    percentile: float
    observing: bool


def insert_fake_quantization(
    graph: Graph, plan: Plan, numbers: Numbers, *, freezes_batch_norm: bool = False
) -> None:
    """Puts fake-quantization into a graph, in place, as a plan says.

    Args:
        graph: Flat graph.
        plan: What to do with it; the plan of weights alone has no points.
        numbers: How to round.
        freezes_batch_norm: Whether BatchNormalization layers must be able to freeze.
    """
    layers = fake_quantize.classes(graph.keras)
    for spec in plan.weighted:
        spec.cls = layers.weighted[spec.kind]
        spec.config = {
            **spec.config,
            "weight_bits": numbers.weight_bits,
            "per_channel": numbers.per_channel,
            "packed": numbers.packed,
        }
    if freezes_batch_norm:
        for spec in graph.layers():
            if spec.cls is graph.keras.layers.BatchNormalization:
                spec.cls = layers.BatchNormalization
    inserter = _Inserter(graph, plan, numbers)
    calls, graph.calls = graph.calls, []
    for spec, value in graph.input_specs:
        inserter.quantize(value, spec)
    for call in calls:
        call.args, call.kwargs = call.map_arguments(inserter.replaced)
        graph.calls.append(call)
        for value in call.outputs:
            inserter.quantize(value, call.layer)
    graph.outputs = tf.nest.map_structure(inserter.replaced, graph.outputs)


class _Inserter:
    """Appends calls that fake-quantize to a graph, and knows what they replace."""

    def __init__(self, graph: Graph, plan: Plan, numbers: Numbers) -> None:
        self._graph = graph
        self._plan = plan
        self._numbers = numbers
        self._classes = fake_quantize.classes(graph.keras)
        # Names of layers that are yet to be appended count too.
        self._unique_name = graph.name_maker()
        self._made: dict[Range, LayerSpec] = {}
        self._replacements: dict[Value, Value] = {}

    def replaced(self, value: Value) -> Value:
        return self._replacements.get(value, value)

    def quantize(self, value: Value, source: LayerSpec) -> None:
        """Fake-quantizes a value from now on, if the plan says so."""
        point = self._plan.points.get(value)
        if point is None:
            return
        kept = value
        if value in self._plan.barriers:
            config = {"name": self._unique_name(f"{source.name}_float")}
            kept = self._append(
                LayerSpec(self._classes.KeepFloat, config, source.path, weights=[]),
                value,
            )
        if point.range not in self._made:
            self._made[point.range] = self._range_layer(point.range)
        options = {} if point.follows else {"follow": False}
        if point.is_average:
            options["half_away"] = True
        self._replacements[value] = self._append(
            self._made[point.range], kept, **options
        )

    def _append(self, spec: LayerSpec, value: Value, **kwargs: Any) -> Value:
        call = Call(spec, (value,), kwargs, [])
        call.outputs = [Value(value.shape, value.dtype, producer=call)]
        self._graph.calls.append(call)
        return call.output

    def _range_layer(self, how: Range) -> LayerSpec:
        config: dict[str, Any] = {
            "name": self._unique_name(f"{how.name}_range"),
            "dtype": "float32",
        }
        numbers = self._numbers
        config["bits"] = numbers.activation_bits
        if how.fixed is not None:
            low, high = _fixed_range(how.fixed, numbers.activation_bits)
            config |= {"minimum": low, "maximum": high}
            cls = self._classes.FixedActivationRange
            return LayerSpec(cls, config, how.path, weights=[])
        # A file with int16 activations has the ranges of its calibration data, which
        # cut off nothing; so must these.
        peaks = how.keep_peaks or numbers.activation_bits == 16
        tracking = numbers.range_tracking
        config |= {
            "range_tracking": "peak" if peaks and tracking != "minmax" else tracking,
            "ema_decay": numbers.ema_decay,
            "percentile": numbers.percentile,
            "nonnegative": how.nonnegative,
            "observing": numbers.observing,
            "room": how.room,
        }
        return LayerSpec(self._classes.ActivationRange, config, how.path)


def _fixed_range(limits: tuple[float, float], bits: int) -> tuple[float, float]:
    if bits == 8:
        return limits
    # The int16 kernels for which int8 fixes 1/256 or 1/128 have the scale 1/32768.
    peak = 2.0 ** math.ceil(math.log2(max(-limits[0], limits[1])))
    high = peak * affine.INT16_MAX / (affine.INT16_MAX + 1)
    return -high, high


def is_prepared(graph: Graph) -> bool:
    """Returns whether a graph holds fake-quantization for training."""
    return bool(_range_layers(graph) or weighted_layers(graph))


def bake(graph: Graph) -> None:
    """Turns a trained fake-quantized graph into one of plain Keras layers, in place.

    Weights get their fake-quantized values, so that the TFLite converter finds the
    same scales and codes; ranges become constants; mixed precision becomes float32.
    What the graph itself would not tell the converter, a layer at the input does.

    Raises:
        TfoptError: No batch has been seen since `prepare`.
    """
    layers = fake_quantize.classes(graph.keras)
    ranges = {spec: _bounds(spec) for spec in _range_layers(graph)}
    if ranges and not any(low < high for low, high in ranges.values()):
        raise TfoptError(
            "No activation has a range yet. Expected a model that was trained or "
            "calibrated after `prepare`: fit it, or give `QuantizeAware` a "
            f"`representative_dataset`. Received: model={graph.name!r}"
        )
    weighted = weighted_layers(graph)
    if not ranges:
        _mark(graph, "int8_weights")
    elif any(spec.config["packed"] for spec in weighted):
        _mark(graph, "int4")
    for call in graph.calls:
        if call.layer in ranges:
            call.kwargs = {}
            _bake_mask(call.inputs[0].producer, ranges[call.layer])
    for spec in graph.layers():
        if spec in ranges:
            _bake_range(spec, layers.FixedActivationRange, ranges[spec])
        elif spec in weighted:
            _bake_weights(spec)
        elif spec.cls is layers.BatchNormalization:
            spec.cls = graph.keras.layers.BatchNormalization
            spec.config = _without(spec.config, "statistics_frozen")
        if "dtype" in spec.config:
            spec.config = {**spec.config, "dtype": _float32(spec.config["dtype"])}


def _bake_mask(made: Call | None, bounds: tuple[float, float]) -> None:
    """Brings the numbers of a mask into the range of the scores."""
    if made and made.layer.weight_names == [operations.MASK] and made.layer.weights:
        made.layer.weights = [np.clip(made.layer.weights[0], *bounds)]


def _mark(graph: Graph, scheme: str) -> None:
    """Puts a layer that names a scheme behind the first input."""
    spec, value = graph.input_specs[0]
    cls = fake_quantize.classes(graph.keras).Scheme
    name = graph.name_maker()(f"{spec.name}_scheme")
    config = {"name": name, "dtype": value.dtype, "scheme": scheme}
    call = Call(LayerSpec(cls, config, name, weights=[]), (value,), {}, [])
    call.outputs = [Value(value.shape, value.dtype, producer=call)]

    def marked(other: Value) -> Value:
        return call.output if other is value else other

    for each in graph.calls:
        each.args, each.kwargs = each.map_arguments(marked)
    graph.outputs = tf.nest.map_structure(marked, graph.outputs)
    graph.calls.insert(0, call)


def weighted_layers(graph: Graph) -> list[LayerSpec]:
    """Returns the layers of a prepared graph that compute with rounded weights."""
    classes = frozenset(fake_quantize.classes(graph.keras).weighted.values())
    # A finalized one has a fixed range.
    return [
        spec
        for spec in graph.layers()
        if spec.cls in classes and spec.config.get("fixed_weight_range") is None
    ]


def _bake_range(spec: LayerSpec, cls: type, bounds: tuple[float, float]) -> None:
    bits = spec.config["bits"]
    low, high = _representable(spec, *bounds, bits)
    spec.cls = cls
    spec.config = {
        "name": spec.name,
        "dtype": "float32",
        "minimum": low,
        "maximum": high,
        "bits": bits,
    }
    spec.weights = []


def _range_layers(graph: Graph) -> list[LayerSpec]:
    cls = fake_quantize.classes(graph.keras).ActivationRange
    return [spec for spec in graph.layers() if spec.cls is cls]


def _bounds(spec: LayerSpec) -> tuple[float, float]:
    bounds = dict(zip(spec.weight_names, spec.weights or [], strict=True))
    return float(bounds["minimum"]), float(bounds["maximum"])


def _representable(
    spec: LayerSpec, low: float, high: float, bits: int
) -> tuple[float, float]:
    if low == high:
        _log.warning(
            "All activations at %s were zero in training: the layer before it is dead",
            spec.name,
        )
        high = 1.0  # any range holds zero
    if bits == 8:
        return affine.representable_range(low, high)
    peak = fake_quantize.INT16_HEADROOM * max(high, -low)
    return -peak, peak


def _bake_weights(spec: LayerSpec) -> None:
    kind, config = spec.cls.base_class.__name__, dict(spec.config)
    names, _ = fake_quantize.WEIGHTS[kind]
    channel_axes = fake_quantize.channel_axes(kind, config)
    bits, per_channel = config["weight_bits"], config["per_channel"]
    weights = dict(zip(spec.weight_names, spec.weights or [], strict=True))
    for name in weights.keys() & set(names):
        weights[name] = affine.fake_quantize_weights(
            weights[name],
            bits=bits,
            channel_axes=channel_axes if per_channel else (),
            packed=config["packed"],
        )
        # One scale per tensor is something the converter must be told.
        config["fixed_weight_range"] = float(abs(weights[name]).max()) or 1.0
    spec.weights = list(weights.values())
    if per_channel:
        spec.cls = spec.cls.base_class
        config = _without(
            config, "weight_bits", "per_channel", "packed", "fixed_weight_range"
        )
    spec.config = config


def _without(config: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


def _float32(policy: Any) -> Any:
    name = policy
    if isinstance(policy, Mapping):
        name = policy.get("config", {}).get("name", "")
    return "float32" if "float16" in str(name) else policy
