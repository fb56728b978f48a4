"""Any kind of model as one traced function of named, flat inputs and outputs."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt._keras import foreign, inference, layer_names
from tfopt.conversion import _errors
from tfopt.types import ConversionError, TfoptError

DEFAULT_KEY = "serving_default"


@dataclasses.dataclass(frozen=True)
class Source:
    """A traced inference function.

    Attributes:
        function: Concrete function; takes the inputs in order, returns a list of
            the outputs in order. The placeholders are named `input_0`, ..., the
            results `output_0`, ...
        input_names: The model's own names.
        output_names: The model's own names.
        signature_key: Key for the file.
        owner: The model; kept because functions refer to variables weakly.
        layers: Node of the function's graph -> layer of the Keras model that made it.
    """

    function: Any
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    signature_key: str
    owner: Any
    layers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def specs(self) -> dict[str, tf.TensorSpec]:
        """Type and shape of each input, by name."""
        specs = self.function.structured_input_signature[0]
        return dict(zip(self.input_names, specs, strict=True))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs for one batch, both by name."""
        tensors = [
            tf.constant(inputs[name], spec.dtype) for name, spec in self.specs.items()
        ]
        results = self.function(*tensors)
        return {
            name: value.numpy()
            for name, value in zip(self.output_names, results, strict=True)
        }


def open_source(model: Any, signature_key: str | None) -> Source:
    """Traces a model for inference.

    Args:
        model: A Keras model, a `tf.function`, a concrete function, or the path of a
            SavedModel directory, `.keras` or `.h5` file.
        signature_key: Which signature of a SavedModel; for other models, the key
            that the file gets.

    Raises:
        ValueError: The kind of model is not one of these, its inputs are not known,
            or there is no such signature.
        ConversionError: The model cannot be traced.
    """
    if isinstance(model, (str, os.PathLike)):
        with foreign.plain(pathlib.Path(model)) as path:
            if path.is_dir():
                return _from_saved_model(path, signature_key)
            model = _keras.load(path)
    key = signature_key or DEFAULT_KEY
    if _keras.is_model(model):
        return _from_keras(model, key)
    if hasattr(model, "structured_input_signature"):
        return _from_concrete_function(model, key, model)
    if hasattr(model, "get_concrete_function"):
        return _from_concrete_function(_only_trace(model), key, model)
    raise ValueError(
        "Cannot convert this kind of model. Expected a Keras model, a tf.function, a "
        "concrete function, or the path of a SavedModel directory, `.keras` or `.h5` "
        f"file. Received: {type(model).__module__}.{type(model).__name__}"
    )


def _from_keras(model: Any, key: str) -> Source:
    call = inference.inference_call(model)
    return _trace(
        call.function,
        call.arguments,
        call.input_names,
        call.output_names,
        key=key,
        owner=model,
    )


def _from_concrete_function(function: Any, key: str, owner: Any) -> Source:
    args, kwargs = function.structured_input_signature
    leaves = tf.nest.flatten((args, kwargs))
    is_tensor = [isinstance(leaf, tf.TypeSpec) for leaf in leaves]
    specs = [leaf for leaf in leaves if isinstance(leaf, tf.TypeSpec)]
    _check_specs(specs)

    def call(*tensors: tf.Tensor) -> Any:
        given = iter(tensors)
        # Python values that were bound when the function was traced stay.
        values = [
            next(given) if tensor else leaf
            for leaf, tensor in zip(leaves, is_tensor, strict=True)
        ]
        args_, kwargs_ = tf.nest.pack_sequence_as((args, kwargs), values)
        return function(*args_, **kwargs_)

    names = [spec.name for spec in specs]
    return _trace(call, tuple(specs), names, (), key=key, owner=(function, owner))


def _only_trace(function: Any) -> Any:
    if function.function_spec.input_signature is None:
        raise ValueError(
            "The tf.function has no input signature. Give it one, "
            "`tf.function(f, input_signature=[tf.TensorSpec(...)])`, or pass "
            "`f.get_concrete_function(tf.TensorSpec(...))`. "
            f"Received: {getattr(function, '__name__', function)}"
        )
    try:
        return function.get_concrete_function()
    except Exception as error:
        raise _cannot_trace(error) from error


