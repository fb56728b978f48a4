"""How strong the inputs of a kernel are, measured on data, in either Keras."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import kernels, variables
from tfopt.types import TfoptError

_CONVOLUTIONS = ("Conv1D", "Conv2D", "Conv3D")
_TRANSPOSED = tuple(f"{name}Transpose" for name in _CONVOLUTIONS)
_DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")


def input_norms(
    model: Any, watched: Sequence[variables.Weight], data: Iterable[Any]
) -> dict[str, np.ndarray]:
    """Returns the root mean square of what each weight of a kernel multiplies.

    Args:
        model: Built model; it runs in inference mode, uncompiled.
        watched: Kernels of Dense, EinsumDense (also in MultiHeadAttention),
            convolutions (also depthwise and transposed) and Embedding.
        data: Batches, `x` alone or `(x, ...)`.

    Returns:
        float64 arrays by name that broadcast to [positions, inputs, outputs], as of
        `kernels.layout`. For a table, the square root of each token's frequency.

    Raises:
        TfoptError: A kernel of another layer, a layer that did not run, or no data.
    """
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}

    def record(name: str, squares: np.ndarray, count: int) -> None:
        sums[name] = sums.get(name, 0.0) + squares
        counts[name] = counts.get(name, 0) + count

    undo = [_watch(weight, record) for weight in watched]
    try:
        for batch in data:
            model(batch[0] if isinstance(batch, (tuple, list)) else batch)
    finally:
        for each in reversed(undo):
            each()
    silent = [weight.name for weight in watched if not counts.get(weight.name)]
    if silent:
        raise TfoptError(
            "The data did not pass the layers of some weights. Expected at least one "
            f"batch, and layers that are called. Received: weights={silent}"
        )
    return {name: np.sqrt(sums[name] / counts[name]) for name in sums}


def _watch(
    weight: variables.Weight, record: Callable[[str, np.ndarray, int], None]
) -> Callable[[], None]:
    """Records the inputs of a layer's calls; returns a function that stops it."""
    measure = _measure(weight)
    layer, original = weight.layer, weight.layer.call

    def call(*args: Any, **options: Any) -> Any:
        given = args[0] if args else next(iter(options.values()))
        if not tf.is_tensor(given) or not hasattr(given, "numpy"):
            raise TfoptError(
                "The inputs of a layer cannot be read. Expected one that takes a "
                f"tensor, outside of loops. Received: weight={weight.name!r}"
            )
        record(weight.name, *measure(given))
        return original(*args, **options)

    # Past the layers' own bookkeeping of attributes.
    before = layer.__dict__.get("call")
    object.__setattr__(layer, "call", call)

    def undo() -> None:
        if before is None:
            object.__delattr__(layer, "call")
        else:
            object.__setattr__(layer, "call", before)

    return undo


def _measure(weight: variables.Weight) -> Callable[[Any], tuple[np.ndarray, int]]:
    """Returns what makes sums of squares, and their count, of a layer's input."""
    layer = weight.layer
    if kernels.is_a(layer, "Embedding"):
        return lambda given: _token_counts(given, weight.shape[0])
    if kernels.is_a(layer, "EinsumDense") and weight.last_name == "kernel":
        return lambda given: _einsum_squares(given, layer.equation, weight)
    if weight.last_name in ("kernel", "depthwise_kernel"):
        if kernels.is_a(layer, "Dense"):
            return lambda given: _squares(given, -1)
        if kernels.is_a(layer, *_DEPTHWISE):
            return lambda given: _depthwise_squares(given, weight)
        if kernels.is_a(layer, *_CONVOLUTIONS, *_TRANSPOSED):
            return lambda given: _convolution_squares(given, weight)
    raise TfoptError(
        'The score "activation" does not know which inputs a kernel multiplies. '
        "Expected Dense, EinsumDense, MultiHeadAttention, Embedding or a convolution; "
        "`exclude` others, or choose another score. "
        f"Received: weight={weight.name!r} of {type(layer).__name__}"
    )


def _squares(given: Any, axis: int) -> tuple[np.ndarray, int]:
    """Returns [1, channels, 1] sums of squares, and over how many values."""
    values = np.moveaxis(np.asarray(given, np.float64), axis, -1)
    flat = values.reshape(-1, values.shape[-1])
    return np.square(flat).sum(axis=0)[None, :, None], len(flat)


def _channel_axis(layer: Any) -> int:
    return 1 if layer.data_format == "channels_first" else -1


def _convolution_squares(
    given: Any, weight: variables.Weight
) -> tuple[np.ndarray, int]:
    squares, count = _squares(given, _channel_axis(weight.layer))
    groups = getattr(weight.layer, "groups", 1) or 1
    if groups == 1:
        return squares, count
    # Outputs of a group see the inputs of that group only.
    outputs = weight.shape[-1] // groups
    by_group = squares.reshape(groups, -1)
    return np.repeat(by_group.T, outputs, axis=1)[None], count


def _depthwise_squares(given: Any, weight: variables.Weight) -> tuple[np.ndarray, int]:
    squares, count = _squares(given, _channel_axis(weight.layer))
    return np.repeat(squares.ravel(), weight.shape[-1])[None, None], count


def _einsum_squares(
    given: Any, equation: str, weight: variables.Weight
) -> tuple[np.ndarray, int]:
    letters, kernel, _ = kernels.einsum_letters(equation)
    values = np.square(np.asarray(given, np.float64))
    # Letters stand at the end, after what "..." stands for, or at the beginning.
    left = not equation.replace(" ", "").startswith("...")
    offset = 0 if left else values.ndim - len(letters)
    kept = [
        axis for axis in range(values.ndim) if _letter(letters, axis, offset, kernel)
    ]
    reduced = tuple(axis for axis in range(values.ndim) if axis not in kept)
    sums, count = values.sum(axis=reduced), values.size
    count //= max(1, sums.size)
    names = [letters[axis - offset] for axis in kept]
    layout = kernels.layout(weight)
    shared = [kernel[axis] for axis in layout.order if kernel[axis] in names]
    ordered = sums.transpose([names.index(name) for name in shared])
    return ordered.reshape(layout.split[0], layout.split[1], 1), count


def _letter(letters: str, axis: int, offset: int, kernel: str) -> bool:
    position = axis - offset
    return 0 <= position < len(letters) and letters[position] in kernel


def _token_counts(given: Any, tokens: int) -> tuple[np.ndarray, int]:
    values = np.asarray(given).astype(np.int64).ravel()
    counts = np.bincount(values, minlength=tokens).astype(np.float64)
    return counts[None, :, None], values.size
