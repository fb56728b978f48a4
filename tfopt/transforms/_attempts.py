"""Rewriting nodes one by one, each if it fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfopt.transforms import _semantics
from tfopt.transforms._draft import Draft
from tfopt.transforms._graph import Body
from tfopt.transforms._linear import Unfit


def rewrite_each(
    body: Body,
    is_meant: Callable[[Any], bool],
    rewrite: Callable[[Any, Draft], None],
) -> tuple[int, list[dict[str, str]]]:
    """Rewrites nodes of a body.

    Args:
        body: The body.
        is_meant: Whether a node is to be rewritten.
        rewrite: Drafts the change; raises `Unfit`, before it changes anything, where
            there is to be none.

    Returns:
        How many were rewritten, and the others that were meant with the reasons.
    """
    draft, done, skipped = Draft(body), 0, []
    for node in body:
        if not is_meant(node):
            continue
        try:
            rewrite(node, draft)
        except Unfit as why:
            name = _semantics.place(body, node.name)
            skipped.append({"node": name, "reason": str(why)})
        else:
            done += 1
    if done:
        draft.write()
    return done, skipped
