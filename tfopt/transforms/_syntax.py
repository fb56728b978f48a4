"""The text form of a list of transforms, as the Graph Transform Tool reads it.

    strip_unused_nodes remove_nodes(op=Identity, op=CheckNumerics)
    quantize_weights(minimum_size=1024)

Names stand apart by whitespace; options are `name=value`, apart by commas, and may be
repeated; a value with spaces, commas or brackets is quoted (`shape="1,299,299,3"`).
"""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn

_NAME = re.compile(r"[A-Za-z_]\w*")
_PLAIN = re.compile(r"[^\s,()\"'=]+(?:=[^\s,()\"'=]+)*")
_QUOTED = re.compile(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_SPACE = re.compile(r"(?:\s|\\\r?\n)*")
# How much of the text before a fault a message shows.
_SHOWN = 40


class Written(NamedTuple):
    """One transform as it is written.

    Attributes:
        name: Its name.
        options: Option -> its values as text, in order.
    """

    name: str
    options: dict[str, tuple[str, ...]]


def parse(text: str) -> list[Written]:
    """Returns the transforms that a text lists.

    Args:
        text: See the module's docstring.

    Raises:
        ValueError: It breaks the rules; the message points at the character.

    Example:
        >>> parse('sort_by_execution_order remove_nodes(op=Identity, op="A B")')[1]
        Written(name='remove_nodes', options={'op': ('Identity', 'A B')})
    """
    scanner = _Scanner(text)
    found = []
    while not scanner.at_end():
        name = scanner.take(_NAME, "the name of a transform")
        found.append(Written(name, _options(scanner)))
        if not scanner.at_end() and not scanner.after_gap:
            scanner.fail("a space before the next transform")
    return found


def _options(scanner: _Scanner) -> dict[str, tuple[str, ...]]:
    options: dict[str, tuple[str, ...]] = {}
    if not scanner.skip("("):
        return options
    scanner.after_gap = True
    if scanner.skip(")"):
        return options
    while True:
        name = scanner.take(_NAME, "the name of an option")
        if not scanner.skip("="):
            scanner.fail("'=' and the option's value")
        options[name] = (*options.get(name, ()), scanner.value())
        if scanner.skip(")"):
            scanner.after_gap = True
            return options
        if not scanner.skip(","):
            scanner.fail("',' or ')'")


class _Scanner:
    """Reads a text piece by piece; whitespace before a piece is skipped.

    Attributes:
        after_gap: Whether a name may follow here: after whitespace or a bracket.
    """

    def __init__(self, text: str):
        self._text = text
        self._position = 0
        self.after_gap = True

    def at_end(self) -> bool:
        """Whether nothing but whitespace is left."""
        self._skip_space()
        return self._position == len(self._text)

    def skip(self, character: str) -> bool:
        """Skips a character if it is the next one."""
        self._skip_space()
        found = self._text.startswith(character, self._position)
        self._position += found
        return found

    def take(self, pattern: re.Pattern[str], what: str) -> str:
        """Returns what a pattern matches here."""
        self._skip_space()
        match = pattern.match(self._text, self._position)
        if match is None:
            self.fail(what)
        self._position = match.end()
        self.after_gap = False
        return match[0]

    def value(self) -> str:
        """Returns the value of an option, without its quotes."""
        self._skip_space()
        match = _QUOTED.match(self._text, self._position)
        if match is not None:
            self._position = match.end()
            content = match[1] if match[2] is None else match[2]
            return _ESCAPE.sub(r"\1", content)
        if self._text[self._position : self._position + 1] in ("'", '"'):
            self.fail("a quoted value that ends with the quote it begins with")
        return self.take(_PLAIN, "a value, quoted if it holds more than one word")

    def fail(self, expected: str) -> NoReturn:
        """Raises an error that points at the present character."""
        position = self._position
        found = repr(self._text[position]) if position < len(self._text) else "the end"
        before = self._text[max(0, position - _SHOWN) : position]
        raise ValueError(
            f"Cannot read the list of transforms. Expected {expected} at character "
            f"{position + 1}, after {before!r}, but found {found}. "
            f"Received: transforms={self._text!r}"
        )

    def _skip_space(self) -> None:
        match = _SPACE.match(self._text, self._position)
        if match is not None and match.end() > self._position:
            self._position = match.end()
            self.after_gap = True
