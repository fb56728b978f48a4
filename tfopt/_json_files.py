"""JSON files that are read back, and plain data as what it was written from.

Whoever reads one says what was expected and names the file; here is found out whether
the content is that.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import json
import math
import os
import types
import typing
from typing import Any

_MOST_BYTES = 1 << 26
# As `artifacts.to_json` writes what JSON has no numbers for.
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_LISTS = (tuple, list, collections.abc.Sequence)
_OBJECTS = (dict, collections.abc.Mapping)


class Damaged(ValueError):
    """The content is not what was written; the message says where it differs."""


def read(path: str | os.PathLike[str]) -> Any:
    """Returns the content of a JSON file.

    Raises:
        FileNotFoundError: There is none.
        Damaged: It cannot be read, is no JSON, is larger than 64 MiB or nested deeper
            than Python's stack, or names a member of an object twice.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "x.json"
        >>> _ = file.write_text('{"a": [1, null]}')
        >>> read(file)
        {'a': [1, None]}
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES:,} bytes")
        return loads(data)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(error.strerror or str(error)) from error
    except ValueError as error:
        raise Damaged(f"no JSON: {error}") from error


def load(cls: Any, path: str | os.PathLike[str], *, kind: str) -> Any:
    """Returns a dataclass from a file that says what it holds.

    Args:
        cls: The dataclass.
        path: A file with the fields, and with `"format"`.
        kind: What the format has to be.

    Raises:
        FileNotFoundError: There is none.
        Damaged: It cannot be read, is of another format, or its fields are others.
    """
    data = read(path)
    if not isinstance(data, dict) or data.pop("format", None) != kind:
        raise Damaged(f"its format is not {kind}")
    data.pop("version", None)
    return make(cls, data)


def loads(text: str | bytes) -> Any:
    """Returns the content of JSON text.

    Raises:
        ValueError: It is none.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def make(kind: Any, content: Any, *, where: str = "") -> Any:
    """Returns plain data as a type that was written as such.

    Args:
        kind: A dataclass, or what annotations of its fields may be: `bool`, `int`,
            `float`, `str`, `None`, `Any`, `Literal`, unions, tuples, lists and mappings
            with texts as keys, of these.
        content: The data.
        where: Its place in the file, for messages.

    Raises:
        Damaged: It does not fit.

    Example:
        >>> make(dict[str, tuple[int, ...]], {"a": [1, 2]})
        {'a': (1, 2)}
        >>> try:
        ...     make(dict[str, tuple[int, ...]], {"a": [1, "2"]})
        ... except Damaged as error:
        ...     print(error)
        expected int at .a[1], found '2'
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _one_of(arguments, content, where)
    if kind is Any:
        return content
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, content, where)
    base = origin or kind
    if base in _LISTS and isinstance(content, list):
        return _list(base, arguments, content, where)
    if base in _OBJECTS and isinstance(content, dict):
        value = arguments[1] if arguments else Any
        return {
            key: make(value, item, where=f"{where}.{key}")
            for key, item in content.items()
        }
    if origin is typing.Literal:
        known = any(
            content == item and type(content) is type(item) for item in arguments
        )
        if known:
            return content
    elif kind is float:
        if isinstance(content, str) and content in _NOT_FINITE:
            return _NOT_FINITE[content]
        if isinstance(content, (int, float)) and not isinstance(content, bool):
            return _float(content, where)
    elif kind in (None, types.NoneType):
        if content is None:
            return None
    elif kind in (bool, int, str) and type(content) is kind:
        return content
    raise _unexpected(kind, content, where)


def _one_of(kinds: Any, content: Any, where: str) -> Any:
    faults = []
    for kind in kinds:
        try:
            return make(kind, content, where=where)
        except Damaged as error:
            faults.append(error)
    if content is None or len(kinds) > 2 or types.NoneType not in kinds:
        raise _unexpected(" or ".join(map(_name, kinds)), content, where)
    # An optional thing: what is wrong with the thing says more.
    raise faults[kinds[0] is types.NoneType]


def _dataclass(kind: Any, content: Any, where: str) -> Any:
    if not isinstance(content, dict):
        raise _unexpected(kind, content, where)
    hints = _hints(kind)
    unknown = sorted(set(content) - set(hints))
    if unknown:
        raise Damaged(f"nothing is called {unknown[0]!r:.80} at {where or 'the top'}")
    fields = {
        name: make(hints[name], item, where=f"{where}.{name}")
        for name, item in content.items()
    }
    try:
        return kind(**fields)
    except TypeError as error:  # a field is missing
        raise Damaged(f"{error} at {where or 'the top'}") from error


def _list(base: Any, arguments: Any, content: list[Any], where: str) -> Any:
    if not arguments:
        kinds = [Any] * len(content)
    elif base is not tuple or arguments[-1] is Ellipsis:
        kinds = [arguments[0]] * len(content)
    else:
        kinds = list(arguments)
    if len(kinds) != len(content):
        raise Damaged(f"expected {len(kinds)} items at {where}, found {len(content)}")
    items = [
        make(kind, item, where=f"{where}[{index}]")
        for index, (kind, item) in enumerate(zip(kinds, content, strict=True))
    ]
    return items if base is list else tuple(items)


def _float(number: int | float, where: str) -> float:
    try:
        return float(number)
    except OverflowError as error:
        raise Damaged(f"a number of {len(str(number))} digits at {where}") from error


def _unexpected(kind: Any, content: Any, where: str) -> Damaged:
    name = kind if isinstance(kind, str) else _name(kind)
    place = where or "the top"
    return Damaged(f"expected {name} at {place}, found {_shown(content)}")


def _shown(content: Any) -> str:
    if isinstance(content, (dict, list)):
        return f"a {type(content).__name__} of {len(content)} items"
    if isinstance(content, int) and not -(1 << 64) < content < 1 << 64:
        return "a huge number"
    return f"{content!r:.80}"


def _name(kind: Any) -> str:
    return (
        str(kind) if typing.get_origin(kind) else getattr(kind, "__name__", str(kind))
    )


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a member of an object is there twice")
    return content


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")
