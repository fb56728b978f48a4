"""Folds pixels of a row into channels: the same int8 convolution, shaped differently.

Where an image has few channels, CPUs with wide integer dot products waste most of
their work: each pixel's few channels are copied into a tile and padded to its width.
An image [H, W, C] is in memory the same as [H, W/b, b·C], so b pixels can be handed
over as one, with the weights put at the places where the pixels are now. One folded
column gives g output pixels: [Ho, Wo/g, g·O] is the same memory as [Ho, Wo, O].

The result is equal to the last bit: the products are the same int32 ones, the
additional weights are zeros, and scales and biases are repeated for each pixel.
(The same idea, for a stride of 2 only, is the space-to-depth first layer of
https://arxiv.org/abs/1909.03205, and of MLPerf's ResNet.)
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The sizes of one CONV_2D.

    Attributes:
        height, width, channels: Of one input image.
        filters: Output channels.
        kernel: Height and width.
        stride: Vertical and horizontal.
        is_same: SAME padding; else VALID.
    """

    height: int
    width: int
    channels: int
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    is_same: bool

    @property
    def out_height(self) -> int:
        """Rows of an output image."""
        return _out_size(self.height, self.kernel[0], self.stride[0], self.is_same)

    @property
    def out_width(self) -> int:
        """Columns of an output image."""
        return _out_size(self.width, self.kernel[1], self.stride[1], self.is_same)

    @property
    def left(self) -> int:
        """Pixels of padding at the left."""
        sizes = self.width, self.out_width, self.kernel[1], self.stride[1]
        return _left(*sizes) if self.is_same else 0


@dataclasses.dataclass(frozen=True)
class Fold:
    """One way to fold a `Convolution`.

    Attributes:
        block: Input pixels of a folded column, b.
        group: Output pixels of a folded column, g.
        taps: Width of the folded kernel, in folded columns.
        stride: Horizontal stride in folded columns.
        first: Folded column where the kernel of output column 0 begins; negative in
            the padding.
    """

    block: int
    group: int
    taps: int
    stride: int
    first: int

    def weights_bytes(self, conv: Convolution) -> int:
        """Size of the folded weights."""
        values = self.taps * self.block * conv.channels * conv.kernel[0]
        return values * self.group * conv.filters

    def growth(self, conv: Convolution) -> float:
        """Folded over original multiplications."""
        return self.taps * self.block / conv.kernel[1]


