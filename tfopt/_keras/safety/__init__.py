"""Whether a Keras file may be opened: one from elsewhere must not run code.

Keras's own `safe_mode` leaves gaps: tf_keras runs the bytecode of an `.h5` file's
Lambda layers, imports whatever module a `.keras` file names, and calls functions that
delete or download files. So a file's configuration is checked here before either Keras
sees it, against what may be in a model rather than against what is known to be bad.
"""

from __future__ import annotations

import json
import pathlib
import zipfile
from collections.abc import Iterator
from typing import Any

from tfopt import _trust, artifacts
from tfopt._keras.safety import _archives, _config
from tfopt._keras.safety._archives import ERRORS, read_config
from tfopt._keras.safety._probing import check as probe
from tfopt._keras.safety._probing import note
from tfopt.types import TfoptError

__all__ = ["ERRORS", "check", "note", "probe", "read_config"]


def check(path: pathlib.Path, keras: Any) -> None:
    """Raises unless a model file is known to be harmless, or `_trust` says so.

    Args:
        path: A `.keras` or `.h5` file, or a SavedModel directory that tf_keras wrote.
        keras: The module that is going to open it, `keras` or `tf_keras`. Classes that
            are registered in it are allowed.

    Raises:
        TfoptError: It is damaged, holds Python code, names functions or modules that
            no model needs, leads to other files, or is far larger than its content.
    """
    if _trust.is_trusted():
        return
    try:
        reason = _objection(path, keras)
    except ERRORS as error:
        raise TfoptError(
            "Cannot load the model. Expected an undamaged `.keras` or `.h5` file. "
            f"Received: path={str(path)!r} ({str(error).strip()[:200]})"
        ) from error
    if reason:
        raise TfoptError(
            f"The model file is not safe to open: {reason}. {_trust.HOW}. "
            f"Received: path={str(path)!r}"
        )


def _objection(path: pathlib.Path, keras: Any) -> str:
    if path.is_dir():
        found: Iterator[str] = (
            _config.objection(item, keras) for item in _archives.metadata(path)
        )
        return next(filter(None, found), "")
    if path.suffix in artifacts.HDF5_SUFFIXES:
        reason, text = _archives.of_h5(path)
        return reason or (_config.objection(json.loads(text), keras) if text else "")
    with zipfile.ZipFile(path) as archive:
        reason = _archives.objection(archive)
        if reason:
            return reason
        config = json.loads(read_config(archive, "config.json"))
    if isinstance(config, dict):
        config.pop("compile_config", None)  # it is not loaded
    return _config.objection(config, keras)
