"""How two models differ."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfopt.inspection._types import Inspection, Layer
from tfopt.report import Column, Report, Reported, Table


@dataclasses.dataclass(frozen=True)
class Difference(Reported):
    """Two models, side by side.

    Attributes:
        first: The one before.
        second: The one after.

    Example:
        >>> content = tfopt.convert(model, quantization="dynamic")
        >>> found = tfopt.diff(tfopt.inspect("model.tflite"), tfopt.inspect(content))
        >>> found.operations
        {'FULLY_CONNECTED': (1, 1), 'RESHAPE': (1, 1)}
    """

    first: Inspection
    second: Inspection

    @property
    def operations(self) -> dict[str, tuple[int, int]]:
        """How often each operation occurs before and after."""
        before, after = self.first.operations, self.second.operations
        return {
            name: (before.get(name, 0), after.get(name, 0))
            for name in sorted({*before, *after})
        }

    @property
    def layers(self) -> dict[str, tuple[Layer | None, Layer | None]]:
        """The layers of both, by name; `None` where one of them has none."""
        before = {layer.name: layer for layer in self.first.layers}
        after = {layer.name: layer for layer in self.second.layers}
        return {
            name: (before.get(name), after.get(name))
            for name in dict.fromkeys([*before, *after])
        }

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain data."""
        return {
            "first": self.first,
            "second": self.second,
            "operations": self.operations,
            "layers": self.layers,
        }

    def report(self) -> Report:
        """Returns it as tables: totals, operations, and the layers that changed."""
        return Report(
            title=f"{_named(self.first)} -> {_named(self.second)}",
            tables=[self._totals(), self._operations(), self._layers()],
            notes=self._signatures(),
            data={"difference": self},
            machine={},
            versions={},
        )

    def _totals(self) -> Table:
        rows = {}
        for title, name in _TOTALS.items():
            before, after = getattr(self.first, name), getattr(self.second, name)
            if before is None and after is None:
                continue
            rows[title] = _row(before, after)
        return Table(title="Totals", columns=_COLUMNS, rows=rows, corner="")

    def _operations(self) -> Table:
        changed = {k: pair for k, pair in self.operations.items() if pair[0] != pair[1]}
        return Table(
            title="Operations that changed" if changed else "Operations: no change",
            columns=_COLUMNS,
            rows={name: _row(*pair) for name, pair in changed.items()},
            corner="operation",
        )

    def _layers(self) -> Table:
        rows = {}
        for name, (before, after) in self.layers.items():
            if before != after:
                rows[name] = {"before": _layer(before), "after": _layer(after)}
        return Table(
            title="Layers that changed" if rows else "Layers: no change",
            columns=[Column(key="before"), Column(key="after")],
            rows=rows,
            corner="layer",
        )

    def _signatures(self) -> list[str]:
        before, after = (
            [str(signature) for signature in found.signatures]
            for found in (self.first, self.second)
        )
        if before == after:
            return ["Signatures: no change"]
        return [f"- {line}" for line in before] + [f"+ {line}" for line in after]


def diff(first: Inspection, second: Inspection) -> Difference:
    """Sets two models side by side.

    Args:
        first: The one before.
        second: The one after; any other format will do.

    Returns:
        Both, with the operations and layers that one or the other has.

    Example:
        >>> found = tfopt.inspect("model.tflite")
        >>> print(diff(found, found).report().tables[2].title)
        Layers: no change
    """
    return Difference(first, second)


_COLUMNS = (
    Column(key="before"),
    Column(key="after"),
    Column(key="ratio", title="after / before", format=".3f"),
)
_TOTALS = {
    "file bytes": "size_bytes",
    "file bytes after gzip": "gzip_bytes",
    "parameters": "parameters",
    "weight bytes": "weight_bytes",
    "sparsity": "sparsity",
    "MACs per example": "macs",
    "arena bytes (estimate)": "arena_bytes",
}


def _named(found: Inspection) -> str:
    return found.path or f"a {found.format} model in memory"


def _row(before: float | None, after: float | None) -> dict[str, Any]:
    ratio = after / before if before and after is not None else None
    return {"before": before, "after": after, "ratio": ratio}


def _layer(layer: Layer | None) -> str | None:
    if layer is None:
        return None
    parts = [f"{layer.kind}: {layer.parameters:,} {layer.dtype}".rstrip()]
    if layer.sparsity:
        parts.append(f"{layer.sparsity:.1%} zeros")
    if layer.macs:
        parts.append(f"{layer.macs:,} MACs")
    return ", ".join(parts)
