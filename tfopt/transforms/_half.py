"""Half precision for a graph: which nodes, and where to cast."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfopt.savedmodel import dtypes
from tfopt.transforms import _constants, _half_ops, _ops, _semantics
from tfopt.transforms._base import Findings
from tfopt.transforms._graph import Body, GraphModel, Tensor
from tfopt.transforms._half_ops import Form
from tfopt.transforms._half_rewrite import Rewriter
from tfopt.transforms._min_cut import Network
from tfopt.transforms._weights import matches, patterns

_SOURCE, _SINK = "source", "sink"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What may and what may not be cast.

    Attributes:
        half: DataType number of the type to cast to.
        allow_op: Operations to cast whatever they are.
        deny_op: Operations to leave in float32.
        include: Globs of names: only these nodes; all if empty.
        exclude: Globs of names of nodes to leave.
    """

    half: int
    allow_op: tuple[str, ...]
    deny_op: tuple[str, ...]
    include: tuple[str, ...]
    exclude: tuple[str, ...]

    @classmethod
    def checked(
        cls,
        graph: GraphModel,
        half: str,
        *,
        allow_op: Sequence[str],
        deny_op: Sequence[str],
        include: Sequence[str],
        exclude: Sequence[str],
    ) -> Choice:
        """Returns the choice that options mean.

        Raises:
            ValueError: An option is no list of operations or globs, names an operation
                that there is not, or a glob that matches no node.
        """
        names = {name for body in graph.bodies for name in body.nodes}
        listed = {
            name: patterns(name, value)
            for name, value in (
                ("allow_op", allow_op),
                ("deny_op", deny_op),
                ("include", include),
                ("exclude", exclude),
            )
        }
        for option in ("allow_op", "deny_op"):
            for op in listed[option]:
                if _ops.op_def(op) is None:
                    raise ValueError(
                        "Expected names of TensorFlow operations. "
                        f"Received: {option}={op!r}"
                    )
        both = set(listed["allow_op"]) & set(listed["deny_op"])
        if both:
            raise ValueError(
                "Expected each operation in one of allow_op and deny_op. "
                f"Received: {sorted(both)} in both"
            )
        for option in ("include", "exclude"):
            for glob in listed[option]:
                if names and not fnmatch.filter(names, glob):
                    raise ValueError(
                        "Expected globs that match the name of a node. "
                        f"Received: {option}={glob!r}, which matches none"
                    )
        number = next(n for n in (14, 19) if dtypes.name_of(n) == half)
        return cls(number, **listed)


def cast(graph: GraphModel, half: str, **options: Sequence[str]) -> Findings:
    """Casts what can be cast to `half`, a type's name; see `cast_float16`."""
    choice = Choice.checked(graph, half, **options)
    before = _constant_bytes(graph)
    cast_nodes, casts, constants = 0, 0, 0
    left: collections.Counter[str] = collections.Counter()
    skipped = []
    for body in graph.bodies:
        plan = Plan(graph, body, choice)
        rewriter = Rewriter(body, choice.half, plan.forms)
        if plan.forms:
            rewriter.run()
        cast_nodes += len(plan.forms)
        casts += rewriter.casts
        constants += rewriter.constants
        left.update(plan.left)
        skipped += plan.skipped()
    return {
        "cast": cast_nodes,
        "casts_added": casts,
        "constants": constants,
        "bytes_before": before,
        "bytes_after": _constant_bytes(graph),
        "left": dict(sorted(left.items())),
        "skipped": skipped,
    }


