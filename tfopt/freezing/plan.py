"""Deciding, for every variable, whether it becomes a constant, and if not, why."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from tfopt.freezing import analysis, restore
from tfopt.freezing.analysis import Use, Uses
from tfopt.freezing.flow import Flow, Resource, Variable, attr, producer
from tfopt.freezing.restore import Restoration, Saved
from tfopt.freezing.sources import Source
from tfopt.savedmodel import dtypes
from tfopt.savedmodel.bundle import BundleReader
from tfopt.types import ConversionError

_ASSIGNMENTS = ("Assign", "AssignVariableOp")


@dataclasses.dataclass(frozen=True)
class Value:
    """A variable's type and content.

    Attributes:
        name: The variable.
        dtype: TensorFlow's DataType number.
        shape: Sizes by axis.
        size_bytes: Bytes of the content.
        saved: Its place in the checkpoint.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]
    size_bytes: int
    saved: Saved


@dataclasses.dataclass(frozen=True)
class Kept:
    """A variable that stays one.

    Attributes:
        name: The variable.
        reason: Why.
        uses: What writes it, or takes it in a way that a constant could not serve.
        value: Its content; `None` if the model's own init op sets it.
        storage: Where the output holds the content: `"init"`, a constant that the init
            op assigns; `"variables"`, the checkpoint beside the graph; or `"none"`.
    """

    name: str
    reason: str
    uses: tuple[Use, ...]
    value: Value | None
    storage: Literal["init", "variables", "none"]


@dataclasses.dataclass
class Plan:
    """What becomes of the graph.

    Attributes:
        nodes: The nodes of the graph that the output needs.
        frozen: Variable -> its constant.
        kept: Variable -> why it is kept.
        tables: Node of a mutable table -> its keys and values.
        init_op: The node that initialises, `None` if nothing has to be.
        init_nodes: Names of the nodes that only it needs.
    """

    nodes: list[Any]
    frozen: dict[str, Value]
    kept: dict[str, Kept]
    tables: dict[str, tuple[Value, Value]]
    init_op: str | None
    init_nodes: frozenset[str]


def make_plan(
    source: Source,
    *,
    denylist: Sequence[str],
    keep_over: int | None,
    stateful: str,
    has_variables: bool,
) -> Plan:
    """Analyses a model.

    Args:
        source: The model.
        denylist: Names or patterns of variables to keep.
        keep_over: Variables of more bytes are kept.
        stateful: `"keep"` or `"error"`: what to do with variables that are written.
        has_variables: Whether the output can hold a checkpoint beside the graph.

    Raises:
        ValueError: An entry of `denylist` matches no variable.
        ConversionError: A value cannot be found, or a variable is written and
            `stateful="error"`.
    """
    serving = restore.reachable(source.graph.node, source.entry_nodes)
    flow = Flow(serving, source.library, restore.handles)
    uses = analysis.find_uses(flow, source.op_defs)
    init_op, init_uses, init_flow = _trim_init(source, uses.read)
    roots = source.entry_nodes + ([init_op] if init_op else [])
    plan = Plan(
        nodes=restore.reachable(source.graph.node, roots),
        frozen={},
        kept={},
        tables={},
        init_op=init_op,
        init_nodes=frozenset(),
    )
    plan.init_nodes = frozenset(n.name for n in plan.nodes) - {n.name for n in serving}
    restoration = _restoration(source, plan)
    names = list(dict.fromkeys(uses.read + init_uses.read))
    found = _Decider(source, restoration, uses, init_uses, has_variables)
    _check_matches(denylist, names, restoration)
    for name in names:
        found.decide(name, denylist, keep_over)
    found.keep_mixed()
    if stateful == "error":
        _refuse_state(found.kept.values())
    plan.frozen, plan.kept = found.frozen, found.kept
    plan.tables = _tables(source, restoration, [flow, init_flow])
    return plan


