"""The function library of a GraphDef, before and after TensorFlow's Grappler."""

from __future__ import annotations

from typing import Any

from tfopt.freezing.flow import attr, functions_of

# TensorFlow lowers branches and loops with this attribute when it inlines, for good:
# into TF1's Switch, Merge, Enter and Exit. Set aside, so that they stay functional.
_LOWER = "_lower_using_switch_merge"
_SET_ASIDE = "_tfopt_lower"


def bodies(graph: Any) -> list[Any]:
    """Returns the lists of NodeDefs of a GraphDef: its own, then its functions'."""
    return [graph.node, *(function.node_def for function in graph.library.function)]


def set_lowering_aside(graph: Any) -> None:
    """Makes Grappler keep branches and loops functional."""
    for nodes in bodies(graph):
        for node in nodes:
            if attr(node, _LOWER).b:
                node.attr[_LOWER].b = False
                node.attr[_SET_ASIDE].b = True


def restore_lowering(graph: Any) -> None:
    """Undoes `set_lowering_aside`: at run time they may be lowered."""
    for nodes in bodies(graph):
        for node in nodes:
            if _SET_ASIDE in node.attr:
                del node.attr[_SET_ASIDE]
                node.attr[_LOWER].b = True


def used_functions(graph: Any) -> list[Any]:
    """Returns the FunctionDefs that are called, directly or not."""
    library = {f.signature.name: f for f in graph.library.function}
    used: set[str] = set()
    pending = [graph.node]
    while pending:
        for node in pending.pop():
            called = [f.name for v in node.attr.values() for f in functions_of(v)]
            for name in {node.op, *called} & set(library) - used:
                used.add(name)
                pending.append(library[name].node_def)
    return [function for name, function in library.items() if name in used]
