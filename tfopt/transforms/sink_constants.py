"""`sink_constants`: constants that are passed to functions move into them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tfopt.transforms import _calls, _constants, _ops
from tfopt.transforms._base import Findings, GraphModel, transform
from tfopt.transforms._calls import CallSite
from tfopt.transforms._graph import Body, Tensor

# Storing a constant of so many bytes twice does no harm.
_SMALL = 1024


class _Argument(NamedTuple):
    """One argument of one function."""

    function: str
    position: int


# A loop loses outputs, so its types change.
@transform(adds_nodes=True, keeps_dtypes=False)
def sink_constants(graph: GraphModel) -> Findings:
    """Moves constants that are passed to functions into the functions.

    So other transforms find them in the bodies of branches, loops and functions. The
    argument vanishes. That takes that all calls of the function pass equal constants,
    and in a loop that no round changes the argument. What is larger than a kilobyte
    moves only if it is stored no more often than before.

    Args:
        graph: The graph.

    Returns:
        `sunk`: number of arguments that became constants; `skipped`: large constants
        that would have been stored twice.
    """
    sunk = 0
    while True:
        # A constant that reached a function may be passed on there.
        round_ = _Round(graph)
        round_.run()
        sunk += round_.sunk
        if not round_.sunk:
            return {"sunk": sunk, "skipped": round_.skipped}


class _Round:
    """The calls as they are now."""

    def __init__(self, graph: GraphModel):
        self._graph = graph
        self._sites, self._otherwise = _calls.find(graph)
        self._callers: dict[str, list[CallSite]] = {}
        for site in self._sites:
            for name in dict.fromkeys(site.functions):
                self._callers.setdefault(name, []).append(site)
        self.sunk = 0
        self.skipped: list[dict[str, str]] = []

    def run(self) -> None:
        """Moves what can be moved."""
        chosen: dict[_Argument, Any] = {}
        for group in self._groups():
            value = self._common_value(group)
            if value is not None and self._is_worth_it(group, value):
                chosen.update(dict.fromkeys(group, value))
        if chosen:
            self._sink(chosen)
            self.sunk = len(chosen)

    def _groups(self) -> list[list[_Argument]]:
        """Returns the arguments that can only vanish together.

        Both branches of an If take the same inputs, for example.
        """
        group_of: dict[_Argument, list[_Argument]] = {}
        for site in self._sites:
            for position in range(len(site.arguments)):
                joined: list[_Argument] = []
                for name in dict.fromkeys(site.functions):
                    argument = _Argument(name, position)
                    members = group_of.get(argument, [argument])
                    joined += [one for one in members if one not in joined]
                for argument in joined:
                    group_of[argument] = joined
        return list({id(group): group for group in group_of.values()}.values())

    def _group_sites(self, group: Sequence[_Argument]) -> list[CallSite]:
        sites = [site for one in group for site in self._callers[one.function]]
        return list({id(site.node): site for site in sites}.values())

    def _common_value(self, group: Sequence[_Argument]) -> Any:
        """Returns the TensorProto that all calls pass, `None` if there is none."""
        position = group[0].position
        for argument in group:
            function = self._graph.functions[argument.function].function
            if argument.function in self._otherwise or function.signature.attr:
                return None
        values = {}
        sites = self._group_sites(group)
        # What is a loop's body here must not be called otherwise there: its results
        # vanish with its arguments.
        roles = {
            (one.function, site.is_loop and site.functions[1] == one.function)
            for one in group
            for site in self._callers[one.function]
        }
        if len(roles) > len(group):
            return None
        for site in sites:
            source = _constants.source_of(site.body, site.arguments[position])
            if source is None or not self._is_constant_in(site, position):
                return None
            value = source.attr["value"].tensor
            values[value.SerializeToString(deterministic=True)] = value
        return next(iter(values.values())) if len(values) == 1 else None

    def _is_constant_in(self, site: CallSite, position: int) -> bool:
        """Whether a loop hands the argument on unchanged; other calls do no more."""
        if not site.is_loop:
            return True
        if site.body.function is None and site.body.is_kept(site.node.name):
            # Callers know its results by their numbers.
            return False
        body = self._graph.functions[site.functions[1]]
        return _origin(body, body.returns[position]) == Tensor(body.arguments[position])

    def _is_worth_it(self, group: Sequence[_Argument], value: Any) -> bool:
        """Whether a constant is small, or stored no more often than before."""
        if value.ByteSize() <= _SMALL:
            return True
        position = group[0].position
        sites = self._group_sites(group)
        sources, staying = set(), set()
        passed = {
            (id(site.body), site.node.name, site.first + position) for site in sites
        }
        for site in sites:
            node = _constants.source_of(site.body, site.arguments[position])
            sources.add((site.body.name, node.name))
            if _is_used_elsewhere(site.body, Tensor(node.name), passed):
                staying.add((site.body.name, node.name))
        loops = {site.functions[1] for site in sites if site.is_loop}
        users = sum(self._is_used(one, one.function in loops) for one in group)
        if users + len(staying) <= len(sources):
            return True
        self.skipped += [
            {"node": name, "reason": "it would be stored more than once"}
            for _, name in sorted(sources)
        ]
        return False

    def _is_used(self, argument: _Argument, is_round: bool) -> bool:
        """Whether a function does more with an argument than to hand it on."""
        body = self._graph.functions[argument.function]
        tensor = Tensor(body.arguments[argument.position])
        returns = list(body.returns)
        if is_round:
            del returns[argument.position]
        return any(_origin(body, one) == tensor for one in returns) or any(
            use.node.op != "Identity" or body.uses(Tensor(use.node.name))
            for use in body.uses(tensor)
        )

    def _sink(self, chosen: dict[_Argument, Any]) -> None:
        gone: dict[str, set[int]] = {}
        for argument, value in chosen.items():
            gone.setdefault(argument.function, set()).add(argument.position)
            body = self._graph.functions[argument.function]
            _become_constant(body, argument.position, value)
        for site in self._sites:
            positions = gone.get(site.functions[0])
            if positions:
                _calls.drop_arguments(site, positions)
        loops = {site.functions[1] for site in self._sites if site.is_loop}
        for name, positions in gone.items():
            body = self._graph.functions[name]
            if name in loops:
                _calls.drop_returns(body, positions)
            _calls.drop_parameters(body, positions)


def _become_constant(body: Body, position: int, value: Any) -> None:
    """Leads all uses of an argument to a new constant, if there are any."""
    name = body.arguments[position]
    argument = Tensor(name)
    if not body.uses(argument) and not body.is_returned(argument):
        return
    node = body.add("Const", name, value=value, dtype=_ops.Type(value.dtype))
    body.redirect(argument, Tensor(node.name))


def _origin(body: Body, tensor: Tensor) -> Tensor:
    """Returns the tensor of which this one is a copy."""
    node = body.producer(tensor)
    while node is not None and node.op == "Identity":
        tensor = body.input(node, 0)
        node = body.producer(tensor)
    return tensor


def _is_used_elsewhere(
    body: Body, tensor: Tensor, passed: set[tuple[int, str, int]]
) -> bool:
    """Whether anything but these inputs (body, node, position) takes a tensor."""
    if body.is_returned(tensor):
        return True
    for node, position in body.uses(tensor):
        if (id(body), node.name, position) in passed:
            continue
        if node.op != "Identity" or _is_used_elsewhere(body, Tensor(node.name), passed):
            return True
    return False
