"""A model's own training step, with the teachers' losses in its loss."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt._keras import steps, variables
from tfopt.methods.distill._features import Hints
from tfopt.methods.distill._lessons import Lesson, Lessons
from tfopt.methods.distill._objective import Objective
from tfopt.types import TfoptError


@dataclasses.dataclass
class _Batch:
    """One training step, while it is traced or run."""

    x: Any
    lesson: Lesson
    features: dict[str, list[Any]]
    gradients: list[Any] | None = None
    has_loss: bool = False


class TrainingStep:
    """Adds teachers to the training steps of one model, until `remove`.

    The model's `train_step` and `compute_loss` are called inside of replacements.
    Teachers are asked before the step opens its gradient tape. Evaluation goes past.

    Args:
        model: Compiled model.
        lessons: The teachers.
        objective: The loss of their outputs.
        hints: The loss of their features.
        student_loss_weight: Factor on the model's own loss; one minus it on that of
            the teachers.
        feature_loss_weight: Factor on that of the features.
    """

    def __init__(
        self,
        model: Any,
        lessons: Lessons,
        objective: Objective,
        hints: Hints | None,
        *,
        student_loss_weight: float,
        feature_loss_weight: float,
    ):
        self._model = model
        self._lessons = lessons
        self._objective = objective
        self._hints = hints
        self._student_loss_weight = student_loss_weight
        self._feature_loss_weight = feature_loss_weight
        self._thread = threading.local()
        self._has_own_step = steps.overrides(model, "train_step")
        self._has_own_loss = steps.overrides(model, "compute_loss")
        names = ["loss", "student_loss", "distillation_loss"]
        names += ["feature_loss"] if hints is not None else []
        mean = _keras.module_of(model).metrics.Mean
        with model.distribute_strategy.scope():
            self._means = {name: mean(name=name) for name in names}
        self._undo = [
            steps.override(model, "train_step", self._wrapped_step(model.train_step)),
            steps.override(
                model, "compute_loss", self._wrapped_loss(model.compute_loss)
            ),
        ]
        variables.retrace(model)

    def reset(self) -> None:
        """Begins the means of an epoch anew."""
        for mean in self._means.values():
            mean.reset_state()

    def remove(self) -> None:
        """Gives the model its own methods back."""
        for undo in reversed(self._undo):
            undo()
        if self._hints is not None:
            self._hints.remove()
        variables.forget_train_function(self._model)

    def _wrapped_step(self, own: Any) -> Any:
        def train_step(data: Any) -> Any:
            with self._batch(data) as batch:
                logs = own(data)
            return self._finished(batch, logs)

        return train_step

    def _wrapped_loss(self, own: Any) -> Any:
        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            if self._needs_own(args, kwargs):
                return self._total(own(*args, **kwargs), args, kwargs)
            return self._total(None, args, kwargs)

        return compute_loss

    @contextlib.contextmanager
    def _batch(self, data: Any) -> Iterator[_Batch]:
        x, _, _ = _keras.module_of(self._model).utils.unpack_x_y_sample_weight(data)
        lesson = self._lessons(x)
        taps = None if self._hints is None else self._hints.student_taps
        with steps.listening(taps) as features:
            batch = _Batch(x, lesson, features)
            self._thread.batch = batch
            try:
                yield batch
            finally:
                self._thread.batch = None

    def _finished(self, batch: _Batch, logs: Any) -> Any:
        if not batch.has_loss:
            raise TfoptError(
                "The model's own `train_step` computes its loss past `compute_loss`, "
                "so there is no place for that of the teacher. Expected "
                "`self.compute_loss(x=x, y=y, y_pred=y_pred)` in it. "
                f"Received: {type(self._model).__name__}.train_step"
            )
        if self._hints is not None and batch.gradients:
            self._hints.train(batch.gradients)
        if not isinstance(logs, dict):
            return logs
        found = {name: mean.result() for name, mean in self._means.items()}
        if self._has_own_step:  # its "loss" is its own affair
            del found["loss"]
        return {**logs, **found}

    def _needs_own(self, args: Any, kwargs: Any) -> bool:
        if getattr(self._thread, "batch", None) is None or self._has_own_loss:
            return True
        y = _arguments(args, kwargs)["y"]
        labels = [item for item in tf.nest.flatten(y) if item is not None]
        return bool(labels) and bool(self._model.loss)

    def _total(self, own: Any, args: Any, kwargs: Any) -> Any:
        """Returns the loss of a training step, given the model's own, if it has one."""
        batch = getattr(self._thread, "batch", None)
        if batch is None:
            return own
        batch.has_loss = True
        given = _arguments(args, kwargs)
        lesson = self._lesson(batch, given["x"])
        weight, rest = self._student_loss_weight, 1 - self._student_loss_weight
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        parts = {}
        parts["distillation_loss"] = self._objective.value(
            self._objective.targets(lesson.outputs),
            given["y_pred"],
            given["sample_weight"],
        )
        total = rest * parts["distillation_loss"]
        if self._hints is not None:
            parts["feature_loss"], batch.gradients = self._hints.value(
                self._hints.of_student(batch.features),
                lesson.features,
                _one_weight(given["sample_weight"]),
            )
            batch.features.clear()
            total += self._feature_loss_weight * parts["feature_loss"]
        total /= replicas
        # Penalties on weights keep their full strength.
        penalties = 0.0
        if not self._has_own_loss and self._model.losses:
            penalties = tf.add_n(
                [
                    tf.reduce_sum(tf.cast(loss, tf.float32))
                    for loss in self._model.losses
                ]
            )
            penalties /= replicas
        if own is None:
            total += penalties
        else:
            own = tf.cast(own, tf.float32)
            parts["student_loss"] = own * replicas
            total += rest * penalties
            if weight:
                total += weight * own
        self._note({"loss": total * replicas, **parts}, batch.x)
        return total

    def _lesson(self, batch: _Batch, x: Any) -> Lesson:
        if x is None:
            if self._has_own_step:
                raise TfoptError(
                    "The model's own `train_step` does not say what the student saw, "
                    "so the teacher cannot be asked about it. Expected "
                    "`self.compute_loss(x=x, y=y, y_pred=y_pred)`. "
                    f"Received: {type(self._model).__name__}.train_step"
                )
            return batch.lesson
        same = [tf.nest.flatten(each) for each in (x, batch.x)]
        if len(same[0]) == len(same[1]) and all(map(_is, *same)):
            return batch.lesson
        return self._lessons(x)  # it was changed on the way

    def _note(self, values: dict[str, Any], x: Any) -> None:
        size = tf.shape(tf.nest.flatten(x)[0])[0]
        for name, value in values.items():
            self._means[name].update_state(value, sample_weight=size)


def _arguments(args: Any, kwargs: Any) -> dict[str, Any]:
    """Returns the arguments of Keras's `compute_loss` by name, None where not given."""
    names = ("x", "y", "y_pred", "sample_weight")
    given = dict(zip(names, args, strict=False))
    return {name: kwargs.get(name, given.get(name)) for name in names}


def _one_weight(sample_weight: Any) -> Any:
    """Returns sample weights that hold for the examples, whatever the output."""
    if tf.nest.is_nested(sample_weight):
        return None
    # A weight per example; what an output has per position says nothing of a feature.
    if sample_weight is not None and len(sample_weight.shape) > 1:
        return None if sample_weight.shape[-1] != 1 else sample_weight
    return sample_weight


def _is(first: Any, second: Any) -> bool:
    return first is second
