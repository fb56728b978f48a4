"""From a model and options to a verified file and a report, step by step."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tfopt import _progress, tflite_file
from tfopt.conversion import (
    _checking,
    _divergence,
    _errors,
    _freezing,
    _history,
    _isolation,
    _loops,
    _lowering,
    _noise,
    _reporting,
    _samples,
    _sources,
    _sparse,
    _verification,
    _writing,
)
from tfopt.conversion._samples import Batch, Samples
from tfopt.conversion._sources import Source
from tfopt.types import ConversionError, Signature, VerificationError

_VERIFIED_EXAMPLES = 64
_VERIFIED_BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What `tfopt.convert` was asked for; its docstring describes the fields."""

    quantization: str
    representative_dataset: Any
    calibration_examples: int
    inference_input_type: str
    inference_output_type: str
    keep_float: Any
    equalize: bool
    correct_bias: bool
    signature_key: str | None
    strip_debug_info: bool
    allow_float_fallback: bool
    sparse: bool
    verify: bool
    min_sqnr: float | None
    keep_int8: Any = None
    signature_keys: Sequence[str] | None = None
    tags: Collection[str] | None = None
    input_arrays: Sequence[str] = ()
    output_arrays: Sequence[str] = ()
    input_shapes: Mapping[str, Sequence[int | None]] | None = None
    allow_select_tf_ops: bool = False
    isolate: bool | None = None
    time_limit: float | None = None
    memory_limit: int | None = None

    @property
    def history(self) -> dict[str, Any]:
        """What of it the file notes."""
        return {
            "quantization": self.quantization,
            "keep_float": list(self.options.keep_float),
            "keep_int8": list(self.options.keep_int8),
            "equalize": self.equalize,
            "correct_bias": self.correct_bias,
            "allow_float_fallback": self.allow_float_fallback,
        }

    @property
    def options(self) -> _lowering.Options:
        """What the converter is to do."""
        return _lowering.Options(
            quantization=self.quantization,
            input_type=self.inference_input_type,
            output_type=self.inference_output_type,
            allow_float=self.allow_float_fallback,
            sparse=self.sparse,
            keep_float=_checking.patterns("keep_float", self.keep_float),
            keep_int8=_checking.patterns("keep_int8", self.keep_int8),
            equalize=self.equalize,
            correct_bias=self.correct_bias,
            select_tf_ops=self.allow_select_tf_ops,
        )

    def lowering(self) -> _isolation.Local | _isolation.Isolated:
        """What calls the converter and runs files, here or in another process.

        Raises:
            TfoptError: This system cannot isolate.
        """
        isolate = self.isolate
        if isolate is None:
            isolate = _isolation.is_possible()
        if not isolate:
            return _isolation.Local()
        return _isolation.Isolated(self.time_limit, self.memory_limit)


@dataclasses.dataclass(frozen=True)
class Done:
    """A converted model: the file, its signature, and the report of `Conversion`.

    Attributes:
        samples: Inputs that it was verified with, `None` if it wasn't.
    """

    content: bytes
    signature: Signature
    report: dict[str, Any]
    samples: Samples | None


