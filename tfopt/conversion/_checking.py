"""What is checked before and after a conversion: arguments, and promises."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from tfopt._keras import variables
from tfopt.conversion import _freezing, _int4, _lowering, _verification
from tfopt.conversion._samples import Samples
from tfopt.conversion._sources import Source
from tfopt.tflite_file import TfliteFile
from tfopt.types import ConversionError

_MODES = ("none", "dynamic", "float16", "int8", "int16x8", "int4")
# Types of inputs and outputs that stand for floats, by mode.
_IO_TYPES = {"int8": ("float32", "int8", "uint8"), "int16x8": ("float32", "int16")}
# The modes for what `tfopt.QuantizeAware` trained a model for.
_MODES_OF_TRAINED = {
    "int8": ("int8",),
    "int4": ("int8",),
    "int8_weights": ("dynamic", "int8"),
    "int16x8": ("int16x8",),
}


def patterns(argument: str, value: Any) -> tuple[str, ...]:
    """Returns the globs that an argument such as `keep_float` has.

    Raises:
        ValueError: They are no globs.
    """
    return tuple(variables.as_patterns(argument, value) or ())


def check_options(options: _lowering.Options, calibration_examples: int) -> None:
    """Raises unless the options fit each other.

    Raises:
        ValueError: They don't; the message names the argument.
    """
    if options.quantization not in _MODES:
        raise ValueError(
            f"Unknown mode. Expected one of {_MODES}. "
            f"Received: quantization={options.quantization!r}"
        )
    for name, value in (
        ("inference_input_type", options.input_type),
        ("inference_output_type", options.output_type),
    ):
        types = _IO_TYPES.get(options.quantization, ("float32",))
        if value not in types:
            raise ValueError(
                'Integer inputs and outputs need quantization="int8" (int8 or uint8) '
                f'or "int16x8" (int16). Expected one of {types}. Received: '
                f"{name}={value!r} with quantization={options.quantization!r}"
            )
    if options.quantization == "int4":
        _int4.check_installed()
    if options.sparse and options.quantization in ("dynamic", "int4"):
        raise ValueError(
            "LiteRT cannot run sparse weights that it quantizes with, or computes "
            'wrong numbers from them. Use "none", "float16" or "int8". Received: '
            f"sparse=True with quantization={options.quantization!r}"
        )
    _check_refinements(options)
    if calibration_examples < 1:
        raise ValueError(
            "Expected a positive number. "
            f"Received: calibration_examples={calibration_examples}"
        )


def check_limits(time_limit: float | None, memory_limit: int | None) -> None:
    """Raises unless the bounds of an isolated conversion are positive.

    Raises:
        ValueError: They aren't.
    """
    for name, value in (("time_limit", time_limit), ("memory_limit", memory_limit)):
        if value is not None and not value > 0:
            raise ValueError(f"Expected a positive number. Received: {name}={value}")


def _check_refinements(options: _lowering.Options) -> None:
    """Checks the options that refine a quantization after training."""
    if options.select_tf_ops and options.is_refined:
        raise ValueError(
            "`keep_float`, `equalize` and `correct_bias` run the model, which Python "
            "cannot with `allow_select_tf_ops`. Received: allow_select_tf_ops=True"
        )
    for name, value, modes in (
        ("keep_float", options.keep_float, ("int8", "dynamic", "float16", "int4")),
        ("keep_int8", options.keep_int8, ("int4",)),
        ("equalize", options.equalize, ("int8",)),
        ("correct_bias", options.correct_bias, ("int8",)),
    ):
        if value and options.quantization not in modes:
            raise ValueError(
                f"`{name}` needs quantization to be one of {modes}. "
                f"Received: {name}={value!r} with "
                f"quantization={options.quantization!r}"
            )


def check_quantization(
    options: _lowering.Options, frozen: Any, samples: Samples | None
) -> None:
    """Raises unless the model can be quantized as asked.

    Raises:
        ValueError: It was trained for another mode, or nothing tells the ranges.
        ConversionError: The converter would crash.
    """
    trained = _freezing.trained_scheme(frozen)
    mode = options.quantization
    if trained is not None and mode not in _MODES_OF_TRAINED[trained]:
        raise ValueError(
            f"The model was trained for {trained} (`tfopt.QuantizeAware` or other fake "
            "quantization), which this mode would lose, or mix with floats. Use "
            f"quantization={_MODES_OF_TRAINED[trained][0]!r}, or convert the model as "
            f"it was before. Received: quantization={mode!r}"
        )
    if mode not in _lowering.INTEGER_MODES:
        return
    if trained and options.is_refined:
        raise ValueError(
            "The model was trained for int8, and its fake quantization says which "
            "layers are integers and how. List layers that are to stay float in "
            "`tfopt.QuantizeAware(exclude=...)`; `equalize` and `correct_bias` are for "
            f"models that were not trained for it. Received: {options}"
        )
    if trained not in ("int8", "int4") and samples is None:
        raise ValueError(
            f"quantization={mode!r} must see typical inputs to know the range of each "
            "activation. Give a `representative_dataset` (about a hundred examples), "
            "train with `tfopt.QuantizeAware` (for int8), or use "
            'quantization="dynamic". Received: representative_dataset=None'
        )
    if samples is not None and _freezing.has_loop(frozen):
        # With TensorFlow 2.21, LSTM, GRU and SimpleRNN of either Keras end the process
        # by a segmentation fault; other loops keep float states.
        raise ConversionError(
            f"The converter cannot calibrate loops for quantization={mode!r}: "
            "recurrent layers crash it. Unroll them (`unroll=True`), or use "
            'quantization="dynamic".'
        )


def check_promises(
    file: TfliteFile,
    source: Source,
    options: _lowering.Options,
    kept: Collection[int],
) -> None:
    """Raises unless the file has the types and the precision that were promised.

    Args:
        file: The file.
        source: The model.
        options: What was promised.
        kept: Operators of the main subgraph that stay float by request.

    Raises:
        ConversionError: It cannot run, or has other inputs or outputs.
        VerificationError: Other operators compute on floats.
    """
    _verification.check_runnable(file, allow_select_tf_ops=options.select_tf_ops)
    signature = file.signatures[0]
    _verification.check_types(
        signature.inputs,
        [_io_dtype(spec.dtype, options.input_type) for spec in source.specs.values()],
    )
    _verification.check_types(
        signature.outputs,
        [
            _io_dtype(tensor.dtype, options.output_type)
            for tensor in source.function.outputs
        ],
    )
    if options.quantization in _lowering.INTEGER_MODES and not options.allow_float:
        _verification.check_integer(file, kept)


def _io_dtype(dtype: Any, float_type: str) -> np.dtype:
    name = dtype.name
    if name == "string":
        return np.dtype(object)
    return np.dtype(float_type if name == "float32" else name)
