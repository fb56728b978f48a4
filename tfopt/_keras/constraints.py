"""Several functions in the one `constraint` that a variable of either Keras has.

A constraint is applied right after each update, inside the compiled training step. What
methods install there are links: each calls the one inside it first, and innermost is
the constraint that the user gave the layer. Methods come and go in any order, so a
link has a rank that says where in the chain it belongs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfopt._keras import variables


class Link:
    """One function of the chain.

    Attributes:
        rank: Links of higher rank are applied after, and see what the others leave.
        inner: What is applied before: another link, the user's constraint or None.
    """

    rank = 0
    inner: Callable[[Any], Any] | None = None

    def __call__(self, weight: Any) -> Any:
        """Returns the constrained weight; a variable comes in, a tensor goes out."""
        return self.apply(weight if self.inner is None else self.inner(weight))

    def apply(self, value: Any) -> Any:
        """Returns what this link makes of a weight."""
        raise NotImplementedError


def links(variable: Any) -> list[Link]:
    """Returns the links installed on a variable, the outermost first."""
    found = []
    link = variables.get_constraint(variable)
    while isinstance(link, Link):
        found.append(link)
        link = link.inner
    return found


def install(variable: Any, link: Link) -> None:
    """Puts a link outside of those of its rank or a lower one.

    A train function that was traced before does not see it: call `variables.retrace`.
    """
    outside = [other for other in links(variable) if other.rank > link.rank]
    if outside:
        link.inner, outside[-1].inner = outside[-1].inner, link
    else:
        link.inner = variables.get_constraint(variable)
        variables.set_constraint(variable, link)


def remove(variable: Any, link: Link) -> None:
    """Takes a link out of the chain; nothing happens if it is not in it."""
    chain = links(variable)
    if link not in chain:
        return
    position = chain.index(link)
    if position:
        chain[position - 1].inner = link.inner
    else:
        variables.set_constraint(variable, link.inner)
