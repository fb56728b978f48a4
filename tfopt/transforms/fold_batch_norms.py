"""`fold_batch_norms`: batch normalization becomes part of weights and biases."""

from __future__ import annotations

from tfopt.transforms import _semantics
from tfopt.transforms._base import Findings, GraphModel, transform
from tfopt.transforms._folding import Folder
from tfopt.transforms._linear import ROUNDING
from tfopt.transforms._scaling import BATCH_NORMS


@transform(
    outputs="close",
    tolerance=ROUNDING,
    adds_nodes=True,
    aliases=("fold_old_batch_norms",),
)
def fold_batch_norms(graph: GraphModel, *, convert_rest: bool = False) -> Findings:
    """Folds batch normalization into the weights of linear operations.

    Batch normalization for inference is `scale * x + shift` by channel, with constants.
    Behind `W x + b` it is `(scale * W) x + (scale * b + shift)`; so it costs nothing.
    Constants are computed in double precision.

    Linear operations: Conv2D (with groups), DepthwiseConv2dNative, Conv3D, their
    transposed forms, MatMul, BatchMatMul with constant weights of type float32 or
    float64, in both data formats. What is folded: FusedBatchNorm (V1 to V3),
    BatchNormWithGlobalNormalization, and chains of Mul, Add, Sub, RealDiv and BiasAdd
    with constants by channel, as Keras 3 writes batch normalization; also behind
    Identity, ExpandDims, Squeeze, Transpose and Reshape that keep channels together
    (Conv1D, Dense on sequences). Expressions of constants are evaluated. Before a
    linear operation, too, a scale is folded, and a shift where no padding meets it.

    A node stays if its input is used elsewhere as well, if it trains, or if its
    parameters or the weights are not constant, as in functions that receive them as
    arguments: inline those first. Weights that others read are copied.

    Args:
        graph: The graph.
        convert_rest: Whether batch normalizations that cannot be folded become Mul and
            AddV2.

    Returns:
        `folded`: number of nodes folded; `batch_norms`: how many of them were batch
        normalizations in one node; `operations`: linear operations changed; `copied`:
        of these with weights of their own from now on; `converted`; `skipped`.
    """
    counts = {"folded": 0, "batch_norms": 0, "operations": 0, "copied": 0}
    converted, skipped = 0, []
    for body in graph.bodies:
        fed = _semantics.fed(graph, body)
        kinds = {node.name: node.op for node in body}
        folder = Folder(body, fed=fed)
        folder.run()
        if convert_rest:
            converted += folder.convert()
        names = [node.name for node in folder.folded]
        counts["folded"] += len(names)
        counts["batch_norms"] += sum(kinds[name] in BATCH_NORMS for name in names)
        counts["operations"] += folder.operations
        counts["copied"] += folder.copied
        skipped += folder.explain()
    return {**counts, "converted": converted, "skipped": skipped}
