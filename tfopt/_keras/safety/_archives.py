"""What is wrong with a Keras file as a container: its members, links and sizes."""

from __future__ import annotations

import io
import pathlib
import stat
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

# Keras stores its archives uncompressed; others' tools may compress weights, zeros of
# pruned ones by much. Only what is large in memory and nothing on disk is refused.
_SMALL_BYTES = 1 << 28
_MAX_EXPANSION = 100
_WEIGHTS = "model.weights.h5"
_ARRAYS = "model.weights.npz"


def objection(archive: zipfile.ZipFile) -> str:
    """Returns what is wrong with the members of a `.keras` file, or ""."""
    members = archive.infolist()
    names = [member.filename for member in members]
    for member in members:
        reason = _of_member(member)
        if reason:
            return f"its member {member.filename!r} {reason}"
    if len(set(names)) < len(names):
        return "it has two members of one name"
    if _ARRAYS in names:
        return _of_arrays(archive.read(_ARRAYS))
    if _WEIGHTS in names:
        import h5py

        with archive.open(_WEIGHTS) as stream, h5py.File(stream) as file:
            return _of_group(file)
    return ""


def of_h5(path: pathlib.Path) -> tuple[str, str]:
    """Returns what is wrong with an `.h5` file, or "", and its model's JSON."""
    import h5py

    with h5py.File(path) as file:
        config: Any = file.attrs.get("model_config", "")
        text = config.decode() if isinstance(config, bytes) else str(config)
        return _of_group(file), text


def metadata(folder: pathlib.Path) -> Iterator[Any]:
    """Yields the configurations that tf_keras leaves beside a SavedModel's graph.

    Raises:
        ValueError: They cannot be read.
    """
    import json

    from tf_keras.protobuf import saved_metadata_pb2

    content = (folder / "keras_metadata.pb").read_bytes()
    message = saved_metadata_pb2.SavedMetadata.FromString(content)
    for node in message.nodes:
        if node.metadata:
            yield json.loads(node.metadata)


def _of_member(member: zipfile.ZipInfo) -> str:
    parts = member.filename.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or ":" in parts[0]:
        return "has a path that leads out of the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a symbolic link"
    return _expansion(member.file_size, member.compress_size)


def _expansion(size: int, stored: int) -> str:
    if size <= _SMALL_BYTES or size <= _MAX_EXPANSION * stored:
        return ""
    return f"would take {size:,} bytes of memory for {stored:,} on disk"


def _of_arrays(content: bytes) -> str:
    """Looks at the headers only; NumPy reads arrays of objects by unpickling."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            reason = _of_member(member)
            if reason:
                return f"its weights' member {member.filename!r} {reason}"
            with archive.open(member) as stream:
                version = np.lib.format.read_magic(stream)
                read: Any = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                if read(stream)[2].hasobject:
                    return f"its weights {member.filename!r} are pickled objects"
    return ""


def _of_group(group: Any) -> str:
    """Looks at all that an HDF5 file holds, following no link out of it."""
    import h5py

    waiting = [group]
    seen = set()
    while waiting:
        current = waiting.pop()
        for name in current:
            link = current.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                return f"its entry {name!r} is a link to somewhere else"
            item = current[name]
            if isinstance(item, h5py.Group):
                if item.id not in seen:
                    seen.add(item.id)
                    waiting.append(item)
            elif isinstance(item, h5py.Dataset):
                reason = _of_dataset(item)
                if reason:
                    return f"its weights {item.name!r} {reason}"
    return ""


def _of_dataset(dataset: Any) -> str:
    if dataset.external:
        return "are in another file"
    if dataset.is_virtual:
        return "are a view of other files"
    return _expansion(dataset.nbytes, dataset.id.get_storage_size())
