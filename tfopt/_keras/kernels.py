"""Which axes of a kernel are inputs and outputs, in layers of either Keras."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from tfopt._keras import variables


@dataclasses.dataclass(frozen=True)
class Layout:
    """How to see a kernel as a stack of matrices, [positions, inputs, outputs].

    Attributes:
        shape: Shape of the kernel.
        order: Its axes in the order positions, inputs, outputs.
        split: The three sizes.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    split: tuple[int, int, int]

    def matrices(self, array: np.ndarray) -> np.ndarray:
        """Returns an array of the kernel's shape as [positions, inputs, outputs]."""
        return array.transpose(self.order).reshape(self.split)

    def kernel(self, matrices: np.ndarray) -> np.ndarray:
        """Returns what `matrices` was made of."""
        ordered = matrices.reshape([self.shape[axis] for axis in self.order])
        return ordered.transpose(np.argsort(self.order))


def layout(weight: variables.Weight) -> Layout:
    """Returns the layout of a kernel or table, of rank 2 or more.

    Convolutions have the inputs on the last axis but one and the outputs on the last,
    transposed ones the other way round. A depthwise kernel has one input per output;
    its outputs are the channels times the multiplier. What EinsumDense (and so
    MultiHeadAttention) contracts are inputs. Of an embedding table the tokens are
    inputs. Kernels of unknown layers are taken for those of a Dense layer or, with
    more axes, a convolution.
    """
    rank = len(weight.shape)
    positions = tuple(range(rank - 2))
    inputs: tuple[int, ...] = (rank - 2,)
    outputs: tuple[int, ...] = (rank - 1,)
    if _is_depthwise(weight):
        inputs, outputs = (), (rank - 2, rank - 1)
    elif is_a(weight.layer, "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"):
        inputs, outputs = outputs, inputs
    elif is_a(weight.layer, "EinsumDense") and weight.last_name == "kernel":
        positions, inputs, outputs = einsum_axes(weight.layer.equation)
    return Layout(
        weight.shape,
        positions + inputs + outputs,
        (_size(weight, positions), _size(weight, inputs), _size(weight, outputs)),
    )


def bias_of(weight: variables.Weight, candidates: list[variables.Weight]) -> Any:
    """Returns the bias, one per output, that a layer adds after a kernel, or None."""
    if is_inner(weight):
        return None
    for other in candidates:
        if other.layer is weight.layer and other.last_name == "bias":
            return other if other.size == layout(weight).split[2] else None
    return None


def is_inner(weight: variables.Weight) -> bool:
    """Returns whether a kernel makes channels that stay inside of its layer."""
    separable = is_a(weight.layer, "SeparableConv1D", "SeparableConv2D")
    return separable and weight.last_name == "depthwise_kernel"


def is_recurrent(weight: variables.Weight) -> bool:
    """Returns whether a kernel belongs to a recurrent cell, whose gates share units."""
    name = type(weight.layer).__name__
    return name.endswith("Cell") or hasattr(weight.layer, "state_size")


def is_a(layer: Any, *names: str) -> bool:
    """Returns whether a layer is of a class of that name, or of a subclass."""
    return any(cls.__name__ in names for cls in type(layer).__mro__)


def einsum_letters(equation: str) -> tuple[str, str, str]:
    """Returns the axis letters of input, kernel and output of "ab,bc->ac"."""
    operands, output = equation.replace(" ", "").replace("...", "").split("->")
    given, kernel = operands.split(",")
    return given, kernel, output


def filled_equation(equation: str, rank: int) -> str:
    """Returns an equation with letters for what "..." stands for in an input."""
    plain = equation.replace(" ", "")
    given = plain.replace("...", "").split(",")[0]
    letters = (chr(code) for code in range(ord("A"), ord("Z") + 1))
    unused = [letter for letter in letters if letter not in plain]
    return plain.replace("...", "".join(unused[: rank - len(given)]))


def einsum_axes(
    equation: str,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Returns a kernel's axes that positions, inputs and outputs are of."""
    given, kernel, output = einsum_letters(equation)
    axes = range(len(kernel))
    return (
        tuple(i for i in axes if kernel[i] in given and kernel[i] in output),
        tuple(i for i in axes if kernel[i] not in output),
        tuple(i for i in axes if kernel[i] in output and kernel[i] not in given),
    )


def _is_depthwise(weight: variables.Weight) -> bool:
    if weight.last_name == "depthwise_kernel":
        return True
    named = is_a(weight.layer, "DepthwiseConv1D", "DepthwiseConv2D")
    return named and weight.last_name == "kernel"


def _size(weight: variables.Weight, axes: tuple[int, ...]) -> int:
    return math.prod(weight.shape[axis] for axis in axes)
