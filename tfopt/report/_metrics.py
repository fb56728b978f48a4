"""How good a model is: metrics of its outputs, in NumPy."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from tfopt.types import TfoptError

_PROBABILITY_SLACK = 0.05
_TOP_K = re.compile(r"top_(\d+)")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric by name.

    Attributes:
        name: What reports call it.
        function: (outputs, labels) -> a number, as NumPy arrays with one row for each
            example.
        better: Which end is the good one; "" if that is not known.
        format: How it is printed.
    """

    name: str
    function: Callable[[np.ndarray, np.ndarray], float]
    better: Literal["", "higher", "lower"]
    format: str


def find_metric(metric: str | Callable[[np.ndarray, np.ndarray], float]) -> Metric:
    """Returns a metric.

    Args:
        metric: `"accuracy"`, `"top_5"` (any number), `"auc"`, `"f1"`, `"mse"`, `"mae"`,
            `"cosine"` or `"mean_iou"`; a function (outputs, labels) -> number; or
            `"module:function"`, the name of one.

    Raises:
        ValueError: There is no such metric.
        TfoptError: The module or function cannot be found.

    Example:
        >>> find_metric("mae").function(np.zeros([2, 1]), np.ones([2, 1]))
        1.0
    """
    if callable(metric):
        return Metric(getattr(metric, "__name__", "metric"), metric, "", "")
    if metric in _METRICS:
        function, better, form = _METRICS[metric]
        return Metric(metric, function, better, form)
    top = _TOP_K.fullmatch(metric)
    if top and int(top[1]) > 0:
        function = functools.partial(top_k_accuracy, k=int(top[1]))
        return Metric(metric, function, "higher", ".2%")
    module, colon, name = metric.rpartition(":")
    if not (colon and module and name.isidentifier()):
        raise ValueError(
            f"No such metric. Expected one of {', '.join(_METRICS)}, top_5, or "
            f"module:function. Received: metric={metric!r}"
        )
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise TfoptError(
            "Cannot find the metric. Expected module:function of an importable module. "
            f"Received: metric={metric!r} ({error})"
        ) from error
    return Metric(name, function, "", "")


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the fraction of examples whose largest output is at the label.

    Args:
        outputs: Logits or probabilities [n, classes], of any real type, quantized
            ones included. Equal largest outputs count as the first of them, and an
            example with a NaN as wrong.
        labels: Class indices, integers [n] or [n, 1].

    Raises:
        ValueError: The shapes or types are others.

    Example:
        >>> accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
        0.5
    """
    outputs, labels = np.asarray(outputs), np.asarray(labels)
    if outputs.ndim != 2 or outputs.shape[1] < 2 or len(outputs) == 0:
        raise ValueError(
            "Expected outputs [n, classes], n >= 1 and at least two classes. "
            f"Received: outputs.shape={outputs.shape}"
        )
    if labels.shape == (len(outputs), 1):
        labels = labels[:, 0]
    if labels.shape != (len(outputs),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"Expected integer labels, shape {(len(outputs),)}. "
            f"Received: labels.shape={labels.shape}, labels.dtype={labels.dtype}"
        )
    right = outputs.argmax(axis=1) == labels
    return float((right & ~_has_nan(outputs)).mean())


def class_accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Returns `accuracy`, of outputs and labels in any form that `as_classes` takes."""
    outputs, classes = as_classes(outputs, labels)
    return accuracy(outputs, classes)


def top_k_accuracy(outputs: np.ndarray, labels: np.ndarray, *, k: int) -> float:
    """Returns the fraction of examples whose label is among the k largest outputs.

    Of equal outputs the first ones are taken, as `accuracy` does.

    Args:
        outputs: See `as_classes`.
        labels: See `as_classes`.
        k: How many.

    Example:
        >>> top_k_accuracy(np.array([[0.5, 0.3, 0.2]]), np.array([1]), k=2)
        1.0
    """
    outputs, classes = as_classes(outputs, labels)
    if not 1 <= k < outputs.shape[1]:
        raise ValueError(
            f"Expected a number below that of the {outputs.shape[1]} classes. "
            f"Received: top_{k}"
        )
    own = np.take_along_axis(outputs, classes[:, None], axis=1)
    before = np.arange(outputs.shape[1]) < classes[:, None]
    rank = ((outputs > own) | ((outputs == own) & before)).sum(axis=1)
    return float(((rank < k) & ~_has_nan(outputs)).mean())


