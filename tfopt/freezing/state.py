"""State that stays: nodes that fill kept variables and tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tfopt.freezing import restore
from tfopt.freezing.flow import attr, producer
from tfopt.freezing.plan import Kept, Plan, Value
from tfopt.freezing.rewrite import Constant, Rewritten
from tfopt.savedmodel import dtypes, protos

_INIT = "tfopt_init"
_SAVE = "tfopt_save"


@dataclasses.dataclass
class State:
    """How a loader brings the graph into its first state.

    Attributes:
        init_op: The node to run once, `None` if there is nothing to do.
        saver_def: The SaverDef for the variables in the checkpoint, `None` if none.
        stored: Key -> value of the checkpoint beside the graph.
    """

    init_op: str | None
    saver_def: Any | None
    stored: dict[str, Value]


def add_state(plan: Plan, graph: Rewritten) -> State:
    """Adds initialising and restoring nodes to `graph`.

    Args:
        plan: What is kept, and where its content goes.
        graph: The rewritten graph; changed in place.
    """
    builder = _Builder(graph)
    assigned: dict[str, str] = {}
    for number, kept in enumerate(plan.kept.values()):
        if kept.storage == "init" and kept.value is not None:
            value = builder.constant(f"{_INIT}/value_{number}", kept.value)
            handle = builder.handle(kept)
            assigned[handle.name] = builder.assign(
                f"{_INIT}/assign_{number}", handle, value, kept.value
            )
    imports = [
        builder.import_table(f"{_INIT}/table_{number}", node, keys, values)
        for number, (node, (keys, values)) in enumerate(plan.tables.items())
    ]
    _order(graph, plan.init_nodes, assigned)
    steps = [*assigned.values(), *imports]
    init_op = plan.init_op
    if steps:
        first = [] if plan.init_op is None else [plan.init_op]
        init_op = builder.group(f"{_INIT}/all", first + steps)
    saver_def, stored = _add_saver(plan, builder)
    return State(init_op, saver_def, stored)


def _order(
    graph: Rewritten, init_nodes: frozenset[str], assigned: dict[str, str]
) -> None:
    """Makes the model's own init nodes wait for the variables that they use."""
    for node in graph.nodes:
        if node.name in init_nodes:
            used = [producer(ref) for ref in node.input if not ref.startswith("^")]
            waits = ["^" + assigned[name] for name in used if name in assigned]
            node.input.extend(waits)


def _add_saver(plan: Plan, builder: _Builder) -> tuple[Any | None, dict[str, Value]]:
    stored = {
        kept.name: kept
        for kept in plan.kept.values()
        if kept.storage == "variables" and kept.value is not None
    }
    if not stored:
        return None, {}
    entries = list(stored.values())
    values = [kept.value for kept in entries if kept.value is not None]
    keys = [value.name for value in values]
    filename = builder.add(f"{_SAVE}/filename", "Placeholder", dtype=dtypes.STRING)
    filename.attr["shape"].shape.SetInParent()
    names = builder.strings(f"{_SAVE}/names", keys)
    whole = builder.strings(f"{_SAVE}/slices", [""] * len(keys))
    types = [value.dtype for value in values]
    saved = [filename.name, names, whole]
    restored = builder.add(f"{_SAVE}/restore", "RestoreV2", saved)
    restored.attr["dtypes"].list.type.extend(types)
    steps = []
    reads = []
    for number, (kept, value) in enumerate(zip(entries, values, strict=True)):
        handle = builder.handle(kept)
        content = f"{restored.name}:{number}"
        steps.append(builder.assign(f"{_SAVE}/assign_{number}", handle, content, value))
        reads.append(builder.read(f"{_SAVE}/read_{number}", handle, value))
    write = builder.add(f"{_SAVE}/write", "SaveV2", saved + reads)
    write.attr["dtypes"].list.type.extend(types)
    done = builder.add(
        f"{_SAVE}/control_dependency",
        "Identity",
        [filename.name, "^" + write.name],
        T=dtypes.STRING,
    )
    saver_def = protos.message_class("SaverDef")(
        filename_tensor_name=f"{filename.name}:0",
        save_tensor_name=f"{done.name}:0",
        restore_op_name=builder.group(f"{_SAVE}/restore_all", steps),
        max_to_keep=5,
    )
    saver_def.version = saver_def.V2
    return saver_def, dict(zip(keys, values, strict=True))


