"""What the report says about a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np

from tfopt.conversion import _lowering, _verification
from tfopt.tflite_file import TfliteFile


def figures(agreement: _verification.Agreement) -> dict[str, float | None]:
    """An agreement as JSON, which has no infinity."""
    figures = dataclasses.asdict(agreement)
    return {
        name: value if value is not None and np.isfinite(value) else None
        for name, value in figures.items()
    }


def constant_bytes(file: TfliteFile) -> dict[str, int]:
    """Bytes of constants by type; a buffer that several tensors share counts once."""
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    for graph in file.subgraphs:
        for tensor in graph.tensors:
            if tensor.raw is None:
                continue
            address = tensor.raw.__array_interface__["data"][0]
            if address not in seen:
                seen.add(address)
                kind = tensor.type.lower()
                sizes[kind] = sizes.get(kind, 0) + tensor.raw.nbytes
    return dict(sorted(sizes.items()))


def float_operators(
    file: TfliteFile, options: _lowering.Options, kept: Collection[int]
) -> list[str]:
    """Operators of an int8 file that compute on floats although nobody asked for it."""
    if options.quantization not in _lowering.INTEGER_MODES:
        return []
    return [str(item) for item in _verification.float_operators(file, kept)]


def notes(file: TfliteFile, options: _lowering.Options) -> list[str]:
    """What the user should know about a file."""
    notes = []
    stored = {"dynamic": "int8", "float16": "float16", "int4": "int4"}.get(
        options.quantization
    )
    if stored and not constant_bytes(file).get(stored):
        notes.append(
            f"No weight was stored as {stored}: the converter leaves small tensors "
            "(below 1024 elements) as they are."
        )
    if options.quantization in ("dynamic", "int4") and _has_hybrid_depthwise(file):
        notes.append(
            "Depthwise convolutions with integer weights run 2.8 to 3 times slower "
            "than float ones on x86: LiteRT has no fast kernel for them. Leave them in "
            'float with `keep_float="DEPTHWISE_CONV_2D"`, or use "int8" or "float16".'
        )
    flex = _verification.select_operators(file)
    if flex:
        notes.append(
            f"Not verified: {', '.join(flex)} run only in applications that link "
            "LiteRT's Flex delegate; the interpreters of Python have none."
        )
    return notes


def _has_hybrid_depthwise(file: TfliteFile) -> bool:
    return any(
        operator.name == "DEPTHWISE_CONV_2D"
        and graph.tensors[operator.inputs[1]].type in ("INT8", "INT4")
        for graph in file.subgraphs
        for operator in graph.operators
    )
