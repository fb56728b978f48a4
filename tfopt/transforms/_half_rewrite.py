"""Half precision for a graph: the change itself, and the casts."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt.savedmodel import dtypes, protos
from tfopt.transforms import _constants, _ops
from tfopt.transforms._draft import Draft
from tfopt.transforms._graph import Body, Tensor
from tfopt.transforms._half_ops import Form

# A constant that is needed in both types is stored twice up to this many elements;
# else it is cast as the graph runs.
_STORED_TWICE = 64


class Rewriter:
    """Changes nodes of a body to half precision, and casts where types meet.

    Args:
        body: The body.
        half: DataType number of the half precision type.
        forms: Node -> how it changes.

    Attributes:
        casts: How many Cast nodes were added.
        constants: How many constants are in half precision now.
    """

    def __init__(self, body: Body, half: int, forms: Mapping[str, Form]):
        self._body = body
        self._half = half
        self._suffix = {"half": "float16"}.get(dtypes.name_of(half), "bfloat16")
        self._forms = forms
        self._draft = Draft(body)
        # Node -> its inputs that are half now.
        self._wanted = {name: form.inputs for name, form in forms.items()}
        self._halves: set[Tensor] = set()
        self._other: dict[Tensor, Tensor] = {}  # The same in the other type.
        self.casts = self.constants = 0

    def run(self) -> None:
        """Rewrites the body."""
        for node in self._body:
            if node.name in self._forms:
                self._change(node, self._forms[node.name])
        self._store_constants()
        for name, inputs in list(self._draft.inputs.items()):
            if self._body.nodes[name].op == "Cast":
                self._shorten(self._body.nodes[name])
                continue
            wanted = self._wanted.get(name, frozenset())
            for position, tensor in enumerate(inputs):
                fitting = self._as(tensor, position in wanted, before=name)
                self._draft.inputs[name][position] = fitting
        self._body.returns = [
            self._as(tensor, False, before=None) for tensor in self._body.returns
        ]
        self._draft.write()

    def _change(self, node: Any, form: Form) -> None:
        """Gives a node its new types; an output's name goes to a Cast behind it."""
        changed = node
        if self._body.function is None and self._body.is_kept(node.name):
            changed = self._move_behind_cast(node)
        kind = _ops.Type(self._half)
        _ops.set_attributes(changed, **dict.fromkeys(form.attributes, kind))
        self._halves |= {Tensor(changed.name, output) for output in form.outputs}

    def _move_behind_cast(self, node: Any) -> Any:
        draft, inner = self._draft, type(node)()
        inner.CopyFrom(node)
        inner.name = f"{node.name}/{self._suffix}"
        taken, waits = draft.inputs[node.name], draft.controls[node.name]
        source = draft.add(inner, taken, controls=waits, before=node.name)
        self._wanted[inner.name] = self._wanted.pop(node.name)
        draft.controls[node.name] = []
        draft.become(node, "Cast", [source], **self._cast_types(to_half=False))
        self._other[Tensor(node.name)] = source
        self.casts += 1
        return inner

    def _store_constants(self) -> None:
        """Converts the constants that are needed in half precision."""
        wishes: dict[Tensor, collections.Counter[bool]] = {}
        for name, inputs in self._draft.inputs.items():
            if self._body.nodes[name].op == "Cast":
                continue
            wanted = self._wanted.get(name, frozenset())
            for position, tensor in enumerate(inputs):
                is_half = position in wanted
                wishes.setdefault(tensor, collections.Counter())[is_half] += 1
        for tensor in self._body.returns:
            wishes.setdefault(tensor, collections.Counter())[False] += 1
        for node in list(self._body):
            wish = wishes.get(Tensor(node.name))
            if node.op == "Const" and wish is not None and wish[True]:
                self._store_constant(node, wish[False] or self._body.is_kept(node.name))

    def _store_constant(self, node: Any, is_needed: Any) -> None:
        value = _constants.to_array(node.attr["value"].tensor)
        if is_needed and value.size > _STORED_TWICE:
            return
        target = node
        if is_needed:
            target = type(node)()
            target.CopyFrom(node)
            target.name = f"{node.name}/{self._suffix}"
            waits = self._draft.controls[node.name]
            tensor = self._draft.add(target, controls=waits, before=node.name)
            self._other[Tensor(node.name)] = tensor
        with np.errstate(all="ignore"):
            rounded = value.astype(dtypes.to_numpy(self._half))
        kind = _ops.Type(self._half)
        proto = _constants.to_proto(rounded)
        _ops.set_attributes(target, value=proto, dtype=kind)
        self._halves.add(Tensor(target.name))
        self.constants += 1

    def _as(self, tensor: Tensor, to_half: bool, *, before: str | None) -> Tensor:
        """Returns a tensor in the type that is needed, by a Cast if need be."""
        if (tensor in self._halves) == to_half:
            return tensor
        if to_half and self._is_from_half(tensor):
            return self._draft.inputs[tensor.node][0]
        if tensor not in self._other:
            name = self._suffix if to_half else "float32"
            node = protos.message_class("NodeDef")(
                name=f"{tensor.node}/{name}", op="Cast"
            )
            _ops.set_attributes(node, **self._cast_types(to_half=to_half))
            self._other[tensor] = self._draft.add(node, [tensor], before=before)
            self.casts += 1
        return self._other[tensor]

    def _is_from_half(self, tensor: Tensor) -> bool:
        """Whether a Cast made the tensor of half precision numbers."""
        node = self._body.producer(tensor)
        return (
            node is not None
            and node.op == "Cast"
            and _ops.get(node, "SrcT") == self._half
        )

    def _shorten(self, cast: Any) -> None:
        """Makes a Cast of float32 numbers take those of half precision directly."""
        (tensor,) = self._draft.inputs[cast.name]
        if tensor not in self._halves or _ops.get(cast, "SrcT") != dtypes.FLOAT:
            return
        kind = _ops.Type(self._half)
        if _ops.get(cast, "DstT") == self._half:
            self._draft.become(cast, "Identity", [tensor], T=kind)
        else:
            _ops.set_attributes(cast, SrcT=kind)

    def _cast_types(self, *, to_half: bool) -> dict[str, Any]:
        single, half = _ops.Type(dtypes.FLOAT), _ops.Type(self._half)
        source, target = (single, half) if to_half else (half, single)
        return {"SrcT": source, "DstT": target, "Truncate": False}
