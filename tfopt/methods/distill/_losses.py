"""The arithmetic of distillation: softened outputs compared, example by example.

All functions take float32 tensors [batch, ..., units] and return one value per
position, [batch, ...]; `mean` makes a scalar of them as Keras's losses do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import tensorflow as tf

Task = Literal["classes", "labels", "regression"]
# How a tensor holds its predictions.
Form = Literal["logits", "softmax", "sigmoid"]

# What is left of one next to it in float32.
_RESOLUTION = 2.0**-24


def as_logits(values: tf.Tensor, form: Form, floor: float) -> tf.Tensor:
    """Returns logits that give the probabilities; those of a softmax up to a constant.

    Args:
        values: Logits or probabilities.
        form: Which of them.
        floor: Probabilities below it count as this much: half of the smallest one
            that the model can tell from zero.
    """
    if form == "logits":
        return values
    log = tf.math.log(tf.maximum(values, floor))
    if form == "softmax":
        return log
    return log - tf.math.log(tf.maximum(1 - values, max(floor, _RESOLUTION)))


def soft_targets(
    logits: Sequence[tf.Tensor],
    weights: Sequence[float],
    task: Task,
    temperature: float,
) -> tf.Tensor:
    """Returns the weighted mean of the teachers' softened probabilities."""
    soften = tf.nn.softmax if task == "classes" else tf.sigmoid
    return tf.add_n(
        [
            weight * soften(each / temperature)
            for each, weight in zip(logits, weights, strict=True)
        ]
    )


def kl(
    targets: tf.Tensor, student_logits: tf.Tensor, task: Task, temperature: float
) -> tf.Tensor:
    """Returns T² KL(teacher ‖ student) of softened probabilities.

    For classes over the last axis; for labels, which are independent of each other,
    the mean of their divergences, as Keras's binary cross-entropy has it. T² keeps the
    gradient's size when T changes (Hinton et al., section 2).

    Args:
        targets: Probabilities at the temperature.
        student_logits: Logits, without it.
        task: `"classes"` or `"labels"`.
        temperature: T.
    """
    softened = student_logits / temperature
    if task == "classes":
        divergence = tf.reduce_sum(
            tf.math.xlogy(targets, targets) - targets * tf.nn.log_softmax(softened), -1
        )
    else:
        negative_entropy = tf.math.xlogy(targets, targets)
        negative_entropy += tf.math.xlogy(1 - targets, 1 - targets)
        cross = tf.nn.sigmoid_cross_entropy_with_logits(targets, softened)
        divergence = tf.reduce_mean(negative_entropy + cross, -1)
    return temperature**2 * divergence


def mse(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """Returns the mean squared difference over the last axis."""
    return tf.reduce_mean(tf.math.squared_difference(teacher, student), -1)


def centered(logits: tf.Tensor) -> tf.Tensor:
    """Returns logits with mean zero, the ones that probabilities determine."""
    return logits - tf.reduce_mean(logits, -1, keepdims=True)


def mean(values: tf.Tensor, sample_weight: Any = None, mask: Any = None) -> tf.Tensor:
    """Returns the sum of weighted values over the number of those not masked.

    That is Keras's reduction "sum_over_batch_size" [keras/src/losses/loss.py].

    Args:
        values: float32 [batch, ...].
        sample_weight: [batch], or more axes of `values`, or one of size 1 after them.
        mask: As `values`, False where there is nothing.
    """
    count = tf.cast(tf.size(values), tf.float32)
    if mask is not None:
        kept = _like(mask, values)
        count = tf.reduce_sum(kept * tf.ones_like(values))
        # Not a product: what is masked may be infinite.
        values = tf.where(kept * tf.ones_like(values) > 0, values, 0.0)
    if sample_weight is not None:
        values = values * _like(sample_weight, values)
    return tf.math.divide_no_nan(tf.reduce_sum(values), count)


def _like(weights: Any, values: tf.Tensor) -> tf.Tensor:
    """Returns weights with the rank of values, by axes of size 1 at the end."""
    weights = tf.cast(tf.convert_to_tensor(weights), tf.float32)
    while len(weights.shape) > len(values.shape):
        weights = tf.squeeze(weights, -1)
    while len(weights.shape) < len(values.shape):
        weights = weights[..., None]
    return weights
