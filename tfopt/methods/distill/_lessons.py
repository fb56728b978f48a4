"""What teachers say about a batch: outputs and features, asked for or remembered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfopt._keras import steps
from tfopt.methods.distill._cache import Cache
from tfopt.methods.distill._features import Hints
from tfopt.methods.distill._teachers import Outputs, Teacher


@dataclasses.dataclass(frozen=True)
class Lesson:
    """Of one batch.

    Attributes:
        outputs: By teacher and, within, by distilled output.
        features: Of the teacher's layers; empty without hints.
    """

    outputs: list[list[Any]]
    features: list[Any]

    @property
    def tensors(self) -> list[Any]:
        """All of them."""
        return [x for each in self.outputs for x in each] + self.features

    def with_tensors(self, tensors: Sequence[Any]) -> Lesson:
        """Returns the lesson that `tensors` gives for another one of this form."""
        found = iter(tensors)
        return Lesson(
            [[next(found) for _ in each] for each in self.outputs], list(found)
        )


@dataclasses.dataclass
class Lessons:
    """Asks the teachers.

    Attributes:
        teachers: The teachers.
        student: Symbolic outputs of the student, to match the teachers' with.
        wanted: Positions of the outputs that are distilled.
        input_names: Names of the student's inputs.
        hints: The teacher's features, if any.
        cache: Where answers are kept, if anywhere.
        form: A symbolic lesson.
    """

    teachers: Sequence[Teacher]
    student: Outputs
    wanted: Sequence[int]
    input_names: Sequence[str | None]
    hints: Hints | None = None
    cache: Cache | None = None
    form: Lesson | None = None

    def __call__(self, x: Any) -> Lesson:
        """Returns the lesson on a batch of inputs."""
        if self.cache is None or self.form is None:
            return self._ask(x)
        tensors = self.cache(
            x, lambda: [tf.cast(t, tf.float32) for t in self._ask(x).tensors]
        )
        return self.form.with_tensors(tensors)

    def _ask(self, x: Any) -> Lesson:
        taps = None if self.hints is None else self.hints.teacher_taps
        with steps.listening(taps) as found:
            outputs = [teacher(x, self.input_names) for teacher in self.teachers]
        return Lesson(
            [self.student.matched(each, self.wanted) for each in outputs],
            [] if self.hints is None else self.hints.of_teacher(found),
        )
