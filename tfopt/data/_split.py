"""Examples with their labels, from arrays or from tf.data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfopt.types import TfoptError

# Arrays by name for models with several inputs or outputs, else a single one.
Arrays = np.ndarray | dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples with their labels, from arrays or from a tf.data.Dataset.

    Attributes:
        source: A pair (inputs, labels) of arrays, or of dictionaries of arrays, all
            with the examples along the first axis; or a tf.data.Dataset that yields
            such pairs in batches.
        name: What error messages call it.
    """

    source: Any
    name: str = "data"

    def __post_init__(self) -> None:
        if _is_dataset(self.source):
            _check_batched(self.source, self.name)
        else:
            inputs, labels = _pair(self.source, self.name)
            check_lengths(inputs, labels, self.name)
            object.__setattr__(self, "source", (inputs, labels))

    def arrays(self) -> tuple[Arrays, Arrays]:
        """Returns (inputs, labels) with all examples along the first axis.

        Raises:
            TfoptError: The dataset is endless or empty.
        """
        if not _is_dataset(self.source):
            return self.source
        batches = list(self.batches())
        if not batches:
            raise TfoptError(
                f"The dataset is empty. Expected examples. Received: {self.name}"
            )
        inputs, labels = zip(*batches, strict=True)
        return _concatenate(inputs), _concatenate(labels)

    def batches(self, *, batch_size: int = 32) -> Iterator[tuple[Arrays, Arrays]]:
        """Yields (inputs, labels) in order, as NumPy arrays.

        Args:
            batch_size: Examples in each batch; the last one may be smaller.

        Raises:
            TfoptError: The dataset is endless.

        Example:
            >>> split = Split((np.zeros([5, 2]), np.arange(5)))
            >>> [len(labels) for _, labels in split.batches(batch_size=2)]
            [2, 2, 1]
        """
        _check_batch_size(batch_size)
        if _is_dataset(self.source):
            return self._dataset_batches(batch_size)
        return self._array_batches(batch_size)

    def dataset(
        self, *, batch_size: int = 32, shuffle: bool = False, seed: int | None = None
    ) -> Any:
        """Returns a tf.data.Dataset of batches (inputs, labels), for `fit`.

        Args:
            batch_size: Examples in each batch; the last one may be smaller.
            shuffle: Whether each epoch has its own order. Arrays are shuffled as a
                whole, a dataset within windows of 10,000 examples.
            seed: Makes the orders repeatable.
        """
        _check_batch_size(batch_size)
        if _is_dataset(self.source):
            if shuffle:
                examples = self.source.unbatch().shuffle(10_000, seed=seed)
                return examples.batch(batch_size).prefetch(2)
            return self.source.rebatch(batch_size)
        import tensorflow as tf

        # Batches of indices are shuffled and looked up: much faster than shuffling
        # the examples one by one.
        order = tf.data.Dataset.range(self._num_examples())
        if shuffle:
            order = order.shuffle(self._num_examples(), seed=seed)
        return self._look_up(order.batch(batch_size))

    def epochs(self, numbers: range, *, batch_size: int = 32, seed: int = 0) -> Any:
        """Returns the batches of several epochs as one tf.data.Dataset.

        The order of an epoch depends on its number and the seed alone: a training that
        starts at a later epoch sees what it would have seen.

        Args:
            numbers: The epochs' numbers, such as `range(2, 10)`.
            batch_size: Examples in each batch; the last of an epoch may be smaller.
            seed: Seed of the orders. A dataset is shuffled within windows of 10,000
                examples, and `tf.random.set_seed` has a say in it as well.

        Example:
            >>> split = Split((np.zeros([5, 2]), np.arange(5)))
            >>> whole, later = split.epochs(range(3)), split.epochs(range(2, 3))
            >>> last = list(whole.as_numpy_iterator())[-1]
            >>> bool((next(later.as_numpy_iterator())[1] == last[1]).all())
            True
        """
        _check_batch_size(batch_size)
        import tensorflow as tf

        if _is_dataset(self.source):
            return _concatenated(
                [
                    self.dataset(
                        batch_size=batch_size, shuffle=True, seed=seed + number
                    )
                    for number in numbers
                ]
            )
        every = tf.range(self._num_examples(), dtype=tf.int64)

        def indices_of(number: Any) -> Any:
            # Stateless: the process's own random seed has no say in it.
            order = tf.random.experimental.stateless_shuffle(every, [seed, number])
            return tf.data.Dataset.from_tensor_slices(order).batch(batch_size)

        epochs = tf.range(numbers.start, numbers.stop, numbers.step, tf.int64)
        indices = tf.data.Dataset.from_tensor_slices(epochs).flat_map(indices_of)
        return self._look_up(indices)

    def scaled(self, factor: float) -> Split:
        """Returns the examples with their inputs as float32, times a factor.

        Example:
            >>> Split((np.full([1, 2], 255, np.uint8), [0])).scaled(1 / 255).arrays()
            (array([[1., 1.]], dtype=float32), array([0]))
        """
        inputs, labels = self.arrays()
        number = np.float32(factor)
        if isinstance(inputs, dict):
            scaled: Arrays = {
                name: item.astype(np.float32) * number for name, item in inputs.items()
            }
        else:
            scaled = inputs.astype(np.float32) * number
        return Split((scaled, labels), self.name)

    def num_batches(self, *, batch_size: int = 32) -> int:
        """Returns how many batches `dataset` has; a dataset is read once to count.

        Raises:
            TfoptError: The dataset is endless.

        Example:
            >>> Split((np.zeros([5, 2]), np.arange(5))).num_batches(batch_size=2)
            3
        """
        _check_batch_size(batch_size)
        if _is_dataset(self.source):
            return sum(1 for _ in self._dataset_batches(batch_size))
        return -(-self._num_examples() // batch_size)

    def _look_up(self, indices: Any) -> Any:
        """Returns the examples of batches of indices."""
        import tensorflow as tf

        tensors = tf.nest.map_structure(tf.convert_to_tensor, self.source)

        def look_up(chosen: Any) -> Any:
            return tf.nest.map_structure(lambda item: tf.gather(item, chosen), tensors)

        return indices.map(look_up).prefetch(2)

    def _num_examples(self) -> int:
        return len(_leaves(self.source[0])[0])

    def _array_batches(self, batch_size: int) -> Iterator[tuple[Arrays, Arrays]]:
        inputs, labels = self.source
        for start in range(0, self._num_examples(), batch_size):
            part = slice(start, start + batch_size)
            yield _cut(inputs, part), _cut(labels, part)

    def _dataset_batches(self, batch_size: int) -> Iterator[tuple[Arrays, Arrays]]:
        # tf.data.INFINITE_CARDINALITY, without importing TensorFlow for it.
        if int(self.source.cardinality()) == -1:
            raise TfoptError(
                "The dataset is endless. Expected one that ends; drop its `repeat()`, "
                f"or add `take(n)`. Received: {self.name}"
            )
        yield from self.source.rebatch(batch_size).as_numpy_iterator()


def _is_dataset(source: Any) -> bool:
    return hasattr(source, "element_spec") and hasattr(source, "as_numpy_iterator")


def _check_batched(dataset: Any, name: str) -> None:
    spec = dataset.element_spec
    sizes: set[Any] = set()
    if isinstance(spec, tuple) and len(spec) == 2:
        for item in (*_leaves(spec[0]), *_leaves(spec[1])):
            shape = getattr(item, "shape", None)
            if shape is None:
                sizes.add("no axis")
            else:
                sizes.add(None if shape.rank is None else (*shape, "no axis")[0])
    # None, an unknown size, agrees with every other.
    if not sizes or "no axis" in sizes or len(sizes - {None}) > 1:
        raise TfoptError(
            "Expected a dataset of batches (inputs, labels), as `fit` takes, each a "
            "tensor or a dictionary of tensors; `.batch(n)` makes batches. "
            f"Received: {name} with element_spec={spec}"
        )


def _pair(source: Any, name: str) -> tuple[Arrays, Arrays]:
    if not isinstance(source, (tuple, list)) or len(source) != 2:
        raise TfoptError(
            "Expected a tf.data.Dataset or a pair (inputs, labels) of arrays. "
            f"Received: {name}, a {type(source).__name__}"
        )
    inputs, labels = (
        {str(key): np.asarray(value) for key, value in item.items()}
        if isinstance(item, Mapping)
        else np.asarray(item)
        for item in source
    )
    return inputs, labels


def check_lengths(inputs: Arrays, labels: Arrays, name: str) -> None:
    """Raises a TfoptError unless all arrays have equally many examples, and some."""
    leaves = [*_leaves(inputs), *_leaves(labels)]
    lengths = {len(item) if item.ndim else None for item in leaves}
    if len(lengths) != 1 or not lengths - {None, 0}:
        shapes = [item.shape for item in leaves]
        raise TfoptError(
            "Expected as many labels as inputs, and at least one, along the first "
            f"axis. Received: {name} with shapes {shapes}"
        )


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(
            f"Expected a positive number. Received: batch_size={batch_size!r}"
        )


def _leaves(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else [value]


def _cut(arrays: Arrays, part: slice) -> Arrays:
    if isinstance(arrays, dict):
        return {name: item[part] for name, item in arrays.items()}
    return arrays[part]


def _concatenated(datasets: list[Any]) -> Any:
    """Returns the datasets one after the other, as a balanced tree."""
    if len(datasets) == 1:
        return datasets[0]
    middle = len(datasets) // 2
    first, second = datasets[:middle], datasets[middle:]
    return _concatenated(first).concatenate(_concatenated(second))


def _concatenate(parts: tuple[Any, ...]) -> Arrays:
    if isinstance(parts[0], dict):
        return {
            name: np.concatenate([part[name] for part in parts]) for name in parts[0]
        }
    return np.concatenate(parts)
