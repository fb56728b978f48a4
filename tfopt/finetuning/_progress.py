"""A bar on a terminal; a line for each epoch elsewhere."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from tfopt import _progress
from tfopt.methods._base import Method

_LOGGER = logging.getLogger(__name__)


class Bar:
    """Progress over all steps of a training.

    Attributes:
        epoch: The running epoch, from 0.
    """

    def __init__(self, display: Any, task: Any):
        self._display = display
        self._task = task
        self.epoch = 0

    def callback(self) -> Any:
        """Returns the Keras callback that moves the bar."""
        bar = self

        class Mover(Method):
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                del logs
                bar.begin(epoch, self.params["epochs"], self.params["steps"] or 0)

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                del logs
                bar.step(batch + 1)

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                bar.end(epoch, logs or {})

            def _implements_train_batch_hooks(self) -> bool:
                return not bar.is_silent

        return Mover()

    @property
    def is_silent(self) -> bool:
        """Whether there is no terminal to draw on."""
        return self._display.disable

    def begin(self, epoch: int, epochs: int, steps: int) -> None:
        """Starts an epoch."""
        self.epoch = epoch
        self._epochs, self._steps = epochs, steps
        text = f"epoch {epoch + 1}/{epochs}"
        self._display.update(self._task, description=text, completed=epoch * steps)

    def step(self, done: int) -> None:
        """Counts the steps of the epoch."""
        self._display.update(self._task, completed=self.epoch * self._steps + done)

    def end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        """Ends an epoch: elsewhere than on a terminal its figures are logged."""
        shown = "  ".join(f"{name} {float(value):.4f}" for name, value in logs.items())
        if self.is_silent:
            _LOGGER.info("epoch %d/%d  %s", epoch + 1, self._epochs, shown)
        else:
            self._display.console.print(f"epoch {epoch + 1}/{self._epochs}  {shown}")


@contextlib.contextmanager
def bar(total: int, done: int) -> Iterator[Bar]:
    """Yields the progress of a training of `total` steps, of which some are done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    drawn = _progress.display()
    if drawn is not None:  # of a tool, which draws one line for each task
        task = drawn.add_task("", total=total, completed=done)
        try:
            yield Bar(drawn, task)
        finally:
            drawn.remove_task(task)
        return
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as display:
        yield Bar(display, display.add_task("", total=total, completed=done))
