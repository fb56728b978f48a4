"""Conversion of any model to a verified `.tflite` file.

A model is traced for inference, frozen, and then converted: several times faster than
`TFLiteConverter.from_keras_model`, with the same outputs. The file gets a signature
with the model's own names, and is returned only after it ran in LiteRT and agreed
with the model.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from tfopt import _trust
from tfopt.conversion import _pipeline, _several
from tfopt.types import Signature

Quantization = Literal["none", "dynamic", "float16", "int8", "int16x8", "int4"]
IOType = Literal["float32", "int8", "uint8", "int16"]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A converted model and what is known about it.

    Attributes:
        content: The `.tflite` file.
        signature: Its (first) signature: key, inputs, outputs.
        signatures: All its signatures.
        report: Plain JSON data: `"quantization"`, `"bytes"`, `"operators"` (counts
            by name), `"constant_bytes"` (by type), `"float_operators"` (int8 only:
            those left by `allow_float_fallback`), `"select_tf_operators"` (those
            that only the Flex delegate runs), `"calibration_examples"`,
            `"kept_float"` (`None`, or of the operators that `keep_float` chose
            `"layers"`, `"operators"`, `"macs_share"` and `"bytes_share"` of the
            model's constants), `"equalization"`, `"bias_correction"` (`None`, or what
            was done where, and where not and why),
            `"seconds"` (by step), `"notes"`, `"sparse"` (`None`, or what came of the
            sparse encoding and why), and `"verification"`, which is `None` or
            holds `"data"` (`"representative"` or `"random"`), `"examples"`,
            `"batch_sizes"` and, for each of `"outputs"`, the signal-to-noise ratio
            `sqnr_db` (`None` if all values are equal), `max_error`, `mean_error`,
            `peak` (largest absolute value of the model's output), and the shares of
            values that are `equal` and of rows whose argmax is (`argmax_equal`). With
            `signature_keys`, `"signatures"` holds such a report for each.
    """

    content: bytes = dataclasses.field(repr=False)
    signature: Signature
    report: Mapping[str, Any]
    signatures: tuple[Signature, ...] = ()


