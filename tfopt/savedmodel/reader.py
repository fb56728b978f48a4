"""Reading SavedModel directories and TF1 graph files as messages."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from tfopt import types
from tfopt.savedmodel import dtypes, protos
from tfopt.savedmodel.bundle import BundleReader
from tfopt.types import TfoptError

SERVE = "serve"
INIT_SIGNATURE = "__saved_model_init_op"
TRAIN_SIGNATURE = "__saved_model_train_op"


def read_saved_model(directory: str | os.PathLike[str]) -> Any:
    """Reads `saved_model.pb` (or `.pbtxt`) as a SavedModel message.

    Raises:
        TfoptError: It isn't there or cannot be parsed.
    """
    folder = pathlib.Path(directory)
    for name in ("saved_model.pb", "saved_model.pbtxt"):
        if (folder / name).is_file():
            return read_message(folder / name, "SavedModel")
    raise TfoptError(
        "Not a SavedModel. Expected a directory with a file saved_model.pb or "
        f"saved_model.pbtxt. Received: {folder}"
    )


def read_message(path: str | os.PathLike[str], name: str, *, cls: Any = None) -> Any:
    """Reads one message from a file, binary or text (`.pbtxt`, `.txt`).

    Args:
        path: The file.
        name: `"SavedModel"`, `"MetaGraphDef"` or `"GraphDef"`.
        cls: Its class; by default that of `protos`, which TensorFlow doesn't take.

    Raises:
        TfoptError: The file is missing or isn't such a message.
    """
    from google.protobuf.message import DecodeError

    file = pathlib.Path(path)
    cls = protos.message_class(name) if cls is None else cls
    try:
        if file.suffix in (".pbtxt", ".txt"):
            from google.protobuf import text_format

            try:
                return text_format.Parse(file.read_bytes(), cls())
            except (text_format.ParseError, ValueError, RecursionError) as error:
                raise DecodeError(str(error)) from error
        return cls.FromString(file.read_bytes())
    except (OSError, DecodeError) as error:
        raise TfoptError(
            f"Cannot read the file as a {name}. Expected an intact file, written by "
            f"TensorFlow. Received: {file} ({error})"
        ) from error


def select_meta_graph(
    saved_model: Any, tags: Collection[str] | None, directory: str | os.PathLike[str]
) -> Any:
    """Returns the MetaGraphDef with exactly these tags.

    Args:
        saved_model: A SavedModel message.
        tags: The tag set. By default `{"serve"}` if there is one, else the only one.
        directory: Where it was read, for messages.

    Raises:
        TfoptError: There is none with these tags; lists what exists.
    """
    graphs = list(saved_model.meta_graphs)
    by_tags = {frozenset(graph.meta_info_def.tags): graph for graph in graphs}
    if tags is None:
        wanted = frozenset([SERVE])
        if wanted not in by_tags and len(graphs) == 1:
            return graphs[0]
    else:
        wanted = frozenset(tags)
    if wanted not in by_tags:
        listed = ", ".join("{" + ",".join(sorted(found)) + "}" for found in by_tags)
        raise TfoptError(
            f"The SavedModel has no graph with these tags. Expected one of {listed}. "
            f"Received: tags={','.join(sorted(wanted))!r} in {os.fspath(directory)}"
        )
    return by_tags[wanted]


def select_signatures(
    meta_graph: Any, keys: Iterable[str] | None, where: str
) -> dict[str, Any]:
    """Returns key -> SignatureDef; by default all that are for inference.

    Raises:
        TfoptError: A key doesn't exist, or there is no signature; lists what exists.
    """
    existing = {
        key: meta_graph.signature_def[key]
        for key in sorted(meta_graph.signature_def)
        if key not in (INIT_SIGNATURE, TRAIN_SIGNATURE)
    }
    wanted = list(existing) if keys is None else list(keys)
    for key in wanted:
        if key not in existing:
            raise TfoptError(
                f"The model has no such signature. Expected one of {list(existing)}. "
                f"Received: signature_key={key!r} in {where}"
            )
    if not wanted:
        raise TfoptError(
            "The model has no signature, so there is nothing to call. Expected at "
            "least one; save the model with `signatures=`. "
            f"Received: {where}"
        )
    return {key: existing[key] for key in wanted}


def open_variables(directory: str | os.PathLike[str]) -> BundleReader | None:
    """Opens the checkpoint of a SavedModel; `None` if it has none.

    Raises:
        TfoptError: The index is damaged, or there are shards without one.
    """
    prefix = pathlib.Path(directory) / "variables" / "variables"
    if not any(prefix.parent.glob("variables.*")):
        return None
    return BundleReader(prefix)


def tensor_names(info: Any) -> list[str]:
    """Returns the graph tensors of a TensorInfo message, components one by one."""
    kind = info.WhichOneof("encoding")
    if kind == "coo_sparse":
        parts = info.coo_sparse
        return [
            parts.indices_tensor_name,
            parts.values_tensor_name,
            parts.dense_shape_tensor_name,
        ]
    if kind == "composite_tensor":
        return [
            name
            for part in info.composite_tensor.components
            for name in tensor_names(part)
        ]
    return [info.name] if info.name else []


def signature_of(key: str, signature: Any) -> types.Signature:
    """Returns a SignatureDef as `tfopt.Signature`, inputs and outputs by name."""
    return types.Signature(
        key=key,
        inputs=tuple(
            _tensor_info(name, signature.inputs[name])
            for name in sorted(signature.inputs)
        ),
        outputs=tuple(
            _tensor_info(name, signature.outputs[name])
            for name in sorted(signature.outputs)
        ),
    )


def _tensor_info(name: str, info: Any) -> types.TensorInfo:
    shape = None
    if info.HasField("tensor_shape") and not info.tensor_shape.unknown_rank:
        shape = tuple(
            None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim
        )
    dtype = info.dtype % dtypes.REF_OFFSET
    opaque = dtype in (0, dtypes.RESOURCE, dtypes.VARIANT)
    return types.TensorInfo(
        name=name,
        dtype=np.dtype(object) if opaque else dtypes.to_numpy(dtype),
        shape=shape,
    )
