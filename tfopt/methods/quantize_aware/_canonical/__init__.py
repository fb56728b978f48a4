"""Brings a flat graph into the form in which fake-quantization is placed.

Each integer kernel's result must be one tensor of the graph, so whatever computes
several of them at once is split up.
"""

from __future__ import annotations

from collections.abc import Mapping

from tfopt._keras import operations
from tfopt._keras.fake_quantize import WEIGHTS
from tfopt._keras.flatten import Call, Graph
from tfopt.methods.quantize_aware._building import Builder, Expansion, expand_all
from tfopt.methods.quantize_aware._canonical import (
    _activations,
    _layers,
    _masks,
    _norms,
    _operations,
    _recurrent,
)
from tfopt.methods.quantize_aware._recurrence import RECURRENT

_ROWS: Mapping[str, Expansion] = {
    **dict.fromkeys(WEIGHTS, _activations.split_off),
    "Activation": _activations.expand,
    "Add": _layers.chain,
    "Average": _layers.average,
    **dict.fromkeys(RECURRENT, _recurrent.recurrent),
    "Bidirectional": _recurrent.bidirectional,
    "AveragePooling3D": _layers.pooling_3d,
    "ELU": _activations.elu_layer,
    "LayerNormalization": _norms.layer_norm,
    "MaxPooling3D": _layers.pooling_3d,
    "Maximum": _layers.chain,
    "Minimum": _layers.chain,
    "Multiply": _layers.chain,
    "RMSNormalization": _norms.rms_norm,
    "ReLU": _activations.leaky_relu_layer,
    "Softmax": _masks.softmax_layer,
    "SeparableConv1D": _layers.separable,
    "SeparableConv2D": _layers.separable,
    "TimeDistributed": _layers.time_distributed,
}


def canonicalize(graph: Graph) -> None:
    """Splits up what LiteRT computes by several kernels, in place.

    Layers with an activation, sums and products of many, separable convolutions,
    activations such as swish, three-dimensional pooling, TimeDistributed,
    recurrent layers.
    """
    expand_all(graph, Builder(graph), _row_of)


def _row_of(call: Call) -> Expansion | None:
    kind = operations.canonical_kind(call.layer)
    if kind is not None:
        return _operations.ROWS.get(kind)
    return _ROWS.get(call.layer.kind)
