"""What a graph's bytes are: constants, by size, and the rest."""

from __future__ import annotations

from typing import Any

from tfopt.savedmodel import dtypes
from tfopt.transforms._graph import GraphModel

_LISTED = 10


def contents(graph: GraphModel) -> dict[str, Any]:
    """Returns how many bytes constants take, and the largest of them.

    The rest of a file is names, operations and attributes, which no transform of
    weights makes smaller.
    """
    found = [
        (node.attr["value"].tensor, node.name, body.name)
        for body in graph.bodies
        for node in body.nodes.values()
        if node.op == "Const"
    ]
    sized = sorted(
        ((tensor.ByteSize(), name, body, tensor) for tensor, name, body in found),
        key=lambda entry: (-entry[0], entry[1]),
    )
    return {
        "constant_bytes": sum(size for size, *_ in sized),
        "largest_constants": [
            {
                "node": f"{body}/{name}" if body else name,
                "dtype": dtypes.name_of(tensor.dtype),
                "shape": [dim.size for dim in tensor.tensor_shape.dim],
                "bytes": size,
            }
            for size, name, body, tensor in sized[:_LISTED]
        ],
    }
