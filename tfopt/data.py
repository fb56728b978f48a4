"""Data specs: what `--data` names, as NumPy arrays or as tf.data.

A spec is `FILE.npz`, with the arrays `x_train y_train x_test y_test`, or
`module:function`. TensorFlow is imported only where a dataset is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
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
            _check_lengths(inputs, labels, self.name)
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


@dataclasses.dataclass(frozen=True)
class Data:
    """Training and test examples.

    Attributes:
        train: What `fit` sees.
        test: What results are measured on.
    """

    train: Split
    test: Split


def load_data(spec: str | os.PathLike[str]) -> Data:
    """Loads the data that a spec names.

    Args:
        spec: Path of an `.npz` file with the arrays `x_train`, `y_train`, `x_test`
            and `y_test`; a model with several inputs has `x_train/<input name>` and
            so on instead. Or `"module:function"`: the function takes no arguments
            and returns `{"train": ..., "test": ...}`, each a tf.data.Dataset that
            yields batches (inputs, labels), or a pair of arrays.

    Returns:
        The two splits. Arrays keep the type and the values that they have in the
        file; the labels have as many examples as the inputs.

    Raises:
        TfoptError: The file or function is missing, damaged or incomplete.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/digits.npz"
        >>> x, y = np.zeros([6, 28, 28], np.uint8), np.arange(6)
        >>> np.savez(path, x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
        >>> load_data(path).train.arrays()[0].shape
        (6, 28, 28)
    """
    text = os.fspath(spec)
    module_name, colon, function_name = text.rpartition(":")
    if text.endswith(".npz"):
        return _load_npz(text)
    if colon and module_name and function_name.isidentifier():
        return _from_function(text, _function(text, module_name, function_name))
    raise TfoptError(
        "Unknown kind of data. Expected a path that ends in .npz, or "
        f"module:function. Received: data={text!r}"
    )


def load_examples(
    spec: str | os.PathLike[str], *, split: str = "test"
) -> tuple[Arrays, Arrays | None]:
    """Loads what models are measured on; labels may be missing.

    Args:
        spec: As for `load_data`; but the `.npz` file needs no other split, and no
            labels. One without any array `x_...` or `y_...` holds the inputs by name.
        split: `"train"` or `"test"`.

    Returns:
        Inputs and labels, None if there are no labels.

    Raises:
        TfoptError: The file or function is missing, damaged or incomplete.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/digits.npz"
        >>> np.savez(path, x_test=np.zeros([6, 28, 28], np.uint8))
        >>> inputs, labels = load_examples(path)
        >>> inputs.shape, labels
        ((6, 28, 28), None)
    """
    if split not in ("train", "test"):
        raise ValueError(f'Expected "train" or "test". Received: split={split!r}')
    text = os.fspath(spec)
    if not text.endswith(".npz"):
        return getattr(load_data(text), split).arrays()
    with _opened(text) as file:
        if not any(name.startswith(("x_", "y_")) for name in file):
            inputs: Arrays = {name: file[name] for name in file}
        else:
            inputs = _read(file, f"x_{split}")
        key = f"y_{split}"
        has_labels = any(name == key or name.startswith(f"{key}/") for name in file)
        labels = _read(file, key) if has_labels else None
    _check_lengths(inputs, inputs if labels is None else labels, f"data={text!r}")
    return inputs, labels


def load_representative(spec: str | os.PathLike[str]) -> Any:
    """Loads typical inputs of a model, for `tfopt.convert`.

    Args:
        spec: A `.npz` file with inputs by name, or with `x_train` (else `x_test`); a
            `.npy` file; or `module:function`. The function returns what
            `representative_dataset` may be, or what `load_data` takes: of that, the
            inputs for training are used.

    Returns:
        An array, arrays by name, or what the function returns.

    Raises:
        TfoptError: The file or function is missing, damaged or incomplete.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/typical.npy"
        >>> np.save(path, np.zeros([6, 28, 28], np.float32))
        >>> load_representative(path).shape
        (6, 28, 28)
    """
    text = os.fspath(spec)
    if text.endswith(".npy"):
        with _named(text, ".npy"), open(text, "rb") as raw:
            return np.load(raw, allow_pickle=False)
    if text.endswith(".npz"):
        with _opened(text) as file:
            splits = [name for name in ("train", "test") if _has_split(file, name)]
        return load_examples(text, split=splits[0] if splits else "test")[0]
    module_name, separator, name = text.partition(":")
    if not separator:
        raise TfoptError(
            "Unknown kind of data. Expected a path that ends in .npz or .npy, or "
            f"module:function. Received: data={text!r}"
        )
    result = _function(text, module_name, name)()
    if isinstance(result, Mapping) and set(result) <= {"train", "test"}:
        return _from_function(text, lambda: result).train.arrays()[0]
    return result


def _has_split(file: Mapping[str, np.ndarray], name: str) -> bool:
    return any(key == f"x_{name}" or key.startswith(f"x_{name}/") for key in file)


def has_training_part(path: str | os.PathLike[str]) -> bool:
    """Returns whether an `.npz` file holds training examples with their labels.

    Raises:
        TfoptError: The file is missing or damaged.

    Example:
        >>> has_training_part("testdata/mnist.npz")
        True
    """
    with _opened(os.fspath(path)) as file:
        heads = {name.split("/")[0] for name in file}
    return {"x_train", "y_train"} <= heads


def _load_npz(path: str) -> Data:
    with _opened(path) as file:
        splits = {
            name: Split((_read(file, f"x_{name}"), _read(file, f"y_{name}")), name)
            for name in ("train", "test")
        }
    return Data(**splits)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Mapping[str, np.ndarray]]:
    """Yields an `.npz` file; what is wrong with it becomes an error that names it."""
    # Opened here: np.load leaves a damaged file open.
    with (
        _named(path, ".npz"),
        open(path, "rb") as raw,
        np.load(raw, allow_pickle=False) as file,
    ):
        yield file


@contextlib.contextmanager
def _named(path: str, suffix: str) -> Iterator[None]:
    """Turns what is wrong with a data file into an error that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise TfoptError(
            f"No such data file. Expected an {suffix} file. Received: data={path!r}"
        ) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise TfoptError(
            f"Cannot read the data file. Expected an undamaged {suffix} file of "
            "numbers, written by NumPy without pickled objects. "
            f"Received: data={path!r} ({error})"
        ) from error
    except TfoptError as error:
        raise TfoptError(f"{error} (in data={path!r})") from error


def _read(file: Mapping[str, np.ndarray], key: str) -> Arrays:
    names = [name for name in file if name.startswith(f"{key}/")]
    if (key in file) == bool(names):
        raise TfoptError(
            f"Expected either the array {key} or, for a model with several inputs, "
            f"arrays {key}/<name>. Received: {sorted(file)}"
        )
    if key in file:
        return file[key]
    return {name[len(key) + 1 :]: file[name] for name in names}


def _function(spec: str, module_name: str, name: str) -> Callable[[], Any]:
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, TypeError) as error:
        raise TfoptError(
            "Cannot find the data function. Expected module:function of an importable "
            f"module. Received: data={spec!r} ({error})"
        ) from error
    if not callable(function):
        raise TfoptError(
            "Expected a function without arguments. "
            f"Received: data={spec!r}, a {type(function).__name__}"
        )
    return function


def _from_function(spec: str, function: Callable[[], Any]) -> Data:
    result = function()
    keys = sorted(result) if isinstance(result, Mapping) else type(result).__name__
    if keys != ["test", "train"]:
        raise TfoptError(
            'Expected the data function to return {"train": ..., "test": ...}. '
            f"Received: data={spec!r}, {keys}"
        )
    return Data(
        train=Split(result["train"], f"train of {spec}"),
        test=Split(result["test"], f"test of {spec}"),
    )


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


def _check_lengths(inputs: Arrays, labels: Arrays, name: str) -> None:
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
