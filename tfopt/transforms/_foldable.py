"""Which nodes of a body are constant expressions, and which of these become constants.

A node is an expression if it only computes and all that it takes are expressions. What
it waits for doesn't matter for its value, but its value has to wait for the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from tfopt.savedmodel import dtypes
from tfopt.transforms import _evaluation, _ops, _semantics
from tfopt.transforms._draft import Draft
from tfopt.transforms._evaluation import Expressions, Key
from tfopt.transforms._graph import Body, GraphModel, Tensor

# Random, though the same each time; simulated quantization, which others look for.
_LEFT = ("Stateless", "FakeQuant", "QuantizeAndDequantize")
# Constants of so many elements of a narrow type are weights, stored small on purpose.
_NUM_WEIGHTS = 16
_NARROW = frozenset(
    {
        *("half", "bfloat16", "int16", "uint16", "qint16", "quint16"),
        *("int8", "uint8", "qint8", "quint8", "int4", "uint4", "int2", "uint2"),
        *("float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz"),
        *("float8_e5m2fnuz", "float4_e2m1fn"),
    }
)
# More nodes to wait for than this would cost more than the expression.
_MAX_WAITS = 64


class Foldable:
    """The constant expressions of one body.

    Args:
        graph: The graph.
        body: The body.
        effects: Tells which nodes only compute.
        left: Nodes to be left as they are.

    Attributes:
        draft: The body's edges, for editing.
        waits: Expression -> nodes that its value has to wait for.
        num_outputs: Expression -> number of its outputs.
        oversized: Expressions that are too large to be stored -> why.
        unknown: Expressions whose size isn't known before they are evaluated.
    """

    def __init__(
        self,
        graph: GraphModel,
        body: Body,
        effects: _semantics.Effects,
        left: Collection[Key],
    ):
        self.body = body
        self.draft = Draft(body)
        self.waits: dict[str, tuple[str, ...]] = {}
        self.num_outputs: dict[str, int] = {}
        self.oversized: dict[Key, str] = {}
        self.unknown: set[str] = set()
        self._graph = graph
        self._effects = effects
        self._left = left
        self._fed = _semantics.fed(graph, body)
        # Handed on unchanged: output of an Identity -> what it takes.
        self._same: dict[Tensor, Tensor] = {}
        for node in body.in_order():
            if self._is_expression(node):
                self._add(node)

    @property
    def computed(self) -> list[str]:
        """The expressions that are neither constants nor pass one on."""
        return [
            name
            for name in self.waits
            if self.body.nodes[name].op != "Const" and Tensor(name) not in self._same
        ]

    @property
    def num_passed(self) -> int:
        """Number of nodes that hand on a constant and are used."""
        used = {tensor for _, tensor in self._external(resolve=False)}
        return len(used & self._same.keys())

    def add_to(self, expressions: Expressions) -> None:
        """Adds the expressions, with the constants that they need."""
        needed: set[str] = set()
        for name in reversed(self.waits):
            if name in needed or self.body.nodes[name].op != "Const":
                needed.add(name)
                needed.update(tensor.node for tensor in self.draft.inputs[name])
        for name in self.waits:
            if name in needed:
                inputs = [
                    (self._key(tensor.node), int(tensor.output))
                    for tensor in self.draft.inputs[name]
                ]
                expressions.add(self._key(name), self.body.nodes[name], inputs)

    def decide(self, expressions: Expressions, largest: int, maximum_size: int) -> None:
        """Decides which expressions become constants.

        Args:
            expressions: They, loaded.
            largest: Bytes of the largest intermediate result.
            maximum_size: Bytes of a result that may be stored in any case.
        """
        sizes: dict[Tensor, int] = {}
        for name in list(self.waits):
            if self.body.nodes[name].op == "Const":
                continue
            if not self._is_closed(name):
                self._leave(name)
                continue
            found = expressions.num_bytes(self._key(name))
            if None in found:
                self.unknown.add(name)
                self._leave(name)
            elif sum(size or 0 for size in found) > largest:
                total = sum(size or 0 for size in found)
                self.oversized[self._key(name)] = f"would take {total} bytes"
                self._leave(name)
            sizes.update({Tensor(name, i): size or 0 for i, size in enumerate(found)})
        while self._leave_growing(sizes, maximum_size):
            pass

    def results(self) -> list[tuple[Key, int]]:
        """Returns the outputs of expressions that become constants."""
        return [(self._key(t.node), int(t.output)) for t in self._results()]

    def redirect(self) -> None:
        """Makes nodes take and wait for what they need, not what hands it on."""
        for old, new in self._same.items():
            self.draft.move(old, new)
        for name, controls in self.draft.controls.items():
            standing = [
                wait for old in controls for wait in self._standing(old, keep=name)
            ]
            self.draft.controls[name] = list(dict.fromkeys(standing))

    def _standing(self, name: str, *, keep: str) -> tuple[str, ...]:
        """Returns what waiting for a node means, which may be an expression."""
        if name in self.waits and name != keep:
            return self.waits[name]
        return (name,)

    def _is_expression(self, node: Any) -> bool:
        name = node.name
        if name in self._fed or self._key(name) in self._left:
            return False
        if node.op == "Const":
            return node.attr["value"].tensor.dtype not in (
                dtypes.RESOURCE,
                dtypes.VARIANT,
            )
        if not self.draft.inputs[name] or not self._is_closed(name):
            return False
        if (
            node.op in _semantics.CONTROL_FLOW
            or node.op.startswith(_LEFT)
            or node.op in self._graph.functions
            or _ops.functions_of(node)
            or self._effects.has_effect(node)
        ):
            return False
        # The graph's outputs keep node and number, which constants have only one of.
        is_output = self.body.is_kept(name)
        counts = _ops.output_counts(node, self._graph.library)
        num_outputs = sum(count for _, count in counts)
        return not is_output or (
            num_outputs == 1 and node.op not in _semantics.PASS_THROUGH
        )

    def _add(self, node: Any) -> None:
        name = node.name
        waits: dict[str, None] = {}
        for tensor in self.draft.inputs[name]:
            waits.update(dict.fromkeys(self.waits[tensor.node]))
        inherited = dict(waits)
        for control in self.draft.controls[name]:
            source = self.body.nodes[control]
            if source.op == "NoOp" and not source.input:
                continue
            waits.update(dict.fromkeys(self.waits.get(control, (control,))))
        if len(waits) > _MAX_WAITS:
            return
        self.waits[name] = tuple(waits)
        counts = _ops.output_counts(node, self._graph.library)
        self.num_outputs[name] = sum(count for _, count in counts)
        if node.op in _semantics.PASS_THROUGH and waits == inherited:
            source_tensor = self.draft.inputs[name][0]
            self._same[Tensor(name)] = self._same.get(source_tensor, source_tensor)

    def _is_closed(self, name: str) -> bool:
        """Whether all that a node takes are expressions still."""
        return all(tensor.node in self.waits for tensor in self.draft.inputs[name])

    def _leave(self, name: str) -> None:
        """Makes a node an ordinary one, which takes expressions but isn't one."""
        del self.waits[name]
        self._same.pop(Tensor(name), None)

    def _external(self, *, resolve: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Yields what ordinary nodes (and callers) take, with the node that does."""
        for name, inputs in self.draft.inputs.items():
            if name not in self.waits:
                for tensor in inputs:
                    yield name, self._same.get(tensor, tensor) if resolve else tensor
        for tensor in self.body.returns:
            yield "", self._same.get(tensor, tensor) if resolve else tensor
        for name in self.body.kept:
            yield "", Tensor(name)

    def _results(self) -> list[Tensor]:
        found = {tensor: None for _, tensor in self._external()}
        return [
            tensor
            for tensor in found
            if tensor.node in self.waits and self.body.nodes[tensor.node].op != "Const"
        ]

    def _leave_growing(self, sizes: Mapping[Tensor, int], maximum_size: int) -> bool:
        """Leaves expressions that are larger than what they replace.

        Returns:
            Whether there were any: then fewer constants become superfluous.
        """
        taken = {tensor.node for _, tensor in self._external()}
        spare = {
            name: _evaluation.num_bytes(self.body.nodes[name].attr["value"].tensor)
            for name in self.waits
            if self.body.nodes[name].op == "Const" and name not in taken
        }
        narrow = self._made_of_narrow()
        growing = {}
        for tensor in self._results():
            size = sizes[tensor]
            if size <= maximum_size and tensor.node not in narrow:
                continue
            needed = self._constants_behind(tensor.node)
            left = size
            for name in needed & spare.keys():
                used = min(left, spare[name])
                spare[name] -= used
                left -= used
            if left > 0:
                growing[tensor.node] = (size, size - left)
        for name, (size, saved) in growing.items():
            self.oversized[self._key(name)] = (
                f"would take {size} bytes in place of {saved}"
            )
            self._leave(name)
        if growing:
            for name in list(self.waits):
                if not self._is_closed(name):
                    self._leave(name)
        return bool(growing)

    def _made_of_narrow(self) -> set[str]:
        """Returns expressions of constants whose type was chosen to be small."""
        found: set[str] = set()
        for name in self.waits:
            node = self.body.nodes[name]
            if node.op == "Const":
                is_narrow = _is_narrow(node)
            else:
                is_narrow = any(t.node in found for t in self.draft.inputs[name])
            if is_narrow:
                found.add(name)
        return found

    def _constants_behind(self, name: str) -> set[str]:
        found: set[str] = set()
        pending = [name]
        seen = {name}
        while pending:
            current = pending.pop()
            if self.body.nodes[current].op == "Const":
                found.add(current)
            for tensor in self.draft.inputs[current]:
                if tensor.node not in seen:
                    seen.add(tensor.node)
                    pending.append(tensor.node)
        return found

    def _key(self, name: str) -> Key:
        return Key(self.body.name, name)


def _is_narrow(node: Any) -> bool:
    proto = node.attr["value"].tensor
    if dtypes.name_of(proto.dtype) not in _NARROW:
        return False
    item = dtypes.item_size(proto.dtype) or 1
    return _evaluation.num_bytes(proto) >= _NUM_WEIGHTS * item
