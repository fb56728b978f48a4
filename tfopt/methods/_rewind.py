"""Early weights, to go back to under the final masks."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfopt._keras import variables
from tfopt.types import TfoptError


class Rewind:
    """Remembers all weights of a model at one step, and brings them back.

    Args:
        model: The compiled model.
        step: Optimizer step, as `variables.iterations` counts.

    Raises:
        TfoptError: The optimizer is past that step.
    """

    def __init__(self, model: Any, step: int):
        self._model = model
        self._step = step
        self._values: dict[str, np.ndarray] | None = None
        self.look()

    def is_for(self, model: Any) -> bool:
        """Whether these are early weights of this model and its optimizer."""
        return model is self._model and model.optimizer is self._optimizer

    def look(self) -> None:
        """Takes the weights if their step has come; called before each execution.

        Raises:
            TfoptError: The step has gone by.
        """
        if self._values is not None:
            return
        self._optimizer = self._model.optimizer
        now = variables.iterations(self._model)
        if now > self._step:
            raise TfoptError(
                "The weights to rewind to were not seen: the optimizer is past that "
                "step. Expected a step at which an execution begins (a multiple of "
                "steps_per_execution), in an uninterrupted training with this "
                f"callback. Received: rewind_step={self._step}, at step {now}"
            )
        if now == self._step:
            self._values = {
                weight.name: weight.variable.numpy() for weight in self._floats()
            }

    def restore(self) -> None:
        """Sets all weights to what they were.

        Raises:
            TfoptError: The step never came.
        """
        if self._values is None:
            raise TfoptError(
                "The training ended before the step to rewind to. "
                f"Received: rewind_step={self._step}, training ended at step "
                f"{variables.iterations(self._model)}"
            )
        for weight in self._floats():
            weight.variable.assign(self._values[weight.name])

    def _floats(self) -> list[variables.Weight]:
        # The state of random generators is no weight.
        return [
            weight
            for weight in variables.weights(self._model)
            if "float" in str(weight.variable.dtype)
        ]
