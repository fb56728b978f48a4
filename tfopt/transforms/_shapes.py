"""Shapes that are known before a graph runs, by TensorFlow's shape inference."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfopt.savedmodel import dtypes, protos
from tfopt.transforms import _constants, _evaluation, _ops, _semantics
from tfopt.transforms._graph import GraphModel

_ASKING = frozenset({"Rank", "Shape", "Size"})


def fold_shapes(graph: GraphModel) -> int:
    """Makes constants of `Shape`, `Size` and `Rank` of tensors of known shape.

    In the graph itself, not in functions, whose arguments may have any shape; and not
    if it has TF1's control flow, where a node may have to be dead.

    Returns:
        The number of nodes.
    """
    body = graph.main
    asking = [
        node
        for node in body
        if node.op in _ASKING and node.name not in _semantics.fed(graph, body)
    ]
    if not asking or not _is_worth_it(graph, asking):
        return 0
    shapes = _infer(graph)
    if shapes is None:
        return 0
    folded = 0
    for node in asking:
        tensor = body.input(node, 0)
        shape = shapes.shape_of(tensor.node, int(tensor.output))
        if shape is None or (node.op != "Rank" and None in shape):
            continue
        value: Any = shape
        if node.op == "Rank":
            value = len(shape)
        elif node.op == "Size":
            value = np.prod([size or 0 for size in shape], dtype=np.int64)
        number = dtypes.INT32 if node.op == "Rank" else _ops.get(node, "out_type")
        dtype = dtypes.to_numpy(number or dtypes.INT32)
        proto = _constants.to_proto(np.array(value, dtype))
        body.set_inputs(node, [])
        node.op = "Const"
        node.attr.clear()
        _ops.set_attributes(node, value=proto, dtype=_ops.Type(proto.dtype))
        folded += 1
    return folded


def _is_worth_it(graph: GraphModel, asking: list[Any]) -> bool:
    """Whether anything may be known: with a free batch size only ranks are, mostly."""
    if any(node.op in _semantics.CONTROL_FLOW for node in graph.main):
        return False
    if any(node.op == "Rank" for node in asking):
        return True
    inputs = [node for node in graph.main if node.op == "Placeholder"]
    return all(None not in (_ops.get(n, "shape") or (None,)) for n in inputs)


class _Shapes:
    """The graph as TensorFlow has loaded it."""

    def __init__(self, graph: Any):
        self._graph = graph

    def shape_of(self, node: str, output: int) -> tuple[int | None, ...] | None:
        """Returns a tensor's sizes, `None` where free; `None` for any shape."""
        shape = self._graph.get_operation_by_name(node).outputs[output].shape
        return None if shape.rank is None else tuple(shape.as_list())


def _infer(graph: GraphModel) -> _Shapes | None:
    """Returns the shapes of the graph's tensors; `None` if it cannot be loaded.

    Without the values of large constants, and without what inputs were before they
    were fed.
    """
    import tensorflow as tf

    message = protos.message_class("GraphDef")()
    message.versions.CopyFrom(graph.versions)
    fed = _semantics.fed(graph, graph.main)
    for node in graph.main:
        types = _ops.output_types(node, graph.library)
        if types is None or node.op in graph.functions:
            return None
        if node.name in fed and node.op != "Placeholder":
            if len(types) != 1:
                return None
            blank = message.node.add(name=node.name, op="Placeholder")
            blank.attr["dtype"].type = types[0]
            continue
        refs = [ref for ref in node.input if not ref.startswith("^")]
        _evaluation.add_copy(message, node, node.name, refs)
    graph_def = tf.compat.v1.GraphDef.FromString(message.SerializeToString())
    loaded = tf.Graph()
    try:
        with loaded.as_default():
            tf.import_graph_def(graph_def, name="")
    except (ValueError, tf.errors.OpError):
        # Shapes that don't fit, say: whoever runs the graph will be told.
        return None
    return _Shapes(loaded)
