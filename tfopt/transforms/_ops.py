"""What operations are: names of their outputs, state, attributes of nodes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt.freezing import flow
from tfopt.savedmodel import dtypes, protos
from tfopt.types import TfoptError

# TF1's loops go round through these.
BACK_EDGES = frozenset({"NextIteration", "RefNextIteration"})


@functools.cache
def op_def(name: str) -> Any:
    """Returns the OpDef of a registered operation; `None` if there is none.

    The first call loads TensorFlow, whose registry it asks.
    """
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(name)


def signature(node: Any, library: Mapping[str, Any]) -> Any:
    """Returns the OpDef of a node, also if its operation is a function's name."""
    if node.op in library:
        return library[node.op].signature
    return op_def(node.op)


def output_counts(node: Any, library: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Returns name and length of each output argument; empty for unknown operations.

    Args:
        node: The NodeDef.
        library: Name -> FunctionDef.
    """
    definition = signature(node, library)
    if definition is None:
        return []
    return [(arg.name, count_of(node, arg)) for arg in definition.output_arg]


def count_of(node: Any, arg: Any) -> int:
    """Returns how many tensors an argument (ArgDef) of a node stands for."""
    if arg.type_list_attr:
        return len(node.attr[arg.type_list_attr].list.type)
    return node.attr[arg.number_attr].i if arg.number_attr else 1


def output_types(node: Any, library: Mapping[str, Any]) -> list[int] | None:
    """Returns the DataType of each output; `None` for unknown operations."""
    definition = signature(node, library)
    if definition is None:
        return None
    return _types(node, definition, definition.output_arg)


def input_types(node: Any, library: Mapping[str, Any]) -> list[int] | None:
    """Returns the DataType of each data input; `None` for unknown operations."""
    definition = signature(node, library)
    if definition is None:
        return None
    return _types(node, definition, definition.input_arg)


def _types(node: Any, definition: Any, args: Any) -> list[int]:
    types: list[int] = []
    for arg in args:
        if arg.type_list_attr:
            types += node.attr[arg.type_list_attr].list.type
        else:
            kind = arg.type or _type_attribute(node, definition, arg.type_attr)
            types += [kind] * count_of(node, arg)
    return types


def _type_attribute(node: Any, definition: Any, name: str) -> int:
    if name in node.attr:
        return node.attr[name].type
    return next(
        attr.default_value.type for attr in definition.attr if attr.name == name
    )


def flat_index(node: Any, rest: str, library: Mapping[str, Any]) -> int | str:
    """Returns the number of the output that a function writes as `"output:0"`."""
    argument, _, position = rest.partition(":")
    first = 0
    for name, count in output_counts(node, library):
        if name == argument:
            return first + int(position or 0)
        first += count
    return rest


def output_name(node: Any, index: int | str, library: Mapping[str, Any]) -> str:
    """Returns how a function writes an output of a node, as `"output:0"`.

    Raises:
        TfoptError: The node has no such output.
    """
    if isinstance(index, str):
        return index
    first = 0
    for name, count in output_counts(node, library):
        if index < first + count:
            return f"{name}:{index - first}"
        first += count
    raise TfoptError(
        "A node has no such output. Expected a registered operation and one of its "
        f"{first} outputs. Received: output {index} of {node.name!r} ({node.op})"
    )


def is_stateful(node: Any, library: Mapping[str, Any]) -> bool:
    """Whether a node's operation is stateful; unknown ones are taken to be so."""
    definition = signature(node, library)
    return definition is None or definition.is_stateful


def functions_of(node: Any) -> list[str]:
    """Returns the functions that a node's attributes name."""
    return [
        function.name
        for value in node.attr.values()
        for function in flow.functions_of(value)
    ]


def get(node: Any, name: str) -> Any:
    """Returns an attribute as a plain Python value; `None` if the node lacks it.

    Types are DataType numbers, shapes tuples with `None` for free sizes (or `None` as
    a whole), strings `bytes`, functions their names, tensors stay messages.
    """
    if name not in node.attr:
        return None
    return _plain(node.attr[name])


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "shape":
        return _sizes(value.shape)
    if kind == "func":
        return value.func.name
    if kind == "list":
        found = value.list
        for field, items in found.ListFields():
            if field.name == "shape":
                return [_sizes(shape) for shape in items]
            if field.name == "func":
                return [function.name for function in items]
            return list(items)
        return []
    return None if kind is None else getattr(value, kind)


def _sizes(shape: Any) -> tuple[int | None, ...] | None:
    if shape.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in shape.dim)


class Type(int):
    """A DataType number, to be told from a plain integer."""


class Shape(tuple):
    """Sizes by axis, `None` where free, to be told from a list of integers."""


def set_attributes(node: Any, **attributes: Any) -> None:
    """Sets attributes of a node from plain values.

    Args:
        node: The NodeDef.
        **attributes: `Type` or np.dtype for types, `Shape` for shapes, bool, int,
            float, str or bytes, lists of these, an AttrValue, or a TensorProto.
    """
    for name, value in attributes.items():
        target = node.attr[name]
        target.Clear()
        if isinstance(value, type(target)):
            target.CopyFrom(value)
        elif isinstance(value, (list, tuple)) and not isinstance(value, Shape):
            target.list.SetInParent()
            for item in value:
                _append(target.list, item)
        else:
            _set(target, value)


def _set(target: Any, value: Any) -> None:
    if isinstance(value, Type):
        target.type = value
    elif isinstance(value, np.dtype):
        target.type = dtypes.from_numpy(value)
    elif isinstance(value, Shape):
        target.shape.SetInParent()
        for size in value:
            target.shape.dim.add(size=-1 if size is None else size)
    elif isinstance(value, (bool, np.bool_)):
        target.b = bool(value)
    elif isinstance(value, (int, np.integer)):
        target.i = int(value)
    elif isinstance(value, (float, np.floating)):
        target.f = float(value)
    elif isinstance(value, (str, bytes)):
        target.s = value.encode() if isinstance(value, str) else value
    elif isinstance(value, protos.message_class("TensorProto")):
        target.tensor.CopyFrom(value)
    else:
        raise TypeError(f"Cannot be an attribute: {value!r}")


def _append(target: Any, item: Any) -> None:
    if isinstance(item, Type):
        target.type.append(item)
    elif isinstance(item, np.dtype):
        target.type.append(dtypes.from_numpy(item))
    elif isinstance(item, bool):
        target.b.append(item)
    elif isinstance(item, (int, np.integer)):
        target.i.append(int(item))
    elif isinstance(item, float):
        target.f.append(item)
    else:
        target.s.append(item.encode() if isinstance(item, str) else item)
