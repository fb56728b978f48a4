"""Layers divided by the rules of a recipe: later rules outrank earlier ones."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from typing import Any

from tfopt._keras import variables
from tfopt.conversion import (
    _freezing,
    _noise,
    _operators,
    _samples,
    _sources,
    _writing,
)
from tfopt.recipe._checking import Rule


def kept_float(
    rules: Sequence[Rule],
    model: Any,
    representative: Any,
    *,
    signature_key: str | None = None,
) -> list[str]:
    """Returns globs for the layers that are to stay float.

    Args:
        rules: Of the recipe.
        model: What `tfopt.convert` takes.
        representative: Typical inputs.
        signature_key: Which signature of a SavedModel.

    Raises:
        ValueError: A rule matches nothing.
    """
    rules = [rule for rule in rules if rule.precision is not None]
    if not rules:
        return []
    precision: dict[str, str | None] = {}
    operators = _listed(model, representative, signature_key)
    for rule in rules:
        for operator in _operators.select(operators, rule.layers, argument="rules"):
            precision[operator.layer] = rule.precision
    return [
        glob.escape(layer) for layer, chosen in precision.items() if chosen == "float"
    ]


def sparsities(rules: Sequence[Rule], model: Any) -> dict[str, float]:
    """Returns fractions of zeros by weight, for `per_layer` of pruning.

    Args:
        rules: Of the recipe.
        model: A Keras model.

    Raises:
        ValueError: A rule matches nothing.
    """
    names = [weight.name for weight in variables.kernels(model)]
    found: dict[str, float] = {}
    for rule in rules:
        if rule.sparsity is None:
            continue
        matched = [name for name in names if variables.matches(rule.layers, name)]
        if not matched:
            raise ValueError(
                "A rule matches no weight of the model. Expected a glob for layers "
                f"such as {names[:20]}. Received: rules with layers={rule.layers!r}"
            )
        found.update(dict.fromkeys(matched, rule.sparsity))
    return {glob.escape(name): share for name, share in found.items()}


def _listed(
    model: Any, representative: Any, signature_key: str | None
) -> list[_operators.LayerOperator]:
    source = _sources.open_source(model, signature_key)
    with _noise.contained():
        frozen = _freezing.freeze(source.function)
        if representative is None:
            samples = _samples.random(source.specs, {})
        else:
            samples = _samples.representative(representative, source.specs, limit=1)
        writer = _writing.Writer(frozen, source, samples.batches, False)
        return writer.operators(writer.calibrated)
