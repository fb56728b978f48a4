"""The distillation loss of all outputs together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfopt.methods.distill import _losses, _outputs
from tfopt.methods.distill._losses import Form
from tfopt.methods.distill._outputs import OutputPlan
from tfopt.types import TfoptError

# Half of a step of 8-bit probabilities.
_ROUNDED = 2.0**-9
_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class Objective:
    """What the student is to learn from the teachers' outputs.

    Attributes:
        plans: The outputs that are distilled.
        loss: `"kl"`, `"mse"` or a function of teacher's and student's outputs.
        temperature: Divides logits, for `"kl"`.
        teacher_weights: One per teacher; they sum to one.
        floors: Smallest probability of each teacher.
        names: The student's outputs' names, where sample weights may be a dictionary.
    """

    plans: Sequence[OutputPlan]
    loss: Any
    temperature: float
    teacher_weights: Sequence[float]
    floors: Sequence[float]
    names: Sequence[str] | None

    def targets(self, outputs: Sequence[Sequence[Any]]) -> list[Any]:
        """Returns what the loss needs of the teachers' outputs.

        Args:
            outputs: By teacher and, within, by plan.
        """
        outputs = [
            [tf.stop_gradient(tf.cast(item, tf.float32)) for item in each]
            for each in outputs
        ]
        if callable(self.loss):
            return outputs
        return [
            self._target(plan, [each[position] for each in outputs])
            for position, plan in enumerate(self.plans)
        ]

    def value(self, targets: list[Any], y_pred: Any, sample_weight: Any) -> tf.Tensor:
        """Returns the loss, a scalar; for a student's outputs and sample weights."""
        leaves = tf.nest.flatten(y_pred)
        if callable(self.loss):
            return self._own(self.loss, targets, y_pred, sample_weight)
        losses = []
        for plan, target in zip(self.plans, targets, strict=True):
            values = self._compare(plan, target, leaves[plan.index])
            weights = _weights_of(sample_weight, plan, self.names)
            mask = getattr(leaves[plan.index], "_keras_mask", None)
            losses.append(plan.weight * _losses.mean(values, weights, mask))
        return tf.add_n(losses)

    def _target(self, plan: OutputPlan, outputs: list[Any]) -> Any:
        outputs = [_with_units(each) for each in outputs]
        weights = self.teacher_weights
        if plan.task == "regression":
            return _weighted(outputs, weights)
        logits = [
            _losses.as_logits(each, form, floor)
            for each, form, floor in zip(
                outputs, plan.teachers, self.floors, strict=True
            )
        ]
        if self.loss == "kl":
            return _losses.soft_targets(logits, weights, plan.task, self.temperature)
        logits = [_losses.centered(z) if _is_relative(plan) else z for z in logits]
        return _weighted(logits, weights)

    def _compare(self, plan: OutputPlan, target: Any, output: Any) -> tf.Tensor:
        """Returns the loss of an output at each of its positions."""
        if plan.task == "regression":
            return _losses.mse(target, _with_units(tf.cast(output, tf.float32)))
        logits = student_logits(output, plan.student, plan.is_rounded)
        if self.loss == "kl":
            return _losses.kl(target, logits, plan.task, self.temperature)
        if _is_relative(plan):
            logits = _losses.centered(logits)
        return _losses.mse(target, logits)

    def _own(
        self,
        loss: Callable[[Any, Any], Any],
        targets: list[Any],
        y_pred: Any,
        sample_weight: Any,
    ) -> tf.Tensor:
        y_pred = tf.nest.map_structure(lambda x: tf.cast(x, tf.float32), y_pred)
        found = []
        for outputs in targets:
            values = loss(tf.nest.pack_sequence_as(y_pred, outputs), y_pred)
            values = tf.cast(tf.convert_to_tensor(values), tf.float32)
            if len(values.shape) == 0 and sample_weight is not None:
                raise TfoptError(
                    "Sample or class weights have no effect on a distillation loss "
                    "that is a scalar. Expected `distillation_loss` to return one "
                    f"value per example. Received: {loss!r} with sample weights"
                )
            if tf.nest.is_nested(sample_weight):
                raise TfoptError(
                    "Sample weights by output cannot be applied to a "
                    "`distillation_loss` of all outputs. Expected one array of them. "
                    f"Received: {loss!r} with sample weights by output"
                )
            found.append(_losses.mean(values, sample_weight))
        return _weighted(found, self.teacher_weights)


def student_logits(output: Any, form: Form, is_rounded: bool) -> tf.Tensor:
    """Returns the logits of a student's output, float32 with an axis of units."""
    if form != "logits":
        behind = _outputs.logits_behind(output, form)
        if behind is not None:
            output, form = behind, "logits"
    values = _with_units(tf.cast(output, tf.float32))
    if form == "logits":
        return values
    # Added, where a maximum would take the gradient from small probabilities.
    tiny = _ROUNDED if is_rounded else _TINY
    log = tf.math.log(values + tiny)
    if form == "softmax":
        return log
    return log - tf.math.log(1 - values + max(tiny, 2.0**-24))


def _is_relative(plan: OutputPlan) -> bool:
    """Whether logits come from a softmax, which leaves their mean open."""
    return plan.task == "classes" and "softmax" in (plan.student, *plan.teachers)


def _weighted(values: Sequence[Any], weights: Sequence[float]) -> tf.Tensor:
    return tf.add_n([w * value for value, w in zip(values, weights, strict=True)])


def _with_units(values: tf.Tensor) -> tf.Tensor:
    return values[:, None] if len(values.shape) == 1 else values


def _weights_of(
    sample_weight: Any, plan: OutputPlan, names: Sequence[str] | None
) -> Any:
    if isinstance(sample_weight, Mapping):
        return sample_weight.get(names[plan.index] if names else plan.name)
    if isinstance(sample_weight, (list, tuple)):
        return tf.nest.flatten(sample_weight)[plan.index]
    return sample_weight