def _trim_init(
    source: Source, used: Sequence[str]
) -> tuple[str | None, Uses, Flow | None]:
    """Drops assignments to unused variables from the init op's control inputs.

    TF1 models may initialise all variables there; those of the optimizer, say, are
    none of the signatures' business.
    """
    nothing = Uses([], {}, set())
    if source.init_op is None:
        return None, nothing, None
    nodes = restore.reachable(source.graph.node, [source.init_op])
    flow = Flow(nodes, source.library, restore.handles)
    by_name = {node.name: node for node in nodes}
    unused = set()
    for node in nodes:
        if node.op in _ASSIGNMENTS:
            targets = {
                atom.name
                for atom in flow.main.inputs(node)[0]
                if isinstance(atom, Variable)
            }
            if targets and not targets & set(used):
                unused.add("^" + node.name)
    for node in nodes:
        if node.op == "NoOp":
            node.input[:] = [ref for ref in node.input if ref not in unused]
    if not _does_anything(by_name, source.init_op):
        return None, nothing, None
    nodes = restore.reachable(source.graph.node, [source.init_op])
    flow = Flow(nodes, source.library, restore.handles)
    return source.init_op, analysis.find_uses(flow, source.op_defs), flow


def _does_anything(nodes: Mapping[str, Any], name: str) -> bool:
    node = nodes[name]
    return node.op != "NoOp" or any(
        _does_anything(nodes, producer(ref)) for ref in node.input
    )


def _restoration(source: Source, plan: Plan) -> Restoration:
    needs_values = any(
        node.op in restore.RESOURCE_VARIABLES | restore.REF_VARIABLES
        or "MutableHashTable" in node.op
        or "MutableDenseHashTable" in node.op
        for node in _all_nodes(plan.nodes, source)
    )
    if not needs_values or source.checkpoint is None:
        return Restoration({}, {}, {})
    return restore.trace(
        source.graph.node,
        source.library,
        restore_op=source.meta_graph.saver_def.restore_op_name or None,
    )


def _all_nodes(nodes: Iterable[Any], source: Source) -> Iterable[Any]:
    yield from nodes
    for function in source.graph.library.function:
        yield from function.node_def


class _Decider:
    """The decisions so far."""

    def __init__(
        self,
        source: Source,
        restoration: Restoration,
        uses: Uses,
        init_uses: Uses,
        has_variables: bool,
    ):
        self._source = source
        self._restoration = restoration
        self._uses = uses
        self._init_uses = init_uses
        self._has_variables = has_variables
        self._declared = {
            restore.identity(node): node
            for node in _all_nodes(source.graph.node, source)
            if node.op in restore.RESOURCE_VARIABLES | restore.REF_VARIABLES
        }
        self.frozen: dict[str, Value] = {}
        self.kept: dict[str, Kept] = {}

    def decide(self, name: str, denylist: Sequence[str], keep_over: int | None) -> None:
        """Adds a variable to `frozen` or `kept`."""
        value = self._value(name)
        if name in self._uses.written:
            self._keep(name, value, "written", self._uses.written[name])
        elif name in self._init_uses.written:
            self._keep(name, value, "initialised", self._init_uses.written[name])
        elif value is None:
            raise self._missing(name)
        elif _matches(name, value.saved.key, denylist):
            self._keep(name, value, "denylist")
        elif keep_over is not None and value.size_bytes > keep_over:
            self._keep(name, value, f"over {keep_over} bytes")
        else:
            self.frozen[name] = value

    def keep_mixed(self) -> None:
        """Keeps variables that share a tensor with one that can't be its constant."""
        mixed = self._uses.mixed | self._init_uses.mixed
        changed = True
        while changed:
            changed = False
            for group in mixed:
                types = {v.dtype for n, v in self.frozen.items() if n in group}
                if len(types) < 2 and not group & set(self.kept):
                    continue
                for name in sorted(group & set(self.frozen)):
                    value = self.frozen.pop(name)
                    self._keep(name, value, "shares a handle with a kept variable")
                    changed = True

    def _keep(
        self, name: str, value: Value | None, reason: str, uses: Sequence[Use] = ()
    ) -> None:
        storage: Literal["init", "variables", "none"] = "init"
        if value is None:
            storage = "none"
        elif self._has_variables and reason not in ("written", "initialised"):
            storage = "variables"
        self.kept[name] = Kept(name, reason, tuple(uses), value, storage)

    def _value(self, name: str) -> Value | None:
        """Returns a variable's value, checked against its declaration."""
        saved = self._restoration.variables.get(name)
        if saved is None or self._source.checkpoint is None:
            return None
        value = read_value(name, saved, self._source.checkpoint)
        node = self._declared[name]
        dtype = attr(node, "dtype").type
        shape = attr(node, "shape").shape
        sizes = [dim.size for dim in shape.dim]
        known = not shape.unknown_rank and all(size >= 0 for size in sizes)
        if dtype != value.dtype or (
            known and math.prod(sizes) != math.prod(value.shape)
        ):
            raise ConversionError(
                "The checkpoint doesn't belong to the model. Expected for variable "
                f"{name!r} {dtypes.name_of(dtype)} {sizes}. Received: "
                f"{dtypes.name_of(value.dtype)} {list(value.shape)} under key "
                f"{saved.key!r} in {self._source.checkpoint.prefix}"
            )
        if known:  # A saver may restore one shape into another of the same size.
            value = dataclasses.replace(value, shape=tuple(sizes))
        return value

    def _missing(self, name: str) -> ConversionError:
        if self._source.checkpoint is None:
            why = "the model comes without a checkpoint"
        elif name in self._restoration.unclear:
            why = f"it is restored through {self._restoration.unclear[name]}"
        else:
            why = "the checkpoint isn't restored into it, nor does the init op set it"
        return ConversionError(
            f"A variable's value is unknown: {why}. Expected an assignment from a "
            "checkpoint entry; save the model again, with this variable tracked. "
            f"Received: variable={name!r} in {self._source.where}"
        )


