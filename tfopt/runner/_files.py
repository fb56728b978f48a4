"""Arrays in files: inputs as they are needed, outputs as they come."""

from __future__ import annotations

import logging
import pathlib
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np

from tfopt import _array_files
from tfopt.types import Signature, TfoptError, UsageError

_logger = logging.getLogger(__name__)


def read_inputs(specs: Sequence[str], signature: Signature) -> dict[str, np.ndarray]:
    """Opens the inputs of a model.

    Args:
        specs: Files: one `.npz` with arrays by input name (or a single array, for a
            model with one input), or `.npy` files, as `name=FILE.npy` where there are
            several inputs. A name is needed only to choose.
        signature: What the model wants.

    Returns:
        Arrays by input name; those of `.npy` files are memory-mapped.

    Raises:
        UsageError: It is unclear which file is for which input.
        TfoptError: A file cannot be read.
    """
    names = [info.name for info in signature.inputs]
    arrays: dict[str, np.ndarray] = {}
    for spec in specs:
        name, path = _split(spec, names)
        try:
            found = _found(path, name, names)
        except (OSError, _array_files.Unreadable) as error:
            raise _unreadable(path, error) from error
        for key, array in found.items():
            if key in arrays:
                raise UsageError(
                    "An input is given twice. Expected each of "
                    f"{', '.join(names)} once. Received: {key}"
                )
            arrays[key] = array
    return arrays


class Outputs:
    """Collects the outputs of a run in files, and makes one file of them at the end.

    Their sizes are known only then. Same content gives the same bytes.

    Args:
        folder: Where the parts are kept meanwhile.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._parts: dict[str, _Part] = {}

    def add(self, results: Mapping[str, np.ndarray]) -> None:
        """Appends the rows of one batch.

        Raises:
            TfoptError: Rows differ in shape from those before.
        """
        for name, array in results.items():
            if name not in self._parts:
                path = self._folder / f"{len(self._parts)}.part"
                self._parts[name] = _Part(path, name)
            self._parts[name].add(array)

    def write(self, path: pathlib.Path) -> dict[str, dict[str, Any]]:
        """Writes a `.npy` file of the only output, or a `.npz` file of all.

        Returns:
            Type and shape of each.
        """
        if path.suffix == ".npy":
            (part,) = self._parts.values()
            with path.open("wb") as file:
                part.write(file)
        else:
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
                for name, part in self._parts.items():
                    member = zipfile.ZipInfo(f"{name}.npy")  # of 1980, so no clock
                    with archive.open(member, "w", force_zip64=True) as target:
                        part.write(target)
        return {
            name: {"dtype": part.dtype.name, "shape": part.shape}
            for name, part in self._parts.items()
        }


class _Part:
    """One output: its rows in a file, strings in memory."""

    def __init__(self, path: pathlib.Path, name: str):
        self._path = path
        self._name = name
        self._strings: list[bytes] = []
        self._shape: list[int] | None = None
        self.dtype = np.dtype(np.float32)

    @property
    def shape(self) -> list[int]:
        return list(self._shape or ())

    def add(self, array: np.ndarray) -> None:
        if self._shape is None:
            self._shape, self.dtype = list(array.shape), array.dtype
        elif self._shape[1:] == list(array.shape[1:]) and array.shape:
            self._shape[0] += array.shape[0]
        else:
            raise TfoptError(
                f"The shapes of output {self._name!r} do not make one array; use "
                "--batch_size=none to run all rows in one invocation. Expected "
                f"{['any', *self._shape[1:]]}. Received: shape={list(array.shape)}"
            )
        if array.dtype == object:
            self._strings += array.ravel().tolist()
        else:
            with self._path.open("ab") as file:
                file.write(np.ascontiguousarray(array).data)

    def write(self, target: IO[bytes]) -> None:
        if self.dtype == object:
            strings = _fixed_length(self._strings, self._name)
            self.dtype = strings.dtype
            np.lib.format.write_array(target, strings.reshape(self.shape))
            return
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": tuple(self.shape),
        }
        np.lib.format.write_array_header_2_0(target, header)
        with self._path.open("rb") as source:
            shutil.copyfileobj(source, target, 1 << 20)
        self._path.unlink()  # a copy of everything at once would need twice the disk


def _fixed_length(strings: list[bytes], name: str) -> np.ndarray:
    # NumPy's files hold objects as code only, so strings get a common length.
    if any(text.endswith(b"\0") for text in strings):
        raise TfoptError(
            f"The strings of output {name!r} cannot be stored in a NumPy file. "
            "Expected none that ends with a zero byte; use `tfopt.Runner` instead"
        )
    return np.array(strings, dtype="S") if strings else np.empty(0, "S1")


def _split(spec: str, names: Sequence[str]) -> tuple[str | None, str]:
    name, separator, path = spec.partition("=")
    # A file name may hold "=", too.
    return (name, path) if separator and name in names else (None, spec)


def _found(path: str, name: str | None, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by input; those of `.npy` files memory-mapped."""
    if path.endswith(".npy") or not zipfile.is_zipfile(path):
        return {_only(name, names, path): _array_files.load(path, mapped=True)}
    with _array_files.opened(path) as archive:
        keys = list(archive)
        wanted = [name] if name else list(names)
        if len(keys) == 1 and len(wanted) == 1:
            chosen = {wanted[0]: keys[0]}
        else:
            chosen = {key: key for key in wanted if key in keys}
        ignored = [key for key in keys if key not in chosen.values()]
        missing = [key for key in wanted if key not in chosen]
        if missing:
            raise UsageError(
                "The .npz file lacks inputs. Expected arrays named "
                f"{', '.join(wanted)}. Received: {', '.join(keys) or 'no arrays'} in "
                f"{path}"
            )
        if ignored:
            _logger.info("not used of the .npz file: %s", ", ".join(ignored))
        return {key: archive[stored] for key, stored in chosen.items()}


def _only(name: str | None, names: Sequence[str], path: str) -> str:
    if name is None and len(names) != 1:
        raise UsageError(
            "It is unclear for which input the file is. Expected --input=NAME=FILE.npy "
            f"with one of {', '.join(names)}. Received: {path}"
        )
    return name or names[0]


def _unreadable(path: str, error: Exception) -> TfoptError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return TfoptError(
        f"Cannot read the input: {reason}. Expected a .npy or .npz file with numbers "
        f"or strings, as np.save and np.savez write it. Received: {path}"
    )
