"""Writes a `.tflite` file anew: with a signature, or without debug information."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfopt.tflite_file._flatbuffer import (
    IDENTIFIER,
    sizes,
    tensor_indices,
    text,
    unpack,
)
from tfopt.types import TfoptError

# The schema demands it (`force_align: 16`), but Python's generated code forgets it.
_DATA_ALIGNMENT = 16
# Written by the converter for its own telemetry, and by tfopt; no runtime reads them.
_CONVERTER_METADATA = ("min_runtime_version", "CONVERSION_METADATA", "tfopt")


def rewrite(
    content: bytes,
    *,
    signature_key: str | None = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    strip_debug_info: bool = False,
    metadata: Mapping[str, bytes] | None = None,
) -> bytes:
    """Writes a model anew, with one signature or without debug information.

    Equal constants, shapes, scales and names are stored once, and buffers that
    nothing uses are dropped. The same arguments always give the same bytes.

    Args:
        content: A `.tflite` file.
        signature_key: Replaces all signatures by this one for the first subgraph;
            `None` keeps those that exist.
        input_names: Names of the first subgraph's inputs, in its order.
        output_names: The same for its outputs.
        strip_debug_info: Drop all names except those of signatures and of their
            tensors, calibrated ranges, the description, and the metadata of the
            converter and of tfopt. Other metadata, such as labels for an application,
            stays.
        metadata: Entries to add, or to put in the place of those of the same name.

    Returns:
        The new content.

    Raises:
        TfoptError: The content is no `.tflite` file, or has a part that this version
            of the schema cannot write back.
        ValueError: The number of names is wrong, or one is twice there.
    """
    model = unpack(content)
    check_writable(model)
    if signature_key is not None:
        _set_signature(model, signature_key, input_names, output_names)
    if strip_debug_info:
        _strip(model)
    for name, data in (metadata or {}).items():
        _set_metadata(model, name, data)
    drop_unused_buffers(model)
    return pack(model, len(content))


def check_writable(model: Any) -> None:
    """Refuses a `ModelT` that `pack` would lose a part of.

    Raises:
        TfoptError: Weights stand outside, or the schema does not know an option.
    """
    if any(buffer.offset > 1 for buffer in model.buffers) or model.externalBuffers:
        raise TfoptError(
            "Cannot rewrite a model whose weights stand behind the flatbuffer. "
            "Expected a file below 2 GB."
        )
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            known = operator.builtinOptions or not operator.builtinOptionsType
            known2 = operator.builtinOptions2 or not operator.builtinOptions2Type
            if not known or not known2 or operator.largeCustomOptionsOffset > 1:
                raise TfoptError(
                    "Cannot rewrite the model: it has an operator with options that "
                    "this version of the schema does not know. "
                    f"Received: options type {operator.builtinOptionsType} or "
                    f"{operator.builtinOptions2Type}"
                )


def _set_signature(
    model: Any, key: str, input_names: Sequence[str], output_names: Sequence[str]
) -> None:
    graph = model.subgraphs[0]
    definition = schema.SignatureDefT(signatureKey=key.encode(), subgraphIndex=0)
    definition.inputs = _named(graph.inputs, input_names, "input_names")
    definition.outputs = _named(graph.outputs, output_names, "output_names")
    model.signatureDefs = [definition]
    # Interpreters that know no signatures show the names of the tensors.
    for item in (*definition.outputs, *definition.inputs):
        graph.tensors[item.tensorIndex].name = item.name


def _named(
    indices: Any, names: Sequence[str], argument: str
) -> list[schema.TensorMapT]:
    wanted = tensor_indices(indices)
    if len(names) != len(wanted) or len(set(names)) != len(names):
        raise ValueError(
            f"Expected {len(wanted)} different names. Received: {argument}={names!r}"
        )
    return [
        schema.TensorMapT(name=name.encode(), tensorIndex=index)
        for name, index in zip(names, wanted, strict=True)
    ]


def _set_metadata(model: Any, name: str, data: bytes) -> None:
    others = [item for item in model.metadata or () if text(item.name) != name]
    entry = schema.MetadataT(name=name.encode(), buffer=len(model.buffers))
    model.buffers.append(schema.BufferT(data=np.frombuffer(data, np.uint8)))
    model.metadata = [*others, entry]


def _strip(model: Any) -> None:
    model.description = None
    model.metadata = [
        item
        for item in model.metadata or ()
        if text(item.name) not in _CONVERTER_METADATA
    ] or None
    for graph in model.subgraphs:
        graph.name = None
        graph.debugMetadataIndex = -1
        for operator in graph.operators or ():
            operator.debugMetadataIndex = -1
        for tensor in graph.tensors or ():
            tensor.name = None
            tensor.quantization = _needed_quantization(tensor.quantization)
    for definition in model.signatureDefs or ():
        tensors = model.subgraphs[definition.subgraphIndex].tensors
        for item in (*(definition.inputs or ()), *(definition.outputs or ())):
            tensors[item.tensorIndex].name = item.name


def _needed_quantization(quantization: Any) -> Any:
    if quantization is None or (
        not sizes(quantization.scale) and quantization.details is None
    ):
        return None
    quantization.min = quantization.max = None
    return quantization


def drop_unused_buffers(model: Any) -> None:
    """Renumbers buffers: 0 for "no data", then each different content once."""
    kept = [schema.BufferT()]
    numbers: dict[bytes, int] = {}

    def renumber(old: int) -> int:
        data = model.buffers[old].data
        if data is None:
            return 0
        key = hashlib.blake2b(data).digest()
        if key not in numbers:
            numbers[key] = len(kept)
            kept.append(model.buffers[old])
        return numbers[key]

    for graph in model.subgraphs:
        for tensor in graph.tensors or ():
            tensor.buffer = renumber(tensor.buffer)
    for item in model.metadata or ():
        item.buffer = renumber(item.buffer)
    model.metadataBuffer = None  # deprecated list of the same numbers
    model.buffers = kept


class _AlignedBuffer:
    """A `BufferT` whose data begins at a multiple of 16 bytes."""

    def __init__(self, buffer: Any):
        self._buffer = buffer

    def Pack(self, builder: Any) -> int:
        data = self._buffer.data
        if data is not None:
            builder.Prep(_DATA_ALIGNMENT, len(data))
            data = flatbuffers.Builder.CreateNumpyVector(builder, data)
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class _SharingBuilder(flatbuffers.Builder):
    """Writes equal strings and number vectors once."""

    def __init__(self, initial_size: int):
        super().__init__(initial_size)
        self._written: dict[Any, int] = {}

    def CreateString(self, s: Any, *args: Any, **kwargs: Any) -> int:
        return self._once(("string", s), super().CreateString, s, *args, **kwargs)

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        key = (x.dtype.str, x.tobytes())
        return self._once(key, super().CreateNumpyVector, x)

    def _once(self, key: Any, create: Any, *args: Any, **kwargs: Any) -> int:
        if key not in self._written:
            self._written[key] = create(*args, **kwargs)
        return self._written[key]


def pack(model: Any, size_hint: int = 0) -> bytes:
    """Returns a `ModelT` as the content of a file; its buffers are used up by this.

    Args:
        model: The model.
        size_hint: About how long the content will be, to save copying.
    """
    model.buffers = [_AlignedBuffer(buffer) for buffer in model.buffers]
    builder = _SharingBuilder(size_hint + 1024)
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())
