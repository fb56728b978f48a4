"""Shared weights that the optimizer itself keeps, in the same step as the update.

As with masks, a link in the weight's constraint replaces the updated weights by those
of the codebook. It is part of the compiled training step, so nothing outside ever meets
a weight that is not one of its tensor's centroids, whichever way the step is run.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import constraints, variables
from tfopt.methods._codebook import Codebook, State
from tfopt.methods._guarding import Guard

# From this size on, compiling the step takes less time than it saves: on a CPU it is
# about ten times as fast as TensorFlow's single kernels.
_WORTH_COMPILING = 1 << 16


class Clusters(Guard):
    """Codebooks of some weights of a model.

    Args:
        model: The model, built and compiled.
        weights: Which weights of it, by name.
        codebooks: One for each, by name.
        states: What they start from, by name.
        keep: Bool arrays by name; False is zero for good. Not all names need be there.
        frequency: Weights change clusters every `frequency` steps; None: never.
    """

    method, verb = "Cluster", "clustered"

    def __init__(
        self,
        model: Any,
        weights: Mapping[str, variables.Weight],
        codebooks: Mapping[str, Codebook],
        states: Mapping[str, State],
        keep: Mapping[str, np.ndarray],
        frequency: int | None,
    ):
        with model.distribute_strategy.scope():
            self._clustered = {
                name: _Clustered(codebook, states[name], keep.get(name), frequency)
                for name, codebook in codebooks.items()
            }
        super().__init__(model, weights, self._clustered)

    def install(self) -> None:
        """Clusters the weights, and makes the optimizer do it from the next step on."""
        super().install()
        self.assign()

    def assign(self) -> None:
        """Gives all weights the values of their clusters."""
        for name, link in self._clustered.items():
            variable = self._weights[name].variable
            variable.assign(tf.cast(link.value(), variable.dtype))

    def fix(self) -> None:
        """Lets all weights stay in their clusters from now on."""
        for link in self._clustered.values():
            link.fixed.assign(True)

    def escaped(self) -> list[str]:
        """Returns the names of weights that are not what their clusters say.

        Zeros that a mask of the moment makes are no escape.
        """
        found = []
        for name, link in self._clustered.items():
            variable = self._weights[name].variable
            values = self.value(name)
            expected = variables.to_numpy(tf.cast(link.value(), variable.dtype))
            # Compiled or not, products may differ in the last digit.
            close = np.abs(values - expected) <= 4 * _epsilon(variable) * abs(expected)
            if not np.all(close | (values == 0)):
                found.append(name)
        return found

    def enforce(self, names: list[str]) -> None:
        """Clusters weights anew that were written past the optimizer."""
        for name in names:
            variable = self._weights[name].variable
            variable.assign(self._clustered[name].restart(variable))


class _Clustered(constraints.Link):
    """Replaces weights by their centroids, after masks and the weight's own constraint.

    Weights that come as exact zeros, as masks make them, leave as zeros.
    """

    rank = 1

    def __init__(
        self,
        codebook: Codebook,
        state: State,
        keep: np.ndarray | None,
        frequency: int | None,
    ):
        self._codebook = codebook
        self._frequency = frequency
        self._keep = None if keep is None else tf.Variable(keep, trainable=False)
        # All replicas compute the same.
        make = functools.partial(
            tf.Variable,
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        self._state = State(
            *(make(value, name=name) for name, value in state._asdict().items())
        )
        self._steps = make(0, name="steps", dtype=tf.int64)
        self.fixed = make(frequency is None, name="fixed")
        self._next = self._compute
        if int(np.prod(codebook.shape)) >= _WORTH_COMPILING:
            self._next = tf.function(self._compute, jit_compile=True)

    def value(self) -> tf.Tensor:
        """Returns the shared weights, float32."""
        return self._codebook.value(self._read())

    def apply(self, value: Any) -> tf.Tensor:
        """Returns the shared weights after an update, and takes note of it."""
        updated = tf.convert_to_tensor(value)
        if self._frequency is None:
            due = tf.constant(False)
        else:
            due = tf.equal((self._steps + 1) % self._frequency, 0) & ~self.fixed
        shared, state = self._next(updated, self._read(), due)
        self._write(state)
        self._steps.assign_add(1)
        return shared

    def restart(self, value: Any) -> tf.Tensor:
        """Returns the shared weights for values from elsewhere; starts with those."""
        values = tf.convert_to_tensor(value)
        state, zeros = self._read(), self._zeros(values)
        grouped = self._codebook.group(tf.cast(values, tf.float32))
        state = self._codebook.assign(state._replace(latent=grouped), zeros)
        state = self._codebook.fit(state, zeros)
        self._write(state)
        return tf.cast(self._codebook.value(state), values.dtype)

    def _compute(
        self, updated: tf.Tensor, state: State, due: tf.Tensor
    ) -> tuple[tf.Tensor, State]:
        book, zeros = self._codebook, self._zeros(updated)
        latent = book.group(tf.cast(updated, tf.float32))
        if self._frequency is not None:
            # What the variable held before the update, rounded as it rounds.
            before = tf.cast(tf.cast(book.shared(state), updated.dtype), tf.float32)
            latent = state.latent + (latent - before)
            state = state._replace(latent=latent)
            state = tf.cond(due, lambda: book.assign(state, zeros), lambda: state)
        else:
            state = state._replace(latent=latent)
        state = book.fit(state, zeros)
        return tf.cast(book.value(state), updated.dtype), state

    def _zeros(self, values: tf.Tensor) -> tf.Tensor:
        zeros = tf.equal(values, tf.zeros([], values.dtype))
        if self._keep is not None:
            zeros |= ~self._keep
        return self._codebook.group(zeros)

    def _read(self) -> State:
        return State(*(tf.convert_to_tensor(part) for part in self._state))

    def _write(self, state: State) -> None:
        for part, value in zip(self._state, state, strict=True):
            part.assign(value)


def _epsilon(variable: Any) -> float:
    dtype = tf.as_dtype(variable.dtype)
    return float(np.finfo(dtype.as_numpy_dtype).eps) if dtype != tf.bfloat16 else 2**-7
