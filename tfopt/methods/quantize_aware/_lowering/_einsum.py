"""EinsumDense as a matrix product between transpositions and reshapes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tfopt._keras import kernels


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to compute an einsum of a tensor and a kernel by a matrix product.

    Attributes:
        contracted: Letters of the kernel's axes that are summed over.
        made: Letters of its other axes, in the order of the output.
        made_sizes: Their sizes.
        kernel: All its letters, in order.
        last: Letter of the output's last axis.
        before: Axes of the input in the order positions, contracted; or empty.
        sizes: Shape of the product after splitting, with the batch -1.
        after: Order of its axes in the output; or empty.
    """

    contracted: str
    made: str
    kernel: str
    last: str
    made_sizes: tuple[int, ...]
    before: tuple[int, ...]
    sizes: tuple[int, ...]
    after: tuple[int, ...]

    def matrices(
        self,
        kernel: np.ndarray,
        bias: np.ndarray | None = None,
        *,
        bias_axes: str | None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the matrix [contracted, made], and the bias [made]."""
        order = [self.kernel.index(letter) for letter in self.contracted + self.made]
        matrix = kernel.transpose(order).reshape(-1, math.prod(self.made_sizes))
        if bias is None:
            return matrix, None
        # Keras has its axes in the order of the output, which is that of `made`.
        shape = [
            size if letter in (bias_axes or "") else 1
            for letter, size in zip(self.made, self.made_sizes, strict=True)
        ]
        return matrix, np.broadcast_to(bias.reshape(shape), self.made_sizes).ravel()

    def along_last(self, values: np.ndarray) -> np.ndarray:
        """Returns values along the output's last axis as [made]."""
        shape = [-1 if letter == self.last else 1 for letter in self.made]
        return np.broadcast_to(values.reshape(shape), self.made_sizes).ravel()


def plan(
    equation: str, shape: Sequence[int | None], kernel_shape: Sequence[int]
) -> Plan:
    """Returns how to compute an equation on an input of a shape, batch first."""
    filled = kernels.filled_equation(equation, len(shape))
    left, kernel, right = kernels.einsum_letters(filled)
    sizes = dict(zip(kernel, kernel_shape, strict=True))
    sizes |= {c: -1 if n is None else n for c, n in zip(left, shape, strict=True)}
    kept = "".join(c for c in left if c not in kernel)
    contracted = "".join(c for c in left if c in kernel)
    made = "".join(c for c in right if c not in left)
    before = tuple(left.index(c) for c in kept + contracted)
    after = tuple((kept + made).index(c) for c in right)
    return Plan(
        contracted=contracted,
        made=made,
        kernel=kernel,
        last=right[-1],
        made_sizes=tuple(sizes[c] for c in made),
        before=() if before == tuple(range(len(left))) else before,
        sizes=(-1, *(sizes[c] for c in (kept + made)[1:])),
        after=() if after == tuple(range(len(right))) else after,
    )
