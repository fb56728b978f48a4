"""Where the fake-quantization of a flat graph goes, and what stays float."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import tensorflow as tf

from tfopt._keras.flatten import Call, Graph, LayerSpec, Value
from tfopt.methods.quantize_aware._ranges import (
    Point,
    Range,
    share_with_concatenations,
)
from tfopt.methods.quantize_aware._report import LayerReport
from tfopt.methods.quantize_aware._rules import Rule, Unsupported, rule_of

# So far below all scores, a masked place has a weight of exp(-10) at most, less than
# a tenth of the step 1/256 of softmax even beside a thousand others.
MASK_ROOM = 10.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to do with a graph.

    Attributes:
        points: The tensors to fake-quantize.
        barriers: Those of them that layers compute which are to stay float although
            they have quantized inputs; the converter would quantize such layers.
        weighted: The layers whose weights to fake-quantize.
        report: What happens to each layer.
    """

    points: dict[Value, Point]
    barriers: frozenset[Value]
    weighted: frozenset[LayerSpec]
    report: tuple[LayerReport, ...]


def make_plan(
    graph: Graph, *, include: tuple[str, ...] | None, exclude: tuple[str, ...]
) -> Plan:
    """Decides the placement.

    Args:
        graph: Flat graph whose weighted layers have no activation of their own.
        include: Patterns of the computing layers to quantize, `None` for all. What
            fuses into a layer follows it.
        exclude: Patterns of computing layers to leave float.

    Raises:
        ValueError: A pattern matches no layer.
    """
    _check_patterns(graph, "include", include or ())
    _check_patterns(graph, "exclude", exclude)
    rules = {call: rule_of(call) for call in graph.calls}
    for call, rule in rules.items():
        rules[call] = _unselected(call.layer, rule, include, exclude) or rule
    return _Planner(graph, rules).plan()


