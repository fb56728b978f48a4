"""Nodes that turn codes back into weights: whole ones, or the rows of a lookup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tfopt.savedmodel import dtypes, protos
from tfopt.transforms import _codes, _constants, _ops
from tfopt.transforms._draft import Draft
from tfopt.transforms._graph import Tensor
from tfopt.transforms._weights import Consumer, Weight

# What a lookup may have between itself and its table.
_PASSABLE = frozenset(
    {
        *("Identity", "Snapshot", "StopGradient", "PreventGradient", "Enter", "Cast"),
        *("Reshape", "ExpandDims", "Squeeze"),
    }
)
_INT8, _INT32 = np.dtype(np.int8), np.dtype(np.int32)


class _Step(NamedTuple):
    """An operation on what the one before it makes.

    Attributes:
        op: The operation.
        suffix: Last part of its node's name, unless it takes over another node.
        inputs: What it takes besides.
        attributes: Its attributes.
    """

    op: str
    suffix: str
    inputs: tuple[Tensor, ...]
    attributes: dict[str, Any]


def can_look_up(weight: Weight, consumer: Consumer) -> bool:
    """Whether a lookup in the weight's body can be made in the codes instead."""
    view = consumer.view
    return (
        consumer.is_lookup
        and consumer.body is weight.body
        and all(node.op in _PASSABLE for _, node in consumer.path)
        and view.is_in_order
        and view.axes is not None
    )


def is_flat(codes: _codes.Codes, *, is_table: bool) -> bool:
    """Whether 4-bit codes are packed as one long row.

    One axis of even size wastes nothing, and rows of a table must stay rows.
    """
    shape = codes.codes.shape
    return not is_table and (codes.shape != shape or shape[-1] % 2 > 0)


def stored(codes: _codes.Codes, *, is_packed: bool, is_table: bool) -> np.ndarray:
    """Returns the array that a constant holds for codes."""
    if not is_packed:
        return codes.codes
    flat = is_flat(codes, is_table=is_table)
    return _codes.pack(codes.codes.reshape(-1) if flat else codes.codes)


