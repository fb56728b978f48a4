"""What each output of student and teachers is: classes, labels, or a regression."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfopt.methods.distill._losses import Form, Task
from tfopt.types import TfoptError

# Operations that leave predictions what they are, and which of their inputs that is.
_PASSING = {
    "Identity": 0,
    "Cast": 0,
    "FakeQuantWithMinMaxVars": 0,
    "FakeQuantWithMinMaxArgs": 0,
    "SelectV2": 1,
}
_PROBABILITIES: dict[str, Form] = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
# What logits come from; other operations may compute probabilities their own way.
_LINEAR = frozenset(
    {"BiasAdd", "MatMul", "BatchMatMulV2", "AddV2", "Add", "Einsum", "Conv2D"}
)
_REGRESSION = (
    *("meansquared", "meanabsolute", "mse", "mae", "msle", "mape", "huber"),
    *("logcosh", "poisson", "cosine"),
)


@dataclasses.dataclass(frozen=True)
class OutputPlan:
    """How one output is distilled.

    Attributes:
        index: Position among the student's outputs.
        name: Its name, or its position.
        weight: Factor on its loss.
        task: What its values say.
        reason: How that was found.
        student: How the student gives its predictions.
        teachers: How each teacher does.
        is_rounded: Whether the student's are fake-quantized.
    """

    index: int
    name: str
    weight: float
    task: Task
    reason: str
    student: Form
    teachers: tuple[Form, ...]
    is_rounded: bool

    def as_dict(self) -> dict[str, Any]:
        """Returns the row of the report."""
        return {
            "output": self.name,
            "weight": self.weight,
            "task": f"{self.task} ({self.reason})",
            "student": _in_words(self.student),
            "teachers": [_in_words(form) for form in self.teachers],
        }


@dataclasses.dataclass(frozen=True)
class Ending:
    """How an output comes about, as its operations show.

    Attributes:
        form: Of its values; None where the operations don't tell.
        is_rounded: Whether there is fake quantization behind.
    """

    form: Form | None
    is_rounded: bool


def ending(tensor: Any) -> Ending:
    """Reads an ending from a tensor of a graph that is being traced."""
    op, rounded = _last_operation(tensor)
    form = _PROBABILITIES.get(op.type)
    if form is None and op.type in _LINEAR:
        form = "logits"
    return Ending(form, rounded)


def logits_behind(tensor: Any, form: Form) -> Any | None:
    """Returns what a softmax or sigmoid was computed of, or None.

    Exact where probabilities are rounded or vanish. In eager mode there are no
    operations to look at.
    """
    if tf.executing_eagerly():
        return None
    op, _ = _last_operation(tensor)
    return op.inputs[0] if _PROBABILITIES.get(op.type) == form else None


def _last_operation(tensor: Any) -> tuple[Any, bool]:
    op, rounded = tensor.op, False
    while op.type in _PASSING:
        rounded |= op.type.startswith("FakeQuant")
        op = op.inputs[_PASSING[op.type]].op
    return op, rounded


def find_task(
    *,
    asked: Task | None,
    loss: Any,
    student: Form | None,
    teachers: Sequence[Form | None],
    units: int | None,
) -> tuple[Task, str]:
    """Returns what an output predicts, and how that was found.

    Args:
        asked: What the user says.
        loss: The compiled loss of the output.
        student: Form of the student's predictions, as far as known.
        teachers: Those of the teachers'.
        units: Size of the last axis.
    """
    if asked is not None:
        return asked, "as asked"
    name = _loss_name(loss)
    if student == "softmax":
        return "classes", "the student ends in softmax"
    if any(part in name for part in _REGRESSION):
        return "regression", f"the loss is {name}"
    if student == "sigmoid":
        return "labels", "the student ends in sigmoid"
    if "categorical" in name or name == "kldivergence":
        return "classes", f"the loss is {name}"
    if "binary" in name:
        return "labels", f"the loss is {name}"
    if "softmax" in teachers:
        return "classes", "a teacher ends in softmax"
    if "sigmoid" in teachers:
        return "labels", "a teacher ends in sigmoid"
    if units == 1:
        return "regression", "assumed of a single unit without softmax or sigmoid"
    return "classes", "assumed of several units"


def loss_of(loss: Any, index: int, name: str | None) -> Any:
    """Returns an output's part of what `compile` was given."""
    if isinstance(loss, Mapping):
        return loss.get(name)
    if isinstance(loss, (list, tuple)):
        return loss[index] if index < len(loss) else None
    return loss


def weights_of(
    weights: Any, names: Sequence[str] | None, count: int
) -> dict[int, float]:
    """Returns the factor of each output that is distilled, by position.

    Raises:
        ValueError: `weights` names an output that isn't there.
    """
    if weights is None:
        return {index: 1.0 for index in range(count)}
    if isinstance(weights, Mapping):
        unknown = sorted(set(weights) - set(names or ()))
        if unknown:
            raise ValueError(
                "`output_weights` names outputs that the student has not. Expected "
                f"some of {list(names or ())}. Received: output_weights={weights!r}"
            )
        pairs = [(list(names or ()).index(name), w) for name, w in weights.items()]
    else:
        if len(weights) != count:
            raise ValueError(
                f"`output_weights` must have a number for each of the {count} outputs. "
                f"Received: output_weights={weights!r}"
            )
        pairs = list(enumerate(weights))
    return {index: float(weight) for index, weight in sorted(pairs) if weight}


def check_shapes(name: str, student: Any, teacher: Any, label: str) -> None:
    """Raises unless two outputs may be compared.

    Raises:
        TfoptError: Their ranks or sizes differ.
    """
    if not student.shape.is_compatible_with(teacher.shape):
        raise TfoptError(
            f"The output {name!r} of the teacher has another shape than the student's. "
            f"Expected {student.shape}. Received: {teacher.shape} of teacher={label}"
        )


def _loss_name(loss: Any) -> str:
    """Returns `categoricalcrossentropy` for a loss or for any name of it."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", "")
    name = name or (type(loss).__name__ if loss is not None else "")
    return name.replace("_", "").lower()


def _in_words(form: Form) -> str:
    return "logits" if form == "logits" else f"probabilities ({form})"
