"""`quantize_weights`: stores weights in 8, 4 or 16 bits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tfopt.transforms import _codes, _tables, _weights
from tfopt.transforms._base import Findings, GraphModel, transform
from tfopt.transforms._dequantize import Writer, can_look_up, stored
from tfopt.transforms._draft import Draft
from tfopt.transforms._graph import Body, Tensor
from tfopt.transforms._weights import Consumer, Weight

# TensorFlow folds constants when it loads a graph, but for larger results than this
# (kMaxConstantSize in constant_folding.cc): those are computed at every run.
FOLDED_BYTES = 10 * 1024 * 1024
# A channel of fewer weights than this shares its scale with the others.
_MIN_CHANNEL = 8
# A row of a table has a scale of its own from this width on; else each column has.
_MIN_ROW = 64
# What nodes around the codes take at least.
_NODE_BYTES = 300


@transform(outputs="reported", adds_nodes=True)
def quantize_weights(
    graph: GraphModel,
    *,
    minimum_size: int = 1024,
    bits: Literal[8, 4, "float16", "bfloat16"] = 8,
    per_channel: bool = True,
    group_size: int = 32,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> Findings:
    """Stores weights in fewer bits; the graph turns them back into floats as it runs.

    Weights are the float32 and float64 constants that matrix products, convolutions,
    `Einsum` and recurrent kernels multiply by, and the tables of embeddings. They are
    rounded symmetrically, `weight = scale * code` with codes -127..127 (4 bits:
    -7..7, two per byte), by `Cast` and `Mul`. The constant's name goes on as that of
    the float weight.

    Embeddings are quantized below the lookup: it gathers rows of codes, and only those
    are turned into floats. So a lookup costs no more than before.

    What becomes smaller is the file, and tables in memory. Other weights are not
    smaller in memory: TensorFlow computes them when it loads the graph, or, above 10 MB
    each, at every run (`computed_at_each_run`), which then takes longer.

    Args:
        graph: The graph.
        minimum_size: Elements that a constant must have.
        bits: 8 or 4, or a 16-bit type. With 4 bits, tables that are looked up along
            their last axis or reshaped get 8.
        per_channel: Whether each output channel has a scale of its own, rather than
            each tensor. In tables each row has, or in those of fewer than 64 columns
            each column.
        group_size: 4 bits only: how many neighbouring inputs of an output share a
            scale at most (which is then a bfloat16 number); 0 for whole channels.
            Tables have no groups.
        include: Globs of constants' names: only these, and those also that no
            operation is known to take as weights.
        exclude: Globs of constants to leave alone.

    Returns:
        `quantized`: how many, `lookups`: how many of the operations look up codes,
        `bytes_before` and `bytes_after`: size of their nodes, and `ratio`;
        `computed_at_each_run`: see above; `tensors`: for each one `node`, `shape`,
        `bits`, `scales` (how many), sizes, `max_error`, `mean_error`, `sqnr_db` (power
        of the weight over that of the error, in decibels), `used_by` (operations) and
        `users` (the nodes that multiply by it or look it up); `remaining`:
        bytes of the graph by kind, to tell what keeps it from becoming smaller;
        `below_minimum_size`: how many constants are too small; `skipped`.

    Raises:
        ValueError: An option is wrong, or a glob matches no node.

    Reference:
        https://ai.google.dev/edge/litert/models/quantization_spec for 8 bits; Dettmers
        and Zettlemoyer, https://arxiv.org/abs/2212.09720, for groups in 4 bits.

    Example:
        >>> artifact = tfopt.transform_graph(
        ...     "saved_model", "out.pb", "quantize_weights", verify="structure"
        ... )
        >>> artifact.details["steps"][0]["findings"]["quantized"]
        1
    """
    if bits not in (8, 4, "float16", "bfloat16") or isinstance(bits, (bool, float)):
        raise ValueError(
            f"Expected 8, 4, 'float16' or 'bfloat16'. Received: bits={bits!r}"
        )
    if (
        not isinstance(group_size, int)
        or isinstance(group_size, bool)
        or not (group_size == 0 or 8 <= group_size <= 1024)
    ):
        raise ValueError(
            f"Expected 0, or 8 to 1024. Received: group_size={group_size!r}"
        )
    found = _weights.select(
        graph, minimum_size=minimum_size, include=include, exclude=exclude
    )
    # All is planned before the first edit, as edits change what plans go by.
    plans = []
    for weight in found.weights:
        try:
            plan = _Plan.of(graph, weight, bits, per_channel, group_size)
        except _Unfit as reason:
            found.skip(weight.name, str(reason))
            continue
        plans.append(plan)
    drafts = {}
    for plan in plans:
        for body in plan.bodies(graph):
            if body.name not in drafts:
                drafts[body.name] = Draft(body)
    tensors = [plan.report() for plan in plans]
    written = [plan.write(graph, drafts) for plan in plans]
    for draft in drafts.values():
        draft.write()
    for line, nodes in zip(tensors, written, strict=True):
        line["bytes_after"] = sum(node.ByteSize() for node in nodes)
    lookups = sum(len(plan.lookups) for plan in plans)
    return (
        _findings(tensors, lookups)
        | {"remaining": _remaining(graph, plans)}
        | found.findings()
    )


class _Unfit(Exception):
    """Says why a weight is left alone."""


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How one weight is stored.

    Attributes:
        weight: The weight.
        codes: What is stored.
        bits: See `quantize_weights`.
        lookups: The operations that will look up codes.
        reach: How the codes get to lookups in functions.
    """

    weight: Weight
    codes: _codes.Codes
    bits: int | str
    lookups: tuple[Consumer, ...]
    reach: _tables.Reach

    @classmethod
    def of(
        cls,
        graph: GraphModel,
        weight: Weight,
        bits: int | str,
        per_channel: bool,
        group_size: int,
    ) -> _Plan:
        """Chooses axes and rounds.

        Raises:
            _Unfit: It had better be left alone.
        """
        lookups, reach = _lookups(graph, weight)
        if isinstance(bits, str):
            try:
                codes = _codes.to_floats(weight.array, bits)
            except OverflowError as error:
                raise _Unfit(str(error)) from error
        else:
            if not all(_can_pack(weight, item) for item in lookups):
                bits = 8
            axes: tuple[int, ...] = ()
            group = None
            if per_channel:
                axes = (
                    _table_axes(weight, lookups) if lookups else _channel_axes(weight)
                )
            if bits == 4 and group_size and per_channel and not lookups:
                group = _group(weight.array.shape, axes, group_size)
            codes = _codes.to_integers(
                weight.array, bits=bits, channel_axes=axes, group=group
            )
        plan = cls(weight, codes, bits, lookups, reach)
        if plan.stored.nbytes + plan.num_scales * 4 + _NODE_BYTES >= (
            weight.node.ByteSize()
        ):
            raise _Unfit("would not become smaller")
        return plan

    @property
    def stored(self) -> np.ndarray:
        """What the constant with the codes holds."""
        return stored(self.codes, is_packed=self.bits == 4, is_table=bool(self.lookups))

    @property
    def num_scales(self) -> int:
        """How many scales there are."""
        return 0 if self.codes.scale is None else self.codes.scale.size

    @property
    def remains(self) -> bool:
        """Whether something takes the whole weight."""
        weight = self.weight
        return len(self.lookups) < len(weight.consumers) or bool(weight.others)

    def bodies(self, graph: GraphModel) -> list[Body]:
        """Returns the bodies that will change."""
        return [
            self.weight.body,
            *(graph.functions[name] for name in self.reach.arguments),
            *(body for body, _, _ in self.reach.calls),
        ]

    def write(self, graph: GraphModel, drafts: dict[str, Draft]) -> list[Any]:
        """Changes the graph; returns the nodes written."""
        weight, is_packed, is_table = self.weight, self.bits == 4, bool(self.lookups)
        home = drafts[weight.body.name]
        writer = Writer.at_home(
            home, weight, self.codes, is_packed=is_packed, is_table=is_table
        )
        writers, source = {weight.body.name: writer}, writer.source
        for name, argument in self.reach.arguments.items():
            body = graph.functions[name]
            writers[name] = Writer(
                drafts[name],
                weight,
                self.codes,
                Tensor(argument),
                stem=argument,
                before=next(iter(body.nodes)),
                is_packed=is_packed,
                is_table=is_table,
            )
        for consumer in self.lookups:
            writers[consumer.body.name].look_up(consumer)
        wholes: dict[str, Tensor] = {}
        for body, node, position in self.reach.others:
            if body.name not in wholes:
                wholes[body.name] = writers[body.name].whole()
            drafts[body.name].inputs[node.name][position] = wholes[body.name]
        self.reach.change_types(graph, drafts, self.stored, (weight.body, source))
        if not self._drop(home, source.node):
            writers[weight.body.name].whole(weight.node)
        return [node for writer in writers.values() for node in writer.added]

    def _drop(self, draft: Draft, instead: str) -> bool:
        """Removes the weight and what passed it on, if only lookups took it."""
        body = self.weight.body
        done = {item.node.name for item in self.lookups if item.body is body}
        done |= {node.name for where, node, _ in self.reach.calls if where is body}
        path = {
            node.name: node
            for item in self.lookups
            for where, node in item.path
            if where is body and node.name not in done
        }
        if any(node.op == "Enter" for node in path.values()):
            return False  # What waits for it must wait inside the loop.
        if any(body.uses(tensor) for tensor in self.reach.results(body)):
            return False
        gone = [*path.values(), self.weight.node]
        names = done | {node.name for node in gone}
        for node in gone:
            tensor = Tensor(node.name)
            users = {use.node.name for use in body.uses(tensor)}
            kept = body.is_kept(node.name) or body.is_returned(tensor)
            if kept or not users <= names:
                return False
        for node in gone:
            draft.drop(node.name, instead=instead)
        return True

    def report(self) -> dict[str, Any]:
        """Returns the weight's line in the findings."""
        used_by = [item.node.op for item in self.weight.consumers]
        return {
            "node": self.weight.name,
            "shape": list(self.weight.array.shape),
            "bits": self.bits,
            "scales": self.num_scales,
            "bytes_before": self.weight.node.ByteSize(),
            "bytes_after": 0,  # Known once it is written.
            **self.codes.errors(self.weight.array),
            "used_by": list(dict.fromkeys([*used_by, *self.weight.others])),
            "users": [item.node.name for item in self.weight.consumers],
            "computed_at_each_run": self.remains
            and self.weight.array.nbytes > FOLDED_BYTES,
        }


