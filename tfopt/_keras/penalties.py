"""Penalties on weights as part of a model's loss, put on and taken off again."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from tfopt._keras import variables

Penalty = Callable[[Any], Any]


def add(weight: variables.Weight, penalty: Penalty) -> Callable[[], None]:
    """Adds a penalty on a weight to the losses of its layer.

    It comes on top of the layer's own regularizer. A train function that was traced
    before does not see it: call `variables.retrace`.

    Args:
        weight: The weight; `layer` must be known.
        penalty: Makes a scalar tensor of the weight's value.

    Returns:
        A function that undoes it.
    """
    variable = weight.variable
    if type(variable).__module__.startswith("keras."):
        own = variable.regularizer
        added = _regularizer_class()(penalty, own)
        variable.regularizer = added

        def undo() -> None:
            if variable.regularizer is added:
                variable.regularizer = own

        return undo
    # tf_keras has no regularizers on variables, only losses of layers.
    losses = weight.layer._callable_losses
    before = list(losses)
    weight.layer.add_loss(functools.partial(penalty, variable))
    new = [loss for loss in losses if not any(loss is old for old in before)]

    def undo_losses() -> None:
        losses[:] = [loss for loss in losses if not any(loss is one for one in new)]

    return undo_losses


@functools.cache
def _regularizer_class() -> type:
    base: Any = importlib.import_module("keras").regularizers.Regularizer

    class Added(base):
        """A penalty after the regularizer that was there."""

        def __init__(self, penalty: Penalty, own: Penalty | None):
            self.penalty, self.own = penalty, own

        def __call__(self, value: Any) -> Any:
            added = self.penalty(value)
            return added if self.own is None else self.own(value) + added

    return Added
