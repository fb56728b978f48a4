"""`merge_duplicate_nodes`: computes once what is computed several times."""

from __future__ import annotations

import collections
import hashlib
from typing import Any

from tfopt.savedmodel import dtypes
from tfopt.transforms import _constants, _semantics
from tfopt.transforms._base import Findings, GraphModel, transform
from tfopt.transforms._draft import Draft
from tfopt.transforms._graph import Body, Tensor

# Notes that don't change what a node computes.
_NOTES = frozenset({"_class", "_output_shapes", "_grappler_do_not_remove"})


@transform()
def merge_duplicate_nodes(graph: GraphModel) -> Findings:
    """Merges constants of equal content, and nodes that compute the same.

    Nodes compute the same if operation, attributes, device, inputs and what they wait
    for are the same, after merging these. One pass in order of execution finds all. A
    node that may have an effect or differ from run to run isn't merged (but a call is,
    whose function only computes), nor is one of TF1's control flow. Numbers are
    compared by their bits.

    Args:
        graph: The graph.

    Returns:
        `merged`: number of nodes that went, `constants` of them constants, whose
        values have `bytes` bytes in all.
    """
    effects = _semantics.Effects(graph)
    counts: collections.Counter[str] = collections.Counter()
    for body in graph.bodies:
        counts += _Merging(graph, body, effects).run()
    return {name: counts[name] for name in ("merged", "constants", "bytes")}


class _Merging:
    """Merges the nodes of one body.

    Each node gets the number of its class; those of a class compute the same.
    """

    def __init__(self, graph: GraphModel, body: Body, effects: _semantics.Effects):
        self._body = body
        self._draft = Draft(body)
        self._effects = effects
        self._fed = _semantics.fed(graph, body)
        self._classes: dict[Any, int] = {}
        self._class_of: dict[str, int] = {}
        self._members: dict[int, list[Any]] = {}
        self._sizes = collections.Counter(
            _size_key(node) for node in body.nodes.values() if node.op == "Const"
        )

    def run(self) -> collections.Counter[str]:
        """Merges, and returns what `merge_duplicate_nodes` counts."""
        for node in self._body.in_order():
            key = self._key(node)
            number = self._classes.setdefault(key, len(self._classes))
            self._class_of[node.name] = number
            self._members.setdefault(number, []).append(node)
        counts: collections.Counter[str] = collections.Counter()
        instead: dict[str, str] = {}
        gone = []
        for nodes in self._members.values():
            first = next((n for n in nodes if self._body.is_kept(n.name)), nodes[0])
            for node in nodes:
                if node is first:
                    continue
                instead[node.name] = first.name
                if self._body.is_kept(node.name):
                    continue
                gone.append(node.name)
                counts["merged"] += 1
                if node.op == "Const":
                    counts["constants"] += 1
                    counts["bytes"] += _num_bytes(node)
        if instead:
            self._write(instead, gone)
        return counts

    def _key(self, node: Any) -> Any:
        """Returns what is equal for nodes that compute the same; else its name."""
        # A node that has been given no class yet comes from the next iteration of a
        # loop, into a node that has a class of its own.
        if (
            node.name in self._fed
            or node.op in _semantics.CONTROL_FLOW
            or self._effects.has_effect(node)
        ):
            return node.name
        inputs = self._draft.inputs[node.name]
        if node.op == "Const":
            content = self._content(node)
        elif not inputs:
            # Placeholders, and what else makes something of nothing.
            return node.name
        elif any(_semantics.is_reference(self._body, tensor) for tensor in inputs):
            return node.name
        else:
            content = _attributes(node)
        sources = tuple(
            (self._class_of.get(tensor.node, tensor.node), tensor.output)
            for tensor in inputs
        )
        controls = self._draft.controls[node.name]
        waits = frozenset(self._class_of.get(name, name) for name in controls)
        return node.op, node.device, content, sources, waits

    def _content(self, node: Any) -> Any:
        """Returns what tells constants apart, a digest for large ones."""
        key = _size_key(node)
        if self._sizes[key] == 1:
            return node.name
        proto = node.attr["value"].tensor
        if dtypes.item_size(proto.dtype) is None:
            if proto.dtype != dtypes.STRING:
                return node.name
            return key, tuple(_constants.to_array(proto).reshape(-1).tolist())
        data = proto.tensor_content
        if not data:
            data = _constants.to_array(proto).tobytes()
        return key, hashlib.blake2b(data, digest_size=32).digest()

    def _write(self, instead: dict[str, str], gone: list[str]) -> None:
        draft = self._draft
        for node in self._body.nodes.values():
            controls = draft.controls[node.name]
            draft.controls[node.name] = [instead.get(name, name) for name in controls]
            draft.inputs[node.name] = [
                Tensor(instead.get(tensor.node, tensor.node), tensor.output)
                for tensor in draft.inputs[node.name]
            ]
        self._body.returns = [
            Tensor(instead.get(tensor.node, tensor.node), tensor.output)
            for tensor in self._body.returns
        ]
        draft.write()
        self._body.remove(gone)


def _size_key(node: Any) -> tuple[Any, ...]:
    proto = node.attr["value"].tensor
    return proto.dtype, tuple(dim.size for dim in proto.tensor_shape.dim)


def _num_bytes(node: Any) -> int:
    return node.attr["value"].tensor.ByteSize()


def _attributes(node: Any) -> tuple[Any, ...]:
    """Returns the attributes that matter, as bytes."""
    return tuple(
        (name, node.attr[name].SerializeToString(deterministic=True))
        for name in sorted(node.attr)
        if name not in _NOTES
    )
