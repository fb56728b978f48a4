"""Options of transforms: from text to values, and checking values given in Python."""

from __future__ import annotations

import collections.abc
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfopt._signatures import Parameter

_WORDS: dict[type, Mapping[str, Any]] = {
    bool: {"true": True, "1": True, "false": False, "0": False},
    types.NoneType: {"none": None},
}
_EXPECTED = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    types.NoneType: "none",
}


def from_text(owner: str, parameter: Parameter, texts: Sequence[str]) -> Any:
    """Returns the value that an option's texts mean by its annotation.

    Args:
        owner: Name of the transform, for messages.
        parameter: The option.
        texts: What was written, once for each time the option was given.

    Raises:
        ValueError: It has another type, or was repeated and takes one value.
    """
    kinds = members(parameter.annotation)
    item = _item_of(kinds)
    if item is not None:
        values = tuple(_read_any(text, item) for text in texts)
        if _UNREADABLE in values:
            raise _wrong(owner, parameter, texts[values.index(_UNREADABLE)])
        return values
    if len(texts) > 1:
        raise ValueError(
            f"{owner} takes the option once. Expected one value. "
            f"Received: {', '.join(f'{parameter.name}={text}' for text in texts)}"
        )
    value = _read_any(texts[0], kinds)
    if value is _UNREADABLE:
        raise _wrong(owner, parameter, texts[0])
    return value


def check(owner: str, parameter: Parameter, value: Any) -> Any:
    """Returns a value given in Python, if its type fits the option's annotation.

    Raises:
        ValueError: It doesn't.
    """
    kinds = members(parameter.annotation)
    item = _item_of(kinds)
    is_list = isinstance(value, (list, tuple))
    if item is not None and is_list and all(_fits(one, item) for one in value):
        return tuple(value)
    if isinstance(value, np.generic):
        value = value.item()
    if not _fits(value, kinds):
        raise _wrong(owner, parameter, value)
    return value


def members(annotation: Any) -> tuple[Any, ...]:
    """Returns the members of a union, or the annotation itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(
            kind for part in typing.get_args(annotation) for kind in members(part)
        )
    return (types.NoneType,) if annotation is None else (annotation,)


def close_to(name: str, known: Iterable[str]) -> str:
    """Returns a question with the names that are like a wrong one, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def in_words(annotation: Any) -> str:
    """Returns what an option takes, for people."""
    return " or ".join(_in_words(kind) for kind in members(annotation))


def _in_words(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(str(value) for value in typing.get_args(kind))
    item = _item_of((kind,))
    if item is not None:
        return f"{' or '.join(_in_words(one) for one in item)}, may be repeated"
    return _EXPECTED.get(kind, str(kind))


class _Unreadable:
    """Stands for a text that none of the kinds takes."""


_UNREADABLE = _Unreadable()


def _item_of(kinds: Sequence[Any]) -> tuple[Any, ...] | None:
    """Returns the kinds of a sequence's items, if there is a sequence among kinds."""
    sequences = (collections.abc.Sequence, tuple, list)
    for kind in kinds:
        if typing.get_origin(kind) in sequences:
            return members(typing.get_args(kind)[0])
    return None


def _read_any(text: str, kinds: Sequence[Any]) -> Any:
    # str takes everything, so it comes last.
    for kind in sorted(kinds, key=lambda kind: kind is str):
        value = _read(text, kind)
        if value is not _UNREADABLE:
            return value
    return _UNREADABLE


def _read(text: str, kind: Any) -> Any:
    if typing.get_origin(kind) is typing.Literal:
        choices = {str(value): value for value in typing.get_args(kind)}
        return choices.get(text, _UNREADABLE)
    if kind in _WORDS:
        return _WORDS[kind].get(text.lower(), _UNREADABLE)
    if kind in (int, float, str):
        try:
            return kind(text)
        except ValueError:
            pass
    return _UNREADABLE


def _fits(value: Any, kinds: Sequence[Any]) -> bool:
    for kind in kinds:
        if typing.get_origin(kind) is typing.Literal:
            if any(
                value == one and type(value) is type(one)
                for one in typing.get_args(kind)
            ):
                return True
        elif kind is float:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return True
        elif isinstance(kind, type) and type(value) is kind:
            return True
    return False


def _wrong(owner: str, parameter: Parameter, value: Any) -> ValueError:
    return ValueError(
        f"Cannot use this as {parameter.name} of {owner}. Expected "
        f"{in_words(parameter.annotation)}. Received: {parameter.name}={value!r}"
    )
