"""Knowledge distillation: a student learns from teachers while it trains."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt._keras import inference, steps, variables
from tfopt.methods._base import Method
from tfopt.methods.distill import _arguments, _outputs, _teachers
from tfopt.methods.distill._cache import Cache, static_shapes
from tfopt.methods.distill._features import Hints
from tfopt.methods.distill._lessons import Lesson, Lessons
from tfopt.methods.distill._objective import Objective
from tfopt.methods.distill._step import TrainingStep
from tfopt.methods.distill._teachers import Outputs
from tfopt.types import TfoptError

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Seen:
    """What tracing has shown; all tensors are symbolic.

    Attributes:
        lessons: The teachers, matched with the student.
        lesson: What they say.
        plans: What the outputs are.
        features: The student's.
    """

    lessons: Lessons
    lesson: Lesson
    plans: list[_outputs.OutputPlan]
    features: list[Any]


class Distill(Method):
    """Trains a model, the student, to give what a larger one, the teacher, gives.

    The loss of a training step becomes `student_loss_weight` times the model's own,
    plus the rest to one times `T² KL(teacher ‖ student)` of the outputs' probabilities
    softened by the temperature T. Penalties on weights keep their full strength.
    Sample and class weights, masks and partial batches count as in Keras's losses.

    It needs no wrapper around the student. It puts the teacher into the training step
    of whatever model `fit` trains and takes it out in the end: so the model keeps its
    own weights, loss, metrics, `train_step` and optimizer, `evaluate` and `predict`
    are the student's, files hold nothing of the teacher, and the order among other
    methods does not matter. Logs have `loss` (what is minimized), `student_loss` (the
    model's own), `distillation_loss` and, with features, `feature_loss`.

    Whether outputs are logits or probabilities is found out and stated in `report`.
    Probabilities are turned into logits; the student's, into those that its softmax
    was computed of. What an output predicts decides how it is softened: classes by
    softmax; labels that are independent of each other by the sigmoid, with the mean of
    their divergences; for regressions the loss is the mean squared difference.

    Data without labels are fine: `fit(x)` of a model compiled without a loss.

    Args:
        teacher: A built model of either Keras, or the path of a `.keras`, `.h5` or
            `.tflite` file or of a SavedModel directory; or a list of these. It takes
            the student's inputs, stays as it is, and runs in inference mode.
        temperature: T > 0. More shows more of what the teacher takes for similar.
        student_loss_weight: In [0, 1].
        distillation_loss: `"kl"`; `"mse"`, the mean squared difference of logits (Kim
            et al., 2021; of centered ones where a softmax has left their mean open);
            or a function of the teacher's and the student's outputs, in the student's
            structure, that returns one value per example, or a scalar.
        features: Layers of the student and the teacher's layers whose outputs they
            are to give as well, by name, or as `"outer/inner"`. Where the channels
            differ, a 1x1 convolution or dense layer between, which is trained beside
            the student, makes them equal. In a model prepared by `QuantizeAware`, a
            layer's features are those before its own activation.
        feature_loss_weight: Factor on their mean squared difference.
        teacher_weights: One per teacher; they are scaled to sum to one. The student
            learns the weighted mean of the teachers' softened probabilities.
        output_weights: Factor on the loss of each output of the student, in order or
            by name; outputs that are not named are not distilled. `None`: all alike.
        task: What the outputs predict: `"classes"`, `"labels"` or `"regression"`.
            `None`: found out, from the model's end and its loss.
        teacher_outputs: `"logits"` or `"probabilities"`; `None`: found out.
        student_outputs: As `teacher_outputs`.
        cache: Whether to ask the teacher but once about an example. What it says is
            kept in memory by the content of the inputs, so the order of the examples
            does not matter; those that are augmented differently each time cannot be
            kept, which is detected: a warning is given and the cache is dropped.

    Attributes:
        report: After `fit` has started: a dictionary with the `teachers`, the
            `outputs` and what was found out about each, the `loss`, the `features`
            and the size of the `cache`.

    Raises:
        ValueError: An argument is wrong.
        TfoptError: From `fit`: the teacher cannot be loaded; its inputs, outputs or
            layers do not fit the student's; it shares weights with the student; the
            model's own `train_step` leaves no place for it; or XLA is to compile what
            it cannot.

    Warns:
        UserWarning: `cache` is of no use.

    Reference:
        Hinton et al., Distilling the Knowledge in a Neural Network,
        https://arxiv.org/abs/1503.02531; Kim et al., Comparing Kullback-Leibler
        Divergence and Mean Squared Error Loss in Knowledge Distillation,
        https://arxiv.org/abs/2105.08919.

    Example:
        >>> teacher = tfopt.prepare(model, [])
        >>> distill = Distill(teacher, temperature=4.0)
        >>> history = model.fit(images, labels, callbacks=[distill], verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'distillation_loss', 'loss', 'student_loss']
        >>> distill.report["outputs"][0]["teachers"]
        ['logits']
    """

    def __init__(
        self,
        teacher: Any,
        *,
        temperature: float = 4.0,
        student_loss_weight: float = 0.1,
        distillation_loss: Literal["kl", "mse"] | Callable[[Any, Any], Any] = "kl",
        features: Mapping[str, str] | None = None,
        feature_loss_weight: float = 1.0,
        teacher_weights: Sequence[float] | None = None,
        output_weights: Sequence[float] | Mapping[str, float] | None = None,
        task: Literal["classes", "labels", "regression"] | None = None,
        teacher_outputs: Literal["logits", "probabilities"] | None = None,
        student_outputs: Literal["logits", "probabilities"] | None = None,
        cache: bool = False,
    ):
        super().__init__()
        self.teacher = teacher
        self.temperature = temperature
        self.student_loss_weight = student_loss_weight
        self.distillation_loss = distillation_loss
        self.features = features
        self.feature_loss_weight = feature_loss_weight
        self.teacher_weights = teacher_weights
        self.output_weights = output_weights
        self.task = task
        self.teacher_outputs = teacher_outputs
        self.student_outputs = student_outputs
        self.cache = cache
        self.report: dict[str, Any] = {}
        self._loaded: list[_teachers.Teacher] = []
        self._probes: list[Outputs | None] = []
        self._held = 0
        self._step: TrainingStep | None = None
        self._lessons: Lessons | None = None
        self._cache: Cache | None = None
        _arguments.check(self)

    def finalize(self, model: Any) -> Any:
        """Returns the model as it is: there is nothing of the teacher in it."""
        self._end()  # of a fit that was aborted
        return model

    def on_train_begin(self, logs: Any = None) -> None:
        """Puts the teacher into the training step.

        Raises:
            TfoptError: Teacher and student do not go together.
            ValueError: `output_weights` does not fit the student's outputs.
        """
        del logs
        self._end()
        _keras.check_model(self.model)
        self._check_compilation()
        teachers = self.teachers()
        self._check_sharing()
        hints = None
        if self.features:
            hints = Hints(self.features, self.model, teachers[0].model)
        try:
            self._step = self._prepare_step(hints)
        except BaseException:
            if hints is not None:
                hints.remove()
            raise
        _log.info("Distilling: %s", self.report)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begins the means of the losses anew."""
        del epoch, logs
        if self._step is not None:
            self._step.reset()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Checks that the cache is of use."""
        del logs
        lessons, cache = self._lessons, self._cache
        if lessons is None or cache is None or lessons.cache is None:
            return
        before, self._held = self._held, cache.size()
        self.report["cache"] = {
            "examples": self._held,
            "bytes": 4 * self._held * cache.row,
        }
        if before and self._held > 1.5 * before:
            lessons.cache = self._cache = None
            variables.retrace(self.model)
            warnings.warn(
                "Examples differ from epoch to epoch, so that the teacher's answers "
                "cannot be kept; the cache is dropped. Expected cache=False for "
                f"augmented data. Received: cache=True with {self._held - before} new "
                f"examples in epoch {epoch}, after {before}",
                UserWarning,
                stacklevel=2,
            )

    def on_train_end(self, logs: Any = None) -> None:
        """Takes the teacher out of the training step."""
        del logs
        self._end()

    def predictions(self, inputs: Any, *, batch_size: int = 256) -> dict[str, Any]:
        """Returns what the teachers give, to measure them.

        Args:
            inputs: An array with the examples along its first axis, or a dictionary
                of such arrays by input name.
            batch_size: Examples that are run at a time.

        Returns:
            By teacher, as reports call it: its outputs, in order.

        Raises:
            TfoptError: A teacher cannot be loaded, or has other inputs.
        """
        count = len(tf.nest.flatten(inputs)[0])
        found = {}
        for teacher in self.teachers():
            parts = []
            for start in range(0, count, batch_size):
                batch = tf.nest.map_structure(
                    lambda x, cut=slice(start, start + batch_size): tf.constant(x[cut]),
                    inputs,
                )
                parts.append([np.asarray(x) for x in teacher(batch, ()).tensors])
            outputs = zip(*parts, strict=True)
            found[teacher.label] = [np.concatenate(each) for each in outputs]
        return found

    def teachers(self) -> list[Any]:
        """Returns the teachers as functions; loads them when first called.

        Each has a `label`, and is called with inputs and their names.

        Raises:
            TfoptError: One cannot be loaded.
        """
        if not self._loaded:
            self._loaded = [
                _teachers.load(each) for each in _arguments.teachers_of(self.teacher)
            ]
        return self._loaded

    def _prepare_step(self, hints: Hints | None) -> TrainingStep:
        model, teachers = self.model, self.teachers()
        seen = self._look(hints)
        rows = []
        if hints is not None:
            with model.distribute_strategy.scope():
                rows = hints.build(seen.features, seen.lesson.features)
        if self.cache:
            shapes = static_shapes(seen.lesson.tensors)
            if self._cache is None or not self._cache.fits(shapes):
                self._cache = Cache(shapes)
            seen.lessons.cache = self._cache
        self._lessons = seen.lessons
        self._held = self._cache.size() if self._cache else 0
        self.report = {
            "teachers": [teacher.label for teacher in teachers],
            "outputs": [plan.as_dict() for plan in seen.plans],
            "loss": self._loss_in_words(seen.plans),
            "features": rows,
            "cache": None,
        }
        objective = Objective(
            seen.plans,
            self.distillation_loss,
            self.temperature,
            self._weights(),
            [teacher.floor for teacher in teachers],
            seen.lessons.student.names,
        )
        return TrainingStep(
            model,
            seen.lessons,
            objective,
            hints,
            student_loss_weight=self.student_loss_weight,
            feature_loss_weight=self.feature_loss_weight,
        )

    def _look(self, hints: Hints | None) -> _Seen:
        """Traces student and teachers, which shows shapes and operations."""
        call = inference.inference_call(self.model)
        found: list[_Seen] = []

        @tf.autograph.experimental.do_not_convert
        def look(*arguments: Any) -> None:
            taps = hints.student_taps if hints else None
            with steps.listening(taps) as features:
                outputs = call.function(*arguments)
            student = Outputs.of(outputs, call.output_names)
            chosen = _outputs.weights_of(
                self.output_weights, student.names, len(student.tensors)
            )
            lessons = Lessons(
                self.teachers(), student, list(chosen), call.input_names, hints
            )
            lesson = lessons(arguments[0] if len(arguments) == 1 else arguments)
            lessons.form = lesson
            plans = self._plans(student, chosen, lesson.outputs)
            own = hints.of_student(features) if hints else []
            found.append(_Seen(lessons, lesson, plans, own))

        tf.function(look).get_concrete_function(*call.arguments)
        return found[-1]

    def _plans(
        self,
        student: Outputs,
        chosen: Mapping[int, float],
        lessons: Sequence[Sequence[Any]],
    ) -> list[_outputs.OutputPlan]:
        """Finds out about the outputs, from symbolic tensors."""
        plans = []
        for position, (index, weight) in enumerate(chosen.items()):
            tensor = student.tensors[index]
            name = student.names[index] if student.names else str(index)
            others = [outputs[position] for outputs in lessons]
            if not callable(self.distillation_loss):
                for teacher, other in zip(self.teachers(), others, strict=True):
                    _outputs.check_shapes(name, tensor, other, teacher.label)
            own = _outputs.ending(tensor)
            forms = [
                _outputs.ending(other).form
                or self._probed_form(number, student, list(chosen), position)
                for number, other in enumerate(others)
            ]
            form = own.form or self._student_form(index)
            task, reason = _outputs.find_task(
                asked=self.task,
                loss=_outputs.loss_of(self.model.loss, index, name),
                student=form,
                teachers=forms,
                units=tensor.shape[-1],
            )
            plans.append(
                _outputs.OutputPlan(
                    index=index,
                    name=name,
                    weight=weight,
                    task=task,
                    reason=reason,
                    student=_form(self.student_outputs, form, task),
                    teachers=tuple(
                        _form(self.teacher_outputs, each, task) for each in forms
                    ),
                    is_rounded=own.is_rounded,
                )
            )
        return plans

    def _probed_form(
        self, number: int, student: Outputs, wanted: Sequence[int], position: int
    ) -> Any:
        """Returns the form of a distilled output of a teacher, as values show it."""
        while len(self._probes) <= number:
            self._probes.append(_teachers.probe(self.teachers()[len(self._probes)]))
        probe = self._probes[number]
        return probe and student.matched(probe, wanted)[position]

    def _student_form(self, index: int) -> Any:
        probe = _teachers.probe(_teachers.KerasTeacher(self.model))
        return probe and probe.tensors[index]

    def _weights(self) -> list[float]:
        count = len(_arguments.teachers_of(self.teacher))
        weights = self.teacher_weights or [1.0] * count
        return [float(weight) / sum(weights) for weight in weights]

    def _loss_in_words(self, plans: Sequence[_outputs.OutputPlan]) -> str:
        if callable(self.distillation_loss):
            loss = getattr(self.distillation_loss, "__name__", "the user's")
        elif all(plan.task == "regression" for plan in plans):
            loss = "mean squared difference of the outputs"
        elif self.distillation_loss == "mse":
            loss = "mean squared difference of logits"
        else:
            loss = f"T² KL at temperature T = {self.temperature:g}"
        own, rest = self.student_loss_weight, 1 - self.student_loss_weight
        return f"{own:g} * own loss + {rest:g} * {loss}" + (
            f" + {self.feature_loss_weight:g} * features" if self.features else ""
        )

    def _end(self) -> None:
        if self._step is not None:
            self._step.remove()
        self._step = self._lessons = None

    def _check_compilation(self) -> None:
        if not getattr(self.model, "jit_compile", False):
            return
        outside = [t.label for t in self.teachers() if not t.is_compilable]
        if outside or self.cache:
            raise TfoptError(
                "XLA cannot compile a training step that asks a .tflite teacher or a "
                "cache. Expected `compile(..., jit_compile=False)`, or a Keras teacher "
                "and cache=False. Received: jit_compile=True with "
                f"teachers {outside}, cache={self.cache}"
            )

    def _check_sharing(self) -> None:
        own = {id(variable) for variable in self.model.variables}
        for teacher in self.teachers():
            if own & {id(variable) for variable in teacher.variables}:
                raise TfoptError(
                    "The teacher shares weights with the student, so it would change "
                    "in training. Expected another model: train the copy that "
                    "`tfopt.prepare(model, methods)` returns. "
                    f"Received: teacher={teacher.label}"
                )


def _form(asked: str | None, found: str | None, task: str) -> Any:
    if asked == "probabilities":
        return "softmax" if task == "classes" else "sigmoid"
    return asked or found or "logits"
