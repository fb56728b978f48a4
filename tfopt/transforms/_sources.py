"""Where graphs to be transformed come from, and how they are written.

A GraphDef is taken as it is; everything else goes through `tfopt.freeze` first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

from tfopt import artifacts, freezing
from tfopt.freezing import restore
from tfopt.freezing.flow import producer
from tfopt.savedmodel import assets, dtypes, graphs, protos, reader
from tfopt.transforms import _ops
from tfopt.transforms._graph import GraphModel, tensor_name
from tfopt.transforms._options import close_to
from tfopt.types import ConversionError, Signature, TfoptError

OutputFormat = Literal["graph_def", "text", "saved_model"]
_GRAPH_SUFFIXES = {".pb": "graph_def", ".pbtxt": "text"}
# What one protobuf message may hold.
_MAX_BYTES = (1 << 31) - 1


@dataclasses.dataclass
class Call:
    """One way to run the graph: a signature, or what the caller named.

    Attributes:
        inputs: Name -> graph tensor to feed.
        outputs: Name -> graph tensor to fetch.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclasses.dataclass
class Source:
    """A graph to be transformed, and what belongs to it.

    Attributes:
        where: Where it came from, for messages.
        graph: The graph.
        calls: Key of a signature, or `""` -> how to run it.
        init_op: Node to run before anything else, `None` if there is none.
        asset_feeds: Tensor -> file that the init op is fed.
        signature: The main signature, if it has signatures.
        meta_graph: The MetaGraphDef of a SavedModel, without the graph.
        folder: The frozen SavedModel.
        frozen: Findings of freezing, `None` if there was nothing to freeze.
    """

    where: str
    graph: GraphModel
    calls: dict[str, Call]
    init_op: str | None = None
    asset_feeds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    signature: Signature | None = None
    meta_graph: Any = None
    folder: pathlib.Path | None = None
    frozen: Mapping[str, Any] | None = None

    @property
    def restoration(self) -> dict[str, str] | None:
        """How to fill variables that are stored beside the graph; `None` if none."""
        if self.meta_graph is None or not self.meta_graph.HasField("saver_def"):
            return None
        saver = self.meta_graph.saver_def
        return {
            "filename": saver.filename_tensor_name,
            "operation": saver.restore_op_name,
            "prefix": str(self.folder / "variables" / "variables"),  # type: ignore[operator]
        }


def output_format_of(
    source: Any, path: str | os.PathLike[str], wanted: OutputFormat | None
) -> OutputFormat:
    """Returns the format to write: the wanted one, or what the path's suffix says.

    Raises:
        ValueError: A GraphDef is to become a SavedModel, without having signatures.
    """
    suffix = pathlib.Path(path).suffix
    found = wanted or _GRAPH_SUFFIXES.get(suffix, "saved_model")
    if found == "saved_model" and _is_graph(source):
        raise ValueError(
            "A GraphDef has no signatures, so it cannot be written as a SavedModel. "
            "Expected an output that ends in .pb or .pbtxt, or output_format="
            f"'graph_def' or 'text'. Received: output={os.fspath(path)!r}"
        )
    return found  # type: ignore[return-value]


@contextlib.contextmanager
def open_source(
    source: Any,
    *,
    output_format: OutputFormat,
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
    signature_keys: Sequence[str] | None,
    tags: Collection[str] | None,
    init_op: str | None,
    asset_feeds: Mapping[str, str],
    freeze_options: Mapping[str, Any],
) -> Iterator[Source]:
    """Opens a graph; what had to be frozen lives until the block ends.

    Args:
        source: See `tfopt.transform_graph`.
        output_format: What will be written of it.
        inputs: Tensors or nodes to feed; only for a GraphDef.
        outputs: Tensors or nodes to fetch; only for a GraphDef.
        signature_keys: Signatures to keep; not for a GraphDef.
        tags: Tag set; not for a GraphDef.
        init_op: Node to run first; only for a GraphDef.
        asset_feeds: What it is fed.
        freeze_options: Further options of `tfopt.freeze`.

    Raises:
        ValueError: Options that don't fit the kind of source.
        TfoptError: It cannot be read, or lacks an input or output.
        ConversionError: It cannot be frozen.
    """
    if _is_graph(source):
        _refuse(
            "A GraphDef has neither signatures nor variables.",
            {"signature_keys": signature_keys, "tags": tags, **freeze_options},
        )
        yield _of_graph(source, inputs, outputs, init_op, asset_feeds)
        return
    _refuse(
        "A model brings its own inputs, outputs and init op; choose among them by "
        "signature_keys.",
        {
            "inputs": inputs,
            "outputs": outputs,
            "init_op": init_op,
            "asset_feeds": asset_feeds,
        },
    )
    with artifacts.temporary_folder() as folder:
        yield _of_model(
            source,
            pathlib.Path(folder),
            as_saved_model=output_format == "saved_model",
            signature_keys=signature_keys,
            tags=tags,
            freeze_options=freeze_options,
        )