def auc(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the area under the ROC curve; of several classes the mean over them.

    By the Mann-Whitney statistic with midranks for ties: the probability that a random
    positive example scores above a random negative one, ties counting half (Hanley and
    McNeil, "The meaning and use of the area under a ROC curve", 1982). Several classes:
    each against the rest, those that occur, with equal weight.

    Args:
        outputs: See `as_classes`.
        labels: See `as_classes`.

    Raises:
        ValueError: All labels are the same, or an output is NaN.

    Example:
        >>> auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
        0.75
    """
    outputs, classes = as_classes(outputs, labels)
    if _has_nan(outputs).any():
        raise ValueError("Expected numbers, which can be ordered. Received: NaN")
    scores = outputs
    wanted = range(outputs.shape[1])
    if outputs.shape[1] == 2:
        wanted = range(1, 2)
        if not _are_probabilities(outputs):  # logits say something as a difference
            scores = outputs - outputs[:, :1].astype(np.float64)
    areas = []
    for index in wanted:
        positive = classes == index
        count = int(positive.sum())
        if 0 < count < len(classes):
            ranks = _midranks(scores[:, index])
            above = ranks[positive].sum() - count * (count + 1) / 2
            areas.append(above / (count * (len(classes) - count)))
    if not areas:
        raise ValueError(
            "Expected labels of more than one class. "
            f"Received: only {sorted(set(classes.tolist()))}"
        )
    return float(np.mean(areas))


def f1(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the F1 score: of class 1 of two, or the mean over several classes.

    2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall (van Rijsbergen,
    "Information Retrieval", 1979); the mean is over classes that occur among labels or
    predictions.

    Args:
        outputs: See `as_classes`.
        labels: See `as_classes`.

    Example:
        >>> f1(np.array([[0.1, 0.9], [0.2, 0.8]]), np.array([1, 0]))
        0.6666666666666666
    """
    outputs, classes = as_classes(outputs, labels)
    both, predicted, actual = _confusion(outputs, classes)
    total = predicted + actual
    if outputs.shape[1] == 2:
        return float(2 * both[1] / total[1]) if total[1] else 0.0
    return float(np.mean(2 * both[total > 0] / total[total > 0]))


def mean_iou(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over classes of intersection over union, as Keras's `MeanIoU`.

    TP / (TP + FP + FN), counted over all pixels of all examples; the mean is over
    classes that occur among labels or predictions.

    Args:
        outputs: See `as_classes`; mostly [n, height, width, classes].
        labels: See `as_classes`; mostly [n, height, width].

    Example:
        >>> mean_iou(np.array([[0.1, 0.9], [0.2, 0.8]]), np.array([1, 0]))
        0.25
    """
    outputs, classes = as_classes(outputs, labels)
    both, predicted, actual = _confusion(outputs, classes)
    union = predicted + actual - both
    return float(np.mean(both[union > 0] / union[union > 0]))


def mse(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean squared difference.

    Args:
        outputs: Numbers [n, ...].
        labels: Numbers of the same shape; axes of size 1 at the end may lack.

    Example:
        >>> mse(np.array([[1.0], [3.0]]), np.array([0.0, 0.0]))
        5.0
    """
    outputs, labels = _same_shape(outputs, labels)
    return float(np.mean((outputs - labels) ** 2))


def mae(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean absolute difference; see `mse`."""
    outputs, labels = _same_shape(outputs, labels)
    return float(np.mean(np.abs(outputs - labels)))


def cosine(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over examples of the cosine of outputs and labels.

    An example whose outputs or labels are all 0 counts as 0.

    Args:
        outputs: Numbers [n, ...].
        labels: Numbers of the same shape.

    Example:
        >>> cosine(np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]]))
        0.7071067811865475
    """
    outputs, labels = _same_shape(outputs, labels)
    outputs, labels = (item.reshape(len(item), -1) for item in (outputs, labels))
    product = (outputs * labels).sum(axis=1)
    length = np.linalg.norm(outputs, axis=1) * np.linalg.norm(labels, axis=1)
    return float(np.mean(np.divide(product, length, where=length > 0, out=product * 0)))


def as_classes(
    outputs: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Brings what classifiers give, and labels, into one form.

    Args:
        outputs: [n, ..., classes], for whole examples, pixels or tokens; or the
            probability of class 1, [n] or [n, 1].
        labels: Class indices [n, ...], with or without an axis of size 1 at the end;
            integers, or floats with integer values; or one-hot [n, ..., classes].

    Returns:
        Outputs [m, classes] and int64 labels [m].

    Raises:
        ValueError: They don't belong together, or a label is no class.
    """
    outputs, labels = np.asarray(outputs), np.asarray(labels)
    if outputs.ndim == 1 or (outputs.ndim == 2 and outputs.shape[1] == 1):
        probability = outputs.reshape(-1).astype(np.float64)
        if np.any((probability < 0) | (probability > 1)):
            raise ValueError(
                "A single output per example has to be the probability of class 1. "
                "Expected values within 0 and 1. Received: outputs from "
                f"{probability.min():g} to {probability.max():g}"
            )
        outputs = np.stack([1 - probability, probability], axis=1)
    if labels.shape == outputs.shape and _is_one_hot(labels):
        labels = labels.argmax(axis=-1)
    if labels.ndim == outputs.ndim and labels.shape[-1] == 1:
        labels = labels[..., 0]
    if labels.shape != outputs.shape[:-1] or outputs.shape[-1] < 2 or not labels.size:
        raise ValueError(
            "Outputs and labels don't belong together. Expected outputs "
            "[n, ..., classes] and labels [n, ...], at least one. "
            f"Received: {list(outputs.shape)} and {list(labels.shape)}"
        )
    classes = labels.astype(np.int64).reshape(-1)
    wrong = (labels.reshape(-1) != classes) | (classes < 0)
    wrong |= classes >= outputs.shape[-1]
    if wrong.any():
        raise ValueError(
            f"Expected labels from 0 to {outputs.shape[-1] - 1}, whole numbers. "
            f"Received: {labels.reshape(-1)[wrong][0]}"
        )
    return outputs.reshape(-1, outputs.shape[-1]), classes


def _confusion(
    outputs: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns true positives, predictions and labels of each class, as counts."""
    number = outputs.shape[1]
    predicted = outputs.argmax(axis=1)
    right = predicted == classes
    return (
        np.bincount(classes[right], minlength=number),
        np.bincount(predicted, minlength=number),
        np.bincount(classes, minlength=number),
    )


def _midranks(values: np.ndarray) -> np.ndarray:
    """Returns ranks from 1 on; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse.reshape(-1)]


def _same_shape(
    outputs: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    outputs = np.asarray(outputs, np.float64)
    labels = np.asarray(labels, np.float64)
    trimmed = [item.shape for item in (outputs, labels)]
    for index, shape in enumerate(trimmed):
        while len(shape) > 1 and shape[-1] == 1:
            shape = shape[:-1]
        trimmed[index] = shape
    if trimmed[0] != trimmed[1] or not outputs.size:
        raise ValueError(
            "Expected outputs and labels of the same shape. "
            f"Received: {list(outputs.shape)} and {list(labels.shape)}"
        )
    return outputs.reshape(trimmed[0]), labels.reshape(trimmed[0])


def _is_one_hot(labels: np.ndarray) -> bool:
    is_zero_or_one = bool(np.all((labels == 0) | (labels == 1)))
    return is_zero_or_one and bool(np.all(labels.sum(axis=-1) == 1))


def _are_probabilities(outputs: np.ndarray) -> bool:
    # Quantized ones don't add up to 1 exactly.
    sums = outputs.sum(axis=1, dtype=np.float64)
    return bool(np.all(outputs >= 0) and np.all(np.abs(sums - 1) < _PROBABILITY_SLACK))


def _has_nan(outputs: np.ndarray) -> np.ndarray:
    if not np.issubdtype(outputs.dtype, np.inexact):
        return np.zeros(len(outputs), bool)
    return np.isnan(outputs).any(axis=1)


_METRICS: dict[str, tuple[Any, Any, str]] = {
    "accuracy": (class_accuracy, "higher", ".2%"),
    "auc": (auc, "higher", ".4f"),
    "f1": (f1, "higher", ".4f"),
    "mse": (mse, "lower", ".4g"),
    "mae": (mae, "lower", ".4g"),
    "cosine": (cosine, "higher", ".5f"),
    "mean_iou": (mean_iou, "higher", ".4f"),
}
