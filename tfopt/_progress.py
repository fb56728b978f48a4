"""What long work is doing, on the terminal of a tool; nothing for users of the library.

Library code reports by `task`. Only within `shown`, which tools enter, and only if
stderr is a terminal, is it drawn: a line for each task under way, with what is done of
what is known, and the time. Everywhere else reporting costs a look-up and does nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar

from tfopt import _text

_T = TypeVar("_T")

_DISPLAY: contextvars.ContextVar[Any] = contextvars.ContextVar(
    "tfopt_progress", default=None
)


def display() -> Any:
    """Returns rich's Progress that is drawn now, `None` if there is none."""
    return _DISPLAY.get()


@contextlib.contextmanager
def task(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Shows that something is being done, until the block ends.

    Args:
        what: In a few words, such as `"converting"`; it may hold names of models.
        total: Number of parts, if known.

    Yields:
        A function of the number of parts that were done, by default 1, and optionally
        of other words from now on (`what`).

    Example:
        >>> with task("measuring", total=2) as advance:
        ...     advance()
        ...     advance(what="measuring the rest")
    """
    shown = _DISPLAY.get()
    if shown is None:
        yield _nothing
        return
    added = shown.add_task(_text.printable(what), total=total)

    def advance(parts: int = 1, *, what: str | None = None) -> None:
        words = {} if what is None else {"description": _text.printable(what)}
        shown.update(added, advance=parts, **words)

    try:
        yield advance
    finally:
        shown.remove_task(added)


def each(items: Iterable[_T], what: str, total: int | None = None) -> Iterator[_T]:
    """Yields items, and shows how many are done.

    Args:
        items: What is gone through.
        what: As for `task`.
        total: Their number; by default their length, if they have one.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with task(what, total) as advance:
        for item in items:
            yield item
            advance()


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Draws what is done in this block, if stderr is a terminal; used by tools only."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    class Parts(MofNCompleteColumn):
        def render(self, task: Any) -> Any:
            return super().render(task) if task.total is not None else ""

    class Left(TimeRemainingColumn):
        def render(self, task: Any) -> Any:
            return super().render(task) if task.total is not None else ""

    drawn = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        Parts(),
        TimeElapsedColumn(),
        Left(),
        console=Console(file=sys.stderr),
        transient=True,
        redirect_stdout=False,
        refresh_per_second=4,
    )
    with drawn:
        token = _DISPLAY.set(drawn)
        try:
            yield
        finally:
            _DISPLAY.reset(token)


def _nothing(parts: int = 1, *, what: str | None = None) -> None:
    del parts, what
