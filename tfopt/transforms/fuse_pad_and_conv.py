"""`fuse_pad_and_conv`: zero padding becomes part of the convolution behind it."""

from __future__ import annotations

from typing import Any

from tfopt.transforms import _ops, _semantics
from tfopt.transforms._attempts import rewrite_each
from tfopt.transforms._base import Findings, GraphModel, transform
from tfopt.transforms._draft import Draft
from tfopt.transforms._graph import Body, Tensor
from tfopt.transforms._linear import ROUNDING, Unfit
from tfopt.transforms._values import Values

_CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")
_DEPTHWISE = "TensorFlow's optimizer crashes on depthwise ones that pad explicitly"


@transform(outputs="close", tolerance=ROUNDING)
def fuse_pad_and_conv(graph: GraphModel) -> Findings:
    """Makes zero padding part of the convolutions behind it.

    Pad and PadV2 with constant zeros before Conv2D with padding VALID or EXPLICIT
    become that convolution with EXPLICIT padding: a public form, unlike the
    FusedPadConv2D of the Graph Transform Tool. Depthwise convolutions stay as they are:
    TensorFlow 2.21 crashes when its optimizer fuses one that pads explicitly with its
    bias.

    Args:
        graph: The graph.

    Returns:
        `fused`: number of Pad nodes gone; `skipped`: those before convolutions that
        stay, and why.
    """
    fused, skipped = 0, []
    for body in graph.bodies:
        fed = _semantics.fed(graph, body)
        while True:
            count, left = _fuse_all(body, Values(body, fed=fed))
            fused += count
            if not count:  # A Pad before another one needs a second look.
                break
        skipped += left
    return {"fused": fused, "skipped": skipped}


def _fuse_all(body: Body, values: Values) -> tuple[int, list[dict[str, str]]]:
    def is_meant(node: Any) -> bool:
        return node.op in ("Pad", "PadV2") and any(
            user.op in _CONVOLUTIONS for user in _users(body, node)
        )

    return rewrite_each(
        body, is_meant, lambda node, draft: _fuse(body, node, values, draft)
    )


def _users(body: Body, node: Any) -> list[Any]:
    return [use.node for use in body.uses(Tensor(node.name))]


def _fuse(body: Body, pad: Any, values: Values, draft: Draft) -> None:
    users = _users(body, pad)
    paddings = values.integers(body.input(pad, 1))
    if paddings is None or len(paddings) != 8 or min(paddings) < 0:
        raise Unfit("its paddings are not constants for four axes")
    if pad.op == "PadV2":
        filler = values.get(body.input(pad, 2))
        if filler is None or filler.value.any():
            raise Unfit("it pads with something else than zeros")
    if body.is_returned(Tensor(pad.name)) or body.is_kept(pad.name):
        raise Unfit("it is an output")
    together = [_padding(body, pad, user, paddings) for user in users]
    for user, explicit in zip(users, together, strict=True):
        _ops.set_attributes(user, padding="EXPLICIT", explicit_paddings=explicit)
        draft.inputs[user.name][0] = draft.inputs[pad.name][0]
        draft.controls[user.name] += draft.controls[pad.name]
    draft.drop(pad.name, instead=users[0].name)


def _padding(body: Body, pad: Any, user: Any, paddings: list[int]) -> list[int]:
    """Returns the paddings of the convolution and those before it, together.

    Raises:
        Unfit: The node cannot pad so.
    """
    if user.op not in _CONVOLUTIONS or body.input(user, 0) != Tensor(pad.name):
        raise Unfit("its output is used elsewhere as well")
    if user.op == "DepthwiseConv2dNative":
        raise Unfit(_DEPTHWISE)
    own = [0] * 8
    if _ops.get(user, "padding") == b"EXPLICIT":
        own = list(_ops.get(user, "explicit_paddings") or own)
    elif _ops.get(user, "padding") != b"VALID":
        raise Unfit("the convolution pads by the size of what it gets")
    written = (_ops.get(user, "data_format") or b"NHWC").decode()
    if len(written) != 4:
        raise Unfit(f"the convolution's data format is {written}")
    outside = [2 * written.index(letter) + side for letter in "NC" for side in (0, 1)]
    if any(paddings[position] for position in outside):
        raise Unfit("it pads the batch or the channels")
    return [mine + its for mine, its in zip(own, paddings, strict=True)]
