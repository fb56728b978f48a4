"""A graph in memory, for rewriting: bodies of nodes that refer to each other's tensors.

The graph and each function of its library are a `Body`. A tensor is a pair of node and
output number in all of them, although a function writes `"node:output:0"` where the
graph writes `"node:0"`: so a rewrite is written once and works in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tfopt.savedmodel import protos
from tfopt.transforms import _ops
from tfopt.types import TfoptError


class Tensor(NamedTuple):
    """An output of a node, or an argument of a function.

    Attributes:
        node: Name of the node or argument.
        output: Number of the output, counted through lists; `"output:0"` as written if
            the node's operation isn't known; 0 for an argument.
    """

    node: str
    output: int | str = 0


class Use(NamedTuple):
    """One place where a tensor is taken.

    Attributes:
        node: The NodeDef that takes it.
        position: Which of its data inputs.
    """

    node: Any
    position: int


class Body:
    """The nodes of the graph or of one function.

    Edit nodes through the methods: they keep the index of consumers current. Attributes
    of a NodeDef may be changed directly.

    Args:
        nodes: The NodeDefs.
        function: The FunctionDef, `None` for the graph itself.
        kept: Names of nodes that must neither vanish nor change name.
        library: Name -> FunctionDef: their names are operations too.

    Attributes:
        nodes: Name -> NodeDef, in the order in which they are written.
        arguments: Names of the function's arguments.
        kept: See above; in a function the nodes behind control outputs.
        returns: The tensors that the function returns, in order.
    """

    def __init__(
        self,
        nodes: Iterable[Any],
        *,
        function: Any = None,
        kept: Iterable[str] = (),
        library: Mapping[str, Any] | None = None,
    ):
        self.nodes: dict[str, Any] = {node.name: node for node in nodes}
        self.function = function
        self.kept = frozenset(kept)
        self.arguments: tuple[str, ...] = ()
        self.returns: list[Tensor] = []
        self._library = {} if library is None else library
        self._uses: dict[Tensor, list[Use]] | None = None
        self._controls: dict[str, list[Any]] | None = None
        # Node -> tensors and (as text) control inputs, as the index has them.
        self._taken: dict[str, list[Any]] = {}
        if function is not None:
            self.arguments = tuple(arg.name for arg in function.signature.input_arg)
            self.kept |= set(function.control_ret.values())
            self.returns = [
                self.parse(function.ret[arg.name])
                for arg in function.signature.output_arg
            ]

    @property
    def name(self) -> str:
        """The function's name, `""` for the graph."""
        return "" if self.function is None else self.function.signature.name

    def __iter__(self) -> Iterator[Any]:
        """Yields the nodes; the body may be edited meanwhile."""
        return iter(list(self.nodes.values()))

    def __len__(self) -> int:
        return len(self.nodes)

    # Tensors and their names.

    def parse(self, ref: str) -> Tensor:
        """Returns the tensor that a data input (or `ret`) refers to."""
        name, _, rest = ref.partition(":")
        if name in self.arguments:
            return Tensor(name)
        if self.function is None:
            return Tensor(name, int(rest or 0))
        if name not in self.nodes:
            raise TfoptError(
                "A function refers to a node that it doesn't have. Expected an "
                f"undamaged graph. Received: {ref!r} in function {self.name!r}"
            )
        return Tensor(name, _ops.flat_index(self.nodes[name], rest, self._library))

    def ref(self, tensor: Tensor) -> str:
        """Returns how a node of this body writes the tensor."""
        if tensor.node in self.arguments:
            return tensor.node
        if self.function is None:
            return f"{tensor.node}:{tensor.output}" if tensor.output else tensor.node
        node = self.nodes[tensor.node]
        return f"{tensor.node}:{_ops.output_name(node, tensor.output, self._library)}"

    def producer(self, tensor: Tensor) -> Any:
        """Returns the node that makes the tensor; `None` for an argument."""
        return self.nodes.get(tensor.node)

    # Edges.

    def inputs(self, node: Any) -> list[Tensor]:
        """Returns the tensors that a node takes, without control inputs."""
        return [self.parse(ref) for ref in node.input if not ref.startswith("^")]

    def input(self, node: Any, position: int) -> Tensor:
        """Returns one data input."""
        return self.parse(node.input[position])

    def controls(self, node: Any) -> list[str]:
        """Returns the names of the nodes that must run before this one."""
        return [ref[1:] for ref in node.input if ref.startswith("^")]

    def set_inputs(
        self, node: Any, inputs: Sequence[Tensor], controls: Iterable[str] | None = None
    ) -> None:
        """Replaces a node's data inputs, and its control inputs if given."""
        names = self.controls(node) if controls is None else controls
        refs = [self.ref(tensor) for tensor in inputs]
        self._forget(node)
        node.input[:] = refs + ["^" + name for name in dict.fromkeys(names)]
        self._note(node)

    def set_input(self, node: Any, position: int, tensor: Tensor) -> None:
        """Replaces one data input."""
        self._forget(node)
        node.input[position] = self.ref(tensor)
        self._note(node)

    def uses(self, tensor: Tensor) -> list[Use]:
        """Returns where nodes take the tensor (`is_returned` tells the rest)."""
        self._index()
        return list((self._uses or {}).get(tensor, ()))

    def control_uses(self, name: str) -> list[Any]:
        """Returns the nodes that have the node as control input."""
        self._index()
        return list((self._controls or {}).get(name, ()))

    def is_returned(self, tensor: Tensor) -> bool:
        """Whether the tensor leaves the body: an output of the graph or function."""
        return tensor in self.returns or (
            self.function is None and tensor.node in self.kept
        )

    def is_kept(self, name: str) -> bool:
        """Whether the node must stay under its name."""
        return name in self.kept

    def sole_use(self, tensor: Tensor) -> Use | None:
        """Returns the one use of a tensor that has no other and isn't returned."""
        uses = self.uses(tensor)
        alone = len(uses) == 1 and not self.is_returned(tensor)
        return uses[0] if alone else None

    def redirect(self, old: Tensor, new: Tensor) -> None:
        """Makes all that takes `old` take `new`: nodes, and the function's returns.

        What the graph itself returns is known by name and isn't redirected.
        """
        self.redirect_all({old: new})

    def redirect_all(self, tensors: Mapping[Tensor, Tensor]) -> None:
        """Does `redirect` for several tensors at once, each by its old name."""
        moved = [(use, new) for old, new in tensors.items() for use in self.uses(old)]
        touched = {node.name: node for (node, _), _ in moved}
        for node in touched.values():
            self._forget(node)
        for (node, position), new in moved:
            node.input[position] = self.ref(new)
        for node in touched.values():
            self._note(node)
        self.returns = [tensors.get(tensor, tensor) for tensor in self.returns]

    def changed(self) -> None:
        """Forgets the index of consumers; call it after editing `input` directly."""
        self._uses = self._controls = None

    def _index(self) -> None:
        if self._uses is not None:
            return
        self._uses, self._controls, self._taken = {}, {}, {}
        for node in self.nodes.values():
            self._note(node)

    def _note(self, node: Any) -> None:
        """Adds what a node takes to the index of consumers."""
        if self._uses is None or self._controls is None:
            return
        taken: list[Any] = []
        for position, ref in enumerate(node.input):
            if ref.startswith("^"):
                self._controls.setdefault(ref[1:], []).append(node)
                taken.append(ref[1:])
            else:
                tensor = self.parse(ref)
                self._uses.setdefault(tensor, []).append(Use(node, position))
                taken.append(tensor)
        self._taken[node.name] = taken

    def _forget(self, node: Any) -> None:
        """Removes what a node takes from the index of consumers."""
        if self._uses is None or self._controls is None:
            return
        for source in set(self._taken.pop(node.name, ())):
            if isinstance(source, Tensor):
                uses = self._uses[source]
                uses[:] = [use for use in uses if use.node is not node]
            else:
                users = self._controls[source]
                users[:] = [user for user in users if user is not node]

    # Nodes.

    def add(
        self,
        op: str,
        name: str,
        inputs: Sequence[Tensor] = (),
        *,
        controls: Iterable[str] = (),
        before: str | None = None,
        **attributes: Any,
    ) -> Any:
        """Adds a node and returns it.

        Args:
            op: Its operation.
            name: Wished name; made unique.
            inputs: What it takes.
            controls: Names of nodes that must run before it.
            before: A node before which it is written (order of the file only).
            **attributes: See `_ops.set_attributes`.
        """
        node = protos.message_class("NodeDef")(name=self.unique(name), op=op)
        _ops.set_attributes(node, **attributes)
        node.input[:] = [self.ref(tensor) for tensor in inputs]
        node.input.extend("^" + control for control in dict.fromkeys(controls))
        self.insert(node, before=before)
        return node

    def insert(self, node: Any, *, before: str | None = None) -> None:
        """Adds a finished NodeDef whose name is free."""
        if before is None:
            self.nodes[node.name] = node
        else:
            nodes = {}
            for name, other in self.nodes.items():
                if name == before:
                    nodes[node.name] = node
                nodes[name] = other
            self.nodes = nodes
        self._note(node)

    def unique(self, name: str) -> str:
        """Returns the name, with a number if it is taken."""
        candidate, number = name, 0
        while candidate in self.nodes or candidate in self.arguments:
            number += 1
            candidate = f"{name}_{number}"
        return candidate

    def remove(self, names: Iterable[str]) -> None:
        """Removes nodes that nothing takes any more; control inputs on them go too."""
        gone = dict.fromkeys(names)
        for name in gone:
            for node in self.control_uses(name):
                if node.name not in gone and "^" + name in node.input:
                    self._forget(node)
                    left = [ref for ref in node.input if ref != "^" + name]
                    node.input[:] = left
                    self._note(node)
        for name in gone:
            self._forget(self.nodes.pop(name))

    def reachable(self, roots: Iterable[str]) -> set[str]:
        """Returns the names of the nodes that the given ones need, themselves too."""
        found: set[str] = set()
        pending = [name for name in roots if name in self.nodes]
        while pending:
            name = pending.pop()
            if name in found:
                continue
            found.add(name)
            for ref in self.nodes[name].input:
                source = ref.removeprefix("^").split(":", 1)[0]
                if source in self.nodes and source not in found:
                    pending.append(source)
        return found

    def remove_dead(self) -> int:
        """Removes what nothing needs; returns how many nodes.

        A function runs its stateful operations even when nothing takes their outputs,
        so they stay.
        """
        roots = set(self.kept) | {tensor.node for tensor in self.returns}
        if self.function is not None:
            roots |= {n.name for n in self.nodes.values() if self.is_stateful(n)}
        alive = self.reachable(roots)
        dead = [name for name in self.nodes if name not in alive]
        if dead:
            self.remove(dead)
        return len(dead)

    def is_stateful(self, node: Any) -> bool:
        """Whether running the node has an effect, or may differ from time to time."""
        return _ops.is_stateful(node, self._library)

    def in_order(self) -> list[Any]:
        """Returns the nodes, each after those it takes from.

        The way back in TF1's loops (NextIteration to Merge) doesn't count. Nodes that
        are in order already stay so.
        """
        order: list[Any] = []
        done: dict[str, bool] = {}  # False while its inputs are visited.
        for root in self.nodes:
            stack = [root]
            while stack:
                name = stack[-1]
                if name in done:
                    stack.pop()
                    if not done[name]:
                        done[name] = True
                        order.append(self.nodes[name])
                    continue
                done[name] = False
                for ref in reversed(self.nodes[name].input):
                    source = ref.removeprefix("^").split(":", 1)[0]
                    if source not in self.nodes or source in done:
                        continue
                    if self.nodes[source].op not in _ops.BACK_EDGES:
                        stack.append(source)
        return order

    def to_function(self) -> Any:
        """Returns the FunctionDef with the present nodes and returns."""
        rest = type(self.function)()
        rest.CopyFrom(self.function)
        del rest.node_def[:]
        rest.node_def.extend(self.nodes.values())
        for arg, tensor in zip(rest.signature.output_arg, self.returns, strict=True):
            rest.ret[arg.name] = self.ref(tensor)
        return rest


