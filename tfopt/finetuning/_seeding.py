"""Random numbers of layers that are the same in every run of a training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tfopt._keras import seeds
from tfopt.methods._base import Method


@contextlib.contextmanager
def seeded(model: Any, seed: int) -> Iterator[Method]:
    """Yields the Keras callback that begins each epoch with seeds of its own.

    Args:
        model: The model that is trained.
        seed: For layers without one.
    """
    found = seeds.Seeds(model, seed)

    class Beginner(Method):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            del logs
            found.begin(epoch)

        def _implements_train_batch_hooks(self) -> bool:
            return False

    with found.settable():
        yield Beginner()
