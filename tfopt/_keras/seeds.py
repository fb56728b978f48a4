"""What layers draw at random while they train: the same in every run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfopt import _keras


class Seeds:
    """The sources of random numbers in a model's layers, such as dropout's.

    Each epoch begins with seeds that depend on its number, on the layer's own seed and,
    where it has none, on the layer's place and the given seed. So a training that goes
    on after an interruption draws what it would have drawn; the process's own seeds are
    neither read nor set.

    Args:
        model: Keras 3 or tf_keras model.
        seed: For layers without one of their own.
    """

    def __init__(self, model: Any, seed: int):
        self._seed = seed
        layers = [model, *model._flatten_layers(include_self=False, recursive=True)]
        kind = _Keras3 if _keras.is_keras3(model) else _TfKeras
        # A layer that is used in several places is listed once.
        unique = {id(source): source for x in layers for source in kind.sources(x)}
        self._sources = [kind(source) for source in unique.values()]

    def begin(self, epoch: int) -> None:
        """Sets all of them for an epoch."""
        for place, source in enumerate(self._sources):
            own = source.given
            entropy = [self._seed, place] if own is None else [own]
            parts = [abs(int(number)) for number in (*entropy, epoch)]
            (word,) = np.random.SeedSequence(parts).generate_state(1)
            source.set(int(word >> 1))  # as a signed number, too

    @contextlib.contextmanager
    def settable(self) -> Iterator[None]:
        """For the time of a training; `begin` is of no use outside of it."""
        with contextlib.ExitStack() as stack:
            for source in self._sources:
                stack.enter_context(source.settable())
            yield


class _Keras3:
    """A `keras.random.SeedGenerator`."""

    def __init__(self, source: Any):
        self._source = source

    @staticmethod
    def sources(layer: Any) -> list[Any]:
        return list(getattr(layer, "_seed_generators", ()))

    @property
    def given(self) -> int | None:
        seed = self._source.get_config()["seed"]
        return None if seed is None else int(seed)

    def set(self, seed: int) -> None:
        self._source.state.assign([seed, 0])

    def settable(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class _TfKeras:
    """A `tf_keras.backend.RandomGenerator`.

    By default it makes stateful operations, whose state is out of reach; for the time
    of the training it has a `tf.random.Generator` instead.
    """

    def __init__(self, source: Any):
        self._source = source
        self.given = source._seed

    @staticmethod
    def sources(layer: Any) -> list[Any]:
        found = getattr(layer, "_random_generator", None)
        return [] if found is None else [found]

    def set(self, seed: int) -> None:
        self._source._generator.reset_from_seed(seed)

    @contextlib.contextmanager
    def settable(self) -> Iterator[None]:
        import tensorflow as tf

        source = self._source
        names = ("_rng_type", "_generator", "_built", "_seed")
        before = {name: getattr(source, name, None) for name in names}
        source._rng_type = source.RNG_STATEFUL
        source._generator = tf.random.Generator.from_seed(0)
        source._built = True
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(source, name, value)
