"""Which checkpoint entry fills which variable: read off the graph's restore part.

Names of variables and keys of checkpoints agree only by habit (Keras 3 keys are paths
of attributes, partitioned variables share one key), so they are never compared. The
graph says it all: an assignment whose value comes from an output of RestoreV2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from tfopt.freezing import flow as flows
from tfopt.freezing.flow import (
    NOTHING,
    Atoms,
    Body,
    Flow,
    Resource,
    Restored,
    Text,
    Variable,
    attr,
)
from tfopt.savedmodel import dtypes, slices
from tfopt.types import ConversionError

RESOURCE_VARIABLES = frozenset({"VarHandleOp"})
REF_VARIABLES = frozenset({"Variable", "VariableV2"})

_MOST_NAMES = 1 << 20

# Every variable handle made under this name is a new variable.
_ANONYMOUS = "cd2c89b7-88b7-44c8-ad83-06c2a9158347"


@dataclasses.dataclass(frozen=True)
class Saved:
    """Where a value stands in the checkpoint: the key, and the slice if partitioned."""

    key: str
    part: slices.Slice | None = None


@dataclasses.dataclass
class Restoration:
    """What the restore part of a graph fills.

    Attributes:
        variables: Variable -> its place in the checkpoint.
        tables: Node of a mutable table -> places of its keys and values.
        unclear: Variable or resource -> the operation that restores it in a way that
            isn't understood.
    """

    variables: dict[str, Saved]
    tables: dict[str, tuple[Saved, Saved]]
    unclear: dict[str, str]


def identity(node: Any) -> str:
    """Returns the name that all handles of one variable share."""
    shared = attr(node, "shared_name").s.decode()
    if not shared or shared == _ANONYMOUS:
        shared = node.name
    container = attr(node, "container").s.decode()
    return f"{container}/{shared}" if container else shared


def handles(body: Body, node: Any, inputs: Sequence[Atoms]) -> list[Atoms] | None:
    """Returns what the nodes that make handles create (a `flow.Source`)."""
    if node.op in RESOURCE_VARIABLES:
        return [frozenset([Variable(identity(node), False)])]
    if node.op in REF_VARIABLES:
        return [frozenset([Variable(identity(node), True)])]
    if body.is_function or node.op in ("Const", "Placeholder"):
        return None
    # A handle is made from nothing; of tables, some from their reserved keys.
    if not inputs or "HashTable" in node.op:
        return [frozenset([Resource(node.name)])]
    return None


def trace(
    nodes: Sequence[Any],
    library: dict[str, Any],
    *,
    restore_op: str | None,
) -> Restoration:
    """Follows the restore part of a graph.

    Args:
        nodes: All NodeDefs of the graph.
        library: Its FunctionDefs by name.
        restore_op: The node that restores (`saver_def.restore_op_name`); by default
            all restoring assignments of the graph count.

    Raises:
        ConversionError: Two different entries are assigned to one variable.
    """
    if restore_op:
        name = flows.producer(restore_op)
        nodes = reachable(nodes, [name])
        if not nodes:
            raise ConversionError(
                "The graph's restore operation is missing. Expected the node that "
                f"saver_def names. Received: restore_op_name={restore_op!r}"
            )
    flow = Flow(nodes, library, _created)
    result = Restoration({}, {}, {})
    for context in flow.contexts:
        for node in context.body.order:
            _record(result, flow, node, context.inputs(node))
    return result


def reachable(nodes: Iterable[Any], roots: Iterable[str]) -> list[Any]:
    """Returns the nodes that `roots` (names) need, and these, in the given order."""
    by_name = {node.name: node for node in nodes}
    pending = [name for name in roots if name in by_name]
    found = set(pending)
    while pending:
        for ref in by_name[pending.pop()].input:
            name = flows.producer(ref)
            if name in by_name and name not in found:
                found.add(name)
                pending.append(name)
    return [node for name, node in by_name.items() if name in found]


def _created(body: Body, node: Any, inputs: Sequence[Atoms]) -> list[Atoms] | None:
    """Handles, constant text, and what is read from files (a `flow.Source`)."""
    if node.op == "Const":
        tensor = attr(node, "value").tensor
        if tensor.dtype != dtypes.STRING:
            return []
        return [frozenset([Text(_strings(tensor))])]
    if node.op in ("Restore", "RestoreSlice"):  # Of TF1's first savers.
        names = _text(inputs[1])
        parts = _text(inputs[2]) if node.op == "RestoreSlice" else (b"",)
        if names is None or parts is None:
            return []
        return [frozenset([Restored(names[0].decode(), parts[0].decode())])]
    if node.op == "RestoreV2":
        names, parts = ([_text(atoms) for atoms in inputs[1:3]] + [None, None])[:2]
        if names is None or parts is None or len(names) != len(parts):
            return []
        return [
            frozenset([Restored(name.decode(), part.decode())])
            for name, part in zip(names, parts, strict=True)
        ]
    return handles(body, node, inputs)


def _strings(tensor: Any) -> tuple[bytes, ...]:
    values = tuple(tensor.string_val)
    count = 1
    for dim in tensor.tensor_shape.dim:
        count *= dim.size
    # A TensorProto may leave out repetitions of its last value.
    if values and len(values) < count:
        if count > _MOST_NAMES:
            raise ConversionError(
                "A constant is damaged. Expected the names that a checkpoint is read "
                f"by. Received: {count:,} times {values[-1][:50]!r}"
            )
        values += (values[-1],) * (count - len(values))
    return values


def _text(atoms: Atoms) -> tuple[bytes, ...] | None:
    texts = [atom.values for atom in atoms if isinstance(atom, Text)]
    return texts[0] if len(texts) == 1 == len(atoms) else None


def _record(
    result: Restoration,
    flow: Flow,
    node: Any,
    inputs: Sequence[Atoms],
) -> None:
    targets = [
        atom.name if isinstance(atom, Variable) else atom.node
        for atom in (inputs[0] if inputs else NOTHING)
        if isinstance(atom, (Variable, Resource))
    ]
    if node.op in flows.PASS_THROUGH or flow.call(node):
        return
    saved = [_saved(atoms) for atoms in inputs[1:]]
    if not targets and node.op.startswith("LookupTableImport"):
        raise ConversionError(
            "The model restores a table that is made in an unknown way. Expected a "
            f"table of the graph itself. Received: node={node.name!r}"
        )
    if len(targets) != 1:
        return
    target = targets[0]
    if node.op in ("Assign", "AssignVariableOp") and saved[0] is not None:
        if result.variables.setdefault(target, saved[0]) != saved[0]:
            raise ConversionError(
                "The graph restores a variable from two places. Expected one. "
                f"Received: {target!r} from {result.variables[target]} and {saved[0]}"
            )
    elif node.op.startswith("LookupTableImport") and None not in saved:
        keys, values = saved
        if keys is not None and values is not None:
            result.tables[target] = (keys, values)
    elif len(inputs) > 1:
        result.unclear.setdefault(target, node.op)


def _saved(atoms: Atoms) -> Saved | None:
    found = [atom for atom in atoms if isinstance(atom, Restored)]
    if len(found) != 1:
        return None
    parsed = slices.parse(found[0].part)
    if parsed is None:
        return Saved(found[0].key)
    shape, part = parsed
    if all(
        start == 0 and n == size for (start, n), size in zip(part, shape, strict=True)
    ):
        return Saved(found[0].key)
    return Saved(found[0].key, part)
