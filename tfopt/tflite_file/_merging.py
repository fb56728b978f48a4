"""Several `.tflite` files as one with all their signatures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfopt.tflite_file._flatbuffer import text, unpack
from tfopt.tflite_file._rewriting import check_writable, drop_unused_buffers, pack


def merge(contents: Sequence[bytes]) -> bytes:
    """Returns one file with the signatures of all; equal constants are stored once.

    Interpreters that know no signatures run the first file's subgraph. Description and
    metadata are the first file's.

    Args:
        contents: `.tflite` files, each with signatures, whose keys differ.

    Raises:
        TfoptError: A content is no `.tflite` file, or has a part that this version of
            the schema cannot write back.
        ValueError: There is no file, or a key is in two of them.

    Example:
        >>> with open("model.tflite", "rb") as file:
        ...     content = file.read()
        >>> len(tfopt.tflite_file.read(merge([content])).signatures)
        1
    """
    models = [unpack(content) for content in contents]
    keys = [
        text(definition.signatureKey)
        for model in models
        for definition in model.signatureDefs or ()
    ]
    if not models or len({*keys}) != len(keys):
        raise ValueError(
            "Expected files whose signatures have different keys. "
            f"Received: {len(models)} files with {keys}"
        )
    for model in models:
        check_writable(model)
    merged = models[0]
    for model in models[1:]:
        _append(merged, model)
    drop_unused_buffers(merged)
    return pack(merged, sum(map(len, contents)))


def _append(merged: Any, model: Any) -> None:
    first = len(merged.subgraphs)
    buffers = len(merged.buffers)
    codes = [_code_index(merged, code) for code in model.operatorCodes or ()]
    for graph in model.subgraphs:
        for tensor in graph.tensors or ():
            tensor.buffer += buffers if tensor.buffer else 0
        for operator in graph.operators or ():
            operator.opcodeIndex = codes[operator.opcodeIndex]
            operator.debugMetadataIndex = -1
            for options in (operator.builtinOptions, operator.builtinOptions2):
                _shift_subgraphs(options, first)
        graph.debugMetadataIndex = -1
    for definition in model.signatureDefs or ():
        definition.subgraphIndex += first
    merged.buffers = [*merged.buffers, *model.buffers]
    merged.subgraphs = [*merged.subgraphs, *model.subgraphs]
    merged.signatureDefs = [*(merged.signatureDefs or ()), *(model.signatureDefs or ())]


def _code_index(merged: Any, code: Any) -> int:
    wanted = vars(code)
    for index, known in enumerate(merged.operatorCodes):
        if vars(known) == wanted:
            return index
    merged.operatorCodes = [*merged.operatorCodes, code]
    return len(merged.operatorCodes) - 1


def _shift_subgraphs(options: Any, first: int) -> None:
    """Moves the numbers of the subgraphs that a loop, branch or call refers to."""
    for name, value in vars(options).items() if options is not None else ():
        if name == "subgraph" or name.endswith("SubgraphIndex"):
            if value >= 0:
                setattr(options, name, value + first)
        elif name.endswith("SubgraphIndices") and value is not None:
            setattr(options, name, [index + first for index in value])
