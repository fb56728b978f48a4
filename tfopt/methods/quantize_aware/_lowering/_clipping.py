"""ReLU with a limit of its own: the range behind it clips."""

from __future__ import annotations

from tfopt._keras import fake_quantize
from tfopt._keras.flatten import Call, Graph, Value
from tfopt.methods.quantize_aware._building import Builder

# Those that LiteRT's kernels know.
_LIMITS = (None, 6)


def let_ranges_clip(graph: Graph, build: Builder) -> None:
    """Takes the `max_value` off each ReLU that only feeds a range, in place.

    If the range is wider, as it is shared with a concatenation, a minimum of codes
    comes behind it.
    """
    fixed = fake_quantize.classes(graph.keras).FixedActivationRange
    consumers = graph.consumers()
    clips: dict[Call, float] = {}
    for call in graph.calls:
        if call.layer.kind != "ReLU" or call.layer.config.get("max_value") in _LIMITS:
            continue
        following = consumers.get(call.output, [])
        if len(following) != 1 or following[0].layer.cls is not fixed:
            continue
        limit = float(call.layer.config["max_value"])
        high = following[0].layer.config["maximum"]
        step = (high - following[0].layer.config["minimum"]) / 255
        spec = call.layer
        config = {**spec.config, "max_value": None}
        call.layer = build.layer(spec, "unlimited", spec.cls, config)
        if high > limit + step / 2:
            clips[following[0]] = limit
    graph.calls = [
        each
        for call in graph.calls
        for each in (_clipped(call, build, clips[call]) if call in clips else [call])
    ]


def _clipped(call: Call, build: Builder, limit: float) -> list[Call]:
    """Returns calls of a range, of a minimum, and of the range again."""
    spec = call.layer

    def expansion(build: Builder, call: Call) -> Value:
        wide = build.again(call)
        args = (wide, limit)
        clipped = build.operation(spec, "limit", "math.minimum", args, wide.shape)
        return build.call(spec, clipped, wide.shape)

    made = build.replace(expansion, call)
    return made or [call]
