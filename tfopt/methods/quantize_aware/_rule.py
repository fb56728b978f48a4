"""How quantization-aware training may treat a call."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a kind of layer is quantized.

    Attributes:
        role: `"compute"`: integer arithmetic, so its inputs and its output need a
            range. `"same_scale"`: the output has the range of the input (pooling,
            reshaping). `"identity"`: nothing is left of it in inference.
            `"constant"`: a variable that operations take.
            `"batch_norm"`: folds into the weighted layer before it. `"relu"`: fuses
            into the computation before it, and computes if there is none.
        weighted: The layer has a kernel to quantize.
        fuses: Roles of the layers that its kernel can absorb, in this order.
        output_range: Range of the output where the kernel fixes it.
        one_scale: Inputs and output have one range.
        averages: The output has the range of the input, but is rounded anew.
        takes_floats: Whether its inputs are numbers to quantize, and not indices.
        selects: With `one_scale`, the output is one of the inputs.
        masks: The smaller of scores and a constant mask, in the range of the scores.
    """

    role: Literal["compute", "same_scale", "identity", "constant", "batch_norm", "relu"]
    weighted: bool = False
    fuses: tuple[str, ...] = ()
    output_range: tuple[float, float] | None = None
    one_scale: bool = False
    averages: bool = False
    takes_floats: bool = True
    selects: bool = False
    masks: bool = False


@dataclasses.dataclass(frozen=True)
class Unsupported:
    """Why a layer stays float, and whether the user wants it so."""

    reason: str
    wanted: bool = False