def _cannot_trace(error: Exception) -> ConversionError:
    return ConversionError(
        f"Cannot trace the model for inference: {_errors.condense(error)}"
    )


def _from_saved_model(path: pathlib.Path, signature_key: str | None) -> Source:
    try:
        loaded = tf.saved_model.load(os.fspath(path))
    except Exception as error:
        raise TfoptError(
            "Cannot load the SavedModel. Expected a directory with `saved_model.pb` "
            f"and its variables. Received: {os.fspath(path)!r} "
            f"({_errors.condense(error)})"
        ) from error
    signatures = dict(loaded.signatures)
    key = signature_key
    if key is None:
        key = next(iter(signatures)) if len(signatures) == 1 else DEFAULT_KEY
    if key not in signatures:
        raise ValueError(
            f"No such signature in {os.fspath(path)!r}. Expected `signature_key` to "
            f"be one of {sorted(signatures)}. Received: signature_key={key!r}"
        )
    return _from_concrete_function(signatures[key], key, loaded)


def _trace(
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    input_names: Sequence[str | None],
    output_names: Sequence[str],
    *,
    key: str,
    owner: Any,
) -> Source:
    leaves = tf.nest.flatten(arguments)
    _check_specs(leaves)
    specs = [
        tf.TensorSpec(leaf.shape, leaf.dtype, f"input_{position}")
        for position, leaf in enumerate(leaves)
    ]
    paths: list[str | None] = []
    layers: dict[str, str] = {}

    def inference_function(*tensors: tf.Tensor) -> list[tf.Tensor]:
        with layer_names.recorded(owner) as nodes:
            results = call(*tf.nest.pack_sequence_as(arguments, tensors))
        layers.update(nodes)
        paths[:] = _leaf_names(results)
        return [
            tf.identity(value, f"output_{position}")
            for position, value in enumerate(tf.nest.flatten(results))
        ]

    try:
        function = tf.function(
            inference_function, input_signature=specs
        ).get_concrete_function()
    except Exception as error:
        raise _cannot_trace(error) from error
    if not paths:
        raise ConversionError(
            "The model returns nothing. Expected at least one tensor. "
            f"Received inputs: {leaves}"
        )
    # Keys of the result say more than names of layers.
    own = output_names if len(output_names) == len(paths) else [None] * len(paths)
    return Source(
        function=function,
        input_names=_unique(
            [
                path if path is not None else name
                for path, name in zip(
                    _leaf_names(_single(arguments)), input_names, strict=True
                )
            ],
            "input",
        ),
        output_names=_unique(
            [path or name for path, name in zip(paths, own, strict=True)], "output"
        ),
        signature_key=key,
        owner=owner,
        layers=layers,
    )


def _check_specs(specs: Sequence[Any]) -> None:
    if not all(isinstance(spec, tf.TensorSpec) for spec in specs):
        raise ConversionError(
            "TFLite files take plain tensors only. Convert ragged or sparse inputs to "
            f"dense ones inside the model. Received inputs: {specs}"
        )
    if any(spec.shape.rank is None for spec in specs):
        raise ConversionError(
            "TFLite files need to know how many axes each input has. Give the "
            f"function a signature with shapes. Received inputs: {specs}"
        )


def _single(arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if len(arguments) == 1 else arguments


def _leaf_names(structure: Any) -> list[str | None]:
    """Dictionary keys on the way to each leaf, in the order of `tf.nest.flatten`."""
    if isinstance(structure, Mapping):
        items = sorted(structure.items())
    elif isinstance(structure, tuple) and hasattr(structure, "_fields"):
        items = list(zip(structure._fields, structure, strict=True))
    elif isinstance(structure, (list, tuple)):
        return [name for item in structure for name in _leaf_names(item)]
    else:
        return [None]
    return [
        f"{key}/{name}" if name else str(key)
        for key, value in items
        for name in _leaf_names(value)
    ]


def _unique(names: Sequence[str | None], fallback: str) -> tuple[str, ...]:
    found: list[str] = []
    for position, name in enumerate(names):
        name = name or f"{fallback}_{position}"
        choice, number = name, 0
        while choice in found:
            number += 1
            choice = f"{name}_{number}"
        found.append(choice)
    return tuple(found)
