"""Masks that the optimizer itself enforces, in the same step as the update.

A mask is a bool variable; the weight's `constraint`, which both Keras versions apply
right after each update, sets the masked weights to zero. It is part of the compiled
training step, so nothing outside (callbacks, checkpoints, the next batch) ever meets
an unmasked weight, whichever way the step is run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import constraints, variables
from tfopt.types import TfoptError

_log = logging.getLogger(__name__)


class Masks:
    """One bool mask for each of some weights of a model, all True at first.

    Args:
        model: The model, built and compiled.
        weights: Which weights of it.
    """

    def __init__(self, model: Any, weights: Sequence[variables.Weight]):
        self._model = model
        self._weights = {weight.name: weight for weight in weights}
        with model.distribute_strategy.scope():
            self._masks = {
                weight.name: tf.Variable(
                    tf.ones(weight.shape, tf.bool), trainable=False, name="mask"
                )
                for weight in weights
            }

    def install(self) -> None:
        """Makes the optimizer enforce the masks from the next step on.

        The weights' own constraints go on working, before the masks.
        """
        for name, weight in self._weights.items():
            for link in constraints.links(weight.variable):
                if isinstance(link, _Masked):
                    _log.warning(
                        "%s: removing the mask that an aborted fit left.", name
                    )
                    constraints.remove(weight.variable, link)
            constraints.install(
                weight.variable,
                _Masked(self._masks[name], self._moving_average_of(weight)),
            )
        # An earlier fit has traced the step without the masks.
        variables.retrace(self._model)

    def remove(self) -> None:
        """Gives the weights their own constraints back."""
        for name in self._weights:
            link = self._installed(name)
            if link is not None:
                constraints.remove(self._weights[name].variable, link)
        variables.forget_train_function(self._model)

    def check_installed(self) -> None:
        """Raises if another callback has replaced the masks.

        Raises:
            TfoptError: It has; the message names the weight.
        """
        for name in self._weights:
            if self._installed(name) is None:
                raise TfoptError(
                    "Something else has taken over the constraint of a pruned weight. "
                    "Expected one Prune callback per weight (use `include` and "
                    f"`exclude` to divide them). Received: weight={name!r}"
                )

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

    def enforce(self) -> None:
        """Sets the weights under the masks to zero."""
        for name in self._masks:
            self._zero(name)

    def values(self) -> dict[str, np.ndarray]:
        """Returns the weights by name, as float arrays."""
        return {name: self.value(name) for name in self._weights}

    def value(self, name: str) -> np.ndarray:
        """Returns one weight, as float array."""
        return to_numpy(self._weights[name].variable)

    def numpy(self) -> dict[str, np.ndarray]:
        """Returns the masks by name, as bool arrays; True keeps."""
        return {name: mask.numpy() for name, mask in self._masks.items()}

    def _zero(self, name: str) -> None:
        variable = self._weights[name].variable
        variable.assign(_masked(variable, self._masks[name]))

    def _installed(self, name: str) -> _Masked | None:
        for link in constraints.links(self._weights[name].variable):
            if isinstance(link, _Masked) and link.mask is self._masks[name]:
                return link
        return None

    def _moving_average_of(self, weight: variables.Weight) -> Callable[[], Any]:
        return lambda: variables.moving_average(self._model.optimizer, weight.variable)


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


def to_numpy(variable: Any) -> np.ndarray:
    """Returns a variable's value; half precision as float32, which NumPy can sort."""
    value = variable.numpy()
    return value.astype(np.float32) if value.dtype.itemsize < 4 else value
