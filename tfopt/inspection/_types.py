"""What `inspect` returns: a model's content, in numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfopt.report import Column, Report, Reported, Table
from tfopt.types import Signature

_DISTINCT_UP_TO = 1 << 24


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a model, or one operator with weights of its own.

    Attributes:
        name: Its name in the model.
        kind: Keras class, graph operation or TFLite operator.
        parameters: Number of weights.
        weight_bytes: What they take, uncompressed.
        dtype: Type of the weights, `"float32"`; several are joined by `+`.
        sparsity: Fraction of the weights that are zero; `None` without weights.
        macs: Multiply-accumulate operations for one example; `None` where they are
            unknown, because sizes are free or the kind isn't counted.
    """

    name: str
    kind: str
    parameters: int
    weight_bytes: int
    dtype: str
    sparsity: float | None
    macs: int | None


@dataclasses.dataclass(frozen=True)
class Weights:
    """One constant or variable.

    Attributes:
        name: Its name in the model.
        dtype: Type as stored.
        shape: Sizes by axis.
        size_bytes: What it takes in the file, uncompressed.
        zeros: How many of its values are zero (in quantized tensors: codes that stand
            for zero).
        distinct: How many different values there are, of a quantized tensor how many
            codes; `None` if not counted.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    zeros: int
    distinct: int | None

    @property
    def size(self) -> int:
        """The number of values."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclasses.dataclass(frozen=True)
class Inspection(Reported):
    """What is inside a model.

    Attributes:
        path: Where it is; `""` for a model in memory.
        format: `"tflite"`, `"keras"`, `"saved_model"`, `"graph_def"` or
            `"checkpoint"`.
        size_bytes: Raw size; `None` in memory.
        gzip_bytes: Size after `gzip -9`; `None` in memory or for very large models.
        signatures: What can be called.
        operations: How often each operation (operator, layer class) occurs.
        layers: Layers with weights or multiplications, in the model's order.
        weights: All constants and variables that count as weights, largest first.
        macs: Multiply-accumulate operations for one example; `None` if they cannot be
            counted.
        arena_bytes: Estimate of the memory for activations of a `.tflite` model at
            batch size 1, as TFLite's planner would lay them out; `None` otherwise.
        precision: `"weight_bytes"`, `"operators"` and `"macs"`: how they divide among
            number types.
        notes: What could not be found out, and why; what else is worth knowing.
        trainable: Number of trainable parameters, where the format says.
    """

    path: str
    format: str
    size_bytes: int | None
    gzip_bytes: int | None
    signatures: tuple[Signature, ...]
    operations: Mapping[str, int]
    layers: tuple[Layer, ...]
    weights: tuple[Weights, ...]
    macs: int | None
    arena_bytes: int | None
    precision: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...] = ()
    trainable: int | None = None

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(weights.size for weights in self.weights)

    @property
    def weight_bytes(self) -> int:
        """What the weights take, uncompressed."""
        return sum(weights.size_bytes for weights in self.weights)

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that are zero; 0 without weights."""
        zeros = sum(weights.zeros for weights in self.weights)
        return zeros / self.parameters if self.parameters else 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain data."""
        fields = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        return {
            **fields,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "sparsity": self.sparsity,
        }

    def report(self, *, largest: int = 10) -> Report:
        """Returns it as tables.

        Args:
            largest: How many of the largest weight tensors are listed.
        """
        tables = [_totals(self), _operations(self)]
        if self.layers:
            tables.append(_layers(self))
        if largest and self.weights:
            tables.append(_largest(self.weights[:largest]))
        return Report(
            title=self.path or f"a {self.format} model in memory",
            tables=tables,
            notes=[*map(str, self.signatures), *self.notes],
            data={"inspection": self},
            machine={},
            versions={},
        )


def weights_of(
    name: str,
    dtype: str,
    array: np.ndarray,
    size_bytes: int,
    *,
    codes: np.ndarray | None = None,
) -> Weights:
    """Counts zeros and different values of a constant.

    Args:
        name: Its name.
        dtype: Its type as stored.
        array: Its values.
        size_bytes: What is stored.
        codes: The stored codes that stand for the values, if they differ.
    """
    distinct = None
    if array.size <= _DISTINCT_UP_TO:
        distinct = len(np.unique(array if codes is None else codes))
    return Weights(
        name=name,
        dtype=dtype,
        shape=array.shape,
        size_bytes=size_bytes,
        zeros=int(array.size - np.count_nonzero(array)),
        distinct=distinct,
    )


