"""Layers that are sequences of simpler ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfopt._keras.flatten import Call, LayerSpec, Value
from tfopt.methods.quantize_aware._building import Builder


def chain(build: Builder, call: Call) -> Value | None:
    """Turns Add, Multiply and the like of many inputs into chains of two."""
    if len(call.inputs) < 3:
        return None
    return _chained(build, call, call.layer.cls, call.layer.config)


def average(build: Builder, call: Call) -> Value | None:
    """Turns Average into a sum and a division."""
    total = _chained(build, call, build.keras.layers.Add, {})
    config = {"scale": 1 / len(call.inputs), "offset": 0.0}
    share = build.layer(call.layer, "share", "Rescaling", config)
    return build.call(share, total, call.output.shape)


def _chained(build: Builder, call: Call, cls: type, config: dict[str, Any]) -> Value:
    value, *others = call.inputs
    for number, other in enumerate(others):
        part = "sum" if number == 0 else "more" if number == 1 else f"more{number}"
        layer = build.layer(call.layer, part, cls, config)
        value = build.call(layer, [value, other], _broadcast(value, other))
    return value


def _broadcast(one: Value, other: Value) -> tuple[int | None, ...] | None:
    if one.shape is None or other.shape is None:
        return None
    if len(one.shape) != len(other.shape):
        return max(one.shape, other.shape, key=len)
    pairs = zip(one.shape, other.shape, strict=True)
    return tuple(b if a == 1 else a for a, b in pairs)


def separable(build: Builder, call: Call) -> Value | None:
    """Splits a separable convolution into a depthwise one and one of size 1."""
    spec = call.layer
    config, (x,) = spec.config, call.inputs
    rank = 1 if spec.kind == "SeparableConv1D" else 2
    if (
        config["data_format"] == "channels_first"
        or x.shape is None
        or x.shape[-1] is None
    ):
        return None
    padding = config["padding"]
    if padding == "causal":
        size, rate = config["kernel_size"][0], config["dilation_rate"][0]
        pad = {"padding": ((size - 1) * rate, 0)}
        longer = (x.shape[0], None, x.shape[2])
        x = build.call(build.layer(spec, "pad", "ZeroPadding1D", pad), x, longer)
        padding = "valid"
    depthwise = {
        key: config[key]
        for key in ("kernel_size", "strides", "dilation_rate", "depth_multiplier")
    } | {"padding": padding, "use_bias": False}
    for end in ("initializer", "regularizer", "constraint"):
        depthwise[f"depthwise_{end}"] = config[f"depthwise_{end}"]
    pointwise = {
        key: config[key]
        for key in ("filters", "use_bias", "activation", "activity_regularizer")
    } | {"kernel_size": 1}
    for end in ("initializer", "regularizer", "constraint"):
        pointwise[f"kernel_{end}"] = config[f"pointwise_{end}"]
        pointwise[f"bias_{end}"] = config[f"bias_{end}"]
    trainable = {"trainable": config.get("trainable", True)}
    kernel, *others = spec.weights or []
    first = build.layer(
        spec,
        "depthwise",
        f"DepthwiseConv{rank}D",
        depthwise | trainable,
        {"kernel": kernel},
    )
    second = build.layer(
        spec,
        "pointwise",
        f"Conv{rank}D",
        pointwise | trainable,
        dict(zip(("kernel", "bias"), others, strict=False)),
    )
    shape = call.output.shape
    channels = int((x.shape or (0,))[-1] or 0) * config["depth_multiplier"]
    inner = None if shape is None else (*shape[:-1], channels)
    return build.call(second, build.call(first, x, inner), shape)


def pooling_3d(build: Builder, call: Call) -> Value | None:
    """Pools over the width, then over depth and height: TFLite has no 3D pooling.

    A maximum of maxima is the maximum, and a mean of means of as many is the mean;
    the latter is rounded twice.
    """
    spec, (x,) = call.layer, call.inputs
    config, after = spec.config, call.output.shape
    sizes = (x.shape or ())[1:] + (after or ())[1:]
    if config["data_format"] == "channels_first" or None in sizes or len(sizes) != 8:
        return None
    depth, height, width, channels, depth_2, height_2, width_2, _ = map(int, sizes)  # type: ignore[arg-type]
    kind = spec.kind.replace("3D", "2D")

    def pool(part: str, axes: slice, value: Value, shape: Sequence[int]) -> Value:
        one = (1,) if len(config["pool_size"][axes]) == 1 else ()
        options = {
            "pool_size": one + tuple(config["pool_size"][axes]),
            "strides": one + tuple(config["strides"][axes]),
            "padding": config["padding"],
        }
        return build.call(build.layer(spec, part, kind, options), value, (None, *shape))

    x = _reshape(build, spec, "rows", x, (depth * height, width, channels))
    x = pool("width", slice(2, 3), x, (depth * height, width_2, channels))
    x = _reshape(build, spec, "planes", x, (depth, height, width_2 * channels))
    x = pool("depth", slice(0, 2), x, (depth_2, height_2, width_2 * channels))
    return _reshape(build, spec, "volume", x, (depth_2, height_2, width_2, channels))


def _reshape(
    build: Builder, spec: LayerSpec, part: str, value: Value, shape: Sequence[int]
) -> Value:
    layer = build.layer(spec, part, "Reshape", {"target_shape": tuple(shape)})
    batch = value.shape[0] if value.shape else None
    return build.call(layer, value, (batch, *shape))


# Layers that do the same with any number of axes before the last.
_ANY_RANK = ("Activation", "Dense", "Dropout", "ELU", "LeakyReLU", "ReLU", "Softmax")


def time_distributed(build: Builder, call: Call) -> Value | None:
    """Calls the layer inside of a TimeDistributed on all time steps at once."""
    spec, x, after = call.layer, call.inputs[0], call.output.shape
    if len(call.inputs) > 1 or x.shape is None or after is None:
        return None
    inner = build.once(spec, "inner", lambda: _inner(build, spec))
    if inner is None:
        return None
    if inner.kind in _ANY_RANK:
        return build.call(inner, x, after)
    steps = x.shape[1]
    if None in x.shape[1:] or None in after[1:]:
        return None
    merged = build.reshape(spec, "merged", x, (-1, *map(int, x.shape[2:])))  # type: ignore[arg-type]
    value = build.call(inner, merged, (None, *after[2:]))
    sizes = (int(steps), *map(int, after[2:]))  # type: ignore[arg-type]
    return build.reshape(spec, "split", value, (-1, *sizes))


def _inner(build: Builder, spec: LayerSpec) -> LayerSpec | None:
    layer = build.keras.layers.deserialize(spec.config["layer"])
    config = {**layer.get_config(), "name": build.unique_name(f"{spec.name}_inner")}
    made = LayerSpec(
        type(layer), config, spec.path, spec.weights, list(spec.weight_names)
    )
    # Models inside have layers of their own, and recurrent layers a state.
    known = made.kind and not hasattr(layer, "layers") and not hasattr(layer, "cell")
    return made if known else None
