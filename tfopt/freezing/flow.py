"""Which variables reach which tensors, through functions, branches and loops.

A small abstract interpreter over graphs. The value of a tensor is the set of things
("atoms") that it may stand for: a variable's handle, another resource, the content of a
checkpoint entry, or literal text. What an operation makes of its inputs is known only
for those that create atoms (given by the caller) or hand them on (`_PASS_THROUGH` and
calls, below); every other output is the empty set. A function is interpreted once per
distinct set of arguments, so two callers that pass different variables stay apart.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from tfopt.savedmodel import protos
from tfopt.types import ConversionError


class Variable(NamedTuple):
    """A variable by identity; `is_ref` for TF1's mutable tensors (no resources)."""

    name: str
    is_ref: bool


class Resource(NamedTuple):
    """Another resource (table, iterator, ...) by the node that makes its handle."""

    node: str


class Restored(NamedTuple):
    """The content of a checkpoint entry; `part` is RestoreV2's slice text."""

    key: str
    part: str


class Text(NamedTuple):
    """A constant string tensor."""

    values: tuple[bytes, ...]


Atom = Variable | Resource | Restored | Text
Atoms = frozenset[Atom]
NOTHING: Atoms = frozenset()

# What an operation creates: (graph body, node, values of its inputs) -> values by
# output, or None to be treated as usual.
Source = Callable[["Body", Any, Sequence[Atoms]], "list[Atoms] | None"]


class _Outputs(NamedTuple):
    """Names of an operation's outputs, as functions refer to them."""

    names: tuple[str, ...]
    is_list: bool = False


_ONE = _Outputs(("output",))
_OUTPUTS = {
    "Case": _Outputs(("output",), True),
    "Const": _ONE,
    "Enter": _ONE,
    "Exit": _ONE,
    "Identity": _ONE,
    "IdentityN": _Outputs(("output",), True),
    "If": _Outputs(("output",), True),
    "Merge": _Outputs(("output", "value_index")),
    "NextIteration": _ONE,
    "PartitionedCall": _Outputs(("output",), True),
    "RefEnter": _ONE,
    "RefExit": _ONE,
    "RefIdentity": _ONE,
    "RefMerge": _Outputs(("output", "value_index")),
    "RefNextIteration": _ONE,
    "RefSwitch": _Outputs(("output_false", "output_true")),
    "RemoteCall": _Outputs(("output",), True),
    "Reshape": _ONE,
    "RestoreV2": _Outputs(("tensors",), True),
    "StatefulPartitionedCall": _Outputs(("output",), True),
    "StatelessCase": _Outputs(("output",), True),
    "StatelessIf": _Outputs(("output",), True),
    "StatelessWhile": _Outputs(("output",), True),
    "Switch": _Outputs(("output_false", "output_true")),
    "BatchFunction": _Outputs(("out_tensors",), True),
    "VarHandleOp": _Outputs(("resource",)),
    "Variable": _Outputs(("ref",)),
    "VariableV2": _Outputs(("ref",)),
    "While": _Outputs(("output",), True),
}

# Operations whose outputs are some of their inputs: input for each output, or "all" for
# a choice between all inputs.
PASS_THROUGH: dict[str, tuple[int, ...] | str] = {
    "Enter": (0,),
    "Exit": (0,),
    "Identity": (0,),
    "IdentityN": "each",
    "Merge": "all",
    "NextIteration": (0,),
    "RefEnter": (0,),
    "RefExit": (0,),
    "RefIdentity": (0,),
    "RefMerge": "all",
    "RefNextIteration": (0,),
    "RefSwitch": (0, 0),
    "Reshape": (0,),
    "Switch": (0, 0),
}


class Call(NamedTuple):
    """How an operation calls functions.

    Attributes:
        functions: Attributes that name the called functions.
        first: Position of the first input that is an argument.
        input_types: Attributes with the arguments' types, joined.
        output_types: Attribute with the results' types.
        is_loop: Whether results are arguments of the next call.
    """

    functions: tuple[str, ...]
    first: int
    input_types: tuple[str, ...]
    output_types: str
    is_loop: bool = False


_BRANCH = Call(("then_branch", "else_branch"), 1, ("Tin",), "Tout")
_SWITCH = Call(("branches",), 1, ("Tin",), "Tout")
_LOOP = Call(("cond", "body"), 0, ("T",), "T", is_loop=True)
_PLAIN = Call(("f",), 0, ("Tin",), "Tout")
CALLS = {
    "BatchFunction": Call(("f",), 0, ("Tin", "Tcaptured"), "Tout"),
    "Case": _SWITCH,
    "If": _BRANCH,
    "PartitionedCall": _PLAIN,
    "RemoteCall": Call(("f",), 1, ("Tin",), "Tout"),
    "StatefulPartitionedCall": _PLAIN,
    "StatelessCase": _SWITCH,
    "StatelessIf": _BRANCH,
    "StatelessWhile": _LOOP,
    "While": _LOOP,
}
# A node whose operation is a function's name (TF1's Defun).
_DIRECT = Call((), 0, (), "")


