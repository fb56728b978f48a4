"""A weighted layer with the BatchNormalization and the ReLU that fuse into it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import numpy as np

from tfopt._keras.flatten import Call, Graph, LayerSpec, Value
from tfopt.methods.quantize_aware._building import Builder
from tfopt.methods.quantize_aware._lowering import _affine, _einsum, _weights
from tfopt.methods.quantize_aware._rules import Rule, rule_of


@dataclasses.dataclass(frozen=True)
class Unit:
    """Calls that become one kernel.

    Attributes:
        call: Of the weighted layer.
        norm: Of the BatchNormalization behind it.
        relu: Of the ReLU behind them.
        others: All calls but the first, also such as do nothing in inference.
        end: The last one.
    """

    call: Call
    norm: Call | None
    relu: Call | None
    others: tuple[Call, ...]

    @property
    def end(self) -> Call:
        return self.others[-1] if self.others else self.call


def find(graph: Graph, weighted: Collection[LayerSpec]) -> dict[Call, Unit]:
    """Returns the units to lower, by the call of their weighted layer."""
    consumers = graph.consumers()
    return {
        call: _unit(call, consumers)
        for call in graph.calls
        if call.layer in weighted and _is_to_lower(call)
    }


def lowered(build: Builder, unit: Unit) -> list[Call]:
    """Returns the calls that a unit becomes."""
    row = _ROWS[_base(unit.call.layer)]
    made = build.replace(lambda build, _: row(build, unit), unit.end)
    return cast(list[Call], made)


def _base(spec: LayerSpec) -> str:
    return getattr(spec.cls, "base_class", spec.cls).__name__


def _is_to_lower(call: Call) -> bool:
    kind, shape = _base(call.layer), call.inputs[0].shape
    if kind in ("EinsumDense", "Conv3D"):
        return True
    if kind == "Dense":
        # Of a free size, it is a convolution of size 1: reshapes would need the size.
        return shape is not None and (
            len(shape) in (3, 4) or (len(shape) > 4 and None not in shape[1:])
        )
    rates = call.layer.config.get("dilation_rate", (1,))
    if kind in ("Conv1D", "DepthwiseConv1D"):
        return rates[0] != 1 or (shape is not None and None in shape[1:])
    return kind in ("Conv2D", "DepthwiseConv2D") and tuple(rates) != (1, 1)


def _unit(call: Call, consumers: Mapping[Value, list[Call]]) -> Unit:
    norm = relu = None
    others: list[Call] = []
    end = call
    while relu is None:
        following = consumers.get(end.output, [])
        if len(following) != 1 or len(following[0].outputs) != 1:
            break
        end = following[0]
        rule = rule_of(end)
        role = rule.role if isinstance(rule, Rule) else ""
        if role == "batch_norm" and norm is None:
            norm = end
        elif role == "relu":
            relu = end
        elif role != "identity":
            break
        others.append(end)
    # What does nothing behind the last of them stays where it is.
    while others and others[-1] not in (norm, relu):
        others.pop()
    return Unit(call, norm, relu, tuple(others))


def _shape(value: Value) -> tuple[Any, ...]:
    """Returns a shape that rules have found to be known."""
    return cast(tuple[Any, ...], value.shape)


def _finish(build: Builder, unit: Unit, value: Value) -> Value:
    """Adds the ReLU of a unit."""
    if unit.relu is None:
        return value
    return build.call(unit.relu.layer, value, value.shape)


def _kernel_and_bias(
    unit: Unit, axis: int = -1
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the kernel and the bias, with the BatchNormalization folded in."""
    spec = unit.call.layer
    kernel, *biases = spec.weights or []
    bias = biases[0] if biases else None
    if unit.norm is None:
        return kernel, bias
    scale, shift = _affine.of_batch_norm(unit.norm.layer)
    if bias is not None:
        shift = shift + bias * scale
    sizes = [1] * kernel.ndim
    sizes[axis] = -1
    if kernel.shape[axis] != scale.size:  # depthwise: [..., channels, multiplier]
        return kernel * scale.reshape(kernel.shape[-2:]), shift
    return kernel * scale.reshape(sizes), shift


def _dense(build: Builder, unit: Unit) -> Value:
    (given,), after = unit.call.inputs, _shape(unit.end.output)
    spec = unit.call.layer
    kernel, bias = _kernel_and_bias(unit)
    if None in _shape(given)[1:]:
        options = {"strides": [1] * 4, "padding": "VALID", "dilations": [1] * 4}
        return _convolved(build, unit, given, kernel[None, None], bias, options)
    flat = build.reshape(spec, "flat", given, (-1, kernel.shape[0]))
    value = _matmul(build, unit, flat, kernel, bias)
    return build.reshape(spec, "split", value, (-1, *after[1:]))


def _matmul(
    build: Builder, unit: Unit, flat: Value, kernel: np.ndarray, bias: Any
) -> Value:
    layer = _weights.layer(
        build,
        unit.end.layer,
        unit.call.layer,
        "Dense",
        {"units": kernel.shape[1]},
        kernel,
        bias,
    )
    return _finish(build, unit, build.call(layer, flat, (None, kernel.shape[1])))


