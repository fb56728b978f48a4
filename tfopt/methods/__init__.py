"""Training-time methods, one file each; this folder is the registry.

Every module here without a leading underscore defines one `Method`. Adding a file
is all it takes to add a method.
"""

from __future__ import annotations

import importlib
import pkgutil

from tfopt.methods._base import Method


def names() -> list[str]:
    """Returns the names of all methods, sorted.

    Example:
        >>> "prune" in names()
        True
    """
    return sorted(
        module.name
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    )


def get(name: str) -> type[Method]:
    """Returns the method class that a module of this folder defines.

    Args:
        name: A module name, one of `names()`.

    Raises:
        ValueError: There is no such method; the message lists those that exist.
    """
    if name not in names():
        raise ValueError(
            f"Unknown method. Expected one of {names()}. Received: name={name!r}"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value is not Method
        and value.__module__.startswith(module.__name__)
    ]
    if len(found) != 1:
        raise ValueError(
            f"The module {module.__name__} must define exactly one Method. "
            f"Received: {[cls.__name__ for cls in found]}"
        )
    return found[0]
