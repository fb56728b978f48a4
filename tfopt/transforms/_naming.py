"""Names of nodes and functions, changed wherever they are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfopt.transforms._graph import Body, GraphModel, Tensor

_COLOCATED = b"loc:@"


def rename_nodes(body: Body, names: Mapping[str, str]) -> None:
    """Gives nodes of a body other names, all at once.

    Args:
        body: The body.
        names: Old -> new name, of nodes that aren't kept; the new ones are free.
    """
    for node in body.nodes.values():
        node.name = names.get(node.name, node.name)
        if any(_node_of(ref) in names for ref in node.input):
            node.input[:] = [_renamed(ref, names) for ref in node.input]
        if "_class" in node.attr:
            entries = node.attr["_class"].list.s
            entries[:] = [_colocation(entry, names) for entry in entries]
    body.nodes = {node.name: node for node in body.nodes.values()}
    body.returns = [
        Tensor(names.get(tensor.node, tensor.node), tensor.output)
        for tensor in body.returns
    ]
    body.changed()


def rename_functions(graph: GraphModel, names: Mapping[str, str]) -> None:
    """Gives functions other names, all at once.

    Args:
        graph: The graph.
        names: Old -> new name; the new ones are free, also among operations.
    """
    for body in graph.bodies:
        for node in body.nodes.values():
            node.op = names.get(node.op, node.op)
            for value in node.attr.values():
                _rename_in_attribute(value, names)
        if body.function is not None:
            for value in body.function.attr.values():
                _rename_in_attribute(value, names)
                # Notes on which functions are its gradients, say.
                if value.WhichOneof("value") == "s":
                    text = value.s.decode("utf-8", "surrogateescape")
                    value.s = names.get(text, text).encode("utf-8", "surrogateescape")
            signature = body.function.signature
            signature.name = names.get(signature.name, signature.name)
    _rename_keys(graph.functions, names)
    _rename_keys(graph.library, names)


def _node_of(ref: str) -> str:
    return ref.removeprefix("^").split(":", 1)[0]


def _renamed(ref: str, names: Mapping[str, str]) -> str:
    mark = "^" if ref.startswith("^") else ""
    name, colon, output = ref.removeprefix("^").partition(":")
    return f"{mark}{names.get(name, name)}{colon}{output}"


def _colocation(entry: bytes, names: Mapping[str, str]) -> bytes:
    name = entry.removeprefix(_COLOCATED).decode()
    if entry.startswith(_COLOCATED) and name in names:
        return _COLOCATED + names[name].encode()
    return entry


def _rename_in_attribute(value: Any, names: Mapping[str, str]) -> None:
    kind = value.WhichOneof("value")
    if kind == "func":
        functions = [value.func]
    elif kind == "list":
        functions = list(value.list.func)
    else:
        return
    for function in functions:
        function.name = names.get(function.name, function.name)
        for inner in function.attr.values():
            _rename_in_attribute(inner, names)


def _rename_keys(mapping: dict[str, Any], names: Mapping[str, str]) -> None:
    """Renames keys in place, since the bodies share the library; keeps the order."""
    items = [(names.get(name, name), value) for name, value in mapping.items()]
    mapping.clear()
    mapping.update(items)
