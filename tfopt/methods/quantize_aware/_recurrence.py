"""Which recurrent layers can be unrolled into integer kernels, and why others not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfopt._keras.flatten import Call, Value

RECURRENT = ("GRU", "LSTM", "SimpleRNN")
# Each time step is some fifteen operators in the file and in the training graph; Keras
# follows chains of layers by recursion, which ends at about 65 steps of an LSTM.
MAX_STEPS = 64


def objection(call: Call) -> str:
    """Returns why a call of a recurrent layer or Bidirectional stays float, or `""`.

    The TFLite converter keeps loops in float (and crashes when it calibrates one), so
    only what can be unrolled becomes integer kernels.
    """
    spec, shape = call.layer, call.inputs[0].shape
    cells = configs(spec.config) if spec.kind == "Bidirectional" else [spec.config]
    if spec.kind == "Bidirectional" and len(cells) < 2:
        return "only LSTM, GRU and SimpleRNN are unrolled"
    if shape is None or len(shape) != 3 or None in shape[1:]:
        return (
            "it can be unrolled only if the input has fixed numbers of steps and values"
        )
    if (shape[1] or 0) > MAX_STEPS:
        return f"it has {shape[1]} steps, and at most {MAX_STEPS} are unrolled"
    if is_masked(call.inputs[0]):
        return "a mask skips time steps, which an unrolled layer cannot"
    if len(call.inputs) > 1 or len(call.outputs) > 1:
        return "a state that is given or returned, or a second output, stays float"
    for config in cells:
        if config.get("stateful"):
            return "a state that is kept between calls is float"
        if config.get("recurrent_dropout"):
            return "recurrent_dropout has no unrolled form"
        if config.get("reset_after") is False:
            return "only GRU with reset_after=True is unrolled"
    return ""


def configs(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the configurations of both layers of a Bidirectional, if they are known.

    Args:
        config: Of the Bidirectional.
    """
    forward = config["layer"]
    if forward.get("class_name") not in RECURRENT:
        return []
    first = {**forward["config"], "kind": forward["class_name"]}
    backward = config.get("backward_layer")
    if backward is None:
        flipped = not first.get("go_backwards", False)
        return [first, {**first, "go_backwards": flipped}]
    if backward.get("class_name") not in RECURRENT:
        return []
    return [first, {**backward["config"], "kind": backward["class_name"]}]


def is_masked(value: Value) -> bool:
    """Returns whether Keras may pass a mask along with a value."""
    pending, seen = [value], set()
    while pending:
        producer = pending.pop().producer
        if producer is None or producer in seen:
            continue
        seen.add(producer)
        if producer.layer.kind == "Masking" or producer.layer.config.get("mask_zero"):
            return True
        pending.extend(producer.inputs)
    return False
