"""Finds the scales and shifts around linear operations, and folds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np

from tfopt.savedmodel import dtypes, protos
from tfopt.transforms import _constants, _ops, _semantics
from tfopt.transforms._draft import Draft
from tfopt.transforms._graph import Body, Tensor
from tfopt.transforms._linear import LAYOUTS, Linear, Place, Unfit
from tfopt.transforms._scaling import (
    BATCH_NORMS,
    Step,
    as_constant,
    batch_norm_step,
    compose,
    moved,
    step_of,
)
from tfopt.transforms._values import Values

# A shift before a linear operation is as large as what follows it, or they cancel and
# rounding shows: x - 1000 is exact, W x - 1000 W is not.
_LARGEST_SHIFT = 16.0
_ELSEWHERE = "its input is used elsewhere as well"
_UNARY = ("Elu", "Identity", "LeakyRelu", "Relu", "Relu6", "Sigmoid", "Tanh")


@dataclasses.dataclass(frozen=True)
class Link:
    """A node beside a linear operation.

    Attributes:
        node: The node.
        place: Where the channels are in its data.
        step: What it does to them; `None` if it passes them on.
    """

    node: Any
    place: Place
    step: Step | None = None


@dataclasses.dataclass
class Plan:
    """What to fold into one linear operation.

    Attributes:
        linear: The operation.
        before: Nodes before it, in the order of the data.
        after: Nodes after it, likewise; the last one is a step.
    """

    linear: Linear
    before: list[Link]
    after: list[Link]

    @property
    def is_worth_it(self) -> bool:
        """Whether there is more than the bias that a linear operation may have."""
        steps = [link.step for link in self.after if link.step is not None]
        return bool(self.before) or len(steps) > 1 or any(s.is_scale for s in steps)

    @property
    def steps(self) -> list[Any]:
        """The nodes that are folded."""
        return [x.node for x in (*self.before, *self.after) if x.step is not None]


class Folder:
    """Folds in one body.

    Args:
        body: The body.
        fed: Names of its nodes that callers feed.

    Attributes:
        folded: Nodes whose scale or shift went into weights and biases.
        operations: How many linear operations changed.
        copied: How many of them got weights of their own, as others read them, too.
        reasons: Node that was left -> why.
    """

    def __init__(self, body: Body, *, fed: Collection[str] = ()):
        self._body = body
        self._values = Values(body, fed=fed)
        self.folded: list[Any] = []
        self.operations = self.copied = 0
        self.reasons: dict[str, str] = {}

    def run(self) -> None:
        """Folds all that can be folded."""
        plans = []
        for node in self._body:
            if node.op in LAYOUTS:
                try:
                    linear = Linear(self._body, node, self._values)
                except Unfit as why:
                    self._blame(node, str(why))
                    continue
                plans.append(Plan(linear, [], self._after(linear)))
        claimed = {node.name for plan in plans for node in plan.steps}
        for plan in plans:
            plan.before = self._before(plan.linear, claimed)
        plans = [plan for plan in plans if plan.is_worth_it]
        if not plans:
            return
        draft = Draft(self._body)
        for plan in plans:
            self._fold(plan, draft)
        draft.write()

    def convert(self) -> int:
        """Turns what is left of batch normalizations into products and sums.

        Returns:
            How many were turned.
        """
        draft, converted = Draft(self._body), 0
        for node in self._body:
            if node.op not in BATCH_NORMS or _ops.get(node, "T") != dtypes.FLOAT:
                continue
            try:
                step = batch_norm_step(self._body, node, self._values)
            except Unfit:
                continue
            converted += 1
            self.reasons.pop(node.name, None)
            _to_product_and_sum(node, step, draft)
        if converted:
            draft.write()
        return converted

    def explain(self) -> list[dict[str, str]]:
        """Returns what was left, and why."""
        for node in self._body:
            if node.op in BATCH_NORMS and node.name not in self.reasons:
                self.reasons[node.name] = self._reason(node)
        return [
            {"node": _semantics.place(self._body, name), "reason": reason}
            for name, reason in self.reasons.items()
            if name in self._body.nodes
        ]

    # Finding.

    def _after(self, linear: Linear) -> list[Link]:
        body, place = self._body, linear.place
        tensor, links, length = Tensor(linear.node.name), [], 0
        while True:
            use = body.sole_use(tensor)
            if use is None:
                self._blame_uses(tensor)
                break
            node, position = use
            behind = moved(body, node, position, place, linear.channels, self._values)
            if behind is not None:
                links.append(Link(node, place))
                place = behind
            else:
                step = self._step(node, position, place, linear, linear.channels)
                if step is None:
                    break
                links.append(Link(node, place, step))
                length = len(links)
            tensor = Tensor(node.name)
        return links[:length]

    def _before(self, linear: Linear, claimed: Collection[str]) -> list[Link]:
        body, place = self._body, linear.input_place
        tensor, links, length = body.input(linear.node, linear.data), [], 0
        scale, shift = np.asarray(1.0), np.asarray(0.0)
        while place is not None:
            node = body.producer(tensor)
            if node is None or tensor.output != 0 or node.name in claimed:
                break
            if body.sole_use(tensor) is None:
                if node.op in BATCH_NORMS:
                    self.reasons[node.name] = "its output is used elsewhere as well"
                break
            source = _before_expansion(body, node, place, self._values)
            if source is not None:
                links.append(Link(node, place))
                place, tensor = source, body.input(node, 0)
                continue
            step = self._step_before(node, place, linear)
            if step is None:
                break
            shift = shift + scale * step.shift
            scale = scale * step.scale
            if np.max(np.abs(shift), initial=0) > _LARGEST_SHIFT:
                self._note(node, "its shift is so large that rounding would show")
                break
            links.append(Link(node, place, step))
            length = len(links)
            tensor = body.input(node, step.data)
        return links[:length][::-1]

    def _step(
        self, node: Any, position: int, place: Place, linear: Linear, size: int
    ) -> Step | None:
        """Returns a step that can be folded into what is before it."""
        try:
            step = step_of(self._body, node, place, self._values)
            if step is None or step.data != position:
                return None
            if step.size not in (None, size):
                raise Unfit("its constants do not fit the linear operation's channels")
            if self._body.function is not None and self._body.is_kept(node.name):
                raise Unfit("the function's caller waits for it")
            if self._waits_for(step, linear):
                raise Unfit("its constants wait for the linear operation")
            _check_finite(linear, step)
        except Unfit as why:
            self._note(node, str(why))
            return None
        return step

    def _step_before(self, node: Any, place: Place, linear: Linear) -> Step | None:
        try:
            step = step_of(self._body, node, place, self._values)
            if step is None or self._body.is_kept(node.name):
                return None
            if np.any(step.shift) and not linear.can_shift_inputs:
                raise Unfit("the convolution behind it pads with zeros")
            if step.size not in (None, linear.input_channels or step.size):
                raise Unfit("its constants do not fit the linear operation's channels")
            if step.size is not None and node.op not in (*BATCH_NORMS, "BiasAdd"):
                # A single channel would be broadcast to all.
                source = self._body.input(node, step.data)
                if self._channels(source, place) != step.size:
                    return None
            linear.check_inputs(step.size)
            _check_finite(linear, step)
        except Unfit as why:
            self._note(node, str(why))
            return None
        return step

    def _channels(self, tensor: Tensor, place: Place) -> int | None:
        """Returns how many channels a tensor has, as far as that is easy to see."""
        body = self._body
        node = body.producer(tensor)
        while node is not None and node.op in _UNARY:
            node = body.producer(body.input(node, 0))
        if node is None:
            return None
        if node.op == "Placeholder":
            shape = _ops.get(node, "shape")
            fits = shape is not None and len(shape) == (place.rank or len(shape))
            return shape[place.axis] if fits and len(shape) > 1 else None
        if node.op in (*BATCH_NORMS, "BiasAdd"):
            known = self._values.get(body.input(node, 1))
            return None if known is None else known.value.size
        try:
            if node.op in LAYOUTS:
                linear = Linear(body, node, self._values)
                return linear.channels if linear.place == place else None
            step = step_of(body, node, place, self._values)
        except Unfit:
            return None
        if step is None:
            return None
        size = self._channels(body.input(node, step.data), place)
        return None if size is None else max(size, step.size or 1)

    def _waits_for(self, step: Step, linear: Linear) -> bool:
        """Whether the step's constants exist only after the linear operation ran."""
        more = step.controls - linear.controls
        return linear.node.name in self._body.reachable(more)

    # Reporting.

    def _note(self, node: Any, reason: str) -> None:
        self.reasons.setdefault(node.name, reason)

    def _blame_uses(self, tensor: Tensor) -> None:
        for node, _ in self._body.uses(tensor):
            if node.op in BATCH_NORMS:
                self._note(node, _ELSEWHERE)

    def _blame(self, linear: Any, reason: str) -> None:
        """Says of what follows an unfit linear operation why it stays."""
        for node, _ in self._body.uses(Tensor(linear.name)):
            if node.op in BATCH_NORMS:
                self._note(node, reason)
            elif node.op == "Mul":
                found = map(self._values.get, self._body.inputs(node))
                if any(known is not None and known.value.size > 1 for known in found):
                    self._note(node, reason)

    def _reason(self, node: Any) -> str:
        try:
            batch_norm_step(self._body, node, self._values)
        except Unfit as why:
            return str(why)
        return "it follows no linear operation with constant weights"

    # Rewriting.

    def _fold(self, plan: Plan, draft: Draft) -> None:
        linear = plan.linear
        self.folded += plan.steps
        scale, shift = compose([x.step for x in plan.after if x.step is not None])
        scale_in, shift_in = compose([x.step for x in plan.before if x.step])
        controls = linear.controls.union(
            *(x.step.controls for x in (*plan.before, *plan.after) if x.step)
        )
        if np.any(shift_in):
            shift = shift + scale * linear.shift_inputs(shift_in)
        linear.scale_inputs(scale_in)
        linear.scale_outputs(scale)
        self._set_weights(linear, controls, draft)
        self._unlink_before(plan, draft)
        bias = np.broadcast_to(shift, linear.channels) if np.any(shift) else None
        if not plan.after and bias is not None:
            _split(plan, draft)
        self._unlink_after(plan, bias, controls, draft)
        self.operations += 1

    def _set_weights(self, linear: Linear, controls: Any, draft: Draft) -> None:
        array = linear.weights.astype(dtypes.to_numpy(linear.dtype))
        node, position = linear.node, linear.layout.weights
        source, is_shared = _constant_behind(self._body, node, position)
        if source is not None and not is_shared:
            source.attr["value"].tensor.CopyFrom(_constants.to_proto(array))
            draft.controls[source.name] += sorted(controls)
            return
        self.copied += is_shared
        name = f"{node.name}/weights"
        draft.inputs[node.name][position] = _constant(
            draft, name, array, controls, node.name
        )

    def _unlink_before(self, plan: Plan, draft: Draft) -> None:
        links = plan.before
        if not links:
            return
        linear = plan.linear
        first = links[0]
        tensor = draft.inputs[first.node.name][first.step.data if first.step else 0]
        waits: list[str] = []
        for link in links:
            if link.step is None:
                draft.inputs[link.node.name][0] = tensor
                tensor = Tensor(link.node.name)
            else:
                waits += draft.controls[link.node.name]
                draft.drop(link.node.name, instead=linear.node.name)
        draft.inputs[linear.node.name][linear.data] = tensor
        draft.controls[linear.node.name] += waits

    def _unlink_after(
        self, plan: Plan, bias: np.ndarray | None, controls: Any, draft: Draft
    ) -> None:
        if not plan.after:
            return
        tail = plan.after[-1]
        tensor, waits = Tensor(plan.linear.node.name), []
        for link in plan.after[:-1]:
            name = link.node.name
            if link.step is None:
                draft.inputs[name][0] = tensor
                tensor = Tensor(name)
            else:
                waits += draft.controls[name]
                draft.drop(name, instead=tail.node.name)
        name = tail.node.name
        draft.controls[name] += waits
        if bias is not None:
            _add_bias(draft, tail, tensor, bias, controls, plan.linear.dtype)
        elif self._body.is_kept(name) or draft.controls[name]:
            kind = _ops.Type(plan.linear.dtype)
            draft.become(tail.node, "Identity", [tensor], T=kind)
        else:
            draft.move(Tensor(name), tensor)
            draft.drop(name, instead=tensor.node)