class _Builder:
    """Adds nodes to a graph."""

    def __init__(self, graph: Rewritten):
        self._graph = graph
        self._names = {node.name for node in graph.nodes}

    def add(self, name: str, op: str, inputs: Sequence[str] = (), **types: int) -> Any:
        """Adds a node with a name like `name`; keywords are type attributes."""
        while name in self._names:
            name += "_"
        self._names.add(name)
        node = protos.message_class("NodeDef")(name=name, op=op, input=inputs)
        for key, dtype in types.items():
            node.attr[key].type = dtype
        self._graph.nodes.append(node)
        return node

    def group(self, name: str, steps: Sequence[str]) -> str:
        """Adds a node that runs others; returns its name."""
        return self.add(name, "NoOp", ["^" + step for step in steps]).name

    def constant(self, name: str, value: Value) -> str:
        """Adds a constant with a checkpoint's value; returns its name."""
        node = self.add(name, "Const", dtype=value.dtype)
        self._graph.constants.append(Constant("", node.name, value))
        return node.name

    def strings(self, name: str, values: Sequence[str]) -> str:
        """Adds a constant vector of strings; returns its name."""
        node = self.add(name, "Const", dtype=dtypes.STRING)
        tensor = node.attr["value"].tensor
        tensor.dtype = dtypes.STRING
        tensor.tensor_shape.dim.add(size=len(values))
        tensor.string_val.extend(value.encode() for value in values)
        return node.name

    def handle(self, kept: Kept) -> Any:
        """Returns the node of a variable, made anew if only functions have it."""
        ops = restore.RESOURCE_VARIABLES | restore.REF_VARIABLES
        for node in self._graph.nodes:
            if node.op in ops and restore.identity(node) == kept.name:
                return node
        for function in self._graph.functions:
            for inner in function.node_def:
                if inner.op in ops and restore.identity(inner) == kept.name:
                    node = self.add(inner.name, inner.op)
                    name = node.name
                    node.CopyFrom(inner)
                    node.name = name
                    shared = attr(inner, "shared_name").s or inner.name.encode()
                    node.attr["shared_name"].s = shared
                    del node.input[:]
                    return node
        raise AssertionError(f"variable {kept.name!r} has no node")

    def assign(self, name: str, handle: Any, content: str, value: Value) -> str:
        """Adds the assignment of a tensor to a variable; returns its name."""
        inputs = [handle.name, content]
        if handle.op in restore.RESOURCE_VARIABLES:
            return self.add(name, "AssignVariableOp", inputs, dtype=value.dtype).name
        return self.add(name, "Assign", inputs, T=value.dtype).name

    def read(self, name: str, handle: Any, value: Value) -> str:
        """Adds the reading of a variable; returns its name."""
        if handle.op in restore.RESOURCE_VARIABLES:
            return self.add(
                name, "ReadVariableOp", [handle.name], dtype=value.dtype
            ).name
        return self.add(name, "Identity", [handle.name], T=value.dtype).name

    def import_table(self, name: str, table: str, keys: Value, values: Value) -> str:
        """Adds the filling of a mutable table; returns the name of the node."""
        inputs = [table]
        for part, value in (("keys", keys), ("values", values)):
            content = self.constant(f"{name}/{part}", value)
            # A dense table saves scalar keys as [n, 1]. Its kernel takes them back, but
            # shape inference would not, if it saw that.
            unshaped = self.add(
                f"{content}/any_shape",
                "PlaceholderWithDefault",
                [content],
                dtype=value.dtype,
            )
            unshaped.attr["shape"].shape.unknown_rank = True
            inputs.append(unshaped.name)
        return self.add(
            name, "LookupTableImportV2", inputs, Tin=keys.dtype, Tout=values.dtype
        ).name
