"""`add_default_attributes`: writes out what attributes are by default."""

from __future__ import annotations

import functools
from typing import Any

from tfopt.savedmodel import protos
from tfopt.transforms import _ops
from tfopt.transforms._base import Findings, GraphModel, transform
from tfopt.transforms._semantics import place


@transform(keeps_nodes=True)
def add_default_attributes(graph: GraphModel) -> Findings:
    """Writes the defaults of attributes that nodes leave out.

    TensorFlow adds them when it loads a graph; other programs may need to read them.

    Args:
        graph: The graph.

    Returns:
        `added`: number of attributes. `skipped`: nodes of operations that this
        TensorFlow doesn't know.
    """
    added = 0
    skipped = []
    for body in graph.bodies:
        for node in body:
            if _ops.signature(node, graph.library) is None:
                reason = f"{node.op} is no operation that TensorFlow knows"
                skipped.append({"node": place(body, node.name), "reason": reason})
            elif node.op not in graph.functions:
                for name, value in _defaults(node.op):
                    if name not in node.attr:
                        node.attr[name].CopyFrom(value)
                        added += 1
    return {"added": added, "skipped": skipped}


@functools.cache
def _defaults(op: str) -> list[tuple[str, Any]]:
    """Returns the attributes of an operation that have a default, with it."""
    cls = protos.message_class("AttrValue")
    return [
        (attr.name, cls.FromString(attr.default_value.SerializeToString()))
        for attr in _ops.op_def(op).attr
        if attr.HasField("default_value")
    ]