class _Planner:
    """One pass over the calls, in order of execution."""

    def __init__(self, graph: Graph, rules: dict[Call, Rule | Unsupported]) -> None:
        self._graph = graph
        self._rules = rules
        self._consumers = graph.consumers()
        self._outputs = set(tf.nest.flatten(graph.outputs))
        self._names = {value: spec for spec, value in graph.input_specs}
        self._points: dict[Value, Point] = {}
        self._fused: set[Call] = set()

    def plan(self) -> Plan:
        for call in self._graph.calls:
            rule = self._rules[call]
            if isinstance(rule, Rule) and call not in self._fused:
                self._place(call, rule)
        for output in self._outputs:
            self._keep_peaks(self._source(output))
        for call in self._calls_where("averages"):
            point = self._points.get(self._source(call.output))
            if point is not None:
                self._points[call.output] = Point(
                    point.range, follows=False, is_average=True
                )
        share_with_concatenations(
            self._points,
            self._calls_where("one_scale"),
            self._source,
            selected={call.output for call in self._calls_where("selects")},
        )
        return Plan(
            points=self._points,
            barriers=frozenset(
                value for value in self._points if self._needs_barrier(value)
            ),
            weighted=frozenset(call.layer for call in self._calls_where("weighted")),
            report=tuple(self._report()),
        )

    def _calls_where(self, attribute: str) -> list[Call]:
        """Returns the calls whose rule has a flag set."""
        return [
            call
            for call, rule in self._rules.items()
            if isinstance(rule, Rule) and getattr(rule, attribute)
        ]

    def _place(self, call: Call, rule: Rule) -> None:
        if rule.role in ("batch_norm", "relu"):
            producer = self._source(call.inputs[0]).producer
            before = self._rules.get(producer) if producer else None
            if isinstance(before, Unsupported):
                self._rules[call] = Unsupported(
                    "it follows a float layer", wanted=before.wanted
                )
                return
        if rule.role == "batch_norm":
            # Nothing before it can absorb it, so it is a kernel of its own.
            rule = self._rules[call] = Rule("compute", fuses=("relu",))
        if rule.role not in ("compute", "relu"):
            return
        for value in call.inputs:
            if tf.as_dtype(value.dtype).is_floating:
                source = self._source(value)
                if source not in self._points:
                    self._points[source] = Point(self._new_range(source))
                if rule.output_range:
                    self._keep_peaks(source)
        if rule.masks:
            self._mask(call)
            return
        end, nonnegative = self._fuse(call, rule)
        made = self._new_range(end)
        made.fixed = rule.output_range
        made.nonnegative = nonnegative or rule.role == "relu"
        self._points[end] = Point(made)

    def _mask(self, call: Call) -> None:
        """Gives scores, mask and masked scores one range, which follows the scores."""
        scores, mask = call.inputs
        shared = self._points[self._source(scores)].range
        shared.room, shared.keep_peaks, shared.nonnegative = MASK_ROOM, True, False
        for value in (mask, call.output):
            self._points[value] = Point(shared, follows=False)

    def _new_range(self, value: Value) -> Range:
        spec = value.producer.layer if value.producer else self._names[value]
        return Range(spec.name, spec.path)

    def _fuse(self, call: Call, rule: Rule) -> tuple[Value, bool]:
        """Returns the last tensor of what runs as one kernel; whether ReLU makes it."""
        end = value = call.output
        fuses = list(rule.fuses)
        nonnegative = False
        while fuses and value not in self._outputs:
            consumers = self._consumers.get(value, [])
            if len(consumers) != 1 or len(consumers[0].outputs) != 1:
                break
            following = self._rules[consumers[0]]
            if not isinstance(following, Rule):
                break
            value = consumers[0].output
            if following.role in fuses:
                del fuses[: fuses.index(following.role) + 1]
                self._fused.add(consumers[0])
                end = value
                nonnegative = following.role == "relu"
            elif following.role != "identity":
                break
        return end, nonnegative

    def _source(self, value: Value) -> Value:
        """Returns the tensor whose range holds for `value` too."""
        while value.producer is not None:
            rule = self._rules[value.producer]
            moves = isinstance(rule, Rule) and rule.role in ("same_scale", "identity")
            if not moves or value in self._points:
                break
            value = value.producer.inputs[0]
        return value

    def _needs_barrier(self, value: Value) -> bool:
        call = value.producer
        rule = self._rules.get(call) if call else None
        if call is None or not isinstance(rule, Unsupported) or not rule.wanted:
            return False
        return self._has_int8_input(call)

    def _has_int8_input(self, call: Call) -> bool:
        """Returns whether a float layer computes from a quantized tensor."""
        sources = [self._source(value) for value in call.inputs]
        return any(
            value in self._points
            or (value.producer is not None and self._has_int8_input(value.producer))
            for value in sources
        )

    def _keep_peaks(self, value: Value) -> None:
        if value in self._points:
            self._points[value].range.keep_peaks = True

    def _report(self) -> Iterator[LayerReport]:
        calls = {call.layer: call for call in reversed(self._graph.calls)}
        for spec in self._graph.layers():
            rule = self._rules[calls[spec]]
            about = (spec.name, spec.path, spec.cls.__name__)
            if isinstance(rule, Unsupported):
                yield LayerReport(*about, "float", rule.reason, not rule.wanted)
            elif calls[spec] in self._fused:
                yield LayerReport(*about, "fused")
            else:
                computes = rule.role in ("compute", "relu")
                yield LayerReport(*about, "int8" if computes else rule.role)


def _unselected(
    spec: LayerSpec,
    rule: Rule | Unsupported,
    include: tuple[str, ...] | None,
    exclude: tuple[str, ...],
) -> Unsupported | None:
    role = "compute" if isinstance(rule, Unsupported) else rule.role
    if role in ("same_scale", "identity", "constant"):
        return None
    if any(spec.matches(pattern) for pattern in exclude):
        return Unsupported("excluded", wanted=True)
    # Whatever can fuse follows the layer before it.
    if include is None or role != "compute":
        return None
    if any(spec.matches(pattern) for pattern in include):
        return None
    return Unsupported("not included", wanted=True)


def _check_patterns(graph: Graph, option: str, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        if not any(spec.matches(pattern) for spec in graph.layers()):
            raise ValueError(
                f"No layer matches a pattern of `{option}`. Expected names of layers, "
                f"with * and ?: {[spec.path for spec in graph.layers()]}. "
                f"Received: {option}={patterns}, of which {pattern!r} matches nothing"
            )