def _check_finite(linear: Linear, step: Step) -> None:
    largest = np.finfo(dtypes.to_numpy(linear.dtype)).max
    weights = np.max(np.abs(linear.weights), initial=0)
    with np.errstate(all="ignore"):
        scaled = np.max(np.abs(step.scale), initial=0) * max(weights, 1)
        is_finite = max(scaled, np.max(np.abs(step.shift), initial=0)) <= largest
    if not is_finite:
        raise Unfit("the folded weights would not be finite")


def _before_expansion(
    body: Body, node: Any, place: Place, values: Values
) -> Place | None:
    """Returns where channels were before a node that passes them on."""
    if node.op == "Identity":
        return place
    if node.op != "ExpandDims" or place.rank is None:
        return None
    axes = values.integers(body.input(node, 1))
    axis = axes[0] % place.rank if axes else place.axis
    if axis == place.axis:
        return None
    return Place(place.axis - (axis < place.axis), place.rank - 1)


def _constant_behind(body: Body, node: Any, position: int) -> tuple[Any, bool]:
    """Returns the Const node behind weights, and whether others read it as well.

    The node is `None` if the constant is seen in another shape than it has.
    """
    tensor, is_shared, is_same = body.input(node, position), False, True
    while True:
        is_shared |= body.sole_use(tensor) is None or body.is_kept(tensor.node)
        producer = body.producer(tensor)
        if producer.op == "Const":
            return producer if is_same else None, is_shared
        is_same &= producer.op == "Identity"
        tensor = body.input(producer, 0)


