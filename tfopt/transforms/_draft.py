"""Many edits of one body, written together.

Each edit through `Body` renews the index of consumers, and in a function the name of an
output changes with the operation behind it. A draft holds the edges as tensors, and
writes them once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tfopt.transforms import _ops
from tfopt.transforms._graph import Body, Tensor


class Draft:
    """The edges of a body, for editing.

    Args:
        body: The body; it must not be edited otherwise until `write`, but for adding
            nodes through `add`.

    Attributes:
        inputs: Node -> the tensors it takes.
        controls: Node -> the nodes it waits for.
    """

    def __init__(self, body: Body):
        self._body = body
        self.inputs = {node.name: body.inputs(node) for node in body}
        self.controls = {node.name: body.controls(node) for node in body}
        self._moved: dict[Tensor, Tensor] = {}
        self._gone: dict[str, str] = {}
        names = list(body.nodes)
        self._positions = {name: float(i) for i, name in enumerate(names)}

    def add(
        self,
        node: Any,
        inputs: Sequence[Tensor] = (),
        *,
        controls: Iterable[str] = (),
        before: str | None,
    ) -> Tensor:
        """Adds a node, written before another one; returns its first output.

        Args:
            node: A NodeDef without inputs; its name is made unique.
            inputs: What it takes.
            controls: What it waits for.
            before: The node before which it is written (order of the file only);
                `None` for the end.
        """
        node.name = self._body.unique(node.name)
        self._body.nodes[node.name] = node
        self.inputs[node.name] = list(inputs)
        self.controls[node.name] = list(controls)
        last = float(len(self._positions))
        position = last if before is None else self._positions[before] - 0.5
        self._positions[node.name] = position
        return Tensor(node.name)

    def become(
        self, node: Any, op: str, inputs: Sequence[Tensor], **attributes: Any
    ) -> None:
        """Turns a node into another operation with the same outputs.

        Attributes with a leading underscore stay, as they don't belong to operations.
        """
        for name in [name for name in node.attr if not name.startswith("_")]:
            del node.attr[name]
        node.op = op
        _ops.set_attributes(node, **attributes)
        self.inputs[node.name] = list(inputs)

    def move(self, old: Tensor, new: Tensor) -> None:
        """Makes all that takes `old` take `new`."""
        self._moved[old] = new

    def drop(self, name: str, *, instead: str) -> None:
        """Removes a node of which nothing takes a tensor any more.

        Args:
            name: The node.
            instead: The node for which others wait now instead.
        """
        self._gone[name] = instead

    def write(self) -> None:
        """Carries the edits out."""
        body = self._body
        for name in self._gone:
            del body.nodes[name]
        body.nodes = dict(
            sorted(body.nodes.items(), key=lambda item: self._positions[item[0]])
        )
        body.changed()
        for name, node in body.nodes.items():
            refs = [body.ref(self._now(tensor)) for tensor in self.inputs[name]]
            waits = [self._standing(control) for control in self.controls[name]]
            refs += ["^" + wait for wait in dict.fromkeys(waits) if wait != name]
            if refs != list(node.input):
                node.input[:] = refs
        body.returns = [self._now(tensor) for tensor in body.returns]
        body.changed()

    def _now(self, tensor: Tensor) -> Tensor:
        while tensor in self._moved:
            tensor = self._moved[tensor]
        return tensor

    def _standing(self, name: str) -> str:
        while name in self._gone:
            name = self._gone[name]
        return name
