"""Which rules look at which operation, the most specific first."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

from tfopt.lifting import _activations, _normalization, _shapes, _slices, _weighted
from tfopt.lifting._match import Match, Rule
from tfopt.lifting._network import Network
from tfopt.types import TfoptError

_SUMS = (_weighted.with_bias, _normalization.layer_norm, _normalization.affine)
_FIRST: dict[str, tuple[Rule, ...]] = {
    "Add": _SUMS,
    "AddV2": _SUMS,
    "BiasAdd": _SUMS,
    "Sub": (*_SUMS[1:],),
    "FusedBatchNorm": (_normalization.fused_batch_norm,),
    "FusedBatchNormV2": (_normalization.fused_batch_norm,),
    "FusedBatchNormV3": (_normalization.fused_batch_norm,),
    **dict.fromkeys(
        (
            *("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "BatchToSpaceND"),
            *("Conv2D",),
            *("Conv2DBackpropInput", "Conv3D", "DepthwiseConv2dNative", "Einsum"),
            *("MatMul", "Reshape", "Squeeze"),
        ),
        (_weighted.without_bias,),
    ),
}
_MOVING = ("ConcatV2", "ExpandDims", "Reshape", "Squeeze", "Transpose")
_LAST: dict[str, tuple[Rule, ...]] = {
    "Mul": (_normalization.affine,),
    "RealDiv": (_normalization.affine,),
}


def find(
    network: Network, operation: tf.Operation, kept: frozenset[str]
) -> Match | None:
    """Returns the layers that compute an operation's result, if there are some.

    Args:
        network: The graph.
        operation: The last operation.
        kept: Names of tensors that must be there by themselves.

    Raises:
        TfoptError: The operation is one on channels first.
    """
    # Keras layers are made for floats; these only move elements.
    if not operation.outputs[0].dtype.is_floating and operation.type not in _MOVING:
        return None
    for rule in _rules(operation.type):
        match = rule(network, operation)
        if match is not None and match.is_complete(network, kept):
            _check_layout(network, match)
            return match
    return None


def check_layout(network: Network, operation: tf.Operation) -> None:
    """Raises if an operation is one on channels first."""
    attributes = operation.node_def.attr
    if "data_format" not in attributes or operation.inputs[0].shape.rank == 2:
        return
    layout = operation.get_attr("data_format").decode()
    if layout.startswith("NC"):
        raise TfoptError(
            "The graph computes with channels first, for which Keras has no layers "
            "on a CPU and LiteRT no kernels. Expected data_format NHWC: export the "
            f"model with channels last. Received: {operation.type} "
            f"{operation.name!r} with {layout} in {network.where}"
        )


def _check_layout(network: Network, match: Match) -> None:
    # tf_keras normalizes layers by an operation on channels first.
    if match.steps[-1].kind != "LayerNormalization":
        for operation in match.operations:
            check_layout(network, operation)


def _rules(kind: str) -> Iterator[Rule]:
    for table in (_FIRST, _slices.RULES, _activations.RULES, _shapes.RULES, _LAST):
        yield from table.get(kind, ())
