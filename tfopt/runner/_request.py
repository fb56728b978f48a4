"""From the inputs of one call to a `Job`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfopt.runner import _inputs
from tfopt.runner._engine import Engine
from tfopt.runner._layout import Layout, piece_rows
from tfopt.runner._model_file import Entry


@dataclasses.dataclass(frozen=True)
class Batching:
    """How the rows of some inputs are cut.

    Attributes:
        rows: Their number.
        batch_rows: The most rows of one invocation; None where they are not cut.
        inputs: Names of the inputs whose first axis counts rows; the others go whole
            to every invocation.
    """

    rows: int
    batch_rows: int | None
    inputs: tuple[str, ...]


class Request:
    """Checked inputs of one call, and how to compute any range of their rows.

    Args:
        entry: The signature.
        layout: How its rows may be cut.
        arrays: One checked array per input.
        quantized_io: As in `Runner`.
        batch: Rows of an invocation, "auto", or None for all.
        auto_rows: What "auto" was found to be best; None: the rule.

    Raises:
        ValueError: The first axes don't fit the model or each other.
    """

    def __init__(
        self,
        entry: Entry,
        layout: Layout,
        arrays: Sequence[np.ndarray],
        *,
        quantized_io: str,
        batch: int | str | None,
        auto_rows: int | None = None,
    ):
        self._entry = entry
        self._layout = layout
        self._batched_arrays = list(zip(arrays, layout.is_batched, strict=True))
        self.rows = _inputs.check_rows(entry.signature, arrays, layout.is_batched)
        self.piece_rows = 0
        if self.rows:
            self.piece_rows = piece_rows(layout, entry, arrays, batch, auto_rows)
        # `_inputs.check` lets other types pass only where they can be quantized.
        self._quantized = [
            index
            for index, info in enumerate(entry.signature.inputs)
            if info.dtype.kind != "O" and arrays[index].dtype != info.dtype
        ]
        self._wants_floats = quantized_io == "float" or (
            quantized_io == "auto" and bool(self._quantized)
        )

    def compute(self, engine: Engine, start: int, stop: int) -> list[np.ndarray]:
        """Runs the rows `start` to `stop`; returns the outputs, in float if wanted."""
        if start == stop and self._layout.mode != "whole":
            results = self._empty(engine)
        else:
            results = self._invoke(engine, start, stop)
        if not self._wants_floats:
            return results
        return [
            _inputs.dequantize(result, info) if _inputs.can_quantize(info) else result
            for result, info in zip(results, self._entry.signature.outputs, strict=True)
        ]

    def collect(self, outputs: list[np.ndarray]) -> Any:
        """Returns one array, or a dict by name where there are several outputs."""
        if len(outputs) == 1:
            return outputs[0]
        infos = self._entry.signature.outputs
        return {info.name: output for info, output in zip(infos, outputs, strict=True)}

    def _invoke(self, engine: Engine, start: int, stop: int) -> list[np.ndarray]:
        pieces = [
            array[start:stop] if is_batched else array
            for array, is_batched in self._batched_arrays
        ]
        missing = self._layout.rows - (stop - start) if self._layout.rows else 0
        if missing:
            pieces = [
                _fill(piece, missing) if is_batched else piece
                for piece, (_, is_batched) in zip(
                    pieces, self._batched_arrays, strict=True
                )
            ]
        for index in self._quantized:
            info = self._entry.signature.inputs[index]
            pieces[index] = _inputs.quantize(pieces[index], info)
        results = engine.run(pieces)
        if missing:
            return [result[: stop - start] for result in results]
        return results

    def _empty(self, engine: Engine) -> list[np.ndarray]:
        """Outputs for no rows at all: the shapes that one row would have."""
        shapes = engine.output_shapes(
            [
                (self._layout.rows or 1, *array.shape[1:]) if batched else array.shape
                for array, batched in self._batched_arrays
            ]
        )
        return [
            np.empty((0, *shape[1:]), info.dtype)
            for shape, info in zip(shapes, self._entry.signature.outputs, strict=True)
        ]


def _fill(piece: np.ndarray, missing: int) -> np.ndarray:
    # Copies of a real row: zeros might divide by zero or trap.
    return np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)])
