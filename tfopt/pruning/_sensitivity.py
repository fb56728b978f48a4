"""How much pruning each layer takes, and the best division of a budget."""

from __future__ import annotations

import dataclasses
import functools
import glob
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfopt import _json_files, _keras, _progress, artifacts, masks
from tfopt._keras import variables
from tfopt.methods import _scores, _targets

_FORMAT = "tfopt.sensitivity"


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """A metric of a model with one layer pruned at a time.

    Attributes:
        metric: Name of the metric.
        higher_is_better: Whether a higher metric is better, as of an accuracy.
        baseline: The metric of the model as it is.
        sparsities: The sparsities tried, rising.
        sizes: Number of weights of each weight tensor, by its name.
        values: The metric at each of `sparsities`, by the tensor's name.

    Example:
        >>> found = Sensitivity(
        ...     metric="loss", higher_is_better=False, baseline=1.0,
        ...     sparsities=(0.5, 0.9), sizes={"a/kernel": 100, "b/kernel": 100},
        ...     values={"a/kernel": (1.0, 1.1), "b/kernel": (1.5, 3.0)})
        >>> found.solve(0.5)
        {'a/kernel': 0.9, 'b/kernel': 0.1}
    """

    metric: str
    higher_is_better: bool
    baseline: float
    sparsities: tuple[float, ...]
    sizes: dict[str, int]
    values: dict[str, tuple[float, ...]]

    def solve(self, total_sparsity: float) -> dict[str, float]:
        """Returns the sparsity of each tensor that costs least for a total.

        The costs of the layers are taken to add up, and between measured points to
        follow the lower convex hull of each layer's curve. Then it is exact to cut,
        again and again, where the next weights cost least.

        Args:
            total_sparsity: Fraction of zeros in all the tensors together.

        Returns:
            For `per_layer` of `Prune` and `prune_once`; a name stands for itself.

        Raises:
            ValueError: Not even the highest sparsities measured reach the total.
        """
        size = sum(self.sizes.values())
        reachable = max(self.sparsities)
        if not 0 <= total_sparsity <= reachable:
            raise ValueError(
                f"`total_sparsity` must be in [0, {reachable}], as far as was "
                "measured. For more, measure higher `sparsities`. "
                f"Received: total_sparsity={total_sparsity!r}"
            )
        left = total_sparsity * size
        result = dict.fromkeys(self.sizes, 0.0)
        for _, name, share in sorted(self._pieces()):
            cut = min(left, share * self.sizes[name])
            result[name] += cut / self.sizes[name]
            left -= cut
        return {
            glob.escape(name): round(min(value, reachable), 12)
            for name, value in result.items()
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON; `load` reads it."""
        data = {"format": _FORMAT, "version": 1, **dataclasses.asdict(self)}
        artifacts.write_json(path, data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensitivity:
        """Reads what `save` wrote.

        Raises:
            ValueError: The file is of another kind, or damaged.
        """
        try:
            found: Sensitivity = _json_files.load(cls, path, kind=_FORMAT)
            if found.values.keys() != found.sizes.keys() or any(
                len(row) != len(found.sparsities) for row in found.values.values()
            ):
                raise _json_files.Damaged("values, sizes and sparsities differ")
        except (_json_files.Damaged, FileNotFoundError) as error:
            raise ValueError(
                f"Not a file of Sensitivity.save. Received: path={os.fspath(path)!r} "
                f"({error})"
            ) from error
        return found

    def __str__(self) -> str:
        """Returns a table, one line per tensor."""
        width = max(map(len, self.values))
        heads = "".join(f"{sparsity:>9.3g}" for sparsity in self.sparsities)
        lines = [f"{self.metric}, {self.baseline:.4f} as it is"]
        lines.append(f"{'zeros':{width}}{heads}")
        for name, row in self.values.items():
            lines.append(f"{name:{width}}" + "".join(f"{value:>9.4f}" for value in row))
        return "\n".join(lines)

    def _pieces(self) -> list[tuple[float, str, float]]:
        """Returns (cost per weight, name, fraction of the tensor) of each hull edge."""
        sign = -1.0 if self.higher_is_better else 1.0
        pieces = []
        for name, row in self.values.items():
            costs = np.maximum.accumulate(
                [0.0, *(sign * (value - self.baseline) for value in row)]
            )
            points = list(zip((0.0, *self.sparsities), costs, strict=True))
            hull = _lower_hull(points)
            for (start, low), (end, high) in itertools.pairwise(hull):
                weights = (end - start) * self.sizes[name]
                pieces.append(((high - low) / weights, name, end - start))
        return pieces


def sensitivity(
    model: Any,
    data: Any,
    *,
    metric: str | Callable[[Any], float] = "loss",
    higher_is_better: bool | None = None,
    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95),
    score: str = "magnitude",
    structure: str = "unstructured",
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> Sensitivity:
    """Returns how a metric suffers when one layer at a time is pruned, untrained.

    It evaluates the model `len(sparsities)` times per weight tensor; some hundreds of
    examples are enough. The model ends up as it was.

    Args:
        model: Built model of Keras 3 or tf_keras; compiled, unless `metric` is a
            function.
        data: What `model.evaluate` takes as its first argument, such as a
            tf.data.Dataset, or `(x, y)` arrays. None with a function.
        metric: Name of what `model.evaluate` returns, "loss" or a compiled metric; or
            a function: model -> number.
        higher_is_better: Whether a higher metric is better. None: "loss" and names
            that contain "loss" or "error" are not, others are.
        sparsities: Fractions of zeros to try, in (0, 1), rising.
        score: "magnitude" or "random".
        structure: As for `Prune`, but not "m:n".
        include: As for `Prune`.
        exclude: As for `Prune`.

    Returns:
        The metric by tensor and sparsity; its `solve` divides a total sparsity.

    Raises:
        ValueError: An argument is wrong, or the metric is unknown or not finite.

    Example:
        >>> found = sensitivity(model, (images, labels), sparsities=(0.5, 0.9))
        >>> per_layer = found.solve(0.8)
        >>> small = tfopt.prune_once(model, per_layer=per_layer)
        >>> tfopt.sparsity(small)["total"]
        0.8
    """
    _keras.check_model(model)
    grid = _checked_grid(sparsities)
    rules = _rules(score, structure, include, exclude)
    selection = _targets.select(model, rules, 0.0)
    values = {w.name: variables.to_numpy(w.variable) for w in selection.weights}
    scores = _scores.of_data(score, model, selection.weights, values, data=None, seed=0)
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    if higher_is_better is None:
        higher_is_better = not any(word in name for word in ("loss", "error"))
    evaluate = _evaluator(model, data, metric)
    baseline = evaluate()
    found = {
        weight.name: _curve(model, selection.only(weight.name), scores, grid, evaluate)
        for weight in _progress.each(selection.weights, "measuring layers")
    }
    return Sensitivity(
        metric=name,
        higher_is_better=higher_is_better,
        baseline=baseline,
        sparsities=grid,
        sizes={weight.name: weight.size for weight in selection.weights},
        values=found,
    )


def _curve(
    model: Any,
    selection: _targets.Selection,
    scores: Mapping[str, np.ndarray],
    sparsities: Sequence[float],
    evaluate: Callable[[], float],
) -> tuple[float, ...]:
    """Returns the metric with one tensor pruned, at each sparsity."""
    names = {weight.name for weight in selection.weights + selection.vectors}
    touched = [weight for weight in variables.weights(model) if weight.name in names]
    before = [weight.variable.numpy() for weight in touched]
    row = []
    try:
        for sparsity in sparsities:
            found = selection.masks(scores, functools.partial(_same, sparsity))
            found = selection.with_followers(found)
            for weight, value in zip(touched, before, strict=True):
                zero = np.zeros((), value.dtype)
                weight.variable.assign(np.where(found[weight.name], value, zero))
            row.append(evaluate())
    finally:
        for weight, value in zip(touched, before, strict=True):
            weight.variable.assign(value)
    return tuple(row)


def _same(sparsity: float, final: float) -> float:
    del final
    return sparsity


def _rules(
    score: str,
    structure: str,
    include: variables.Patterns,
    exclude: variables.Patterns,
) -> _targets.Rules:
    if score not in ("magnitude", "random"):
        raise ValueError(
            f'`score` must be "magnitude" or "random". Received: score={score!r}'
        )
    parsed = masks.Structure.parse(structure)
    if parsed.kind == "m:n":
        raise ValueError(
            "`structure` must leave the sparsity open, and m:n does not. "
            f"Received: structure={structure!r}"
        )
    return _targets.Rules(
        include=include,
        exclude=exclude,
        per_layer=None,
        structure=parsed,
        pooling="norm" if parsed.kind == "channel" else "avg",
        scope="local",
        min_density=masks.MIN_DENSITY,
        strict=False,
    )


def _checked_grid(sparsities: Any) -> tuple[float, ...]:
    try:
        grid = tuple(float(value) for value in sparsities)
        good = bool(grid) and grid[0] > 0 and grid[-1] < 1
        good = good and all(low < high for low, high in itertools.pairwise(grid))
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            "`sparsities` must be rising fractions in (0, 1). "
            f"Received: sparsities={sparsities!r}"
        )
    return grid


def _evaluator(
    model: Any, data: Any, metric: str | Callable[[Any], float]
) -> Callable[[], float]:
    """Returns a function that measures the model as it is."""

    def evaluate() -> float:
        if callable(metric):
            value = float(metric(model))
        else:
            arguments = data if isinstance(data, tuple) else (data,)
            found = model.evaluate(*arguments, verbose=0, return_dict=True)
            if metric not in found:
                raise ValueError(
                    f"`metric` must be one of {sorted(found)}, for which the model is "
                    f"compiled, or a function. Received: metric={metric!r}"
                )
            value = float(found[metric])
        if not math.isfinite(value):
            raise ValueError(
                f"The metric must be a finite number. Received: {metric}={value}"
            )
        return value

    return evaluate


def _lower_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns the corners of the lower convex hull of points sorted by x."""
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append((x, y))
    return hull
