"""Calls of functions, and how arguments are taken away from both sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from tfopt.freezing import flow
from tfopt.transforms import _ops
from tfopt.transforms._graph import Body, GraphModel, Tensor

# Calls whose arguments are understood in full.
_KNOWN = frozenset(
    {
        *("Case", "If", "PartitionedCall", "StatefulPartitionedCall"),
        *("StatelessCase", "StatelessIf", "StatelessWhile", "While"),
    }
)
# Positions of the inputs that are resources and only read.
_READ_ONLY = "_read_only_resource_inputs"


@dataclasses.dataclass(frozen=True)
class CallSite:
    """A node that calls functions with its inputs.

    Attributes:
        body: Where the node is.
        node: The node.
        functions: What it calls; each takes all arguments.
        first: Position of the first input that is an argument.
        is_loop: Whether results are the arguments of the next round.
    """

    body: Body
    node: Any
    functions: tuple[str, ...]
    first: int
    is_loop: bool

    @property
    def arguments(self) -> list[Tensor]:
        """What it passes."""
        return self.body.inputs(self.node)[self.first :]


def find(graph: GraphModel) -> tuple[list[CallSite], set[str]]:
    """Returns all calls, and the functions that are used in other ways as well."""
    sites = []
    otherwise: set[str] = set()
    for body in graph.bodies:
        for node in body.nodes.values():
            if node.op in _KNOWN:
                call = flow.CALLS[node.op]
                names = tuple(
                    function.name
                    for attribute in call.functions
                    for function in flow.functions_of(node.attr[attribute])
                )
                site = CallSite(body, node, names, call.first, call.is_loop)
                sites.append(site)
            else:
                otherwise.update([node.op, *_ops.functions_of(node)])
    return sites, otherwise


def drop_arguments(site: CallSite, gone: Collection[int]) -> None:
    """Takes arguments away from a call; of a loop, the results as well.

    Results of a loop that are gone must be such as stay the same in every round; who
    took them is led to what was passed in. The functions are not changed.
    """
    body, node = site.body, site.node
    arguments = site.arguments
    if site.is_loop:
        left = [index for index in range(len(arguments)) if index not in gone]
        name = node.name
        moved = {Tensor(name, old): Tensor(name, new) for new, old in enumerate(left)}
        moved.update({Tensor(name, index): arguments[index] for index in gone})
        body.redirect_all(moved)
        for attribute in ("output_shapes", "_output_shapes"):
            if attribute in node.attr and node.attr[attribute].list.shape:
                _drop(node.attr[attribute].list.shape, gone)
        node.attr.pop("_num_original_outputs", None)
    before = body.inputs(node)[: site.first]
    body.set_inputs(
        node, before + [one for n, one in enumerate(arguments) if n not in gone]
    )
    (attribute,) = flow.CALLS[node.op].input_types
    _drop(node.attr[attribute].list.type, gone)
    if _READ_ONLY in node.attr:
        listed = node.attr[_READ_ONLY].list.i
        listed[:] = [
            index - sum(one + site.first < index for one in gone)
            for index in listed
            if index - site.first not in gone
        ]


def drop_parameters(body: Body, gone: Collection[int]) -> None:
    """Takes arguments away from a function; nothing may use them any more."""
    function = body.function
    _drop(function.signature.input_arg, gone)
    if "_input_shapes" in function.attr:
        _drop(function.attr["_input_shapes"].list.shape, gone)
    left = [index for index in range(len(body.arguments)) if index not in gone]
    for field in (function.arg_attr, function.resource_arg_unique_id):
        _renumber(field, left)
    body.arguments = tuple(body.arguments[index] for index in left)
    body.changed()


def drop_returns(body: Body, gone: Collection[int]) -> None:
    """Takes results away from a function."""
    function = body.function
    for index in gone:
        del function.ret[function.signature.output_arg[index].name]
    _drop(function.signature.output_arg, gone)
    body.returns = [one for n, one in enumerate(body.returns) if n not in gone]


def _drop(items: Any, gone: Collection[int]) -> None:
    """Deletes entries of a repeated field."""
    for index in sorted(gone, reverse=True):
        if index < len(items):
            del items[index]


def _renumber(field: Any, left: list[int]) -> None:
    """Renumbers the keys of a map: `left` lists the old keys that stay, in order."""
    old = dict(field)
    old = {
        key: type(value).FromString(value.SerializeToString())
        if hasattr(value, "SerializeToString")
        else value
        for key, value in old.items()
    }
    field.clear()
    for new, key in enumerate(left):
        if key not in old:
            continue
        if hasattr(old[key], "SerializeToString"):
            field[new].CopyFrom(old[key])
        else:
            field[new] = old[key]
