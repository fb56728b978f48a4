"""What is inside a `.tflite` file."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import numpy as np

from tfopt import tflite_file
from tfopt.inspection import _arena
from tfopt.inspection._types import (
    Layer,
    Weights,
    bytes_by_dtype,
    make_layer,
    total,
    weights_of,
)
from tfopt.tflite_file import Operator, Subgraph, Tensor

# What moves or relabels values, and so has no arithmetic of a type.
_MOVES = frozenset(
    {
        *("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "SHAPE", "RANK", "CONCATENATION"),
        *("PACK", "UNPACK", "SPLIT", "SPLIT_V", "SLICE", "STRIDED_SLICE", "TRANSPOSE"),
        *("PAD", "PADV2", "MIRROR_PAD", "GATHER", "GATHER_ND", "TILE", "FILL"),
        *("QUANTIZE", "DEQUANTIZE", "CAST", "DENSIFY", "BROADCAST_TO", "WHILE", "IF"),
    }
)
_INDEX_TYPES = ("INT32", "INT64", "BOOL", "STRING", "RESOURCE", "VARIANT")


def inspect_tflite(source: bytes | str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the fields of `Inspection` that a `.tflite` file gives.

    Raises:
        TfoptError: The file is damaged.
    """
    file = tflite_file.read(source)
    weights: list[Weights] = []
    layers: list[Layer] = []
    by_operators: dict[str, int] = {}
    by_macs: dict[str, int] = {}
    counted: list[int | None] = []
    for subgraph in file.subgraphs:
        found = {
            tensor.index: _weights(tensor)
            for tensor in subgraph.tensors
            if _is_weight(tensor, subgraph)
        }
        weights += found.values()
        taken: set[int] = set()
        for operator in subgraph.operators:
            macs = tflite_file.macs(operator, subgraph)
            counted.append(macs)
            own = [index for index in operator.inputs if index in found]
            own = [index for index in own if index not in taken]
            taken.update(own)
            kind = arithmetic(operator, subgraph)
            if kind:
                by_operators[kind] = by_operators.get(kind, 0) + 1
                by_macs[kind] = by_macs.get(kind, 0) + (macs or 0)
            if own or macs or macs is None:
                name = _layer_name(operator, subgraph)
                parts = [found[index] for index in own]
                layers.append(make_layer(name, operator.name, parts, macs))
    weights.sort(key=lambda item: -item.size_bytes)
    return {
        "signatures": file.signatures,
        "operations": file.operator_counts(),
        "layers": tuple(layers),
        "weights": tuple(weights),
        "macs": total(counted),
        "arena_bytes": _arena.arena_bytes(file.subgraphs[0]),
        "precision": {
            "weight_bytes": bytes_by_dtype(weights),
            "operators": by_operators,
            "macs": {kind: count for kind, count in by_macs.items() if count},
        },
        "notes": tuple(_notes(file)),
    }


def arithmetic(operator: Operator, subgraph: Subgraph) -> str:
    """Returns the type that an operator computes in, `""` if it only moves values.

    A float operator with quantized weights is `"float32 with int8 weights"`: it
    quantizes its input while it runs, or its weights back to float.
    """
    if operator.name in _MOVES:
        return ""
    tensors = [subgraph.tensors[index] for index in operator.inputs + operator.outputs]
    moving = [
        tensor
        for tensor in tensors
        if not tensor.is_constant and tensor.type not in _INDEX_TYPES
    ]
    if not moving:
        return "int32" if tensors else ""
    floats = [tensor for tensor in moving if tensor.is_float]
    if not floats:
        return moving[0].type.lower()
    integers = [
        tensor
        for tensor in tensors
        if tensor.is_constant and tensor.type in ("INT8", "INT4", "UINT8")
    ]
    name = floats[0].type.lower()
    return f"{name} with {integers[0].type.lower()} weights" if integers else name


def _is_weight(tensor: Tensor, subgraph: Subgraph) -> bool:
    """Whether a constant is a number of the model, and no shape, axis or index."""
    if not tensor.is_constant or not tensor.shape or tensor.is_variable:
        return False
    if tensor.type in _INDEX_TYPES and not tensor.scale:
        return False
    return all(tensor.shape)


def _weights(tensor: Tensor) -> Weights:
    raw = np.empty(0) if tensor.raw is None else tensor.raw
    name = str(tensor).split(": ", 1)[0]
    dtype = tensor.type.lower()
    shape = tuple(size or 0 for size in tensor.shape)
    if tensor.is_sparse and tensor.dtype is not None:
        stored = raw.view(tensor.dtype)
        size = math.prod(shape)
        zeros = size - int(np.count_nonzero(stored))
        return Weights(f"{name} (sparse)", dtype, shape, raw.size, zeros, None)
    codes = tensor.codes()
    return weights_of(name, dtype, tensor.values(), raw.size, codes=codes)


def _layer_name(operator: Operator, subgraph: Subgraph) -> str:
    name = str(subgraph.tensors[operator.outputs[0]]) if operator.outputs else ""
    return name.split(": ", 1)[0] or f"#{operator.index}"


def _history(entry: bytes | None) -> list[str]:
    """Returns how tfopt made the file, as the file itself notes it."""
    if entry is None:
        return []
    try:
        content = json.loads(entry)
        steps = [dict(step) for step in content["history"]]
        done = "; ".join(
            " ".join([step.pop("operation"), *(f"{k}={v}" for k, v in step.items())])
            for step in steps
        )
        return [f"Made by tfopt {content['version']}: {done}"]
    except (ValueError, TypeError, KeyError):
        return ["Metadata `tfopt` cannot be read: it is of another version"]


def _notes(file: tflite_file.TfliteFile) -> list[str]:
    notes = []
    if file.description:
        notes.append(f"Description: {file.description}")
    if file.metadata:
        notes.append(f"Metadata: {', '.join(sorted(file.metadata))}")
    notes += _history(file.metadata.get("tfopt"))
    custom = sorted(
        {
            operator.name
            for subgraph in file.subgraphs
            for operator in subgraph.operators
            if operator.is_custom
        }
    )
    if custom:
        notes.append(f"Custom operators, which need a runtime of their own: {custom}")
    if len(file.subgraphs) > 1:
        notes.append(
            f"{len(file.subgraphs)} subgraphs; MACs count each once, the bodies of "
            "loops too; the arena is that of the first."
        )
    return notes
