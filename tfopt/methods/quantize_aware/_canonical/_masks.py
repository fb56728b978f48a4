"""Masks of attention that are known beforehand, such as causal ones.

Code writes them as `where(mask, scores, -1e9)`, as a sum with numbers of that size, or
as a Softmax with a mask. Such numbers leave no int8 step for the scores themselves.
The smaller of a score and a number per place, high where the mask lets the score pass
and low elsewhere, is the same, and MINIMUM has one scale: the numbers saturate to the
ends of the scores' range, which gets `MASK_ROOM` of room at its lower one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import operations
from tfopt._keras.flatten import Call, Value
from tfopt.methods.quantize_aware._building import Builder
from tfopt.methods.quantize_aware._operation_rules import LOW

_PASSES, _STOPS = 1e9, -1e9
_SOFTMAX = ("Softmax", "softmax")


def where(build: Builder, call: Call) -> Value | None:
    """Masks where a constant condition chooses between scores and a low number."""
    condition, one, other = _three(operations.bound(call))
    if isinstance(condition, Value) or condition is None:
        return None
    passes = np.asarray(condition, bool)
    if isinstance(other, Value):
        one, other, passes = other, one, ~passes
    if not isinstance(one, Value) or other is None or isinstance(other, Value):
        return None
    if np.any(np.asarray(other, np.float64) > LOW) or not _only_softmax(build, call):
        return None
    return _masked(build, call, one, passes)


def added(build: Builder, call: Call, scores: Value, numbers: Any) -> Value | None:
    """Masks where a sum with constants is with zeros and low numbers alone."""
    numbers = np.asarray(numbers, np.float64)
    stops = numbers <= LOW
    if not stops.any() or np.any(numbers[~stops]) or not _only_softmax(build, call):
        return None
    return _masked(build, call, scores, ~stops)


def softmax_layer(build: Builder, call: Call) -> Value | None:
    """Splits a Softmax with a constant mask into the mask and the Softmax."""
    given = [*call.args, call.kwargs.get("mask")]
    scores, mask = given[:2]
    if not isinstance(scores, Value) or mask is None or isinstance(mask, Value):
        return None
    masked = _masked(build, call, scores, np.asarray(mask) > 0.5)
    config = {key: x for key, x in call.layer.config.items() if key != "name"}
    softmax = build.layer(call.layer, "softmax", "Softmax", config)
    return build.call(softmax, masked, call.output.shape)


def _masked(build: Builder, call: Call, scores: Value, passes: np.ndarray) -> Value:
    limits = np.where(passes, _PASSES, _STOPS).astype(np.float32)
    config = {
        "shape": list(limits.shape),
        "weight_name": operations.MASK,
        "dtype": "float32",
        "trainable": False,
    }
    cls = operations.classes(build.keras).Weight
    layer = build.layer(call.layer, "mask", cls, config, {operations.MASK: limits})
    mask = build.call(layer, scores, limits.shape)
    args = (scores, mask)
    return build.operation(call.layer, "masked", "math.minimum", args, scores.shape)


def _three(given: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Returns condition and choices, by the names of TensorFlow and of Keras."""
    condition = given.get("condition")
    one, other = (given.get(a, given.get(b)) for a, b in (("x", "x1"), ("y", "x2")))
    return condition, one, other


def _only_softmax(build: Builder, call: Call) -> bool:
    """Whether nothing but softmax takes a call's output; its scale is another one."""
    consumers = build.consumers.get(call.output, [])
    kinds = {
        each.layer.kind if kind is None else kind
        for each in consumers
        for kind in [operations.canonical_kind(each.layer)]
    }
    is_float = tf.as_dtype(call.output.dtype).is_floating
    return is_float and bool(kinds) and kinds <= set(_SOFTMAX)
