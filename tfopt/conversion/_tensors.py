"""Runs a `.tflite` file and reads the tensors inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfopt import affine, tflite_file


def runs(content: bytes, batches: Sequence[Mapping[str, np.ndarray]]) -> Iterator[Any]:
    """Runs a file; yields after each batch a function that reads its tensors.

    Args:
        content: The file.
        batches: Inputs, in order.

    Yields:
        A function from a tensor's index to its value, as floats if it is quantized.
    """
    # Only without delegates do all tensors stay to be read.
    interpreter = Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    details = interpreter.get_input_details()
    infos = tflite_file.read(content).subgraphs[0].tensors
    shapes: list[tuple[int, ...]] = []

    def read(index: int) -> np.ndarray:
        value = interpreter.get_tensor(index)
        info = infos[index]
        if not info.scale:
            return value
        return affine.dequantize(value, info.scale[0], info.zero_point[0])

    for batch in batches:
        values = list(batch.values())
        if [value.shape for value in values] != shapes:
            shapes = [value.shape for value in values]
            for detail, shape in zip(details, shapes, strict=True):
                interpreter.resize_tensor_input(detail["index"], shape)
            interpreter.allocate_tensors()
        for detail, value in zip(details, values, strict=True):
            interpreter.set_tensor(detail["index"], _coded(value, detail))
        interpreter.invoke()
        yield read


def _coded(value: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    if value.dtype == detail["dtype"]:
        return value
    limits = np.iinfo(detail["dtype"])
    return affine.quantize(
        value, *detail["quantization"], minimum=limits.min, maximum=limits.max
    )
