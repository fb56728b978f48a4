"""Model files that TFMOT's wrappers are in, as plain ones.

TFMOT itself does the unwrapping, in a child process: importing it would switch this one
to tf_keras.
"""

from __future__ import annotations

import contextlib
import importlib
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any, Literal

from tfopt import _child, artifacts

Kind = Literal["", "pruned", "quantized"]

# Layer classes by which a file's config shows them.
_PRUNING = '"PruneLowMagnitude"'
_QUANTIZATION = ('"QuantizeWrapper"', '"QuantizeWrapperV2"', '"QuantizeLayer"')


def kind_of(path: pathlib.Path) -> Kind:
    """Returns which of TFMOT's wrappers a model file or SavedModel needs rid of.

    A SavedModel in quantization-aware training is fine as it is: all that its graph
    needs is in it. One in pruning writes its weights whenever it runs.
    """
    from tfopt._keras import safety

    try:
        config = _config(path)
    except safety.ERRORS:
        return ""  # Loading it will say what is wrong.
    if any(name in config for name in _QUANTIZATION):
        return "" if path.is_dir() else "quantized"
    return "pruned" if _PRUNING in config else ""


@contextlib.contextmanager
def plain(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the path of the model without TFMOT's wrappers, for as long as the block.

    A file without them is its own plain form; one in pruning becomes an `.h5` file; one
    in quantization-aware training a SavedModel directory, as its fake quantization is
    no Keras layer that could be loaded without TFMOT.

    Raises:
        TfoptError: TFMOT cannot load the file, or it is not safe to.
    """
    from tfopt._keras import safety

    if path.is_file():
        safety.probe(path)
    kind = kind_of(path)
    if not kind:
        yield path
        return
    safety.check(path, importlib.import_module("tf_keras"))
    with artifacts.temporary_folder() as folder:
        target = pathlib.Path(folder) / ("plain.h5" if kind == "pruned" else "plain")
        arguments = {"path": str(path), "output": str(target)}
        _child.call("tfopt.tfmot:write_plain", arguments)
        yield target


def is_quantized(model: Any) -> bool:
    """Whether a Keras model is in TFMOT's quantization-aware training."""
    classes = {f'"{type(layer).__name__}"' for layer in model.layers}
    return bool(classes & set(_QUANTIZATION))


def _config(path: pathlib.Path) -> str:
    if path.is_dir():  # tf_keras leaves the layers' configs beside the graph.
        content = (path / "keras_metadata.pb").read_bytes()
        return content.decode("utf-8", errors="ignore")
    if path.suffix in artifacts.HDF5_SUFFIXES:
        import h5py

        with h5py.File(path) as file:
            config = file.attrs.get("model_config", "")
        return config.decode() if isinstance(config, bytes) else str(config)
    from tfopt._keras import safety

    with zipfile.ZipFile(path) as archive:
        return safety.read_config(archive, "config.json").decode()
