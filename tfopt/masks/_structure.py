"""What is pruned together: single weights, blocks, N of M, whole channels.

Structures other than "unstructured" look at a weight tensor as a stack of matrices,
`[positions, inputs, outputs]`: the positions are a convolution's window (1 for a dense
layer), the rows inputs and the columns outputs, as in the kernel of a Dense layer.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

import numpy as np

Kind = Literal["unstructured", "block", "m:n", "channel"]
Pooling = Literal["avg", "max", "norm"]

POOLINGS: tuple[Pooling, ...] = ("avg", "max", "norm")


@dataclasses.dataclass(frozen=True)
class Structure:
    """Which weights are pruned together.

    Attributes:
        kind: `"unstructured"`, `"block"`, `"m:n"` or `"channel"`.
        first: Rows (inputs) of a block, or m of m:n, the zeros.
        second: Columns (outputs) of a block, or n of m:n, the length of a group.
    """

    kind: Kind = "unstructured"
    first: int = 1
    second: int = 1

    @classmethod
    def parse(cls, text: str | Structure) -> Structure:
        """Makes a structure from a word.

        Args:
            text: `"unstructured"`; `"4x1"`, blocks of 4 inputs by 1 output (TFMOT's
                `block_size=(4, 1)`); `"2:4"`, two zeros in each four inputs of an
                output (TFMOT's `sparsity_m_by_n=(2, 4)`); `"channel"` or, the same
                thing, `"filter"`: all weights of an output.

        Raises:
            ValueError: It is none of these.

        Example:
            >>> Structure.parse("2:4")
            Structure(kind='m:n', first=2, second=4)
        """
        if isinstance(text, Structure):
            return text
        if text in ("unstructured", "1x1"):
            return cls()
        if text in ("channel", "filter"):
            return cls("channel")
        match = re.fullmatch(r"([1-9]\d*)([x:])([1-9]\d*)", str(text))
        if match is not None:
            first, second = int(match[1]), int(match[3])
            if match[2] == "x":
                return cls("block", first, second)
            if first < second:
                return cls("m:n", first, second)
        raise ValueError(
            '`structure` must be "unstructured", "channel", a block such as "1x4" '
            '(inputs x outputs), or zeros in a group such as "2:4" (two zeros in each '
            f"four, fewer zeros than weights). Received: structure={text!r}"
        )

    @property
    def limit(self) -> float:
        """The highest fraction of zeros: m/n of m:n, otherwise 1."""
        return self.first / self.second if self.kind == "m:n" else 1.0

    def split(self, tensor: np.ndarray, fill: float) -> np.ndarray:
        """Cuts a tensor into units, the weights that are pruned together.

        Args:
            tensor: Array of shape `[positions, inputs, outputs]`; any shape if
                unstructured.
            fill: What fills up units that stick out over the edge.

        Returns:
            Array of shape `[units, weights of a unit]`.
        """
        if self.kind == "unstructured":
            return tensor.reshape(-1, 1)
        if self.kind == "channel":
            return np.moveaxis(tensor, -1, 0).reshape(tensor.shape[-1], -1)
        rows, columns = self._cell
        outer = [-(-tensor.shape[1] // rows), -(-tensor.shape[2] // columns)]
        beyond = (
            (0, 0),
            (0, outer[0] * rows - tensor.shape[1]),
            (0, outer[1] * columns - tensor.shape[2]),
        )
        padded = np.pad(tensor, beyond, constant_values=fill)
        cells = padded.reshape(-1, outer[0], rows, outer[1], columns)
        return cells.transpose(0, 1, 3, 2, 4).reshape(-1, rows * columns)

    def join(self, units: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Puts the units of `split` together to a tensor of the given shape."""
        if self.kind == "unstructured":
            return units.reshape(shape)
        if self.kind == "channel":
            return np.moveaxis(units.reshape(shape[-1], *shape[:-1]), 0, -1)
        rows, columns = self._cell
        outer = [-(-shape[1] // rows), -(-shape[2] // columns)]
        cells = units.reshape(-1, outer[0], outer[1], rows, columns)
        padded = cells.transpose(0, 1, 3, 2, 4).reshape(
            -1, outer[0] * rows, outer[1] * columns
        )
        return padded[:, : shape[1], : shape[2]]

    @property
    def _cell(self) -> tuple[int, int]:
        return (self.second, 1) if self.kind == "m:n" else (self.first, self.second)


class Units:
    """The units of one tensor, as a structure cuts it.

    Args:
        structure: The structure.
        shape: Shape of the tensor, `[positions, inputs, outputs]` unless unstructured.

    Attributes:
        sizes: int array; how many weights become zero with each unit. Units without
            any (in m:n, a last group that is short enough) count as 0.
    """

    def __init__(self, structure: Structure, shape: tuple[int, ...]):
        self._structure = structure
        self._shape = shape
        self._last: tuple[np.ndarray, np.ndarray] | None = None
        if structure.kind == "unstructured":
            self._valid = None
            self.sizes = np.broadcast_to(
                np.int64(1), int(np.prod(shape, dtype=np.int64))
            )
            return
        self._valid = structure.split(np.ones(shape, bool), fill=False)
        self.sizes = self._valid.sum(axis=1)
        if structure.kind == "m:n":
            kept = structure.second - structure.first
            self.sizes = np.maximum(self.sizes - kept, 0)

    def scores(self, scores: np.ndarray, pooling: Pooling) -> np.ndarray:
        """Returns one score per unit; larger is better.

        Args:
            scores: Scores of the weights, of the tensor's shape.
            pooling: What scores a block or channel: the mean of its weights' scores,
                the largest one, or their root mean square. A group of m:n scores what
                it loses, the sum of its m smallest.
        """
        if self._valid is None:
            return scores.ravel()
        valid = self._valid
        if self._structure.kind == "m:n":
            units = self._structure.split(scores, fill=0.0)
            lost = np.where(~self._best(scores) & valid, units, 0.0)
            return lost.sum(axis=1)
        units = self._structure.split(scores, fill=0.0)
        if pooling == "max":
            return np.where(valid, units, -np.inf).max(axis=1)
        count = valid.sum(axis=1)
        if pooling == "norm":
            return np.sqrt(np.square(units).sum(axis=1) / count)
        return units.sum(axis=1) / count

    def expand(self, keep: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Returns the tensor's mask; in an m:n group the m lowest scores go.

        Args:
            keep: Bool array, one value per unit; False is pruned.
            scores: Scores of the weights, of the tensor's shape.
        """
        if self._valid is None:
            return keep.reshape(self._shape)
        units = np.repeat(keep[:, None], self._valid.shape[1], axis=1)
        if self._structure.kind == "m:n":
            units |= self._best(scores)
        return self._structure.join(units, self._shape)

    def zeros(self, values: np.ndarray) -> int:
        """Returns how many zeros of a tensor are in units pruned as a whole."""
        if self._valid is None:
            return values.size - int(np.count_nonzero(values))
        is_zero = self._structure.split(values == 0, fill=True)
        if self._structure.kind == "m:n":
            return int(self.sizes[is_zero.sum(axis=1) >= self._structure.first].sum())
        return int(self.sizes[is_zero.all(axis=1)].sum())

    def _best(self, scores: np.ndarray) -> np.ndarray:
        """Returns where the n - m best of each group are; the lower index wins."""
        if self._last is None or self._last[0] is not scores:
            self._last = scores, self._find_best(scores)
        return self._last[1]

    def _find_best(self, scores: np.ndarray) -> np.ndarray:
        units = self._structure.split(scores, fill=-np.inf)
        kept = self._structure.second - self._structure.first
        if units.shape[1] > 16:
            order = np.argsort(-units, axis=1, kind="stable")
            best = np.zeros(units.shape, bool)
            np.put_along_axis(best, order[:, :kept], True, axis=1)
            return best
        # Counting, pair by pair, how many are better is many times as fast as sorting
        # millions of short rows.
        columns = np.ascontiguousarray(units.T)
        better = np.zeros(columns.shape, np.int8)
        for low in range(len(columns)):
            for high in range(low + 1, len(columns)):
                loses = columns[high] > columns[low]
                better[low] += loses
                better[high] += ~loses
        return (better < kept).T