def _lookups(
    graph: GraphModel, weight: Weight
) -> tuple[tuple[Consumer, ...], _tables.Reach]:
    """Returns the lookups that can be made in codes, and how those get there.

    Raises:
        _Unfit: The whole table would be computed at each run instead.
    """
    here = tuple(item for item in weight.consumers if can_look_up(weight, item))
    inside = tuple(
        item
        for item in weight.consumers
        if item.is_lookup
        and item.body is not weight.body
        and _tables.is_carried(graph, item)
    )
    reach = _tables.follow(graph, weight) if inside else _tables.Reach()
    found, why = here, "what it looks up is another form of the table"
    if isinstance(reach, _tables.Reach):
        found = here + inside
    else:
        why, reach = reach, _tables.Reach()
    num_lookups = sum(item.is_lookup for item in weight.consumers)
    if len(found) < num_lookups and weight.array.nbytes > FOLDED_BYTES:
        raise _Unfit(f"a large table with a lookup that cannot be made in codes: {why}")
    return found, reach


def _findings(tensors: list[dict[str, Any]], lookups: int) -> Findings:
    before = sum(tensor["bytes_before"] for tensor in tensors)
    after = sum(tensor["bytes_after"] for tensor in tensors)
    often = [tensor["node"] for tensor in tensors if tensor.pop("computed_at_each_run")]
    return {
        "quantized": len(tensors),
        "lookups": lookups,
        "bytes_before": before,
        "bytes_after": after,
        "ratio": before / after if after else None,
        "computed_at_each_run": often,
        "tensors": tensors,
    }


