"""The task: the model, the examples in their parts, and how quality is measured."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfopt import data as datasets
from tfopt.comparison import _examples
from tfopt.comparison._examples import Examples
from tfopt.report import find_metric
from tfopt.types import TfoptError

Metric = str | Callable[[Any, Any], float] | None

# Metrics that compare with the original model and need no labels; which end is good.
AGREEMENT = {
    "argmax_agreement": True,
    "mean_difference": False,
    "max_difference": False,
}
_CALIBRATION_EXAMPLES = 256


@dataclasses.dataclass(frozen=True)
class Quality:
    """How good a candidate is.

    Attributes:
        name: Name of the metric.
        metric: What `tfopt.compare` takes; None where the original's outputs are what
            should come out.
        higher_is_better: Whether a higher value is better.
    """

    name: str
    metric: Any
    higher_is_better: bool

    def drop(self, baseline: float, value: float) -> float:
        """Returns by how much a value is worse than the baseline."""
        return baseline - value if self.higher_is_better else value - baseline


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be optimized, on what.

    Attributes:
        model: As `_models.open_model` returns it.
        train: Training examples, with the searched ones as their test part; None if
            there are none.
        calibration: Typical inputs.
        search: Examples that candidates are measured on.
        holdout: Other examples, that only the chosen ones are measured on.
        quality: How.
        chance: What a model that knows nothing reaches; None if that is unknown.
    """

    model: Any
    train: datasets.Data | None
    calibration: Any
    search: Examples
    holdout: Examples
    quality: Quality
    chance: float | None

    def fingerprint(self, baseline: bytes) -> str:
        """Identifies model and examples, so that trials of others are not taken over.

        Args:
            baseline: The model as an unquantized file.
        """
        digest = hashlib.sha256(baseline)
        for part in (self.search, self.holdout):
            for value in (*part.inputs.values(), *_leaves(part.labels)):
                digest.update(np.ascontiguousarray(value).tobytes())
        for value in _leaves(self.calibration):
            digest.update(np.ascontiguousarray(value).tobytes())
        if self.train is not None and isinstance(self.train.train.source, tuple):
            for value in self.train.train.source:
                for leaf in _leaves(value):
                    digest.update(np.ascontiguousarray(leaf).tobytes())
        digest.update(self.quality.name.encode())
        return digest.hexdigest()[:16]


def pose(
    model: Any,
    data: Any,
    *,
    metric: Metric,
    higher_is_better: bool | None,
    seed: int,
) -> Problem:
    """Divides the examples and finds out how to measure.

    Examples to measure on are divided at random into halves: candidates are compared
    on one, and what is chosen has to prove itself on the other. Training examples all
    serve for training and calibration.

    Args:
        model: As `_models.open_model` returns it.
        data: As for `tfopt.optimize`.
        metric: Likewise.
        higher_is_better: Likewise.
        seed: Of the division.

    Raises:
        ValueError: There is no such metric, or it needs labels.
        TfoptError: The data cannot be read, or holds fewer than two examples.
    """
    loaded = load(data)
    train = loaded if isinstance(loaded, datasets.Data) else None
    examples = _examples.load(loaded)
    if len(examples) < 2:
        raise TfoptError(
            "Expected at least two examples, one to search on and one to prove the "
            f"choice on. Received: data with {len(examples)}"
        )
    order = np.random.default_rng(seed).permutation(len(examples))
    half = (len(order) + 1) // 2
    search, holdout = (
        _part(examples, np.sort(rows)) for rows in (order[:half], order[half:])
    )
    if train is not None:
        split = datasets.Split((single(search.inputs), search.labels), "search")
        train = datasets.Data(train=train.train, test=split)
        calibration, _ = next(train.train.batches(batch_size=_CALIBRATION_EXAMPLES))
    else:
        calibration = single(
            {key: x[:_CALIBRATION_EXAMPLES] for key, x in search.inputs.items()}
        )
    quality = _quality(metric, higher_is_better, examples.labels)
    return Problem(
        model=model,
        train=train,
        calibration=calibration,
        search=search,
        holdout=holdout,
        quality=quality,
        chance=_chance(quality, search.labels),
    )


def load(data: Any) -> Any:
    """Loads a data spec: both parts if it has training examples with labels.

    Args:
        data: A spec; anything else is returned as it is.

    Raises:
        TfoptError: It cannot be read.
    """
    if not isinstance(data, str) and not hasattr(data, "__fspath__"):
        return data
    text = str(data)
    if not text.endswith(".npz"):
        return datasets.load_data(text)
    if datasets.has_training_part(text):
        return datasets.load_data(text)
    return datasets.load_examples(text)


def _quality(metric: Metric, higher: bool | None, labels: Any) -> Quality:
    if isinstance(metric, str) and metric in AGREEMENT:
        return Quality(metric, None, AGREEMENT[metric])
    if metric is None and labels is None:
        return Quality("mean_difference", None, False)
    if metric is None and _are_classes(labels):
        metric = "accuracy"
    if metric is None:
        raise ValueError(
            "The labels are no classes, so the metric has to be named. Expected "
            f"accuracy, mae, ..., a function, or one of {list(AGREEMENT)}, which "
            "compare with the original. Received: metric=None"
        )
    if labels is None:
        raise ValueError(
            f"This metric needs labels. Expected data with labels, or one of "
            f"{list(AGREEMENT)}. Received: metric={metric!r}"
        )
    found = find_metric(metric)
    if higher is None:
        if not found.better:
            raise ValueError(
                "Of a metric of your own it has to be said which end is the good one. "
                "Expected `higher_is_better`. Received: higher_is_better=None for "
                f"{found.name}"
            )
        higher = found.better == "higher"
    return Quality(found.name, metric, higher)


def _are_classes(labels: Any) -> bool:
    if not isinstance(labels, np.ndarray):
        return False
    if np.issubdtype(labels.dtype, np.integer):
        return True
    one_hot = labels.ndim > 1 and labels.shape[-1] > 1
    return bool(
        one_hot and np.isin(labels, (0, 1)).all() and (labels.sum(-1) == 1).all()
    )


def _chance(quality: Quality, labels: Any) -> float | None:
    """The share of the most frequent class, which a constant answer reaches."""
    if quality.name != "accuracy" or not isinstance(labels, np.ndarray):
        return None
    one_hot = labels.ndim > 1 and labels.shape[-1] > 1
    classes = labels.argmax(-1) if one_hot else labels
    _, counts = np.unique(classes, return_counts=True)
    return float(counts.max() / counts.sum())


def _part(examples: Examples, rows: np.ndarray) -> Examples:
    inputs = {name: array[rows] for name, array in examples.inputs.items()}
    labels: Any = examples.labels
    if isinstance(labels, Mapping):
        labels = {name: array[rows] for name, array in labels.items()}
    elif labels is not None:
        labels = labels[rows]
    return Examples(inputs, labels)


def single(inputs: Mapping[str, np.ndarray]) -> Any:
    """Returns inputs as callers give them: an only one without a name is an array."""
    return inputs[""] if list(inputs) == [""] else dict(inputs)


def _leaves(value: Any) -> list[np.ndarray]:
    if value is None:
        return []
    return list(value.values()) if isinstance(value, Mapping) else [value]
