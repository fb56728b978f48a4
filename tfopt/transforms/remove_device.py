"""`remove_device`: forgets the devices that nodes were assigned to."""

from __future__ import annotations

from tfopt.transforms._base import Findings, GraphModel, transform


@transform(keeps_nodes=True, commutes_with=("remove_control_dependencies",))
def remove_device(graph: GraphModel) -> Findings:
    """Forgets the devices that nodes were assigned to.

    Args:
        graph: The graph.

    Returns:
        `cleared`: number of nodes that had a device.
    """
    cleared = 0
    for body in graph.bodies:
        for node in body:
            cleared += bool(node.device)
            node.device = ""
    return {"cleared": cleared}