@dataclasses.dataclass
class GraphModel:
    """A graph to be rewritten, in place.

    Attributes:
        main: The graph itself.
        functions: Name -> function body.
        inputs: Graph tensors that callers feed, for example `"image:0"`.
        outputs: Graph tensors that callers fetch.
        versions: The graph's VersionDef.
        library: Name -> FunctionDef, whose signature is current and whose nodes are
            not; shared by the bodies.
    """

    main: Body
    functions: dict[str, Body]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    versions: Any
    library: dict[str, Any]

    @classmethod
    def from_graph_def(
        cls,
        graph: Any,
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        kept: Iterable[str] = (),
    ) -> GraphModel:
        """Takes over a GraphDef (of `protos.message_class`), which must not be reused.

        Args:
            graph: The message.
            inputs: Graph tensors (or nodes) that callers feed.
            outputs: Graph tensors (or nodes) that callers fetch.
            kept: Further nodes that must stay, such as an init op.
        """
        library = {f.signature.name: f for f in graph.library.function}
        names = [tensor.split(":")[0] for tensor in (*inputs, *outputs)]
        return cls(
            main=Body(graph.node, kept=[*names, *kept], library=library),
            functions={
                name: Body(function.node_def, function=function, library=library)
                for name, function in library.items()
            },
            inputs=tuple(tensor_name(name) for name in inputs),
            outputs=tuple(tensor_name(name) for name in outputs),
            versions=graph.versions,
            library=library,
        )

    @property
    def bodies(self) -> list[Body]:
        """The graph itself, then its functions."""
        return [self.main, *self.functions.values()]

    @property
    def num_nodes(self) -> int:
        """Number of nodes in all bodies."""
        return sum(len(body) for body in self.bodies)

    def remove_dead(self) -> int:
        """Removes nodes and functions that nothing needs; returns how many nodes."""
        before = self.num_nodes
        for body in self.bodies:
            body.remove_dead()
        used = self.used_functions()
        for name in [name for name in self.functions if name not in used]:
            self.remove_function(name)
        return before - self.num_nodes

    def used_functions(self) -> set[str]:
        """Returns the names of the functions that the graph calls, at any depth."""
        used: set[str] = set()
        pending = [self.main]
        while pending:
            body = pending.pop()
            for node in body.nodes.values():
                for name in (node.op, *_ops.functions_of(node)):
                    if name in self.functions and name not in used:
                        used.add(name)
                        pending.append(self.functions[name])
        return used

    def remove_function(self, name: str) -> None:
        """Removes a function that nothing calls."""
        del self.functions[name], self.library[name]

    def to_graph_def(self) -> Any:
        """Returns a new GraphDef message."""
        graph = protos.message_class("GraphDef")()
        graph.versions.CopyFrom(self.versions)
        graph.node.extend(self.main.nodes.values())
        graph.library.function.extend(
            body.to_function() for body in self.functions.values()
        )
        return graph


def tensor_name(name: str) -> str:
    """Returns the full name of a graph tensor.

    Example:
        >>> tensor_name("logits")
        'logits:0'
    """
    return name if ":" in name else f"{name}:0"
