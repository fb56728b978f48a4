"""Frozen function in, `.tflite` bytes out: the one place that calls the converter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.conversion import _errors
from tfopt.types import ConversionError


@dataclasses.dataclass(frozen=True)
class Options:
    """What the converter is to do.

    Attributes:
        quantization: `"none"`, `"dynamic"`, `"float16"` or `"int8"`.
        input_type: `"float32"`, `"int8"` or `"uint8"`, for float inputs.
        output_type: The same for float outputs.
        allow_float: Whether int8 may leave operators in float.
        sparse: Whether to store weights with many zeros by their nonzero values.
    """

    quantization: str
    input_type: str
    output_type: str
    allow_float: bool
    sparse: bool = False


def lower(
    function: Any,
    options: Options,
    calibration: Sequence[Mapping[str, np.ndarray]] = (),
) -> bytes:
    """Converts a frozen concrete function.

    Args:
        function: Takes tensors in order; without variables.
        options: What to do.
        calibration: Batches for int8, each with the inputs in order.

    Returns:
        The flatbuffer as the converter made it: no signature, and tensor names of
        the graph.

    Raises:
        ConversionError: The converter refuses the model, or has no kernel for an
            operator.
    """
    # Naming the function as its own owner avoids a warning; naming a Keras 3 model
    # there writes a file of uninitialised variables.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], function)
    _configure(converter, options, calibration)
    try:
        return converter.convert()
    except Exception as error:
        raise ConversionError(
            f"The TFLite converter refuses the model "
            f"(quantization={options.quantization!r}): {_errors.explain(error)}"
        ) from error


def _configure(
    converter: Any, options: Options, calibration: Sequence[Mapping[str, np.ndarray]]
) -> None:
    wanted = []
    if options.quantization != "none":
        wanted.append(tf.lite.Optimize.DEFAULT)
    if options.sparse:
        wanted.append(tf.lite.Optimize.EXPERIMENTAL_SPARSITY)
    converter.optimizations = wanted
    if options.quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if options.quantization != "int8":
        return
    converter.inference_input_type = tf.as_dtype(options.input_type)
    converter.inference_output_type = tf.as_dtype(options.output_type)
    if calibration:
        converter.representative_dataset = lambda: (
            list(batch.values()) for batch in calibration
        )
        builtins = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        if options.allow_float:
            builtins.append(tf.lite.OpsSet.TFLITE_BUILTINS)
        converter.target_spec.supported_ops = builtins
