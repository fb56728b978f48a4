"""Normalizations, and products and sums with one constant per channel."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from tfopt.lifting._match import (
    Match,
    Step,
    is_scalar,
    last_axis,
    produced_by,
    split_constant,
)
from tfopt.lifting._network import Network
from tfopt.lifting._sizes import sizes
from tfopt.lifting._weighted import KERNEL_AXES, core_of, with_bias, without_bias

# What Keras adds to a variance by default. A layer that only scales and shifts gets
# the variance that makes it exactly one.
_EPSILON = 1e-3
_SUMS = ("Add", "AddV2", "BiasAdd", "Sub")
_FACTORS = ("Mul", "RealDiv")


def fused_batch_norm(network: Network, operation: tf.Operation) -> Match | None:
    """FusedBatchNorm of any version, with statistics of the training."""
    value, *others = network.operands(operation)
    if operation.get_attr("is_training") or network.is_constant(value):
        return None
    if not all(network.is_constant(tensor) for tensor in others):
        return None
    users = [user for out in operation.outputs[1:] for user in network.consumers(out)]
    if users:
        return None
    weights = [np.asarray(network.value(tensor)) for tensor in others]
    config = {"epsilon": max(operation.get_attr("epsilon"), 1e-7)}
    return _batch_norm(network, [operation], value, weights, config, others)


def _batch_norm(
    network: Network,
    operations: list[tf.Operation],
    value: tf.Tensor,
    weights: list[np.ndarray],
    config: dict,
    tensors: list[tf.Tensor],
) -> Match:
    if not network.is_trainable(tensors):
        config["trainable"] = False
    step = Step("BatchNormalization", config, weights)
    step.origin = network.leaves(tensors)
    return Match(operations, [value], [step])


@dataclasses.dataclass
class _Affine:
    """`scale * value + shift`, and where the two come from."""

    operations: list[tf.Operation]
    value: tf.Tensor
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    tensors: list[tf.Tensor] = dataclasses.field(default_factory=list)


def affine(network: Network, operation: tf.Operation) -> Match | None:
    """Products and sums with a constant per channel, or with one number.

    The first are a BatchNormalization, if its statistics can be told; else the kernel
    before them takes them up; else they are a BatchNormalization that isn't trained,
    as it would take the statistics of batches for its own. The others are a Rescaling.
    """
    found = _joined(network, operation)
    if found is None:
        return None
    numbers = [x for x in (found.scale, found.shift) if x is not None]
    if all(is_scalar(x) for x in numbers):
        scale, shift = (
            default if x is None else float(x.reshape(()))
            for x, default in ((found.scale, 1.0), (found.shift, 0.0))
        )
        step = Step("Rescaling", {"scale": scale, "offset": shift})
        return Match(found.operations, [found.value], [step])
    size = found.value.shape[-1]
    if found.value.shape.rank < 2 or size is None:
        return None
    vectors = [
        None if x is None else np.full(size, x) if x.size == 1 else last_axis(x, size)
        for x in (found.scale, found.shift)
    ]
    if any(
        vector is None and x is not None
        for vector, x in zip(vectors, (found.scale, found.shift), strict=True)
    ):
        return None
    return (
        _from_statistics(network, found)
        or _into_kernel(network, found, vectors)
        or _scale_and_shift(network, found, vectors)
    )


def _affine(network: Network, operation: tf.Operation) -> _Affine | None:
    """Reads a product, or a sum, with a constant."""
    if not operation.outputs[0].dtype.is_floating:
        return None
    parts = split_constant(network, operation)
    if parts is None or parts[0].shape.rank != operation.outputs[0].shape.rank:
        return None
    tensor, constant, position = parts
    given = operation.inputs[position]
    if operation.type in _FACTORS:
        if operation.type == "RealDiv":
            if position == 0:
                return None
            constant = (1 / constant.astype(np.float64)).astype(constant.dtype)
        return _Affine([operation], tensor, scale=constant, tensors=[given])
    if operation.type == "Sub":
        if position == 0:
            return None
        constant = -constant
    return _Affine([operation], tensor, shift=constant, tensors=[given])


def _joined(network: Network, operation: tf.Operation) -> _Affine | None:
    """Reads a product and a sum, one after the other, or one of them."""
    outer = _affine(network, operation)
    if outer is None or not _is_passed_on(network, outer.value):
        return outer
    kinds = _SUMS if outer.shift is None else _FACTORS
    before = produced_by(network, outer.value, *kinds)
    inner = None if before is None else _affine(network, before)
    # What a layer before it takes as its bias is not ours.
    if inner is None or (outer.shift is None and core_of(network, inner.value)):
        return outer
    scale = inner.scale if outer.scale is None else outer.scale
    shift = outer.shift if inner.shift is None else inner.shift * scale
    return _Affine(
        [operation, *inner.operations],
        inner.value,
        scale,
        shift,
        [*inner.tensors, *outer.tensors],
    )


def _is_passed_on(network: Network, tensor: tf.Tensor) -> bool:
    """Returns whether just one operation needs a tensor."""
    if tensor.name in network.output_sources:
        return False
    return len(network.consumers(tensor)) == 1


def _into_kernel(
    network: Network, found: _Affine, vectors: list[np.ndarray | None]
) -> Match | None:
    """Multiplies a kernel by the scale, and adds the shift to its bias."""
    source = found.value
    if network.is_input(source) or not _is_passed_on(network, source):
        return None
    match = with_bias(network, source.op) or without_bias(network, source.op)
    axes = None if match is None else KERNEL_AXES.get(match.steps[-1].kind)
    if match is None or axes is None or not match.is_complete(network, frozenset()):
        return None
    step = match.steps[-1]
    kernel, *biases = step.weights
    scale, shift = vectors
    if scale is not None:
        shape = [1] * kernel.ndim
        for axis in axes:
            shape[axis] = kernel.shape[axis]
        kernel = kernel * scale.reshape(shape)
        biases = [bias * scale for bias in biases]
    if shift is not None:
        biases = [shift + sum(biases)]
    step.weights = [weight.astype(kernel.dtype) for weight in (kernel, *biases)]
    step.config["use_bias"] = bool(biases)
    match.operations = [*found.operations, *match.operations]
    return match


def _scale_and_shift(
    network: Network, found: _Affine, vectors: list[np.ndarray | None]
) -> Match:
    size = found.value.shape[-1]
    zeros = np.zeros(size, np.float32)
    variance = np.full(size, np.float32(1) - np.float32(_EPSILON))
    given = [vector for vector in vectors if vector is not None]
    config = {
        "epsilon": _EPSILON,
        "scale": vectors[0] is not None,
        "center": vectors[1] is not None,
        "trainable": False,
    }
    weights = [*given, zeros, variance]
    return _batch_norm(
        network, found.operations, found.value, weights, config, found.tensors
    )


def _from_statistics(network: Network, found: _Affine) -> Match | None:
    """Finds gamma, beta, mean and variance in what scale and shift are made of.

    `scale = gamma * rsqrt(variance + epsilon)`, `shift = beta - mean * scale`, as
    `tf.nn.batch_normalization` computes them; gamma may be missing.
    """
    if [each.type in _SUMS for each in found.operations] != [True, False]:
        return None
    scale, shift = (network.source(tensor) for tensor in found.tensors)
    root, gamma = scale.op, None
    if scale.op.type == "Mul":
        operands = network.operands(scale.op)
        if operands[0].op.type != "Rsqrt":
            operands.reverse()
        root, gamma = operands[0].op, operands[1]
    if root.type != "Rsqrt" or shift.op.type != "Sub":
        return None
    summed = network.source(root.inputs[0])
    beta, product = network.operands(shift.op)
    if summed.op.type not in ("Add", "AddV2") or product.op.type != "Mul":
        return None
    variance, epsilon = network.operands(summed.op)
    factors = {tensor.name: tensor for tensor in network.operands(product.op)}
    if factors.pop(scale.name, None) is None or len(factors) != 1:
        return None
    (mean,) = factors.values()
    small = network.value(epsilon)
    tensors = [t for t in (gamma, beta, mean, variance) if t is not None]
    size = found.value.shape[-1]
    weights = [last_axis(np.asarray(network.value(t)), size) for t in tensors]
    if small is None or small.size != 1 or any(weight is None for weight in weights):
        return None
    config = {"epsilon": float(small.reshape(())), "scale": gamma is not None}
    return _batch_norm(
        network,
        found.operations,
        found.value,
        [weight for weight in weights if weight is not None],
        config,
        tensors,
    )


def layer_norm(network: Network, operation: tf.Operation) -> Match | None:
    """LayerNormalization over the last axis, as Keras and `tf.nn.moments` write it."""
    operands = network.operands(operation)
    for first, second in (operands, operands[::-1]):
        found = _moments_norm(network, operation, first, second)
        if found is not None:
            return found
    return _fused_layer_norm(network, operation)


def _moments_norm(
    network: Network, operation: tf.Operation, first: tf.Tensor, second: tf.Tensor
) -> Match | None:
    """`x * m + (beta - mean * m)` with `m = gamma * rsqrt(variance + epsilon)`."""
    product = produced_by(network, first, "Mul")
    if product is None:
        return None
    for value, factor in _both(network.operands(product)):
        scale = _normalizer(network, value, factor)
        shift = scale and _shift(network, second, scale.mean, factor)
        if scale and shift and all(network.is_constant(t) for t in shift.weights):
            return _layer_norm(
                network,
                [operation, product, *scale.operations, *shift.operations],
                value,
                (scale.weights, shift.weights),
                scale.epsilon,
            )
    return None


@dataclasses.dataclass
class _Part:
    """A part of a normalization: its operations and the tensors of its weights."""

    operations: list[tf.Operation]
    weights: list[tf.Tensor]
    mean: tf.Tensor
    epsilon: float = 0.0


def _normalizer(network: Network, value: tf.Tensor, factor: tf.Tensor) -> _Part | None:
    """Reads `gamma * rsqrt(variance(x) + epsilon)`; gamma may be missing."""
    operations, weights, root = [], [], factor
    product = produced_by(network, factor, "Mul")
    if product is not None:
        parts = split_constant(network, product)
        if parts is None:
            return None
        operations, root = [product], parts[0]
        weights = [network.source(product.inputs[parts[2]])]
    rsqrt = produced_by(network, root, "Rsqrt")
    add = rsqrt and produced_by(network, rsqrt.inputs[0], "Add", "AddV2")
    parts = add and split_constant(network, add)
    if not rsqrt or not add or not parts or not is_scalar(parts[1]):
        return None
    variance = produced_by(network, parts[0], "Mean")
    square = variance and produced_by(network, variance.inputs[0], "SquaredDifference")
    if not variance or not square:
        return None
    for one, other in _both(network.operands(square)):
        mean = produced_by(network, other, "Mean")
        if one.name != value.name or mean is None:
            continue
        if network.source(mean.inputs[0]).name == value.name and all(
            _is_over_last_axis(network, each) for each in (mean, variance)
        ):
            operations += [rsqrt, add, variance, square, mean]
            epsilon = float(parts[1].reshape(()))
            return _Part(operations, weights, other, epsilon)
    return None


def _shift(
    network: Network, tensor: tf.Tensor, mean: tf.Tensor, factor: tf.Tensor
) -> _Part | None:
    """Reads `beta - mean * m` or `-mean * m + beta`; beta may be missing."""
    operation = produced_by(network, tensor, "Add", "AddV2", "Sub", "Mul")
    if operation is None:
        return None
    operations, weights, product = [], [], operation
    negated = True
    if operation.type != "Mul":
        parts = split_constant(network, operation)
        found = parts and produced_by(network, parts[0], "Mul")
        if not parts or not found:
            return None
        if operation.type == "Sub":
            if parts[2] != 0:
                return None
            negated = False
        operations, product = [operation], found
        weights = [network.source(operation.inputs[parts[2]])]
    for one, other in _both(network.operands(product)):
        if other.name != factor.name:
            continue
        negation = produced_by(network, one, "Neg")
        if (negation is not None) != negated:
            continue
        if negation is not None:
            one, operations = network.source(negation.inputs[0]), [negation]
            operations += [operation] if operation is not product else []
        if one.name == mean.name:
            return _Part([*operations, product], weights, mean)
    return None


def _fused_layer_norm(network: Network, operation: tf.Operation) -> Match | None:
    """tf_keras's form: FusedBatchNorm over [1, rows, size, 1], then gamma and beta."""
    parts = split_constant(network, operation)
    product = parts and produced_by(network, parts[0], "Mul")
    inner = product and split_constant(network, product)
    if not parts or not product or not inner:
        return None
    back = produced_by(network, inner[0], "Reshape")
    norm = back and produced_by(network, back.inputs[0], "FusedBatchNormV3")
    flat = norm and produced_by(network, norm.inputs[0], "Reshape")
    if not back or not norm or not flat or not norm.get_attr("is_training"):
        return None
    value = network.source(flat.inputs[0])
    rows = sizes(network.source(flat.inputs[1]))
    last = value.shape[-1]
    if norm.get_attr("data_format") != b"NCHW" or rows is None or last is None:
        return None
    # One row for each vector along the last axis.
    if [*rows[:1], *rows[2:]] != [1, last, 1]:
        return None
    weights = [
        network.source(each.inputs[index])
        for each, index in ((product, inner[2]), (operation, parts[2]))
    ]
    fills = [produced_by(network, norm.inputs[index], "Fill") for index in (1, 2)]
    return _layer_norm(
        network,
        [operation, product, back, norm, flat, *filter(None, fills)],
        value,
        ([weights[0]], [weights[1]]),
        norm.get_attr("epsilon"),
    )