def write(
    source: Source, graph_def: Any, path: pathlib.Path, output_format: OutputFormat
) -> None:
    """Writes a transformed graph.

    Args:
        source: Where it came from, for what belongs to it.
        graph_def: The graph.
        path: A new file or directory.
        output_format: What to write.

    Raises:
        ConversionError: It is over 2 GiB.
    """
    if output_format == "text":
        from google.protobuf import text_format

        path.write_text(text_format.MessageToString(graph_def), encoding="utf-8")
        return
    if output_format == "graph_def":
        path.write_bytes(serialize(graph_def))
        return
    folder, meta = source.folder, type(source.meta_graph)()
    meta.CopyFrom(source.meta_graph)
    meta.graph_def.CopyFrom(graph_def)
    _list_operations(meta)
    saved_model = protos.message_class("SavedModel")(saved_model_schema_version=1)
    saved_model.meta_graphs.append(meta)
    path.mkdir()
    (path / "saved_model.pb").write_bytes(serialize(saved_model))
    for part in ("variables", "assets", "assets.extra"):
        if folder is not None and (folder / part).exists():
            shutil.copytree(folder / part, path / part)


def serialize(message: Any) -> bytes:
    """Returns a message's bytes.

    Raises:
        ConversionError: It is over 2 GiB.
    """
    from google.protobuf.message import EncodeError

    try:
        data = message.SerializeToString(deterministic=True)
    except (EncodeError, ValueError) as error:
        raise _too_large(str(error)) from error
    if len(data) > _MAX_BYTES:
        raise _too_large(f"{len(data):,} bytes")
    return data


def _too_large(received: str) -> ConversionError:
    return ConversionError(
        "The graph is too large for one protobuf message. Expected at most "
        f"{_MAX_BYTES:,} bytes. Keep large variables beside the graph: transform a "
        "SavedModel into a SavedModel with keep_variables_over=BYTES. "
        f"Received: {received}"
    )


def _is_graph(source: Any) -> bool:
    if isinstance(source, (bytes, bytearray)):
        return True
    if isinstance(source, (str, os.PathLike)):
        path = pathlib.Path(source)
        return path.suffix in _GRAPH_SUFFIXES and not path.is_dir()
    return hasattr(source, "as_graph_def") or _message_name(source) == "GraphDef"


def _message_name(source: Any) -> str:
    return getattr(getattr(source, "DESCRIPTOR", None), "name", "")


def _refuse(why: str, options: Mapping[str, Any]) -> None:
    given = {name: value for name, value in options.items() if value}
    if given:
        raise ValueError(
            f"{why} Expected no {' and no '.join(given)} for this source. "
            f"Received: {given}"
        )


def _of_graph(
    source: Any,
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
    init_op: str | None,
    asset_feeds: Mapping[str, str],
) -> Source:
    where, graph_def = _read_graph(source)
    graphs.check(graph_def, where)
    if not outputs:
        raise ValueError(
            "A GraphDef has no signatures. Expected the names of its output nodes or "
            f"tensors. Received: outputs={outputs!r} for {where}"
        )
    by_name = {node.name: node for node in graph_def.node}
    kept = [name for name in (init_op, *map(producer, asset_feeds)) if name]
    if inputs is None:
        inputs = _placeholders(graph_def, [producer(name) for name in outputs])
    for role, names in (("inputs", inputs), ("outputs", outputs), ("init_op", kept)):
        for name in names:
            if producer(name) not in by_name:
                close = close_to(producer(name), by_name)
                raise TfoptError(
                    f"The graph has no such node.{close} Expected names of its nodes. "
                    f"Received: {role} with {name!r} for {where}"
                )
    graph = GraphModel.from_graph_def(
        graph_def, inputs=inputs, outputs=outputs, kept=kept
    )
    call = Call(
        dict(zip(inputs, graph.inputs, strict=True)),
        dict(zip(outputs, graph.outputs, strict=True)),
    )
    return Source(where, graph, {"": call}, init_op, dict(asset_feeds))


