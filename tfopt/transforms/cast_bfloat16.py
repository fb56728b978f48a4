"""`cast_bfloat16`: half precision with the range of float32."""

from __future__ import annotations

from collections.abc import Sequence

from tfopt.transforms import _half
from tfopt.transforms._base import Findings, GraphModel, transform


@transform(outputs="reported", keeps_nodes=True, adds_nodes=True, keeps_dtypes=False)
def cast_bfloat16(
    graph: GraphModel,
    *,
    allow_op: Sequence[str] = (),
    deny_op: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Findings:
    """Casts matrix products, convolutions and what is around them to bfloat16.

    As `cast_float16`, in a type with the range of float32 and 8 bits of precision
    (float16 has 11): nothing overflows, but results are off by about one percent. CPUs
    with AVX512_BF16 or AMX multiply it faster than float32.

    Args:
        graph: The graph.
        allow_op: Operations to cast whatever they are, for example `Softmax`.
        deny_op: Operations to leave in float32.
        include: Globs of nodes' names: only these.
        exclude: Globs of nodes to leave in float32.

    Returns:
        As `cast_float16`.

    Raises:
        ValueError: An option names no operation, or a glob matches no node.
    """
    return _half.cast(
        graph,
        "bfloat16",
        allow_op=allow_op,
        deny_op=deny_op,
        include=include,
        exclude=exclude,
    )