def _einsum_dense(build: Builder, unit: Unit) -> Value:
    spec, (given,), after = unit.call.layer, unit.call.inputs, _shape(unit.end.output)
    weights = spec.weights or []
    plan = _einsum.plan(spec.config["equation"], _shape(given), weights[0].shape)
    kernel, bias = plan.matrices(*weights, bias_axes=spec.config.get("bias_axes"))
    if unit.norm is not None:
        scale, shift = (
            plan.along_last(x) for x in _affine.of_batch_norm(unit.norm.layer)
        )
        bias = shift if bias is None else shift + bias * scale
        kernel = kernel * scale
    value = given
    if plan.before:
        shape = tuple(_shape(given)[axis] for axis in plan.before)
        value = build.operation(
            spec, "before", "transpose", (value, list(plan.before)), shape
        )
    flat = build.reshape(spec, "flat", value, (-1, kernel.shape[0]))
    value = _matmul(build, unit, flat, kernel, bias)
    value = build.reshape(spec, "split", value, (-1, *plan.sizes[1:]))
    if plan.after:
        value = build.operation(
            spec, "after", "transpose", (value, list(plan.after)), after
        )
    return value


def _dilated(build: Builder, unit: Unit) -> Value:
    """Makes a convolution of one or two dimensions, one that TFLite knows as such."""
    spec, (x,) = unit.call.layer, unit.call.inputs
    config = spec.config
    kernel, bias = _kernel_and_bias(unit)
    strides, rates = tuple(config["strides"]), tuple(config["dilation_rate"])
    padding = config["padding"]
    if padding == "causal":
        left = (config["kernel_size"][0] - 1) * rates[0]
        x = build.operation(spec, "pad", "pad", (x, [[0, 0], [left, 0], [0, 0]]), None)
        padding = "valid"
    if len(rates) == 1:
        kernel, strides, rates = kernel[None], (strides[0],) * 2, (1, *rates)
    options = {
        "strides": [1, *strides, 1],
        "padding": padding.upper(),
        "dilations": [1, *rates, 1],
    }
    return _convolved(build, unit, x, kernel, bias, options)


def _convolved(
    build: Builder,
    unit: Unit,
    x: Value,
    kernel: np.ndarray,
    bias: Any,
    options: dict[str, Any],
) -> Value:
    """Calls TensorFlow's convolution; a series is an image of one row."""
    spec, after = unit.call.layer, unit.end.output.shape
    is_series = len(_shape(unit.call.inputs[0])) == 3
    if is_series:
        x = build.operation(spec, "rows", "expand_dims", (x, 1), None)
    weight = _weights.value(build, unit.end.layer, spec, kernel, x)
    depthwise = _base(spec).startswith("Depthwise")
    function = "raw_ops.DepthwiseConv2dNative" if depthwise else "raw_ops.Conv2D"
    value = build.operation(
        spec, "conv", function, (), None, input=x, filter=weight, **options
    )
    if bias is not None:
        value = build.operation(spec, "bias", "nn.bias_add", (value, bias), None)
    value = _finish(build, unit, value)
    if is_series:
        value = build.operation(spec, "steps", "squeeze", (value, [1]), after)
    value.shape = after
    return value


def _conv_3d(build: Builder, unit: Unit) -> Value:
    """Stacks the frames that a kernel sees as channels of one, for a Conv2D.

    Slices, concatenation and reshapes move codes, so the result is the same.
    """
    spec, (x,), after = unit.call.layer, unit.call.inputs, _shape(unit.end.output)
    config = spec.config
    frames, rows, columns, channels = map(int, _shape(x)[1:])
    size, stride, made = (
        config["kernel_size"][0],
        config["strides"][0],
        int(after[1]),
    )
    if config["padding"] == "same":
        missing = max((made - 1) * stride + size - frames, 0)
        ends = [missing // 2, missing - missing // 2]
        pads = [[0, 0], ends, [0, 0], [0, 0], [0, 0]]
        x = build.operation(spec, "pad", "pad", (x, pads), None)
    stacked = x
    if size > 1 or stride > 1:
        stacked = _stacked(build, spec, x, size, stride, made)
    flat = build.reshape(spec, "flat", stacked, (-1, rows, columns, size * channels))
    kernel, bias = _kernel_and_bias(unit)
    kernel = kernel.transpose(1, 2, 0, 3, 4)
    kernel = kernel.reshape(*kernel.shape[:2], size * channels, -1)
    options = {
        "filters": kernel.shape[-1],
        "kernel_size": tuple(config["kernel_size"][1:]),
        "strides": tuple(config["strides"][1:]),
        "padding": config["padding"],
    }
    layer = _weights.layer(build, unit.end.layer, spec, "Conv2D", options, kernel, bias)
    value = _finish(build, unit, build.call(layer, flat, (None, *after[2:])))
    return build.reshape(spec, "volume", value, (-1, *after[1:]))


def _stacked(
    build: Builder, spec: LayerSpec, x: Value, size: int, stride: int, made: int
) -> Value:
    """Returns, for each frame that is made, those that it is made of as channels."""
    seen = [
        build.operation(
            spec,
            f"frame{first}",
            "strided_slice",
            (x, [0, first, 0, 0, 0], [0, first + (made - 1) * stride + 1, 0, 0, 0]),
            None,
            strides=[1, stride, 1, 1, 1],
            begin_mask=0b11101,
            end_mask=0b11101,
        )
        for first in range(size)
    ]
    return build.operation(spec, "stacked", "concat", (seen, -1), None)


_ROWS: Mapping[str, Callable[[Builder, Unit], Value]] = {
    "Conv1D": _dilated,
    "Conv2D": _dilated,
    "Conv3D": _conv_3d,
    "Dense": _dense,
    "DepthwiseConv1D": _dilated,
    "DepthwiseConv2D": _dilated,
    "EinsumDense": _einsum_dense,
}