def _read_graph(source: Any) -> tuple[str, Any]:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source), reader.read_message(source, "GraphDef")
    if hasattr(source, "as_graph_def"):
        source = source.as_graph_def()
    where = type(source).__name__
    if not isinstance(source, (bytes, bytearray)):
        source = source.SerializeToString()
    from google.protobuf.message import DecodeError

    try:
        return where, protos.message_class("GraphDef").FromString(bytes(source))
    except DecodeError as error:
        raise TfoptError(
            "Cannot read the bytes as a GraphDef. Expected a serialized GraphDef. "
            f"Received: {len(source):,} bytes ({error})"
        ) from error


def _placeholders(graph_def: Any, outputs: Sequence[str]) -> list[str]:
    """Returns the placeholders that the outputs need."""
    return [
        node.name
        for node in restore.reachable(graph_def.node, outputs)
        if node.op == "Placeholder" and node.attr["dtype"].type != dtypes.RESOURCE
    ]


def _of_model(
    source: Any,
    folder: pathlib.Path,
    *,
    as_saved_model: bool,
    signature_keys: Sequence[str] | None,
    tags: Collection[str] | None,
    freeze_options: Mapping[str, Any],
) -> Source:
    path = folder / ("frozen" if as_saved_model else "frozen.pb")
    artifact = freezing.freeze(
        source,
        path,
        signature_keys=signature_keys,
        tags=tags,
        output_format="saved_model" if as_saved_model else "graph_def",
        **freeze_options,
    )
    details = artifact.details
    meta_graph = None
    if as_saved_model:
        meta_graph = reader.read_saved_model(path).meta_graphs[0]
        graph_def = protos.message_class("GraphDef")()
        graph_def.CopyFrom(meta_graph.graph_def)
        meta_graph.ClearField("graph_def")
    else:
        graph_def = reader.read_message(path, "GraphDef")
    calls = {
        key: Call(_flat(tensors["inputs"]), _flat(tensors["outputs"]))
        for key, tensors in details["signatures"].items()
    }
    opened = Source(
        where=str(artifact.history[0]["source"]),
        graph=GraphModel.from_graph_def(
            graph_def,
            inputs=_distinct(call.inputs for call in calls.values()),
            outputs=_distinct(call.outputs for call in calls.values()),
            kept=_kept_nodes(meta_graph, details),
        ),
        calls=calls,
        init_op=details["init_op"],
        asset_feeds=details["asset_feeds"],
        signature=artifact.signature,
        meta_graph=meta_graph,
        folder=path if as_saved_model else None,
        frozen=details,
    )
    return opened


def _flat(tensors: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Returns name -> tensor; parts of composite ones are numbered."""
    found = {}
    for name, parts in tensors.items():
        for number, part in enumerate(parts):
            found[name if len(parts) == 1 else f"{name}/{number}"] = tensor_name(part)
    return found


def _distinct(groups: Any) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group.values()))


def _kept_nodes(meta_graph: Any, details: Mapping[str, Any]) -> list[str]:
    """Returns the nodes that loaders ask for beside the signatures' tensors."""
    kept = [details["init_op"], *map(producer, details["asset_feeds"])]
    if meta_graph is not None:
        kept += [
            producer(asset.tensor_info.name) for asset in assets.listed(meta_graph)
        ]
        if meta_graph.HasField("saver_def"):
            saver = meta_graph.saver_def
            kept += [
                producer(saver.filename_tensor_name),
                producer(saver.save_tensor_name),
                saver.restore_op_name,
            ]
    return [name for name in kept if name]


def _list_operations(meta: Any) -> None:
    """Brings the list of operations that the SavedModel uses up to date."""
    functions = meta.graph_def.library.function
    used = {node.op for node in meta.graph_def.node}
    for function in functions:
        used |= {node.op for node in function.node_def}
    used -= {function.signature.name for function in functions}
    listed = meta.meta_info_def.stripped_op_list.op
    known = {definition.name: definition.SerializeToString() for definition in listed}
    for name in used - set(known):
        found = _ops.op_def(name)
        if found is not None:
            known[name] = found.SerializeToString()
    del listed[:]
    for name in sorted(used & set(known)):
        listed.add().ParseFromString(known[name])
