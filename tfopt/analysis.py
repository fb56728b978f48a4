"""Looking into models: how sparse their weights really are.

Everything is counted in the weights themselves, nothing is taken from what a method
said that it would do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfopt import _keras, tflite_file
from tfopt._keras import variables

# Operators that multiply or look up constants. Those they take as input count as
# weights from rank 2 on (below that they are biases and the like).
_KERNEL_OPERATORS = frozenset(
    {
        *("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED"),
        *("CONV_3D", "CONV_3D_TRANSPOSE", "BATCH_MATMUL", "EMBEDDING_LOOKUP", "GATHER"),
        *("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM"),
        *("RNN", "UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_RNN", "SVDF"),
    }
)
# Operators through which a stored weight passes on its way to one of those.
_UNPACKING_OPERATORS = frozenset({"DEQUANTIZE", "DENSIFY", "RESHAPE", "TRANSPOSE"})
_WEIGHT_TYPES = frozenset({"FLOAT32", "FLOAT16", "BFLOAT16", "INT4", "INT8", "UINT8"})


def sparsity(model: Any) -> dict[str, float]:
    """Returns the fraction of zeros in each weight matrix, and in all of them.

    Counted are kernels and embedding tables, which is what pruning is about; not
    biases and normalization parameters.

    Args:
        model: A built model of Keras 3 or tf_keras; or a `.keras`, `.h5` or `.tflite`
            file; or the content of a `.tflite` file. In quantized tensors the codes
            that stand for zero count.

    Returns:
        Fractions in [0, 1] by weight name (Keras: as in `Prune.report`; TFLite: the
        tensors' names), and under `"total"` that of all these weights together,
        0.0 if there are none.

    Raises:
        TfoptError: The model is nothing of that kind, has no weights yet, or the file
            is damaged.

    Example:
        >>> sparsity(model)
        {'logits/kernel': 0.0, 'total': 0.0}
    """
    counts = {}
    for name, zeros, size in _counted(model):
        unique, number = name, 1
        while unique in counts:
            number += 1
            unique = f"{name}#{number}"
        counts[unique] = (zeros, size)
    total = sum(size for _, size in counts.values())
    result = {name: zeros / size for name, (zeros, size) in counts.items()}
    zeros = sum(zeros for zeros, _ in counts.values())
    return {**result, "total": zeros / total if total else 0.0}


def _counted(model: Any) -> Iterator[tuple[str, int, int]]:
    """Yields name, number of zeros and number of weights of each matrix."""
    if isinstance(model, str | os.PathLike):
        path = os.fspath(model)
        model = _keras.load(path) if path.endswith((".keras", ".h5")) else path
    if isinstance(model, str | bytes):
        for subgraph in tflite_file.read(model).subgraphs:
            for tensor in _weights(subgraph):
                size = math.prod(length or 0 for length in tensor.shape)
                name = tensor.name or f"#{tensor.index}"
                yield name, size - _nonzero(tensor), size
        return
    _keras.check_model(model)
    for weight in variables.kernels(model):
        if weight.size:
            nonzero = np.count_nonzero(weight.variable.numpy())
            yield weight.name, weight.size - int(nonzero), weight.size


def _nonzero(tensor: tflite_file.Tensor) -> int:
    if tensor.is_sparse and tensor.raw is not None and tensor.dtype is not None:
        # Stored are the nonzero values, with the zeros of their blocks.
        return int(np.count_nonzero(tensor.raw.view(tensor.dtype)))
    return int(np.count_nonzero(tensor.values()))


def _weights(subgraph: tflite_file.Subgraph) -> list[tflite_file.Tensor]:
    origin = {
        operator.outputs[0]: operator.inputs[0]
        for operator in subgraph.operators
        if operator.name in _UNPACKING_OPERATORS
    }
    found = {}
    for operator in subgraph.operators:
        if operator.name not in _KERNEL_OPERATORS:
            continue
        for index in operator.inputs:
            while index in origin:
                index = origin[index]
            tensor = subgraph.tensors[index]
            if (
                tensor.is_constant
                and len(tensor.shape) >= 2
                and tensor.type in _WEIGHT_TYPES
                and all(tensor.shape)
            ):
                found[index] = tensor
    return list(found.values())
