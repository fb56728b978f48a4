"""The only knowledge of Keras 3 versus tf_keras.

Models of either version are handled by asking which module made them, never by
asking what `tf.keras` is; no environment variable and no global state is touched.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

from tfopt import _trust, artifacts
from tfopt.types import TfoptError

# Of files that `load` opens.
SUFFIXES = artifacts.KERAS_SUFFIXES


def callback_class() -> type:
    """Returns the Callback class of the Keras that this process prefers.

    That is what `tf.keras` resolves to: tf_keras under TF_USE_LEGACY_KERAS=1,
    otherwise Keras 3.
    """
    return preferred().callbacks.Callback


def preferred() -> Any:
    """Returns the module `keras` or `tf_keras`, as `tf.keras` would resolve."""
    legacy = os.environ.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true")
    return importlib.import_module("tf_keras" if legacy else "keras")


def module_of(thing: Any) -> Any:
    """Returns the module `keras` or `tf_keras` that `thing` belongs to.

    Args:
        thing: A model, layer, optimizer or variable of either Keras.

    Raises:
        TfoptError: `thing` is of neither.
    """
    for cls in type(thing).__mro__:
        root = cls.__module__.split(".", 1)[0]
        if root in ("keras", "tf_keras"):
            return importlib.import_module(root)
    raise TfoptError(
        "Not a Keras object. Expected a model or layer of Keras 3 (`keras`) or of "
        f"tf_keras. Received: {type(thing).__module__}.{type(thing).__name__}"
    )


def is_keras3(thing: Any) -> bool:
    """Returns whether `thing` belongs to Keras 3 (and not to tf_keras)."""
    return module_of(thing).__name__ == "keras"


def is_model(thing: Any) -> bool:
    """Returns whether `thing` is a Keras model of either version."""
    roots = {cls.__module__.split(".", 1)[0] for cls in type(thing).__mro__}
    if not roots & {"keras", "tf_keras"}:
        return False
    return isinstance(thing, module_of(thing).Model)


def check_model(model: Any, *, built: bool = True) -> None:
    """Raises unless `model` is a Keras model (with weights, if `built`).

    Raises:
        TfoptError: It is something else, or has no weights yet.
    """
    if not is_model(model):
        raise TfoptError(
            "Expected a Keras model, of Keras 3 or tf_keras. "
            f"Received: {type(model).__module__}.{type(model).__name__}"
        )
    if built and not model.built:
        raise TfoptError(
            "The model has no weights yet. Call it on a batch, or "
            "`model.build(input_shape)`, first. "
            f"Received: model={model.name!r}"
        )


def leaf_layers(model: Any) -> Iterator[Any]:
    """Yields each layer without sublayers once, in the order of the model.

    Nested models, wrappers and layers that hold layers are entered; a layer that is
    shared appears once.
    """
    seen: set[int] = set()
    for layer in model._flatten_layers(include_self=False, recursive=True):
        inner = list(layer._flatten_layers(include_self=False, recursive=False))
        if not inner and id(layer) not in seen:
            seen.add(id(layer))
            yield layer


def clone(model: Any) -> Any:
    """Returns an uncompiled copy with its own variables and the same weights.

    A subclassed model is made from its configuration. One without becomes a functional
    model of the layers that its `call` runs, with its training step.

    Raises:
        TfoptError: A subclassed model that cannot be rebuilt in either way.
    """
    check_model(model)
    keras = module_of(model)
    if isinstance(model, keras.Sequential) or (
        hasattr(model, "input") and _is_functional(model)
    ):
        return _cloned_graph(model)
    if not _has_full_config(model):
        return _flat_copy(model, "")
    try:
        copy = type(model).from_config(model.get_config())
        copy.build_from_config(model.get_build_config())
        set_weights(copy, model.get_weights())
    except Exception as error:
        return _flat_copy(model, str(error))
    # Keras 3 makes the weights, but leaves the model as if it were not built.
    copy.built = True
    return copy


def set_weights(layer: Any, weights: list[Any]) -> None:
    """Gives a layer or model its weights, and what its layers derive from them.

    Raises:
        ValueError: They are not what it has.
    """
    layer.set_weights(weights)
    for inner in layer._flatten_layers():
        # Normalization computes with copies of what `adapt` found.
        if inner.built and hasattr(inner, "finalize_state"):
            inner.finalize_state()


def _cloned_graph(model: Any) -> Any:
    keras = module_of(model)
    if hasattr(type(model), "original_class"):
        return _flat_copy(model, "")  # it has no configuration
    try:
        copy = keras.models.clone_model(model)
        set_weights(copy, model.get_weights())
    except Exception as error:
        raise _no_copy(model, str(error)) from error
    training = importlib.import_module("tfopt._keras.flatten._training")
    if type(copy) is not type(model) and training.overrides(type(model), keras):
        return _flat_copy(model, "")
    if not isinstance(model, keras.Sequential):
        # Losses are assigned, and files name their outputs, by them.
        copy.output_names = list(model.output_names)
    return copy


def _has_full_config(model: Any) -> bool:
    """Whether a subclassed model's configuration holds its constructor's arguments."""
    if is_keras3(model):
        return True  # it records them, or raises
    cls = type(model)
    takes_none = set(inspect.signature(cls).parameters) <= {"args", "kwargs", "name"}
    return takes_none or cls.get_config is not module_of(model).Model.get_config


def _flat_copy(model: Any, reason: str) -> Any:
    flat = importlib.import_module("tfopt._keras.flatten")
    try:
        return flat.to_model(flat.flatten(model))
    except Exception as error:
        raise _no_copy(model, f"{reason} {error}".strip()) from error


def _no_copy(model: Any, reason: str) -> TfoptError:
    return TfoptError(
        "Cannot copy the model. A subclassed model must implement `get_config` "
        "and create all its weights in `build`; otherwise copy it yourself. "
        f"Received: model={model.name!r} ({type(model).__name__}): {reason}"
    )


def _is_functional(model: Any) -> bool:
    return any(cls.__name__ == "Functional" for cls in type(model).__mro__)


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Saves a model for inference, without optimizer, as `.keras` or `.h5`.

    Not atomic: give it a path from `artifacts.atomic_path`.
    """
    target = os.fspath(path)
    optimizer = getattr(model, "optimizer", None)
    try:
        # Both Keras versions save the optimizer state in `.keras` unasked, which
        # triples the file.
        model.optimizer = None
        # In `.h5` files, Keras 3 asks even for the state of no optimizer.
        is_legacy = target.endswith(artifacts.HDF5_SUFFIXES)
        model.save(target, **({"include_optimizer": False} if is_legacy else {}))
        importlib.import_module("tfopt._keras.safety").note(target)
    finally:
        model.optimizer = optimizer