@_progress.task("converting")
def run(model: Any, request: Request) -> Done:
    """Converts one signature of a model.

    Raises:
        ValueError: As `tfopt.convert`.
        ConversionError: As `tfopt.convert`.
        VerificationError: As `tfopt.convert`.
    """
    options = request.options
    _checking.check_options(options, request.calibration_examples)
    _checking.check_limits(request.time_limit, request.memory_limit)
    clock = _Clock()
    lowering = request.lowering()
    source = _open(model, request)
    clock.lap("trace")
    notes = []
    samples = None
    if request.representative_dataset is not None:
        samples = _samples.representative(
            request.representative_dataset,
            source.specs,
            limit=request.calibration_examples,
        )
        clock.lap("data")
    is_integer = options.quantization in _lowering.INTEGER_MODES
    calibration = samples.batches if samples and is_integer else ()
    with _noise.contained():
        frozen = _freezing.freeze(source.function)
        if calibration and _freezing.has_loop(frozen):
            unrolled = _loops.unrolled(model, lambda: _open(model, request))
            if unrolled is not None:
                source, frozen = unrolled
                notes.append(_loops.UNROLLED)
        _checking.check_quantization(options, frozen, samples)
        clock.lap("freeze")

        def write(options: _lowering.Options) -> _writing.Written:
            return _writing.Writer(
                frozen,
                source,
                calibration,
                request.strip_debug_info,
                lowering,
                _metadata(source.signature_key, request),
            ).write(options)

        dense = dataclasses.replace(options, sparse=False)
        try:
            written = write(dense)
        except ConversionError:
            shapes = _loops.fixed_batch(source, frozen)
            if shapes is None:
                raise
            source = _open(model, request, shapes)
            frozen = _freezing.freeze(source.function)
            written = write(dense)
            notes.append(_loops.FIXED_BATCH)
        content = written.content
        clock.lap("convert")
        file = tflite_file.read(content)
        _checking.check_promises(file, source, options, written.kept)
        float_left = _reporting.float_operators(file, options, written.kept)
        flex = _verification.select_operators(file)
        is_run = (request.verify or options.sparse) and not flex
        if samples is None and is_run:
            samples = _samples.random(source.specs, _freezing.input_ranges(frozen))
        encoding = None
        if options.sparse and is_run and samples is not None:
            batches, _ = _reference(source, samples)
            content, encoding = _sparse.choose(
                content, lambda: write(options).content, batches, lowering.run
            )
            file = tflite_file.read(content)
            clock.lap("sparse")
        verification = None
        if request.verify and is_run and samples is not None:
            verification = verify(
                content, frozen, source, samples, request, lowering.run
            )
            clock.lap("verify")
    report = {
        "quantization": options.quantization,
        "bytes": len(content),
        "operators": file.operator_counts(),
        "constant_bytes": _reporting.constant_bytes(file),
        "float_operators": float_left,
        "select_tf_operators": flex,
        **written.report,
        "calibration_examples": len(calibration),
        "sparse": encoding,
        "verification": verification,
        "seconds": clock.seconds,
        "notes": [*notes, *_reporting.notes(file, options)],
    }
    return Done(content, file.signatures[0], report, samples if verification else None)


def _open(
    model: Any, request: Request, shapes: _sources.Shapes | None = None
) -> Source:
    return _sources.open_source(
        model,
        request.signature_key,
        tags=request.tags,
        input_arrays=request.input_arrays,
        output_arrays=request.output_arrays,
        input_shapes={**(request.input_shapes or {}), **(shapes or {})},
    )


def _metadata(key: str, request: Request) -> dict[str, bytes]:
    if request.strip_debug_info:
        return {}
    return _history.metadata([key], request.history)


class _Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = now - self._last
        self._last = now


def verify(
    content: bytes,
    frozen: Any,
    source: Source,
    samples: Samples,
    request: Request,
    run: _sparse.Run = _verification.run,
) -> dict[str, Any]:
    """Runs a file and compares it with the model.

    Args:
        content: The file.
        frozen: The frozen function.
        source: The model.
        samples: Inputs.
        request: What was asked for.
        run: Runs a file.

    Returns:
        `"verification"` of the report.

    Raises:
        VerificationError: They don't agree; for a model that was trained for int8 it
            names the first layer that diverges.
    """
    batches, expected = _reference(source, samples)
    file = tflite_file.read(content)
    signature = file.signatures[0]
    is_trained = _freezing.has_fake_quant(frozen)
    try:
        found = _verification.compare(
            expected,
            run(content, signature, batches),
            signature=signature,
            steps=_verification.output_steps(file),
            quantization=request.quantization,
            min_sqnr=request.min_sqnr,
            is_trained=is_trained,
        )
    except VerificationError as error:
        if not is_trained or request.quantization != "int8":
            raise
        raise VerificationError(
            f"{error}. {_divergence.explain(frozen, content, batches, source.layers)}"
        ) from error
    return {
        "data": samples.kind,
        "examples": min(_VERIFIED_EXAMPLES, len(samples.batches)),
        "batch_sizes": sorted({_batch_size(batch) for batch in batches}),
        "outputs": {name: _reporting.figures(item) for name, item in found.items()},
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
