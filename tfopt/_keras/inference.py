"""How to call a model of either Keras for inference: its inputs by name."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfopt import _keras

# What Keras 3 calls a tensor that nobody named; the number depends on what else the
# process made before.
_AUTOMATIC_NAME = re.compile(r"keras_tensor(_\d+)?")


@dataclasses.dataclass(frozen=True)
class InferenceCall:
    """A model as a function of tensors.

    Attributes:
        function: Takes what `arguments` describes; dropout and the like are off.
        arguments: Positional arguments, each a structure of `tf.TensorSpec`.
        input_names: One per leaf of `arguments`, in the order of `tf.nest.flatten`;
            `None` for a leaf without a name of its own.
        output_names: One per leaf of the result, or empty where the model names
            none.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    input_names: tuple[str | None, ...]
    output_names: tuple[str, ...]


def inference_call(model: Any) -> InferenceCall:
    """Returns how to call a model.

    The batch size is free, except where a Functional model's `Input(batch_size=...)`
    fixes it.

    Args:
        model: A built model of either Keras, of any kind.

    Raises:
        TfoptError: `model` is no Keras model or has no weights yet.
        ValueError: A subclassed model whose inputs aren't known.

    Example:
        >>> inference_call(model).arguments
        (TensorSpec(shape=(None, 28, 28), dtype=tf.float32, name='image'),)
    """
    _keras.check_model(model)
    if _is_sequential(model):
        arguments = (_without_batch(_spec(model.inputs[0])),)
    elif _has_symbolic_inputs(model):
        arguments = (tf.nest.map_structure(_spec, model.input),)
    else:
        arguments = _recorded_arguments(model)
    return InferenceCall(
        function=lambda *tensors: model(*tensors, training=False),
        arguments=arguments,
        input_names=tuple(_given_name(spec) for spec in tf.nest.flatten(arguments)),
        output_names=_output_names(model),
    )


def _is_sequential(model: Any) -> bool:
    sequential = isinstance(model, _keras.module_of(model).Sequential)
    return sequential and bool(getattr(model, "inputs", None))


def _has_symbolic_inputs(model: Any) -> bool:
    return any(cls.__name__ == "Functional" for cls in type(model).__mro__) and bool(
        getattr(model, "inputs", None)
    )


def _spec(tensor: Any) -> tf.TensorSpec:
    # Both Keras versions name the tensor after its Input layer.
    name = tensor.name.split(":", 1)[0]
    return tf.TensorSpec(tensor.shape, tensor.dtype, name)


def _without_batch(spec: tf.TensorSpec) -> tf.TensorSpec:
    shape = tf.TensorShape(spec.shape)
    if shape.rank:
        shape = tf.TensorShape([None]).concatenate(shape[1:])
    return tf.TensorSpec(shape, spec.dtype, spec.name)


def _recorded_arguments(model: Any) -> tuple[Any, ...]:
    """Specs of the arguments that a subclassed model was called or built with."""
    if _keras.is_keras3(model):
        shapes = getattr(model, "_build_shapes_dict", None) or {}
        dtype = model.input_dtype
    else:
        recorded = model.save_spec()
        if recorded is not None:
            return tuple(_named_arguments(model, recorded[0]))
        shapes = {"input_shape": model._build_input_shape}
        dtype = model.compute_dtype
    arguments = [_specs_of_shapes(shape, dtype) for shape in shapes.values()]
    required = _required_arguments(model)
    if len(arguments) != len(required) or None in arguments:
        raise ValueError(
            "The inputs of the subclassed model are not known: Keras recorded shapes "
            f"of {len(arguments)} of its {len(required)} arguments ({required}). Give "
            "a tf.function with an `input_signature` that calls `model(..., "
            "training=False)` instead. "
            f"Received: model={model.name!r} ({type(model).__name__})"
        )
    return tuple(_named_arguments(model, arguments))


def _named_arguments(model: Any, arguments: list[Any]) -> list[Any]:
    """Names single tensors after the parameters of `call`, dictionary leaves not."""
    return [
        tf.TensorSpec(argument.shape, argument.dtype, name)
        if isinstance(argument, tf.TensorSpec)
        else argument
        for argument, name in zip(arguments, _parameters(model), strict=False)
    ]


def _parameters(model: Any) -> list[str]:
    names = inspect.signature(model.call).parameters
    return [name for name in names if name not in ("training", "mask", "self")]


def _required_arguments(model: Any) -> list[str]:
    parameters = inspect.signature(model.call).parameters
    return [
        name
        for name in _parameters(model)
        if parameters[name].default is inspect.Parameter.empty
        and parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]


def _specs_of_shapes(shape: Any, dtype: str) -> Any:
    if shape is None:
        return None
    if isinstance(shape, dict):
        return {key: _specs_of_shapes(value, dtype) for key, value in shape.items()}
    if isinstance(shape, tf.TensorShape) or all(
        size is None or isinstance(size, int) for size in shape
    ):
        return _without_batch(tf.TensorSpec(shape, dtype))
    return tuple(_specs_of_shapes(value, dtype) for value in shape)


def _given_name(spec: tf.TensorSpec) -> str | None:
    if spec.name is None or _AUTOMATIC_NAME.fullmatch(spec.name):
        return None
    return spec.name


def _output_names(model: Any) -> tuple[str, ...]:
    if _is_sequential(model):
        return (model.layers[-1].name,)
    if _has_symbolic_inputs(model):
        return tuple(model.output_names)
    return ()
