"""Looking into models: how sparse they really are, and what each layer can bear.

Everything is counted in the weights themselves and measured on outputs, nothing is
taken from what a method said that it would do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from tfopt import _keras, _trust, artifacts, tflite_file
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


@_trust.with_safe_mode
def sparsity(model: Any, *, safe_mode: bool = True) -> dict[str, float]:
    """Returns the fraction of zeros in each weight matrix, and in all of them.

    Counted are kernels and embedding tables, which is what pruning is about; not
    biases and normalization parameters.

    Args:
        model: A built model of Keras 3 or tf_keras; or a `.keras`, `.h5` or `.tflite`
            file; or the content of a `.tflite` file. In quantized tensors the codes
            that stand for zero count.
        safe_mode: Refuse model files that could run code, reach other files or the
            network. False opens and runs whatever they hold.

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


@_trust.with_safe_mode
def sensitivity(
    model: Any,
    data: Any,
    *,
    methods: str | Sequence[str] = "prune",
    metric: str | Callable[..., float] | None = None,
    higher_is_better: bool | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    sparsities: Sequence[float] | None = None,
    score: str | None = None,
    structure: str | None = None,
    mode: Literal["alone", "restored", "both", "whole"] | None = None,
    examples: int | None = None,
    calibration_examples: int | None = None,
    signature_key: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    safe_mode: bool = True,
) -> Any:
    """Returns how a model suffers when one layer at a time is pruned or quantized.

    Nothing is trained, and the model ends up as it was; some hundreds of examples are
    enough. Pruning evaluates a Keras model `len(sparsities)` times per weight tensor.
    Quantization takes every source that `tfopt.convert` takes, calibrates it once,
    and runs the real int8 kernels of one layer at a time in LiteRT.

    Args:
        model: For `"prune"` a built Keras model, compiled unless `metric` is a
            function; else anything that `tfopt.convert` takes.
        data: `(x, y)` arrays, or an iterable of such batches, as a `tf.data.Dataset`;
            for quantization also inputs alone, in any form of its
            `representative_dataset`: then only noise is measured.
        methods: `"prune"`; or one or several of `"int8"` (weights and activations),
            `"dynamic"`, `"int8_weights"`, `"int4_weights"` and `"float16"` (weights
            alone).
        metric: `"prune"`: name of what `model.evaluate` returns ("loss" by default)
            or a function: model -> number. Quantization: one that `tfopt.compare`
            knows, such as "accuracy" (the default, if there are labels), "mse" or
            "top_5", or a function: outputs, labels -> number.
        higher_is_better: Whether a higher metric is better. None: known of named
            metrics; of functions, if their names don't contain "loss" or "error".
        include: Globs of weights (`"prune"`, as for `Prune`) or of layers and kinds
            of operators (as for `keep_float` of `tfopt.convert`) to try.
        exclude: Globs of those not to try.
        sparsities: `"prune"` only: fractions of zeros to try, in (0, 1), rising; by
            default (0.5, 0.7, 0.8, 0.9, 0.95).
        score: `"prune"` only: "magnitude" (default) or "random".
        structure: `"prune"` only: as for `Prune`, but not "m:n".
        mode: Quantization only: quantize only one layer ("alone", the default), all
            but one ("restored"), or "both", one after the other; or only all layers
            together ("whole").
        examples: Quantization only: how many examples are compared; 512 by default.
        calibration_examples: Quantization only: how many of them tell the ranges of
            activations; 256 by default.
        signature_key: Quantization only: which signature of a SavedModel.
        cache: Quantization only: JSON file to keep scores in, so that an interrupted
            or repeated call measures only what is new.
        safe_mode: Refuse model files that could run code, reach other files or the
            network. False opens and runs whatever they hold.

    Returns:
        `Sensitivity`, whose `solve` divides a total sparsity among layers; or
        `QuantizationSensitivity`, whose `keep_float` picks the layers to leave in
        float. Both can be printed, saved and loaded.

    Raises:
        ValueError: An argument is wrong, or the metric is unknown or not finite.
        ConversionError: The model cannot be converted.

    Example:
        >>> found = sensitivity(model, (images, labels), methods="int8")
        >>> list(found.layers)
        ['logits']
        >>> found.keep_float(min_sqnr=10.0)
        []
    """
    pruned = methods == "prune"
    own = {"sparsities": sparsities, "score": score, "structure": structure}
    others = {
        "mode": mode,
        "examples": examples,
        "calibration_examples": calibration_examples,
        "signature_key": signature_key,
        "cache": cache,
    }
    for name, value in (others if pruned else own).items():
        if value is not None:
            raise ValueError(
                f"`{name}` is for {'quantization' if pruned else 'pruning'}. "
                f"Received: {name}={value!r} with methods={methods!r}"
            )
    shared: dict[str, Any] = {
        "metric": metric,
        "higher_is_better": higher_is_better,
        "include": include,
        "exclude": exclude,
        **(own if pruned else others),
    }
    given = {name: value for name, value in shared.items() if value is not None}
    if pruned:
        from tfopt import pruning

        return pruning.sensitivity(model, data, **given)
    from tfopt import quantization

    return quantization.measure(model, data, methods=methods, **given)


def _counted(model: Any) -> Iterator[tuple[str, int, int]]:
    """Yields name, number of zeros and number of weights of each matrix."""
    if isinstance(model, str | os.PathLike):
        path = os.fspath(model)
        is_keras = path.endswith(artifacts.KERAS_SUFFIXES)
        model = _keras.load(path) if is_keras else path
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