def load(path: str | os.PathLike[str]) -> Any:
    """Loads a `.keras` or `.h5` file with the Keras version that wrote it.

    TFMOT's pruning wrappers are taken off. A file that could run code is refused,
    unless `_trust` allows it.

    Raises:
        TfoptError: The file is missing, of another format, damaged or not safe.
    """
    source = pathlib.Path(path)
    if not source.is_file():
        raise TfoptError(
            "No such model file. Expected a `.keras` or `.h5` file. "
            f"Received: path={os.fspath(path)!r}"
        )
    from tfopt._keras import foreign, safety

    safety.probe(source)
    if foreign.kind_of(source) == "quantized":
        raise TfoptError(
            "The model is in TFMOT's quantization-aware training, whose layers need "
            "TFMOT. Expected it to be converted or frozen, which works from the file, "
            f"or to be given as it was before. Received: path={os.fspath(path)!r}"
        )
    with foreign.plain(source) as plain:
        return _load(plain, path)


def _load(source: pathlib.Path, path: str | os.PathLike[str]) -> Any:
    try:
        keras = importlib.import_module(_writer_of(source))
        # Registers the layers of models in quantization-aware training.
        importlib.import_module("tfopt._keras.fake_quantize").classes(keras)
        importlib.import_module("tfopt._keras.operations").classes(keras)
        importlib.import_module("tfopt._keras.safety").check(source, keras)
        return keras.models.load_model(
            source, compile=False, safe_mode=not _trust.is_trusted()
        )
    except TfoptError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TfoptError(
            "Cannot load the model. Expected an undamaged `.keras` or `.h5` file whose "
            "custom objects are registered. "
            f"Received: path={os.fspath(path)!r} ({reason})"
        ) from error


def _writer_of(path: pathlib.Path) -> str:
    # Keras 3 loads some tf_keras files without complaint and other numerics, so the
    # version recorded in the file decides.
    if path.suffix in artifacts.HDF5_SUFFIXES:
        import h5py

        with h5py.File(path) as file:
            version = file.attrs.get("keras_version", b"2")
            version = version.decode() if isinstance(version, bytes) else str(version)
    else:
        from tfopt._keras import safety

        with zipfile.ZipFile(path) as archive:
            metadata = safety.read_config(archive, "metadata.json")
            version = json.loads(metadata)["keras_version"]
    return "keras" if int(version.split(".", 1)[0]) >= 3 else "tf_keras"
