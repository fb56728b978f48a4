"""Files that a SavedModel brings along, and no others."""

from __future__ import annotations

import os
import pathlib
import shutil
from typing import Any

from tfopt import _trust
from tfopt.savedmodel import protos
from tfopt.types import TfoptError

FOLDER = "assets"
EXTRA = "assets.extra"
# Where TensorFlow 1 lists them.
_COLLECTION = "saved_model_assets"


def listed(meta_graph: Any) -> list[Any]:
    """Returns the AssetFileDefs of a model: which tensor is the path of which file.

    Args:
        meta_graph: A MetaGraphDef.

    Raises:
        TfoptError: The list is damaged.
    """
    if meta_graph.asset_file_def:
        return list(meta_graph.asset_file_def)
    if _COLLECTION not in meta_graph.collection_def:
        return []
    from google.protobuf.message import DecodeError

    message = protos.message_class("AssetFileDef")
    packed = meta_graph.collection_def[_COLLECTION].any_list.value
    try:
        return [message.FromString(item.value) for item in packed]
    except DecodeError as error:
        raise TfoptError(
            "The model's list of assets is damaged. Expected AssetFileDef messages. "
            f"Received: {len(packed)} in the collection {_COLLECTION!r}"
        ) from error


def locate(model: pathlib.Path, name: str) -> pathlib.Path:
    """Returns where an asset of a SavedModel lies.

    Args:
        model: The SavedModel's directory.
        name: The name that the model gives it, relative to its folder of assets.

    Raises:
        TfoptError: The name, or a symbolic link, leads out of the model.
    """
    path = model / FOLDER / name
    parts = pathlib.PurePosixPath(name.replace("\\", "/")).parts
    if not parts or "\0" in name or ".." in parts or parts[0].endswith((":", "/")):
        raise _leads_out(model, name)
    _check_link(model, path, name)
    return path


def copy_extra(model: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the extra assets of a SavedModel, if it has any.

    Raises:
        TfoptError: A symbolic link leads out of the model.
    """
    extra = model / EXTRA
    if not extra.is_dir():
        return
    for path in (extra, *extra.rglob("*")):
        _check_link(model, path, path.relative_to(model).as_posix())
    shutil.copytree(extra, target / EXTRA)


def _check_link(model: pathlib.Path, path: pathlib.Path, name: str) -> None:
    if not path.resolve().is_relative_to(model.resolve()) and not _trust.is_trusted():
        raise _leads_out(model, name)


def _leads_out(model: pathlib.Path, name: str) -> TfoptError:
    return TfoptError(
        "An asset lies outside of the model. Expected names below its folder of "
        f"assets, and no links out of it. Received: {name!r} in {os.fspath(model)!r}"
    )
