"""`remove_nodes`: takes out nodes that hand on their input."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from tfopt.transforms import _ops, _semantics
from tfopt.transforms._base import Findings, GraphModel, transform
from tfopt.transforms._draft import Draft
from tfopt.transforms._graph import Body, Tensor

# Control inputs that a node may hand on to others at most: each of its own goes to each
# of them.
_MAX_EDGES = 64


@transform()
def remove_nodes(
    graph: GraphModel, *, op: Sequence[str], max_inputs: int = 1
) -> Findings:
    """Takes nodes out; what took their output takes their first input instead.

    Meant for operations that hand on what they get (`Identity`, `CheckNumerics`,
    `StopGradient`, `Snapshot`, and `IdentityN`, whose outputs are told apart). Others
    go as well if asked for, as long as types fit: whether the outputs stay the same is
    checked afterwards. What a node waited for, its consumers wait for.

    Args:
        graph: The graph.
        op: Operations whose nodes are to go.
        max_inputs: Nodes with more inputs than this stay; the first input is handed on.

    Returns:
        `removed`: number of nodes. `skipped`: those that had to stay, and why.

    Raises:
        ValueError: `op` is empty or `max_inputs` isn't positive.
    """
    if isinstance(op, str) or not op:
        raise ValueError(
            f"Expected a list of operations, such as ['Identity']. Received: op={op!r}"
        )
    if max_inputs < 1:
        raise ValueError(
            f"Expected at least one input. Received: max_inputs={max_inputs}"
        )
    removed = 0
    skipped = []
    for body in graph.bodies:
        if not any(node.op in op for node in body.nodes.values()):
            continue
        removal = _Removal(graph, body, frozenset(op), max_inputs)
        removal.run()
        removed += len(removal.waits)
        skipped += [
            {"node": _semantics.place(body, name), "reason": reason}
            for name, reason in removal.skipped.items()
        ]
    return {"removed": removed, "skipped": skipped}


class _Removal:
    """Takes nodes out of one body.

    Attributes:
        waits: Removed node -> nodes to wait for instead of it.
        skipped: Node that stays -> why.
    """

    def __init__(
        self, graph: GraphModel, body: Body, ops: Collection[str], max_inputs: int
    ):
        self.waits: dict[str, list[str]] = {}
        self.skipped: dict[str, str] = {}
        self._graph = graph
        self._body = body
        self._ops = ops
        self._max_inputs = max_inputs
        self._draft = Draft(body)
        self._moved: dict[Tensor, Tensor] = {}
        # Nodes for which waiting means nothing.
        self._trivial: set[str] = set()

    def run(self) -> None:
        """Takes out what can go, each node after those that it takes from."""
        body, draft = self._body, self._draft
        for node in body.in_order():
            name = node.name
            inputs = [self._moved.get(tensor, tensor) for tensor in draft.inputs[name]]
            controls = self._unsaid(self._standing(draft.controls[name]), inputs)
            draft.inputs[name], draft.controls[name] = inputs, controls
            if node.op in self._ops:
                reason = self._obstacle(node, inputs, controls)
                if reason is None:
                    self._take_out(node, inputs, controls)
                    continue
                self.skipped[name] = reason
            is_plain = node.op in _semantics.PASS_THROUGH | {"Const", "NoOp"}
            if (
                is_plain
                and not controls
                and all(tensor.node in self._trivial for tensor in inputs)
                and not body.is_kept(name)
            ):
                self._trivial.add(name)
        # Only now: loops have control inputs from nodes that come later.
        for name, controls in draft.controls.items():
            draft.controls[name] = self._standing(controls)
        for old, new in self._moved.items():
            draft.move(old, new)
        draft.write()
        body.remove(self.waits)

    def _standing(self, controls: Sequence[str]) -> list[str]:
        """Returns what to wait for now, in place of nodes that are gone."""
        names = [name for old in controls for name in self.waits.get(old, (old,))]
        return [name for name in dict.fromkeys(names) if name not in self._trivial]

    def _unsaid(self, controls: Sequence[str], inputs: Sequence[Tensor]) -> list[str]:
        """Returns the nodes to wait for but those whose outputs are taken anyway."""
        taken = {tensor.node for tensor in inputs}
        left = []
        for name in controls:
            is_group = self._body.nodes[name].op == "NoOp"
            parts = self._draft.controls[name] if is_group else [name]
            if not parts or not taken.issuperset(parts):
                left.append(name)
        return left

    def _take_out(
        self, node: Any, inputs: Sequence[Tensor], controls: Sequence[str]
    ) -> None:
        for output, tensor in enumerate(self._handed_on(node, inputs)):
            old = Tensor(node.name, output)
            self._moved[old] = tensor
            if controls:
                for use in self._body.uses(old):
                    self._draft.controls[use.node.name] += controls
        sources = [t.node for t in inputs if t.node in self._body.nodes]
        self.waits[node.name] = self._standing([*sources, *controls])

    def _handed_on(self, node: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        return inputs if node.op == "IdentityN" else inputs[:1]

    def _obstacle(
        self, node: Any, inputs: Sequence[Tensor], controls: Sequence[str]
    ) -> str | None:
        """Returns why a node has to stay, if it has to."""
        if self._body.is_kept(node.name):
            return (
                "callers know it by name"
                if self._body.function is None
                else "callers of the function wait for it"
            )
        if node.op in _semantics.CONTROL_FLOW:
            return "decides which nodes run"
        if not inputs:
            return "takes no input"
        if node.op != "IdentityN" and len(inputs) > self._max_inputs:
            return f"takes {len(inputs)} inputs, more than max_inputs"
        handed_on = self._handed_on(node, inputs)
        return self._type_obstacle(node, handed_on) or self._flow_obstacle(
            node, handed_on, controls
        )

    def _type_obstacle(self, node: Any, handed_on: Sequence[Tensor]) -> str | None:
        if any(_semantics.is_reference(self._body, tensor) for tensor in handed_on):
            return "reads a variable of TF1, at this moment"
        if node.op in _semantics.PASS_THROUGH or node.op == "IdentityN":
            return None
        types = _ops.output_types(node, self._graph.library)
        if types is None:
            return "TensorFlow doesn't know the operation, nor hence its outputs"
        source = self._body.producer(handed_on[0])
        if len(types) != 1:
            return f"has {len(types)} outputs"
        taken = _ops.input_types(node, self._graph.library)
        if not taken or taken[0] != types[0]:
            where = "" if source is None else f" ({source.op})"
            return f"its output has another type than its first input{where}"
        return None

    def _flow_obstacle(
        self, node: Any, handed_on: Sequence[Tensor], controls: Sequence[str]
    ) -> str | None:
        body = self._body
        outputs = [Tensor(node.name, index) for index in range(len(handed_on))]
        users = [use.node for output in outputs for use in body.uses(output)]
        waiting = body.control_uses(node.name)
        if waiting:
            sources = (body.producer(tensor) for tensor in handed_on)
            if any(source and "Switch" in source.op for source in sources):
                return "others wait for it to know the branch of a Switch"
        if controls:
            if any(output in body.returns for output in outputs):
                return "is returned, once what it waits for has run"
            if any(user.op in _semantics.CONTROL_FLOW for user in users):
                return "TF1's control flow cannot wait in its place"
        handed_over = len(users) * len(controls) + len(waiting) * len(
            [*handed_on, *controls]
        )
        if handed_over > max(_MAX_EDGES, 2 * (len(users) + len(waiting))):
            return f"would leave {handed_over} control inputs to others"
        return None
