"""Which tensor of a checkpoint belongs to which weight of a Keras model."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfopt.checkpoint import objects
from tfopt.savedmodel import dtypes
from tfopt.types import TfoptError

_MOST_LISTED = 10
Shape = tuple[int, ...]


@dataclasses.dataclass
class Located:
    """A model's weights in a checkpoint.

    Attributes:
        keys: Position among the model's weights -> key in the checkpoint.
        missing: Names of weights that the checkpoint lacks.
        unexpected: Tensors that no weight takes.
        mismatched: What differs in shape or name, in words.
    """

    keys: dict[int, str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    @property
    def is_exact(self) -> bool:
        """Whether there is nothing to complain of."""
        return not (self.missing or self.unexpected or self.mismatched)

    def check(self, where: str, *, allow_unexpected: bool = False) -> None:
        """Raises unless all fits.

        Raises:
            TfoptError: Lists what is missing, unexpected and mismatched.
        """
        problems = [
            f"{what}: {_some(names)}"
            for what, names in (
                ("missing in the checkpoint", self.missing),
                ("of another shape or name", self.mismatched),
                ("unexpected", [] if allow_unexpected else self.unexpected),
            )
            if names
        ]
        if problems:
            raise TfoptError(
                "The checkpoint doesn't fit the model; nothing was changed. "
                f"{'; '.join(problems)}. Expected a model built like the saved one. "
                f"Received: path={where!r}"
            )


def weights(model: Any) -> list[Any]:
    """Returns the model's weights in the order that positions refer to."""
    return importlib.import_module("tfopt._keras.variables").weights(model)


def dtype_of(variable: Any) -> int:
    """Returns TensorFlow's DataType number of a variable of either Keras."""
    name = getattr(variable.dtype, "name", variable.dtype)
    if name == "string":
        return dtypes.STRING
    if name == "bfloat16" or name.startswith("float8"):
        import ml_dtypes

        return dtypes.from_numpy(getattr(ml_dtypes, name))
    return dtypes.from_numpy(np.dtype(name))


def locate(
    graph: Any | None,
    shapes: Mapping[str, Shape],
    model: Any,
    wanted: Sequence[Any],
    *,
    part: str | None = None,
) -> Located:
    """Finds the tensors of a model's weights, by structure or, without one, by name.

    Args:
        graph: The checkpoint's object graph, `None` for TF1.
        shapes: The checkpoint's tensors.
        model: The model.
        wanted: Its weights.
        part: Name under which the checkpoint holds the model, as in
            `tf.train.Checkpoint(part=model)`; `None`: wherever it fits.

    Raises:
        TfoptError: Several models in the checkpoint fit, or there is no such part.
    """
    if graph is None:
        return _by_name(shapes, wanted)
    candidates = objects.parts(graph)
    if part is not None:
        if part not in candidates:
            raise TfoptError(
                "The checkpoint has no such part. Expected one of "
                f"{sorted(filter(None, candidates))}. Received: part={part!r}"
            )
        candidates = {part: candidates[part]}
    found = {}
    for name, root in candidates.items():
        keys, unmet = objects.match(graph, root, model)
        found[name] = _located(
            {i: keys.get(id(w.variable)) for i, w in enumerate(wanted)},
            shapes,
            wanted,
            unmet & set(shapes),
        )
    fitting = {name: entry for name, entry in found.items() if entry.is_exact}
    if len({tuple(entry.keys.items()) for entry in fitting.values()}) > 1:
        raise TfoptError(
            "The model fits several parts of the checkpoint. Expected `part` to say "
            f"which. Received: part={part!r}, fitting {sorted(fitting)}"
        )
    if fitting:
        return next(iter(fitting.values()))
    return max(found.values(), key=lambda entry: len(entry.keys))


def _by_name(shapes: Mapping[str, Shape], wanted: Sequence[Any]) -> Located:
    """TF1 checkpoints have nothing but names."""
    keys: dict[int, str | None] = {}
    for position, weight in enumerate(wanted):
        own = str(getattr(weight.variable, "path", weight.variable.name))
        names = [weight.name, own.split(":", 1)[0]]
        keys[position] = next((name for name in names if name in shapes), None)
    return _located(
        keys, shapes, wanted, set(shapes) - set(filter(None, keys.values()))
    )


def _located(
    keys: Mapping[int, str | None],
    shapes: Mapping[str, Shape],
    wanted: Sequence[Any],
    unexpected: set[str],
) -> Located:
    result = Located({}, [], sorted(unexpected), [])
    for position, weight in enumerate(wanted):
        key = keys.get(position)
        if key is None or key not in shapes:
            result.missing.append(weight.name)
        elif shapes[key] != weight.shape:
            result.mismatched.append(
                f"{weight.name} {list(weight.shape)} is {list(shapes[key])} as {key}"
            )
        else:
            result.keys[position] = key
    return result


def _some(names: Sequence[str]) -> str:
    listed = ", ".join(names[:_MOST_LISTED])
    rest = len(names) - _MOST_LISTED
    return listed + (f" and {rest} more" if rest > 0 else "")
