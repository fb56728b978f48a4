"""Hints: layers of the student that learn what layers of the teacher give.

Romero et al., FitNets: Hints for Thin Deep Nets, https://arxiv.org/abs/1412.6550.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfopt import _keras
from tfopt._keras import gradients, steps
from tfopt.methods.distill import _losses
from tfopt.types import TfoptError

# Adam's own step size, whatever the student's optimizer does.
_LEARNING_RATE = 1e-3
_SHOWN = 40


class Hints:
    """Pairs of layers, and a linear map for each pair whose channels differ.

    The maps are trained beside the student, by an optimizer of their own, and are no
    part of it.

    Args:
        pairs: Student's layer to teacher's layer, by name or path.
        student: The model in training.
        teacher: Keras model.

    Raises:
        TfoptError: A model has no such layer.
    """

    def __init__(self, pairs: Mapping[str, str], student: Any, teacher: Any):
        self._pairs = list(pairs.items())
        self._keras = _keras.module_of(student)
        self._projections: list[Any] = []
        self._optimizer: Any = None
        found = {
            "student": [_find(student, name, "student") for name, _ in self._pairs],
            "teacher": [_find(teacher, name, "teacher") for _, name in self._pairs],
        }
        self._paths = [path for path, _ in found["student"]]
        self.student_taps = steps.Taps(dict(found["student"]))
        self.teacher_taps = steps.Taps(dict(found["teacher"]))
        self._teacher_paths = [path for path, _ in found["teacher"]]

    def of_student(self, found: Mapping[str, list[Any]]) -> list[Any]:
        """Returns the student's features among what its taps have found."""
        return [_only(found, path, "student") for path in self._paths]

    def of_teacher(self, found: Mapping[str, list[Any]]) -> list[Any]:
        """Returns the teacher's features, float32 and without gradients."""
        return [
            tf.stop_gradient(tf.cast(_only(found, path, "teacher"), tf.float32))
            for path in self._teacher_paths
        ]

    def build(self, student: Sequence[Any], teacher: Sequence[Any]) -> list[Any]:
        """Makes the maps; returns the rows of the report.

        Args:
            student: Symbolic features.
            teacher: Symbolic features.

        Raises:
            TfoptError: More than the channels differs.
        """
        rows = []
        for position, (path, own, other) in enumerate(
            zip(self._paths, student, teacher, strict=True)
        ):
            _check(path, own.shape, other.shape)
            projection = None
            if own.shape[-1] != other.shape[-1]:
                projection = self._keras.layers.Dense(
                    other.shape[-1],
                    dtype="float32",
                    # A seed of its own leaves the process's random numbers alone.
                    kernel_initializer=self._keras.initializers.GlorotUniform(
                        seed=position
                    ),
                )
                projection.build((None, own.shape[-1]))
            self._projections.append(projection)
            kind = "1x1 convolution" if len(own.shape) > 2 else "dense"
            rows.append(
                {
                    "student": path,
                    "teacher": self._teacher_paths[position],
                    "shapes": [str(own.shape), str(other.shape)],
                    "projection": None if projection is None else kind,
                }
            )
        if self._variables:
            self._optimizer = self._keras.optimizers.Adam(_LEARNING_RATE)
            self._optimizer.build(self._variables)
        return rows

    @property
    def _variables(self) -> list[Any]:
        return [
            variable
            for projection in self._projections
            if projection is not None
            for variable in projection.trainable_variables
        ]

    def value(
        self, student: Sequence[Any], teacher: Sequence[Any], sample_weight: Any
    ) -> tuple[tf.Tensor, list[Any]]:
        """Returns the loss, a scalar, and its gradients for the maps."""
        with tf.GradientTape() as tape:
            losses = []
            for own, other, projection in zip(
                student, teacher, self._projections, strict=True
            ):
                mask = getattr(own, "_keras_mask", None)
                values = tf.cast(own, tf.float32)
                if projection is not None:
                    values = projection(values)
                losses.append(
                    _losses.mean(_losses.mse(other, values), sample_weight, mask)
                )
            loss = tf.add_n(losses)
        watched = [gradients.tensor_of(variable) for variable in self._variables]
        return loss, tape.gradient(loss, watched) if watched else []

    def train(self, found: Sequence[Any]) -> None:
        """Makes a step of the maps with their gradients."""
        if self._optimizer is not None:
            pairs = zip(found, self._variables, strict=True)
            self._optimizer.apply_gradients(list(pairs))

    def remove(self) -> None:
        """Gives the layers their own methods back."""
        self.student_taps.remove()
        self.teacher_taps.remove()


def _find(model: Any, name: str, role: str) -> tuple[str, Any]:
    found = steps.find_layer(model, name)
    if found is None:
        known = [path for path, _ in steps.named_layers(model)]
        raise TfoptError(
            f"The {role} has no such layer. Expected `features` to name one of "
            f"{known[:_SHOWN]}{' ...' if len(known) > _SHOWN else ''}. "
            f"Received: {name!r}"
        )
    return found


def _only(found: Mapping[str, list[Any]], path: str, role: str) -> Any:
    """Returns the tensor of a layer's only call."""
    calls = found.get(path, [])
    if len(calls) != 1 or tf.nest.is_nested(calls[0]):
        what = f"called {len(calls)} times" if len(calls) != 1 else "of several outputs"
        raise TfoptError(
            "Features must be of a layer that is called once and returns one tensor. "
            f"Received: the {role}'s layer {path!r}, {what}"
        )
    return calls[0]


def _check(path: str, student: Any, teacher: Any) -> None:
    same_rank = student.rank == teacher.rank and student.rank is not None
    if (
        not same_rank
        or student.rank < 2
        or not student[:-1].is_compatible_with(teacher[:-1])
        or None in (student[-1], teacher[-1])
    ):
        raise TfoptError(
            "Features may differ in the last axis only, the channels, which a linear "
            "map makes equal. Choose layers of one resolution. "
            f"Received: {student} at {path!r}, {teacher} of the teacher"
        )