def folds(conv: Convolution) -> list[Fold]:
    """Returns all ways to fold a convolution, smallest blocks first.

    Output pixel x reads the pixels `x·s - p ... x·s - p + kw - 1`, s being the stride
    and p the padding at the left. A folded column of g output pixels moves on by g·s
    pixels, which has to be a whole number of blocks, and reads the blocks

        floor(-p / b) ... floor(((g - 1)·s - p + kw - 1) / b)

    CONV_2D pads by its own rule, so only folds are returned for which that rule
    gives just this. A whole row needs no padding at all.

    Args:
        conv: Its sizes.

    Returns:
        The `Fold`s, for which `fold_weights` gives the weights.

    Example:
        >>> folds(Convolution(28, 28, 1, 12, (3, 3), (1, 1), is_same=False))[0]
        Fold(block=2, group=2, taps=2, stride=1, first=0)
    """
    found = []
    pixels, taps, stride = conv.out_width, conv.kernel[1], conv.stride[1]
    for block in _divisors(conv.width)[1:-1]:
        for group in _divisors(pixels):
            if group * stride % block:
                continue
            first = -conv.left // block
            last = ((group - 1) * stride - conv.left + taps - 1) // block
            fold = Fold(block, group, last - first + 1, group * stride // block, first)
            found += [wide for wide in _widened(fold) if _is_padded_so(conv, wide)][:1]
    return [*found, Fold(conv.width, pixels, taps=1, stride=1, first=0)]


def fold_weights(weights: np.ndarray, conv: Convolution, fold: Fold) -> np.ndarray:
    """Returns the weights of a folded convolution.

    Args:
        weights: int8 [filters, kernel height, kernel width, channels].
        conv: Sizes.
        fold: One of `folds(conv)`.

    Returns:
        int8 [group * filters, kernel height, taps, block * channels]; the weights
        of all else than the pixels that an output pixel reads are zero.
    """
    filters, height, width, channels = weights.shape
    folded = np.zeros(
        (fold.group, filters, height, fold.taps * fold.block, channels), weights.dtype
    )
    for pixel in range(fold.group):
        for tap in range(width):
            place = pixel * conv.stride[1] - conv.left + tap - fold.first * fold.block
            if 0 <= place < fold.taps * fold.block:  # else in the padding of a row
                folded[pixel, :, :, place] = weights[:, :, tap]
    return folded.reshape(
        fold.group * filters, height, fold.taps, fold.block * channels
    )


def convolution(model: Any, graph: Any, operator: Any) -> Convolution | None:
    """Returns the sizes of an operator that can be folded; None for all others.

    It can be if it is a CONV_2D on int8 with symmetric int8 weights, not dilated or
    grouped, on images of a known size.

    Args:
        model: `ModelT` of the generated schema.
        graph: One of its `SubGraphT`.
        operator: One of its `OperatorT`.
    """
    if _code(model, operator) != schema.BuiltinOperator.CONV_2D:
        return None
    image, weights = (graph.tensors[index] for index in operator.inputs[:2])
    result, options = graph.tensors[operator.outputs[0]], operator.builtinOptions
    is_known = (
        all(t.type == schema.TensorType.INT8 for t in (image, weights, result))
        and all(_is_known(tensor) for tensor in (image, weights, result))
        and model.buffers[image.buffer].data is None
        and model.buffers[weights.buffer].data is not None
        and weights.sparsity is None
        and weights.quantization.details is None
        and not np.any(weights.quantization.zeroPoint)
        and (options.dilationHFactor, options.dilationWFactor) == (1, 1)
        and weights.shape[3] == image.shape[3]
    )
    if not is_known or not _has_constant_bias(model, graph, operator):
        return None
    filters, *kernel, channels = map(int, weights.shape)
    conv = Convolution(
        height=int(image.shape[1]),
        width=int(image.shape[2]),
        channels=channels,
        filters=filters,
        kernel=(kernel[0], kernel[1]),
        stride=(options.strideH, options.strideW),
        is_same=options.padding == schema.Padding.SAME,
    )
    size = conv.out_height, conv.out_width, filters
    return conv if tuple(result.shape[1:]) == size else None


def apply_fold(
    model: Any, graph: Any, position: int, conv: Convolution, fold: Fold
) -> None:
    """Replaces an operator by RESHAPE, folded CONV_2D, RESHAPE, in place.

    Tensors and buffers are appended, so that all indices keep their meaning.

    Args:
        model: `ModelT` of the generated schema.
        graph: One of its `SubGraphT`.
        position: Which of its operators.
        conv: Its sizes.
        fold: One of `folds(conv)`.
    """
    old = graph.operators[position]
    image, weights = (graph.tensors[index] for index in old.inputs[:2])
    result = graph.tensors[old.outputs[0]]
    data = np.asarray(model.buffers[weights.buffer].data).view(np.int8)
    folded = fold_weights(data.reshape(weights.shape), conv, fold)
    folded_image = _reshaped(
        image, conv.height, conv.width // fold.block, fold.block * conv.channels
    )
    folded_result = _reshaped(
        result,
        conv.out_height,
        conv.out_width // fold.group,
        fold.group * conv.filters,
    )
    new = copy.copy(old)
    new.builtinOptions = copy.copy(old.builtinOptions)
    new.builtinOptions.strideW = fold.stride
    new.inputs = [
        _append(graph, folded_image),
        _append_constant(model, graph, folded, _repeated(weights, fold.group)),
    ]
    if len(old.inputs) > 2:
        bias = graph.tensors[old.inputs[2]]
        values = np.asarray(model.buffers[bias.buffer].data).view(np.int32)
        repeated = _repeated(bias, fold.group)
        new.inputs.append(
            _append_constant(model, graph, np.tile(values, fold.group), repeated)
        )
    new.outputs = [_append(graph, folded_result)]
    graph.operators[position : position + 1] = [
        _reshape(model, graph, old.inputs[0], new.inputs[0]),
        new,
        _reshape(model, graph, new.outputs[0], old.outputs[0]),
    ]


def extract(model: Any, graph: Any, operator: Any) -> Any:
    """Returns a model of one operator alone; it shares the constants' memory.

    Args:
        model: `ModelT` of the generated schema.
        graph: One of its `SubGraphT`.
        operator: A CONV_2D of it.
    """
    alone = schema.ModelT(version=model.version)
    alone.operatorCodes = [model.operatorCodes[operator.opcodeIndex]]
    alone.buffers = [schema.BufferT()]
    small = schema.SubGraphT()
    small.tensors = []
    for index in (*operator.inputs, *operator.outputs):
        tensor = copy.copy(graph.tensors[index])
        if (data := model.buffers[tensor.buffer].data) is not None:
            alone.buffers.append(schema.BufferT(data=data))
            tensor.buffer = len(alone.buffers) - 1
        else:
            tensor.buffer = 0
        small.tensors.append(tensor)
    count = len(small.tensors)
    new = copy.copy(operator)
    new.opcodeIndex = 0
    new.inputs, new.outputs = list(range(count - 1)), [count - 1]
    small.operators = [new]
    small.inputs, small.outputs = [0], [count - 1]
    alone.subgraphs = [small]
    return alone


def _out_size(size: int, kernel: int, stride: int, is_same: bool) -> int:
    return -(-(size if is_same else size - kernel + 1) // stride)


def _left(size: int, out_size: int, kernel: int, stride: int) -> int:
    """Padding before the first pixel, as TensorFlow's SAME puts it."""
    return max((out_size - 1) * stride + kernel - size, 0) // 2


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _widened(fold: Fold) -> list[Fold]:
    """The fold, and with further, empty taps, that shift where SAME pads."""
    return [dataclasses.replace(fold, taps=fold.taps + more) for more in range(3)]


def _is_padded_so(conv: Convolution, fold: Fold) -> bool:
    columns = conv.width // fold.block
    wanted = conv.out_width // fold.group
    if _out_size(columns, fold.taps, fold.stride, conv.is_same) != wanted:
        return False
    left = _left(columns, wanted, fold.taps, fold.stride) if conv.is_same else 0
    return left == -fold.first


def _code(model: Any, operator: Any) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def _is_known(tensor: Any) -> bool:
    """Whether it is quantized, of rank 4, and of known size but for the first axis."""
    signature = tensor.shapeSignature
    shape = tensor.shape if signature is None else signature
    return (
        tensor.shape is not None
        and len(tensor.shape) == len(shape) == 4
        and all(size > 0 for size in shape[1:])
        and tensor.quantization is not None
        and tensor.quantization.scale is not None
    )


def _has_constant_bias(model: Any, graph: Any, operator: Any) -> bool:
    if len(operator.inputs) < 3:
        return True
    if operator.inputs[2] < 0:
        return False
    bias = graph.tensors[operator.inputs[2]]
    is_constant = model.buffers[bias.buffer].data is not None
    return is_constant and bias.type == schema.TensorType.INT32


def _reshaped(tensor: Any, *size: int) -> Any:
    """A tensor as another one, of another size but for the first axis."""
    new = copy.copy(tensor)
    new.name = (tensor.name or b"") + b"/folded"
    new.shape = np.array([tensor.shape[0], *size], np.int32)
    if tensor.shapeSignature is not None:
        new.shapeSignature = np.array([tensor.shapeSignature[0], *size], np.int32)
    new.buffer = 0
    return new


def _repeated(tensor: Any, times: int) -> Any:
    """A tensor with the scales of its filters repeated for each output pixel."""
    new = copy.copy(tensor)
    new.name = (tensor.name or b"") + b"/folded"
    old = tensor.quantization
    if old is not None and old.scale is not None and len(old.scale) > 1:
        new.quantization = copy.copy(old)
        new.quantization.min = new.quantization.max = None
        new.quantization.scale = np.tile(old.scale, times)
        new.quantization.zeroPoint = np.zeros(len(old.scale) * times, np.int64)
    return new


def _append(graph: Any, tensor: Any) -> int:
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _append_constant(model: Any, graph: Any, values: np.ndarray, tensor: Any) -> int:
    tensor.shape = np.array(values.shape, np.int32)
    tensor.shapeSignature = None
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    model.buffers.append(schema.BufferT(data=data))
    tensor.buffer = len(model.buffers) - 1
    return _append(graph, tensor)


def _reshape(model: Any, graph: Any, source: int, target: int) -> Any:
    shape = np.array([-1, *graph.tensors[target].shape[1:]], np.int32)
    constant = schema.TensorT(name=b"shape", type=schema.TensorType.INT32)
    number = _append_constant(model, graph, shape, constant)
    return schema.OperatorT(
        opcodeIndex=_reshape_code(model),
        inputs=[source, number],
        outputs=[target],
        builtinOptionsType=schema.BuiltinOptions.ReshapeOptions,
        builtinOptions=schema.ReshapeOptionsT(newShape=shape),
    )


def _reshape_code(model: Any) -> int:
    code = schema.BuiltinOperator.RESHAPE
    for index, item in enumerate(model.operatorCodes):
        if max(item.builtinCode, item.deprecatedBuiltinCode) == code:
            return index
    model.operatorCodes.append(
        schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=1)
    )
    return len(model.operatorCodes) - 1
