"""`strip_unused_nodes`: only what leads from the inputs to the outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tfopt.savedmodel import dtypes, protos
from tfopt.transforms import _effects, _ops, _semantics
from tfopt.transforms._base import Findings, GraphModel, transform
from tfopt.transforms._graph import Body

_PLACEHOLDERS = frozenset({"Placeholder", "PlaceholderV2", "PlaceholderWithDefault"})
_ALIASES = {"float32": "float", "float64": "double", "float16": "half"}


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """What is said about a new placeholder; `None` where nothing is."""

    dtype: int | None
    shape: tuple[int | None, ...] | None


@transform()
def strip_unused_nodes(
    graph: GraphModel,
    *,
    type: str | None = None,
    shape: str | None = None,
    name: Sequence[str] = (),
    type_for_name: Sequence[str] = (),
    shape_for_name: Sequence[str] = (),
) -> Findings:
    """Removes nodes and functions that don't lead from the inputs to the outputs.

    An input in the middle of the graph (behind an image decoder, say) becomes a
    placeholder, and what was before it goes. Placeholders that are there already stay
    as they are.

    Args:
        graph: The graph.
        type: Type of new placeholders, for example `float` or `int32`; by default that
            of the tensor they replace.
        shape: Shape of new placeholders, for example `"1,299,299,3"`, with -1 for a
            free size; by default any.
        name: Names of inputs that the next two options are about.
        type_for_name: Type of each of them.
        shape_for_name: Shape of each of them.

    Returns:
        `removed`: number of nodes. `placeholders`: names of new ones. `skipped`: inputs
        with a type or shape given that were placeholders already.

    Raises:
        ValueError: A type or shape cannot be read, doesn't fit the graph, or is missing
            since the graph doesn't tell it; or an input is one of several outputs of a
            node, which a placeholder cannot stand for.
    """
    wanted = _wanted_by_name(graph, name, type_for_name, shape_for_name)
    default = _Wanted(
        None if type is None else _dtype("type", type),
        None if shape is None else _shape("shape", shape),
    )
    before = graph.num_nodes
    made = []
    skipped = []
    for tensor in graph.inputs:
        node = graph.main.nodes.get(tensor.split(":")[0])
        # Names that aren't in the graph are the caller's fault, which he is told of.
        if node is None or node.name in made:
            continue
        if node.op not in _PLACEHOLDERS:
            _make_placeholder(graph, node, wanted.get(node.name, default), default)
            made.append(node.name)
        elif node.name in wanted:
            skipped.append({"node": node.name, "reason": "is a placeholder already"})
    graph.main.changed()
    graph.remove_dead()
    effects = _semantics.Effects(graph)
    for body in graph.functions.values():
        _forget_waits(body, effects)
    if graph.functions:
        graph.remove_dead()
    return {
        "removed": before - graph.num_nodes,
        "placeholders": made,
        "skipped": skipped,
    }


def _forget_waits(body: Body, effects: _semantics.Effects) -> None:
    """Frees nodes that a function's callers wait for though they have no effect.

    Freezing leaves many: reading a variable was one, reading a constant isn't.
    """
    waits = body.function.control_ret
    if not waits:
        return
    decisive = _semantics.decisive(body, effects)
    idle = [name for name, node in waits.items() if node not in decisive]
    _effects.drop_controls(body, idle)


def _wanted_by_name(
    graph: GraphModel,
    names: Sequence[str],
    types: Sequence[str],
    shapes: Sequence[str],
) -> dict[str, _Wanted]:
    inputs = {tensor.split(":")[0] for tensor in graph.inputs}
    for option, values in (("type_for_name", types), ("shape_for_name", shapes)):
        if values and len(values) != len(names):
            raise ValueError(
                f"Expected {option} once for each name. Received: name={list(names)}, "
                f"{option}={list(values)}"
            )
    found = {}
    for index, name in enumerate(names):
        node = name.split(":")[0]
        if node not in inputs:
            raise ValueError(
                f"Expected names among the inputs {sorted(inputs)}. "
                f"Received: name={name!r}"
            )
        found[node] = _Wanted(
            _dtype("type_for_name", types[index]) if types else None,
            _shape("shape_for_name", shapes[index]) if shapes else None,
        )
    return found


def _make_placeholder(
    graph: GraphModel, node: Any, wanted: _Wanted, default: _Wanted
) -> None:
    outputs = [t for t in graph.inputs if t.split(":")[0] == node.name]
    taken = {
        ref
        for other in graph.main.nodes.values()
        for ref in other.input
        if ref.split(":")[0] == node.name
    }
    beyond = {ref for ref in taken if ref not in (node.name, f"{node.name}:0")}
    if outputs != [f"{node.name}:0"] or beyond:
        raise ValueError(
            "A placeholder has one output. Expected inputs that are the only output "
            "used of their node; take a node after this one as input. Received: "
            f"inputs={sorted({*outputs, *beyond})} of {node.name!r} ({node.op})"
        )
    dtype = wanted.dtype if wanted.dtype is not None else default.dtype
    known = _ops.output_types(node, graph.library)
    if known:
        present = known[0] % dtypes.REF_OFFSET
        if dtype is not None and dtype != present:
            raise ValueError(
                f"The graph takes {dtypes.name_of(present)} from this input. Expected "
                f"that type, or none given. Received: type {dtypes.name_of(dtype)} for "
                f"{node.name!r}"
            )
        dtype = present
    if dtype is None:
        raise ValueError(
            "The type of an input isn't known, as TensorFlow doesn't know its "
            "operation. Expected type=, or name= and type_for_name=. "
            f"Received: {node.name!r} ({node.op})"
        )
    sizes = wanted.shape if wanted.shape is not None else default.shape
    node.op = "Placeholder"
    node.attr.clear()
    del node.input[:]
    _ops.set_attributes(node, dtype=_ops.Type(dtype))
    if sizes is None:
        node.attr["shape"].shape.unknown_rank = True
    else:
        _ops.set_attributes(node, shape=_ops.Shape(sizes))


def _dtype(option: str, text: str) -> int:
    plain = text.lower().removeprefix("dt_")
    plain = _ALIASES.get(plain, plain)
    plain_types = [n for n in protos.data_types() if n < dtypes.REF_OFFSET]
    known = {dtypes.name_of(number): number for number in plain_types}
    if plain not in known or plain == "invalid":
        raise ValueError(
            "Unknown type. Expected TensorFlow's name, for example float, int32 or "
            f"string. Received: {option}={text!r}"
        )
    return known[plain]


def _shape(option: str, text: str) -> tuple[int | None, ...]:
    """Returns sizes; `""` is a scalar."""
    parts = [part.strip() for part in text.strip("[]() ").split(",") if part.strip()]
    sizes = []
    for part in parts:
        try:
            size = -1 if part in ("?", "None") else int(part)
        except ValueError:
            size = -2
        if size < -1:
            raise ValueError(
                "Cannot read the shape. Expected sizes joined by commas, -1 where "
                f"free, such as 1,224,224,3. Received: {option}={text!r}"
            )
        sizes.append(None if size < 0 else size)
    return tuple(sizes)
