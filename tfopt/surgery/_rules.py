"""What each kind of layer does with channels: one short rule per kind.

A rule ties atoms together, says which weights and configuration entries shrink, and how
constant channels pass. Whatever has no rule keeps all its channels.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfopt._keras import operations
from tfopt._keras.flatten import Call, Graph
from tfopt.surgery import _weighted, _weightless
from tfopt.surgery._structure import Reason, Refusal, Structure

Rule = Callable[[Structure, Call], None]

_INPUT = Reason("an input of the model", refused=False)
_OUTPUT = Reason("an output of the model", refused=False)

# Operations by their canonical kinds.
_UNARY_OPERATIONS = frozenset(
    {
        *("abs", "celu", "clip", "elu", "exp", "gelu", "hard_sigmoid", "hard_swish"),
        *("hardtanh", "identity", "leaky_relu", "log_sigmoid", "mish", "neg", "relu"),
        *("relu6", "selu", "sigmoid", "silu", "softplus", "softsign", "sqrt"),
        *("square", "tanh"),
    }
)
_BINARY_OPERATIONS = frozenset({"add", "div", "maximum", "minimum", "mul", "sub"})
_REDUCTIONS = frozenset({"max", "mean", "min"})


def analyse(graph: Graph) -> Structure:
    """Returns what may be cut in a flat graph, and what only together."""
    structure = Structure(graph)
    for _, value in graph.input_specs:
        structure.put_frozen(value, _INPUT)
    for call in graph.calls:
        try:
            if call.layer in structure.refused:
                raise Refusal(structure.refused[call.layer])
            _rule_of(call)(structure, call)
        except Refusal as refusal:
            structure.refuse(call, str(refusal))
    for value in tf.nest.flatten(graph.outputs):
        if value in structure.layouts:
            structure.freeze(structure.layouts[value].atoms, _OUTPUT)
    return structure


def _rule_of(call: Call) -> Rule:
    spec = call.layer
    if call.kwargs.get("training") is True:
        raise Refusal("is called with training=True")
    if len(call.outputs) != 1:
        raise Refusal("returns several tensors")
    kind = operations.canonical_kind(spec)
    if kind is not None:
        return _operation_rule(kind)
    if spec.kind not in _RULES:
        raise Refusal(
            f"is a {spec.kind} layer, which has no rule"
            if spec.kind
            else f"is a layer of its own class, {spec.cls.__name__}"
        )
    return _RULES[spec.kind]


def _operation_rule(kind: str) -> Rule:
    if kind in _UNARY_OPERATIONS:
        return _weightless.elementwise
    if kind in _BINARY_OPERATIONS:
        return _weightless.arithmetic
    if kind in _REDUCTIONS:
        return _weightless.reduction
    if kind == "concat":
        return _weightless.concatenate
    raise Refusal(f"is the operation {kind}, which has no rule")


def _by_rank(rule: Rule, *names: str) -> dict[str, Rule]:
    return {name.format(rank): rule for name in names for rank in ("1D", "2D", "3D")}


_RULES: dict[str, Rule] = {
    "Dense": _weighted.dense,
    "Embedding": _weighted.embedding,
    **_by_rank(_weighted.convolution, "Conv{}", "Conv{}Transpose"),
    **_by_rank(_weighted.separable, "SeparableConv{}"),
    **_by_rank(_weighted.depthwise, "DepthwiseConv{}"),
    "BatchNormalization": _weighted.batch_normalization,
    "SyncBatchNormalization": _weighted.batch_normalization,
    "PReLU": _weighted.prelu,
    "Activation": _weightless.activation_layer,
    "Rescaling": _weightless.rescaling,
    "Normalization": _weightless.normalization,
    **dict.fromkeys(
        (
            *("ReLU", "LeakyReLU", "ELU", "ThresholdedReLU", "Identity"),
            *("GaussianDropout", "GaussianNoise", "AlphaDropout"),
            "ActivityRegularization",
        ),
        _weightless.elementwise,
    ),
    "Dropout": _weightless.dropout,
    **_by_rank(_weightless.dropout, "SpatialDropout{}"),
    **_by_rank(_weightless.spatial, "MaxPooling{}", "AveragePooling{}", "Cropping{}"),
    **_by_rank(_weightless.spatial, "UpSampling{}"),
    **_by_rank(_weightless.zero_padding, "ZeroPadding{}"),
    **_by_rank(
        _weightless.global_pooling, "GlobalMaxPooling{}", "GlobalAveragePooling{}"
    ),
    "Flatten": _weightless.flatten,
    "Reshape": _weightless.reshape,
    "Permute": _weightless.permute,
    "RepeatVector": _weightless.repeat_vector,
    **dict.fromkeys(
        ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"),
        _weightless.arithmetic,
    ),
    "Concatenate": _weightless.concatenate,
}
