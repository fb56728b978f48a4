"""Penalties that drive weights, or whole units of them, toward zero."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfopt import masks
from tfopt._keras import kernels, penalties, variables

KINDS = ("l1", "group_lasso")


def check(penalty: Any) -> None:
    """Raises unless `penalty` is None or a kind and a strength.

    Raises:
        ValueError: It is something else.
    """
    if penalty is None:
        return
    good = isinstance(penalty, Mapping) and set(penalty) == {"kind", "strength"}
    if good:
        strength = penalty["strength"]
        good = penalty["kind"] in KINDS and isinstance(strength, numbers.Real)
        good = good and 0 < float(strength) < math.inf
    if not good:
        raise ValueError(
            '`sparsity_penalty` must be a mapping of "kind", one of '
            f'{KINDS}, and "strength", > 0. Received: sparsity_penalty={penalty!r}'
        )


def install(
    penalty: Mapping[str, Any],
    weights: list[variables.Weight],
    structure: masks.Structure,
) -> list[Any]:
    """Adds the penalty of each weight to the model's losses.

    `"l1"` is `strength * sum(|w|)`; `"group_lasso"` is the sum over the structure's
    units of `strength * sqrt(size) * norm(unit)`, output channels where the structure
    has none (Yuan and Lin, 2006, as in Wen et al., https://arxiv.org/abs/1608.03665).

    Returns:
        Functions that undo it.
    """
    kind, strength = penalty["kind"], float(penalty["strength"])
    return [
        penalties.add(weight, _Penalty(kind, strength, weight, structure))
        for weight in weights
    ]


class _Penalty:
    def __init__(
        self,
        kind: str,
        strength: float,
        weight: variables.Weight,
        structure: masks.Structure,
    ):
        self._strength = strength
        self._layout = kernels.layout(weight)
        self._structure = None if kind == "l1" else structure

    def __call__(self, value: Any) -> tf.Tensor:
        value = tf.cast(tf.convert_to_tensor(value), tf.float32)
        if self._structure is None:
            return self._strength * tf.reduce_sum(tf.abs(value))
        matrices = tf.reshape(
            tf.transpose(value, self._layout.order), self._layout.split
        )
        squares, sizes = _unit_sums(tf.square(matrices), self._structure)
        # The root has no gradient at zero, where pruned units are.
        norms = tf.where(squares > 0, tf.sqrt(tf.maximum(squares, 1e-24)), 0.0)
        return self._strength * tf.reduce_sum(tf.sqrt(sizes) * norms)


def _unit_sums(
    values: tf.Tensor, structure: masks.Structure
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns sums over the units of [positions, inputs, outputs], and their sizes."""
    if structure.kind != "block":
        return tf.reduce_sum(values, (0, 1)), tf.cast(
            values.shape[0] * values.shape[1], tf.float32
        )

    def cells(tensor: tf.Tensor) -> tf.Tensor:
        pooled = tf.nn.avg_pool2d(
            tf.pad(tensor, ((0, 0), *beyond))[..., None],
            (rows, columns),
            (rows, columns),
            "VALID",
        )
        return pooled * (rows * columns)

    rows, columns = structure.first, structure.second
    beyond = ((0, -values.shape[1] % rows), (0, -values.shape[2] % columns))
    return cells(values), cells(tf.ones_like(values))