class Body:
    """The nodes of a graph or of a function, with one way to name tensors.

    A tensor is `"node:0"` in a graph; in a function `"argument"` or `"node:output:0"`.

    Args:
        nodes: The NodeDefs.
        name: The function's name, `""` for the graph.
        arguments: Names of the function's arguments.
        returns: The tensors that the function returns, in order.
    """

    def __init__(
        self,
        nodes: Iterable[Any],
        *,
        name: str = "",
        arguments: Sequence[str] = (),
        returns: Sequence[str] = (),
    ):
        self.name = name
        self.arguments = tuple(arguments)
        self._argument_names = frozenset(arguments)
        self._inputs: dict[str, list[str]] = {}
        self.nodes = {node.name: node for node in nodes}
        self.returns = tuple(self.tensor(ref) for ref in returns)
        self.order, self.has_cycle = self._sort()

    @property
    def is_function(self) -> bool:
        """Whether this is a function's body."""
        return bool(self.name)

    def tensor(self, ref: str) -> str:
        """Returns the one name of a tensor that a node or signature refers to."""
        if ref in self._argument_names:
            return ref
        colons = ref.count(":")
        if colons == (2 if self.is_function else 1):
            return ref
        return ref + ":0"

    def inputs(self, node: Any) -> list[str]:
        """Returns the tensors that a node takes, without control inputs."""
        if node.name not in self._inputs:
            self._inputs[node.name] = [
                self.tensor(ref) for ref in node.input if not ref.startswith("^")
            ]
        return self._inputs[node.name]

    def output(self, node: Any, index: int) -> str:
        """Returns the name of a node's output; in a function, of known ones only."""
        if not self.is_function:
            return f"{node.name}:{index}"
        outputs = _OUTPUTS.get(node.op, _ONE)
        if outputs.is_list:
            return f"{node.name}:{outputs.names[0]}:{index}"
        return f"{node.name}:{outputs.names[index]}:0"

    def _sort(self) -> tuple[list[Any], bool]:
        """Returns the nodes, inputs first, and whether loops made that impossible."""
        order: list[Any] = []
        state: dict[str, bool] = {}  # False while its inputs are visited.
        has_cycle = False
        for root in self.nodes.values():
            stack = [root]
            while stack:
                node = stack[-1]
                if node.name in state:
                    stack.pop()
                    if not state[node.name]:
                        state[node.name] = True
                        order.append(node)
                    continue
                state[node.name] = False
                for ref in node.input:
                    name = producer(ref)
                    if name in self.nodes and name not in state:
                        stack.append(self.nodes[name])
                    elif state.get(name) is False:
                        has_cycle = True
        return order, has_cycle


def producer(ref: str) -> str:
    """Returns the name of the node (or argument) behind an input.

    Example:
        >>> producer("^init"), producer("split:1"), producer("Read:value:0")
        ('init', 'split', 'Read')
    """
    return ref.removeprefix("^").split(":", 1)[0]


@dataclasses.dataclass
class Context:
    """A body, interpreted with certain arguments."""

    body: Body
    arguments: tuple[Atoms, ...]
    values: dict[str, Atoms]

    def inputs(self, node: Any) -> list[Atoms]:
        """Returns the values of a node's inputs."""
        return [self.values.get(ref, NOTHING) for ref in self.body.inputs(node)]

    def returns(self) -> list[Atoms]:
        """Returns the values of a function's results."""
        return [self.values.get(ref, NOTHING) for ref in self.body.returns]


