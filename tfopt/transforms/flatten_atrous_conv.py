"""`flatten_atrous_conv`: dilated convolutions say so, instead of shuffling the data."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfopt.transforms import _ops, _semantics
from tfopt.transforms._attempts import rewrite_each
from tfopt.transforms._base import Findings, GraphModel, transform
from tfopt.transforms._draft import Draft
from tfopt.transforms._graph import Body, Tensor
from tfopt.transforms._linear import ROUNDING, Place, Unfit
from tfopt.transforms._scaling import step_of
from tfopt.transforms._values import Values

_CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")
_UNARY = ("Elu", "Identity", "LeakyRelu", "Relu", "Relu6", "Selu", "Sigmoid", "Tanh")


@transform(outputs="close", tolerance=ROUNDING)
def flatten_atrous_conv(graph: GraphModel, *, depthwise: bool = False) -> Findings:
    """Turns SpaceToBatchND, convolution, BatchToSpaceND into a dilated convolution.

    With block `d`, every d-th position is convolved with its like: a convolution with
    dilation `d` (Yu and Koltun, "Multi-Scale Context Aggregation by Dilated
    Convolutions", ICLR 2016). What SpaceToBatchND pads and BatchToSpaceND doesn't crop
    becomes the convolution's padding. Between convolution and BatchToSpaceND there may
    be a bias, a batch normalization or an activation; around it ExpandDims and Squeeze,
    as in one-dimensional convolutions. Blocks, paddings and crops must be constant.

    Args:
        graph: The graph.
        depthwise: Whether DepthwiseConv2dNative takes part: TensorFlow runs dilated
            ones on a CPU only where it is built with oneDNN, which it turns off on
            some machines.

    Returns:
        `flattened`: number of convolutions; `skipped`: SpaceToBatchND nodes left.
    """
    flattened, skipped = 0, []
    for body in graph.bodies:
        count, left = _flatten_all(
            body, Values(body, fed=_semantics.fed(graph, body)), depthwise
        )
        flattened += count
        skipped += left
    return {"flattened": flattened, "skipped": skipped}


@dataclasses.dataclass
class _Chain:
    """SpaceToBatchND, then convolution, then BatchToSpaceND.

    `added` is the axis that ExpandDims adds before the convolution, if any; `before`
    is the node that takes what SpaceToBatchND makes, `last` what BatchToSpaceND takes.
    """

    first: Any
    before: Any
    conv: Any
    last: Tensor
    end: Any
    added: int | None


def _flatten_all(
    body: Body, values: Values, depthwise: bool
) -> tuple[int, list[dict[str, str]]]:
    def flatten(node: Any, draft: Draft) -> None:
        _flatten(body, _find(body, node, values, depthwise), values, draft)

    return rewrite_each(body, lambda node: node.op == "SpaceToBatchND", flatten)


def _find(body: Body, first: Any, values: Values, depthwise: bool) -> _Chain:
    before = node = _next(body, first)
    added = None
    if node.op == "ExpandDims":
        axes = values.integers(body.input(node, 1))
        added = axes[0] % 4 if axes else None
        if added is None or body.input(node, 0) != Tensor(first.name):
            raise Unfit("behind it is no convolution")
        node = _next(body, node)
    conv = node
    _check_convolution(body, conv, depthwise)
    written = (_ops.get(conv, "data_format") or b"NHWC").decode()
    place = Place(written.index("C"), 4)
    last, squeezed = Tensor(conv.name), False
    node = _next(body, conv)
    while node.op != "BatchToSpaceND":
        if added is not None and node.op == "Squeeze" and not squeezed:
            squeezed_axes = _ops.get(node, "squeeze_dims") or ()
            if [axis % 4 for axis in squeezed_axes] != [added]:
                raise Unfit("Squeeze behind it does not undo ExpandDims")
            place = Place(place.axis - (added < place.axis), 3)
            squeezed = True
        elif node.op not in _UNARY and step_of(body, node, place, values) is None:
            raise Unfit(f"{node.op} stands between convolution and BatchToSpaceND")
        last = Tensor(node.name)
        node = _next(body, node)
    if (added is not None) != squeezed or body.input(node, 0) != last:
        raise Unfit("Squeeze behind it does not undo ExpandDims")
    return _Chain(first, before, conv, last, node, added)


def _next(body: Body, node: Any) -> Any:
    use = body.sole_use(Tensor(node.name))
    if use is None:
        raise Unfit("what it shuffles is used elsewhere as well")
    return use.node


def _check_convolution(body: Body, conv: Any, depthwise: bool) -> None:
    if conv.op not in _CONVOLUTIONS:
        raise Unfit("behind it is no convolution")
    if conv.op == "DepthwiseConv2dNative" and not depthwise:
        raise Unfit(
            "not all CPUs run dilated depthwise convolutions; depthwise=true allows it"
        )
    dilations = _ops.get(conv, "dilations") or [1]
    if _ops.get(conv, "padding") != b"VALID" or {*dilations} != {1}:
        raise Unfit("the convolution pads, or is dilated already")
    if {*_ops.get(conv, "strides")} != {1}:
        raise Unfit("the convolution has strides")


def _flatten(body: Body, chain: _Chain, values: Values, draft: Draft) -> None:
    dilations, paddings = _geometry(body, chain, values)
    weights = values.get(body.input(chain.conv, 1), arithmetic=False)
    written = (_ops.get(chain.conv, "data_format") or b"NHWC").decode()
    same = None
    if weights is not None:
        spatial = [(written.index("HW"[i]), weights.value.shape[i]) for i in (0, 1)]
        same = [(0, 0)] * 4
        for axis, size in spatial:
            total = (size - 1) * dilations[axis]
            same[axis] = (total // 2, total - total // 2)
    if not any(map(any, paddings)):
        attributes: dict[str, Any] = {"padding": "VALID"}
    elif paddings == same:
        attributes = {"padding": "SAME"}
    elif chain.conv.op == "DepthwiseConv2dNative":
        raise Unfit("TensorFlow's optimizer crashes on what would pad explicitly")
    else:
        flat = [size for pair in paddings for size in pair]
        attributes = {"padding": "EXPLICIT", "explicit_paddings": flat}
    _ops.set_attributes(chain.conv, dilations=dilations, **attributes)
    _bypass(body, chain, draft)


def _geometry(
    body: Body, chain: _Chain, values: Values
) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns dilation and padding for each axis of the convolution's data."""
    first, end = body.inputs(chain.first)[1:], body.inputs(chain.end)[1:]
    found = [values.integers(tensor) for tensor in (*first, *end)]
    known = [item for item in found if item is not None]
    if len(known) < 4:
        raise Unfit("its blocks, paddings or crops are not constant")
    block, pads, block_back, crops = known
    if block != block_back:
        raise Unfit("BatchToSpaceND has other blocks")
    written = (_ops.get(chain.conv, "data_format") or b"NHWC").decode()
    dilations, paddings = [1] * 4, [(0, 0)] * 4
    for index, size in enumerate(block):
        axis = index + 1
        if chain.added is not None and axis >= chain.added:
            axis += 1
        padding = (
            pads[2 * index] - crops[2 * index],
            pads[2 * index + 1] - crops[2 * index + 1],
        )
        if min(padding) < 0:
            raise Unfit("BatchToSpaceND crops more than was padded")
        if axis > 3 or (written[axis] not in "HW" and (size != 1 or any(padding))):
            raise Unfit("it shuffles channels")
        dilations[axis], paddings[axis] = size, padding
    return dilations, paddings


def _bypass(body: Body, chain: _Chain, draft: Draft) -> None:
    first, end = chain.first.name, chain.end.name
    draft.inputs[chain.before.name][0] = draft.inputs[first][0]
    draft.controls[chain.before.name] += draft.controls[first]
    draft.drop(first, instead=chain.before.name)
    if body.is_kept(end) or draft.controls[end]:
        kind = _ops.Type(_ops.get(chain.end, "T"))
        draft.become(chain.end, "Identity", [chain.last], T=kind)
    else:
        draft.move(Tensor(end), chain.last)
        draft.drop(end, instead=chain.last.node)
