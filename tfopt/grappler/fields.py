"""Values of protobuf fields as plain Python, checked against the installed schema.

Enums are lower-case names, messages are dictionaries. Nothing here knows a particular
field, so whatever a newer TensorFlow adds is read, checked and written the same way.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

# Python types that a scalar field takes, by what FieldDescriptor.cpp_type says.
_INTEGERS = (1, 2, 3, 4)
_FLOATS = (5, 6)
_BOOL, _ENUM, _STRING, _MESSAGE = 7, 8, 9, 10
_ATTR_VALUE = "tensorflow.AttrValue"


def write(message: Any, name: str, value: Any, where: str = "") -> None:
    """Sets a field of a message from plain Python.

    Args:
        message: The message, changed in place.
        name: Name of the field.
        value: A bool, number, string, name of an enum's value, dictionary, or a
            sequence of these; text that starts with `{` or `[` is read as JSON where
            messages are expected.
        where: Names of the fields around it, for messages of errors.

    Raises:
        ValueError: The message has no such field, or the field takes no such value.

    Example:
        >>> from tfopt.savedmodel import protos
        >>> config = protos.message_class("RewriterConfig")()
        >>> write(config, "remapping", "off")
        >>> read(config)
        {'remapping': 'off'}
    """
    field = message.DESCRIPTOR.fields_by_name.get(name)
    path = f"{where}.{name}" if where else name
    if field is None:
        known = [item.name for item in message.DESCRIPTOR.fields]
        raise ValueError(
            f"Unknown option. {expected(name, known)} Received: {path}={value!r}"
        )
    if _is_map(field):
        _write_map(message, field, value, path)
    elif _is_repeated(field):
        target = getattr(message, name)
        del target[:]
        for item in _items(field, value, path):
            if field.cpp_type == _MESSAGE:
                _write_message(target.add(), item, path)
            else:
                target.append(_scalar(field, item, path))
    elif field.cpp_type == _MESSAGE:
        target = getattr(message, name)
        target.Clear()
        target.SetInParent()
        _write_message(target, value, path)
    else:
        setattr(message, name, _scalar(field, value, path))


def read(message: Any) -> dict[str, Any]:
    """Returns the set fields of a message as plain Python; `write` takes them back."""
    return {field.name: _plain(field, value) for field, value in message.ListFields()}


def parse(message: Any, name: str, text: str) -> Any:
    """Returns what a text on a command line means for a field; `write` checks it."""
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if field is None or field.cpp_type in (_ENUM, _STRING):
        return text
    try:
        return json.loads(text)
    except ValueError:
        # Not a number, true or false: `write` says what is expected.
        return text


def expected(name: str, known: Iterable[str]) -> str:
    """Returns "Did you mean ...? Expected one of ...", for messages of errors."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}Expected one of: {', '.join(names)}."


def _is_map(field: Any) -> bool:
    kind = field.message_type
    return kind is not None and kind.GetOptions().map_entry


def _is_repeated(field: Any) -> bool:
    # Older protobuf has no `is_repeated`, newer no `label`.
    is_repeated = getattr(field, "is_repeated", None)
    return field.label == 3 if is_repeated is None else is_repeated


def _items(field: Any, value: Any, path: str) -> Iterable[Any]:
    if isinstance(value, str) and value[:1] == "[":
        value = _from_json(value, path)
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise ValueError(f"Expected a list. Received: {path}={value!r}")
    return value


def _scalar(field: Any, value: Any, path: str) -> Any:
    kind = field.cpp_type
    if kind == _ENUM:
        names = {item.name.lower(): item.number for item in field.enum_type.values}
        if not isinstance(value, str) or value.lower() not in names:
            raise ValueError(
                f"Unknown value. {expected(str(value), names)} "
                f"Received: {path}={value!r}"
            )
        return names[value.lower()]
    if kind == _BOOL:
        good, what = isinstance(value, bool), "True or False"
    elif kind in _INTEGERS:
        good = isinstance(value, int) and not isinstance(value, bool)
        what = "an integer"
    elif kind in _FLOATS:
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        what = "a number"
    else:
        good, what = isinstance(value, (str, bytes)), "a string"
    if good and kind in _INTEGERS:
        low, high = _range(kind)
        good = low <= value <= high
        what += f" from {low} to {high}"
    if not good:
        raise ValueError(f"Expected {what}. Received: {path}={value!r}")
    return value


def _range(kind: int) -> tuple[int, int]:
    bits = 32 if kind in (1, 3) else 64
    if kind in (3, 4):
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def _write_message(message: Any, value: Any, path: str) -> None:
    if isinstance(value, str) and value[:1] == "{":
        value = _from_json(value, path)
    elif isinstance(value, str) and "name" in message.DESCRIPTOR.fields_by_name:
        # A custom optimizer without parameters is its name.
        value = {"name": value}
    if message.DESCRIPTOR.full_name == _ATTR_VALUE and not isinstance(value, Mapping):
        _write_attr_value(message, value, path)
        return
    if not isinstance(value, Mapping):
        raise ValueError(f"Expected a dictionary. Received: {path}={value!r}")
    for name, item in value.items():
        write(message, name, item, path)


def _write_attr_value(message: Any, value: Any, path: str) -> None:
    kinds = {bool: "b", int: "i", float: "f", str: "s", bytes: "s"}
    if type(value) not in kinds:
        raise ValueError(
            "Expected a bool, number, string, or the fields of an AttrValue as a "
            f"dictionary. Received: {path}={value!r}"
        )
    content = value.encode() if isinstance(value, str) else value
    setattr(message, kinds[type(value)], content)


def _write_map(message: Any, field: Any, value: Any, path: str) -> None:
    if not isinstance(value, Mapping):
        raise ValueError(f"Expected a dictionary. Received: {path}={value!r}")
    target = getattr(message, field.name)
    target.clear()
    content = field.message_type.fields_by_name["value"]
    for key, item in value.items():
        if content.cpp_type == _MESSAGE:
            _write_message(target[key], item, f"{path}.{key}")
        else:
            target[key] = _scalar(content, item, f"{path}.{key}")


def _from_json(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"Expected JSON ({error}). Received: {path}={text}") from error


def _plain(field: Any, value: Any) -> Any:
    if _is_map(field):
        content = field.message_type.fields_by_name["value"]
        return {key: _plain_item(content, value[key]) for key in sorted(value)}
    if _is_repeated(field):
        return [_plain_item(field, item) for item in value]
    return _plain_item(field, value)


def _plain_item(field: Any, value: Any) -> Any:
    if field.cpp_type == _ENUM:
        return field.enum_type.values_by_number[value].name.lower()
    if field.cpp_type != _MESSAGE:
        return value
    plain = read(value)
    if value.DESCRIPTOR.full_name == _ATTR_VALUE and set(plain) <= {*"bifs"}:
        # `write` makes an AttrValue of the bare value, too.
        content = getattr(value, value.WhichOneof("value"))
        return content.decode() if isinstance(content, bytes) else content
    return plain
