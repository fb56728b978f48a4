"""Operations as layers, or as the operations that LiteRT has int8 kernels for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import operations
from tfopt._keras.flatten import Call, LayerSpec, Value
from tfopt.methods.quantize_aware._building import Builder, Expansion
from tfopt.methods.quantize_aware._canonical import _masks

_MULTIPLY, _SUBTRACT = "math.multiply", "math.subtract"


def _operand(given: Mapping[str, Any], *names: str) -> Any:
    """Returns the argument that has one of several names."""
    for name in names:
        if name in given:
            return given[name]
    return None


_X = ("x", "features", "input", "input_tensor", "logits", "a", "x1", "inputs", "t")
_Y = ("y", "b", "x2")


def _unary(build: Builder, call: Call) -> tuple[LayerSpec, Value] | None:
    x = _operand(operations.bound(call), *_X)
    if not isinstance(x, Value) or not tf.as_dtype(x.dtype).is_floating:
        return None
    return call.layer, x


def _activation(name: str) -> Expansion:
    """Returns an expansion to an Activation layer."""

    def expand(build: Builder, call: Call) -> Value | None:
        found = _unary(build, call)
        if found is None or not hasattr(build.keras.activations, name):
            return None
        spec, x = found
        config = {"activation": name, "dtype": "float32"}
        return build.call(build.layer(spec, name, "Activation", config), x, x.shape)

    return expand


def _relu(build: Builder, call: Call, limit: float | None = None) -> Value | None:
    found = _unary(build, call)
    if found is None:
        return None
    spec, x = found
    # The operation of Keras 3 has no such options; its layer and function have.
    config = {"max_value": limit, "dtype": "float32"}
    return build.call(build.layer(spec, "relu", "ReLU", config), x, x.shape)


def _leaky_relu(build: Builder, call: Call) -> Value | None:
    found, given = _unary(build, call), operations.bound(call)
    if found is None:
        return None
    spec, x = found
    slope = float(_operand(given, "alpha", "negative_slope"))
    key = "alpha" if build.keras.__name__ == "tf_keras" else "negative_slope"
    config = {key: slope, "dtype": "float32"}
    return build.call(build.layer(spec, "leaky", "LeakyReLU", config), x, x.shape)


def _softmax(build: Builder, call: Call) -> Value | None:
    found, given = _unary(build, call), operations.bound(call)
    if found is None:
        return None
    spec, x = found
    axis = given.get("axis")
    config = {"axis": -1 if axis is None else axis, "dtype": "float32"}
    return build.call(build.layer(spec, "softmax", "Softmax", config), x, x.shape)


def _clip(build: Builder, call: Call) -> Value | None:
    """Turns a clip from zero into a ReLU, and others into minimum and maximum."""
    given = operations.bound(call)
    x = _operand(given, "t", "x")
    low = _operand(given, "clip_value_min", "x_min")
    high = _operand(given, "clip_value_max", "x_max")
    if not isinstance(x, Value) or not all(map(_is_number, (low, high))):
        return None
    if not _is_float(x):
        return None
    if float(low) == 0:
        config = {"max_value": float(high), "dtype": "float32"}
        return build.call(build.layer(call.layer, "relu", "ReLU", config), x, x.shape)
    least = build.operation(
        call.layer, "least", "math.maximum", (x, float(low)), x.shape
    )
    args = (least, float(high))
    return build.operation(call.layer, "most", "math.minimum", args, x.shape)


def _is_number(thing: Any) -> bool:
    return not isinstance(thing, Value) and thing is not None and np.ndim(thing) == 0


def _negative(build: Builder, call: Call) -> Value | None:
    found = _unary(build, call)
    if found is None:
        return None
    spec, x = found
    return build.operation(spec, "minus", _MULTIPLY, (x, -1.0), x.shape)


def _square(build: Builder, call: Call) -> Value | None:
    found = _unary(build, call)
    if found is None:
        return None
    spec, x = found
    return build.operation(spec, "square", _MULTIPLY, (x, x), x.shape)


def _squared_difference(build: Builder, call: Call) -> Value | None:
    x, y = _pair(call)
    shape = call.output.shape
    if not _is_float(call.output):
        return None
    difference = build.operation(call.layer, "difference", _SUBTRACT, (x, y), shape)
    args = (difference, difference)
    return build.operation(call.layer, "square", _MULTIPLY, args, shape)


def _power(build: Builder, call: Call) -> Value | None:
    x, y = _pair(call)
    if not isinstance(x, Value) or not _is_number(y) or not _is_float(x):
        return None
    if float(y) in (2, 3, 4):
        square = build.operation(call.layer, "square", _MULTIPLY, (x, x), x.shape)
        if float(y) == 2:
            return square
        args = (square, x if float(y) == 3 else square)
        return build.operation(call.layer, "power", _MULTIPLY, args, x.shape)
    if float(y) == -0.5:
        return build.operation(call.layer, "rsqrt", "math.rsqrt", (x,), x.shape)
    return None


def _divide(build: Builder, call: Call) -> Value | None:
    """Turns a division by a constant into a product."""
    x, y = _pair(call)
    if not isinstance(x, Value) or isinstance(y, Value) or not _is_float(call.output):
        return None
    factor = 1 / np.asarray(y, np.float32)
    return build.operation(
        call.layer, "product", _MULTIPLY, (x, factor), call.output.shape
    )


def _pair(call: Call) -> tuple[Any, Any]:
    given = operations.bound(call)
    return _operand(given, *_X), _operand(given, *_Y)


def _is_float(value: Value) -> bool:
    return tf.as_dtype(value.dtype).is_floating


def _arithmetic(build: Builder, call: Call) -> Value | None:
    """Gives a constant with several values a range of its own."""
    if operations.function_name(call.layer).lower() in ("biasadd", "bias_add"):
        given = operations.bound(call)
        x, y = given["value"], given["bias"]
        function = "math.add"
    else:
        x, y = _pair(call)
        function = _FUNCTIONS[operations.canonical_kind(call.layer) or ""]
    if not _is_float(call.output):
        return None
    tie = next((each for each in (x, y) if isinstance(each, Value)), None)
    constants = [
        each for each in (x, y) if not isinstance(each, Value) and np.size(each) > 1
    ]
    if tie is None or len(constants) != 1:
        return None
    if function == "math.add":
        masked = _masks.added(build, call, tie, constants[0])
        if masked is not None:
            return masked
    made = _constant(build, call.layer, constants[0], tie)
    x, y = (each if isinstance(each, Value) else made for each in (x, y))
    return build.operation(call.layer, "sum", function, (x, y), call.output.shape)


_FUNCTIONS = {
    "add": "math.add",
    "maximum": "math.maximum",
    "minimum": "math.minimum",
    "mul": _MULTIPLY,
    "sub": _SUBTRACT,
}


def _constant(build: Builder, spec: LayerSpec, array: Any, tie: Value) -> Value:
    """Returns a constant as a value that can have a range."""
    array = np.asarray(array, np.float32)
    config = {
        "shape": list(array.shape),
        "weight_name": "constant",
        "dtype": "float32",
        "trainable": False,
    }
    cls = operations.classes(build.keras).Weight
    layer = build.layer(spec, "constant", cls, config, {"constant": array})
    return build.call(layer, tie, array.shape)


def _matmul(build: Builder, call: Call) -> Value | None:
    """Turns a product with a matrix of weights into a Dense layer."""
    given = operations.bound(call)
    x, y = _pair(call)
    turned = ("transpose_a", "adjoint_a", "adj_x", "a_is_sparse", "b_is_sparse")
    if any(given.get(flag) for flag in turned) or not isinstance(x, Value):
        return None
    kernel, trainable = _weight(y)
    if kernel is None or kernel.ndim != 2 or not _is_float(x):
        return None
    if any(given.get(flag) for flag in ("transpose_b", "adjoint_b", "adj_y")):
        if trainable:
            return None
        kernel = kernel.T
    name = y.producer.layer.name if isinstance(y, Value) and y.producer else "kernel"
    config = {
        "units": kernel.shape[1],
        "use_bias": False,
        "trainable": trainable,
        "dtype": "float32",
    }
    origin = y.producer.layer if isinstance(y, Value) and y.producer else call.layer
    layer = build.layer(origin, f"{name}_dense", "Dense", config, {"kernel": kernel})
    return build.call(layer, x, call.output.shape)


def _sum_of_many(build: Builder, call: Call) -> Value | None:
    """Turns a sum of several tensors into a chain of sums of two."""
    values = tf.nest.flatten(operations.bound(call)["inputs"])
    if not all(isinstance(value, Value) and _is_float(value) for value in values):
        return None
    if len(values) < 2:
        return None
    total, *others = values
    for number, value in enumerate(others):
        args = (total, value)
        total = build.operation(
            call.layer, f"sum{number}", "math.add", args, call.output.shape
        )
    return total


def _variance(build: Builder, call: Call) -> Value | None:
    """Computes the mean of squares of differences from the mean."""
    given, found = operations.bound(call), _unary(build, call)
    if found is None or given.get("axis") is None or found[1].shape is None:
        return None
    spec, x = found
    options = {"axis": given["axis"], "keepdims": True}
    axes = {int(axis) % len(x.shape or ()) for axis in np.atleast_1d(given["axis"])}
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape or ()))
    mean = build.operation(spec, "mean", "math.reduce_mean", (x,), kept, **options)
    moved = build.operation(spec, "centred", _SUBTRACT, (x, mean), x.shape)
    square = build.operation(spec, "square", _MULTIPLY, (moved, moved), x.shape)
    options["keepdims"] = bool(given.get("keepdims"))
    return build.operation(
        spec, "variance", "math.reduce_mean", (square,), call.output.shape, **options
    )


def _normalize(build: Builder, call: Call) -> Value | None:
    """Turns `keras.ops.normalize` into what LiteRT has a kernel for."""
    given, found = operations.bound(call), _unary(build, call)
    if found is None or given.get("order", 2) != 2 or given.get("axis", -1) != -1:
        return None
    spec, x = found
    # Keras bounds the norm, TensorFlow its square.
    epsilon = float(given.get("epsilon") or 1e-7) ** 2
    return build.operation(spec, "unit", "math.l2_normalize", (x, -1, epsilon), x.shape)


def _reversed(build: Builder, call: Call) -> Value | None:
    """Turns a reversal along axes of fixed sizes into gathers."""
    given = operations.bound(call)
    x, axes = _operand(given, "tensor", "x"), given.get("axis")
    if not isinstance(x, Value) or axes is None or isinstance(axes, Value):
        return None
    places = [int(axis) for axis in np.atleast_1d(axes)]
    return _reordered(
        build, call, x, {axis: lambda order: order[::-1] for axis in places}
    )


def _rolled(build: Builder, call: Call) -> Value | None:
    """Turns a rotation along axes of fixed sizes into gathers."""
    given = operations.bound(call)
    x, shift, axis = _operand(given, "input", "x"), given["shift"], given.get("axis")
    if not isinstance(x, Value) or axis is None or np.ndim(axis) or np.ndim(shift):
        return None
    return _reordered(
        build, call, x, {int(axis): lambda order: np.roll(order, int(shift))}
    )


def _reordered(
    build: Builder,
    call: Call,
    x: Value,
    orders: Mapping[int, Callable[[np.ndarray], np.ndarray]],
) -> Value | None:
    shape = x.shape
    if shape is None or not _is_float(x):
        return None
    places = {axis % len(shape): order for axis, order in orders.items()}
    if any(shape[axis] is None for axis in places) or not places:
        return None
    for axis, order in places.items():
        indices = order(np.arange(int(shape[axis] or 0), dtype=np.int32))
        part = f"order{axis}"
        args = (x, indices)
        x = build.operation(call.layer, part, "gather", args, shape, axis=axis)
    return x


def _permuted(build: Builder, call: Call) -> Value | None:
    """Turns `keras.ops.moveaxis` and `swapaxes` into a transposition."""
    given = operations.bound(call)
    x = given["x"]
    if not isinstance(x, Value) or x.shape is None:
        return None
    # The sizes of this array tell which axis went where.
    numbers = np.empty([axis + 1 for axis in range(len(x.shape))])
    if "source" in given:
        moved = np.moveaxis(numbers, given["source"], given["destination"])
    else:
        moved = np.swapaxes(numbers, given["axis1"], given["axis2"])
    permutation = [size - 1 for size in moved.shape]
    shape = tuple(x.shape[axis] for axis in permutation)
    return build.operation(
        call.layer, "transpose", "transpose", (x, permutation), shape
    )


def _weight(thing: Any) -> tuple[np.ndarray | None, bool]:
    """Returns the array of a variable or a constant, and whether it is trainable."""
    if not isinstance(thing, Value):
        return (None if thing is None else np.asarray(thing, np.float32)), False
    spec = thing.producer.layer if thing.producer else None
    if spec is None or operations.own_kind(spec) != "Weight" or not spec.weights:
        return None, False
    return spec.weights[0], bool(spec.config.get("trainable", True))


_NAMED = (
    *("elu", "hard_sigmoid", "log_sigmoid", "selu", "sigmoid", "softplus"),
    *("softsign", "tanh"),
)
ROWS: Mapping[str, Callable[[Builder, Call], Value | None]] = {
    **{name: _activation(name) for name in _NAMED},
    **dict.fromkeys(_FUNCTIONS, _arithmetic),
    **dict.fromkeys(("moveaxis", "swapaxes"), _permuted),
    "add_n": _sum_of_many,
    "clip": _clip,
    "div": _divide,
    "exp": _activation("exponential"),
    "hard_swish": _activation("hard_silu"),
    "leaky_relu": _leaky_relu,
    "matmul": _matmul,
    "neg": _negative,
    "normalize": _normalize,
    "pow": _power,
    "relu": _relu,
    "reverse": _reversed,
    "roll": _rolled,
    "silu": _activation("swish"),
    "relu6": functools.partial(_relu, limit=6.0),
    "softmax": _softmax,
    "square": _square,
    "squared_difference": _squared_difference,
    "variance": _variance,
    "where": _masks.where,
}
