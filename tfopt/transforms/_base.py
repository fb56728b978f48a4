"""What a transform is: a function on a graph, with what it promises.

One public function per file, named like the file, marked by `@transform`; the folder is
the registry. The function takes the graph and keyword-only options, rewrites the graph
in place and returns its findings as a JSON-able dictionary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from tfopt.transforms._graph import GraphModel

Findings = dict[str, Any]
Function = TypeVar("Function", bound=Callable[..., Findings])


@dataclasses.dataclass(frozen=True)
class Promise:
    """What a transform keeps. The framework checks it after every step.

    Attributes:
        outputs: `"equal"`: bit by bit, TensorFlow's own optimizer off; `"close"`:
            within `tolerance`; `"reported"`: the error is measured and reported.
        tolerance: Largest difference, as a fraction of the output's largest magnitude.
        is_idempotent: Whether applying it twice changes nothing more.
        keeps_nodes: Whether every node stays under its name (with another operation,
            attributes or inputs, perhaps).
        adds_nodes: Whether there may be nodes with new names.
        keeps_dtypes: Whether every node that stays has the output types it had.
        aliases: Further names for it.
        commutes_with: Transforms with which the order doesn't matter.
    """

    outputs: Literal["equal", "close", "reported"] = "equal"
    tolerance: float = 0.0
    is_idempotent: bool = True
    keeps_nodes: bool = False
    adds_nodes: bool = False
    keeps_dtypes: bool = True
    aliases: tuple[str, ...] = ()
    commutes_with: tuple[str, ...] = ()


def transform(**promise: Any) -> Callable[[Function], Function]:
    """Marks a function as a transform.

    Args:
        **promise: See `Promise`.

    Example:
        >>> @transform(keeps_nodes=True)
        ... def count_nodes(graph):
        ...     return {"nodes": graph.num_nodes}
        >>> count_nodes.promise.outputs
        'equal'
    """

    def mark(function: Function) -> Function:
        function.promise = Promise(**promise)  # type: ignore[attr-defined]
        return function

    return mark


__all__ = ["Findings", "GraphModel", "Promise", "transform"]