def _new(op: str, name: str, **attributes: Any) -> Any:
    node = protos.message_class("NodeDef")(name=name, op=op)
    _ops.set_attributes(node, **attributes)
    return node


def _constant(
    draft: Draft, name: str, array: np.ndarray, controls: Any, before: str
) -> Tensor:
    proto = _constants.to_proto(array)
    node = _new("Const", name, value=proto, dtype=_ops.Type(proto.dtype))
    return draft.add(node, controls=sorted(controls), before=before)


def _split(plan: Plan, draft: Draft) -> None:
    """Makes room for a bias under the linear operation's own name."""
    node = plan.linear.node
    inner = type(node)()
    inner.CopyFrom(node)
    inner.name = f"{node.name}/linear"
    taken, waits = draft.inputs[node.name], draft.controls[node.name]
    draft.add(inner, taken, controls=waits, before=node.name)
    draft.controls[node.name] = []
    step = Step(np.asarray(1.0), np.asarray(0.0), frozenset(), is_scale=False)
    plan.after.append(Link(node, plan.linear.place, step))
    plan.linear.node = inner


def _add_bias(
    draft: Draft, tail: Link, data: Tensor, bias: np.ndarray, controls: Any, dtype: int
) -> None:
    """Turns the last node of a chain into the sum of the data and the bias."""
    node, place = tail.node, tail.place
    rank = place.rank or 0
    typed = bias.astype(dtypes.to_numpy(dtype))
    kind = _ops.Type(dtype)
    name = f"{node.name}/bias"
    if place.is_last or (place.axis == 1 and 3 <= rank <= 5):
        source = _constant(draft, name, typed, controls, node.name)
        form = "NHWC" if place.is_last else "NCHW"
        draft.become(node, "BiasAdd", [data, source], T=kind, data_format=form)
    else:
        shaped = as_constant(typed, place)
        source = _constant(draft, name, shaped, controls, node.name)
        draft.become(node, "AddV2", [data, source], T=kind)


def _to_product_and_sum(node: Any, step: Step, draft: Draft) -> None:
    form = (_ops.get(node, "data_format") or b"NHWC").decode()
    place = Place(form.index("C"), len(form))
    kind = _ops.Type(dtypes.FLOAT)
    scale, shift = (
        _constant(
            draft,
            f"{node.name}/{name}",
            as_constant(vector.astype(np.float32), place),
            step.controls,
            node.name,
        )
        for name, vector in (("scale", step.scale), ("shift", step.shift))
    )
    data = draft.inputs[node.name][0]
    product = _new("Mul", f"{node.name}/product", T=kind)
    scaled = draft.add(product, [data, scale], before=node.name)
    draft.become(node, "AddV2", [scaled, shift], T=kind)
