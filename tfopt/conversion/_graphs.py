"""Models that come as graphs: SavedModels and frozen GraphDefs."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.conversion import _errors
from tfopt.freezing import memory
from tfopt.savedmodel import reader
from tfopt.types import ConversionError, TfoptError

SUFFIXES = (".pb", ".pbtxt")
DEFAULT_KEY = "serving_default"
_INPUTS = ("Placeholder", "PlaceholderWithDefault")
# What a graph ends with besides its results.
_NO_RESULTS = ("NoOp", "Assert", "Print", "PrintV2", "Const", *_INPUTS)
# Nodes whose value is not in the graph.
_STATE = (
    *("VarHandleOp", "Variable", "VariableV2", "AutoReloadVariable"),
    *("HashTable", "HashTableV2", "MutableHashTable", "MutableHashTableV2"),
    *("MutableDenseHashTableV2", "AnonymousHashTable"),
)
Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def signature_keys(path: pathlib.Path, tags: Collection[str] | None) -> tuple[str, ...]:
    """Returns the keys of a SavedModel's signatures for inference.

    Raises:
        TfoptError: It cannot be read, or has no graph of these tags.
    """
    where = os.fspath(path)
    try:
        saved_model = reader.read_saved_model(path)
    except TfoptError as error:
        raise TfoptError(
            "Cannot load the SavedModel. Expected a directory with `saved_model.pb` "
            f"and its variables. Received: {where!r} ({_errors.condense(error)})"
        ) from error
    meta_graph = reader.select_meta_graph(saved_model, tags, where)
    return tuple(sorted(reader.select_signatures(meta_graph, None, where)))


def chosen_key(path: pathlib.Path, keys: Sequence[str], wanted: str | None) -> str:
    """Returns the signature that was asked for, or the only or usual one.

    Raises:
        ValueError: There is no such signature.
    """
    key = wanted
    if key is None:
        key = keys[0] if len(keys) == 1 else DEFAULT_KEY
    if key not in keys:
        raise ValueError(
            f"No such signature in {os.fspath(path)!r}. Expected `signature_key` to "
            f"be one of {sorted(keys)}. Received: signature_key={key!r}"
        )
    return key


def frozen_signature(
    path: pathlib.Path, key: str, tags: Collection[str] | None
) -> tuple[Any, dict[str, str], dict[str, str]] | None:
    """Freezes one signature of a SavedModel by `tfopt.freezing`.

    TensorFlow's own freezing fails on embeddings in loops and branches, on reference
    variables of TF1, and on gathers with batch dimensions; this doesn't.

    Returns:
        GraphDef, and tensors by name of input and output; `None` if the graph is not
        complete without what initialises tables or variables.

    Raises:
        TfoptError: It cannot be frozen.
    """
    try:
        frozen = memory.frozen_graph(path, signature_key=key, tags=tags)
    except (TfoptError, MemoryError):
        raise
    except Exception as error:  # of TensorFlow, which inlines functions
        raise ConversionError(
            f"Cannot freeze the model: {_errors.condense(error)}"
        ) from error
    graph = tf.compat.v1.GraphDef.FromString(frozen.content)
    if any(node.op in _STATE for node in _all_nodes(graph)):
        return None
    return graph, frozen.inputs, frozen.outputs


def is_graph(model: Any) -> bool:
    """Returns whether a model is a GraphDef, a graph, or a file of one."""
    if isinstance(model, (tf.compat.v1.GraphDef, tf.Graph)):
        return True
    is_path = isinstance(model, (str, os.PathLike))
    return is_path and pathlib.Path(model).suffix in SUFFIXES


def read_graph(
    model: Any, input_arrays: Sequence[str], output_arrays: Sequence[str]
) -> tuple[Any, dict[str, str], dict[str, str]]:
    """Returns a frozen GraphDef, and tensors by name of input and output.

    Args:
        model: The GraphDef, a `tf.Graph`, or a `.pb` or `.pbtxt` file.
        input_arrays: Nodes (`"x"`) or tensors (`"x:0"`); by default all placeholders.
        output_arrays: Likewise; by default the one result that nothing else uses.

    Raises:
        TfoptError: The file cannot be read.
        ValueError: There are no such nodes, or outputs are not clear.
        ConversionError: The graph has variables.
    """
    graph = model
    if isinstance(model, tf.Graph):
        graph = model.as_graph_def()
    elif not isinstance(model, tf.compat.v1.GraphDef):
        message = reader.read_message(pathlib.Path(model), "GraphDef")
        graph = tf.compat.v1.GraphDef.FromString(message.SerializeToString())
    stateful = [node for node in _all_nodes(graph) if node.op in _STATE]
    if stateful:
        raise ConversionError(
            "The graph has variables or tables, whose values it doesn't hold. Freeze "
            "it first (`tfopt.freeze` with its checkpoint). Received: "
            f"{stateful[0].op} {stateful[0].name!r} and {len(stateful) - 1} more"
        )
    nodes = {node.name: node for node in graph.node}
    outputs = list(output_arrays) or _default_outputs(graph)
    inputs = list(input_arrays) or [
        node.name for node in graph.node if node.op in _INPUTS
    ]
    for argument, names in (("input_arrays", inputs), ("output_arrays", outputs)):
        unknown = [name for name in names if name.split(":")[0] not in nodes]
        if unknown or len({*names}) != len(names):
            raise ValueError(
                "Expected different names of nodes of the graph, such as "
                f"{list(nodes)[:3]}. Received: {argument}={names!r}"
            )
    return graph, _tensors(inputs), _tensors(outputs)


def imported(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """Returns a GraphDef as a function of tensors in order to a list of tensors.

    Args:
        graph: Its functions have names that no other graph in this process has, see
            `with_own_functions`.
        inputs: Names of tensors.
        outputs: Names of tensors.

    Raises:
        ConversionError: TensorFlow refuses the graph.
    """
    try:
        wrapped = tf.compat.v1.wrap_function(
            lambda: tf.graph_util.import_graph_def(graph, name=""), []
        )
        return wrapped.prune(list(inputs), list(outputs))
    except Exception as error:
        raise ConversionError(
            "TensorFlow cannot import the graph with these inputs and outputs: "
            f"{_errors.condense(error)}. Received: inputs={list(inputs)}, "
            f"outputs={list(outputs)}"
        ) from error


def inlined(function: Any, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Puts the nodes of an imported function into the graph that is being traced.

    A call of it would stay one node, whose layers could not be told apart.
    """
    definition = function.graph.as_graph_def()
    # Nodes keep their names, which are the layers', unless the trace has them itself.
    graph = tf.compat.v1.get_default_graph()
    taken = {operation.name for operation in graph.get_operations()}
    taken |= {f"output_{number}" for number in range(len(function.outputs))}
    clash = any(node.name in taken for node in definition.node)
    return tf.graph_util.import_graph_def(
        definition,
        input_map={
            given.name: tensor
            for given, tensor in zip(function.inputs, tensors, strict=True)
        },
        return_elements=[output.name for output in function.outputs],
        name="model" if clash else "",
    )


