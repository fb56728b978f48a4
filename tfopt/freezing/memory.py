"""A frozen, function-free GraphDef in memory, for what reads graphs node by node."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

from tfopt import artifacts
from tfopt.freezing import output as outputs
from tfopt.freezing import plan as plans
from tfopt.freezing import rewrite, sources, state
from tfopt.freezing.output import FrozenModel
from tfopt.types import TfoptError

_MARKS = ("_XlaMustCompile", "_noinline")


@dataclasses.dataclass(frozen=True)
class FrozenGraph:
    """A model as one GraphDef without variables and calls.

    Attributes:
        where: Where it came from, for messages.
        content: The serialized GraphDef.
        signature_key: Key of the signature.
        inputs: Input name -> tensor name, sorted by input name.
        outputs: Output name -> tensor name, sorted by output name.
        variables: Nodes of the constants that were variables.
    """

    where: str
    content: bytes
    signature_key: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    variables: frozenset[str]


def frozen_graph(
    source: Any,
    *,
    signature_key: str | None = None,
    tags: Collection[str] | None = None,
    output_node_names: Sequence[str] = (),
) -> FrozenGraph:
    """Freezes one signature of a model, and replaces calls by what they call.

    Branches and loops stay functional.

    Args:
        source: As for `tfopt.freeze`.
        signature_key: The signature; by default `serving_default`, or the only one.
        tags: Tag set of a SavedModel's graph.
        output_node_names: Outputs of a graph file.

    Raises:
        TfoptError: There is no such signature, or several and none is named, or it
            writes variables, or what `tfopt.freeze` raises.

    Example:
        >>> frozen_graph("saved_model").inputs
        {'image': 'serving_default_image:0'}
    """
    keys = None if signature_key is None else [signature_key]
    with sources.open_source(
        source, signature_keys=keys, tags=tags, output_node_names=output_node_names
    ) as opened:
        key = _key(opened, signature_key)
        opened.signatures = {key: opened.signatures[key]}
        plan = plans.make_plan(
            opened, denylist=(), keep_over=None, stateful="error", has_variables=False
        )
        graph = rewrite.rewrite(
            plan.nodes, opened.library, plan.frozen, clear_devices=True
        )
        first = state.add_state(plan, graph)
        from tfopt.freezing import inlining

        _allow_inlining(graph)
        graph = inlining.inline(opened, graph, first)
        with artifacts.temporary_folder() as folder:
            path = pathlib.Path(folder) / "frozen.pb"
            model = FrozenModel(opened, plan, graph, first, "graph_def")
            outputs.write(model, path, checksums=True)
            content = path.read_bytes()
        signature = opened.signatures[key]
        return FrozenGraph(
            where=opened.where,
            content=content,
            signature_key=key,
            inputs=_tensors(signature.inputs, key),
            outputs=_tensors(signature.outputs, key),
            variables=frozenset(entry.node for entry in graph.constants),
        )


def _key(opened: sources.Source, wanted: str | None) -> str:
    found = list(opened.signatures)
    if wanted is not None:
        return wanted
    if sources.SERVING_DEFAULT in found:
        return sources.SERVING_DEFAULT
    if len(found) != 1:
        raise TfoptError(
            "The model has several signatures. Expected the `signature_key` of one of "
            f"{sorted(found)}. Received: signature_key=None for {opened.where}"
        )
    return found[0]


def _allow_inlining(graph: rewrite.Rewritten) -> None:
    """Takes marks off functions that would keep Grappler from inlining them.

    Keras puts grouped convolutions into functions that XLA compiles on a CPU.
    """
    for function in graph.functions:
        for mark in _MARKS:
            function.attr.pop(mark, None)
    for nodes in (graph.nodes, *(function.node_def for function in graph.functions)):
        for node in nodes:
            for mark in _MARKS:
                node.attr.pop(mark, None)


def _tensors(infos: Any, key: str) -> dict[str, str]:
    composite = [name for name in infos if not infos[name].name]
    if composite:
        raise TfoptError(
            "The signature has sparse or ragged tensors. Expected dense ones. "
            f"Received: {composite} of the signature {key!r}"
        )
    return {name: infos[name].name for name in sorted(infos)}
