"""What the framework checks after every transform: the graph is whole, promises hold.

Whether it still computes the same is checked by running it, see `_verifier`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tfopt.freezing import rewrite
from tfopt.savedmodel import protos
from tfopt.transforms import _ops
from tfopt.transforms._base import Promise
from tfopt.transforms._graph import Body, GraphModel

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a graph was like before a transform.

    Attributes:
        nodes: Body -> node -> operation and attributes that tell its output types.
    """

    nodes: dict[str, dict[str, tuple[Any, ...]]]


def clean(graph: GraphModel) -> int:
    """Removes what nothing needs, and wishes to be placed beside nodes that are gone.

    Returns:
        The number of nodes removed.
    """
    removed = graph.remove_dead()
    for body in graph.bodies:
        rewrite.drop_dangling_colocation(list(body.nodes.values()))
    return removed


def snapshot(graph: GraphModel) -> Snapshot:
    """Returns what `promise_faults` compares with."""
    return Snapshot(
        {
            body.name: {name: _key(node) for name, node in body.nodes.items()}
            for body in graph.bodies
        }
    )


def promise_faults(before: Snapshot, graph: GraphModel, promise: Promise) -> list[str]:
    """Returns where a transform broke its promise about nodes and types.

    Args:
        before: The graph before the transform.
        graph: The graph after it, dead nodes still in it.
        promise: The promise.
    """
    faults = []
    now = {body.name: body for body in graph.bodies}
    for name, old in before.nodes.items():
        new = now[name].nodes if name in now else {}
        if promise.keeps_nodes:
            faults += [f"{_where(name, node)} is gone" for node in old.keys() - new]
        if promise.keeps_dtypes and name in now:
            faults += _type_faults(old, now[name], graph)
    if not promise.adds_nodes:
        for name, body in now.items():
            added = body.nodes.keys() - before.nodes.get(name, {})
            faults += [f"{_where(name, node)} is new" for node in added]
    for tensor in (*graph.inputs, *graph.outputs):
        name, _, output = tensor.partition(":")
        old_key, node = before.nodes[""].get(name), graph.main.nodes.get(name)
        if old_key is None or node is None or _key(node) == old_key:
            continue
        old_type, new_type = (
            types[int(output)]
            if (types := _ops.output_types(one, graph.library))
            else 0
            for one in (_node_of(old_key), node)
        )
        if old_type != new_type:
            faults.append(
                f"{tensor}, an input or output of the graph, has another type"
            )
    return sorted(faults)


def structure_faults(graph: GraphModel) -> list[str]:
    """Returns what is wrong with a graph in itself."""
    faults = []
    for body in graph.bodies:
        faults += _body_faults(body)
        for node in body.nodes.values():
            faults += [
                f"{_where(body.name, node.name)} calls {name}, which is missing"
                for name in _ops.functions_of(node)
                if name not in graph.functions
            ]
    return sorted(faults)


def arity_faults(graph: GraphModel) -> list[str]:
    """Returns where a node takes too few or many inputs, or an output that isn't there.

    Asks TensorFlow's registry of operations; nodes of unknown ones are passed over.
    """
    faults = []
    for body in graph.bodies:
        for node in body.nodes.values():
            where = _where(body.name, node.name)
            taken = body.inputs(node)
            definition = _ops.signature(node, graph.library)
            if definition is not None:
                expected = sum(_ops.count_of(node, arg) for arg in definition.input_arg)
                if len(taken) != expected:
                    faults.append(f"{where} takes {len(taken)} inputs, not {expected}")
            for tensor in taken:
                source = body.producer(tensor)
                types = source and _ops.output_types(source, graph.library)
                index = tensor.output
                if types and isinstance(index, int) and index >= len(types):
                    faults.append(f"{where} takes {tensor}, which isn't there")
    return sorted(faults)


def shown(faults: list[str]) -> str:
    """Returns the first few faults as one line."""
    more = len(faults) - _SHOWN
    return "; ".join(faults[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _body_faults(body: Body) -> list[str]:
    faults = [
        f"{_where(body.name, name)} is called {node.name}"
        for name, node in body.nodes.items()
        if name != node.name
    ]
    faults += [
        f"{_where(body.name, name)} is the name of a node and of an argument"
        for name in body.arguments
        if name in body.nodes
    ]
    faults += [
        f"{_where(body.name, name)}, which must stay, is missing"
        for name in body.kept
        if name not in body.nodes
    ]
    known = body.nodes.keys() | set(body.arguments)
    faults += [
        f"{body.name} returns {tensor.node}, which is missing"
        for tensor in body.returns
        if tensor.node not in known
    ]
    for name, node in body.nodes.items():
        for ref in node.input:
            source = ref.removeprefix("^").split(":", 1)[0]
            if source not in known or (ref[0] == "^" and source in body.arguments):
                where = _where(body.name, name)
                faults.append(f"{where} needs {ref}, which is missing")
    return faults or _cycle_faults(body)


def _cycle_faults(body: Body) -> list[str]:
    """Returns a fault if nodes wait for each other."""
    needs = {
        name: {
            source
            for ref in node.input
            if (source := ref.removeprefix("^").split(":", 1)[0]) in body.nodes
            and body.nodes[source].op not in _ops.BACK_EDGES
        }
        for name, node in body.nodes.items()
    }
    users: dict[str, list[str]] = {}
    for name, sources in needs.items():
        for source in sources:
            users.setdefault(source, []).append(name)
    waiting = {name: len(sources) for name, sources in needs.items()}
    ready = [name for name, count in waiting.items() if count == 0]
    while ready:
        for user in users.get(ready.pop(), ()):
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    stuck = sorted(name for name, count in waiting.items() if count)
    if not stuck:
        return []
    listed = ", ".join(_where(body.name, name) for name in stuck[:_SHOWN])
    return [f"nodes wait for each other, or for such nodes: {listed}"]


def _key(node: Any) -> tuple[Any, ...]:
    """Returns what decides the types of a node's outputs."""
    parts: list[Any] = [node.op]
    for name in sorted(node.attr):
        value = node.attr[name]
        kind = value.WhichOneof("value")
        if kind in ("type", "i"):
            parts.append((name, kind, getattr(value, kind)))
        elif kind == "list" and value.list.type:
            parts.append((name, kind, tuple(value.list.type)))
    return tuple(parts)


def _type_faults(
    old: dict[str, tuple[Any, ...]], body: Body, graph: GraphModel
) -> list[str]:
    faults = []
    for name, key in old.items():
        node = body.nodes.get(name)
        # Most nodes have not changed at all: the registry isn't asked about them.
        if node is None or _key(node) == key:
            continue
        before = _ops.output_types(_node_of(key), graph.library)
        after = _ops.output_types(node, graph.library)
        # It may lose outputs that nothing takes.
        if any(a != b for a, b in zip(before or (), after or (), strict=False)):
            faults.append(f"{_where(body.name, name)} has another type")
    return faults


def _node_of(key: tuple[Any, ...]) -> Any:
    """Returns a node with the operation and attributes of a `_key`."""
    node = protos.message_class("NodeDef")(op=key[0])
    for name, kind, value in key[1:]:
        if kind == "list":
            node.attr[name].list.type.extend(value)
        else:
            setattr(node.attr[name], kind, value)
    return node


def _where(body: str, node: str) -> str:
    return f"{body}/{node}" if body else node