def with_own_functions(graph: Any) -> Any:
    """Returns a GraphDef whose functions have names that depend on all they do.

    TensorFlow keeps functions by name for the whole process, where those of the model
    that was frozen may still be.
    """
    if not graph.library.function:
        return graph
    content = graph.library.SerializeToString(deterministic=True)
    suffix = "_" + hashlib.sha256(content).hexdigest()[:12]
    names = {function.signature.name for function in graph.library.function}
    renamed = tf.compat.v1.GraphDef()
    renamed.CopyFrom(graph)
    for function in renamed.library.function:
        function.signature.name += suffix
    for gradient in renamed.library.gradient:
        gradient.function_name += suffix
        gradient.gradient_func += suffix
    for node in _all_nodes(renamed):
        if node.op in names:
            node.op += suffix
        for value in node.attr.values():
            for called in (value.func, *value.list.func):
                if called.name in names:
                    called.name += suffix
    return renamed


def set_shapes(
    graph: Any, inputs: Mapping[str, str], shapes: Mapping[str, Sequence[int | None]]
) -> None:
    """Gives placeholders of a GraphDef other shapes, by name of the input."""
    nodes = {node.name: node for node in graph.node}
    for name, shape in shapes.items():
        node = nodes[inputs[name].split(":")[0]]
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(shape).as_proto())
        # Written by Grappler; the sizes in it are those from before.
        node.attr.pop("_output_shapes", None)


def loaded(
    path: pathlib.Path, tags: Collection[str] | None, key: str
) -> tuple[Any, Any]:
    """Returns a signature of a SavedModel as TensorFlow loads it, and its owner.

    Raises:
        TfoptError: TensorFlow cannot load it.
    """
    try:
        owner = tf.saved_model.load(os.fspath(path), None if tags is None else [*tags])
        function = owner.signatures[key]
    except Exception as error:
        raise TfoptError(
            "TensorFlow cannot load the SavedModel. "
            f"Received: {os.fspath(path)!r} ({_errors.condense(error)})"
        ) from error
    return function, owner


def runner(function: Any, owner: Any) -> Run:
    """Returns a loaded signature as a function of arrays by name.

    Args:
        function: The signature.
        owner: What it was loaded with; functions refer to variables weakly.
    """
    return functools.partial(_run_loaded, function, owner)


def _run_loaded(
    function: Any, _owner: Any, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    given = {
        name: tf.constant(inputs[name], spec.dtype)
        for name, spec in function.structured_input_signature[1].items()
    }
    return {name: value.numpy() for name, value in function(**given).items()}


def _all_nodes(graph: Any) -> list[Any]:
    bodies = [function.node_def for function in graph.library.function]
    return [node for nodes in (graph.node, *bodies) for node in nodes]


def _tensors(names: Sequence[str]) -> dict[str, str]:
    """Name of input or output -> tensor; the name is the node's."""
    return {
        name.removesuffix(":0"): name if ":" in name else f"{name}:0" for name in names
    }


def _default_outputs(graph: Any) -> list[str]:
    used = {
        name.removeprefix("^").split(":")[0]
        for node in graph.node
        for name in node.input
    }
    found = [
        node.name
        for node in graph.node
        if node.name not in used and node.op not in _NO_RESULTS
    ]
    if len(found) != 1:
        raise ValueError(
            "It is not clear what the graph's outputs are. Expected `output_arrays`, "
            f"names of nodes, such as some of {found[-5:]}, which nothing in the graph "
            "uses. Received: output_arrays=()"
        )
    return found