def read_value(name: str, saved: Saved, checkpoint: BundleReader) -> Value:
    """Returns type, shape and size of a checkpoint entry.

    Raises:
        TfoptError: The checkpoint has no such entry.
    """
    entry = checkpoint.entry(saved.key)
    shape = entry.shape
    if saved.part is not None:
        shape = tuple(length for _, length in saved.part)
    item = dtypes.item_size(entry.dtype)
    size = entry.size_bytes if item is None else item * math.prod(shape)
    return Value(name, entry.dtype, shape, size, saved)


def _tables(
    source: Source, restoration: Restoration, graph_flows: Sequence[Flow | None]
) -> dict[str, tuple[Value, Value]]:
    """Returns the content of the mutable tables that are used."""
    live = {
        atom.node
        for flow in graph_flows
        if flow is not None
        for context in flow.contexts
        for atoms in context.values.values()
        for atom in atoms
        if isinstance(atom, Resource)
    }
    tables = {}
    for node, (keys, values) in restoration.tables.items():
        if node in live and source.checkpoint is not None:
            tables[node] = (
                read_value(node, keys, source.checkpoint),
                read_value(node, values, source.checkpoint),
            )
    for node, op in restoration.unclear.items():
        if node in live:
            raise ConversionError(
                "The model restores a resource from the checkpoint in a way that the "
                "frozen model cannot repeat. Expected variables and lookup tables. "
                f"Received: node={node!r}, restored by {op}, in {source.where}"
            )
    return tables


def _matches(name: str, key: str, patterns: Sequence[str]) -> bool:
    return any(
        fnmatch.fnmatchcase(candidate, pattern.removesuffix(":0"))
        for pattern in patterns
        for candidate in (name, key)
    )


def _check_matches(
    patterns: Sequence[str], names: Sequence[str], restoration: Restoration
) -> None:
    keys = {name: restoration.variables[name].key for name in restoration.variables}
    for pattern in patterns:
        if not any(_matches(name, keys.get(name, name), [pattern]) for name in names):
            raise ValueError(
                "No variable has this name. Expected names (or patterns with *) of "
                f"some of {', '.join(names) or 'none: the model has no variables'}. "
                f"Received: variable_names_denylist={pattern!r}"
            )


def _refuse_state(kept: Iterable[Kept]) -> None:
    written = [entry for entry in kept if entry.reason == "written"]
    if written:
        listed = "; ".join(
            f"{entry.name} by {entry.uses[0].op} ({entry.uses[0].node})"
            for entry in written
        )
        raise ConversionError(
            "The model writes variables, so they cannot all be constants. Expected a "
            'signature that only reads, or stateful="keep". '
            f"Received: {listed}"
        )
