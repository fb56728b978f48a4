"""Reads what a `.tflite` file says about itself, without running it.

Field numbers below are those of the schema, see `tflite_schema`. Only names, types,
shapes, operator codes and sizes are read, never weights, so a memory-mapped file of any
size costs a few pages.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt import tflite_schema
from tfopt.tflite_schema import Damaged, Table
from tfopt.types import Signature, TensorInfo, TfoptError

_CALL_ONCE, _ASSIGN_VARIABLE, _CUSTOM, _CONV_2D = 129, 144, 32, 3
_INT8 = 9
_NARROW_CHANNELS = 32
_STRING, _RESOURCE, _VARIANT = 5, 13, 14
_DTYPES: Mapping[int, np.dtype] = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float16),
    2: np.dtype(np.int32),
    3: np.dtype(np.uint8),
    4: np.dtype(np.int64),
    _STRING: np.dtype(object),
    6: np.dtype(np.bool_),
    7: np.dtype(np.int16),
    8: np.dtype(np.complex64),
    9: np.dtype(np.int8),
    10: np.dtype(np.float64),
    11: np.dtype(np.complex128),
    12: np.dtype(np.uint64),
    15: np.dtype(np.uint32),
    16: np.dtype(np.uint16),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One callable subgraph.

    Attributes:
        signature: Its key, inputs and outputs. Inputs are in the order of the
            subgraph, which is the order of the converted function's arguments.
        subgraph: Its index in the file.
        input_indices: Tensor index of each input of the signature.
        output_indices: Tensor index of each output of the signature.
        input_shapes: Shapes that the file starts with; a free axis is 1.
        activation_bytes: Size of the largest tensor that depends on inputs, at
            `input_shapes`.
        derived_bytes: Size of all tensors that are computed from constants alone, as
            the float32 weights of a float16 model.
    """

    signature: Signature
    subgraph: int
    input_indices: tuple[int, ...]
    output_indices: tuple[int, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    activation_bytes: int
    derived_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """The facts of one file.

    Attributes:
        entries: The callable subgraphs, in file order; without signatures the
            primary subgraph alone.
        has_signatures: Whether the keys of `entries` stand in the file.
        custom_ops: Names of the operators that are not TFLite builtins.
        state: What keeps a value from one invocation to the next, in words, or
            `None` for a model without state.
        has_narrow_convolution: Whether an int8 convolution `is_narrow`.
        weight_bytes: Size of all constants.
        fingerprint: What changes when the file is replaced; empty for bytes.
    """

    entries: tuple[Entry, ...]
    has_signatures: bool
    custom_ops: tuple[str, ...]
    state: str | None
    has_narrow_convolution: bool = False
    weight_bytes: int = 0
    fingerprint: tuple[int, ...] = ()

    def entry(self, key: str | None) -> Entry:
        """Returns the entry with a signature key, or the default one.

        Raises:
            ValueError: There is no such key, or it is `None` and the choice is
                open.
        """
        keys = [entry.signature.key for entry in self.entries]
        if key is None and len(keys) > 1 and "serving_default" in keys:
            key = "serving_default"
        if key is None and len(keys) == 1:
            return self.entries[0]
        if key is None or not self.has_signatures or key not in keys:
            choice = ", ".join(map(repr, keys)) if self.has_signatures else "none"
            raise ValueError(
                "Cannot choose the signature. Expected `signature_key` to be one of "
                f"the file's signatures ({choice})"
                + ("" if self.has_signatures else ", so leave it out")
                + f". Received: signature_key={key!r}"
            )
        return self.entries[keys.index(key)]


def read_model_file(source: str | bytes) -> ModelFile:
    """Reads the facts of a file.

    Args:
        source: Path of a `.tflite` file, or its content.

    Returns:
        Its `ModelFile`.

    Raises:
        TfoptError: It cannot be read, is not a `.tflite` file, or is cut off.

    Example:
        >>> read_model_file("model.tflite").entries[0].signature.key
        'serving_default'
    """
    name = "model bytes" if isinstance(source, bytes) else f"model={source!r}"
    try:
        if isinstance(source, bytes):
            return _parse(source)
        with open(source, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size == 0:
                raise Damaged("it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                facts = _parse(data)
        return dataclasses.replace(facts, fingerprint=fingerprint(status))
    except OSError as error:
        raise TfoptError(
            f"Cannot read the model: {error.strerror}. Expected a `.tflite` file. "
            f"Received: {name}"
        ) from error
    except Damaged as error:
        raise TfoptError(
            f"Not a complete `.tflite` model: {error}. Write or convert it again. "
            f"Received: {name}, {_size(source)} bytes"
        ) from error


def is_narrow(weights_shape: tuple[int, ...]) -> bool:
    """Whether a convolution reads several pixels of few channels.

    Args:
        weights_shape: [filters, kernel height, kernel width, channels].
    """
    return (
        len(weights_shape) == 4
        and weights_shape[1:3] != (1, 1)
        and weights_shape[3] <= _NARROW_CHANNELS
    )


def fingerprint(status: os.stat_result) -> tuple[int, ...]:
    """Identifies a file's content cheaply, to notice when it is replaced."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _parse(data: Any) -> ModelFile:
    tflite_schema.check(data)
    return _model(tflite_schema.root(data))


def _size(source: str | bytes) -> int:
    return len(source) if isinstance(source, bytes) else os.path.getsize(source)


def _model(model: Table) -> ModelFile:
    buffers = model.tables(4)
    # Reading each length proves that the file goes on to its end.
    sizes = [_constant_bytes(buffer) for buffer in buffers]
    is_constant = [size > 0 for size in sizes]
    codes = [_operator_code(code) for code in model.tables(1)]
    subgraphs = model.tables(2)
    if not subgraphs:
        raise Damaged("it holds no graph")
    signatures = model.tables(7)
    if signatures:
        entries = [_signature_entry(s, subgraphs, is_constant) for s in signatures]
    else:
        entries = [_entry(subgraphs[0], 0, is_constant)]
    numbers = [code for code, _ in codes]
    return ModelFile(
        entries=tuple(entries),
        has_signatures=bool(signatures),
        custom_ops=tuple(sorted({name for code, name in codes if code == _CUSTOM})),
        state=_state(subgraphs, numbers),
        has_narrow_convolution=_CONV_2D in numbers
        and any(_has_narrow_convolution(graph, numbers) for graph in subgraphs),
        weight_bytes=sum(sizes),
    )


def _constant_bytes(buffer: Table) -> int:
    # Models above 2 GB keep weights behind the FlatBuffer, as offset and size.
    if buffer.number(1, "Q") > 1:
        return buffer.number(2, "Q")
    return buffer.vector_length(0, 1)


def _operator_code(code: Table) -> tuple[int, str]:
    # Files from before 2020 have the 8-bit field only.
    return max(code.number(0, "b"), code.number(3, "i")), code.text(1)


def _state(subgraphs: list[Table], codes: list[int]) -> str | None:
    """Says what keeps a value between invocations; initialisation does not."""
    initialisers: set[int] = set()
    assigning: set[int] = set()
    for index, subgraph in enumerate(subgraphs):
        for tensor in subgraph.tables(0):
            if tensor.number(5, "?"):
                return f"the variable tensor {tensor.text(3)!r}"
        for operator in subgraph.tables(3):
            code = _item(codes, operator.number(0, "I"))
            if code == _ASSIGN_VARIABLE:
                assigning.add(index)
            elif code == _CALL_ONCE and (options := operator.table(4)) is not None:
                initialisers.add(options.number(0, "i"))
    return "an ASSIGN_VARIABLE operator" if assigning - initialisers else None


def _has_narrow_convolution(subgraph: Table, codes: list[int]) -> bool:
    tensors = subgraph.tables(0)
    for operator in subgraph.tables(3):
        if _item(codes, operator.number(0, "I")) == _CONV_2D:
            weights = _item(tensors, _item(operator.numbers(1, "i"), 1))
            if weights.number(1, "b") == _INT8 and is_narrow(weights.numbers(0, "i")):
                return True
    return False


def _signature_entry(
    signature: Table, subgraphs: list[Table], is_constant: list[bool]
) -> Entry:
    number = signature.number(4, "I")
    return _entry(
        _item(subgraphs, number),
        number,
        is_constant,
        key=signature.text(2),
        inputs=[(item.text(0), item.number(1, "I")) for item in signature.tables(0)],
        outputs=[(item.text(0), item.number(1, "I")) for item in signature.tables(1)],
    )


def _entry(
    subgraph: Table,
    number: int,
    is_constant: list[bool],
    *,
    key: str | None = None,
    inputs: list[tuple[str, int]] | None = None,
    outputs: list[tuple[str, int]] | None = None,
) -> Entry:
    tensors = subgraph.tables(0)
    stored, fixed = _fixed_tensors(subgraph, tensors, is_constant)
    in_order, out_order = subgraph.numbers(1, "i"), subgraph.numbers(2, "i")
    input_names = {index: name for name, index in inputs or ()}
    in_items = [
        (input_names.get(i) or _item(tensors, i).text(3), i)  # unnamed: tensor's name
        for i in in_order
    ]
    if outputs is None:
        out_items = [(_item(tensors, i).text(3), i) for i in out_order]
    else:
        rank = {index: position for position, index in enumerate(out_order)}
        out_items = sorted(outputs, key=lambda item: rank.get(item[1], len(rank)))
    return Entry(
        signature=Signature(
            key=key or subgraph.text(4) or "main",
            inputs=_infos(in_items, tensors),
            outputs=_infos(out_items, tensors),
        ),
        subgraph=number,
        input_indices=tuple(index for _, index in in_items),
        output_indices=tuple(index for _, index in out_items),
        input_shapes=tuple(_item(tensors, i).numbers(0, "i") for _, i in in_items),
        activation_bytes=max(
            (_tensor_bytes(tensors[i]) for i in set(range(len(tensors))) - fixed),
            default=0,
        ),
        derived_bytes=sum(_tensor_bytes(tensors[i]) for i in fixed - stored),
    )


def _fixed_tensors(
    subgraph: Table, tensors: list[Table], is_constant: list[bool]
) -> tuple[set[int], set[int]]:
    """The tensors stored as constants, and with those that are computed from them."""
    stored = {
        index
        for index, tensor in enumerate(tensors)
        if _item(is_constant, tensor.number(2, "I"))
    }
    fixed = set(stored)
    for operator in subgraph.tables(3):
        sources = [index for index in operator.numbers(1, "i") if index >= 0]
        if sources and fixed.issuperset(sources):
            results = operator.numbers(2, "i")
            fixed.update(index for index in results if 0 <= index < len(tensors))
    return stored, fixed


def _infos(items: list[tuple[str, int]], tensors: list[Table]) -> tuple:
    names = [name for name, _ in items]
    return tuple(
        # Tensor names need not differ; names of inputs and outputs have to.
        _info(
            name if names.count(name) == 1 else f"{name}#{position}",
            _item(tensors, index),
        )
        for position, (name, index) in enumerate(items)
    )


def _info(name: str, tensor: Table) -> TensorInfo:
    kind = tensor.number(1, "b")
    if kind not in _DTYPES:
        raise Damaged(f"tensor {name!r} has the type {kind}, which NumPy lacks")
    shape = tensor.numbers(0, "i")
    free = tensor.numbers(7, "i") or shape
    known_rank = bool(shape) or tensor.number(8, "?")
    quantization = tensor.table(4)
    scale = quantization.numbers(2, "f") if quantization else ()
    return TensorInfo(
        name=name,
        dtype=_DTYPES[kind],
        shape=tuple(None if n < 0 else n for n in free) if known_rank else None,
        scale=scale,
        zero_point=quantization.numbers(3, "q") if quantization and scale else (),
    )


def _tensor_bytes(tensor: Table) -> int:
    dtype = _DTYPES.get(tensor.number(1, "b"))
    if dtype is None or dtype == np.dtype(object):
        return 0
    size = dtype.itemsize
    for axis in tensor.numbers(0, "i"):
        size *= max(axis, 1)
    return size


def _item(items: Any, index: int) -> Any:
    if not 0 <= index < len(items):
        raise Damaged(f"index {index} is outside of a list of {len(items)}")
    return items[index]
