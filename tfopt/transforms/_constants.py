"""Constants of a graph: their values, and new ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfopt.savedmodel.tensors import to_array, to_proto
from tfopt.transforms import _ops
from tfopt.transforms._graph import Body, Tensor


def value_of(body: Body, tensor: Tensor) -> np.ndarray | None:
    """Returns a tensor's value if it is a constant (also behind Identity), or None."""
    node = source_of(body, tensor)
    return None if node is None else to_array(node.attr["value"].tensor)


def source_of(body: Body, tensor: Tensor) -> Any:
    """Returns the Const node behind a tensor (through Identity), or None."""
    node = body.producer(tensor)
    while node is not None and node.op in ("Identity", "Snapshot"):
        node = body.producer(body.input(node, 0))
    return node if node is not None and node.op == "Const" else None


def add_constant(
    body: Body,
    name: str,
    array: np.ndarray,
    *,
    dtype: int | None = None,
    controls: Any = (),
    before: str | None = None,
) -> Tensor:
    """Adds a Const node and returns its output."""
    proto = to_proto(np.asarray(array), dtype=dtype)
    node = body.add(
        "Const",
        name,
        controls=controls,
        before=before,
        value=proto,
        dtype=_ops.Type(proto.dtype),
    )
    return Tensor(node.name)
