"""What can be lifted, as a `Network`."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfopt.freezing import memory
from tfopt.lifting._network import Network
from tfopt.savedmodel import outside, reader
from tfopt.types import TfoptError

_GRAPH_SUFFIXES = (".pb", ".pbtxt")


def open_network(
    source: Any,
    *,
    signature_key: str | None,
    tags: Collection[str] | None,
    inputs: Sequence[str],
    outputs: Sequence[str],
    input_shapes: Mapping[str, Sequence[int | None]] | None,
) -> Network:
    """Reads and freezes a model.

    Args:
        source: As for `lift`.
        signature_key: Which signature of a SavedModel.
        tags: Tag set of a SavedModel.
        inputs: Names of a GraphDef's input tensors.
        outputs: Names of a GraphDef's output tensors.
        input_shapes: Shapes of inputs, by name, in place of the graph's.

    Raises:
        ValueError: Names are missing or don't belong there.
        TfoptError: The model cannot be read or frozen.
    """
    if _is_path(source):
        outside.check_file(source, "run", tags)
    graph_def = _graph_def(source)
    if graph_def is None:
        if inputs or outputs:
            raise ValueError(
                "A model with signatures has named inputs and outputs already. "
                "Expected `inputs` and `outputs` for a GraphDef only. Received: "
                f"inputs={list(inputs)}, outputs={list(outputs)}"
            )
        frozen = memory.frozen_graph(source, signature_key=signature_key, tags=tags)
        graph_def = tf.compat.v1.GraphDef.FromString(frozen.content)
        # Without any it was frozen before, and doesn't tell what they were.
        where, variables = frozen.where, frozen.variables or None
        feeds, fetches = frozen.inputs, frozen.outputs
    else:
        if not inputs or not outputs:
            raise ValueError(
                "A GraphDef doesn't say what its inputs and outputs are. Expected the "
                'names of tensors, such as inputs=["image"], outputs=["softmax"]. '
                f"Received: inputs={list(inputs)}, outputs={list(outputs)}"
            )
        where = os.fspath(source) if _is_path(source) else "the GraphDef"
        variables = None
        feeds, fetches = ({_key(name): name for name in x} for x in (inputs, outputs))
    _set_shapes(graph_def, feeds, input_shapes or {})
    return Network(graph_def, feeds, fetches, where=where, variables=variables)


def _is_path(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike))


def _key(name: str) -> str:
    return name.removesuffix(":0").replace("/", "_").replace(":", "_")


def _graph_def(source: Any) -> Any:
    """Returns a GraphDef, `None` for models of other kinds."""
    if isinstance(source, tf.compat.v1.GraphDef):
        copy = tf.compat.v1.GraphDef()
        copy.CopyFrom(source)
        return copy
    if isinstance(source, tf.Graph):
        return source.as_graph_def()
    if isinstance(source, bytes):
        from google.protobuf.message import DecodeError

        try:
            return tf.compat.v1.GraphDef.FromString(source)
        except DecodeError as error:
            raise TfoptError(
                "Cannot read the graph. Expected an undamaged GraphDef. "
                f"Received: source={len(source)} bytes ({error})"
            ) from error
    if _is_path(source) and pathlib.Path(source).suffix in _GRAPH_SUFFIXES:
        return reader.read_message(source, "GraphDef", cls=tf.compat.v1.GraphDef)
    return None


def _set_shapes(
    graph_def: Any,
    feeds: Mapping[str, str],
    shapes: Mapping[str, Sequence[int | None]],
) -> None:
    unknown = sorted(set(shapes) - set(feeds))
    if unknown:
        raise ValueError(
            f"There are no such inputs. Expected some of {sorted(feeds)}. "
            f"Received: input_shapes={dict(shapes)}"
        )
    nodes = {node.name: node for node in graph_def.node}
    for name, shape in shapes.items():
        node = nodes[feeds[name].split(":")[0]]
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(shape).as_proto())