def _remaining(graph: GraphModel, plans: Sequence[_Plan]) -> dict[str, int]:
    """Returns what the graph's bytes are spent on now."""
    sizes = {"codes": 0, "float_constants": 0, "other_constants": 0, "nodes": 0}
    codes = {plan.weight.node.name + "/codes" for plan in plans}
    for body in graph.bodies:
        for node in body:
            if node.op != "Const":
                kind = "nodes"
            elif node.name in codes:
                kind = "codes"
            else:
                is_float = _weights.is_float(node)
                kind = "float_constants" if is_float else "other_constants"
            sizes[kind] += node.ByteSize()
    return sizes


def _channel_axes(weight: Weight) -> tuple[int, ...]:
    """Returns the axes of output channels, as the first operation to know them has."""
    shape = weight.array.shape
    axes: tuple[int, ...] = (len(shape) - 1,) if shape else ()
    for consumer in weight.consumers:
        known = consumer.view.source_axes(consumer.channels)
        if known:
            axes = known
            break
    return axes if _num_per_scale(shape, axes) >= _MIN_CHANNEL else ()


def _table_axes(weight: Weight, lookups: Sequence[Consumer]) -> tuple[int, ...]:
    """Returns the axes of a table that keep a scale each: its rows, or columns."""
    shape = weight.array.shape
    rows = lookups[0].view.source_axes(lookups[0].channels) or ()
    columns = (len(shape) - 1,)
    axes = rows if _num_per_scale(shape, rows) >= _MIN_ROW else columns
    return axes if all(_can_scale(item, shape, axes) for item in lookups) else ()


