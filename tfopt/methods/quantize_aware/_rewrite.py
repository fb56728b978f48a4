"""Rewrites of flat graphs: float to fake-quantized for training, and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfopt import affine
from tfopt._keras import fake_quantize
from tfopt._keras.flatten import Call, Graph, LayerSpec, Value
from tfopt.methods.quantize_aware._placement import Plan
from tfopt.methods.quantize_aware._ranges import Range
from tfopt.types import TfoptError

_log = logging.getLogger(__name__)


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
    inserter = _Inserter(graph, plan, range_tracking, ema_decay)
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

    def __init__(
        self, graph: Graph, plan: Plan, range_tracking: str, ema_decay: float
    ) -> None:
        self._graph = graph
        self._plan = plan
        self._range_tracking = range_tracking
        self._ema_decay = ema_decay
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
        if how.fixed is not None:
            config |= {"minimum": how.fixed[0], "maximum": how.fixed[1]}
            cls = self._classes.FixedActivationRange
            return LayerSpec(cls, config, how.path, weights=[])
        peaks = how.keep_peaks and self._range_tracking == "ema"
        config |= {
            "range_tracking": "peak" if peaks else self._range_tracking,
            "ema_decay": self._ema_decay,
            "nonnegative": how.nonnegative,
        }
        return LayerSpec(self._classes.ActivationRange, config, how.path)


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
            low, high = _representable(spec, *ranges[spec])
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


def _representable(spec: LayerSpec, low: float, high: float) -> tuple[float, float]:
    if low == high:
        _log.warning(
            "All activations at %s were zero in training: the layer before it is dead",
            spec.name,
        )
        high = 1.0  # any range holds zero
    return affine.representable_range(low, high)


def _bake_weights(spec: LayerSpec) -> None:
    kind, config = spec.cls.base_class.__name__, dict(spec.config)
    names, _ = fake_quantize.WEIGHTS[kind]
    channel_axes = fake_quantize.channel_axes(kind, config)
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
