"""The function behind the command `tflite_convert`, with TensorFlow's flag names."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tfopt import _trust, artifacts, conversion, data
from tfopt.conversion import IOType, Quantization, _products
from tfopt.types import Artifact, UsageError


@dataclasses.dataclass(frozen=True)
class Converted(artifacts.Outcome):
    """What the command prints: the files, and how well they agree with the model.

    Attributes:
        written: Path -> whether it was written; with `if_changed` it may have been
            the same before.
    """

    written: Mapping[str, bool]

    def to_json(self) -> Any:
        """Returns the artifact and the files, for `--report`."""
        return {**vars(self.artifact), "written": dict(self.written)}

    def __str__(self) -> str:
        details = self.artifact.details
        lines = [str(self.artifact)]
        lines += [f"signature {text}" for text in details["signatures"]]
        for key, report in _reports(details["conversion"]).items():
            lines.append(f"verified {key}: {_verified(report['verification'])}")
        lines += details["conversion"]["notes"]
        for path, is_new in self.written.items():
            lines.append(f"{'wrote' if is_new else 'unchanged'} {path}")
        return "\n".join(lines)


@_trust.with_safe_mode
def tflite_convert(
    *,
    saved_model_dir: str | None = None,
    keras_model_file: str | None = None,
    graph_def_file: str | None = None,
    output_file: str,
    signature_key: str | None = None,
    signature_keys: Sequence[str] | None = None,
    saved_model_tags: Sequence[str] | None = None,
    input_arrays: Sequence[str] = (),
    output_arrays: Sequence[str] = (),
    input_shapes: str | None = None,
    quantization: Quantization = "none",
    representative_data: str | None = None,
    calibration_examples: int = 256,
    allow_float_fallback: bool = False,
    keep_float: Sequence[str] | None = None,
    keep_int8: Sequence[str] | None = None,
    equalize: bool = False,
    correct_bias: bool = False,
    inference_input_type: IOType = "float32",
    inference_output_type: IOType = "float32",
    sparse: bool = False,
    strip_debug_info: bool = False,
    verify: bool = True,
    min_sqnr: float | None = None,
    allow_select_tf_ops: bool = False,
    isolate: bool | None = None,
    time_limit: float | None = None,
    memory_limit: int | None = None,
    c_array: str | None = None,
    c_name: str = "model",
    op_resolver: str | None = None,
    required_ops: str | None = None,
    manifest: str | None = None,
    if_changed: bool = False,
    safe_mode: bool = True,
) -> Converted:
    """Converts one model and writes the files that were asked for.

    Nothing is written unless everything could be made, and what belongs together
    appears together, the model last.

    Args:
        saved_model_dir: Directory of the SavedModel to convert.
        keras_model_file: A .keras or .h5 file to convert.
        graph_def_file: A frozen graph (.pb or .pbtxt) to convert.
        output_file: The TFLite file to write.
        signature_key: Signature of the SavedModel, by default serving_default.
        signature_keys: Several signatures of the SavedModel, for one file.
        saved_model_tags: Tag set of the SavedModel's graph, by default serve.
        input_arrays: Inputs of a graph, by default its placeholders.
        output_arrays: Outputs of a graph, by default its one result.
        input_shapes: Shapes for free sizes, as image=1,224,224,3:mask=1,10, or in the
            order of input_arrays 1,224,224,3:1,10; ? is a size that stays free.
        quantization: How weights and activations are stored.
        representative_data: Typical inputs, needed for int8: a .npz file with arrays by
            name of the input (or x_train), a .npy file, or module:function.
        calibration_examples: At most so many examples are taken from it.
        allow_float_fallback: Accept operators that compute on floats in an int8 file.
        keep_float: Layers or kinds of operators that are left in float32.
        keep_int8: Layers or kinds of operators that int4 stores in 8 bits.
        equalize: Even out ranges of channels across layers before int8.
        correct_bias: Correct biases by the mean error of int8.
        inference_input_type: Type of float inputs.
        inference_output_type: Type of float outputs.
        sparse: Store weights with many zeros by their nonzero values.
        strip_debug_info: Leave out names of inner tensors and notes.
        verify: Run the file and compare it with the model.
        min_sqnr: Signal-to-noise ratio that each output must reach, in dB.
        allow_select_tf_ops: Accept operators that only the Flex delegate runs.
        isolate: Call the converter in a process of its own, the default.
        time_limit: Seconds that one call of the converter may take.
        memory_limit: Bytes that one call of the converter may allocate.
        c_array: C source (.c, .cc, .cpp) for the model, with a header beside it.
        c_name: Name of the array in C source, and prefix of the op resolver's names.
        op_resolver: C++ header for the smallest op resolver of TFLite Micro.
        required_ops: Text file for the operators that the model needs.
        manifest: JSON file for sizes, digest, inputs and outputs, the quantization,
            the estimated arena and versions.
        if_changed: Leave files alone that would stay the same.
        safe_mode: Refuse model files that could run code, reach other files or the
            network.

    Raises:
        UsageError: Not exactly one model, or two outputs of one name.
        TfoptError: See `tfopt.convert`.
        ValueError: See `tfopt.convert`.
    """
    source = _only(saved_model_dir, keras_model_file, graph_def_file)
    paths = {
        "tflite": output_file,
        "c_array": c_array,
        "op_resolver": op_resolver,
        "required_ops": required_ops,
        "manifest": manifest,
    }
    _products.check_paths({name: path for name, path in paths.items() if path})
    artifacts.prepare(filter(None, paths.values()))
    done = conversion.convert_with_report(
        source,
        quantization=quantization,
        representative_dataset=_examples(representative_data),
        calibration_examples=calibration_examples,
        inference_input_type=inference_input_type,
        inference_output_type=inference_output_type,
        keep_float=keep_float,
        keep_int8=keep_int8,
        equalize=equalize,
        correct_bias=correct_bias,
        signature_key=signature_key,
        signature_keys=signature_keys,
        tags=saved_model_tags,
        input_arrays=input_arrays,
        output_arrays=output_arrays,
        input_shapes=_shapes(input_shapes, input_arrays),
        strip_debug_info=strip_debug_info,
        allow_float_fallback=allow_float_fallback,
        allow_select_tf_ops=allow_select_tf_ops,
        sparse=sparse,
        verify=verify,
        min_sqnr=min_sqnr,
        isolate=isolate,
        time_limit=time_limit,
        memory_limit=memory_limit,
    )
    files = _products.files(done, paths, c_name=c_name, source=source)
    written = artifacts.write_files(files, always=not if_changed)
    return Converted(_artifact(done, output_file, source), written)


def _only(
    saved_model_dir: str | None,
    keras_model_file: str | None,
    graph_def_file: str | None,
) -> str:
    """Returns the one model, which has to be of its flag's kind."""
    suffixes = {
        "saved_model_dir": (saved_model_dir, ("",)),
        "keras_model_file": (keras_model_file, artifacts.KERAS_SUFFIXES),
        "graph_def_file": (graph_def_file, (".pb", ".pbtxt")),
    }
    given = {name: path for name, (path, _) in suffixes.items() if path is not None}
    if len(given) != 1:
        raise UsageError(
            "Which model is meant is unclear. Expected exactly one of "
            f"{', '.join(suffixes)}. Received: {', '.join(given) or 'none'}"
        )
    ((name, path),) = given.items()
    kinds = suffixes[name][1]
    if name != "saved_model_dir" and pathlib.Path(path).suffix not in kinds:
        raise UsageError(
            f"Expected a file that ends in {' or '.join(kinds)}. "
            f"Received: {name}={path!r}"
        )
    if not os.path.exists(path):
        raise FileNotFoundError(2, "No such model", path)
    if name == "saved_model_dir" and not os.path.isdir(path):
        raise UsageError(f"Expected a directory. Received: {name}={path!r}")
    return path


