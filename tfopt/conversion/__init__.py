"""Conversion of any model to a verified `.tflite` file.

A model is traced for inference, frozen, and then converted: several times faster than
`TFLiteConverter.from_keras_model`, with the same outputs. The file gets a signature
with the model's own names, and is returned only after it ran in LiteRT and agreed
with the model.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tfopt import tflite_file
from tfopt.conversion import (
    _errors,
    _freezing,
    _lowering,
    _noise,
    _samples,
    _sources,
    _sparse,
    _verification,
)
from tfopt.conversion._samples import Batch, Samples
from tfopt.conversion._sources import Source
from tfopt.tflite_file import TfliteFile
from tfopt.types import ConversionError, Signature, VerificationError

Quantization = Literal["none", "dynamic", "float16", "int8"]
IOType = Literal["float32", "int8", "uint8"]

_MODES = ("none", "dynamic", "float16", "int8")
_IO_TYPES = ("float32", "int8", "uint8")
_VERIFIED_EXAMPLES = 64
_VERIFIED_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A converted model and what is known about it.

    Attributes:
        content: The `.tflite` file.
        signature: Its signature: key, inputs, outputs.
        report: Plain JSON data: `"quantization"`, `"bytes"`, `"operators"` (counts
            by name), `"constant_bytes"` (by type), `"float_operators"` (int8 only:
            those left by `allow_float_fallback`), `"calibration_examples"`,
            `"seconds"` (by step), `"notes"`, `"sparse"` (`None`, or what came of the
            sparse encoding and why), and `"verification"`, which is `None` or
            holds `"data"` (`"representative"` or `"random"`), `"examples"`,
            `"batch_sizes"` and, for each of `"outputs"`, the signal-to-noise ratio
            `sqnr_db` (`None` if all values are equal), `max_error`, `mean_error`,
            `peak` (largest absolute value of the model's output), and the shares of
            values that are `equal` and of rows whose argmax is (`argmax_equal`).
    """

    content: bytes = dataclasses.field(repr=False)
    signature: Signature
    report: Mapping[str, Any]


def convert(
    model: Any,
    *,
    quantization: Quantization = "none",
    representative_dataset: Any = None,
    calibration_examples: int = 256,
    inference_input_type: IOType = "float32",
    inference_output_type: IOType = "float32",
    signature_key: str | None = None,
    strip_debug_info: bool = False,
    allow_float_fallback: bool = False,
    sparse: bool = False,
    verify: bool = True,
    min_sqnr: float | None = None,
) -> bytes:
    """Converts a model to a `.tflite` file that was run and compared with it.

    Args:
        model: A Keras 3 or tf_keras model of any kind, a `tf.function` with an input
            signature, a concrete function, or the path of a SavedModel directory,
            `.keras` or `.h5` file.
        quantization: `"none"` keeps float32; `"float16"` stores weights as float16;
            `"dynamic"` stores weights as int8 and quantizes activations while
            running; `"int8"` runs on integers throughout, with a scale per channel
            of each weight, and needs a `representative_dataset` unless the model was
            trained by `tfopt.QuantizeAware`. Such a model converts in no other mode.
        representative_dataset: Typical inputs, to calibrate `"int8"` and to verify
            with: an array of examples [n, ...], a dictionary of such arrays by input
            name, or an iterable (or function that returns one) of examples or
            batches, each an array, a tuple in the order of the inputs, or a
            dictionary. Without it, verification uses seeded random inputs.
        calibration_examples: At most so many examples are taken from it, so it may
            be endless.
        inference_input_type: Type of float inputs in an `"int8"` file.
        inference_output_type: Type of float outputs in an `"int8"` file.
        signature_key: Which signature of a SavedModel; for other models, the key in
            the file, `serving_default` if not given.
        strip_debug_info: Leave out names of inner tensors and the converter's
            metadata.
        allow_float_fallback: Accept an `"int8"` file in which operators that cannot
            be quantized compute on floats.
        sparse: Store weights with many zeros by their nonzero values. It makes the
            raw file smaller, not faster, and is done only where the file becomes
            smaller and LiteRT computes the same from it; the report says. Compressed,
            a dense int8 file is the smaller one.
        verify: Run the file and compare its outputs with the model's.
        min_sqnr: Signal-to-noise ratio that every float output must reach, in dB.
            By default 80 for `"none"`, 35 for `"float16"`, 12 for `"dynamic"` and
            `"int8"`, 25 for `"int8"` of a model that was trained for it.

    Returns:
        The file's content. The same model and arguments give the same bytes.

    Raises:
        ValueError: An argument doesn't fit the model or the other arguments.
        ConversionError: The model cannot be converted; the message names the
            operator and the reason.
        VerificationError: The file doesn't hold what the mode promises: outputs that
            differ or are NaN, or float operators in an `"int8"` file.

    Example:
        >>> content = convert(
        ...     model, quantization="int8", representative_dataset=images
        ... )
        >>> with open("model.tflite", "wb") as file:
        ...     _ = file.write(content)
    """
    return convert_with_report(
        model,
        quantization=quantization,
        representative_dataset=representative_dataset,
        calibration_examples=calibration_examples,
        inference_input_type=inference_input_type,
        inference_output_type=inference_output_type,
        signature_key=signature_key,
        strip_debug_info=strip_debug_info,
        allow_float_fallback=allow_float_fallback,
        sparse=sparse,
        verify=verify,
        min_sqnr=min_sqnr,
    ).content