@_trust.with_safe_mode
def convert(
    model: Any,
    *,
    quantization: Quantization = "none",
    representative_dataset: Any = None,
    calibration_examples: int = 256,
    inference_input_type: IOType = "float32",
    inference_output_type: IOType = "float32",
    keep_float: str | Sequence[str] | None = None,
    keep_int8: str | Sequence[str] | None = None,
    equalize: bool = False,
    correct_bias: bool = False,
    signature_key: str | None = None,
    signature_keys: Sequence[str] | None = None,
    tags: Collection[str] | None = None,
    input_arrays: Sequence[str] = (),
    output_arrays: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    strip_debug_info: bool = False,
    allow_float_fallback: bool = False,
    allow_select_tf_ops: bool = False,
    sparse: bool = False,
    verify: bool = True,
    min_sqnr: float | None = None,
    isolate: bool | None = None,
    time_limit: float | None = None,
    memory_limit: int | None = None,
    safe_mode: bool = True,
) -> bytes:
    """Converts a model to a `.tflite` file that was run and compared with it.

    Args:
        model: A Keras 3 or tf_keras model of any kind, a `tf.function` with an input
            signature, a concrete function, a frozen GraphDef, or the path of a
            SavedModel directory (of TF1 or TF2), `.keras`, `.h5`, `.pb` or `.pbtxt`
            file.
        quantization: `"none"` keeps float32; `"float16"` stores weights as float16;
            `"dynamic"` stores weights as int8 and quantizes activations while
            running; `"int8"` runs on integers throughout, with a scale per channel
            of each weight, and needs a `representative_dataset` unless the model was
            trained by `tfopt.QuantizeAware`. Such a model converts in no other mode.
            `"int16x8"` has int16 activations and int8 weights: nearly as accurate as
            float, but run by slow kernels, which not every operator has; it always
            needs a `representative_dataset`. `"int4"` is `"dynamic"` with weights of 4
            bits, by Google's quantizer (the extra `litert-quantizer`).
        representative_dataset: Typical inputs, to calibrate `"int8"` or `"int16x8"`
            and to verify with: an array of examples [n, ...], a dictionary of such
            arrays by input name, an `.npz` file of them, or an iterable (or function
            that returns one) of examples or batches, each an array, a tuple in the
            order of the inputs, or a dictionary. Without it, verification uses seeded
            random inputs.
        calibration_examples: At most so many examples are taken from it, so it may
            be endless.
        inference_input_type: Type of float inputs: `"int8"` or `"uint8"` in an
            `"int8"` file, `"int16"` in an `"int16x8"` file.
        inference_output_type: The same for float outputs.
        keep_float: Layers that `"int8"`, `"dynamic"`, `"float16"` or `"int4"` leave
            in float32: globs for their names or leading parts of them (`"block/*"`;
            graph nodes, for models that are not Keras), or for kinds of operators
            (`"DEPTHWISE_CONV_2D"`).
            `tfopt.sensitivity` tells which are worth it.
        keep_int8: Layers that `"int4"` stores in 8 bits, in the same way.
        equalize: Even out the ranges of channels across layers before `"int8"`
            quantization; the float model computes the same (cross-layer equalization,
            Nagel et al. 2019). For models whose channels differ by orders of magnitude.
        correct_bias: After `"int8"` quantization, take from each bias the mean error
            of its layer on the `representative_dataset` (bias correction, ibid.).
        signature_key: Which signature of a SavedModel; for other models, the key in
            the file, `serving_default` if not given.
        signature_keys: Several signatures of a SavedModel for one file; each is
            verified. `representative_dataset` may be a dictionary by signature then.
        tags: Tag set of a SavedModel's graph, by default `{"serve"}`.
        input_arrays: Inputs of a GraphDef, names of nodes or tensors; by default its
            placeholders.
        output_arrays: Outputs of a GraphDef; by default its only result that nothing
            else uses.
        input_shapes: Shapes for free sizes, by name of the input, such as
            `{"image": [1, 224, 224, 3]}`; `None` is a size that stays free.
        strip_debug_info: Leave out names of inner tensors, the converter's
            metadata, and tfopt's note on how the file was made.
        allow_float_fallback: Accept an integer file in which operators that cannot
            be quantized compute on floats.
        allow_select_tf_ops: Accept TensorFlow's own kernels where TFLite has none.
            Such a file runs only in applications with LiteRT's Flex delegate, which
            Python's interpreters don't have, so it cannot be verified.
        sparse: Store weights with many zeros by their nonzero values. It makes the
            raw file smaller, not faster, and is done only where the file becomes
            smaller and LiteRT computes the same from it; the report says. Compressed,
            a dense int8 file is the smaller one.
        verify: Run the file and compare its outputs with the model's.
        min_sqnr: Signal-to-noise ratio that every float output must reach, in dB.
            By default 80 for `"none"`, 35 for `"float16"`, 12 for `"dynamic"` and
            `"int8"`, 6 for `"int4"`, 15 for `"int16x8"`; of a model that was trained
            for it, 25 for `"int8"` and 40 for `"int16x8"`.
        isolate: Call TensorFlow's converter and run the file in a process of its own:
            a graph that crashes it is an error, and what it leaks is given back. By
            default wherever the system can fork.
        time_limit: Seconds that one isolated call may take.
        memory_limit: Bytes that one isolated call may allocate.
        safe_mode: Refuse model files that could run code, reach other files or the
            network. False opens and runs whatever they hold.

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
        keep_float=keep_float,
        keep_int8=keep_int8,
        equalize=equalize,
        correct_bias=correct_bias,
        signature_key=signature_key,
        signature_keys=signature_keys,
        tags=tags,
        input_arrays=input_arrays,
        output_arrays=output_arrays,
        input_shapes=input_shapes,
        strip_debug_info=strip_debug_info,
        allow_float_fallback=allow_float_fallback,
        allow_select_tf_ops=allow_select_tf_ops,
        sparse=sparse,
        verify=verify,
        min_sqnr=min_sqnr,
        isolate=isolate,
        time_limit=time_limit,
        memory_limit=memory_limit,
    ).content


def convert_with_report(model: Any, **options: Any) -> Conversion:
    """Does what `convert` does, and returns the report as well.

    Args:
        model: As in `convert`.
        **options: All keyword arguments of `convert`, with its defaults.

    Returns:
        The file's content and the report.

    Raises:
        TypeError: There is no such option.
        ValueError: As `convert`.
        ConversionError: As `convert`.
        VerificationError: As `convert`.

    Example:
        >>> done = convert_with_report(model, quantization="dynamic")
        >>> done.report["verification"]["outputs"]["logits"]["sqnr_db"] > 30
        True
    """
    given = inspect.signature(convert).bind(model, **options)
    given.apply_defaults()
    arguments = dict(list(given.arguments.items())[1:])
    with _trust.scope(arguments.pop("safe_mode")):
        request = _pipeline.Request(**arguments)
        if request.signature_keys is not None:
            content, signatures, report = _several.run(model, request)
            return Conversion(content, signatures[0], report, signatures)
        done = _pipeline.run(model, request)
    return Conversion(done.content, done.signature, done.report, (done.signature,))
