"""Preparing a model for training-time methods, and finalizing it after training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfopt import _keras
from tfopt.methods._base import Method
from tfopt.types import TfoptError


def prepare(model: Any, methods: Sequence[Method]) -> Any:
    """Returns a copy of a model that is ready to train with some methods.

    Each method's `prepare` rewrites what the one before it returned, from left to
    right.

    Args:
        model: Built model of Keras 3 or tf_keras. It is not changed. Or the path of
            a `.keras` or `.h5` file; or a SavedModel, as a directory or as
            `tf.saved_model.load` returns it, of which `tfopt.lift` makes a Keras model.
        methods: Methods to train with, such as `[tfopt.QuantizeAware(),
            tfopt.Prune(final_sparsity=0.8)]`; pass the same list to `fit` and to
            `finalize`.

    Returns:
        Uncompiled model of the same Keras, with its own variables.

    Raises:
        ValueError: `methods` is not a list of distinct methods.
        TfoptError: The model cannot be read, lifted or copied, or a method refuses
            it; the message names the method.

    Example:
        >>> methods = [tfopt.QuantizeAware()]
        >>> student = tfopt.prepare(model, methods)
        >>> student.compile("adam", loss)
        >>> student.fit(images, labels, callbacks=methods, verbose=0)
        >>> student = tfopt.finalize(student, methods)
    """
    _check_methods(methods)
    if _keras.is_model(model):
        prepared = _keras.clone(model)
    else:
        from tfopt import lifting

        prepared = lifting.open_model(model)
    for method in methods:
        prepared = _apply(method, "prepare", prepared)
    return prepared


def finalize(model: Any, methods: Sequence[Method]) -> Any:
    """Returns the model to deploy, after training.

    Each method's `finalize` takes back what its `prepare` added, from right to left.

    Args:
        model: What `prepare(model, methods)` returned, trained.
        methods: The same methods, in the same order.

    Returns:
        Model of the same Keras, for `tfopt.convert` or `tfopt.save`.

    Raises:
        ValueError: `methods` is not a list of distinct methods.
        TfoptError: A method cannot finalize the model, for example because it was not
            trained; the message names the method.

    Example:
        >>> methods = [tfopt.QuantizeAware()]
        >>> student = tfopt.prepare(model, methods)
        >>> student.compile("adam", loss)
        >>> student.fit(images, labels, callbacks=methods, verbose=0)
        >>> content = tfopt.convert(finalize(student, methods), quantization="int8")
    """
    _check_methods(methods)
    _keras.check_model(model)
    for method in reversed(methods):
        model = _apply(method, "finalize", model)
    return model


def _apply(method: Method, hook: str, model: Any) -> Any:
    step = f"{type(method).__name__}.{hook}"
    try:
        result = getattr(method, hook)(model)
    except TfoptError as error:
        raise type(error)(f"{step}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{step}: {error}") from error
    if not _keras.is_model(result) or _keras.is_keras3(result) != _keras.is_keras3(
        model
    ):
        raise TfoptError(
            f"{step} must return a model of the same Keras as it was given. "
            f"Received: {type(result).__module__}.{type(result).__name__}"
        )
    return result


def _check_methods(methods: Sequence[Method]) -> None:
    listed = isinstance(methods, (list, tuple))
    if not listed or not all(isinstance(method, Method) for method in methods):
        raise ValueError(
            "Expected a list of methods, such as [tfopt.Prune(final_sparsity=0.8)]; "
            "other callbacks go to `fit` only. Received: methods="
            + (str([type(x).__name__ for x in methods]) if listed else repr(methods))
        )
    if len({id(method) for method in methods}) != len(methods):
        raise ValueError(
            "Expected distinct methods; one of them is listed twice. Received: "
            f"methods={[type(method).__name__ for method in methods]}"
        )
