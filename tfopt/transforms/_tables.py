"""Tables that functions look up: the arguments on their way there change their type."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tfopt.savedmodel import dtypes
from tfopt.transforms import _ops, _weights
from tfopt.transforms._draft import Draft
from tfopt.transforms._graph import Body, GraphModel, Tensor
from tfopt.transforms._weights import Consumer, Weight

_SAME = ("Identity", "Snapshot", "StopGradient", "PreventGradient")
_LOOPS = ("While", "StatelessWhile")
# Attributes with the types and shapes of what a calling node takes.
_TYPES = ("Tin", "T")
_SHAPES = "output_shapes"


@dataclasses.dataclass
class Reach:
    """Where a table goes, beyond the body that it is in.

    Attributes:
        arguments: Function -> the argument that is the table there.
        calls: Nodes that hand it over: their body, themselves, and which input it is.
        carriers: Nodes in functions that pass it on unchanged.
        others: Nodes in functions that take the whole table, and as which input.
    """

    arguments: dict[str, str] = dataclasses.field(default_factory=dict)
    calls: list[tuple[Body, Any, int]] = dataclasses.field(default_factory=list)
    carriers: list[tuple[Body, Any]] = dataclasses.field(default_factory=list)
    others: list[tuple[Body, Any, int]] = dataclasses.field(default_factory=list)

    def results(self, body: Body) -> list[Tensor]:
        """Returns what loops in a body hand out of it."""
        return [
            Tensor(node.name, position)
            for where, node, position in self.calls
            if where is body and node.op in _LOOPS
        ]

    def change_types(
        self,
        graph: GraphModel,
        drafts: dict[str, Draft],
        stored: np.ndarray,
        home: tuple[Body, Tensor],
    ) -> None:
        """Makes arguments take codes.

        Args:
            graph: The graph.
            drafts: The edits of the bodies concerned.
            stored: The codes.
            home: Where the codes are, and their tensor.
        """
        for name, argument in self.arguments.items():
            function = graph.functions[name].function
            index = graph.functions[name].arguments.index(argument)
            function.signature.input_arg[index].type = dtypes.from_numpy(stored.dtype)
            if index in function.arg_attr:
                _forget_shapes(function.arg_attr[index])
        for _, node in self.carriers:
            _ops.set_attributes(node, T=stored.dtype)
            _forget_shapes(node)
        body, tensor = home
        for where, node, position in self.calls:
            if where is body:
                inputs = drafts[where.name].inputs[node.name]
                if node.op in _LOOPS:
                    made = Tensor(node.name, position)
                    drafts[where.name].move(made, inputs[position])
                inputs[position] = tensor
            _retype_call(graph, node, position, stored)


def _retype_call(
    graph: GraphModel, node: Any, position: int, stored: np.ndarray
) -> None:
    number = dtypes.from_numpy(stored.dtype)
    if node.op not in graph.functions:
        index = position - _weights.CALLS[node.op][1]
        name = next(name for name in _TYPES if name in node.attr)
        node.attr[name].list.type[index] = number
    if node.op not in _LOOPS:
        return
    shapes = node.attr[_SHAPES].list.shape
    if shapes:
        del shapes[position].dim[:]
        for size in stored.shape:
            shapes[position].dim.add(size=size)
    _forget_shapes(node)
    body = graph.functions[_ops.get(node, "body")].function
    body.signature.output_arg[position].type = number


def _forget_shapes(message: Any) -> None:
    if "_output_shapes" in message.attr:
        del message.attr["_output_shapes"]


def is_carried(graph: GraphModel, consumer: Consumer) -> bool:
    """Whether only calls, and nodes that change nothing, lead to a lookup."""
    return consumer.view.axes is not None and all(
        node.op in _SAME or node.op in _weights.CALLS or node.op in graph.functions
        for _, node in consumer.path
    )


def follow(graph: GraphModel, weight: Weight) -> Reach | str:
    """Returns where a table goes, or why it cannot go there as codes.

    It can if nobody calls those functions with anything else, and loops hand it on
    unchanged.

    Args:
        graph: The graph, not edited yet.
        weight: A table with lookups in functions.
    """
    looked_up = {
        (item.body.name, item.node.name)
        for item in weight.consumers
        if item.is_lookup and item.body is not weight.body and is_carried(graph, item)
    }
    reach = Reach()
    pending = [(weight.body, Tensor(weight.node.name))]
    seen: set[tuple[str, Tensor]] = set()
    while pending:
        body, tensor = pending.pop()
        if (body.name, tensor) in seen:
            continue
        seen.add((body.name, tensor))
        for node, position in body.uses(tensor):
            inner = list(_weights.arguments(graph, node, position))
            if node.op in _SAME:
                if body is not weight.body:
                    reach.carriers.append((body, node))
                pending.append((body, Tensor(node.name)))
            elif inner:
                reach.calls.append((body, node, position))
                pending += inner
                if node.op in _LOOPS:  # They hand it out again, unchanged.
                    pending.append((body, Tensor(node.name, position)))
                for function, argument in inner:
                    known = reach.arguments.setdefault(function.name, argument.node)
                    if known != argument.node:
                        return "a function takes it twice"
            elif body is weight.body or (body.name, node.name) in looked_up:
                continue
            else:
                reach.others.append((body, node, position))
    return _obstacle(graph, weight, reach, seen) or reach


def _obstacle(
    graph: GraphModel, weight: Weight, reach: Reach, seen: set[tuple[str, Tensor]]
) -> str | None:
    """Returns why arguments cannot change their type."""
    called = {(body.name, node.name, position) for body, node, position in reach.calls}
    loops = {_ops.get(node, "body") for _, node, _ in reach.calls if node.op in _LOOPS}
    for body in graph.bodies:
        for node in body:
            for name in {node.op, *_ops.functions_of(node)} & reach.arguments.keys():
                argument = Tensor(reach.arguments[name])
                if not any(
                    (graph.functions[name], argument)
                    in list(_weights.arguments(graph, node, position))
                    and (body.name, node.name, position) in called
                    for position in range(len(body.inputs(node)))
                ):
                    return f"function {name!r} is also called with something else"
    for name, taken in reach.arguments.items():
        inner = graph.functions[name]
        index = inner.arguments.index(taken)
        if not inner.function.signature.input_arg[index].type:
            return f"function {name!r} leaves the type open"
        for number, result in enumerate(inner.returns):
            # A loop's body hands it to the next round, in the same place.
            if ((name, result) in seen) != (name in loops and number == index):
                return f"function {name!r} returns it, or changes it"
    for body, node, position in reach.calls:
        made = Tensor(node.name, position)
        is_home = body is weight.body
        if node.op in _LOOPS and is_home and body.is_returned(made):
            return f"loop {node.name!r} hands it on"
    return None
