"""What is to be optimized, in a form that every step takes."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfopt import _keras, artifacts
from tfopt.conversion import _graphs, _noise
from tfopt.savedmodel import outside
from tfopt.types import ConversionError, TfoptError


def open_model(
    model: Any, *, inputs: Sequence[str], outputs: Sequence[str], folder: pathlib.Path
) -> Any:
    """Returns a Keras model, the path of a SavedModel, or a function.

    Args:
        model: A Keras model, a `.keras` or `.h5` file, a SavedModel directory, a
            `tf.function`, or a frozen graph: a GraphDef, or a `.pb` or `.pbtxt` file.
        inputs: Tensors of a frozen graph that callers feed, by default its
            placeholders.
        outputs: Tensors that they fetch, by default the only result that nothing else
            uses.
        folder: Where a frozen graph is kept as a SavedModel, which says what its inputs
            and outputs are, so that every step takes it: transforms, conversions, and
            training after `tfopt.lift`.

    Raises:
        ValueError: Names are missing, or given for a model that has them.
        TfoptError: The file is missing or cannot be read.
    """
    is_path = isinstance(model, (str, os.PathLike))
    if is_path and not pathlib.Path(model).exists():
        raise TfoptError(
            "No such model. Expected a .keras, .h5 or .pb file or a SavedModel "
            f"directory. Received: model={os.fspath(model)!r}"
        )
    if is_path:
        outside.check_file(model, "run")
    if _graphs.is_graph(model):
        return _saved_model(model, inputs, outputs, folder)
    if inputs or outputs:
        raise ValueError(
            "A model with signatures has named inputs and outputs already. Expected "
            "`inputs` and `outputs` for a frozen graph only. Received: "
            f"inputs={list(inputs)}, outputs={list(outputs)}"
        )
    if not is_path:
        return model
    path = pathlib.Path(model)
    return os.fspath(path) if path.is_dir() else _keras.load(path)


def _saved_model(
    model: Any, inputs: Sequence[str], outputs: Sequence[str], folder: pathlib.Path
) -> str:
    """Returns the path of a frozen graph as a SavedModel with a signature."""
    graph, fed, fetched = _read(model, inputs, outputs)
    names = [_key(name) for name in (*fed, *fetched)]
    content = graph.SerializeToString(deterministic=True)
    digest = hashlib.sha256(repr((names, fed, fetched)).encode() + content).hexdigest()
    path = folder / f"graph_{digest[:16]}"
    if path.exists():
        return os.fspath(path)
    function = _graphs.imported(
        _graphs.with_own_functions(graph), [*fed.values()], [*fetched.values()]
    )
    specs = [
        tf.TensorSpec(tensor.shape, tensor.dtype, _key(name))
        for name, tensor in zip(fed, function.inputs, strict=True)
    ]

    def frozen_graph(*tensors: Any) -> dict[str, Any]:
        found = _graphs.inlined(function, tensors)
        return {_key(name): value for name, value in zip(fetched, found, strict=True)}

    folder.mkdir(parents=True, exist_ok=True)
    with artifacts.atomic_path(path) as temporary, _noise.contained():
        try:
            traced = tf.function(frozen_graph, input_signature=specs)
            tf.saved_model.save(
                tf.Module(), os.fspath(temporary), traced.get_concrete_function()
            )
        except Exception as error:
            raise ConversionError(
                "TensorFlow cannot write the graph as a SavedModel. "
                f"Received: inputs={list(fed)}, outputs={list(fetched)} ({error})"
            ) from error
    return os.fspath(path)


def _read(
    model: Any, inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[Any, dict[str, str], dict[str, str]]:
    """Returns a GraphDef, and tensors by name of input and output."""
    try:
        return _graphs.read_graph(model, inputs, outputs)
    except ValueError as error:
        text = str(error)
        for theirs, ours in (("input_arrays", "inputs"), ("output_arrays", "outputs")):
            text = text.replace(theirs, ours)
        raise ValueError(text) from error


def _key(name: str) -> str:
    return name.removesuffix(":0").replace("/", "_").replace(":", "_")
