"""What changes in the course of training: when rounding begins, and what freezes."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfopt import _keras
from tfopt._keras import fake_quantize


@dataclasses.dataclass(frozen=True)
class Phases:
    """The steps at which a model in training changes.

    Which phase holds follows from the optimizer's number of steps alone, so training
    that resumes goes on in the right one. Layers hold their phase as Python values,
    which are traced: a phase that is over costs nothing.

    Attributes:
        delay_steps: Activations are not rounded before this step.
        freeze_batch_norm_after: Statistics are frozen from this step on.
        freeze_ranges_after: Ranges are frozen from this step on.
    """

    delay_steps: int
    freeze_batch_norm_after: int | None
    freeze_ranges_after: int | None

    def following(self, step: int) -> int | None:
        """Returns the first step after `step` at which something changes."""
        steps = (
            self.delay_steps,
            self.freeze_batch_norm_after,
            self.freeze_ranges_after,
        )
        return min((at for at in steps if at is not None and at > step), default=None)

    def enter(self, model: Any, step: int) -> None:
        """Brings a model into the phase of a step; it traces its functions anew."""
        classes = fake_quantize.classes(_keras.module_of(model))
        changed = False
        for layer in _keras.leaf_layers(model):
            if isinstance(layer, classes.ActivationRange):
                changed |= _set(layer, "observing", step < self.delay_steps)
                if _is_past(self.freeze_ranges_after, step):
                    changed |= _set(layer, "trainable", False)
            elif isinstance(layer, classes.BatchNormalization):
                frozen = _is_past(self.freeze_batch_norm_after, step)
                changed |= _set(layer, "statistics_frozen", frozen)
        if changed:
            model.make_train_function(force=True)
            model.test_function = model.predict_function = None


def _is_past(limit: int | None, step: int) -> bool:
    return limit is not None and step >= limit


def _set(layer: Any, name: str, value: Any) -> bool:
    if getattr(layer, name) == value:
        return False
    setattr(layer, name, value)
    return True
