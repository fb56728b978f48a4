"""Proves that a `.tflite` file is what was promised."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from tfopt import tflite_file
from tfopt.conversion import _errors
from tfopt.runner import Runner
from tfopt.tflite_file import TfliteFile
from tfopt.types import (
    ConversionError,
    Signature,
    TensorInfo,
    TfoptError,
    VerificationError,
)

# Signal-to-noise ratio in dB that each output must reach, by mode. Measured on small
# networks, MobileNetV2 and EfficientNetB0: 115-144, 68-123, 44-98 and 28-53; int8 gives
# 15 for a softmax over 100 almost equal classes, whose values are a few steps high.
# Weights of 4 bits gave 16 in a small network of random ones.
MIN_SQNR = {
    "none": 80.0,
    "float16": 35.0,
    "dynamic": 12.0,
    "int4": 6.0,
    "int8": 12.0,
    "int16x8": 15.0,
}
# A model trained for int8 shows in training what its file computes: 60 and more; 20 was
# a file whose empty channels had lost their biases, and 2 points of accuracy.
MIN_SQNR_TRAINED = {"int8": 25.0, "int16x8": 40.0}
# An int8 file of such a model also is at most a step off on average, and picks the same
# class in this share of rows, those aside whose classes are within two steps.
_MEAN_STEPS = 1.0
_MIN_CLASSES = 0.995
_TIE_STEPS = 2
# Share of equal values for integer and boolean outputs, where a tie may fall otherwise.
_MIN_EQUAL = {
    "none": 0.99,
    "float16": 0.95,
    "dynamic": 0.8,
    "int4": 0.6,
    "int8": 0.8,
    "int16x8": 0.8,
}
# An output may be so many of its own quantization steps off, whatever its size.
_FREE_STEPS = 2
_STATEFUL = (
    *("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"),
    *("HASHTABLE", "HASHTABLE_FIND", "HASHTABLE_SIZE"),
)
_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How one output of the file compares with the model's.

    Attributes:
        sqnr_db: `10 log10(mean(reference^2) / mean(error^2))`, infinite when equal.
        max_error: Largest absolute difference.
        mean_error: Mean absolute difference.
        peak: Largest absolute value of the reference.
        equal: Share of equal values.
        argmax_equal: Share of rows whose largest value is at the same place; `None`
            for outputs that aren't rows of several values.
    """

    sqnr_db: float
    max_error: float
    mean_error: float
    peak: float
    equal: float
    argmax_equal: float | None


def select_operators(file: TfliteFile) -> list[str]:
    """Returns the operators that run by TensorFlow's kernels, by name.

    Python's interpreters of these versions have none of these ("Flex") kernels
    (https://github.com/google-ai-edge/LiteRT/issues/6458).
    """
    names = {
        item.name
        for graph in file.subgraphs
        for item in graph.operators
        if item.is_custom and item.name.startswith("Flex")
    }
    return sorted(names)


def check_runnable(file: TfliteFile, *, allow_select_tf_ops: bool = False) -> None:
    """Raises unless every operator is a TFLite builtin without state.

    Args:
        file: The file.
        allow_select_tf_ops: Whether it may need TensorFlow's kernels.

    Raises:
        ConversionError: It names the operators.
    """
    operators = [item for graph in file.subgraphs for item in graph.operators]
    custom = sorted({item.name for item in operators if item.is_custom})
    if allow_select_tf_ops:
        custom = [name for name in custom if name not in select_operators(file)]
    if custom:
        raise ConversionError(
            "The file would need operators that LiteRT doesn't have. Replace them by "
            f"other operations in the model. Received: {custom}"
        )
    stateful = sorted({item.name for item in operators if item.name in _STATEFUL})
    if stateful:
        raise ConversionError(
            "The file would read variables that nothing has initialised, so its "
            "outputs would be arbitrary. Make them constants in the model. "
            f"Received: {stateful}"
        )


def check_types(infos: Sequence[TensorInfo], wanted: Sequence[np.dtype]) -> None:
    """Raises unless inputs or outputs have the wanted types, in order.

    Raises:
        ConversionError: One has another type, as happens silently to an integer
            output whose range is not known.
    """
    for info, dtype in zip(infos, wanted, strict=True):
        if info.dtype != dtype:
            raise ConversionError(
                f"The file has {info.dtype} for {info.name!r}, not the {dtype} asked "
                "for: its range is not known. Give a `representative_dataset`, or "
                "fake-quantize this tensor in training."
            )


