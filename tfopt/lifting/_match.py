"""What a rule finds: operations of a graph that one or two Keras layers compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.lifting._network import SHAPE_QUERIES, Network


@dataclasses.dataclass
class Step:
    """One layer to make.

    Attributes:
        kind: Name of its class in `keras.layers`.
        config: Arguments of its constructor, without the name.
        weights: Values in the layer's own order.
        suffix: What its name ends with, if it isn't the layer the match is about.
        origin: The graph's constants that the weights are made of; layers with the
            same are one.
    """

    kind: str
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: list[np.ndarray] = dataclasses.field(default_factory=list)
    suffix: str = ""
    origin: frozenset[str] = frozenset()


@dataclasses.dataclass
class Match:
    """Operations that a chain of layers computes.

    Attributes:
        operations: The operations that the layers replace, the last one first.
        inputs: What the first layer takes.
        steps: The layers, each taking the result of the one before.
        is_list: Whether the first layer takes its inputs as a list.
    """

    operations: list[tf.Operation]
    inputs: list[tf.Tensor]
    steps: list[Step]
    is_list: bool = False

    @property
    def outputs(self) -> list[tf.Tensor]:
        """The tensors that the last layer returns."""
        return list(self.operations[0].outputs)

    def is_complete(self, network: Network, kept: frozenset[str]) -> bool:
        """Returns whether nothing else needs what is inside the match.

        Args:
            network: The graph.
            kept: Names of tensors that must be there by themselves.
        """
        inside = {operation.name for operation in self.operations}
        for operation in self.operations[1:]:
            for tensor in operation.outputs:
                if tensor.name in kept or tensor.name in network.output_sources:
                    return False
                users = network.consumers(tensor)
                if any(
                    user.name not in inside and user.type not in SHAPE_QUERIES
                    for user in users
                ):
                    return False
        return True


# A rule looks at the last operation of what it knows.
Rule = Callable[[Network, tf.Operation], Match | None]


def one_layer(
    operation: tf.Operation,
    inputs: Sequence[tf.Tensor],
    kind: str,
    *,
    is_list: bool = False,
    **config: Any,
) -> Match:
    """Returns a match of one operation and one layer without weights."""
    return Match([operation], list(inputs), [Step(kind, config)], is_list)


def produced_by(
    network: Network, tensor: tf.Tensor, *kinds: str
) -> tf.Operation | None:
    """Returns the operation that makes a tensor, if it is of one of these kinds."""
    source = network.source(tensor)
    if network.is_input(source) or network.is_constant(source):
        return None
    return source.op if source.op.type in kinds else None


def split_constant(
    network: Network, operation: tf.Operation
) -> tuple[tf.Tensor, np.ndarray, int] | None:
    """Splits the operands of a binary operation, if just one is a constant.

    Returns:
        The operand that depends on the inputs, the other one's value, and the other
        one's position.
    """
    operands = network.operands(operation)
    if len(operands) != 2:
        return None
    constant = [network.is_constant(tensor) for tensor in operands]
    if sum(constant) != 1:
        return None
    position = constant.index(True)
    value = np.asarray(network.value(operands[position]))
    return operands[1 - position], value, position


def last_axis(value: np.ndarray, size: int | None) -> np.ndarray | None:
    """Returns a constant as a vector along the last axis, `None` if it isn't one."""
    if value.ndim == 0 or size is None or value.size != size:
        return None
    return value.reshape(-1) if value.shape[-1] == size else None


def is_scalar(value: np.ndarray | None, expected: float | None = None) -> bool:
    """Returns whether a constant is one number (close to an expected one)."""
    if value is None or value.size != 1:
        return False
    return expected is None or bool(
        np.isclose(float(value.reshape(())), expected, atol=0)
    )
