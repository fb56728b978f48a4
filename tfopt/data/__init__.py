"""Data specs: what `--data` names, as NumPy arrays or as tf.data.

A spec is `FILE.npz`, with the arrays `x_train y_train x_test y_test`, or
`module:function`. TensorFlow is imported only where a dataset is asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from tfopt.data import _npz
from tfopt.data._split import Arrays, Split, check_lengths
from tfopt.types import TfoptError

__all__ = [
    "Arrays",
    "Data",
    "Split",
    "has_training_part",
    "load_data",
    "load_examples",
    "load_representative",
]


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
    with _npz.opened(text) as file:
        if not any(name.startswith(("x_", "y_")) for name in file):
            inputs: Arrays = {name: file[name] for name in file}
        else:
            inputs = _npz.read(file, f"x_{split}")
        key = f"y_{split}"
        has_labels = any(name == key or name.startswith(f"{key}/") for name in file)
        labels = _npz.read(file, key) if has_labels else None
    check_lengths(inputs, inputs if labels is None else labels, f"data={text!r}")
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
        return _npz.load_npy(text)
    if text.endswith(".npz"):
        with _npz.opened(text) as file:
            splits = [name for name in ("train", "test") if _npz.has_split(file, name)]
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


def has_training_part(path: str | os.PathLike[str]) -> bool:
    """Returns whether an `.npz` file holds training examples with their labels.

    Raises:
        TfoptError: The file is missing or damaged.

    Example:
        >>> has_training_part("testdata/mnist.npz")
        True
    """
    with _npz.opened(os.fspath(path)) as file:
        heads = {name.split("/")[0] for name in file}
    return {"x_train", "y_train"} <= heads


def _load_npz(path: str) -> Data:
    with _npz.opened(path) as file:
        splits = {
            name: Split(
                (_npz.read(file, f"x_{name}"), _npz.read(file, f"y_{name}")), name
            )
            for name in ("train", "test")
        }
    return Data(**splits)


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
