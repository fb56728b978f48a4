"""How a graph uses its variables: which are only read, and what writes the others."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfopt.freezing import flow as flows
from tfopt.freezing.flow import Atoms, Context, Flow, Variable, attr

# Operations that take a variable's handle and only read.
READS = frozenset(
    {
        "DisableCopyOnRead",
        "ReadVariableOp",
        "ResourceGather",
        "ResourceGatherNd",
        "VarIsInitializedOp",
        "VariableShape",
    }
)
# The same for TF1's references, beside every operation that takes a plain value.
REF_READS = frozenset({"IsVariableInitialized"})
# TensorFlow's operations that write references; asked only where a graph comes without
# the definitions of its operations (a bare GraphDef).
_REF_WRITERS = (
    "Apply",
    "Assign",
    "CountUpTo",
    "DestroyTemporaryVariable",
    "RefSelect",
    "ScatterAdd",
    "ScatterDiv",
    "ScatterMax",
    "ScatterMin",
    "ScatterMul",
    "ScatterNdAdd",
    "ScatterNdSub",
    "ScatterNdUpdate",
    "ScatterSub",
    "ScatterUpdate",
    "SparseApply",
    "StridedSliceAssign",
)


@dataclasses.dataclass(frozen=True)
class Use:
    """A use of a variable that a constant could not serve.

    Attributes:
        op: The operation, for example `"AssignAddVariableOp"`.
        node: Its node, as `function/node` inside a function.
    """

    op: str
    node: str


@dataclasses.dataclass
class Uses:
    """What a part of a graph does with variables.

    Attributes:
        read: All variables that it touches, in the order of first use.
        written: Variable -> uses that a constant could not serve.
        mixed: Sets of variables that reach one tensor: they are alike or not frozen.
    """

    read: list[str]
    written: dict[str, list[Use]]
    mixed: set[frozenset[str]]


def find_uses(flow: Flow, op_defs: dict[str, Any]) -> Uses:
    """Collects every use of a variable.

    Args:
        flow: The interpreted graph, with handles as sources.
        op_defs: OpDef messages by operation: they say which inputs are references.
    """
    uses = Uses([], {}, set())
    read: dict[str, None] = {}
    for context in flow.contexts:
        for atoms in context.values.values():
            names = sorted({atom.name for atom in _variables(atoms)})
            read |= dict.fromkeys(names)
            if len(names) > 1:
                uses.mixed.add(frozenset(names))
        for node in context.body.order:
            for position, atoms in enumerate(context.inputs(node)):
                for variable in _variables(atoms):
                    if not _only_reads(flow, node, position, variable, op_defs):
                        found = uses.written.setdefault(variable.name, [])
                        use = Use(node.op, _path(context, node))
                        if use not in found:
                            found.append(use)
    uses.read = list(read)
    return uses


def _variables(atoms: Atoms) -> list[Variable]:
    return [atom for atom in atoms if isinstance(atom, Variable)]


def _path(context: Context, node: Any) -> str:
    function = context.body.name
    return f"{function}/{node.name}" if function else node.name


def _only_reads(
    flow: Flow, node: Any, position: int, variable: Variable, op_defs: dict[str, Any]
) -> bool:
    if node.op in flows.PASS_THROUGH:
        return True
    call = flow.call(node)
    if call is not None:
        return position >= call.first
    if not variable.is_ref:
        return node.op in READS
    if node.op in REF_READS:
        return True
    definition = op_defs.get(node.op)
    if definition is None:
        return not node.op.startswith(_REF_WRITERS)
    return not _takes_ref(definition, node, position)


def _takes_ref(definition: Any, node: Any, position: int) -> bool:
    """Returns whether an operation's input at `position` is a reference."""
    for argument in definition.input_arg:
        if argument.number_attr:
            position -= attr(node, argument.number_attr).i
        elif argument.type_list_attr:
            position -= len(attr(node, argument.type_list_attr).list.type)
        else:
            position -= 1
        if position < 0:
            return argument.is_ref
    return False
