"""Evaluates constant expressions with TensorFlow's own kernels.

Expressions of all bodies go into one graph of their own, with short names. Small
constants are in it, so that TensorFlow infers shapes from them before anything is
computed; large ones are fed, which takes no copy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tfopt.savedmodel import dtypes, protos
from tfopt.transforms import _constants
from tfopt.types import TfoptError

# Larger constants aren't shapes, so nothing is inferred from their values.
_FED_OVER = 4096
# What a string is taken to need, in bytes.
_STRING = 32
_UNFETCHABLE = (dtypes.RESOURCE, dtypes.VARIANT)


class Key(NamedTuple):
    """A node: its body's name, and its own."""

    body: str
    node: str


class UnevaluableError(TfoptError):
    """TensorFlow cannot load or evaluate an expression.

    Attributes:
        key: The node that it names.
        reason: Its message, in one line.
    """

    def __init__(self, key: Key, reason: str):
        where = f"{key.body}/{key.node}" if key.body else key.node
        super().__init__(
            "TensorFlow cannot evaluate a constant expression. Expected valid ones, or "
            f"ignore_errors=true to leave it as it is. Received: {where!r}: {reason}"
        )
        self.key = key
        self.reason = reason


class Expressions:
    """Constant expressions as a TensorFlow graph.

    Args:
        versions: The VersionDef of the graph that they are from.
    """

    def __init__(self, versions: Any):
        self._message = protos.message_class("GraphDef")()
        self._message.versions.CopyFrom(versions)
        self._names: dict[Key, str] = {}
        self._keys: list[Key] = []
        self._fed: dict[str, np.ndarray] = {}
        self._graph: Any = None

    def add(self, key: Key, node: Any, inputs: Sequence[tuple[Key, int]]) -> None:
        """Adds a node, after those that it takes from."""
        name = self._names[key] = f"n{len(self._keys)}"
        self._keys.append(key)
        refs = [f"{self._names[key]}:{index}" for key, index in inputs]
        if add_copy(self._message, node, name, refs):
            self._fed[name] = _constants.to_array(node.attr["value"].tensor)

    def load(self) -> None:
        """Makes the TensorFlow graph.

        Raises:
            UnevaluableError: TensorFlow refuses a node.
        """
        import tensorflow as tf

        graph_def = tf.compat.v1.GraphDef.FromString(self._message.SerializeToString())
        self._graph = tf.Graph()
        try:
            with self._graph.as_default():
                tf.import_graph_def(graph_def, name="")
        except (ValueError, tf.errors.OpError) as error:
            raise self._unevaluable(str(error)) from error

    def num_bytes(self, key: Key) -> list[int | None]:
        """Returns the size of each output; `None` where only evaluation can tell."""
        operation = self._graph.get_operation_by_name(self._names[key])
        return [_size_of(tensor) for tensor in operation.outputs]

    def values(self, wanted: Sequence[tuple[Key, int]]) -> list[Any]:
        """Returns values as TensorProtos.

        Raises:
            UnevaluableError: Evaluation fails.
        """
        import tensorflow as tf

        tensors = [
            self._graph.get_tensor_by_name(f"{self._names[key]}:{index}")
            for key, index in wanted
        ]
        feeds = {
            self._graph.get_tensor_by_name(f"{name}:0"): self._as_fed(name, array)
            for name, array in self._fed.items()
        }
        try:
            with tf.compat.v1.Session(graph=self._graph, config=_config(tf)) as session:
                found = session.run(tensors, feeds)
        except tf.errors.OpError as error:
            raise self._unevaluable(str(error)) from error
        return [
            _to_proto(value, tensor.dtype.as_datatype_enum)
            for value, tensor in zip(found, tensors, strict=True)
        ]

    def _as_fed(self, name: str, array: np.ndarray) -> np.ndarray:
        """Returns an array of the type that TensorFlow's Python has for it."""
        import tensorflow as tf

        dtype = tf.as_dtype(self._message.node[int(name[1:])].attr["dtype"].type)
        return array.view(dtype.as_numpy_dtype) if dtype.is_quantized else array

    def _unevaluable(self, message: str) -> UnevaluableError:
        line = re.sub(r"\s+", " ", message)[:300]
        named = re.search(r"\{\{node (n\d+)\}\}|[Nn]ode '(n\d+)'", message)
        if named is not None:
            name = named[1] or named[2]
            return UnevaluableError(self._keys[int(name[1:])], line)
        # Operations that are gone from TensorFlow.
        op = re.match(r"Op (\w+) is not available", message)
        for key, node in zip(self._keys, self._message.node, strict=True):
            if op is not None and node.op == op[1]:
                return UnevaluableError(key, line)
        raise TfoptError(
            "TensorFlow cannot evaluate the graph's constant expressions. Expected "
            f"an undamaged graph. Received: {line}"
        )


def add_copy(message: Any, node: Any, name: str, refs: Sequence[str]) -> bool:
    """Adds a node to a GraphDef, a large constant as placeholder.

    Args:
        message: The GraphDef.
        node: The node.
        name: Its name there.
        refs: Its inputs there.

    Returns:
        Whether it is a placeholder now.
    """
    copy = message.node.add(name=name, op=node.op)
    copy.input.extend(refs)
    if node.op == "Const" and num_bytes(node.attr["value"].tensor) > _FED_OVER:
        proto = node.attr["value"].tensor
        copy.op = "Placeholder"
        copy.attr["dtype"].type = proto.dtype
        copy.attr["shape"].shape.CopyFrom(proto.tensor_shape)
        return True
    for attribute, value in node.attr.items():
        # Notes for TensorFlow, on shapes say, which may be outdated.
        if not attribute.startswith("_"):
            copy.attr[attribute].CopyFrom(value)
    return False


def num_bytes(proto: Any) -> int:
    """Returns the bytes of a TensorProto's elements, however few it lists."""
    size = 1
    for dim in proto.tensor_shape.dim:
        size *= dim.size
    return size * (dtypes.item_size(proto.dtype) or _STRING)


def _size_of(tensor: Any) -> int | None:
    dtype = tensor.dtype.as_datatype_enum
    if dtype in _UNFETCHABLE or not tensor.shape.is_fully_defined():
        return None
    return tensor.shape.num_elements() * (dtypes.item_size(dtype) or _STRING)


def _config(tf: Any) -> Any:
    """Returns a session's options: nothing but the plain kernels, on the CPU."""
    config = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = -1
    return config


def _to_proto(value: Any, dtype: int) -> Any:
    if dtype == dtypes.STRING:
        return _constants.to_proto(np.array(value, object))
    array = np.asarray(value)
    return _constants.to_proto(array.view(dtypes.to_numpy(dtype)), dtype=dtype)
