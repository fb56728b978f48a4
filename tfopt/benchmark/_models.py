"""Model files of any format: what they are, where they are, how large."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfopt import artifacts
from tfopt.types import Artifact, TfoptError

# gzip -9 makes some 20 MB a second.
_GZIP_UP_TO = 1 << 28
# A path, an artifact, the bytes of a `.tflite` file, or a Keras model.
Model = Any
Models = Mapping[str, Model] | Sequence[Model]


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """One file or directory to be measured.

    Attributes:
        name: What the reports call it.
        path: Where it is.
        format: `"tflite"`, `"keras"`, `"saved_model"` or `"graph_def"`.
        shown_path: The path, or what the caller gave instead of one.
    """

    name: str
    path: str
    format: str
    shown_path: str

    def sizes(self) -> dict[str, int | None]:
        """Returns `size_bytes` and `gzip_bytes`, the latter None if it's huge."""
        size = artifacts.raw_size(self.path)
        small = size <= _GZIP_UP_TO
        return {
            "size_bytes": size,
            "gzip_bytes": artifacts.gzip_size(self.path) if small else None,
        }


@contextlib.contextmanager
def as_files(models: Models | Model) -> Iterator[list[ModelFile]]:
    """Yields the files of models; what isn't one yet is written to a temporary folder.

    Args:
        models: By name; or a list, or a single one, named by their paths.

    Raises:
        ValueError: There are none, two have the same name, or one is no model.
        TfoptError: A path leads nowhere, or to something else.
    """
    named = _named(models)
    if not named:
        raise ValueError("No models. Expected at least one. Received: models=[]")
    with artifacts.temporary_folder() as folder:
        yield [
            _as_file(name, model, pathlib.Path(folder) / str(index))
            for index, (name, model) in enumerate(named.items())
        ]


def parse(texts: Sequence[str]) -> dict[str, str]:
    """Returns name -> path of what a command line names as `name=path` or `path`.

    Raises:
        ValueError: Two have the same name.

    Example:
        >>> parse(["float=a/model.tflite", "int8.tflite"])
        {'float': 'a/model.tflite', 'int8.tflite': 'int8.tflite'}
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        # A path that holds a "=" is still a path.
        if not equals or not name or not path or os.path.exists(text):
            name, path = _short_name(text), text
        if name in found:
            raise ValueError(
                "Two models have the same name. Expected name=path with different "
                f"names. Received: {name!r} for {found[name]} and {path}"
            )
        found[name] = path
    return found


def format_of(path: str | os.PathLike[str]) -> str:
    """Returns the format of what stands at a path.

    Raises:
        TfoptError: Nothing does, or something else.
    """
    found = artifacts.format_of(path)
    if found is not None:
        return found
    what = "no model file" if os.path.exists(path) else "nothing there"
    raise TfoptError(
        "Cannot tell what kind of model it is. Expected a SavedModel directory or a "
        f".keras, .h5, .tflite, .pb or .pbtxt file. Received: {os.fspath(path)!r}, "
        f"{what}"
    )


def _named(models: Any) -> dict[str, Any]:
    if isinstance(models, Mapping):
        return {str(name): model for name, model in models.items()}
    if isinstance(models, (str, os.PathLike, bytes, Artifact)) or not isinstance(
        models, Sequence
    ):
        models = [models]
    named: dict[str, Any] = {}
    for model in models:
        path = model.path if isinstance(model, Artifact) else model
        is_path = isinstance(path, (str, os.PathLike))
        name = _short_name(os.fspath(path)) if is_path else "model"
        if name in named:
            raise ValueError(
                "Two models have the same name. Expected a dictionary of models by "
                f"name. Received: {name!r} twice"
            )
        named[name] = model
    return named


def _short_name(path: str) -> str:
    return pathlib.PurePath(path).name or path


def _as_file(name: str, model: Any, place: pathlib.Path) -> ModelFile:
    if isinstance(model, Artifact):
        model = model.path
    if isinstance(model, (str, os.PathLike)):
        path = os.fspath(model)
        return ModelFile(name, path, format_of(path), path)
    if isinstance(model, (bytes, bytearray)):
        place = place.with_suffix(".tflite")
        place.write_bytes(model)
        return ModelFile(name, str(place), format_of(place), f"{len(model):,} bytes")
    from tfopt import _keras

    if not _keras.is_model(model):
        raise ValueError(
            "Not a model. Expected a path, an Artifact, the bytes of a .tflite file or "
            f"a Keras model. Received: models[{name!r}]={type(model).__name__}"
        )
    place = place.with_suffix(".keras")
    _keras.save(model, place)
    return ModelFile(name, str(place), "keras", f"{type(model).__name__} {model.name}")
