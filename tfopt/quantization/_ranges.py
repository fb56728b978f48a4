"""The numbers inside a model: what int8 and float16 have to represent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from tfopt import tflite_file
from tfopt.conversion import _tensors
from tfopt.conversion._operators import LayerOperator
from tfopt.conversion._samples import Samples
from tfopt.quantization._result import Constant, Range

# One at a time, as all inner tensors of an example are kept.
_EXAMPLES = 4
_INT8_STEPS = 255


def constants(
    content: bytes, groups: Mapping[str, Sequence[LayerOperator]]
) -> dict[str, dict[str, Constant]]:
    """Returns the float constants of each layer, by digest.

    Args:
        content: The float file.
        groups: Layer -> its operators.
    """
    graph = tflite_file.read(content).subgraphs[0]
    found: dict[str, dict[str, Constant]] = {}
    for layer, group in groups.items():
        own = found.setdefault(layer, {})
        for index in (i for x in group for i in graph.operators[x.index].inputs):
            tensor = graph.tensors[index] if index >= 0 else None
            if tensor is None or tensor.type != "FLOAT32" or tensor.raw is None:
                continue
            digest = hashlib.sha256(tensor.raw.tobytes()).hexdigest()[:16]
            own[digest] = _constant(tensor.values())
    return found


def outputs(
    content: bytes, groups: Mapping[str, Sequence[LayerOperator]], samples: Samples
) -> dict[str, Range]:
    """Returns, of each layer, the output that int8 would lose most of.

    Args:
        content: The float file.
        groups: Layer -> its operators.
        samples: Inputs, of which the first few are taken.
    """
    file = tflite_file.read(content).subgraphs[0]
    tensors = {
        layer: [
            index
            for operator in group
            for index in file.operators[operator.index].outputs
            if file.tensors[index].type == "FLOAT32"
        ]
        for layer, group in groups.items()
    }
    values: dict[int, list[np.ndarray]] = {}
    for read in _tensors.runs(content, samples.merged(_EXAMPLES, 1)):
        for index in {i for indices in tensors.values() for i in indices}:
            values.setdefault(index, []).append(np.ravel(read(index)).copy())
    ranges = {index: _range(np.concatenate(parts)) for index, parts in values.items()}
    return {
        layer: max((ranges[index] for index in indices), key=lambda item: item.lost)
        for layer, indices in tensors.items()
        if indices
    }


def _constant(value: np.ndarray) -> Constant:
    sizes = np.abs(value[value != 0])
    with np.errstate(over="ignore"):
        half = sizes.astype(np.float16)
    return Constant(
        bytes=value.nbytes,
        smallest=float(sizes.min(initial=np.inf)) if sizes.size else 0.0,
        largest=float(sizes.max(initial=0.0)),
        lost_in_float16=int(((half == 0) | np.isinf(half)).sum()),
    )


def _range(value: np.ndarray) -> Range:
    finite = value[np.isfinite(value)].astype(np.float64)
    low, high = finite.min(initial=0.0), finite.max(initial=0.0)
    sizes = np.abs(finite[finite != 0])
    half_step = (high - low) / _INT8_STEPS / 2
    lost = float((sizes < half_step).mean()) if sizes.size else 0.0
    return Range(lowest=float(low), highest=float(high), lost=lost)
