"""Any kind of model as one traced function of named, flat inputs and outputs."""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt._keras import foreign, inference, layer_names
from tfopt.conversion import _errors, _graphs
from tfopt.conversion._graphs import DEFAULT_KEY
from tfopt.savedmodel import outside
from tfopt.types import ConversionError, TfoptError

_LOGGER = logging.getLogger(__name__)
Shapes = Mapping[str, Sequence[int | None]]


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
        reference: Runs the model as TensorFlow loads it, where `function` is a form
            of it that was frozen before.
    """

    function: Any
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    signature_key: str
    owner: Any
    layers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reference: _graphs.Run | None = None

    @property
    def specs(self) -> dict[str, tf.TensorSpec]:
        """Type and shape of each input, by name."""
        specs = self.function.structured_input_signature[0]
        return dict(zip(self.input_names, specs, strict=True))

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs for one batch, both by name."""
        if self.reference is not None:
            return self.reference(inputs)
        tensors = [
            tf.constant(inputs[name], spec.dtype) for name, spec in self.specs.items()
        ]
        results = self.function(*tensors)
        return {
            name: value.numpy()
            for name, value in zip(self.output_names, results, strict=True)
        }


def open_source(
    model: Any,
    signature_key: str | None = None,
    *,
    tags: Collection[str] | None = None,
    input_arrays: Sequence[str] = (),
    output_arrays: Sequence[str] = (),
    input_shapes: Shapes | None = None,
) -> Source:
    """Traces a model for inference.

    Args:
        model: A Keras model, a `tf.function`, a concrete function, a frozen GraphDef or
            `tf.Graph`, or the path of a SavedModel directory, `.keras`, `.h5`, `.pb` or
            `.pbtxt` file.
        signature_key: Which signature of a SavedModel; for other models, the key
            that the file gets.
        tags: Tag set of a SavedModel's graph.
        input_arrays: Inputs of a graph, by default its placeholders.
        output_arrays: Outputs of a graph, by default the one that is clear.
        input_shapes: Shapes of inputs, by name, in place of the model's freer ones.

    Raises:
        ValueError: The kind of model is not one of these, its inputs are not known,
            there is no such signature, or an option is for another kind.
        ConversionError: The model cannot be traced.
    """
    shapes = dict(input_shapes or {})
    is_graph = _graphs.is_graph(model)
    if not is_graph and (input_arrays or output_arrays):
        raise ValueError(
            "`input_arrays` and `output_arrays` are for graphs; other models have "
            f"inputs and outputs of their own. Received: {list(input_arrays)} and "
            f"{list(output_arrays)} for {_kind(model)}"
        )
    is_path = isinstance(model, (str, os.PathLike))
    if tags is not None and not (is_path and pathlib.Path(model).is_dir()):
        raise ValueError(
            f"Only a SavedModel has tags. Received: {tags!r} for {_kind(model)}"
        )
    if is_graph:
        if is_path:
            outside.check_file(model, "convert")
        found = _graphs.read_graph(model, input_arrays, output_arrays)
        return _from_graph(*found, signature_key or DEFAULT_KEY, shapes)
    if is_path:
        outside.check_file(model, "convert", tags)
        with foreign.plain(pathlib.Path(model)) as path:
            if path.is_dir():
                return _from_saved_model(path, signature_key, tags, shapes)
            model = _keras.load(path)
    key = signature_key or DEFAULT_KEY
    if _keras.is_model(model):
        return _from_keras(model, key, shapes)
    if hasattr(model, "structured_input_signature"):
        return _from_concrete_function(model, key, model, shapes)
    if hasattr(model, "get_concrete_function"):
        return _from_concrete_function(_only_trace(model), key, model, shapes)
    raise ValueError(
        "Cannot convert this kind of model. Expected a Keras model, a tf.function, a "
        "concrete function, a GraphDef, or the path of a SavedModel directory, "
        f"`.keras`, `.h5`, `.pb` or `.pbtxt` file. Received: {_kind(model)}"
    )


def _kind(model: Any) -> str:
    return f"{type(model).__module__}.{type(model).__name__}"