class Writer:
    """Writes nodes of one body that make a weight, or rows of it, from its codes.

    Args:
        draft: The edits of the body.
        weight: The weight, of this or another body.
        codes: What it becomes.
        source: The codes as a tensor of the body.
        stem: First part of the names of constants.
        is_packed: Whether codes have 4 bits.
        is_table: Whether they have the weight's shape, but for packing the last axis.
        before: Node before which constants are written, in the order of the file.
        controls: Nodes that constants wait for.

    Attributes:
        added: The nodes written.
    """

    def __init__(
        self,
        draft: Draft,
        weight: Weight,
        codes: _codes.Codes,
        source: Tensor,
        *,
        stem: str,
        before: str,
        is_packed: bool,
        is_table: bool,
        controls: Sequence[str] = (),
    ):
        self._draft = draft
        self._weight = weight
        self._codes = codes
        self._source = source
        self._stem = stem
        self._before = before
        self._controls = tuple(controls)
        self._is_packed = is_packed
        self._is_flat = is_packed and is_flat(codes, is_table=is_table)
        self._type = weight.array.dtype
        self._kind = np.dtype(np.int8) if is_packed else codes.codes.dtype
        self._scales: dict[tuple[int, ...], Tensor] = {}
        self.added: list[Any] = []

    @classmethod
    def at_home(
        cls,
        draft: Draft,
        weight: Weight,
        codes: _codes.Codes,
        *,
        is_packed: bool,
        is_table: bool,
    ) -> Writer:
        """Returns a writer for the weight's own body, after adding the codes to it."""
        name = weight.node.name
        writer = cls(
            draft,
            weight,
            codes,
            Tensor(name),
            stem=name,
            before=name,
            is_packed=is_packed,
            is_table=is_table,
            controls=weight.body.controls(weight.node),
        )
        array = stored(codes, is_packed=is_packed, is_table=is_table)
        writer._source = writer._constant("codes", array)
        return writer

    @property
    def source(self) -> Tensor:
        """The codes."""
        return self._source

    def whole(self, node: Any = None) -> Tensor:
        """Returns the whole weight, made from the codes.

        Args:
            node: A node that it takes over; `None` for a new one.
        """
        codes, name = self._codes, self._stem if node is None else node.name
        last = codes.codes.size if self._is_flat else codes.codes.shape[-1]
        value = self._unpacked(self._source, name, last)
        steps = []
        if self._is_flat:
            shape = self._shape("view", codes.codes.shape)
            kinds = {"T": _INT8, "Tshape": _INT32}
            steps.append(_Step("Reshape", "view", (shape,), kinds))
        steps += self._to_real(self._scale())
        if codes.codes.shape != codes.shape:
            shape = self._shape("shape", codes.shape)
            kinds = {"T": self._type, "Tshape": _INT32}
            steps.append(_Step("Reshape", "weights", (shape,), kinds))
        return self._chain(name, node, value, steps)

    def look_up(self, consumer: Consumer) -> None:
        """Makes a lookup in the codes, and weights only of the rows it finds."""
        node, view = consumer.node, consumer.view
        codes = self._source
        if view.sizes != self._weight.array.shape:
            shape = self._shape("rows", view.sizes)
            kinds = {"T": self._kind, "Tshape": _INT32}
            codes = self._node("Reshape", f"{self._stem}/rows", [codes, shape], **kinds)
        found = self._gathered(consumer, codes, "codes", self._kind)
        found = self._unpacked(found, node.name, view.sizes[-1])
        steps = self._to_real(self._scale_of_rows(consumer))
        kind = np.dtype(dtypes.to_numpy(_ops.get(node, "Tparams")))
        if kind != self._type:
            attributes = {"SrcT": self._type, "DstT": kind}
            if self._codes.scale is None:  # 16-bit floats: straight to that type.
                source = steps.pop().attributes["SrcT"]
                attributes = {"SrcT": source, "DstT": kind}
            steps.append(_Step("Cast", "cast", (), attributes))
        self._chain(node.name, node, found, steps)

    # What steps are made of.

    def _to_real(self, scale: Tensor | None) -> list[_Step]:
        kinds = {"SrcT": self._codes.codes.dtype, "DstT": self._type}
        steps = [_Step("Cast", "cast", (), kinds)]
        if scale is not None:
            steps.append(_Step("Mul", "weights", (scale,), {"T": self._type}))
        return steps

    def _scale(self, shape: tuple[int, ...] | None = None) -> Tensor | None:
        """Returns the constant with the scales, in some shape."""
        scale = self._codes.scale
        if scale is None:
            return None
        shape = scale.shape if shape is None else shape
        if shape not in self._scales:
            if self._codes.codes.shape != self._codes.shape:  # in groups
                small = _codes.as_bfloat16(scale)
                stored = self._constant("scale", small)
                kinds = {"SrcT": small.dtype, "DstT": self._type}
                made = self._node("Cast", f"{self._stem}/scales", [stored], **kinds)
            else:
                values = scale.reshape(shape).astype(self._type)
                made = self._constant("scale", values)
            self._scales[shape] = made
        return self._scales[shape]

    def _scale_of_rows(self, consumer: Consumer) -> Tensor | None:
        """Returns the scales of what a lookup finds."""
        scale, view = self._codes.scale, consumer.view
        if scale is None or view.axes is None:
            return None
        if scale.size == 1:
            return self._scale(())
        kept = [any(scale.shape[a] > 1 for a in axes) for axes in view.axes]
        shape = tuple(
            size if is_kept else 1
            for size, is_kept in zip(view.sizes, kept, strict=True)
        )
        if not any(kept[axis] for axis in consumer.channels):
            # One per column: it meets what is behind the axes looked up.
            return self._scale(shape[max(consumer.channels) + 1 :])
        scales = self._scale(shape)
        return scales and self._gathered(consumer, scales, "scales", self._type)

    def _unpacked(self, tensor: Tensor, stem: str, last: int) -> Tensor:
        """Returns codes one per element again; see `_codes.pack`."""
        if not self._is_packed:
            return tensor
        four = self._constant("four", np.int8(4), stem=stem)
        kinds = {"T": _INT8}
        # Signed: shifting right repeats the sign.
        raised = self._node("LeftShift", f"{stem}/left", [tensor, four], **kinds)
        low = self._node("RightShift", f"{stem}/low", [raised, four], **kinds)
        high = self._node("RightShift", f"{stem}/high", [tensor, four], **kinds)
        axis = self._constant("axis", np.int32(-1), stem=stem)
        both = self._node(
            "ConcatV2", f"{stem}/both", [low, high, axis], N=2, T=_INT8, Tidx=_INT32
        )
        if last % 2 == 0:
            return both
        begin = self._constant("begin", np.zeros(2, np.int32), stem=stem)
        end = self._constant("end", np.array([0, last], np.int32), stem=stem)
        ones = self._constant("strides", np.ones(2, np.int32), stem=stem)
        masks = {"begin_mask": 2, "end_mask": 0, "ellipsis_mask": 1}
        masks.update(new_axis_mask=0, shrink_axis_mask=0)
        cut = [both, begin, end, ones]
        return self._node(
            "StridedSlice", f"{stem}/cut", cut, T=_INT8, Index=_INT32, **masks
        )

    def _gathered(
        self, consumer: Consumer, table: Tensor, suffix: str, kind: np.dtype
    ) -> Tensor:
        """Returns the lookup's rows of another table."""
        for _, step in consumer.path:
            if step.op == "Enter":
                inside = _copy(step, f"{step.name}/{suffix}")
                _ops.set_attributes(inside, T=kind)
                controls = self._draft.controls[step.name]
                table = self._add(inside, [table], controls, before=step.name)
        node = consumer.node
        lookup = _copy(node, f"{node.name}/{suffix}")
        _ops.set_attributes(lookup, Tparams=kind)
        inputs = [table, *self._draft.inputs[node.name][1:]]
        controls = self._draft.controls[node.name]
        return self._add(lookup, inputs, controls, before=node.name)

    # Writing.

    def _chain(
        self, name: str, node: Any, value: Tensor, steps: Sequence[_Step]
    ) -> Tensor:
        """Adds steps one after the other; the last one takes over a node, if any."""
        for step in steps[:-1] if node is not None else steps:
            inputs = [value, *step.inputs]
            value = self._node(
                step.op, f"{name}/{step.suffix}", inputs, **step.attributes
            )
        if node is None:
            return value
        step = steps[-1]
        self._draft.become(node, step.op, [value, *step.inputs], **step.attributes)
        self.added.append(node)
        return Tensor(node.name)

    def _constant(self, suffix: str, array: Any, *, stem: str | None = None) -> Tensor:
        proto = _constants.to_proto(np.asarray(array))
        node = _new("Const", f"{stem or self._stem}/{suffix}")
        _ops.set_attributes(node, value=proto, dtype=_ops.Type(proto.dtype))
        return self._add(node, [], self._controls, before=self._before)

    def _shape(self, suffix: str, shape: Sequence[int]) -> Tensor:
        return self._constant(f"{suffix}/sizes", np.array(shape, np.int32))

    def _node(
        self, op: str, name: str, inputs: Sequence[Tensor], **attributes: Any
    ) -> Tensor:
        node = _new(op, name)
        _ops.set_attributes(node, **attributes)
        return self._add(node, inputs, (), before=self._before)

    def _add(
        self, node: Any, inputs: Sequence[Tensor], controls: Any, *, before: str
    ) -> Tensor:
        node.device = self._weight.node.device
        self.added.append(node)
        return self._draft.add(node, inputs, controls=controls, before=before)


def _new(op: str, name: str) -> Any:
    return protos.message_class("NodeDef")(name=name, op=op)


def _copy(node: Any, name: str) -> Any:
    copy = type(node)()
    copy.CopyFrom(node)
    copy.name = name
    del copy.input[:]
    # They are about what the node makes, which isn't what the copy makes.
    for attribute in [key for key in copy.attr if key.startswith("_")]:
        del copy.attr[attribute]
    return copy
