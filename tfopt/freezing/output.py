"""Writing the frozen graph: a GraphDef, its text, or a SavedModel directory."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

from tfopt.freezing.flow import producer
from tfopt.freezing.plan import Value
from tfopt.freezing.rewrite import Rewritten, shape_proto
from tfopt.freezing.sources import Source
from tfopt.freezing.state import State
from tfopt.savedmodel import dtypes, protos, reader, wire
from tfopt.savedmodel.bundle import BundleReader, BundleWriter
from tfopt.savedmodel.extents import OutputFile
from tfopt.savedmodel.wire import FileBytes, Tree
from tfopt.types import ConversionError, TfoptError

_MAIN_OP = "saved_model_main_op"


def graph_tree(source: Source, graph: Rewritten) -> Tree:
    """Returns the GraphDef, with the variables' values where the checkpoint has them.

    Raises:
        TfoptError: A slice had to be verified, and is damaged.
    """
    constants = {(entry.function, entry.node): entry.value for entry in graph.constants}
    checkpoint = source.checkpoint
    tree = Tree(protos.message_class("GraphDef")())
    tree.message.versions.CopyFrom(source.graph.versions)
    for node in graph.nodes:
        value = constants.get(("", node.name))
        tree.children.append(("node", _node_tree(node, value, checkpoint)))
    library = Tree(protos.message_class("FunctionDefLibrary")())
    for function in graph.functions:
        library.children.append(
            ("function", _function_tree(function, constants, checkpoint))
        )
    if graph.functions:
        tree.children.append(("library", library))
    return tree


def value_less(source: Source, graph: Rewritten) -> Any:
    """Returns the GraphDef without the values of the constants for variables."""
    message = protos.message_class("GraphDef")()
    message.versions.CopyFrom(source.graph.versions)
    message.node.extend(graph.nodes)
    message.library.function.extend(graph.functions)
    return message


def saved_model_tree(
    source: Source, graph: Rewritten, state: State, content: Tree
) -> Tree:
    """Returns the SavedModel around a GraphDef."""
    meta = protos.message_class("MetaGraphDef")()
    old = source.meta_graph.meta_info_def
    info = meta.meta_info_def
    info.tags.extend(old.tags or [reader.SERVE])
    info.tensorflow_version = old.tensorflow_version
    info.tensorflow_git_version = old.tensorflow_git_version
    info.stripped_default_attrs = old.stripped_default_attrs
    used = {node.op for node in graph.nodes}
    used |= {node.op for function in graph.functions for node in function.node_def}
    info.stripped_op_list.op.extend(
        definition for name, definition in source.op_defs.items() if name in used
    )
    for key, signature in source.signatures.items():
        meta.signature_def[key].CopyFrom(signature)
    if state.init_op is not None:
        meta.collection_def[_MAIN_OP].node_list.value.append(state.init_op)
    meta.asset_file_def.extend(live_assets(source, graph))
    if state.saver_def is not None:
        meta.saver_def.CopyFrom(state.saver_def)
    model = Tree(protos.message_class("SavedModel")(saved_model_schema_version=1))
    model.children.append(("meta_graphs", Tree(meta, [("graph_def", content)])))
    return model


def live_assets(source: Source, graph: Rewritten) -> list[Any]:
    """Returns the AssetFileDefs whose tensor is in the graph."""
    names = {node.name for node in graph.nodes}
    return [
        asset for asset in source.assets if producer(asset.tensor_info.name) in names
    ]


def check_size(tree: Tree, values: Iterable[Value], *, saved_model: bool) -> None:
    """Refuses what protobuf cannot hold, before anything is written.

    Raises:
        ConversionError: The message would be over 2 GiB.
    """
    if tree.size <= wire.MAX_BYTES:
        return
    largest = sorted(values, key=lambda value: -value.size_bytes)[:5]
    listed = ", ".join(f"{v.name} ({v.size_bytes:,} bytes)" for v in largest)
    way_out = (
        "keep_variables_over=BYTES or variable_names_denylist, which leave large "
        "variables in the output's variables/ folder"
    )
    if not saved_model:
        way_out = f'output_format="saved_model" with {way_out}'
    raise ConversionError(
        "The frozen graph is too large for one protobuf message. Expected at most "
        f"{wire.MAX_BYTES:,} bytes. Use {way_out}. "
        f"Received: {tree.size:,} bytes; the largest variables: {listed}"
    )


def write_graph(
    tree: Tree, path: pathlib.Path, *, text: bool, checksums: bool = True
) -> None:
    """Writes a GraphDef file, binary or text.

    Args:
        tree: The GraphDef.
        path: The file.
        text: Whether to write protobuf's text format.
        checksums: See `OutputFile`.
    """
    with OutputFile(path, checksums=checksums) as out:
        if text:
            tree.write_text(out)
        else:
            tree.write(out)


def write_saved_model(
    tree: Tree,
    path: pathlib.Path,
    *,
    source: Source,
    graph: Rewritten,
    stored: Mapping[str, Value],
    checksums: bool = True,
) -> None:
    """Writes a SavedModel directory with its assets and kept variables."""
    path.mkdir()
    with OutputFile(path / "saved_model.pb", checksums=checksums) as out:
        tree.write(out)
    if stored and source.checkpoint is not None:
        (path / "variables").mkdir()
        with BundleWriter(path / "variables" / "variables") as writer:
            for key, value in stored.items():
                _store(writer, key, value, source.checkpoint)
    if source.folder is None:
        return
    for asset in live_assets(source, graph):
        target = path / "assets" / asset.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy_asset(source.folder / "assets" / asset.filename, target)
    extra = source.folder / "assets.extra"
    if extra.is_dir():
        shutil.copytree(extra, path / "assets.extra")


def _copy_asset(origin: pathlib.Path, target: pathlib.Path) -> None:
    if not origin.is_file():
        raise TfoptError(
            "The model lacks an asset. Expected all files that the SavedModel lists. "
            f"Received: {origin}"
        )
    shutil.copyfile(origin, target)


def _store(
    writer: BundleWriter, key: str, value: Value, checkpoint: BundleReader
) -> None:
    saved = value.saved
    if saved.part is None:
        writer.copy(checkpoint, saved.key, new_key=key)
    else:
        writer.add(key, checkpoint.read(saved.key, saved.part), dtype=value.dtype)


def _function_tree(
    function: Any,
    constants: Mapping[tuple[str, str], Value],
    checkpoint: BundleReader | None,
) -> Tree:
    name = function.signature.name
    values = [constants.get((name, node.name)) for node in function.node_def]
    if not any(values):
        return Tree(function)
    rest = type(function)()
    rest.CopyFrom(function)
    del rest.node_def[:]
    return Tree(
        rest,
        [
            ("node_def", _node_tree(node, value, checkpoint))
            for node, value in zip(function.node_def, values, strict=True)
        ],
    )


def _node_tree(node: Any, value: Value | None, checkpoint: BundleReader | None) -> Tree:
    if value is None or checkpoint is None:
        return Tree(node)
    entry = protos.map_entry_class(node, "attr")(key="value")
    attribute = protos.message_class("AttrValue")()
    tensor = _tensor_tree(value, checkpoint)
    return Tree(
        node,
        [("attr", Tree(entry, [("value", Tree(attribute, [("tensor", tensor)]))]))],
    )


def _tensor_tree(value: Value, checkpoint: BundleReader) -> Tree:
    """Returns the TensorProto of a variable's value."""
    proto = protos.message_class("TensorProto")(dtype=value.dtype)
    proto.tensor_shape.CopyFrom(shape_proto(value.shape))
    saved = value.saved
    ranges = checkpoint.extents(saved.key, saved.part)
    if ranges is not None:
        content = FileBytes(tuple(ranges))
        return Tree(proto, [("tensor_content", content)] if content.size else [])
    array = checkpoint.read(saved.key, saved.part)
    if value.dtype == dtypes.STRING:
        proto.string_val.extend(array.reshape(-1).tolist())
    else:
        proto.tensor_content = array.tobytes()
    return Tree(proto)