def _examples(spec: str | None) -> Any:
    return None if spec is None else data.load_representative(spec)


def _shapes(
    text: str | None, input_arrays: Sequence[str]
) -> dict[str, list[int | None]] | None:
    """Reads `name=1,2:name=3` or, in the order of `input_arrays`, `1,2:3`."""
    if text is None:
        return None
    parts = text.split(":")
    names = [part.rpartition("=")[0] for part in parts]
    if not any(names):
        names = [name.removesuffix(":0") for name in input_arrays]
    try:
        if len(names) != len(parts) or not all(names):
            raise ValueError(text)
        return {
            name: [
                None if size.strip() in ("?", "None", "-1") else int(size)
                for size in part.rpartition("=")[2].split(",")
                if size.strip()
            ]
            for name, part in zip(names, parts, strict=True)
        }
    except ValueError as error:
        raise UsageError(
            "Expected shapes by name, such as image=1,224,224,3:mask=1,10, or in the "
            "order of the given input_arrays, such as 1,224,224,3:1,10. "
            f"Received: input_shapes={text!r}"
        ) from error


def _artifact(done: conversion.Conversion, path: str, source: str) -> Artifact:
    return artifacts.describe(
        path,
        "tflite",
        signature=done.signature,
        history=[{"operation": "convert", "source": source}],
        details={
            "signatures": [str(signature) for signature in done.signatures],
            "conversion": done.report,
        },
    )


def _reports(report: Mapping[str, Any]) -> Mapping[str, Any]:
    return report.get("signatures") or {"outputs": report}


def _verified(verification: Mapping[str, Any] | None) -> str:
    if verification is None:
        return "no"
    outputs = []
    for name, figures in verification["outputs"].items():
        ratio = figures["sqnr_db"]
        close = "equal" if ratio is None else f"{ratio:.1f} dB"
        outputs.append(f"{name} {close}, largest error {figures['max_error']:.3g}")
    return (
        f"{'; '.join(outputs)} ({verification['examples']} "
        f"{verification['data']} examples)"
    )
