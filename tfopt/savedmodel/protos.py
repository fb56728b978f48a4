"""Message classes of the installed TensorFlow, without importing TensorFlow.

Importing `tensorflow.core...._pb2` would run `tensorflow/__init__.py`: three seconds
and half a gigabyte. protoc writes each file's schema into its `_pb2.py` as one bytes
literal, though; here that literal is read as data and added to a private descriptor
pool. So the schema is always that of the installed version, nothing is registered
globally, and the classes coexist with those of a loaded TensorFlow (exchange messages
between the two as bytes).
"""

from __future__ import annotations

import ast
import functools
import importlib.machinery
import importlib.util
import pathlib
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tfopt.types import TfoptError

_ROOTS = (
    "tensorflow/core/protobuf/rewriter_config.proto",
    "tensorflow/core/protobuf/saved_model.proto",
    "tensorflow/core/protobuf/tensor_bundle.proto",
    "tensorflow/core/framework/variable.proto",
)


@functools.cache
def message_class(name: str) -> Any:
    """Returns the class of the message `tensorflow.<name>`.

    Args:
        name: For example `"GraphDef"`, `"SavedModel"` or `"BundleEntryProto"`.

    Raises:
        TfoptError: TensorFlow isn't installed, or its files are not as protoc
            writes them.

    Example:
        >>> message_class("NodeDef")(name="x", op="NoOp").op
        'NoOp'
    """
    try:
        descriptor = _pool().FindMessageTypeByName(f"tensorflow.{name}")
    except KeyError as error:
        raise TfoptError(
            "The installed TensorFlow has no such message. Expected the name of a "
            f"SavedModel, graph or checkpoint message. Received: name={name!r}"
        ) from error
    return message_factory.GetMessageClass(descriptor)


def map_entry_class(message: Any, field: str) -> Any:
    """Returns the class of one key/value entry of a map field.

    Args:
        message: A message, or its class.
        field: Name of the map field, for example `"attr"` of a NodeDef.
    """
    return message_factory.GetMessageClass(
        message.DESCRIPTOR.fields_by_name[field].message_type
    )


@functools.cache
def data_types() -> dict[int, str]:
    """Returns the numbers of TensorFlow's DataType enum with their names.

    Example:
        >>> data_types()[1]
        'DT_FLOAT'
    """
    values = _pool().FindEnumTypeByName("tensorflow.DataType").values
    return {value.number: value.name for value in values}


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()
    for root in _ROOTS:
        _add(root, pool, added)
    return pool


def _add(proto: str, pool: descriptor_pool.DescriptorPool, added: set[str]) -> None:
    if proto in added:
        return
    added.add(proto)
    serialized = _schema(proto)
    parsed = descriptor_pb2.FileDescriptorProto.FromString(serialized)
    for dependency in parsed.dependency:
        _add(dependency, pool, added)
    pool.AddSerializedFile(serialized)


def _schema(proto: str) -> bytes:
    """Returns the serialized FileDescriptorProto that protoc left in `_pb2.py`."""
    package = "google.protobuf" if proto.startswith("google/") else "tensorflow"
    file = _package_root(package) / (proto.removesuffix(".proto") + "_pb2.py")
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError) as error:
        raise TfoptError(
            f"Cannot read the schema of {proto}. Expected the generated Python file of "
            f"an undamaged installation of {package}; reinstall it. "
            f"Received: {file} ({error})"
        ) from error
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "AddSerializedFile"
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, bytes)
        ):
            return node.args[0].value
    raise TfoptError(
        f"Cannot read the schema of {proto}. Expected a call AddSerializedFile(b'...') "
        f"as protoc generates it; this version of {package} differs, please report it. "
        f"Received: {file}"
    )


@functools.cache
def _package_root(package: str) -> pathlib.Path:
    """Returns the directory that holds the package's top-level folder."""
    # Finding a top-level package does not execute it; google.protobuf is loaded. The
    # second way finds it also where importing it is blocked, as in tests.
    spec = importlib.util.find_spec(package)
    spec = spec or importlib.machinery.PathFinder.find_spec(package)
    if spec is None or spec.origin is None:
        raise TfoptError(
            f"{package} is not installed. Expected an installation whose message "
            "definitions can be read; run `pip install tensorflow`. "
            f"Received: package={package!r}"
        )
    return pathlib.Path(spec.origin).parents[1 + package.count(".")]
