"""Checks of the arguments of `Distill`."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Mapping
from typing import Any

from tfopt import _keras
from tfopt.methods._checks import check_arguments

_OUTPUT_WEIGHTS = (
    "None, or numbers >= 0 in order or by name, not all zero, and only without a "
    "function as `distillation_loss`"
)


def teachers_of(teacher: Any) -> list[Any]:
    """Returns the one teacher or the several as a list."""
    return list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]


def check(method: Any) -> None:
    """Raises unless the arguments of a `Distill` are good.

    Raises:
        ValueError: One is not; the message names it.
    """
    teachers = teachers_of(method.teacher)
    checks = {
        "teacher": (
            bool(teachers) and all(map(_is_teacher, teachers)),
            "a Keras model, a path, or a list of these",
        ),
        "temperature": (
            _is_number(method.temperature, 0) and method.temperature > 0,
            "a number > 0",
        ),
        "student_loss_weight": (
            _is_number(method.student_loss_weight, 0)
            and method.student_loss_weight <= 1,
            "a number in [0, 1]",
        ),
        "distillation_loss": (
            method.distillation_loss in ("kl", "mse")
            or callable(method.distillation_loss),
            "'kl', 'mse' or a function",
        ),
        "features": (
            method.features is None or _are_names(method.features, len(teachers)),
            "a mapping of layer names, with one teacher that is a Keras model or "
            "a .keras or .h5 file; or None",
        ),
        "feature_loss_weight": (
            _is_number(method.feature_loss_weight, 0),
            "a number >= 0",
        ),
        "teacher_weights": (
            method.teacher_weights is None
            or _are_weights(method.teacher_weights, len(teachers)),
            "None or a number >= 0 per teacher, not all zero",
        ),
        "output_weights": (_are_output_weights(method), _OUTPUT_WEIGHTS),
        "task": (
            method.task in (None, "classes", "labels", "regression"),
            "None, 'classes', 'labels' or 'regression'",
        ),
        "cache": (isinstance(method.cache, bool), "True or False"),
    }
    for name in ("teacher_outputs", "student_outputs"):
        known = (None, "logits", "probabilities")
        checks[name] = (getattr(method, name) in known, f"one of {known}")
    check_arguments(method, checks)
    if method.features and not _has_layers(teachers[0]):
        raise ValueError(
            "Layers can only be named in a Keras model. Expected a teacher that is "
            "one, or a .keras or .h5 file, with `features`. "
            f"Received: teacher={teachers[0]!r}"
        )


def _is_teacher(teacher: Any) -> bool:
    return isinstance(teacher, (str, os.PathLike)) or _keras.is_model(teacher)


def _has_layers(teacher: Any) -> bool:
    if _keras.is_model(teacher):
        return True
    return os.fspath(teacher).endswith(_keras.SUFFIXES)


def _is_number(value: Any, least: float) -> bool:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and least <= float(value) < math.inf


def _are_names(features: Any, teachers: int) -> bool:
    return (
        isinstance(features, Mapping)
        and teachers == 1
        and bool(features)
        and all(isinstance(x, str) and x for pair in features.items() for x in pair)
    )


def _are_weights(weights: Any, count: int | None) -> bool:
    return (
        isinstance(weights, (list, tuple))
        and (count is None or len(weights) == count)
        and all(_is_number(weight, 0) for weight in weights)
        and any(weights)
    )


def _are_output_weights(method: Any) -> bool:
    weights = method.output_weights
    if weights is None:
        return True
    values = list(weights.values()) if isinstance(weights, Mapping) else weights
    return _are_weights(values, None) and not callable(method.distillation_loss)
