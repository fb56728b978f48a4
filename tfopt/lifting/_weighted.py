"""Convolutions and products with constant kernels, and their biases."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.lifting._match import Match, Step, last_axis, produced_by, split_constant
from tfopt.lifting._network import Network

_MATRIX_PRODUCTS = ("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "MatMul")

# Axes of a kernel that are the channels of the layer's output.
KERNEL_AXES = {
    "Conv1D": (2,),
    "Conv2D": (3,),
    "Conv2DTranspose": (2,),
    "Conv3D": (4,),
    "Dense": (1,),
    "DepthwiseConv2D": (2, 3),
}


@dataclasses.dataclass
class Core:
    """A layer without its bias.

    Attributes:
        operations: What it replaces, the last one first.
        inputs: The tensor that it takes.
        step: The layer.
        kernel: The tensor of the kernel.
        before: A layer that pads the input first.
        labels: Of an EinsumDense, the labels of its output.
    """

    operations: list[tf.Operation]
    inputs: list[tf.Tensor]
    step: Step
    kernel: tf.Tensor
    before: Step | None = None
    labels: str = ""

    def match(self, network: Network, *more: tf.Tensor) -> Match:
        """Returns the match; `more` are the tensors of further weights."""
        if not network.is_trainable([self.kernel, *more]):
            self.step.config["trainable"] = False
        self.step.origin = network.leaves([self.kernel, *more])
        steps = [self.step] if self.before is None else [self.before, self.step]
        return Match(self.operations, self.inputs, steps)


def without_bias(network: Network, operation: tf.Operation) -> Match | None:
    """Matches a convolution or product alone."""
    core = core_of(network, operation.outputs[0])
    return None if core is None else core.match(network)


def with_bias(network: Network, operation: tf.Operation) -> Match | None:
    """Matches BiasAdd, or the addition of a constant, behind one."""
    parts = split_constant(network, operation)
    if parts is None:
        return None
    tensor, bias, position = parts
    if operation.outputs[0].shape.rank != tensor.shape.rank:
        return None
    core = core_of(network, tensor)
    if core is None:
        return _with_bias_behind_reshape(network, operation)
    if core.step.kind == "EinsumDense":
        rank = len(np.squeeze(bias).shape)
        sizes = tensor.shape.as_list()[-rank:] if rank else []
        if not rank or list(np.squeeze(bias).shape) != sizes:
            return None
        core.step.config["bias_axes"] = core.labels[-rank:]
        vector = np.squeeze(bias)
    else:
        found = last_axis(bias, tensor.shape[-1])
        if found is None:
            return None
        core.step.config["use_bias"] = True
        vector = found
    core.step.weights.append(vector)
    core.operations.insert(0, operation)
    return core.match(network, operation.inputs[position])


def _with_bias_behind_reshape(
    network: Network, operation: tf.Operation
) -> Match | None:
    """Matches a bias that is added after the last axis was split, or others removed."""
    parts = split_constant(network, operation)
    if parts is None:
        return None
    tensor, bias, position = parts
    reshape = produced_by(network, tensor, "Reshape", "Squeeze")
    core = None if reshape is None else core_of(network, reshape.inputs[0])
    shape = tensor.shape.as_list()
    bias = np.squeeze(bias)
    if reshape is None or core is None or core.labels or None in shape[1:]:
        return None
    channels = reshape.inputs[0].shape[-1]
    if not bias.ndim or list(bias.shape) != shape[-bias.ndim :]:
        return None
    if bias.size != channels or len(shape) <= bias.ndim:
        return None
    core.step.config["use_bias"] = True
    core.step.weights.append(bias.reshape(-1))
    core.operations = [operation, reshape, *core.operations]
    match = core.match(network, operation.inputs[position])
    config = {"target_shape": tuple(shape[1:])}
    match.steps.append(Step("Reshape", config, suffix="_reshape"))
    return match


def core_of(network: Network, tensor: tf.Tensor) -> Core | None:
    """Returns the convolution or product whose result a tensor is."""
    tensor = network.source(tensor)
    if network.is_input(tensor) or network.is_constant(tensor):
        return None
    find = _CORES.get(tensor.op.type)
    return None if find is None else find(network, tensor.op)


def _conv(network: Network, operation: tf.Operation) -> Core | None:
    value, kernel = network.operands(operation)[:2]
    weights = _kernel(network, kernel, rank=operation.outputs[0].shape.rank)
    channels = value.shape[-1]
    if weights is None or network.is_constant(value) or channels is None:
        return None
    rank = weights.ndim - 2
    config = {
        "filters": int(weights.shape[-1]),
        "kernel_size": weights.shape[:rank],
        "strides": _spatial(operation, "strides"),
        "dilation_rate": _spatial(operation, "dilations"),
        "groups": channels // int(weights.shape[-2]),
        "use_bias": False,
    }
    padding = _padding(operation)
    if padding is None:
        return None
    config["padding"], before = padding
    step = Step(f"Conv{rank}D", config, [weights])
    return Core([operation], [value], step, kernel, before)


def _depthwise(network: Network, operation: tf.Operation) -> Core | None:
    value, kernel = network.operands(operation)
    weights = _kernel(network, kernel, rank=4)
    padding = _padding(operation)
    if weights is None or network.is_constant(value) or padding is None:
        return None
    strides = _spatial(operation, "strides")
    if len(set(strides)) > 1:  # Keras has one stride only
        return None
    config = {
        "kernel_size": weights.shape[:2],
        "strides": strides,
        "dilation_rate": _spatial(operation, "dilations"),
        "depth_multiplier": int(weights.shape[3]),
        "padding": padding[0],
        "use_bias": False,
    }
    step = Step("DepthwiseConv2D", config, [weights])
    return Core([operation], [value], step, kernel, padding[1])


def _transposed(network: Network, operation: tf.Operation) -> Core | None:
    _, kernel, value = network.operands(operation)
    weights = _kernel(network, kernel, rank=4)
    padding = operation.get_attr("padding")
    if weights is None or padding == b"EXPLICIT" or network.is_constant(value):
        return None
    strides = _spatial(operation, "strides")
    result = operation.outputs[0].shape
    for size, made, stride, taps in zip(
        value.shape[1:3], result[1:3], strides, weights.shape[:2], strict=True
    ):
        if size is None or made is None:
            continue
        extra = max(taps - stride, 0) if padding == b"VALID" else 0
        if size * stride + extra != made:
            return None
    if _spatial(operation, "dilations") != (1, 1):
        return None
    config = {
        "filters": int(weights.shape[2]),
        "kernel_size": weights.shape[:2],
        "strides": strides,
        "padding": padding.decode().lower(),
        "use_bias": False,
    }
    step = Step("Conv2DTranspose", config, [weights])
    return Core([operation], [value], step, kernel)


def _conv1d(network: Network, operation: tf.Operation) -> Core | None:
    """Squeeze of Conv2D of ExpandDims."""
    conv = produced_by(network, operation.inputs[0], "Conv2D")
    if conv is None or conv.outputs[0].shape[1] != 1:
        return None
    expand = produced_by(network, conv.inputs[0], "ExpandDims")
    core = None if expand is None else _conv(network, conv)
    if expand is None or core is None or core.before is not None:
        return None
    axis = network.value(expand.inputs[1])
    squeezed = [axis_ % 4 for axis_ in operation.get_attr("squeeze_dims")]
    if axis is None or int(axis) % 4 != 1 or squeezed != [1]:
        return None
    weights = core.step.weights[0]
    if weights.shape[0] != 1:
        return None
    config = core.step.config
    config |= {name: config[name][1] for name in ("strides", "dilation_rate")}
    config["kernel_size"] = weights.shape[1]
    core.step = Step("Conv1D", config, [weights[0]])
    core.operations = [operation, conv, expand]
    core.inputs = [network.source(expand.inputs[0])]
    return core


def _dilated(network: Network, operation: tf.Operation) -> Core | None:
    """BatchToSpaceND of a convolution of SpaceToBatchND: one with dilation."""
    core = core_of(network, operation.inputs[0])
    spread = core and produced_by(network, core.inputs[0], "SpaceToBatchND")
    if core is None or not spread or core.before is not None:
        return None
    config = core.step.config
    values = [network.value(x) for x in (*spread.inputs[1:], *operation.inputs[1:])]
    if config.get("padding") != "valid" or any(value is None for value in values):
        return None
    block, pads, block_after, crops = (np.asarray(value) for value in values)
    if not np.array_equal(block, block_after):
        return None
    added = pads - crops
    kernel = np.reshape(config["kernel_size"], -1)
    is_free = np.reshape(config["dilation_rate"], -1).max() == 1
    if len(kernel) != len(block) or not is_free or added.min() < 0:
        return None
    total = (kernel - 1) * block
    same = np.stack([total // 2, total - total // 2], axis=1)
    if np.array_equal(added, same):
        config["padding"] = "same"
    elif added.any():
        pairs = tuple(tuple(map(int, pair)) for pair in added)
        padding = {"padding": pairs[0] if len(pairs) == 1 else pairs}
        core.before = Step(f"ZeroPadding{len(pairs)}D", padding, suffix="_pad")
    rate = tuple(map(int, block))
    config["dilation_rate"] = rate[0] if len(rate) == 1 else rate
    core.operations = [operation, *core.operations, spread]
    core.inputs = [network.source(spread.inputs[0])]
    return core


def _product(network: Network, operation: tf.Operation) -> Core | None:
    value, kernel = network.operands(operation)
    weights = _matrix(network, operation)
    if weights is None or operation.outputs[0].shape.rank != value.shape.rank:
        return None
    return _dense([operation], value, weights, kernel)


def _matrix(network: Network, operation: tf.Operation) -> np.ndarray | None:
    """Returns the constant matrix [in, out] that a product has on its right."""
    value, kernel = network.operands(operation)
    weights = network.value(kernel) if network.is_constant(kernel) else None
    names = ("transpose_a", "transpose_b")
    if operation.type != "MatMul":
        names = ("adj_x", "adj_y")
    transposed = [operation.get_attr(name) for name in names]
    if weights is None or network.is_constant(value) or transposed[0]:
        return None
    if weights.size != weights.shape[-2] * weights.shape[-1]:
        return None
    weights = weights.reshape(weights.shape[-2:])
    return weights.T if transposed[1] else weights


def _dense(
    operations: list[tf.Operation],
    value: tf.Tensor,
    weights: np.ndarray,
    kernel: tf.Tensor,
) -> Core | None:
    if weights.dtype.kind != "f" or value.shape[-1] != weights.shape[0]:
        return None
    config = {"units": int(weights.shape[1]), "use_bias": False}
    return Core(operations, [value], Step("Dense", config, [weights]), kernel)


def _tensordot(network: Network, operation: tf.Operation) -> Core | None:
    """The product with the last axis, as `tf.tensordot` computes it.

    Reshape of MatMul of Reshape, the latter perhaps of an empty Transpose.
    """
    product = produced_by(network, operation.inputs[0], "MatMul")
    flat = product and produced_by(network, product.inputs[0], "Reshape")
    weights = None if product is None else _matrix(network, product)
    if product is None or not flat or weights is None:
        return None
    operations = [operation, product, flat]
    value = network.source(flat.inputs[0])
    transpose = produced_by(network, value, "Transpose")
    if transpose is not None:
        order = network.value(transpose.inputs[1])
        if order is not None and list(order) == list(range(len(order))):
            operations.append(transpose)
            value = network.source(transpose.inputs[0])
    result = operation.outputs[0].shape
    if value.shape.rank is None or result.rank != value.shape.rank:
        return None
    if not result[:-1].is_compatible_with(value.shape[:-1]):
        return None
    return _dense(operations, value, weights, network.source(product.inputs[1]))


def _einsum(network: Network, operation: tf.Operation) -> Core | None:
    if len(operation.inputs) != 2:
        return None
    value, kernel = network.operands(operation)
    weights = network.value(kernel) if network.is_constant(kernel) else None
    equation = operation.get_attr("equation").decode().replace(" ", "")
    if weights is None or network.is_constant(value) or "." in equation:
        return None
    (left, right), labels = equation.split("->")[0].split(","), equation.split("->")[1]
    if left[0] != labels[0] or left[0] in right or weights.dtype.kind != "f":
        return None
    kept = left[:-1]
    if right[0] == left[-1] and len(right) == 2 and labels == kept + right[1]:
        return _dense([operation], value, weights, kernel)
    sizes = operation.outputs[0].shape.as_list()[1:]
    config = {"equation": equation, "output_shape": sizes}
    step = Step("EinsumDense", config, [weights])
    return Core([operation], [value], step, kernel, labels=labels)


def _kernel(network: Network, tensor: tf.Tensor, rank: int | None) -> Any:
    """Returns a float kernel's value, `None` if it isn't a constant."""
    value = network.value(tensor) if network.is_constant(tensor) else None
    if value is None or value.dtype.kind != "f" or value.ndim != rank:
        return None
    return value


def _spatial(operation: tf.Operation, attribute: str) -> tuple[int, ...]:
    return tuple(int(size) for size in operation.get_attr(attribute)[1:-1])


def _padding(operation: tf.Operation) -> tuple[str, Step | None] | None:
    """Returns Keras's padding, and a layer to pad with before."""
    padding = operation.get_attr("padding").decode()
    if padding != "EXPLICIT":
        return padding.lower(), None
    if operation.type == "Conv3D":
        return None
    sizes = list(operation.get_attr("explicit_paddings"))
    pairs = tuple((int(sizes[i]), int(sizes[i + 1])) for i in (2, 4))
    step = Step("ZeroPadding2D", {"padding": pairs}, suffix="_pad")
    return "valid", step


_CORES = {
    "BatchToSpaceND": _dilated,
    "Conv2D": _conv,
    "Conv2DBackpropInput": _transposed,
    "Conv3D": _conv,
    "DepthwiseConv2dNative": _depthwise,
    "Einsum": _einsum,
    "Reshape": _tensordot,
    "Squeeze": _conv1d,
    **dict.fromkeys(_MATRIX_PRODUCTS, _product),
}
