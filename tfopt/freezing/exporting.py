"""Models in memory as SavedModels: of Keras, modules and functions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt._keras import inference
from tfopt.types import ConversionError

_SERVING_DEFAULT = "serving_default"


def export(source: Any, folder: str | os.PathLike[str]) -> None:
    """Writes a model of this process as a SavedModel.

    Args:
        source: A Keras model of either version; an object with signatures, as
            `tf.saved_model.load` returns; a tf.Module whose tf.functions have input
            signatures; a tf.function with one; or a ConcreteFunction.
        folder: An existing, empty directory.

    Raises:
        ConversionError: It is none of these, or TensorFlow cannot export it.
    """
    root = tf.Module()
    if _keras.is_model(source):
        signatures = {_SERVING_DEFAULT: _of_keras(source)}
    else:
        signatures = _signatures(source)
    if not signatures:
        raise ConversionError(
            "Nothing to freeze. Expected a Keras model, a tf.function with an "
            "`input_signature`, a ConcreteFunction, or a tf.Module with such "
            f"functions. Received: source of type {type(source).__name__}"
        )
    # Only what the functions use: tracking a model itself would export all its layers.
    functions = list(signatures.values())
    root.captured = [list(function.variables) for function in functions]
    if isinstance(source, tf.__internal__.tracking.Trackable):
        root.resources = _resources(source)
    try:
        tf.saved_model.save(root, os.fspath(folder), signatures=signatures)
    except AssertionError as error:
        raise ConversionError(
            "TensorFlow cannot export the function alone, as it uses tables or other "
            "resources. Expected the tf.Module or model that owns them; give that. "
            f"Received: source of type {type(source).__name__}"
        ) from error
    except (TypeError, ValueError) as error:
        raise ConversionError(
            "TensorFlow cannot export the model. Expected functions whose inputs and "
            "outputs are tensors, the outputs in a flat dictionary or sequence. "
            f"Received: source of type {type(source).__name__}: {error}"
        ) from error


def _of_keras(model: Any) -> Any:
    """Returns the ConcreteFunction of a model's inference, results by name."""
    call = inference.inference_call(model)

    @tf.function(input_signature=_named(call.arguments, call.input_names))
    def serve(*tensors: Any) -> dict[str, tf.Tensor]:
        results = tf.nest.flatten(call.function(*tensors))
        names = call.output_names
        if len(names) != len(results):
            names = tuple(f"output_{index}" for index in range(len(results)))
        return dict(zip(names, results, strict=True))

    return serve.get_concrete_function()


def _named(arguments: Any, names: Sequence[str | None]) -> Any:
    """Gives a name to each leaf that has none: a signature's inputs need them."""
    named = [
        tf.TensorSpec(leaf.shape, leaf.dtype, name or f"input_{index}")
        for index, (leaf, name) in enumerate(
            zip(tf.nest.flatten(arguments), names, strict=True)
        )
    ]
    return tf.nest.pack_sequence_as(arguments, named)


def _signatures(source: Any) -> dict[str, Any]:
    """Returns key -> ConcreteFunction of something that isn't a Keras model."""
    if isinstance(source, tf.types.experimental.ConcreteFunction):
        return {_SERVING_DEFAULT: source}
    if isinstance(source, tf.types.experimental.GenericFunction):
        return {_SERVING_DEFAULT: _concrete(source)}
    if isinstance(getattr(source, "signatures", None), Mapping):
        return dict(source.signatures)
    found = {}
    for name in dir(type(source)):
        function = getattr(source, name, None)
        if isinstance(function, tf.types.experimental.GenericFunction):
            key = _SERVING_DEFAULT if name == "__call__" else name
            found[key] = _concrete(function)
    return found


def _concrete(function: Callable[..., Any]) -> Any:
    try:
        return function.get_concrete_function()  # type: ignore[attr-defined]
    except TypeError as error:
        raise ConversionError(
            "The function's inputs are unknown. Expected a tf.function with an "
            "`input_signature`, or what its `get_concrete_function` returns. "
            f"Received: {function}"
        ) from error


def _resources(owner: Any) -> list[Any]:
    """Returns the tables and assets that belong to an object."""
    from tensorflow.python.trackable import asset, resource

    return [
        found
        for found in tf.train.TrackableView(owner).descendants()
        if isinstance(found, (resource.CapturableResource, asset.Asset))
    ]
