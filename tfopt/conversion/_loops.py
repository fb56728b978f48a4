"""Models with loops that the converter takes only in another form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfopt import _keras
from tfopt._keras import recurrent
from tfopt.conversion import _freezing
from tfopt.conversion._sources import Source
from tfopt.types import TfoptError

UNROLLED = (
    "Recurrent layers were unrolled, as the converter cannot quantize loops to "
    "integers: the file has the operators of each step."
)
FIXED_BATCH = (
    "The batch size is fixed at 1, as the converter takes lists in loops only of known "
    "size. Give another by `input_shapes`, or set `unroll=True` in recurrent layers "
    "for a free one: about twice as slow at batch 1, and larger."
)


def unrolled(model: Any, reopen: Callable[[], Source]) -> tuple[Source, Any] | None:
    """Returns a Keras model with its recurrent layers unrolled, traced and frozen.

    Args:
        model: The model.
        reopen: Traces it.

    Returns:
        `None` where that is not possible: the number of steps is unknown, or there are
        other loops.
    """
    if not _keras.is_model(model):
        return None
    try:
        with recurrent.unrolled(model) as count:
            if not count:
                return None
            source = reopen()
        frozen = _freezing.freeze(source.function)
    except (TfoptError, ValueError):
        return None
    return None if _freezing.has_loop(frozen) else (source, frozen)


def fixed_batch(source: Source, frozen: Any) -> dict[str, list[int | None]] | None:
    """Returns shapes with a batch size of one for a model that may need it.

    Returns:
        Shapes by name of input; `None` if no batch size is free, or nothing in the
        model is a list in a loop.
    """
    if not _freezing.has_lists(frozen):
        return None
    shapes = {
        name: [1, *spec.shape.as_list()[1:]]
        for name, spec in source.specs.items()
        if spec.shape.rank and spec.shape[0] is None
    }
    return shapes or None