def float_operators(
    file: TfliteFile, kept: Collection[int] = ()
) -> list[tflite_file.FloatOperator]:
    """Lists operators that compute on floats, but for those that are meant to.

    Args:
        file: An int8 file.
        kept: Operators of the main subgraph that stay float by request.

    Returns:
        Without those, and without the conversions between them and the others.
    """
    found = tflite_file.float_operators(file)
    graph = file.subgraphs[0]
    beside = {
        index
        for operator in graph.operators
        if operator.index in kept
        for index in (*operator.inputs, *operator.outputs)
    }
    return [item for item in found if not _is_meant(item, kept, beside)]


def _is_meant(
    item: tflite_file.FloatOperator, kept: Collection[int], beside: Collection[int]
) -> bool:
    if item.subgraph:
        return False
    converts = item.operator.name in ("QUANTIZE", "DEQUANTIZE")
    return item.operator.index in kept or (
        converts and all(tensor.index in beside for tensor in item.tensors)
    )


def check_integer(file: TfliteFile, kept: Collection[int] = ()) -> None:
    """Raises if an int8 model still computes on floats.

    Args:
        file: The file.
        kept: Operators of the main subgraph that stay float by request.

    Raises:
        VerificationError: It names the operators and their tensors.
    """
    found = float_operators(file, kept)
    if found:
        shown = "; ".join(str(item) for item in found[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise VerificationError(
            f"{len(found)} operators still compute on floats: {shown}{more}. Their "
            "ranges are not known or TFLite has no int8 kernel: give a "
            "`representative_dataset`, fake-quantize their inputs and outputs in "
            "training, or accept them with `allow_float_fallback=True`."
        )


def run(
    content: bytes,
    signature: Signature,
    batches: Sequence[Mapping[str, np.ndarray]],
) -> list[dict[str, np.ndarray]]:
    """Runs a file as an application would.

    Args:
        content: The file.
        signature: Its signature.
        batches: Inputs by name, in the model's own types.

    Returns:
        Outputs by name, one dictionary per batch; integer types that stand for
        floats are converted on both sides.

    Raises:
        VerificationError: LiteRT cannot load or run the file at these batch sizes.
    """
    try:
        with Runner(
            content,
            signature_key=signature.key,
            num_workers=1,
            num_threads=1,
            batch_size=None,
            quantized_io="float",
        ) as runner:
            results = [runner.run(dict(batch)) for batch in batches]
    except (TfoptError, ValueError) as error:
        raise VerificationError(
            f"The file does not run as the model does: {_errors.condense(error)}"
        ) from error
    if len(signature.outputs) == 1:
        return [{signature.outputs[0].name: result} for result in results]
    return results


def compare(
    expected: Sequence[Mapping[str, np.ndarray]],
    actual: Sequence[Mapping[str, np.ndarray]],
    *,
    signature: Signature,
    steps: Mapping[str, float],
    quantization: str,
    min_sqnr: float | None,
    is_trained: bool = False,
) -> dict[str, Agreement]:
    """Compares outputs with those of the source model.

    Args:
        expected: The model's outputs, batch by batch.
        actual: The file's outputs, as `run` returns them.
        signature: Of the file.
        steps: Quantization step of each output that has one.
        quantization: The mode, which decides the limits.
        min_sqnr: The only limit, in dB, instead of the mode's.
        is_trained: Whether the model was trained for the mode.

    Returns:
        Agreement by output name.

    Raises:
        VerificationError: An output is NaN, or too far off.
    """
    found = {}
    for info in signature.outputs:
        reference, value = (
            [item[info.name] for item in outputs] for outputs in (expected, actual)
        )
        shapes = [item.shape for item in reference], [item.shape for item in value]
        if shapes[0] != shapes[1]:
            raise VerificationError(
                f"The output {info.name!r} has the shapes {shapes[1][:2]}. Expected "
                f"those of the model: {shapes[0][:2]}."
            )
        agreement = measure(reference, value)
        found[info.name] = agreement
        limit = min_sqnr
        if limit is None:
            limit = (MIN_SQNR_TRAINED if is_trained else MIN_SQNR)[quantization]
        step = steps.get(info.name, 0.0)
        if reference[0].dtype.kind not in "fc":
            good = agreement.equal >= _MIN_EQUAL[quantization]
            wanted = f"at least {_MIN_EQUAL[quantization]:.0%} equal values"
        else:
            # Written so that NaN fails.
            good = (
                agreement.sqnr_db >= limit or agreement.max_error <= _FREE_STEPS * step
            )
            wanted = f"a signal-to-noise ratio of at least {limit:g} dB"
        if not good:
            raise VerificationError(
                f"The file does not agree with the model at output {info.name!r}. "
                f"Expected {wanted}. Received: {agreement.sqnr_db:.1f} dB, "
                f"{agreement.equal:.1%} equal values, largest error "
                f"{agreement.max_error:.4g} where values reach {agreement.peak:.4g} "
                f"(quantization={quantization!r})"
            )
        if is_trained and min_sqnr is None and quantization == "int8" and step:
            _check_trained(info.name, agreement, reference, value, step)
    return found


def _check_trained(
    name: str,
    agreement: Agreement,
    reference: Sequence[np.ndarray],
    value: Sequence[np.ndarray],
    step: float,
) -> None:
    steps = agreement.mean_error / step
    classes = 1.0
    if agreement.argmax_equal is not None:
        classes = _same_classes(reference, value, tie=_TIE_STEPS * step)
    if not steps <= _MEAN_STEPS or not classes >= _MIN_CLASSES:
        raise VerificationError(
            f"The file does not agree with the fake-quantized model at output {name!r}."
            f" Expected a mean error of at most {_MEAN_STEPS:g} quantization step, and "
            f"the same class in {_MIN_CLASSES:.1%} of rows (set `min_sqnr` to have "
            f"that as the only limit). Received: {steps:.3g} steps of {step:.4g}, "
            f"{classes:.1%}"
        )


def _same_classes(
    reference: Sequence[np.ndarray], value: Sequence[np.ndarray], *, tie: float
) -> float:
    """Returns the share of rows whose class in the file is about the largest one."""
    a, b = (
        np.concatenate([x.reshape(-1, x.shape[-1]) for x in values])
        for values in (reference, value)
    )
    chosen = np.take_along_axis(a, b.argmax(-1)[:, np.newaxis], -1)[:, 0]
    return float(np.mean(a.max(-1) - chosen <= tie))


def measure(reference: Sequence[np.ndarray], value: Sequence[np.ndarray]) -> Agreement:
    """Compares one output over all batches; NaN anywhere makes the errors NaN."""
    if reference[0].dtype.kind not in "fiubc":
        return _measure_objects(reference, value)
    kind = np.complex128 if reference[0].dtype.kind == "c" else np.float64
    a = np.concatenate([item.astype(kind).ravel() for item in reference])
    b = np.concatenate([item.astype(kind).ravel() for item in value])
    equal = a == b  # also equal infinities
    error = np.zeros(len(a))
    with np.errstate(invalid="ignore"):  # opposite infinities
        error[~equal] = np.abs(a[~equal] - b[~equal])
    finite = np.abs(a[np.isfinite(a)])
    noise, signal = np.mean(error**2), np.mean(finite**2) if len(finite) else 0.0
    if noise == 0:
        sqnr = np.inf
    elif signal == 0:
        sqnr = -np.inf
    else:
        with np.errstate(divide="ignore"):  # of an infinite error
            sqnr = 10 * np.log10(signal / noise)
    return Agreement(
        sqnr_db=float(sqnr),
        max_error=float(np.max(error, initial=0.0)),
        mean_error=float(np.mean(error)) if len(error) else 0.0,
        peak=float(np.max(finite, initial=0.0)),
        equal=float(np.mean(equal)) if len(equal) else 1.0,
        argmax_equal=_argmax_equal(reference, value),
    )


def output_steps(file: TfliteFile) -> dict[str, float]:
    """Returns the quantization step of each output, by name, where it has one."""
    graph = file.subgraphs[0]
    makers = {
        operator.outputs[0]: operator
        for operator in graph.operators
        if operator.name == "DEQUANTIZE"
    }
    steps = {}
    for info, index in zip(file.signatures[0].outputs, graph.outputs, strict=True):
        if index in makers:
            index = makers[index].inputs[0]
        if graph.tensors[index].scale:
            steps[info.name] = graph.tensors[index].scale[0]
    return steps


def _measure_objects(
    reference: Sequence[np.ndarray], value: Sequence[np.ndarray]
) -> Agreement:
    equal = np.concatenate(
        [np.ravel(a == b) for a, b in zip(reference, value, strict=True)]
    )
    share = float(np.mean(equal))
    return Agreement(
        np.inf if share == 1 else 0.0, 1 - share, 1 - share, 1, share, None
    )


def _argmax_equal(
    reference: Sequence[np.ndarray], value: Sequence[np.ndarray]
) -> float | None:
    first = reference[0]
    if first.dtype.kind != "f" or first.ndim < 2 or first.shape[-1] < 2:
        return None
    same = [
        np.ravel(np.argmax(a, -1) == np.argmax(b, -1))
        for a, b in zip(reference, value, strict=True)
        if a.size
    ]
    return float(np.mean(np.concatenate(same))) if same else None
