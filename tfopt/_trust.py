"""Whether what is opened now is trusted: `safe_mode=False` of a public function.

It holds for all that the function opens on the way, in its own thread; a child process
has to be told.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")

_TRUSTED = contextvars.ContextVar("tfopt_trusted", default=False)

HOW = (
    "If you trust where it is from, allow it deliberately: safe_mode=False "
    "(--nosafe_mode)"
)


def is_trusted() -> bool:
    """Whether models are opened and run without being checked first."""
    return _TRUSTED.get()


@contextlib.contextmanager
def scope(safe_mode: bool) -> Iterator[None]:
    """Trusts what is opened in this block if `safe_mode` is False.

    True changes nothing, so what a trusting function calls trusts, too.
    """
    token = _TRUSTED.set(_TRUSTED.get() or not safe_mode)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def with_safe_mode(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Makes the keyword `safe_mode` of a function hold for all that it opens."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with scope(bool(kwargs.get("safe_mode", True))):
            return function(*args, **kwargs)

    return wrapped
