"""`set_device`: assigns nodes to a device."""

from __future__ import annotations

import re

from tfopt.transforms._base import Findings, GraphModel, transform

_DEVICE = re.compile(r"(/(job|replica|task|device|cpu|gpu|tpu):[\w:*.-]+)+", re.I)


@transform(keeps_nodes=True)
def set_device(graph: GraphModel, *, device: str, if_default: bool = False) -> Findings:
    """Assigns nodes to a device, in functions too.

    Args:
        graph: The graph.
        device: For example `"/device:CPU:0"` or `"/job:worker/task:1/gpu:0"`; `""`
            leaves the choice to TensorFlow.
        if_default: Whether nodes that have a device already keep it.

    Returns:
        `assigned`: number of nodes whose device changed.

    Raises:
        ValueError: `device` isn't written as TensorFlow writes devices.
    """
    if device and not _DEVICE.fullmatch(device):
        raise ValueError(
            "Not a device. Expected parts such as /job:worker, /task:0 or "
            f"/device:CPU:0, joined. Received: device={device!r}"
        )
    assigned = 0
    for body in graph.bodies:
        for node in body:
            if node.device != device and not (if_default and node.device):
                node.device = device
                assigned += 1
    return {"assigned": assigned}
