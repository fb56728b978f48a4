"""Masks that the optimizer itself enforces, in the same step as the update.

A mask is a bool variable; the weight's `constraint`, which both Keras versions apply
right after each update, sets the masked weights to zero. It is part of the compiled
training step, so nothing outside (callbacks, checkpoints, the next batch) ever meets
an unmasked weight, whichever way the step is run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import constraints, variables
from tfopt.methods._guarding import Guard


class Masks(Guard):
    """One bool mask for each of some weights of a model, all True at first.

    Args:
        model: The model, built and compiled.
        weights: Which weights of it.
    """

    method, verb = "Prune", "pruned"

    def __init__(self, model: Any, weights: Sequence[variables.Weight]):
        with model.distribute_strategy.scope():
            self._masks = {
                weight.name: tf.Variable(
                    tf.ones(weight.shape, tf.bool), trainable=False, name="mask"
                )
                for weight in weights
            }
        links = {
            weight.name: _Masked(
                self._masks[weight.name],
                functools.partial(_moving_average, model, weight),
            )
            for weight in weights
        }
        super().__init__(model, {weight.name: weight for weight in weights}, links)

    def assign(self, masks: Mapping[str, np.ndarray]) -> None:
        """Sets masks and at once the weights under them to zero.

        Args:
            masks: Bool array of the weight's shape by name; True keeps.
        """
        for name, mask in masks.items():
            self._masks[name].assign(mask)
            self._zero(name)

    def escaped(self) -> list[str]:
        """Returns the names of weights that are not zero where their mask is False."""
        values = self.values()
        return [
            name
            for name, mask in self.numpy().items()
            if np.count_nonzero(values[name][~mask])
        ]

    def enforce(self, names: list[str]) -> None:
        """Sets the weights under the masks to zero."""
        for name in names:
            self._zero(name)

    def numpy(self) -> dict[str, np.ndarray]:
        """Returns the masks by name, as bool arrays; True keeps."""
        return {name: mask.numpy() for name, mask in self._masks.items()}

    def _zero(self, name: str) -> None:
        variable = self._weights[name].variable
        variable.assign(_masked(variable, self._masks[name]))


class _Masked(constraints.Link):
    """Zeros where masked, after the weight's own constraint."""

    def __init__(self, mask: tf.Variable, moving_average: Callable[[], Any]):
        self.mask = mask
        self._moving_average = moving_average

    def apply(self, value: Any) -> tf.Tensor:
        # What `use_ema` will write into the weight at the end must be sparse as well.
        average = self._moving_average()
        if average is not None:
            average.assign(_masked(average, self.mask))
        return _masked(value, self.mask)


def _masked(value: Any, mask: tf.Variable) -> tf.Tensor:
    value = tf.convert_to_tensor(value)
    # A plain product would make -0.0 of negative weights and keep NaN; `where` is
    # three times as slow on a CPU.
    return tf.math.multiply_no_nan(value, tf.cast(mask, value.dtype))


def _moving_average(model: Any, weight: variables.Weight) -> Any:
    return variables.moving_average(model.optimizer, weight.variable)