def _from_keras(model: Any, key: str, shapes: Shapes) -> Source:
    call = inference.inference_call(model)
    return _trace(
        call.function,
        call.arguments,
        call.input_names,
        call.output_names,
        key=key,
        owner=model,
        shapes=shapes,
    )


def _from_concrete_function(
    function: Any, key: str, owner: Any, shapes: Shapes
) -> Source:
    if function.structured_input_signature is None:  # of `wrap_function`'s `prune`
        own = function.inputs[: len(function.inputs) - len(function.captured_inputs)]
        given = tuple(tf.TensorSpec(x.shape, x.dtype, x.op.name) for x in own)
        names = [spec.name for spec in given]
        return _trace(
            function, given, names, (), key=key, owner=(function, owner), shapes=shapes
        )
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
    return _trace(
        call, tuple(specs), names, (), key=key, owner=(function, owner), shapes=shapes
    )


def _from_graph(
    graph: Any,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    key: str,
    shapes: Shapes,
) -> Source:
    _check_names(inputs, shapes)
    _graphs.set_shapes(graph, inputs, shapes)
    graph = _graphs.with_own_functions(graph)
    function = _graphs.imported(graph, [*inputs.values()], [*outputs.values()])
    specs = tuple(
        tf.TensorSpec(tensor.shape, tensor.dtype, name)
        for name, tensor in zip(inputs, function.inputs, strict=True)
    )
    return _trace(
        lambda *tensors: _graphs.inlined(function, tensors),
        specs,
        list(inputs),
        list(outputs),
        key=key,
        owner=function,
        shapes={},
    )


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


def _from_saved_model(
    path: pathlib.Path,
    signature_key: str | None,
    tags: Collection[str] | None,
    shapes: Shapes,
) -> Source:
    keys = _graphs.signature_keys(path, tags)
    key = _graphs.chosen_key(path, keys, signature_key)
    source = None
    try:
        found = _graphs.frozen_signature(path, key, tags)
        if found is not None:
            source = _from_graph(*found, key, shapes)
    except TfoptError as error:
        # TensorFlow's own way manages, or says why.
        _LOGGER.debug("not frozen by tfopt: %s", error)
    if source is None:
        function, owner = _graphs.loaded(path, tags, key)
        return _from_concrete_function(function, key, owner, shapes)
    try:
        reference = _graphs.runner(*_graphs.loaded(path, tags, key))
    except TfoptError:
        return source  # of a kind that only sessions can run
    return dataclasses.replace(source, reference=reference)


def _trace(
    call: Callable[..., Any],
    arguments: tuple[Any, ...],
    input_names: Sequence[str | None],
    output_names: Sequence[str],
    *,
    key: str,
    owner: Any,
    shapes: Shapes,
) -> Source:
    leaves = tf.nest.flatten(arguments)
    names = _unique(
        [
            path if path is not None else name
            for path, name in zip(
                _leaf_names(_single(arguments)), input_names, strict=True
            )
        ],
        "input",
    )
    _check_names(names, shapes)
    leaves = [
        _narrowed(leaf, name, shapes) for leaf, name in zip(leaves, names, strict=True)
    ]
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
        input_names=names,
        output_names=_unique(
            [path or name for path, name in zip(paths, own, strict=True)], "output"
        ),
        signature_key=key,
        owner=owner,
        layers=layers,
    )


def _check_names(names: Collection[str], shapes: Shapes) -> None:
    unknown = sorted({*shapes} - {*names})
    if unknown:
        raise ValueError(
            f"There are no such inputs. Expected some of {list(names)}. "
            f"Received: input_shapes={dict(shapes)}"
        )


def _narrowed(spec: Any, name: str, shapes: Shapes) -> Any:
    """Returns a spec with the shape that was asked for."""
    if name not in shapes:
        return spec
    shape = tf.TensorShape(shapes[name])
    if not isinstance(spec, tf.TensorSpec) or not spec.shape.is_compatible_with(shape):
        raise ValueError(
            f"The shape does not fit the model's input {name!r}, which is {spec}. "
            f"Received: input_shapes={dict(shapes)}"
        )
    return tf.TensorSpec(shape, spec.dtype, spec.name)


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
