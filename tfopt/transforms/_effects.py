"""Effects of operations, and TF1's control flow: what limits moving nodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tfopt.transforms._graph import Body

# Stateful operations that change nothing: to leave one out is no loss.
_READ_ONLY = frozenset(
    {
        *("AnonymousHashTable", "HashTableV2", "MutableDenseHashTableV2"),
        *("MutableHashTableOfTensorsV2", "MutableHashTableV2", "Placeholder"),
        *("LookupTableFindV2", "LookupTableSizeV2", "RandomShuffle"),
        *("RandomStandardNormal", "RandomUniform", "RandomUniformInt"),
        *("ReadVariableOp", "ResourceGather", "ResourceGatherNd"),
        *("TruncatedNormal", "VarHandleOp", "VarIsInitializedOp", "VariableShape"),
    }
)
# Operations after which a node may be dead, or belong to a loop's frame.
_FLOW = frozenset({"Enter", "RefEnter", "RefSwitch", "Switch", "_SwitchN"})


def effects(body: Body) -> list[str]:
    """Returns the names of the nodes that do something beside making their outputs."""
    return [
        name
        for name, node in body.nodes.items()
        if node.op not in _READ_ONLY and body.is_stateful(node)
    ]


def in_flow(body: Body, node: Any) -> bool:
    """Whether a node may be in one of TF1's branches or loops."""
    if not any(other.op in _FLOW for other in body.nodes.values()):
        return False
    needed = body.reachable([node.name])
    return any(body.nodes[name].op in _FLOW for name in needed)


def drop_idle_controls(body: Body) -> int:
    """Drops control outputs of a function that stand for no effect.

    Freezing leaves many: reading a variable was one.

    Returns:
        How many.
    """
    function = body.function
    awaited = set(function.control_ret.values())
    acting = set(effects(body))
    idle = []
    for key, name in function.control_ret.items():
        behind = body.reachable([name]) & acting
        if not behind - (awaited - {name}) and name not in acting:
            idle.append(key)
    drop_controls(body, idle)
    return len(idle)


def drop_controls(body: Body, keys: Iterable[str]) -> None:
    """Drops control outputs of a function by name; nodes behind them may go."""
    function = body.function
    awaited = set(function.control_ret.values())
    for key in keys:
        del function.control_ret[key]
        function.signature.control_output.remove(key)
    body.kept = body.kept - awaited | set(function.control_ret.values())


def rename_control(body: Body, old: str, new: str) -> None:
    """Makes another node the control output of a function that one was."""
    controls = body.function.control_ret
    for key in [key for key, name in controls.items() if name == old]:
        controls[key] = new
    if old in body.kept:
        body.kept = body.kept - {old} | {new}
