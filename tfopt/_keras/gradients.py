"""The gradients that an optimizer of either Keras is given, and those of some data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt._keras import variables
from tfopt.types import TfoptError

Pairs = Sequence[tuple[Any, Any]]


def observe(optimizer: Any, see: Callable[[Pairs], None]) -> Callable[[], None]:
    """Shows a function all gradients right before the optimizer uses them.

    The function is part of the compiled training step, inside the optimizer's own
    method, so it does not matter who calls that: `fit` or a loop of the user's. Under
    loss scaling it sees unscaled gradients of steps that are not skipped; under
    gradient accumulation those of every batch; under `tf.distribute` it runs in each
    replica, with the gradients of that.

    Args:
        optimizer: The model's optimizer. A train function that was traced before does
            not see the change: call `variables.retrace`.
        see: Takes (gradient, variable) pairs.

    Returns:
        A function that undoes it.
    """
    inner = variables.inner_optimizer(optimizer)
    if _keras.is_keras3(inner):
        name, original = "apply", inner.apply

        def apply(grads: Any, trainable_variables: Any = None) -> Any:
            grads = list(grads)
            known = trainable_variables
            known = inner._trainable_variables if known is None else list(known)
            see(list(zip(grads, known, strict=True)))
            return original(grads, trainable_variables)

        replacement: Callable[..., Any] = apply
    else:
        name, original = "apply_gradients", inner.apply_gradients

        def apply_gradients(grads_and_vars: Any, *args: Any, **options: Any) -> Any:
            pairs = list(grads_and_vars)
            see(pairs)
            return original(pairs, *args, **options)

        replacement = apply_gradients
    # Past the optimizers' own bookkeeping of attributes.
    object.__setattr__(inner, name, replacement)

    def undo() -> None:
        if inner.__dict__.get(name) is replacement:
            object.__delattr__(inner, name)

    return undo


def dense(gradient: Any) -> tf.Tensor:
    """Returns a gradient as one tensor; that of an embedding table may be sparse."""
    if isinstance(gradient, tf.IndexedSlices):
        rows = gradient.dense_shape[0]
        return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, rows)
    return tf.convert_to_tensor(gradient)


def of_batches(
    model: Any, watched: Sequence[variables.Weight], data: Iterable[Any]
) -> Iterable[list[tf.Tensor]]:
    """Yields, per batch, the gradients of a compiled model's loss.

    Args:
        model: Compiled model, for its loss. Batches run in inference mode, so that
            neither dropout nor batch statistics make the result depend on chance.
        watched: Weights of the model.
        data: Batches `(x, y)` or `(x, y, sample_weight)`.

    Raises:
        TfoptError: A batch has no labels, the model no loss, or a weight no gradient.
    """
    if getattr(model, "optimizer", None) is None:
        raise TfoptError(
            "Gradients need a loss. Expected a compiled model. "
            f"Received: model={model.name!r}"
        )
    for batch in data:
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            raise TfoptError(
                "Gradients need batches (x, y) or (x, y, sample_weight). "
                f"Received: a batch of type {type(batch).__name__}"
            )
        x, y, weight = (*tf.nest.map_structure(tf.convert_to_tensor, batch), None)[:3]
        with tf.GradientTape() as tape:
            outputs = model(x, training=False)
            loss = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=weight)
        found = tape.gradient(loss, [tensor_of(w.variable) for w in watched])
        for one, each in zip(watched, found, strict=True):
            if each is None:
                raise no_gradient(one.name)
        yield [dense(gradient) for gradient in found]


def no_gradient(name: str) -> TfoptError:
    """Returns the error for a weight that gets no gradient."""
    return TfoptError(
        "No gradient reaches a weight that is to be scored by it. Expected a weight on "
        "the way from the inputs to the loss; `exclude` it otherwise. "
        f"Received: weight={name!r}"
    )


def tensor_of(variable: Any) -> Any:
    """Returns the TensorFlow variable inside a Keras 3 variable."""
    return getattr(variable, "value", variable) if _is_keras3(variable) else variable


def _is_keras3(variable: Any) -> bool:
    return type(variable).__module__.startswith("keras.")
