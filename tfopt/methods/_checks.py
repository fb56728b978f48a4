"""Checks of arguments that the methods share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_arguments(method: Any, checks: Mapping[str, tuple[bool, str]]) -> None:
    """Raises unless all arguments are good.

    Args:
        method: What holds them, each under its own name.
        checks: By name, whether the argument is good, and what is expected.

    Raises:
        ValueError: One is not; the message names the first.
    """
    for name, (is_good, expected) in checks.items():
        if not is_good:
            raise ValueError(
                f"`{name}` must be {expected}. "
                f"Received: {name}={getattr(method, name)!r}"
            )


def is_integer(value: Any, least: int) -> bool:
    """Returns whether a value is an integer, not a bool, and large enough."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