def _layer_norm(
    network: Network,
    operations: list[tf.Operation],
    value: tf.Tensor,
    weights: tuple[list[tf.Tensor], list[tf.Tensor]],
    epsilon: float,
) -> Match | None:
    tensors = [*weights[0], *weights[1]]
    size = value.shape[-1]
    vectors = [last_axis(np.asarray(network.value(t)), size) for t in tensors]
    if any(vector is None for vector in vectors):
        return None
    config = {
        "epsilon": epsilon,
        "scale": bool(weights[0]),
        "center": bool(weights[1]),
    }
    if not network.is_trainable(tensors):
        config["trainable"] = False
    known = [vector for vector in vectors if vector is not None]
    step = Step("LayerNormalization", config, known)
    step.origin = network.leaves(tensors)
    return Match(operations, [value], [step])


def _is_over_last_axis(network: Network, mean: tf.Operation) -> bool:
    axes = network.value(mean.inputs[1])
    rank = mean.inputs[0].shape.rank
    if axes is None or not mean.get_attr("keep_dims") or axes.size != 1:
        return False
    return int(axes.reshape(())) % rank == rank - 1


def _both(pair: list[tf.Tensor]) -> list[tuple[tf.Tensor, tf.Tensor]]:
    return [(pair[0], pair[1]), (pair[1], pair[0])]
