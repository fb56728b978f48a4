"""What operations do beside computing: effects, TF1's control flow, passing on."""

from __future__ import annotations

from typing import Any

from tfopt.transforms import _ops
from tfopt.transforms._graph import Body, GraphModel, Tensor

# TF1's conditionals and loops: nodes that choose what runs, or in which frame.
CONTROL_FLOW = frozenset(
    prefix + op
    for op in ("Switch", "Merge", "Enter", "Exit", "NextIteration")
    for prefix in ("", "Ref")
) | {"ControlTrigger", "LoopCond", "_SwitchN", "RefSelect"}

# Their first output is their first input, and they have no effect.
PASS_THROUGH = frozenset({"Identity", "Snapshot", "StopGradient", "PreventGradient"})

# Stateful by registration, but neither changing anything nor differing from run to run:
# they look at their inputs, or name a resource.
HARMLESS = frozenset(
    {
        "Assert",
        "CheckNumerics",
        "CheckNumericsV2",
        "GuaranteeConst",
        "HashTable",
        "HashTableV2",
        "Print",
        "PrintV2",
        "VarHandleOp",
    }
)

# Registered as stateless, although they read files or memory, report or call Python.
_IMPURE = frozenset(
    {
        "CopyHost",
        "Copy",
        "DebugIdentity",
        "DebugNanCount",
        "DebugNumericSummary",
        "ImmutableConst",
        "MatchingFiles",
        "PyFuncStateless",
        "ReadFile",
    }
)

# Stateful only because the functions that they call may be.
_CALLS = frozenset(
    {"Case", "If", "PartitionedCall", "StatefulPartitionedCall", "While"}
)


class Effects:
    """Tells which nodes only compute, looking into the functions that they call.

    Args:
        graph: The graph; its functions must not change meanwhile.
        harmless: Operations to be passed over, though they are stateful.
    """

    def __init__(self, graph: GraphModel, *, harmless: frozenset[str] = frozenset()):
        self._graph = graph
        self._harmless = harmless
        self._functions: dict[str, bool] = {}

    def has_effect(self, node: Any) -> bool:
        """Whether the node may do more than compute outputs from its inputs.

        Nodes of unknown operations may.
        """
        if node.op in self._harmless:
            return False
        called = _ops.functions_of(node)
        if node.op in self._graph.functions:
            called.append(node.op)
        elif node.op not in _CALLS and (
            node.op in _IMPURE or _ops.is_stateful(node, self._graph.library)
        ):
            return True
        return any(self._function_has(name) for name in called)

    def _function_has(self, name: str) -> bool:
        if name not in self._functions:
            # Until it is known: a function that calls itself may never end.
            self._functions[name] = True
            body = self._graph.functions.get(name)
            self._functions[name] = body is None or any(
                self.has_effect(node) for node in body.nodes.values()
            )
        return self._functions[name]


def decisive(body: Body, effects: Effects) -> set[str]:
    """Returns the nodes for which waiting can mean something.

    These are nodes with effects or of control flow, and all that come after one.
    """
    users: dict[str, list[str]] = {}
    for node in body.nodes.values():
        for ref in node.input:
            source = ref.removeprefix("^").split(":", 1)[0]
            users.setdefault(source, []).append(node.name)
    pending = [
        node.name
        for node in body.nodes.values()
        if node.op in CONTROL_FLOW or effects.has_effect(node)
    ]
    found: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending += users.get(name, ())
    return found


def is_reference(body: Body, tensor: Tensor) -> bool:
    """Whether a tensor is one of TF1's references to memory that others may write."""
    node = body.producer(tensor)
    if node is None or not isinstance(tensor.output, int):
        return False
    # The registry is asked only about what can be one.
    if node.op.startswith("Ref"):
        return True
    if "Variable" not in node.op and not node.op.startswith(("Assign", "Scatter")):
        return False
    definition = _ops.op_def(node.op)
    return definition is not None and any(a.is_ref for a in definition.output_arg)


def fed(graph: GraphModel, body: Body) -> frozenset[str]:
    """Returns the nodes of a body whose outputs callers replace."""
    if body.function is not None:
        return frozenset()
    return frozenset(name.split(":")[0] for name in graph.inputs)


def place(body: Body, name: str) -> str:
    """Returns how findings name a node: with its function, if it is in one."""
    return f"{body.name}/{name}" if body.name else name
