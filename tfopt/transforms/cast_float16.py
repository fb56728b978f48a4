"""`cast_float16`: half precision where it is safe and pays."""

from __future__ import annotations

from collections.abc import Sequence

from tfopt.transforms import _half
from tfopt.transforms._base import Findings, GraphModel, transform


@transform(outputs="reported", keeps_nodes=True, adds_nodes=True, keeps_dtypes=False)
def cast_float16(
    graph: GraphModel,
    *,
    allow_op: Sequence[str] = (),
    deny_op: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Findings:
    """Casts matrix products, convolutions and what is around them to float16.

    Their weights are stored in float16, half the bytes. Operations between them that
    are as good in half precision (bias, ReLU, concatenation, ...) go along if that
    saves casts; the number of casts is the smallest possible. Inputs and outputs of the
    graph and of functions stay float32. So do operations whose results overflow or lose
    too much (Exp, Log, Softmax, Mean, Sum, Rsqrt, ...), operations that aren't known,
    those without a float16 kernel for CPUs, and those whose constants are larger than
    65504 or vanish.

    What is computed may still overflow: measure the outputs' error. On CPUs float16
    makes a file smaller, not faster; see `cast_bfloat16`. To store weights only, use
    `quantize_weights(bits=float16)`.

    Args:
        graph: The graph.
        allow_op: Operations to cast whatever they are, for example `Softmax`.
        deny_op: Operations to leave in float32.
        include: Globs of nodes' names: only these.
        exclude: Globs of nodes to leave in float32.

    Returns:
        `cast`: number of nodes in half precision now; `casts_added`; `constants`:
        number of constants stored in half precision; `bytes_before` and `bytes_after`
        of constants; `left`: operation -> how many that take float32 stay so;
        `skipped`: nodes that could not be cast though their operation can.

    Raises:
        ValueError: An option names no operation, or a glob matches no node.
    """
    return _half.cast(
        graph,
        "half",
        allow_op=allow_op,
        deny_op=deny_op,
        include=include,
        exclude=exclude,
    )
