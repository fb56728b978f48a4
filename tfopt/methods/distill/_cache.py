"""What teachers said about each example, so that they need not be asked again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfopt.types import TfoptError


class Cache:
    """A table from an example's content to the teachers' outputs for it.

    The key is a 64-bit fingerprint of all bytes of the example's inputs. So neither
    the order of the examples nor the batches they come in matter, and an example that
    was changed (augmented) is another one: it goes to the teachers. Among a million
    examples, two get the same fingerprint with a probability of 3e-8.

    Args:
        shapes: Static shape of each tensor to keep, without the batch axis.
    """

    def __init__(self, shapes: list[tuple[int, ...]]):
        self._shapes = shapes
        self._sizes = [_product(shape) for shape in shapes]
        # The first value of a row tells known examples from unknown ones.
        self.row = 1 + sum(self._sizes)
        self._table = tf.lookup.experimental.MutableHashTable(
            tf.int64, tf.float32, default_value=tf.zeros([self.row])
        )
        self.grown = True

    def __call__(self, x: Any, ask: Callable[[], list[Any]]) -> list[Any]:
        """Returns the tensors for a batch; `ask` computes them where some are new."""
        keys = fingerprints(x)
        rows = self._table.lookup(keys)

        def look_up() -> tf.Tensor:
            return rows

        def fill() -> tf.Tensor:
            flat = [tf.reshape(part, [tf.size(keys), -1]) for part in ask()]
            new = tf.concat([tf.ones([tf.size(keys), 1]), *flat], 1)
            with tf.control_dependencies([self._table.insert(keys, new)]):
                return tf.identity(new)

        rows = tf.cond(tf.reduce_all(rows[:, 0] > 0), look_up, fill)
        rows.set_shape([None, self.row])
        parts = tf.split(rows[:, 1:], self._sizes, 1)
        return [
            tf.reshape(part, [-1, *shape])
            for part, shape in zip(parts, self._shapes, strict=True)
        ]

    def size(self) -> int:
        """Returns the number of examples it holds."""
        return int(self._table.size().numpy())

    def fits(self, shapes: list[tuple[int, ...]]) -> bool:
        """Whether it holds tensors of these shapes."""
        return self._shapes == shapes


def static_shapes(tensors: list[Any]) -> list[tuple[int, ...]]:
    """Returns the shapes of tensors without their batch axis.

    Raises:
        TfoptError: One is not known.
    """
    shapes = [tensor.shape[1:] for tensor in tensors]
    if not all(shape.is_fully_defined() for shape in shapes):
        raise TfoptError(
            "Teacher outputs of varying size cannot be cached. Expected a fixed shape, "
            f"or cache=False. Received: {[tensor.shape for tensor in tensors]}"
        )
    return [tuple(shape.as_list()) for shape in shapes]


def fingerprints(x: Any) -> tf.Tensor:
    """Returns a fingerprint of each example's inputs, int64 [batch]."""
    each = [
        tf.raw_ops.Fingerprint(data=leaf, method="farmhash64")
        for leaf in tf.nest.flatten(x)
    ]
    if len(each) > 1:
        joined = tf.concat(each, 1)
        each = [tf.raw_ops.Fingerprint(data=joined, method="farmhash64")]
    return tf.bitcast(each[0], tf.int64)


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for each in shape:
        size *= each
    return size
