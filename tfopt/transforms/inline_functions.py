"""`inline_functions`: replaces calls by the bodies of the functions they call."""

from __future__ import annotations

from typing import Any

from tfopt.transforms import _effects, _ops
from tfopt.transforms._base import Findings, GraphModel, transform
from tfopt.transforms._graph import Body, Tensor

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# Attributes of a function that ask not to inline it.
_WISHES = {
    "_noinline": "its function asks not to be inlined",
    "_XlaMustCompile": "its function is to be compiled by XLA",
    "_implements": "its function stands for an operation of a converter",
}


@transform(adds_nodes=True)
def inline_functions(graph: GraphModel) -> Findings:
    """Replaces calls by the bodies of the functions they call, at any depth.

    Other transforms then see across the border. What a call waits for, and what waits
    for it, keeps its order; effects stay. If, While and Case stay as they are, and
    calls in their functions are inlined there. Nodes keep their names where these are
    free; others are called `call/node`.

    Args:
        graph: The graph.

    Returns:
        `inlined`: number of calls; `skipped`: calls left alone, and why.
    """
    inliner = _Inliner(graph)
    for body in graph.bodies:
        inliner.prepare(body)
    for body in graph.functions.values():
        # Of functions that stay, such as branches.
        _effects.drop_idle_controls(body)
    return {"inlined": inliner.inlined, "skipped": inliner.skipped}


class _Inliner:
    def __init__(self, graph: GraphModel):
        self._graph = graph
        self._prepared: set[str] = set()
        self._recursive = _recursive(graph)
        self.inlined = 0
        self.skipped: list[dict[str, str]] = []

    def prepare(self, body: Body) -> None:
        """Inlines all calls in a body; those in the called functions first."""
        if body.name in self._prepared:
            return
        self._prepared.add(body.name)
        for node in body:
            name = self._callee(node)
            if name is None:
                continue
            reason = self._obstacle(name)
            if reason is not None:
                self.skipped.append({"node": node.name, "reason": reason})
                continue
            callee = self._graph.functions[name]
            self.prepare(callee)
            _effects.drop_idle_controls(callee)
            _Inlining(self._graph, body, node, callee).run()
            self.inlined += 1

    def _callee(self, node: Any) -> str | None:
        """Returns the function that a node calls, if it does nothing else."""
        if node.op in _CALLS:
            return _ops.get(node, "f")
        return node.op if node.op in self._graph.functions else None

    def _obstacle(self, name: str) -> str | None:
        callee = self._graph.functions[name]
        if name in self._recursive:
            return "its function calls itself"
        for wish, reason in _WISHES.items():
            value = callee.function.attr.get(wish)
            if value is not None and (value.b or value.s or value.HasField("func")):
                return reason
        if any(arg.is_ref for arg in callee.function.signature.input_arg):
            return "its function takes references"
        for node in callee.nodes.values():
            # A resource without a name of its own is known by the node's.
            if _ops.get(node, "shared_name") == b"" and callee.is_stateful(node):
                return f"its function has a resource without a name ({node.name})"
        return None


