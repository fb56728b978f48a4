"""Frozen function in, `.tflite` bytes out: the one place that calls the converter."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.lite.python import convert as steps
from tensorflow.lite.python.optimize import calibrator

from tfopt.conversion import _errors
from tfopt.types import ConversionError

_INTEGER_KERNELS = {
    "int8": tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
    "int16x8": (
        tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    ),
}
INTEGER_MODES = tuple(_INTEGER_KERNELS)


@dataclasses.dataclass(frozen=True)
class Options:
    """What the converter is to do.

    Attributes:
        quantization: `"none"`, `"dynamic"`, `"float16"`, `"int8"` or `"int16x8"`;
            `"int4"` is made from the file of `"none"`.
        input_type: `"float32"`, `"int8"`, `"uint8"` or `"int16"`, for float inputs.
        output_type: The same for float outputs.
        allow_float: Whether int8 may leave operators in float.
        sparse: Whether to store weights with many zeros by their nonzero values.
        keep_float: Globs of layers or kinds of operators that stay float.
        equalize: Whether to equalize weights across layers before quantizing.
        correct_bias: Whether to correct biases after quantizing.
        keep_int8: Globs of layers or kinds of operators with 8 bits beside int4.
        select_tf_ops: Whether TensorFlow's kernels may fill in where TFLite has none.
    """

    quantization: str
    input_type: str
    output_type: str
    allow_float: bool
    sparse: bool = False
    keep_float: tuple[str, ...] = ()
    equalize: bool = False
    correct_bias: bool = False
    select_tf_ops: bool = False
    keep_int8: tuple[str, ...] = ()

    @property
    def is_refined(self) -> bool:
        """Whether there is more to do than the converter does by itself."""
        return bool(self.keep_float) or self.equalize or self.correct_bias


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
    converter = _converter(function, options, calibration)
    with _refusals(options):
        return converter.convert()


def calibrate(
    function: Any,
    options: Options,
    calibration: Sequence[Mapping[str, np.ndarray]],
) -> bytes:
    """Converts a frozen concrete function to floats with the range of each tensor.

    The first of the two steps of an int8 conversion; `quantize` is the second.

    Raises:
        ConversionError: As `lower`.
    """
    converter = _converter(function, options, calibration)
    converter._experimental_calibrate_only = True
    with _refusals(options):
        return converter.convert()


def recalibrate(
    content: bytes, calibration: Sequence[Mapping[str, np.ndarray]]
) -> bytes:
    """Finds the ranges of a calibrated float file anew, as its constants changed."""
    return calibrator.Calibrator(content).calibrate(
        lambda: (list(batch.values()) for batch in calibration)
    )


def quantize(content: bytes, options: Options, keep: Collection[str] = ()) -> bytes:
    """Quantizes what `calibrate` returned to int8, as the converter does.

    Args:
        content: A float file with ranges.
        options: What to do.
        keep: Names of tensors; the operators that make them stay float.

    Raises:
        ConversionError: The converter refuses the model.
    """
    with _refusals(options):
        result = steps.mlir_quantize(
            content,
            input_data_type=tf.as_dtype(options.input_type),
            output_data_type=tf.as_dtype(options.output_type),
            denylisted_nodes=set(keep),
        )
        return steps.mlir_sparsify(result) if options.sparse else result


@contextlib.contextmanager
def _refusals(options: Options) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ConversionError(
            f"The TFLite converter refuses the model "
            f"(quantization={options.quantization!r}): {_errors.explain(error)}"
        ) from error


def _converter(
    function: Any, options: Options, calibration: Sequence[Mapping[str, np.ndarray]]
) -> Any:
    # Naming the function as its own owner avoids a warning; naming a Keras 3 model
    # there writes a file of uninitialised variables.
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], function)
    _configure(converter, options, calibration)
    return converter


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
    builtins = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if options.quantization in _INTEGER_KERNELS:
        builtins = _integer_kernels(converter, options, calibration)
    if options.select_tf_ops:
        builtins.append(tf.lite.OpsSet.SELECT_TF_OPS)
    converter.target_spec.supported_ops = builtins


def _integer_kernels(
    converter: Any, options: Options, calibration: Sequence[Mapping[str, np.ndarray]]
) -> list[Any]:
    """Configures integers, and returns the sets of kernels that may be used."""
    converter.inference_input_type = tf.as_dtype(options.input_type)
    converter.inference_output_type = tf.as_dtype(options.output_type)
    if not calibration:
        return [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.representative_dataset = lambda: (
        list(batch.values()) for batch in calibration
    )
    builtins = [_INTEGER_KERNELS[options.quantization]]
    if options.allow_float or options.select_tf_ops:
        builtins.append(tf.lite.OpsSet.TFLITE_BUILTINS)
    return builtins
