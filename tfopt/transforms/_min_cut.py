"""The cheapest way to divide a graph in two: a minimum cut."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable

Vertex = Hashable


class Network:
    """A network of vertices and of edges with capacities.

    The cheapest set of edges that parts a source from a sink costs as much as the
    largest flow between them (L. R. Ford and D. R. Fulkerson, "Maximal Flow through a
    Network", 1956). Flow is found along shortest paths (J. Edmonds and R. M. Karp,
    1972).

    Example:
        >>> network = Network()
        >>> for tail, head, cost in [("s", "a", 3), ("a", "b", 1), ("b", "t", 3)]:
        ...     network.add(tail, head, cost)
        >>> sorted(network.source_side("s", "t"))
        ['a', 's']
    """

    def __init__(self) -> None:
        self._left: dict[Vertex, dict[Vertex, float]] = {}

    def add(self, tail: Vertex, head: Vertex, capacity: float = math.inf) -> None:
        """Adds an edge; capacities of the same edge add up."""
        edges = self._left.setdefault(tail, {})
        edges[head] = edges.get(head, 0) + capacity
        self._left.setdefault(head, {}).setdefault(tail, 0)

    def source_side(self, source: Vertex, sink: Vertex) -> set[Vertex]:
        """Returns the vertices on the source's side of a cheapest cut.

        Of several such cuts it is the one with most vertices on that side. The edges'
        capacities are used up.
        """
        while self._augment(source, sink):
            pass
        # What can still send flow to the sink is on its side.
        arriving: dict[Vertex, list[Vertex]] = {}
        for tail, edges in self._left.items():
            for head, capacity in edges.items():
                if capacity > 0:
                    arriving.setdefault(head, []).append(tail)
        sink_side, pending = {sink}, [sink]
        while pending:
            for tail in arriving.get(pending.pop(), ()):
                if tail not in sink_side:
                    sink_side.add(tail)
                    pending.append(tail)
        return {*self._left, source} - sink_side

    def _augment(self, source: Vertex, sink: Vertex) -> bool:
        """Sends flow along one path; returns whether there was one."""
        before: dict[Vertex, Vertex] = {source: source}
        pending = deque([source])
        while pending and sink not in before:
            tail = pending.popleft()
            for head, capacity in self._left.get(tail, {}).items():
                if capacity > 0 and head not in before:
                    before[head] = tail
                    pending.append(head)
        if sink not in before:
            return False
        path = list(_edges(before, sink))
        amount = min(self._left[tail][head] for tail, head in path)
        for tail, head in path:
            self._left[tail][head] -= amount
            self._left[head][tail] += amount
        return True


def _edges(
    before: dict[Vertex, Vertex], vertex: Vertex
) -> Iterable[tuple[Vertex, Vertex]]:
    while before[vertex] != vertex:
        yield before[vertex], vertex
        vertex = before[vertex]