class _Inlining:
    """One call that is replaced."""

    def __init__(self, graph: GraphModel, body: Body, call: Any, callee: Body):
        self._graph = graph
        self._body = body
        self._call = call
        self._callee = callee
        self._arguments = dict(zip(callee.arguments, body.inputs(call), strict=True))
        self._names = _new_names(body, call, callee)
        # In TF1's branches and loops a node without inputs would always run, whether
        # or not the call does; there the whole body waits for all of the call's inputs.
        self._is_strict = _effects.in_flow(body, call)

    def run(self) -> None:
        """Replaces the call."""
        body, call = self._body, self._call
        gate = self._gate()
        copies = [self._copy(node) for node in self._callee.nodes.values()]
        for copy in copies:
            body.insert(copy)
        for copy, node in zip(copies, self._callee.nodes.values(), strict=True):
            self._connect(copy, node, gate)
        returns = [self._inside(tensor) for tensor in self._callee.returns]
        returns = self._with_effects(returns, gate)
        self._replace(returns, gate)
        if call.name in body.nodes and body.nodes[call.name] is call:
            body.remove([call.name])

    def _gate(self) -> list[str]:
        """Returns the control inputs of what must wait for the call's inputs."""
        body, call = self._body, self._call
        waits = body.controls(call)
        if self._is_strict:
            sources = {tensor.node for tensor in self._arguments.values()}
            waits += sorted(sources & body.nodes.keys())
        waits = list(dict.fromkeys(waits))
        if len(waits) < 2:
            return waits
        return [body.add("NoOp", f"{call.name}/start", controls=waits).name]

    def _copy(self, node: Any) -> Any:
        copy = type(node)()
        copy.CopyFrom(node)
        copy.name = self._names[node.name]
        copy.device = node.device or self._call.device
        del copy.input[:]
        if "frame_name" in copy.attr:
            # Two loops of one name would be one.
            copy.attr["frame_name"].s = (
                f"{self._call.name}/".encode() + copy.attr["frame_name"].s
            )
        _fill_placeholders(copy, self._call)
        places = copy.attr["_class"].list.s if "_class" in copy.attr else []
        for index, place in enumerate(places):
            name = place.removeprefix(b"loc:@").decode()
            if place.startswith(b"loc:@") and name in self._names:
                places[index] = f"loc:@{self._names[name]}".encode()
        return copy

    def _connect(self, copy: Any, node: Any, gate: list[str]) -> None:
        inputs = self._callee.inputs(node)
        controls: list[str] = []
        for name in self._callee.controls(node):
            if name in self._names:
                controls.append(self._names[name])
            elif self._arguments[name].node in self._body.nodes:
                controls.append(self._arguments[name].node)
        is_first = all(tensor.node in self._arguments for tensor in inputs)
        if self._is_strict:
            is_first = is_first and not controls
        else:
            # What has no effect, and sees none, may run at any time.
            is_first = self._callee.is_stateful(node)
        if is_first:
            controls += gate
        self._body.set_inputs(copy, [self._inside(t) for t in inputs], controls)

    def _inside(self, tensor: Tensor) -> Tensor:
        if tensor.node in self._arguments:
            return self._arguments[tensor.node]
        return Tensor(self._names[tensor.node], tensor.output)

    def _effects(self) -> list[str]:
        return [self._names[name] for name in _effects.effects(self._callee)]

    def _with_effects(self, returns: list[Tensor], gate: list[str]) -> list[Tensor]:
        """Makes whoever takes a result of the call cause all of its effects.

        A function runs its stateful operations anyway; the graph, only what is asked
        for. In TF1's branches results come only with all of the call's inputs.
        """
        body = self._body
        effects = self._effects() if body.function is None else []
        types = _ops.output_types(self._call, self._graph.library) or []
        found = []
        for tensor, kind in zip(returns, types, strict=True):
            needed = body.reachable([tensor.node])
            waits = [name for name in effects if name not in needed]
            if self._is_strict and tensor in self._arguments.values():
                waits += gate
            if waits:
                node = body.add(
                    "Identity",
                    f"{self._call.name}/result",
                    [tensor],
                    controls=waits,
                    T=_ops.Type(kind),
                )
                tensor = Tensor(node.name)
            found.append(tensor)
        return found

    def _replace(self, returns: list[Tensor], gate: list[str]) -> None:
        """Leads all that took something of the call to what stands for it."""
        body, call = self._body, self._call
        types = _ops.output_types(call, self._graph.library) or []
        body.redirect_all(
            {Tensor(call.name, index): one for index, one in enumerate(returns)}
        )
        waiting = body.control_uses(call.name)
        is_kept = body.is_kept(call.name)
        if not waiting and not is_kept:
            return
        sources = {tensor.node for tensor in self._arguments.values()}
        waits = [
            *self._effects(),
            *body.controls(call),
            *gate,
            *(tensor.node for tensor in returns),
            *(name for name in sorted(sources) if name in body.nodes),
        ]
        waits = [
            name
            for name in dict.fromkeys(waits)
            if name in body.nodes and body.nodes[name].op != "Const"
        ]
        if is_kept and body.function is None:
            done = self._keep(returns, types, waits)
        elif len(waits) == 1:
            done = waits[0]
        else:
            done = body.add("NoOp", f"{call.name}/done", controls=waits).name
        if body.function is not None:
            _effects.rename_control(body, call.name, done)
        for node in waiting:
            others = [name for name in body.controls(node) if name != call.name]
            body.set_inputs(node, body.inputs(node), [*others, done])

    def _keep(self, returns: list[Tensor], types: list[int], waits: list[str]) -> str:
        """Puts a node of the same name and outputs in the call's place."""
        body, call = self._body, self._call
        name = call.name
        body.remove([name])
        kinds = [_ops.Type(kind) for kind in types]
        if not returns:
            body.add("NoOp", name, controls=waits)
        elif len(returns) == 1:
            body.add("Identity", name, returns, T=kinds[0])
        else:
            body.add("IdentityN", name, returns, T=kinds)
        return name


def _new_names(body: Body, call: Any, callee: Body) -> dict[str, str]:
    """Returns the names of the callee's nodes in the body that calls it.

    The names that they have, where these are free: prefixes of calls in calls can make
    up half of a small graph's file.
    """
    names: dict[str, str] = {}
    taken = {*body.nodes, *body.arguments}
    for name in callee.nodes:
        new = name if name not in taken else f"{call.name}/{name}"
        number = 0
        while new in taken:
            number += 1
            new = f"{call.name}/{name}_{number}"
        taken.add(new)
        names[name] = new
    return names


def _fill_placeholders(node: Any, call: Any) -> None:
    """Puts the call's attributes in the place of a polymorphic function's."""
    given = call.attr["f"].func.attr if call.op in _CALLS else call.attr
    for value in node.attr.values():
        if value.WhichOneof("value") == "placeholder" and value.placeholder in given:
            value.CopyFrom(given[value.placeholder])


def _recursive(graph: GraphModel) -> set[str]:
    """Returns the functions that may call themselves, by whatever way."""
    calls = {
        name: {
            called
            for node in body.nodes.values()
            for called in (node.op, *_ops.functions_of(node))
            if called in graph.functions
        }
        for name, body in graph.functions.items()
    }
    found = set()
    for name in calls:
        pending, seen = list(calls[name]), set()
        while pending:
            called = pending.pop()
            if called not in seen:
                seen.add(called)
                pending += calls[called]
        if name in seen:
            found.add(name)
    return found
