"""What a model is trained for: its loss and metrics, given or found out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfopt import _keras
from tfopt.data import Arrays
from tfopt.types import TfoptError


@dataclasses.dataclass(frozen=True)
class Objective:
    """Loss and metrics for `compile`.

    Attributes:
        loss: A Keras loss, or its name.
        metrics: Names of metrics.
        note: How they were found, for the report.
    """

    loss: Any
    metrics: tuple[str, ...]
    note: str


def find(
    model: Any, labels: Arrays, *, loss: str | None, metrics: Sequence[str] | None
) -> Objective:
    """Returns the given loss, or the one that model and labels call for.

    Integer labels and several outputs mean classes, one output with labels 0 and 1 a
    binary decision, everything else regression. Whether the model ends in logits is
    read from its last activation.

    Args:
        model: Built model with one output.
        labels: The training labels.
        loss: Name of a Keras loss, with the model's outputs as its predictions. By
            default as above.
        metrics: Names of Keras metrics, by default accuracy for classes.

    Raises:
        TfoptError: Keras has no such loss, or a model with several outputs comes
            without one.
    """
    keras = _keras.module_of(model)
    if loss is not None:
        found = _named(keras, loss)
        chosen = _default_metrics(loss) if metrics is None else tuple(metrics)
        return Objective(found, chosen, f"loss {loss}, as given")
    if isinstance(labels, dict) or len(model.outputs or [None]) > 1:
        raise TfoptError(
            "A model with several outputs has no default loss. Expected `loss`. "
            f"Received: loss=None, outputs={[str(o) for o in model.outputs]}"
        )
    return _inferred(keras, model, labels, metrics)


def _inferred(
    keras: Any, model: Any, labels: np.ndarray, metrics: Sequence[str] | None
) -> Objective:
    units = model.output_shape[-1]
    activation = _last_activation(model)
    logits = activation not in ("softmax", "sigmoid")
    ending = f"outputs are {'logits' if logits else f'{activation} probabilities'}"
    rank = len(model.output_shape)
    whole = np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool
    if units is not None and units > 1 and whole and labels.ndim in (rank - 1, rank):
        is_one_hot = labels.shape[-1:] == (units,) and labels.ndim == rank
        kind = "CategoricalCrossentropy" if is_one_hot else None
        kind = kind or "SparseCategoricalCrossentropy"
    elif units == 1 and _is_binary(labels):
        kind = "BinaryCrossentropy"
    elif labels.shape[1:] == tuple(model.output_shape[1:]) and _is_one_hot(labels):
        kind = "CategoricalCrossentropy"
    else:
        chosen = ("mae",) if metrics is None else tuple(metrics)
        return Objective("mse", chosen, "loss mse: the labels are no classes")
    chosen = _metrics_for(kind, logits) if metrics is None else tuple(metrics)
    found = getattr(keras.losses, kind)(from_logits=logits)
    return Objective(found, chosen, f"loss {kind}: {ending}")


def _metrics_for(kind: str, logits: bool) -> tuple[str, ...]:
    # Keras's binary accuracy compares with 0.5, which means nothing for logits.
    if kind == "BinaryCrossentropy":
        return () if logits else ("accuracy",)
    return ("accuracy",)


def _named(keras: Any, loss: str) -> Any:
    try:
        return keras.losses.get(loss)
    except ValueError as error:
        raise TfoptError(
            "Keras has no such loss. Expected a name such as mse or "
            f"sparse_categorical_crossentropy. Received: loss={loss!r}"
        ) from error


def _default_metrics(loss: str) -> tuple[str, ...]:
    return ("accuracy",) if "crossentropy" in loss.lower() else ("mae",)


def _last_activation(model: Any) -> str:
    """Returns the name of the activation that makes the output."""
    history = getattr(model.outputs[0], "_keras_history", None)
    layer = model.layers[-1] if history is None else history[0]
    while _keras.is_model(layer) and layer.layers:
        layer = layer.layers[-1]
    if type(layer).__name__ == "Softmax":
        return "softmax"
    activation = getattr(layer, "activation", None)
    return getattr(activation, "__name__", "linear")


def _is_binary(labels: np.ndarray) -> bool:
    return bool(np.isin(labels, (0, 1)).all())


def _is_one_hot(labels: np.ndarray) -> bool:
    return labels.ndim > 1 and _is_binary(labels) and bool((labels.sum(-1) == 1).all())
