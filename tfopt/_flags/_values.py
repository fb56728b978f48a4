"""What a command line can write for an annotation, and how it is read."""

from __future__ import annotations

import collections.abc
import contextlib
import csv
import os
import pathlib
import types
import typing
from typing import Any

from absl import flags

from tfopt import _signatures

_SCALARS = (bool, int, float, pathlib.Path, str)
_SEQUENCES = (
    tuple,
    list,
    collections.abc.Sequence,
    collections.abc.Iterable,
    collections.abc.Collection,
)


def make_flag(
    parameter: _signatures.Parameter, kinds: tuple[Any, ...], prefix: str, needed: bool
) -> flags.Flag:
    """Returns the flag of a parameter.

    Args:
        parameter: Its name, default and help.
        kinds: From `kinds_of`, not empty.
        prefix: Stands before its name, unless empty.
        needed: Whether it must be given.
    """
    name = f"{prefix}.{parameter.name}" if prefix else parameter.name
    text = parameter.help + (" (required)" if needed else "")
    default = parameter.default
    if needed or default is _signatures.Required or not _is_plain(default):
        # Required, or made by code that is not run here; the function knows it.
        default = None
    if parameter.default is None:
        # Leaving the flag out says it.
        kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
    if kinds == (bool,):
        return flags.BooleanFlag(name, default, text)
    sequence = next((kind for kind in kinds if _is_sequence(kind)), None)
    if sequence is None:
        return flags.Flag(_Parser(kinds), _Serializer(), name, default, text)
    return _ListFlag(_ListParser(sequence), _Serializer(), name, default, text)


def kinds_of(annotation: Any) -> tuple[Any, ...]:
    """Returns the members of an annotation that a command line can write.

    These are scalars of `_SCALARS`, None, `Literal` types and sequence types.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        members = tuple(kind for item in arguments for kind in kinds_of(item))
        return members if any(kind is not types.NoneType for kind in members) else ()
    if annotation in (None, types.NoneType):
        return (types.NoneType,)
    if annotation in (os.PathLike, pathlib.PurePath) or origin is os.PathLike:
        return (str,)
    if annotation in _SCALARS or origin is typing.Literal:
        return (annotation,)
    if origin in _SEQUENCES and arguments and _item_kinds(annotation):
        return (annotation,)
    return ()


def _item_kinds(sequence: Any) -> tuple[Any, ...]:
    items = [item for item in typing.get_args(sequence) if item is not Ellipsis]
    kinds = [kinds_of(item) for item in items]
    return tuple(kinds) if all(kinds) else ()


def _is_sequence(kind: Any) -> bool:
    return typing.get_origin(kind) in _SEQUENCES


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, _SCALARS)


class _Parser(flags.ArgumentParser):
    """Parses a scalar by the first member of a union that takes the text."""

    def __init__(self, kinds: tuple[Any, ...]) -> None:
        super().__init__()
        # str takes everything, so it comes last.
        self._kinds = sorted(kinds, key=lambda kind: kind is str)
        self.syntactic_help = self._expected()

    def parse(self, argument: Any) -> Any:
        """Returns the value; a default that is no text is kept."""
        if not isinstance(argument, str):
            return argument
        for kind in self._kinds:
            with contextlib.suppress(ValueError):
                return _convert(argument, kind)
        raise ValueError(f"expected {self._expected()}")

    def flag_type(self) -> str:
        """Returns the expected values in words."""
        return self._expected()

    def _expected(self) -> str:
        return " or ".join(_in_words(kind) for kind in self._kinds)


class _ListParser(flags.ArgumentParser):
    """Parses `a,b,c` (quoted as in CSV) into a tuple, or a list if that is wanted."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self._make = list if typing.get_origin(kind) is list else tuple
        self._items = [_Parser(kinds) for kinds in _item_kinds(kind)]
        self.is_fixed = typing.get_origin(
            kind
        ) is tuple and Ellipsis not in typing.get_args(kind)
        self.syntactic_help = self.flag_type()

    def parse(self, argument: Any) -> Any:
        """Returns the items of one occurrence of the flag."""
        if not isinstance(argument, str):
            return self._make(argument)
        try:
            texts = next(csv.reader([argument], strict=True, skipinitialspace=True), [])
        except csv.Error as error:
            raise ValueError(f"expected {self.flag_type()}: {error}") from error
        parsers = self._items if self.is_fixed else self._items * len(texts)
        if len(parsers) != len(texts):
            raise ValueError(f"expected {self.flag_type()}")
        return self._make(
            parser.parse(text) for parser, text in zip(parsers, texts, strict=True)
        )

    def flag_type(self) -> str:
        """Returns the expected values in words."""
        words = [parser.flag_type() for parser in self._items]
        if self.is_fixed:
            return f"{len(words)} values with commas: {', '.join(words)}"
        return f"a comma separated list, each {words[0]}; may be repeated"


class _ListFlag(flags.Flag):
    """A flag whose occurrences add up, unless its length is fixed."""

    def parse(self, argument: Any) -> None:
        """Takes the items of one occurrence."""
        flag: Any = self
        items = self._parse(argument)
        if self.present and not flag.parser.is_fixed:
            items = flag.value + items
        flag.value = items
        self.present += 1


class _Serializer(flags.ArgumentSerializer):
    """Writes a value as it would be typed."""

    def serialize(self, value: Any) -> str:
        """Returns the text of a value."""
        if isinstance(value, (tuple, list)):
            return ",".join(str(item) for item in value)
        return str(value)


def _convert(text: str, kind: Any) -> Any:
    """Returns the text as a value of one scalar kind, or raises ValueError."""
    if kind is types.NoneType:
        choices: dict[str, Any] = {"none": None, "None": None}
    elif kind is bool:
        choices = {"true": True, "True": True, "false": False, "False": False}
    elif typing.get_origin(kind) is typing.Literal:
        choices = {str(value): value for value in typing.get_args(kind)}
    else:
        return kind(text)
    if text not in choices:
        raise ValueError(text)
    return choices[text]


def _in_words(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        choices = [str(value) for value in typing.get_args(kind)]
        return choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)
    return {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        pathlib.Path: "a path",
        types.NoneType: "none",
    }[kind]
