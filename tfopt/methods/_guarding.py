"""What methods share that keep weights in a set of values while a `fit` lasts.

A guard is what keeps them there: links in the weights' constraints, which both Keras
versions apply right after each update. A run is the state of one `fit`.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import numpy as np

from tfopt import _keras
from tfopt._keras import constraints, variables
from tfopt.methods._base import Method
from tfopt.types import TfoptError

_log = logging.getLogger(__name__)


class Guard:
    """Links in the constraints of some weights of a model.

    Args:
        model: The model, built and compiled.
        weights: Which weights of it, by name.
        links: One for each, by name; all of one class, which no other guard has.
    """

    # What messages call the method and what it does to weights.
    method = ""
    verb = ""

    def __init__(
        self,
        model: Any,
        weights: Mapping[str, variables.Weight],
        links: Mapping[str, constraints.Link],
    ):
        self._model = model
        self._weights = weights
        self._links = links

    def install(self) -> None:
        """Makes the optimizer's steps apply the links, from the next one on.

        The weights' own constraints go on working, before the links.
        """
        for name, link in self._links.items():
            variable = self._weights[name].variable
            for other in constraints.links(variable):
                if type(other) is type(link):
                    _log.warning("%s: removing what an aborted fit left.", name)
                    constraints.remove(variable, other)
            constraints.install(variable, link)
        # An earlier fit has traced the step without the links.
        variables.retrace(self._model)

    def remove(self) -> None:
        """Gives the weights their own constraints back; their values stay."""
        for name, link in self._links.items():
            constraints.remove(self._weights[name].variable, link)
        variables.forget_train_function(self._model)

    def check_installed(self) -> None:
        """Raises if another callback has replaced the links.

        Raises:
            TfoptError: It has; the message names the weight.
        """
        for name, link in self._links.items():
            if link not in constraints.links(self._weights[name].variable):
                raise TfoptError(
                    f"Something else has taken over the constraint of a {self.verb} "
                    f"weight. Expected one {self.method} callback per weight (use "
                    "`include` and `exclude` to divide them). "
                    f"Received: weight={name!r}"
                )

    def escaped(self) -> list[str]:
        """Returns the names of weights that are not what the links would leave."""
        raise NotImplementedError

    def enforce(self, names: list[str]) -> None:
        """Brings weights back that have escaped."""
        raise NotImplementedError

    def values(self) -> dict[str, np.ndarray]:
        """Returns the weights by name, as float arrays."""
        return {name: self.value(name) for name in self._weights}

    def value(self, name: str) -> np.ndarray:
        """Returns one weight, as float array."""
        return variables.to_numpy(self._weights[name].variable)


@dataclasses.dataclass(kw_only=True)
class GuardedRun:
    """The state of one `fit`; methods add their own.

    Attributes:
        guard: What is in force; None: it has not begun.
        reach: Upper bound of the optimizer steps after the coming execution.
        checked: Whether the guard was seen to be installed.
    """

    guard: Any = None
    reach: int = 0
    checked: bool = False

    def enforce(self, when: str) -> None:
        """Brings weights back that something wrote past the guard, with a warning."""
        escaped = self.guard.escaped() if self.guard is not None else []
        if escaped:
            warn(
                f"{self.guard.verb.capitalize()} weights of {escaped} were written "
                f"past the optimizer {when}, by a callback that brings back earlier "
                "weights or by a training step of the model's own. They are "
                f"{self.guard.verb} again."
            )
            self.guard.enforce(escaped)


AnyRun = TypeVar("AnyRun", bound=GuardedRun)


class GuardingMethod(Method, Generic[AnyRun]):
    """A method with a guard in force from a fit's first epoch to its end.

    Subclasses say how a run starts, what is due before a batch, and what is to be
    done at the end.

    Attributes:
        report: After `fit` has started: one dictionary per weight of the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.report: list[dict[str, Any]] = []
        self._run: AnyRun | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Cleans up after an aborted fit; the new one starts with its first epoch."""
        del logs
        self._end_run()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts at the first epoch: only now is the plan of `fit` known.

        By now, all callbacks have begun and a backup has restored weights and steps.
        """
        del logs
        if self._run is None:
            _keras.check_model(self.model)
            self._run = self._start(epoch)
        self._run.reach = variables.iterations(self.model)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Checks that nothing has written weights past the guard."""
        del logs
        if self._run is not None:
            self._run.enforce(f"in epoch {epoch}")

    def on_train_end(self, logs: Any = None) -> None:
        """Gives the weights their own constraints back; their values stay."""
        del logs
        if self._run is None:  # there was no epoch
            return
        try:
            self._finish(self._run)
        finally:
            self._end_run()

    def _start(self, epoch: int) -> AnyRun:
        """Returns the run of a `fit` whose first epoch has this number."""
        raise NotImplementedError

    def _finish(self, run: AnyRun) -> None:
        """Does what a training that was not aborted has at its end."""
        raise NotImplementedError

    def _end(self, run: AnyRun) -> None:
        """Takes everything off the model again; fills in the report."""
        raise NotImplementedError

    def _end_run(self) -> None:
        if self._run is not None:
            self._end(self._run)
            self._run = None

    def _current_run(self, batch: int) -> AnyRun:
        """Returns the run, with its guard checked once, before a batch.

        Raises:
            TfoptError: No epoch has begun, or the guard is not in force.
        """
        run = self._run
        if run is None:
            name = type(self).__name__
            raise TfoptError(
                f"{name} was not told that an epoch began. Expected `fit`, or a "
                "training loop that calls `on_train_begin`, `on_epoch_begin` and so "
                f"on, as keras.callbacks.CallbackList does. Received: batch={batch}"
            )
        if run.guard is not None and not run.checked:
            run.guard.check_installed()
            run.checked = True
        return run


def warn(message: str) -> None:
    """Issues a UserWarning."""
    warnings.warn(message, UserWarning, stacklevel=2)
