"""`rename_node`: gives one node another name."""

from __future__ import annotations

import re

from tfopt.transforms import _naming
from tfopt.transforms._base import Findings, GraphModel, transform

_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")


@transform(adds_nodes=True, is_idempotent=False)
def rename_node(
    graph: GraphModel, *, old_node_name: str, new_node_name: str
) -> Findings:
    """Gives one node of the graph another name; what takes from it follows.

    Inputs and outputs keep their names, by which callers know them. Nodes inside
    functions are known to nobody outside; see `obfuscate_names` for all at once.

    Args:
        graph: The graph.
        old_node_name: Its present name.
        new_node_name: Its name afterwards.

    Returns:
        `renamed`: 1, or 0 if both names are the same.

    Raises:
        ValueError: There is no such node, it is an input or output, or the new name is
            taken or none that TensorFlow accepts.
    """
    body = graph.main
    if old_node_name not in body.nodes:
        raise ValueError(
            "The graph has no such node. Expected the name of one, without ':0'. "
            f"Received: old_node_name={old_node_name!r}"
        )
    if old_node_name == new_node_name:
        return {"renamed": 0}
    if body.is_kept(old_node_name):
        raise ValueError(
            "Callers know inputs and outputs by name. Expected another node. "
            f"Received: old_node_name={old_node_name!r}"
        )
    if not _NAME.fullmatch(new_node_name):
        raise ValueError(
            "Not a name for a node. Expected a letter, digit or dot, then letters, "
            f"digits and any of _.\\/>-. Received: new_node_name={new_node_name!r}"
        )
    if new_node_name in body.nodes:
        raise ValueError(
            "The graph has a node of this name. Expected a free one. "
            f"Received: new_node_name={new_node_name!r}"
        )
    _naming.rename_nodes(body, {old_node_name: new_node_name})
    return {"renamed": 1}