def _can_scale(
    consumer: Consumer, shape: tuple[int, ...], axes: tuple[int, ...]
) -> bool:
    """Whether scales along axes of a table fit the rows that a lookup finds."""
    view = consumer.view
    if view.axes is None:
        return False
    long = {axis for axis in axes if shape[axis] > 1}
    kept = {i for i, found in enumerate(view.axes) if found & long}
    if np.prod([view.sizes[i] for i in kept]) != np.prod([shape[i] for i in long]):
        return False  # Reshaping cut across them.
    channels = {i for i in consumer.channels if view.sizes[i] > 1}
    if not consumer.channels:
        return not kept
    return kept == channels or min(kept, default=0) > max(consumer.channels)


def _can_pack(weight: Weight, consumer: Consumer) -> bool:
    """Whether a lookup leaves the last axis, along which 4-bit codes are packed."""
    view = consumer.view
    known = bool(consumer.channels) and max(consumer.channels) < len(view.sizes) - 1
    return known and view.sizes == weight.array.shape


def _group(
    shape: tuple[int, ...], axes: tuple[int, ...], size: int
) -> _codes.Group | None:
    """Returns how to cut a weight's inputs into groups of at most `size`.

    The inputs are the longest run of axes that aren't channels. `None` if there is no
    number of at least 8 that divides them.
    """
    runs: list[list[int]] = [[]]
    for axis in range(len(shape)):
        if axis in axes:
            runs.append([])
        else:
            runs[-1].append(axis)
    run = max(runs, key=lambda run: math.prod(shape[axis] for axis in run))
    length = math.prod(shape[axis] for axis in run)
    for width in range(min(size, length // 2), _MIN_CHANNEL - 1, -1):
        if length % width == 0:
            return _codes.Group(run[0], run[-1] + 1, width)
    return None


def _num_per_scale(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    kept = int(np.prod([shape[axis] for axis in axes], dtype=np.int64))
    return int(np.prod(shape, dtype=np.int64)) // max(kept, 1)
