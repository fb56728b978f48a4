"""`sort_by_execution_order`: every node after those that it takes from."""

from __future__ import annotations

from tfopt.transforms._base import Findings, GraphModel, transform


@transform(keeps_nodes=True)
def sort_by_execution_order(graph: GraphModel) -> Findings:
    """Writes every node after those that it takes from, in functions too.

    Minimal interpreters can then run the nodes one after the other. The way back in
    TF1's loops, from NextIteration to Merge, doesn't count. A graph that is in order
    stays as it is.

    Args:
        graph: The graph.

    Returns:
        `moved`: number of nodes whose place changed.
    """
    moved = 0
    for body in graph.bodies:
        ordered = {node.name: node for node in body.in_order()}
        moved += sum(a != b for a, b in zip(body.nodes, ordered, strict=True))
        body.nodes = ordered
        body.changed()
    return {"moved": moved}
