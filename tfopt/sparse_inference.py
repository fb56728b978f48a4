"""Whether zeros in the weights of a `.tflite` file can make it faster, and why not."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
from typing import Any, Literal

import numpy as np

from tfopt import tflite_file
from tfopt.tflite_file import TfliteFile

Target = Literal["host", "arm", "x86_sse", "x86_avx"]

# From this part of zeros on XNNPACK runs a cluster of 1x1 convolutions sparsely.
_MIN_ZEROS = 2 / 3
# What a cluster may consist of besides 1x1 convolutions; all else ends it.
_COMPATIBLE = frozenset(
    {
        *("ADD", "SUB", "MUL", "RELU", "RELU6", "RELU_N1_TO_1", "HARD_SWISH", "ELU"),
        *("LEAKY_RELU", "LOGISTIC", "ABS", "NEG", "SQUARE", "CEIL", "FLOOR", "ROUND"),
        *("DEPTHWISE_CONV_2D", "CONV_2D", "RESIZE_BILINEAR", "MEAN", "DEPTH_TO_SPACE"),
    }
)
_ENDS = frozenset({"MEAN", "DEPTH_TO_SPACE"})


@dataclasses.dataclass(frozen=True)
class SparseSpeedup:
    """The answer of `sparse_speedup_possible`; true or false by itself.

    Attributes:
        possible: Whether LiteRT would run sparse kernels.
        target: The processor that was asked about.
        reasons: What stands against it; empty if possible.
        convolutions: Number of 1x1 convolutions, and of those with enough zeros.
        advice: What would make the model faster instead.
    """

    possible: bool
    target: str
    reasons: tuple[str, ...]
    convolutions: tuple[int, int]
    advice: str

    def __bool__(self) -> bool:
        return self.possible

    def __str__(self) -> str:
        if self.possible:
            return (
                f"Sparse kernels can run on {self.target}: {self.convolutions[1]} of "
                f"{self.convolutions[0]} 1x1 convolutions have enough zeros."
            )
        return (
            f"No speed from zeros on {self.target}: {'; '.join(self.reasons)}. "
            f"{self.advice}"
        )


def sparse_speedup_possible(
    model: str | os.PathLike[str] | bytes, *, target: Target = "host"
) -> SparseSpeedup:
    """Tells whether LiteRT would run a pruned `.tflite` file faster than a dense one.

    Seldom. XNNPACK, LiteRT's CPU library, has sparse kernels for float 1x1 convolutions
    in channels-first layout only, and picks them for a whole cluster of operators that
    begins with a 3x3 convolution of stride 2 on three channels and ends with a global
    average or depth-to-space. On x86 with AVX it doesn't use them at all. What makes a
    model faster everywhere is to remove whole channels, see `remove_channels`.

    Args:
        model: Path or content of a `.tflite` file, converted with `sparse=True`.
        target: Processor: `"host"` is this machine's.

    Returns:
        Yes or no with the reasons. It tells what XNNPACK's conditions say; how much
        faster it is, only a measurement on the target tells.

    Raises:
        ValueError: The target is unknown.
        TfoptError: The file is missing or damaged.

    Reference:
        https://github.com/google/XNNPACK/issues/3170 and XNNPACK's
        `src/xnnpack/hardware-config.h` (`xnn_is_chw_compatible_config`).

    Example:
        >>> content = tfopt.convert(model)
        >>> answer = sparse_speedup_possible(content, target="x86_avx")
        >>> bool(answer), answer.reasons[0]
        (False, 'XNNPACK has no sparse kernels for x86 with AVX')
    """
    targets = ("host", "arm", "x86_sse", "x86_avx")
    if target not in targets:
        raise ValueError(f"Expected one of {targets}. Received: target={target!r}")
    file = tflite_file.read(model)
    processor = _host() if target == "host" else target
    reasons = []
    if processor == "x86_avx":
        reasons.append("XNNPACK has no sparse kernels for x86 with AVX")
    elif processor == "other":
        reasons.append(f"XNNPACK's kernels for {platform.machine()} are not known")
    found = _pointwise(file)
    reasons += _structure(file, found)
    enough = sum(item.zeros >= _MIN_ZEROS for item in found)
    return SparseSpeedup(
        possible=not reasons,
        target=processor,
        reasons=tuple(reasons),
        convolutions=(len(found), enough),
        advice="Remove whole channels instead: tfopt.remove_channels.",
    )


@dataclasses.dataclass(frozen=True)
class _Pointwise:
    """A 1x1 convolution: how sparse it is, and whether the file says so."""

    zeros: float
    is_sparse: bool
    is_float: bool


def _structure(file: TfliteFile, found: list[_Pointwise]) -> list[str]:
    reasons = []
    if not found:
        return ["it has no 1x1 convolution"]
    if not any(item.is_float for item in found):
        return ["XNNPACK has sparse kernels for float weights only"]
    if not any(item.is_sparse for item in found):
        reasons.append("no weight is stored sparsely; convert with sparse=True")
    mean = float(np.mean([item.zeros for item in found]))
    if mean < _MIN_ZEROS:
        reasons.append(
            f"{mean:.0%} of the weights of 1x1 convolutions are zeros, "
            f"at least {_MIN_ZEROS:.0%} are needed"
        )
    names = [
        operator.name
        for operator in file.subgraphs[0].operators
        if operator.name not in ("DENSIFY", "DEQUANTIZE")
    ]
    if not _begins_right(file):
        reasons.append("it doesn't begin with a 3x3 convolution of stride 2 on RGB")
    end = next((i for i, name in enumerate(names) if name in _ENDS), None)
    if end is None:
        reasons.append("it has no global average or depth-to-space to end the cluster")
    else:
        others = sorted(set(names[:end]) - _COMPATIBLE)
        if others:
            reasons.append(f"{', '.join(others)} cut the cluster")
    return reasons


def _begins_right(file: TfliteFile) -> bool:
    graph = file.subgraphs[0]
    for operator in graph.operators:
        if operator.name == "CONV_2D":
            shape = graph.tensors[operator.inputs[1]].shape
            options = operator.options
            strides = (options.strideH, options.strideW)
            return shape[1:] == (3, 3, 3) and strides == (2, 2)
        if operator.name not in ("DENSIFY", "DEQUANTIZE", "PAD"):
            return False
    return False


def _pointwise(file: TfliteFile) -> list[_Pointwise]:
    found = []
    for graph in file.subgraphs:
        makers = {operator.outputs[0]: operator for operator in graph.operators}
        for operator in graph.operators:
            if operator.name != "CONV_2D":
                continue
            tensor = graph.tensors[operator.inputs[1]]
            if tensor.shape[1:3] != (1, 1):
                continue
            while not tensor.is_constant and tensor.index in makers:
                tensor = graph.tensors[makers[tensor.index].inputs[0]]
            if tensor.is_constant:
                found.append(
                    _Pointwise(_zeros(tensor), tensor.is_sparse, tensor.is_float)
                )
    return found


def _zeros(tensor: Any) -> float:
    size = int(np.prod([size or 1 for size in tensor.shape]))
    if tensor.is_sparse:
        item = 1 if tensor.dtype is None else tensor.dtype.itemsize
        return 1 - tensor.raw.nbytes / item / size
    codes = tensor.codes()
    point = tensor.zero_point[0] if tensor.zero_point else 0
    return float(np.mean(codes == point))


def _host() -> str:
    machine = platform.machine().lower()
    if machine.startswith(("arm", "aarch64")):
        return "arm"
    if machine not in ("x86_64", "amd64", "i686", "i386"):
        return "other"
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "x86_avx"  # All of the last ten years have it.
    return "x86_avx" if " avx" in flags else "x86_sse"
