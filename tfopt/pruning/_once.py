"""One-shot pruning: masks from scores, no training."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tfopt import _keras, masks
from tfopt._keras import variables
from tfopt.methods import _prune_arguments, _scores, _targets

_log = logging.getLogger(__name__)


def prune_once(
    model: Any,
    sparsity: float | None = None,
    *,
    score: Literal["magnitude", "gradient", "activation", "random"] = "magnitude",
    structure: str = "unstructured",
    block_pooling: Literal["avg", "max"] = "avg",
    scope: masks.Scope = "local",
    min_density: float = masks.MIN_DENSITY,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    per_layer: Mapping[str, float] | None = None,
    strict: bool = False,
    data: Iterable[Any] | None = None,
    in_place: bool = False,
    seed: int = 0,
) -> Any:
    """Returns a model with a fraction of its weights set to zero, untrained.

    A quick way to sparse files and to what-if questions. At high sparsities accuracy
    falls; to win it back train with `Prune(keep_existing_zeros=True)`.

    Args:
        model: Built model of Keras 3 or tf_keras; compiled for the score "gradient".
        sparsity: Fraction of zero weights, in [0, 1). `None`: with `per_layer` only
            what that names is pruned; a structure such as "2:4" says it itself.
        score: As for `Prune`; "movement" takes training.
        structure: As for `Prune`.
        block_pooling: As for `Prune`.
        scope: As for `Prune`.
        min_density: As for `Prune`.
        include: As for `Prune`.
        exclude: As for `Prune`.
        per_layer: As for `Prune`; `Sensitivity.solve` makes one.
        strict: As for `Prune`.
        data: Batches for the scores "gradient", `(x, y)`, and "activation", which also
            takes `x` alone.
        in_place: Prune the model itself and return it. Else a copy is pruned, which
            for a subclassed model takes a `get_config`, and the model is not changed.
        seed: For the score "random".

    Returns:
        The pruned model; a copy is not compiled.

    Raises:
        ValueError: An argument is wrong, patterns match nothing, or `strict` and there
            are skips.
        TfoptError: The model is not a built Keras model or cannot be copied, or the
            score cannot be had of a layer.

    Example:
        >>> small = prune_once(model, 0.8)
        >>> tfopt.sparsity(small)["total"], tfopt.sparsity(model)["total"]
        (0.8, 0.0)
    """
    _keras.check_model(model)
    parsed = masks.Structure.parse(structure)
    final = _final(sparsity, parsed, per_layer)
    _check(score, data, block_pooling, min_density, seed)
    by_norm = parsed.kind == "channel" and score == "magnitude"
    rules = _targets.Rules(
        include=include,
        exclude=exclude,
        per_layer=per_layer,
        structure=parsed,
        pooling="norm" if by_norm else block_pooling,
        scope=scope,
        min_density=min_density,
        strict=strict,
    )
    if scope not in masks.SCOPES:
        raise ValueError(
            f"`scope` must be one of {masks.SCOPES}. Received: scope={scope!r}"
        )
    selection = _targets.select(model, rules, final)
    for name, reason in selection.skips.items():
        _log.warning("Not pruning %s: %s.", name, reason)
    values = {w.name: variables.to_numpy(w.variable) for w in selection.weights}
    scores = _scores.of_data(
        score, model, selection.weights, values, data=data, seed=seed
    )
    found = selection.with_followers(selection.masks(scores, lambda target: target))
    pruned = model if in_place else _keras.clone(model)
    _apply(pruned, found)
    return pruned


def _apply(model: Any, found: Mapping[str, np.ndarray]) -> None:
    """Sets weights to zero where their mask, by name, is False."""
    for weight in variables.weights(model):
        if weight.name in found:
            value = weight.variable.numpy()
            weight.variable.assign(
                np.where(found[weight.name], value, np.zeros((), value.dtype))
            )


def _final(
    sparsity: float | None,
    structure: masks.Structure,
    per_layer: Mapping[str, float] | None,
) -> float | None:
    _targets.check_per_layer(per_layer, structure)
    if sparsity is not None and not (
        isinstance(sparsity, (int, float, np.number)) and 0 <= float(sparsity) < 1
    ):
        raise ValueError(
            f"`sparsity` must be a fraction in [0, 1). Received: sparsity={sparsity!r}"
        )
    final = _prune_arguments.implied_sparsity(sparsity, structure)
    if final is None and per_layer is None:
        raise ValueError(
            "`sparsity` must be given, unless with `per_layer` or a structure such as "
            '"2:4". Received: sparsity=None'
        )
    return final


def _check(
    score: str, data: Any, block_pooling: str, min_density: float, seed: int
) -> None:
    if score == "movement":
        raise ValueError(
            'The score "movement" takes training: use `Prune`. '
            f"Received: score={score!r}"
        )
    _scores.check(score, data)
    if score == "gradient" and data is None:
        raise ValueError(
            '`data` must be given for the score "gradient". Received: data=None'
        )
    _prune_arguments.check_numbers(
        {"block_pooling": block_pooling, "min_density": min_density, "seed": seed}
    )