def convert_with_report(
    model: Any,
    *,
    quantization: Quantization = "none",
    representative_dataset: Any = None,
    calibration_examples: int = 256,
    inference_input_type: IOType = "float32",
    inference_output_type: IOType = "float32",
    signature_key: str | None = None,
    strip_debug_info: bool = False,
    allow_float_fallback: bool = False,
    sparse: bool = False,
    verify: bool = True,
    min_sqnr: float | None = None,
) -> Conversion:
    """Does what `convert` does, and returns the report as well.

    Args:
        model: As in `convert`.
        quantization: As in `convert`.
        representative_dataset: As in `convert`.
        calibration_examples: As in `convert`.
        inference_input_type: As in `convert`.
        inference_output_type: As in `convert`.
        signature_key: As in `convert`.
        strip_debug_info: As in `convert`.
        allow_float_fallback: As in `convert`.
        sparse: As in `convert`.
        verify: As in `convert`.
        min_sqnr: As in `convert`.

    Returns:
        The file's content and the report.

    Raises:
        ValueError: As `convert`.
        ConversionError: As `convert`.
        VerificationError: As `convert`.

    Example:
        >>> done = convert_with_report(model, quantization="dynamic")
        >>> done.report["verification"]["outputs"]["logits"]["sqnr_db"] > 30
        True
    """
    options = _lowering.Options(
        quantization=quantization,
        input_type=inference_input_type,
        output_type=inference_output_type,
        allow_float=allow_float_fallback,
        sparse=sparse,
    )
    _check_options(options, calibration_examples)
    clock = _Clock()
    source = _sources.open_source(model, signature_key)
    clock.lap("trace")
    samples = None
    if representative_dataset is not None:
        samples = _samples.representative(
            representative_dataset, source.specs, limit=calibration_examples
        )
        clock.lap("data")
    calibration = samples.batches if samples and quantization == "int8" else ()
    with _noise.contained():
        frozen = _freezing.freeze(source.function)
        _check_quantization(options, frozen, samples)
        clock.lap("freeze")
        write = functools.partial(_write, frozen, source, calibration, strip_debug_info)
        content = write(dataclasses.replace(options, sparse=False))
        clock.lap("convert")
        file = tflite_file.read(content)
        _check_promises(file, source, options)
        if samples is None and (verify or sparse):
            samples = _samples.random(source.specs, _freezing.input_ranges(frozen))
        encoding = None
        if sparse and samples is not None:
            batches, _ = _reference(source, samples)
            content, encoding = _sparse.choose(content, lambda: write(options), batches)
            file = tflite_file.read(content)
            clock.lap("sparse")
        verification = None
        if verify and samples is not None:
            if min_sqnr is None and _freezing.has_fake_quant(frozen):
                min_sqnr = _verification.MIN_SQNR_TRAINED
            verification = _verify(content, file, source, samples, options, min_sqnr)
            clock.lap("verify")
    report = {
        "quantization": quantization,
        "bytes": len(content),
        "operators": file.operator_counts(),
        "constant_bytes": _constant_bytes(file),
        "float_operators": _float_operators(file, options),
        "calibration_examples": len(calibration),
        "sparse": encoding,
        "verification": verification,
        "seconds": clock.seconds,
        "notes": _notes(file, options),
    }
    return Conversion(content, file.signatures[0], report)


