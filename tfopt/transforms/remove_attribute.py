"""`remove_attribute`: deletes an attribute of nodes."""

from __future__ import annotations

from tfopt.transforms._base import Findings, GraphModel, transform


@transform(keeps_nodes=True)
def remove_attribute(
    graph: GraphModel, *, attribute_name: str, op_name: str = "*"
) -> Findings:
    """Deletes an attribute of all nodes, or of those of one operation.

    Made for what an older TensorFlow doesn't know, and for notes such as `_class` or
    `_output_shapes`. A node that lacks an attribute without default cannot be loaded:
    the check after the transform finds that.

    Args:
        graph: The graph.
        attribute_name: The attribute.
        op_name: The operation; `"*"` for all.

    Returns:
        `removed`: number of nodes that had it.

    Raises:
        ValueError: `attribute_name` is empty.
    """
    if not attribute_name:
        raise ValueError(
            "Expected the name of an attribute. "
            f"Received: attribute_name={attribute_name!r}"
        )
    removed = 0
    for body in graph.bodies:
        for node in body:
            if op_name in ("*", node.op) and attribute_name in node.attr:
                del node.attr[attribute_name]
                removed += 1
    return {"removed": removed}
