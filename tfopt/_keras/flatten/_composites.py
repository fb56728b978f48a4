"""Which layers are opened, and how their code is run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt._keras.flatten import _opening
from tfopt._keras.flatten._networks import Node

# Keras's own layers that are made of others.
_COMPOSITES = frozenset(
    {"GroupQueryAttention", "GroupedQueryAttention", "MultiHeadAttention"}
)
# Keras's own base classes, which compute nothing themselves.
_BASES = frozenset(
    {"Functional", "Layer", "Model", "Sequential", "TFLayer", "Operation"}
)
_NEVER = ("tfopt", "tensorflow_model_optimization")


def why_closed(layer: Any) -> str | None:
    """Returns why a layer or operation is kept whole, `None` if it may be opened."""
    cls = type(layer)
    if cls.__name__ == "DotProductAttention" and _is_keras_class(cls):
        return None
    if not hasattr(layer, "_flatten_layers"):
        return "it is an operation"
    if cls.__module__.split(".", 1)[0] in _NEVER:
        return "it is a layer that tfopt knows"
    # The class of Keras itself whose computation it takes over or changes.
    known = next(
        base.__name__
        for base in cls.__mro__
        if _is_keras_class(base) and ("call" in vars(base) or base is cls)
    )
    if known not in _BASES | _COMPOSITES:
        return f"it is a {known}"
    if getattr(layer, "activity_regularizer", None) is not None:
        return "it has an activity regularizer"
    inner = list(layer._flatten_layers(include_self=False, recursive=False))
    is_leaf = not inner and not _keras.is_model(layer)
    if is_leaf and "training" in inspect.signature(layer.call).parameters:
        return "it computes something else in training"
    return _special_variable(layer)


def check_no_masks(node: Node) -> None:
    """Raises if Keras hands a mask on beside the tensors of a call.

    Raises:
        CannotOpen: It does, and code that is run on other tensors would miss it.
    """
    for thing in tf.nest.flatten((node.args, node.kwargs)):
        if getattr(thing, "_keras_mask", None) is not None:
            raise _opening.CannotOpen("its input has a mask")


def run_of(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], training: Any
) -> Callable[[], Any]:
    """Returns a function that runs the code of a layer on symbolic arguments."""
    if type(layer).__name__ == "DotProductAttention":
        return lambda: _attention(layer, *args, **kwargs)
    parameters = inspect.signature(layer.call).parameters
    if "training" in parameters:
        kwargs = {**kwargs, "training": training}
    if type(layer).__name__ in _COMPOSITES and kwargs.get("use_causal_mask"):
        kwargs = _with_causal_mask(layer, args, kwargs)
    return lambda: layer.call(*_cast(layer, args), **_cast(layer, kwargs))


def _with_causal_mask(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Gives attention its causal mask, where nothing else masks, as a constant.

    Keras computes it of shapes, by operations, or inside of one operation.
    """
    given = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    shapes = [given[name].shape[1] for name in ("query", "value")]
    if given.get("attention_mask") is not None or None in shapes:
        return kwargs
    mask = _causal(given["query"], given["value"])
    return {**kwargs, "use_causal_mask": False, "attention_mask": mask}


def _causal(query: Any, value: Any = None) -> np.ndarray:
    """Returns a causal mask [1, targets, sources], True where a source is seen."""
    sizes = (query.shape[1], (query if value is None else value).shape[1])
    if None in sizes:
        raise _opening.CannotOpen("its causal mask has no fixed size")
    return np.tril(np.ones(sizes, bool))[None]


def _is_keras_class(cls: type) -> bool:
    return cls.__module__.split(".", 1)[0] in ("keras", "tf_keras")


def _special_variable(layer: Any) -> str | None:
    """Says what makes a layer's own variables more than weights without a layer."""
    if getattr(layer, "_callable_losses", None):
        return "it adds losses"
    for variable in _opening.own_variables(layer):
        for attribute in ("regularizer", "constraint"):
            if getattr(variable, attribute, None) is not None:
                return f"its variable {variable.name!r} has a {attribute}"
    return None


def _cast(layer: Any, things: Any) -> Any:
    """Casts tensors as Keras does before it runs a layer's `call`."""
    keras = _keras.module_of(layer)
    autocast = getattr(layer, "autocast", None) or getattr(layer, "_autocast", False)
    dtype = layer.compute_dtype
    if not autocast or not dtype or not tf.as_dtype(dtype).is_floating:
        return things

    def cast(thing: Any) -> Any:
        if not _opening.is_symbolic(thing):
            return thing
        given = tf.as_dtype(thing.dtype)
        if not given.is_floating or given.name == dtype:
            return thing
        return (keras.ops if keras.__name__ == "keras" else tf).cast(thing, dtype)

    return tf.nest.map_structure(cast, things)


def _attention(
    operation: Any,
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    scale: Any = None,
) -> Any:
    """Computes `keras.ops.dot_product_attention` by operations, as Keras documents it.

    Args:
        operation: The operation of Keras 3, with its options.
        query: Tensor [batch, targets, heads, size].
        key: Tensor [batch, sources, heads, size]; with fewer heads, each serves
            several of the query's.
        value: Tensor of the shape of `key`.
        bias: Added to the scores [batch, heads, targets, sources].
        mask: Boolean, False where a source is not seen.
        scale: Factor of the scores, by default `size ** -0.5`.
    """
    ops = _keras.module_of(operation).ops
    if operation.attn_logits_soft_cap is not None or key.shape[-1] is None:
        raise _opening.CannotOpen("it caps its scores, or has no fixed size")
    groups = query.shape[2] // key.shape[2]
    if groups > 1:
        key, value = (ops.repeat(x, groups, axis=2) for x in (key, value))
    query = ops.multiply(query, key.shape[-1] ** -0.5 if scale is None else scale)
    scores = ops.einsum("btnh,bsnh->bnts", query, key)
    if bias is not None:
        scores = ops.add(scores, bias)
    if operation.is_causal:
        causal = _causal(query, key)[None]
        mask = causal if mask is None else ops.logical_and(mask, causal)
    if mask is not None:
        scores = ops.where(mask, scores, -1e9 if scores.dtype != "float16" else -6e4)
    return ops.einsum("bnts,bsnh->btnh", ops.softmax(scores, axis=-1), value)