def _write(
    frozen: Any,
    source: Source,
    calibration: Sequence[Batch],
    strip_debug_info: bool,
    options: _lowering.Options,
) -> bytes:
    """Converts, and names inputs and outputs as the model does."""
    return tflite_file.rewrite(
        _lowering.lower(frozen, options, calibration),
        signature_key=source.signature_key,
        input_names=source.input_names,
        output_names=source.output_names,
        strip_debug_info=strip_debug_info,
    )


class _Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = now - self._last
        self._last = now


def _check_options(options: _lowering.Options, calibration_examples: int) -> None:
    if options.quantization not in _MODES:
        raise ValueError(
            f"Unknown mode. Expected one of {_MODES}. "
            f"Received: quantization={options.quantization!r}"
        )
    for name, value in (
        ("inference_input_type", options.input_type),
        ("inference_output_type", options.output_type),
    ):
        if value not in _IO_TYPES:
            raise ValueError(f"Expected one of {_IO_TYPES}. Received: {name}={value!r}")
        if value != "float32" and options.quantization != "int8":
            raise ValueError(
                'Integer inputs and outputs need quantization="int8". Received: '
                f"{name}={value!r} with quantization={options.quantization!r}"
            )
    if options.sparse and options.quantization == "dynamic":
        raise ValueError(
            "LiteRT cannot run sparse weights with dynamic quantization, or computes "
            'wrong numbers from them. Use "none", "float16" or "int8". Received: '
            "sparse=True with quantization='dynamic'"
        )
    if calibration_examples < 1:
        raise ValueError(
            "Expected a positive number. "
            f"Received: calibration_examples={calibration_examples}"
        )


def _check_quantization(
    options: _lowering.Options, frozen: Any, samples: Samples | None
) -> None:
    trained = _freezing.has_fake_quant(frozen)
    if options.quantization != "int8":
        if trained:
            raise ValueError(
                "The model holds fake quantization (it was trained for int8), which "
                "the converter would turn into int8 islands or float copies. Use "
                'quantization="int8", or convert the model as it was before. '
                f"Received: quantization={options.quantization!r}"
            )
        return
    if not trained and samples is None:
        raise ValueError(
            'quantization="int8" must see typical inputs to know the range of each '
            "activation. Give a `representative_dataset` (about a hundred examples), "
            'train with `tfopt.QuantizeAware`, or use quantization="dynamic". '
            "Received: representative_dataset=None"
        )
    if samples is not None and _freezing.has_loop(frozen):
        # With TensorFlow 2.21, LSTM, GRU and SimpleRNN of either Keras end the process
        # by a segmentation fault; other loops keep float states.
        raise ConversionError(
            'The converter cannot calibrate loops for quantization="int8": recurrent '
            "layers crash it. Unroll them (`unroll=True`), or use "
            'quantization="dynamic".'
        )


def _check_promises(
    file: TfliteFile, source: Source, options: _lowering.Options
) -> None:
    _verification.check_runnable(file)
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
    if options.quantization == "int8" and not options.allow_float:
        _verification.check_integer(file)


def _io_dtype(dtype: Any, float_type: str) -> np.dtype:
    name = dtype.name
    if name == "string":
        return np.dtype(object)
    return np.dtype(float_type if name == "float32" else name)


