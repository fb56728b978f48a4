"""Parameters and multiplications of a flat graph."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from tfopt._keras.flatten import Call, Graph, Value


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        parameters: Number of all weights, trainable or not.
        macs: Multiply-accumulate operations for one example in its Dense and
            convolution layers (two FLOPs each); `None` if its inputs have free sizes.
    """

    parameters: int
    macs: int | None

    @property
    def flops(self) -> int | None:
        """Floating-point operations for one example: two for each of `macs`."""
        return None if self.macs is None else 2 * self.macs


def cost(graph: Graph) -> Cost:
    """Returns the cost of a model, from the shapes in its flat graph."""
    parameters = sum(
        array.size for spec in graph.layers() for array in spec.weights or []
    )
    macs = [_macs(call) for call in graph.calls]
    known = [count for count in macs if count is not None]
    return Cost(parameters, sum(known) if len(known) == len(macs) else None)


def _macs(call: Call) -> int | None:
    kind = call.layer.kind
    if kind != "Dense" and ("Conv" not in kind or "LSTM" in kind):
        return 0
    kernels = [array for array in call.layer.weights or [] if array.ndim > 1]
    # A transposed convolution applies its kernel once at each input position.
    value = call.inputs[0] if kind.endswith("Transpose") else call.output
    positions = _positions(value, call.layer.config.get("data_format"))
    return None if positions is None else positions * sum(map(np.size, kernels))


def _positions(value: Value, data_format: str | None) -> int | None:
    shape = (value.shape or (None,))[1:]
    sizes = shape[1:] if data_format == "channels_first" else shape[:-1]
    return None if None in sizes else math.prod(size or 0 for size in sizes)