class Plan:
    """Which nodes of a body run in half precision.

    A cheapest cut decides: heavy operations are on one side, what must stay float32 on
    the other, and a tensor that is needed on both costs one Cast. Of equally cheap ways
    the one with most nodes in half precision is taken.

    Args:
        graph: The graph.
        body: One of its bodies.
        choice: What is wished.

    Attributes:
        forms: Node -> how it changes, for those that do.
        types: Node -> DataTypes of its outputs (`None` for unknown operations).
        left: Operations on floats that stay as they are, each as often as there is one.
    """

    def __init__(self, graph: GraphModel, body: Body, choice: Choice):
        self._body = body
        self._choice = choice
        self._fed = _semantics.fed(graph, body)
        self._reasons: dict[str, str] = {}
        self.types = {n.name: _ops.output_types(n, graph.library) for n in body}
        self.types |= _argument_types(body)
        heavy: dict[str, Form] = {}
        light: dict[str, Form] = {}
        for node in body:
            form = self._form(node)
            if form is not None and self._is_heavy(node):
                heavy[node.name] = form
            elif form is not None:
                light[node.name] = form
        self._possible = {**heavy, **light}
        self.forms = self._cut(heavy, light) if heavy else {}
        self.left = [
            node.op
            for node in body
            if node.name not in self.forms and self._takes_floats(node)
        ]

    def skipped(self) -> list[dict[str, str]]:
        """Returns the nodes that stay for reasons of their own."""
        return [
            {"node": _semantics.place(self._body, name), "reason": reason}
            for name, reason in self._reasons.items()
        ]

    def _takes_floats(self, node: Any) -> bool:
        return node.op not in ("Const", "Cast") and any(
            self._is_float(tensor) for tensor in self._body.inputs(node)
        )

    def _is_float(self, tensor: Tensor) -> bool:
        types = self.types.get(tensor.node)
        position = tensor.output
        if types is None or isinstance(position, str) or position >= len(types):
            return False
        return types[position] == dtypes.FLOAT

    def _is_heavy(self, node: Any) -> bool:
        return node.op in _half_ops.HEAVY or node.op in self._choice.allow_op

    def _form(self, node: Any) -> Form | None:
        """Returns how a node changes if it may; keeps the reason if it may not."""
        choice = self._choice
        if node.op == "Const" or not self._has_floats(node):
            return None
        if node.name in self._fed or _is_denied(node, choice):
            return None
        if node.op == "Cast":
            return None if self._body.is_kept(node.name) else _half_ops.cast_form(node)
        form = _half_ops.form_of(node, choice.half)
        if isinstance(form, str):
            self._reasons[node.name] = form
            return None
        reason = self._unfit(node, form)
        if reason is not None:
            self._reasons[node.name] = reason
            return None
        if self._is_output(node) and not self._is_heavy(node):
            return None
        return form

    def _has_floats(self, node: Any) -> bool:
        types = self.types.get(node.name) or ()
        return dtypes.FLOAT in types or self._takes_floats(node)

    def _is_output(self, node: Any) -> bool:
        return self._body.function is None and self._body.is_kept(node.name)

    def _unfit(self, node: Any, form: Form) -> str | None:
        """Returns why a node's own numbers keep it in float32."""
        if self._is_output(node) and len(self.types[node.name] or ()) != 1:
            return "it is an output of the graph, with others beside it"
        for position in sorted(form.inputs):
            tensor = self._body.input(node, position)
            source = _constants.source_of(self._body, tensor)
            if source is None or not self._is_float(Tensor(source.name)):
                continue
            reason = _range_fault(source, self._choice.half)
            if reason is not None:
                return f"its constant {source.name!r} {reason}"
        return None

    def _cut(self, heavy: dict[str, Form], light: dict[str, Form]) -> dict[str, Form]:
        network = Network()
        for tensor, users in self._float_tensors():
            ends = [self._vertex(name, heavy, light) for name in users]
            start = self._vertex(tensor.node, heavy, light, tensor.output)
            _add_tensor(network, tensor, start, ends)
        side = network.source_side(_SOURCE, _SINK)
        chosen = {name: form for name, form in light.items() if name in side}
        return {**heavy, **chosen}

    def _float_tensors(self) -> list[tuple[Tensor, list[str]]]:
        """Returns each float tensor that is no constant, and what takes it.

        What takes it is the node, or nothing (`""`) for where it stays float32.
        """
        users: dict[Tensor, list[str]] = {}
        for node in self._body:
            form = self._possible.get(node.name)
            if node.op == "Cast":
                continue  # It takes either.
            for position, tensor in enumerate(self._body.inputs(node)):
                if self._is_float(tensor):
                    is_open = form is not None and position in form.inputs
                    users.setdefault(tensor, []).append(node.name if is_open else "")
        for tensor in self._body.returns:
            if self._is_float(tensor):
                users.setdefault(tensor, []).append("")
        return [
            (tensor, names)
            for tensor, names in users.items()
            if self._body.producer(tensor) is None
            or self._body.producer(tensor).op != "Const"
        ]

    def _vertex(
        self,
        name: str,
        heavy: dict[str, Form],
        light: dict[str, Form],
        output: Any = None,
    ) -> str:
        form = self._possible.get(name)
        if form is None or (output is not None and output not in form.outputs):
            return _SINK
        return _SOURCE if name in heavy else name


def _add_tensor(
    network: Network, tensor: Tensor, start: str, ends: Sequence[str]
) -> None:
    """Adds a tensor: one Cast if any end is not on the side of its start."""
    away, back = (tensor, "away"), (tensor, "back")
    network.add(start, away, 1)
    network.add(back, start, 1)
    for end in ends:
        network.add(away, end)
        network.add(end, back)


def _is_denied(node: Any, choice: Choice) -> bool:
    if matches(node.name, choice.exclude) or node.op in choice.deny_op:
        return True
    if choice.include and not matches(node.name, choice.include):
        return True
    known = _half_ops.HEAVY | _half_ops.LIGHT | _half_ops.MOVING | {"Cast"}
    return node.op not in known and node.op not in choice.allow_op


def _range_fault(source: Any, half: int) -> str | None:
    """Returns what half precision does to a constant, if it cannot be borne."""
    value = _constants.to_array(source.attr["value"].tensor)
    with np.errstate(all="ignore"):
        rounded = value.astype(dtypes.to_numpy(half)).astype(np.float32)
    finite = np.isfinite(value)
    if not np.all(np.isfinite(rounded[finite])):
        largest = np.max(np.abs(value[finite]))
        return f"has values up to {largest:g}, too large for {dtypes.name_of(half)}"
    if np.any(value) and not np.any(rounded):
        return f"is too small for {dtypes.name_of(half)}: it would be zero"
    return None


def _argument_types(body: Body) -> dict[str, list[int] | None]:
    if body.function is None:
        return {}
    found: dict[str, list[int] | None] = {}
    for argument in body.function.signature.input_arg:
        is_one = not argument.number_attr and not argument.type_list_attr
        found[argument.name] = [argument.type] if is_one else None
    return found


def _constant_bytes(graph: GraphModel) -> int:
    return sum(
        node.attr["value"].tensor.ByteSize()
        for body in graph.bodies
        for node in body
        if node.op == "Const"
    )