def _verify(
    content: bytes,
    file: TfliteFile,
    source: Source,
    samples: Samples,
    options: _lowering.Options,
    min_sqnr: float | None,
) -> dict[str, Any]:
    batches, expected = _reference(source, samples)
    signature = file.signatures[0]
    found = _verification.compare(
        expected,
        _verification.run(content, signature, batches),
        signature=signature,
        steps=_verification.output_steps(file),
        quantization=options.quantization,
        min_sqnr=min_sqnr,
    )
    return {
        "data": samples.kind,
        "examples": min(_VERIFIED_EXAMPLES, len(samples.batches)),
        "batch_sizes": sorted({_batch_size(batch) for batch in batches}),
        "outputs": {name: _figures(item) for name, item in found.items()},
    }


def _figures(agreement: _verification.Agreement) -> dict[str, float | None]:
    """An agreement as JSON, which has no infinity."""
    figures = dataclasses.asdict(agreement)
    return {
        name: value if value is not None and np.isfinite(value) else None
        for name, value in figures.items()
    }


def _reference(
    source: Source, samples: Samples
) -> tuple[Sequence[Batch], list[dict[str, np.ndarray]]]:
    """The model's own outputs, in batches of several examples where it takes them."""
    batch_size = _VERIFIED_BATCH if _samples.is_batch_free(source.specs) else 1
    batches = samples.merged(_VERIFIED_EXAMPLES, batch_size)
    try:
        try:
            outputs = [source.run(batch) for batch in batches]
        except Exception:
            if batch_size == 1:
                raise
            # The model has a batch size of one built into it.
            batches = samples.merged(_VERIFIED_EXAMPLES, 1)
            outputs = [source.run(batch) for batch in batches]
    except Exception as error:
        raise VerificationError(
            f"The model itself fails on the {samples.kind} inputs: "
            f"{_errors.condense(error)}. Give a `representative_dataset` "
            "of inputs that it takes, or `verify=False`."
        ) from error
    for name in source.output_names:
        if any(np.isnan(item[name]).any() for item in outputs if _is_float(item[name])):
            raise VerificationError(
                f"The model itself returns NaN at output {name!r} for the "
                f"{samples.kind} inputs. Repair its weights, or give a "
                "`representative_dataset` of inputs that it is meant for."
            )
    return batches, outputs


def _is_float(value: np.ndarray) -> bool:
    return value.dtype.kind in "fc"


def _batch_size(batch: Batch) -> int:
    first = next(iter(batch.values()))
    return first.shape[0] if first.ndim else 1


def _constant_bytes(file: TfliteFile) -> dict[str, int]:
    """Bytes of constants by type; a buffer that several tensors share counts once."""
    sizes: dict[str, int] = {}
    seen: set[int] = set()
    for graph in file.subgraphs:
        for tensor in graph.tensors:
            if tensor.raw is None:
                continue
            address = tensor.raw.__array_interface__["data"][0]
            if address not in seen:
                seen.add(address)
                kind = tensor.type.lower()
                sizes[kind] = sizes.get(kind, 0) + tensor.raw.nbytes
    return dict(sorted(sizes.items()))


def _float_operators(file: TfliteFile, options: _lowering.Options) -> list[str]:
    if options.quantization != "int8":
        return []
    return [str(item) for item in tflite_file.float_operators(file)]


def _notes(file: TfliteFile, options: _lowering.Options) -> list[str]:
    notes = []
    stored = {"dynamic": "int8", "float16": "float16"}.get(options.quantization)
    if stored and not _constant_bytes(file).get(stored):
        notes.append(
            f"No weight was stored as {stored}: the converter leaves small tensors "
            "(below 1024 elements) as they are."
        )
    if options.quantization == "dynamic" and _has_hybrid_depthwise(file):
        notes.append(
            "Depthwise convolutions with int8 weights run 2.8 to 3 times slower than "
            'float ones on x86: LiteRT has no fast kernel for them. Use "int8" or '
            '"float16" there.'
        )
    return notes


def _has_hybrid_depthwise(file: TfliteFile) -> bool:
    return any(
        operator.name == "DEPTHWISE_CONV_2D"
        and graph.tensors[operator.inputs[1]].type == "INT8"
        for graph in file.subgraphs
        for operator in graph.operators
    )
