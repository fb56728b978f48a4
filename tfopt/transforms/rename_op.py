"""`rename_op`: gives all nodes of one operation another operation."""

from __future__ import annotations

from typing import Any

from tfopt.transforms import _ops
from tfopt.transforms._base import Findings, GraphModel, transform
from tfopt.transforms._graph import Body
from tfopt.types import TfoptError


@transform(keeps_nodes=True)
def rename_op(graph: GraphModel, *, old_op_name: str, new_op_name: str) -> Findings:
    """Gives all nodes of one operation another operation, such as its next version.

    Attributes stay as they are; `rename_attribute` and `remove_attribute` adapt them.

    Args:
        graph: The graph.
        old_op_name: The present operation, or function that is called by its name.
        new_op_name: The operation afterwards.

    Returns:
        `renamed`: number of nodes.

    Raises:
        ValueError: A name is empty.
        TfoptError: A function takes an output by a name that the new operation, which
            TensorFlow knows, doesn't have.
    """
    for name, value in (("old_op_name", old_op_name), ("new_op_name", new_op_name)):
        if not value:
            raise ValueError(
                f"Expected the name of an operation. Received: {name}={value!r}"
            )
    found = {
        body.name: [node for node in body if node.op == old_op_name]
        for body in graph.bodies
    }
    for body in graph.bodies:
        if body.function is not None:
            for node in found[body.name]:
                _check_outputs(graph, body, node, new_op_name)
        for node in found[body.name]:
            node.op = new_op_name
        body.changed()
    return {"renamed": sum(map(len, found.values()))}


def _check_outputs(graph: GraphModel, body: Body, node: Any, op: str) -> None:
    """Raises if the outputs that a function takes would have other names.

    A function writes them by name, so nothing would take them.
    """
    changed = type(node)()
    changed.CopyFrom(node)
    changed.op = op
    if _ops.signature(changed, graph.library) is None:
        return
    before = _names(node, graph)
    after = _names(changed, graph)
    if before != after[: len(before)]:
        raise TfoptError(
            "The operations' outputs have different names, by which a function takes "
            "them. Expected operations with the same outputs. Received: "
            f"old_op_name={node.op!r} with {before}, new_op_name={op!r} with {after} "
            f"({body.name}/{node.name})"
        )


def _names(node: Any, graph: GraphModel) -> list[str]:
    return [name for name, _ in _ops.output_counts(node, graph.library)]
