"""What the teachers of a distillation are, and how good."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from tfopt import report
from tfopt.data import Split
from tfopt.methods._base import Method
from tfopt.methods.distill import Distill


@dataclasses.dataclass(frozen=True)
class Taught:
    """A teacher.

    Attributes:
        teacher: Its name or path, and what it is.
        accuracy: On the test examples; None where labels are no classes.
    """

    teacher: str
    accuracy: float | None

    def __str__(self) -> str:
        if self.accuracy is None:
            return f"teacher {self.teacher}"
        return f"teacher {self.teacher}, accuracy {self.accuracy:.4f}"


def measure(methods: Sequence[Method], test: Split) -> list[Taught]:
    """Returns the teachers of all methods, with their accuracy on test examples."""
    distilling = [method for method in methods if isinstance(method, Distill)]
    if not distilling:
        return []
    inputs, labels = test.arrays()
    return [
        Taught(name, _accuracy(outputs, labels))
        for method in distilling
        for name, outputs in method.predictions(inputs).items()
    ]


def _accuracy(outputs: Sequence[np.ndarray], labels: object) -> float | None:
    if len(outputs) != 1 or not isinstance(labels, np.ndarray):
        return None
    try:
        return report.accuracy(outputs[0], labels)
    except ValueError:  # no classes
        return None
