"""Activations: single operations, and the products of which some consist."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from tfopt.lifting._match import (
    Match,
    is_scalar,
    one_layer,
    produced_by,
    split_constant,
)
from tfopt.lifting._network import Network

_NAMES = {
    "Elu": "elu",
    "Exp": "exponential",
    "Selu": "selu",
    "Sigmoid": "sigmoid",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Tanh": "tanh",
}


def named(network: Network, operation: tf.Operation) -> Match:
    """An activation without parameters."""
    return one_layer(
        operation,
        network.operands(operation),
        "Activation",
        activation=_NAMES[operation.type],
    )


def relu(network: Network, operation: tf.Operation) -> Match:
    """Relu and Relu6."""
    limit = 6.0 if operation.type == "Relu6" else None
    return one_layer(operation, network.operands(operation), "ReLU", max_value=limit)


def clipped(network: Network, operation: tf.Operation) -> Match | None:
    """Values cut off at zero, and at a limit, by Maximum and Minimum."""
    parts = split_constant(network, operation)
    if parts is None:
        return None
    other = "Minimum" if operation.type == "Maximum" else "Maximum"
    inner = produced_by(network, parts[0], other)
    more = inner and split_constant(network, inner)
    bounds = {operation.type: parts[1]}
    operations, value = [operation], parts[0]
    if inner and more:
        bounds[inner.type] = more[1]
        operations, value = [operation, inner], more[0]
    if not is_scalar(bounds.get("Maximum"), 0):
        return None
    limit = bounds.get("Minimum")
    if limit is not None and (limit.size != 1 or limit.max() <= 0):
        return None
    top = None if limit is None else float(limit.reshape(()))
    match = one_layer(operation, [value], "ReLU", max_value=top)
    match.operations = operations
    return match


def leaky_relu(network: Network, operation: tf.Operation) -> Match:
    """LeakyRelu; the two Kerases call its slope differently."""
    slope = operation.get_attr("alpha")
    return one_layer(operation, network.operands(operation), "LeakyReLU", slope=slope)


def softmax(network: Network, operation: tf.Operation) -> Match:
    """Softmax over the last axis."""
    return one_layer(operation, network.operands(operation), "Softmax")


def prelu(network: Network, operation: tf.Operation) -> Match | None:
    """`relu(x) - slope * relu(-x)` with constant slopes."""
    operands = network.operands(operation)
    for first, second in (operands, operands[::-1]):
        positive = produced_by(network, first, "Relu")
        product = produced_by(network, second, "Mul")
        parts = product and split_constant(network, product)
        negative = parts and produced_by(network, parts[0], "Relu")
        minus = negative and produced_by(network, negative.inputs[0], "Neg")
        if not positive or not product or not parts or not negative or not minus:
            continue
        value = network.source(positive.inputs[0])
        if network.source(minus.inputs[0]).name != value.name:
            continue
        sizes = value.shape.as_list()[1:]
        slopes = -parts[1].reshape((1,) * (len(sizes) - parts[1].ndim) + parts[1].shape)
        if slopes.ndim != len(sizes):
            continue
        match = one_layer(
            operation,
            [value],
            "PReLU",
            shared_axes=(np.flatnonzero(np.array(slopes.shape) == 1) + 1).tolist(),
        )
        match.operations = [operation, positive, product, negative, minus]
        given = [product.inputs[parts[2]]]
        match.steps[0].weights = [slopes]
        match.steps[0].origin = network.leaves(given)
        match.steps[0].config["trainable"] = network.is_trainable(given)
        return match
    return None


def swish(network: Network, operation: tf.Operation) -> Match | None:
    """`x * sigmoid(x)`, with a factor of one somewhere."""
    operands = network.operands(operation)
    for value, other in (operands, operands[::-1]):
        sigmoid = produced_by(network, other, "Sigmoid")
        if sigmoid is None:
            continue
        inside = network.source(sigmoid.inputs[0])
        operations = [operation, sigmoid]
        unit = produced_by(network, inside, "Mul")
        parts = unit and split_constant(network, unit)
        if unit and parts and inside.name != value.name and is_scalar(parts[1], 1):
            operations.append(unit)
            inside = parts[0]
        if inside.name == value.name:
            match = one_layer(operation, [value], "Activation", activation="swish")
            match.operations = operations
            return match
    return None


def gelu(network: Network, operation: tf.Operation) -> Match | None:
    """`x / 2 * (1 + erf(x / sqrt(2)))`, or with erfc(-x / sqrt(2))."""
    operands = network.operands(operation)
    for first, second in (operands, operands[::-1]):
        half = produced_by(network, first, "Mul")
        parts = half and split_constant(network, half)
        if not half or not parts or not is_scalar(parts[1], 0.5):
            continue
        tail = _normal_tail(network, second, parts[0])
        if tail:
            match = one_layer(operation, [parts[0]], "Activation", activation="gelu")
            match.operations = [operation, half, *tail]
            return match
    return None


def _normal_tail(
    network: Network, tensor: tf.Tensor, value: tf.Tensor
) -> list[tf.Operation]:
    """Returns what computes `1 + erf(value / sqrt(2))`, nothing if it isn't that."""
    operations = []
    add = produced_by(network, tensor, "Add", "AddV2")
    if add is not None:
        parts = split_constant(network, add)
        if not parts or not is_scalar(parts[1], 1):
            return []
        operations, tensor = [add], parts[0]
    error = produced_by(network, tensor, "Erf" if add is not None else "Erfc")
    inner = error and produced_by(network, error.inputs[0], "Mul", "RealDiv")
    parts = inner and split_constant(network, inner)
    if not error or not inner or not parts:
        return []
    root = math.sqrt(2)
    if not is_scalar(parts[1], root if inner.type == "RealDiv" else 1 / root):
        return []
    operations += [error, inner]
    inside = parts[0]
    if error.type == "Erfc":
        negation = produced_by(network, inside, "Neg")
        if negation is None:
            return []
        operations.append(negation)
        inside = network.source(negation.inputs[0])
    return operations if inside.name == value.name else []


RULES = {
    **dict.fromkeys(_NAMES, (named,)),
    **dict.fromkeys(("Add", "AddV2"), (prelu,)),
    "LeakyRelu": (leaky_relu,),
    "Maximum": (clipped,),
    "Minimum": (clipped,),
    "Mul": (gelu, swish),
    "Relu": (relu,),
    "Relu6": (relu,),
    "Softmax": (softmax,),
}