class Flow:
    """Interprets a graph and, as it meets them, its functions.

    Args:
        nodes: NodeDefs of the graph (a part of a graph will do).
        library: The graph's FunctionDefs by name.
        source: What operations create.

    Attributes:
        main: The graph's own context.
        contexts: Every context that was met, the graph's first.
    """

    def __init__(self, nodes: Iterable[Any], library: dict[str, Any], source: Source):
        self.library = library
        self._source = source
        self._bodies: dict[str, Body] = {}
        self._known: dict[tuple[str, tuple[Atoms, ...]], Context] = {}
        self.main = Context(Body(nodes), (), {})
        self._interpret(self.main)

    @property
    def contexts(self) -> list[Context]:
        """The graph's context, then those of functions."""
        return [self.main, *self._known.values()]

    def body(self, function: str) -> Body:
        """Returns a function's body."""
        if function not in self._bodies:
            if function not in self.library:
                raise ConversionError(
                    "The graph calls a function that it doesn't have. Expected an "
                    f"undamaged model. Received: function={function!r}"
                )
            definition = self.library[function]
            self._bodies[function] = Body(
                definition.node_def,
                name=function,
                arguments=[arg.name for arg in definition.signature.input_arg],
                returns=[
                    definition.ret[arg.name] for arg in definition.signature.output_arg
                ],
            )
        return self._bodies[function]

    def call(self, node: Any) -> Call | None:
        """Returns how a node calls functions, `None` if it doesn't."""
        if node.op in self.library:
            return _DIRECT
        return CALLS.get(node.op)

    def callees(self, node: Any) -> list[str]:
        """Returns the functions that a call node calls."""
        if node.op in self.library:
            return [node.op]
        return [
            function.name
            for name in CALLS[node.op].functions
            for function in functions_of(attr(node, name))
        ]

    def attached(self, node: Any) -> list[str]:
        """Returns the functions in the attributes of a node that isn't a known call.

        Operations on datasets, say: what they pass to the function isn't known.
        """
        if self.call(node) is not None:
            return []
        return [
            function.name
            for value in node.attr.values()
            for function in functions_of(value)
            if function.name in self.library
        ]

    def unknown_arguments(self, function: str) -> tuple[Atoms, ...]:
        """Returns arguments of which nothing is known."""
        return tuple(NOTHING for _ in self.body(function).arguments)

    def arguments(self, context: Context, node: Any) -> tuple[Atoms, ...]:
        """Returns the values that reach the functions which a node calls."""
        call = self.call(node) or _DIRECT
        values = context.inputs(node)[call.first :]
        if call.is_loop:
            results = self.results(context, node)
            values = [a | b for a, b in zip(values, results, strict=True)]
        return tuple(values)

    def results(self, context: Context, node: Any) -> list[Atoms]:
        """Returns the values of a call node's outputs."""
        call = self.call(node) or _DIRECT
        values = context.inputs(node)[call.first :]
        if call.is_loop:
            return self._loop(node, values)
        outcomes = [
            self.context(callee, tuple(values)).returns()
            for callee in self.callees(node)
        ]
        return [frozenset().union(*found) for found in zip(*outcomes, strict=True)]

    def context(self, function: str, arguments: tuple[Atoms, ...]) -> Context:
        """Returns the interpretation of a function with these arguments."""
        key = (function, arguments)
        if key not in self._known:
            body = self.body(function)
            if len(body.arguments) != len(arguments):
                raise ConversionError(
                    "The graph calls a function in a way that isn't understood. "
                    f"Expected {len(body.arguments)} arguments. "
                    f"Received: {len(arguments)} for function={function!r}"
                )
            values = dict(zip(body.arguments, arguments, strict=True))
            # Known before it is complete: a recursive call sees what there is so far.
            self._known[key] = context = Context(body, arguments, values)
            self._interpret(context)
        return self._known[key]

    def _loop(self, node: Any, values: list[Atoms]) -> list[Atoms]:
        condition, body = self.callees(node)
        while True:
            results = self.context(body, tuple(values)).returns()
            merged = [a | b for a, b in zip(values, results, strict=True)]
            if merged == values:
                self.context(condition, tuple(values))
                return values
            values = merged

    def _interpret(self, context: Context) -> None:
        changed = True
        while changed:
            changed = False
            for node in context.body.order:
                for ref, atoms in self._outputs(context, node):
                    if not atoms <= context.values.get(ref, NOTHING):
                        known = context.values.get(ref, NOTHING)
                        context.values[ref] = known | atoms
                        changed = context.body.has_cycle

    def _outputs(self, context: Context, node: Any) -> Iterator[tuple[str, Atoms]]:
        body = context.body
        inputs = context.inputs(node)
        created = self._source(body, node, inputs)
        if created is not None:
            outputs = created
        elif self.call(node) is not None:
            outputs = self.results(context, node)
        else:
            for function in self.attached(node):
                self.context(function, self.unknown_arguments(function))
            outputs = _handed_on(node, inputs)
        for index, atoms in enumerate(outputs):
            if not atoms:
                continue
            if node.op in self.library:
                name = self.library[node.op].signature.output_arg[index].name
                ref = f"{node.name}:{name}:0" if body.is_function else ""
                yield ref or f"{node.name}:{index}", atoms
            else:
                yield body.output(node, index), atoms


def attr(node: Any, name: str) -> Any:
    """Returns a node's (or function's) attribute, an empty one if it has none.

    `node.attr[name]` alone would add the attribute to the node.
    """
    return node.attr[name] if name in node.attr else _no_attr()


@functools.cache
def _no_attr() -> Any:
    return protos.message_class("AttrValue")()


def functions_of(value: Any) -> list[Any]:
    """Returns the functions that an attribute names."""
    if value.HasField("func"):
        return [value.func]
    return list(value.list.func)


def _handed_on(node: Any, inputs: Sequence[Atoms]) -> list[Atoms]:
    rule = PASS_THROUGH.get(node.op)
    if rule is None or not any(inputs):
        return []
    if rule == "all":
        outputs = [frozenset().union(*inputs)]
    elif rule == "each":
        outputs = list(inputs)
    else:
        outputs = [inputs[int(position)] for position in rule]
    if node.op.startswith("Ref"):
        return outputs
    # A reference that meets a plain operation is read: its value goes on.
    return [
        frozenset(
            atom for atom in atoms if not (isinstance(atom, Variable) and atom.is_ref)
        )
        for atoms in outputs
    ]
