"""Files that a SavedModel brings along, and no others."""

from __future__ import annotations

import os
import pathlib
import shutil

from tfopt import _trust
from tfopt.types import TfoptError

FOLDER = "assets"
EXTRA = "assets.extra"


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
