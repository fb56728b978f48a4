"""`remove_control_dependencies`: nodes wait only for what they take."""

from __future__ import annotations

from tfopt.transforms import _semantics
from tfopt.transforms._base import Findings, GraphModel, transform


@transform(keeps_nodes=True, commutes_with=("remove_device",))
def remove_control_dependencies(graph: GraphModel) -> Findings:
    """Removes control inputs that decide nothing.

    Assertions and prints that only control inputs hold in the graph go with them. Two
    kinds stay: waiting for what changes or reads state (and for what comes after it),
    since the order shows in the outputs, and whatever is in TF1's conditionals and
    loops, where control inputs say in which branch or iteration a node runs.

    Args:
        graph: The graph.

    Returns:
        `removed`: number of control inputs removed. `skipped`: nodes that kept some.
    """
    effects = _semantics.Effects(graph, harmless=_semantics.HARMLESS)
    removed = 0
    skipped = []
    for body in graph.bodies:
        if not any(body.controls(node) for node in body):
            continue
        needed = _semantics.decisive(body, effects)
        for node in body:
            old = body.controls(node)
            left = [name for name in old if name in needed]
            if left:
                reason = f"{len(left)} control inputs come after state or control flow"
                where = _semantics.place(body, node.name)
                skipped.append({"node": where, "reason": reason})
            if len(left) < len(old):
                body.set_inputs(node, body.inputs(node), left)
                removed += len(old) - len(left)
    return {"removed": removed, "skipped": skipped}
