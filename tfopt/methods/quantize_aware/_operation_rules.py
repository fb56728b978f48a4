"""What quantization-aware training does with each kind of operation: one row a kind.

Operations are `tf.*`, `tf.raw_ops.*` and `keras.ops.*` functions; their kinds are those
of `operations.canonical_kind`. `_canonical` has replaced those by then that are
sequences of others, or layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from tfopt._keras import operations
from tfopt._keras.flatten import Call, Value
from tfopt.methods.quantize_aware._rule import Rule, Unsupported

_COMPUTE = Rule("compute")
_ARITHMETIC = Rule("compute", fuses=("relu",))
_SAME_SCALE = Rule("same_scale")
_AVERAGES = Rule("same_scale", averages=True)
_IDENTITY = Rule("identity")
_ONE_SCALE = Rule("compute", one_scale=True)
_SELECTS = Rule("compute", one_scale=True, selects=True)

_MASKS = Rule("compute", masks=True)

_INTEGERS = Unsupported("it computes no floats", wanted=True)

# What code puts in the place of masked scores, or adds to them, is at most this. With
# such numbers in its range, a tensor has no int8 step left for others.
LOW = -1e3


def has_low_numbers(value: Value) -> bool:
    """Whether a tensor holds numbers such as -1e9, by which a mask is applied."""
    call = value.producer
    if call is None:
        return False
    kind = operations.canonical_kind(call.layer)
    if kind in ("where", "mul"):
        given = operations.bound(call).values()
        constants = [x for x in given if not isinstance(x, Value) and _is_number(x)]
        if any(np.min(np.asarray(x, np.float64)) <= LOW for x in constants):
            return True
    passes_on = kind in ("add", "sub", "where") or call.layer.kind in ("Add", "Dropout")
    if not passes_on:
        row = OPERATIONS.get(kind or "")
        passes_on = row in (_movement, _cast, _IDENTITY) and kind is not None
    return passes_on and any(map(has_low_numbers, call.inputs))


def _is_number(thing: object) -> bool:
    try:
        return np.asarray(thing, np.float64).size > 0
    except (TypeError, ValueError):
        return False


def _makes_floats(call: Call) -> bool:
    return any(tf.as_dtype(value.dtype).is_floating for value in call.outputs)


def _row(rule: Rule) -> Callable[[Call], Rule | Unsupported]:
    """Returns a row for floats; what makes only integers or booleans is left alone."""
    return lambda call: rule if _makes_floats(call) else _INTEGERS


def _movement(call: Call) -> Rule | Unsupported:
    """Moves values of its first tensor."""
    if not _makes_floats(call):
        return _INTEGERS
    first = call.inputs[0]
    if not tf.as_dtype(first.dtype).is_floating:
        return Unsupported("its first tensor is one of integers")
    others = call.inputs[1:]
    if any(tf.as_dtype(value.dtype).is_floating for value in others):
        return Unsupported("it moves values of several tensors")
    return _SAME_SCALE


def _padding(call: Call) -> Rule | Unsupported:
    given = operations.bound(call)
    mode = str(given.get("mode", "constant")).lower()
    if mode not in ("constant", "reflect", "symmetric"):
        return Unsupported(f"LiteRT has no padding with mode={mode!r}")
    if np.any(given.get("constant_values") or 0):
        return Unsupported("LiteRT pads with the code of zero only")
    return _movement(call)


def _reduction(rule: Rule) -> Callable[[Call], Rule | Unsupported]:
    def row(call: Call) -> Rule | Unsupported:
        if not _makes_floats(call):
            return _INTEGERS
        axes = operations.bound(call).get("axis")
        shape = call.inputs[0].shape
        if axes is None or shape is None:
            return Unsupported("it reduces over the batch")
        if 0 in {int(axis) % len(shape) for axis in np.atleast_1d(axes)}:
            return Unsupported("it reduces over the batch")
        return rule

    return row


def _product(call: Call) -> Rule | Unsupported:
    """Matrix product of two tensors."""
    if not _makes_floats(call):
        return _INTEGERS
    if len(set(call.inputs)) != len(call.inputs) or len(call.inputs) != 2:
        return Unsupported("LiteRT multiplies two different matrices")
    return _COMPUTE


def _contraction(call: Call) -> Rule | Unsupported:
    """Einsum: of two tensors, or of one and a constant."""
    if not _makes_floats(call):
        return _INTEGERS
    if len(call.inputs) == 1 and len(tf.nest.flatten(call.args)) == 1:
        return _COMPUTE
    return _product(call)


def _selection(call: Call) -> Rule | Unsupported:
    """Larger or smaller of two tensors."""
    if not _makes_floats(call):
        return _INTEGERS
    if any(map(_is_mask, call.inputs)):
        return _MASKS
    return _SELECTS if len(call.inputs) == 2 else _ARITHMETIC


def _is_mask(value: Value) -> bool:
    return (
        value.producer is not None
        and value.producer.layer.config.get("weight_name") == operations.MASK
    )


def _softmax(rule: Rule) -> Callable[[Call], Rule | Unsupported]:
    def row(call: Call) -> Rule | Unsupported:
        axis = operations.bound(call).get("axis")
        rank = len(call.inputs[0].shape or ())
        if axis in (None, -1) or axis == rank - 1:
            return rule
        return Unsupported("LiteRT's softmax is over the last axis only")

    return row


def _cast(call: Call) -> Rule | Unsupported:
    if not _makes_floats(call):
        return _INTEGERS
    if tf.as_dtype(call.inputs[0].dtype).is_floating:
        return _IDENTITY
    return Unsupported("it makes floats of integers")


def _resize(call: Call) -> Rule | Unsupported:
    given = operations.bound(call)
    name = operations.function_name(call.layer)
    method = str(given.get("method", given.get("interpolation", name))).lower()
    if given.get("data_format") == "channels_first":
        return Unsupported("data_format='channels_first' has no LiteRT kernel")
    if given.get("antialias") or given.get("preserve_aspect_ratio"):
        return Unsupported("LiteRT resizes without antialias and fixed aspect ratio")
    if "nearest" in method:
        return _SAME_SCALE
    if "bilinear" in method:
        return _AVERAGES
    return Unsupported(f"LiteRT does not resize by {method}")


def _where(call: Call) -> Rule | Unsupported:
    if not _makes_floats(call):
        return _INTEGERS
    return Unsupported("it chooses by a condition")


# A rule, or a function that finds it for a call.
_Row = Rule | Callable[[Call], Rule | Unsupported]
OPERATIONS: Mapping[str, _Row] = {
    "abs": _row(_COMPUTE),
    "add": _row(_ARITHMETIC),
    "avg_pool": _AVERAGES,
    "broadcast_to": _movement,
    "cast": _cast,
    "concat": _row(_ONE_SCALE),
    "depth_to_space": _movement,
    "div": _row(_COMPUTE),
    "einsum": _contraction,
    "exp": _row(_COMPUTE),
    "expand_dims": _movement,
    "gather": _movement,
    "gelu": _COMPUTE,
    "identity": _IDENTITY,
    "l2_normalize": Rule("compute", output_range=(-1.0, 127 / 128)),
    "log": _COMPUTE,
    "log_softmax": _softmax(Rule("compute", output_range=(-255 / 16, 0.0))),
    "matmul": _product,
    "max": _reduction(_SAME_SCALE),
    "max_pool": _SAME_SCALE,
    "maximum": _selection,
    "mean": _reduction(_COMPUTE),
    "min": _reduction(_SAME_SCALE),
    "minimum": _selection,
    "mirror_pad": _padding,
    "mul": _row(_ARITHMETIC),
    "pad": _padding,
    "repeat": _movement,
    "reshape": _movement,
    "resize": _resize,
    "reciprocal": _row(_COMPUTE),
    "rsqrt": _COMPUTE,
    "slice": _movement,
    "softmax": _softmax(Rule("compute", output_range=(0.0, 255 / 256))),
    "space_to_depth": _movement,
    "split": _movement,
    "sqrt": _row(_COMPUTE),
    "squeeze": _movement,
    "stack": _row(_ONE_SCALE),
    "sub": _row(_ARITHMETIC),
    "sum": _reduction(_COMPUTE),
    "tensordot": _contraction,
    "tile": _movement,
    "transpose": _movement,
    "unstack": _movement,
    "where": _where,
}


def operation_row(kind: str) -> _Row:
    """Returns the row of a kind of operation."""

    def unknown(call: Call) -> Unsupported:
        if not _makes_floats(call):
            return _INTEGERS
        return Unsupported(f"no rule for the operation {kind!r}")

    return OPERATIONS.get(kind, unknown)
