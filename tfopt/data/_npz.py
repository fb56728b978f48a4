"""The arrays of `.npz` and `.npy` files; what is wrong with one names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np

from tfopt import _array_files
from tfopt.data._split import Arrays
from tfopt.types import TfoptError


@contextlib.contextmanager
def opened(path: str) -> Iterator[Mapping[str, np.ndarray]]:
    """Yields an `.npz` file; what is wrong with it becomes an error that names it."""
    with _named(path, ".npz"), _array_files.opened(path) as file:
        yield file


def read(file: Mapping[str, np.ndarray], key: str) -> Arrays:
    """Returns the array of that name, or those by name below it (`key/<name>`)."""
    names = [name for name in file if name.startswith(f"{key}/")]
    if (key in file) == bool(names):
        raise TfoptError(
            f"Expected either the array {key} or, for a model with several inputs, "
            f"arrays {key}/<name>. Received: {sorted(file)}"
        )
    if key in file:
        return file[key]
    return {name[len(key) + 1 :]: file[name] for name in names}


def has_split(file: Mapping[str, np.ndarray], name: str) -> bool:
    """Returns whether there are inputs of the split `"train"` or `"test"`."""
    return any(key == f"x_{name}" or key.startswith(f"x_{name}/") for key in file)


def load_npy(path: str) -> np.ndarray:
    """Returns the array of a `.npy` file.

    Raises:
        TfoptError: The file is missing or damaged.
    """
    with _named(path, ".npy"):
        return _array_files.load(path)


@contextlib.contextmanager
def _named(path: str, suffix: str) -> Iterator[None]:
    """Turns what is wrong with a data file into an error that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise TfoptError(
            f"No such data file. Expected an {suffix} file. Received: data={path!r}"
        ) from error
    except ValueError as error:
        raise TfoptError(
            f"Cannot read the data file. Expected an undamaged {suffix} file of "
            "numbers, written by NumPy without pickled objects. "
            f"Received: data={path!r} ({error})"
        ) from error
    except TfoptError as error:
        raise TfoptError(f"{error} (in data={path!r})") from error
