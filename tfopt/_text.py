"""Text from models as something that a terminal shows and does not obey."""

from __future__ import annotations

import re

# Control characters but line feed and tab, and those that turn the direction of text.
# Sequences such as ESC [ 2 J would erase or fake what stands on a terminal.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


def printable(text: str) -> str:
    r"""Returns a text with its control characters written out.

    Args:
        text: Whatever a model or file is called, or a text with such names in it.

    Example:
        >>> print(printable("name\x1b[2J"))
        name\x1b[2J
    """
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)