def make_layer(
    name: str, kind: str, weights: Sequence[Weights], macs: int | None
) -> Layer:
    """Sums up the weights of a layer."""
    size = sum(item.size for item in weights)
    zeros = sum(item.zeros for item in weights)
    return Layer(
        name=name,
        kind=kind,
        parameters=size,
        weight_bytes=sum(item.size_bytes for item in weights),
        dtype="+".join(dict.fromkeys(item.dtype for item in weights)),
        sparsity=zeros / size if size else None,
        macs=macs,
    )


def total(counts: Iterable[int | None]) -> int | None:
    """Returns the sum, `None` if a part of it is unknown."""
    found = list(counts)
    known = [count for count in found if count is not None]
    return sum(known) if len(known) == len(found) else None


def bytes_by_dtype(weights: Iterable[Weights]) -> dict[str, int]:
    """Returns how the bytes of weights divide among number types."""
    found: dict[str, int] = {}
    for item in weights:
        found[item.dtype] = found.get(item.dtype, 0) + item.size_bytes
    return found


def _totals(found: Inspection) -> Table:
    values = {
        "file": (found.size_bytes, "bytes"),
        "file after gzip": (found.gzip_bytes, "bytes"),
        "parameters": (found.parameters, ""),
        "trainable parameters": (found.trainable, ""),
        "weights": (found.weight_bytes, "bytes"),
        "sparsity of the weights": (f"{found.sparsity:.1%}", ""),
        "multiply-accumulates per example": (found.macs, ""),
        "arena for activations (estimate)": (found.arena_bytes, "bytes"),
    }
    for key, counts in found.precision.items():
        whole = sum(counts.values())
        shares = ", ".join(
            f"{name} {count / whole:.1%}"
            for name, count in sorted(counts.items(), key=lambda item: -item[1])
            if whole
        )
        values[f"{key.replace('_', ' ')} by type"] = (shares or None, "")
    return Table(
        title=f"Content ({found.format})",
        columns=[Column(key="value"), Column(key="unit")],
        rows={
            name: {"value": value, "unit": unit}
            for name, (value, unit) in values.items()
            if value is not None
        },
        corner="",
    )


def _operations(found: Inspection) -> Table:
    counts = sorted(found.operations.items(), key=lambda item: (-item[1], item[0]))
    return Table(
        title="Layers by class" if found.format == "keras" else "Operations",
        columns=[Column(key="count")],
        rows={name: {"count": count} for name, count in counts},
        corner="operation",
    )


def _layers(found: Inspection) -> Table:
    rows = {}
    for layer in found.layers:
        name, number = layer.name, 1
        while name in rows:
            number += 1
            name = f"{layer.name} #{number}"
        rows[name] = dataclasses.asdict(layer)
    return Table(
        title="Layers with weights or multiplications",
        columns=[
            Column(key="kind"),
            Column(key="dtype", title="weights"),
            Column(key="parameters"),
            Column(key="weight_bytes", title="size", unit="bytes"),
            Column(key="sparsity", format=".1%"),
            Column(key="macs", title="MACs"),
        ],
        rows=rows,
        corner="layer",
    )


def _largest(weights: Sequence[Weights]) -> Table:
    return Table(
        title="Largest weights",
        columns=[
            Column(key="dtype", title="type"),
            Column(key="shape"),
            Column(key="size", unit="bytes"),
            Column(key="sparsity", format=".1%"),
            Column(key="distinct", title="distinct values"),
        ],
        rows={
            item.name: {
                "dtype": item.dtype,
                "shape": "×".join(map(str, item.shape)) or "scalar",
                "size": item.size_bytes,
                "sparsity": item.zeros / item.size if item.size else None,
                "distinct": item.distinct,
            }
            for item in weights
        },
        corner="tensor",
    )
