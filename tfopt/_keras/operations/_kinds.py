"""One name for what `tf.*`, raw operations and `keras.ops` compute alike."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from tfopt._keras.flatten._graph import Call, LayerSpec
from tfopt._keras.operations import _arguments, _names

# Kind, then the last components of TensorFlow's names (of functions and of raw
# operations) and the names of the classes of `keras.ops`.
_KINDS = """
    abs: abs Abs Absolute
    add: add Add AddV2 bias_add BiasAdd BiasAddV1
    add_n: add_n AddN accumulate_n
    argmax: argmax ArgMax Argmax
    avg_pool: AvgPool avg_pool avg_pool2d AveragePool
    batch_norm: FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 batch_normalization
    broadcast_to: broadcast_to BroadcastTo
    cast: cast Cast
    clip: clip_by_value ClipByValue Clip
    concat: concat ConcatV2 Concatenate
    conv2d: conv2d Conv2D
    depth_to_space: depth_to_space DepthToSpace
    depthwise_conv2d: depthwise_conv2d DepthwiseConv2dNative
    div: divide truediv RealDiv Div Divide TrueDivide
    dot_product_attention: DotProductAttention
    einsum: einsum Einsum
    elu: elu Elu
    exp: exp Exp
    expand_dims: expand_dims ExpandDims
    fake_quant: fake_quant_with_min_max_args fake_quant_with_min_max_vars
        FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars
    floordiv: floordiv FloorDiv FloorDivide
    gather: gather GatherV2 Gather Take
    gelu: gelu Gelu
    hard_sigmoid: HardSigmoid
    hard_swish: HardSilu
    identity: identity Identity stop_gradient StopGradient ensure_shape EnsureShape
        PreventGradient Snapshot
    l2_normalize: l2_normalize
    leaky_relu: leaky_relu LeakyRelu
    log: log Log
    log_sigmoid: log_sigmoid LogSigmoid
    log_softmax: log_softmax LogSoftmax
    matmul: matmul MatMul Matmul BatchMatMul BatchMatMulV2 BatchMatMulV3
    max: reduce_max Max
    max_pool: MaxPool MaxPoolV2 max_pool max_pool2d
    maximum: maximum Maximum
    mean: reduce_mean Mean
    min: reduce_min Min
    minimum: minimum Minimum
    mirror_pad: MirrorPad
    moveaxis: Moveaxis
    mul: multiply Mul Multiply scalar_mul
    neg: negative Neg Negative
    normalize: Normalize
    pad: pad Pad PadV2
    pow: pow Pow Power
    reciprocal: reciprocal Reciprocal Inv reciprocal_no_nan
    relu: relu Relu
    relu6: relu6 Relu6
    repeat: repeat Repeat
    reshape: reshape Reshape
    resize: resize ResizeBilinear ResizeNearestNeighbor Resize
    reverse: reverse ReverseV2 Flip
    roll: roll Roll
    rsqrt: rsqrt Rsqrt
    selu: selu Selu
    shape: shape Shape
    sigmoid: sigmoid Sigmoid
    silu: silu swish Silu
    slice: getitem GetItem slice Slice strided_slice StridedSlice
    softmax: softmax Softmax
    softplus: softplus Softplus
    softsign: softsign Softsign
    space_to_depth: space_to_depth SpaceToDepth
    split: split Split SplitV
    sqrt: sqrt Sqrt
    square: square Square
    squared_difference: squared_difference SquaredDifference
    squeeze: squeeze Squeeze
    stack: stack Pack Stack
    sub: subtract Sub Subtract
    sum: reduce_sum Sum
    swapaxes: Swapaxes
    tanh: tanh Tanh
    tile: tile Tile
    transpose: transpose Transpose
    unstack: unstack Unpack Unstack
    variance: reduce_variance Var
    where: where Where SelectV2 Select
"""


def is_operation(spec: LayerSpec) -> bool:
    """Returns whether a specification is of an operation, and not of a layer."""
    return (
        spec.cls.__name__ == "Operation"
        or _is_keras_operation(spec)
        or spec.cls.__name__ in ("TFOpLambda", "SlicingOpLambda")
    )


def function_name(spec: LayerSpec) -> str:
    """Returns the last component of the name of an operation's function or class."""
    name = spec.config.get("function", "")
    return name.rsplit(".", 1)[-1] if name else spec.cls.__name__


def own_kind(spec: LayerSpec) -> str:
    """Returns the class name of tfopt's own layers, else `""`."""
    is_own = spec.cls.__module__.startswith("tfopt._keras.operations")
    return spec.cls.__name__ if is_own else ""


def canonical_kind(spec: LayerSpec) -> str | None:
    """Returns what an operation computes, as one lower-case word.

    It is the same word for `tf.nn.relu`, `tf.raw_ops.Relu`, `keras.ops.relu` and the
    layer that tf_keras makes of the first. Operations without a word of their own have
    their name: "cumsum".

    Args:
        spec: Of anything in a graph.

    Returns:
        The word; `None` for layers.

    Example:
        >>> from tfopt import _keras
        >>> cls = _keras.operations.classes(_keras.preferred()).Operation
        >>> canonical_kind(LayerSpec(cls, {"function": "raw_ops.Relu"}, "path"))
        'relu'
    """
    if not is_operation(spec):
        return None
    last = function_name(spec)
    return _by_name().get(last, last.lower())


def bound(call: Call) -> dict[str, Any]:
    """Returns the arguments of an operation by the parameters of its function.

    Args:
        call: Call of an operation.

    Returns:
        `Value`s, arrays and plain data by name, defaults included; the options of a
        `keras.ops` operation, which its configuration holds, are among them.
    """
    spec = call.layer
    if _is_keras_operation(spec):
        signature = inspect.signature(spec.cls.call)
        given = signature.bind(None, *call.args, **call.kwargs)
        given.apply_defaults()
        return {**dict(list(given.arguments.items())[1:]), **_options(spec)}
    if spec.cls.__name__ != "Operation":
        named = {str(place): thing for place, thing in enumerate(call.args)}
        return {**named, **call.kwargs}
    tensors = call.inputs
    args = _arguments.decode(spec.config["arguments"], tensors)
    kwargs = {
        key: _arguments.decode(value, tensors)
        for key, value in spec.config["keywords"].items()
    }
    given = inspect.signature(_names.function_of(spec.config["function"])).bind(
        *args, **kwargs
    )
    given.apply_defaults()
    return dict(given.arguments)


def _options(spec: LayerSpec) -> dict[str, Any]:
    return {key: x for key, x in spec.config.items() if key != "name"}


def _is_keras_operation(spec: LayerSpec) -> bool:
    bases = {base.__name__ for base in spec.cls.__mro__}
    is_keras = spec.cls.__module__.split(".", 1)[0] == "keras"
    return is_keras and "Operation" in bases and "Layer" not in bases


@functools.cache
def _by_name() -> dict[str, str]:
    found: dict[str, str] = {}
    kind = ""
    for word in _KINDS.split():
        if word.endswith(":"):
            kind = word[:-1]
        else:
            found[word] = kind
    return found
