"""`rename_attribute`: gives an attribute of nodes another name."""

from __future__ import annotations

from tfopt.transforms._base import Findings, GraphModel, transform
from tfopt.transforms._semantics import place


@transform(keeps_nodes=True)
def rename_attribute(
    graph: GraphModel,
    *,
    old_attribute_name: str,
    new_attribute_name: str,
    op_name: str = "*",
) -> Findings:
    """Gives an attribute of all nodes, or of those of one operation, another name.

    Args:
        graph: The graph.
        old_attribute_name: Its present name.
        new_attribute_name: Its name afterwards.
        op_name: The operation; `"*"` for all.

    Returns:
        `renamed`: number of nodes that had it. `skipped`: those that have an attribute
        of the new name already.

    Raises:
        ValueError: A name is empty.
    """
    for name, value in (
        ("old_attribute_name", old_attribute_name),
        ("new_attribute_name", new_attribute_name),
    ):
        if not value:
            raise ValueError(
                f"Expected the name of an attribute. Received: {name}={value!r}"
            )
    renamed = 0
    skipped = []
    for body in graph.bodies:
        for node in body:
            if op_name not in ("*", node.op) or old_attribute_name not in node.attr:
                continue
            if old_attribute_name == new_attribute_name:
                continue
            if new_attribute_name in node.attr:
                reason = f"has an attribute {new_attribute_name!r} already"
                skipped.append({"node": place(body, node.name), "reason": reason})
                continue
            node.attr[new_attribute_name].CopyFrom(node.attr[old_attribute_name])
            del node.attr[old_attribute_name]
            renamed += 1
    return {"renamed": renamed, "skipped": skipped}
