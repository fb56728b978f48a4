"""Recurrent layers of either Keras as steps in a row instead of loops."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

# tf_keras's LSTM and GRU run a kernel with a loop inside unless this is off.
_SWITCHES = {"unroll": True, "_could_use_gpu_kernel": False}


@contextlib.contextmanager
def unrolled(model: Any) -> Iterator[int]:
    """Makes recurrent layers unroll their steps while the block calls the model.

    The layers are as before when the block ends. The number of steps must be known.

    Args:
        model: A Keras model of either version.

    Yields:
        How many layers there are that have loops otherwise.

    Example:
        >>> with unrolled(model) as count:
        ...     count
        0
    """
    changed: list[tuple[Any, str, Any]] = []
    count = 0
    try:
        for layer in model._flatten_layers(include_self=False, recursive=True):
            if getattr(layer, "unroll", None) is not False:
                continue
            count += 1
            for name, value in _SWITCHES.items():
                if hasattr(layer, name):
                    changed.append((layer, name, getattr(layer, name)))
                    setattr(layer, name, value)
        yield count
    finally:
        for layer, name, value in reversed(changed):
            setattr(layer, name, value)
