"""What a `.tflite` file holds, as plain data."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfopt import affine
from tfopt.tflite_file._flatbuffer import damaged, sizes, tensor_indices, text, unpack
from tfopt.types import Signature, TensorInfo, TfoptError

# Operators that only relabel memory.
_VIEWS = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
# Operators that ask for the shape and read no value.
_SHAPES = ("SHAPE", "RANK")
_LONGEST_NAME = 60
_SHOWN_TENSORS = 4
_FLOAT_TYPES = ("FLOAT32", "FLOAT16", "BFLOAT16", "FLOAT64")


def _names(enum: type) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if name.isupper()}


_TYPES = _names(schema.TensorType)
_OPERATORS = _names(schema.BuiltinOperator)
_DTYPES = {
    name: np.dtype(object if name == "STRING" else name.lower())
    for name in _TYPES.values()
    if name == "STRING" or hasattr(np, name.lower())
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a subgraph.

    Attributes:
        index: Position in the subgraph.
        name: Debug name; empty in a stripped file.
        type: The schema's type name, for example `"INT8"`.
        shape: Sizes at batch 1, as stored; `None` where the size is free.
        scale: Quantization scale(s), empty if not quantized.
        zero_point: Quantization zero point(s).
        channel_axis: Axis of the scales when there are several.
        is_variable: Whether it keeps its value between invocations.
        raw: Bytes of a constant as a uint8 view, `None` for an activation.
        is_sparse: Whether `raw` holds only the nonzero values.
    """

    index: int
    name: str
    type: str
    shape: tuple[int | None, ...]
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    channel_axis: int
    is_variable: bool
    raw: np.ndarray | None = dataclasses.field(repr=False)
    is_sparse: bool = False

    @property
    def dtype(self) -> np.dtype | None:
        """The NumPy type, `None` where NumPy has none (`INT4`, `BFLOAT16`, ...)."""
        return _DTYPES.get(self.type)

    @property
    def is_constant(self) -> bool:
        """Whether the file holds the value."""
        return self.raw is not None

    @property
    def is_float(self) -> bool:
        """Whether values are floating point numbers of any width."""
        return self.type in _FLOAT_TYPES

    def codes(self) -> np.ndarray:
        """Returns a constant as stored, in its shape; 4-bit types come as int8.

        Raises:
            TfoptError: It is no constant, or is stored in a form without a NumPy
                equivalent (strings, sparse tensors).
        """
        if self.raw is None or self.is_sparse:
            kind = "sparse" if self.is_sparse else "not constant"
            raise TfoptError(f"The tensor is {kind}. Received: tensor={self}")
        shape = tuple(size or 0 for size in self.shape)
        if self.type == "INT4":
            # Two codes per byte, the first in the low half.
            halves = np.stack([self.raw << 4, self.raw], -1).view(np.int8) >> 4
            return halves.reshape(-1)[: int(np.prod(shape))].reshape(shape)
        if self.type == "BFLOAT16":
            wide = self.raw.view("<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(shape)
        if self.dtype is None or self.dtype == np.dtype(object):
            raise TfoptError(
                "Cannot read the constant as an array. Expected a numeric type. "
                f"Received: tensor={self}"
            )
        return self.raw.view(self.dtype.newbyteorder("<")).reshape(shape)

    def values(self) -> np.ndarray:
        """Returns a constant as the numbers it stands for; quantized ones as float32.

        Raises:
            TfoptError: As `codes`.
        """
        codes = self.codes()
        if not self.scale:
            return codes
        if len(self.scale) == 1:
            return affine.dequantize(codes, self.scale[0], self.zero_point[0])
        scale, zero_point = (
            affine.broadcast_channels(parameter, self.channel_axis, codes.ndim)
            for parameter in (self.scale, self.zero_point)
        )
        return affine.dequantize(codes, scale, zero_point)

    def __str__(self) -> str:
        shape = ", ".join("?" if size is None else str(size) for size in self.shape)
        # The converter joins the names of all that it fused.
        name = self.name.split(";")[-1]
        if len(name) > _LONGEST_NAME:
            name = "..." + name[3 - _LONGEST_NAME :]
        return f"{name or f'#{self.index}'}: {self.type.lower()} [{shape}]"


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator: the schema's name, or the custom code of a custom operator.

    Attributes:
        index: Position in the execution order of the subgraph.
        name: For example `"CONV_2D"` or `"FlexErfinv"`.
        is_custom: Whether it is no TFLite builtin.
        inputs: Tensor indices, without the optional ones that are left out.
        outputs: Tensor indices.
        options: The schema's options table, `None` if it has none.
    """

    index: int
    name: str
    is_custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any = dataclasses.field(repr=False, compare=False)


@dataclasses.dataclass(frozen=True)
class Subgraph:
    """A list of operators in execution order over a list of tensors."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tensors: tuple[Tensor, ...] = dataclasses.field(repr=False)
    operators: tuple[Operator, ...] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class TfliteFile:
    """The content of a `.tflite` file; `subgraphs[0]` is where execution starts."""

    subgraphs: tuple[Subgraph, ...]
    signatures: tuple[Signature, ...]
    metadata: dict[str, bytes]
    description: str

    def operator_counts(self) -> dict[str, int]:
        """Returns how often each operator occurs, over all subgraphs, by name."""
        counts: dict[str, int] = {}
        for subgraph in self.subgraphs:
            for operator in subgraph.operators:
                counts[operator.name] = counts.get(operator.name, 0) + 1
        return dict(sorted(counts.items()))


@dataclasses.dataclass(frozen=True)
class FloatOperator:
    """An operator that computes on floats, with the tensors that show it."""

    subgraph: int
    operator: Operator
    tensors: tuple[Tensor, ...]

    def __str__(self) -> str:
        shown = [str(tensor) for tensor in self.tensors[:_SHOWN_TENSORS]]
        more = ["..."] if len(self.tensors) > _SHOWN_TENSORS else []
        return f"{self.operator.name} ({', '.join(shown + more)})"


def read(source: bytes | str | os.PathLike[str]) -> TfliteFile:
    """Reads a `.tflite` file.

    Args:
        source: The content, or the path of a file.

    Raises:
        TfoptError: The file is missing, no `.tflite` file, or damaged.

    Example:
        >>> read("model.tflite").operator_counts()["FULLY_CONNECTED"]
        1
    """
    model = unpack(source)
    try:
        subgraphs = tuple(_subgraph(model, graph) for graph in model.subgraphs)
        for subgraph in subgraphs:
            _check_constants(subgraph)
        return TfliteFile(
            subgraphs=subgraphs,
            signatures=tuple(
                _signature(definition, subgraphs)
                for definition in model.signatureDefs or ()
            ),
            metadata={
                text(item.name): _content(model.buffers[item.buffer])
                for item in model.metadata or ()
            },
            description=text(model.description),
        )
    except (IndexError, TypeError, KeyError, ValueError) as error:
        raise damaged(source, error) from error


def float_operators(file: TfliteFile) -> list[FloatOperator]:
    """Lists the operators of a quantized model that still compute on floats.

    Conversions at the borders (QUANTIZE of an input, DEQUANTIZE of an output) and
    views of their tensors are no computation. Operators that do arithmetic come
    before the conversions around them.

    Args:
        file: What `read` returned.

    Returns:
        Empty when every kernel runs on integers.
    """
    found = []
    for number, subgraph in enumerate(file.subgraphs):
        # Bodies of loops and branches have no border.
        border = _border(subgraph) if number == 0 else set()
        for operator in subgraph.operators:
            touched = {*operator.inputs, *operator.outputs}
            floats = tuple(
                subgraph.tensors[index]
                for index in sorted(touched)
                if subgraph.tensors[index].is_float
            )
            outside = [tensor for tensor in floats if tensor.index not in border]
            converts = operator.name in ("QUANTIZE", "DEQUANTIZE", *_VIEWS)
            if operator.name in _SHAPES or not floats:
                continue
            if outside or not converts:
                found.append(FloatOperator(number, operator, floats))
    found.sort(key=lambda item: item.operator.name in ("QUANTIZE", "DEQUANTIZE"))
    return found


def _content(buffer: Any) -> bytes:
    return b"" if buffer.data is None else bytes(buffer.data)


def _subgraph(model: Any, graph: Any) -> Subgraph:
    codes = model.operatorCodes or ()
    return Subgraph(
        name=text(graph.name),
        inputs=tensor_indices(graph.inputs),
        outputs=tensor_indices(graph.outputs),
        tensors=tuple(
            _tensor(index, tensor, model.buffers)
            for index, tensor in enumerate(graph.tensors or ())
        ),
        operators=tuple(
            _operator(index, operator, codes[operator.opcodeIndex])
            for index, operator in enumerate(graph.operators or ())
        ),
    )


def _tensor(index: int, tensor: Any, buffers: list[Any]) -> Tensor:
    quantization = tensor.quantization
    scale = () if quantization is None else sizes(quantization.scale)
    free = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
    return Tensor(
        index=index,
        name=text(tensor.name),
        type=_TYPES.get(tensor.type, f"TYPE_{tensor.type}"),
        shape=tuple(None if size < 0 else size for size in sizes(free)),
        scale=scale,
        zero_point=sizes(quantization.zeroPoint) if scale else (),
        channel_axis=quantization.quantizedDimension if scale else 0,
        is_variable=bool(tensor.isVariable),
        raw=buffers[tensor.buffer].data,
        is_sparse=tensor.sparsity is not None,
    )


def _check_constants(subgraph: Subgraph) -> None:
    """Raises ValueError if a constant has more or fewer bytes than elements."""
    for tensor in subgraph.tensors:
        known = tensor.dtype is not None and tensor.dtype != np.dtype(object)
        if tensor.raw is None or tensor.is_sparse or not known:
            continue
        count = math.prod(size or 0 for size in tensor.shape)
        if tensor.raw.size != count * np.dtype(tensor.dtype).itemsize:
            raise ValueError(f"{tensor.raw.size} bytes for tensor {tensor}")


def _operator(index: int, operator: Any, code: Any) -> Operator:
    # Files from before 2020 have the 8-bit field only.
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    is_custom = builtin == schema.BuiltinOperator.CUSTOM
    return Operator(
        index=index,
        name=(
            text(code.customCode)
            if is_custom
            else _OPERATORS.get(builtin, f"BUILTIN_{builtin}")
        ),
        is_custom=is_custom,
        inputs=tensor_indices(operator.inputs),
        outputs=tensor_indices(operator.outputs),
        options=operator.builtinOptions or operator.builtinOptions2,
    )


def _signature(definition: Any, subgraphs: tuple[Subgraph, ...]) -> Signature:
    tensors = subgraphs[definition.subgraphIndex].tensors
    inputs, outputs = (
        tuple(_info(text(item.name), tensors[item.tensorIndex]) for item in items)
        for items in (definition.inputs or (), definition.outputs or ())
    )
    return Signature(text(definition.signatureKey), inputs, outputs)


def _info(name: str, tensor: Tensor) -> TensorInfo:
    dtype = np.dtype(object) if tensor.dtype is None else tensor.dtype
    return TensorInfo(name, dtype, tensor.shape, tensor.scale, tensor.zero_point)


def _border(subgraph: Subgraph) -> set[int]:
    """Tensors that are inputs or outputs, or views of one."""
    border = {*subgraph.inputs, *subgraph.outputs}
    views = [
        operator
        for operator in subgraph.operators
        if operator.name in _VIEWS and operator.inputs and operator.outputs
    ]
    for operator in views:
        if operator.inputs[0] in border:
            border.update(operator.outputs)
    for operator in reversed(views):
        if operator.outputs[0] in border:
            border.add(operator.inputs[0])
    return border
