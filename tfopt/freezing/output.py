"""Writing the frozen graph: a GraphDef, its text, or a SavedModel directory."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from tfopt.freezing.flow import producer
from tfopt.freezing.plan import Plan, Value
from tfopt.freezing.rewrite import Rewritten, shape_proto
from tfopt.freezing.sources import Source
from tfopt.freezing.state import State
from tfopt.savedmodel import assets, dtypes, protos, reader, wire
from tfopt.savedmodel.bundle import BundleReader
from tfopt.savedmodel.bundle_writing import BundleWriter
from tfopt.savedmodel.extents import OutputFile
from tfopt.savedmodel.wire import FileBytes, Tree
from tfopt.types import ConversionError, TfoptError

_MAIN_OP = "saved_model_main_op"


@dataclasses.dataclass(frozen=True)
class FrozenModel:
    """A frozen model, before it is written.

    Attributes:
        source: What it was made of.
        plan: What became of the variables.
        graph: The graph, of which constants still lack their values.
        state: How a loader brings it into its first state.
        output_format: `"graph_def"`, `"text"` or `"saved_model"`.
    """

    source: Source
    plan: Plan
    graph: Rewritten
    state: State
    output_format: str

    @property
    def is_saved_model(self) -> bool:
        """Whether it is written as a directory with signatures and assets."""
        return self.output_format == "saved_model"

    @property
    def assets(self) -> list[Any]:
        """The AssetFileDefs whose tensor is in the graph."""
        names = {node.name for node in self.graph.nodes}
        return [
            asset
            for asset in self.source.assets
            if producer(asset.tensor_info.name) in names
        ]

    def message_path(self, path: pathlib.Path) -> pathlib.Path:
        """Returns the file of the message in what is written to `path`."""
        return path / "saved_model.pb" if self.is_saved_model else path


def write(model: FrozenModel, path: pathlib.Path, *, checksums: bool) -> None:
    """Writes the model.

    Args:
        model: The model.
        path: A new file or directory.
        checksums: See `OutputFile`.

    Raises:
        ConversionError: It would be over 2 GiB; nothing is written then.
        TfoptError: The checkpoint is damaged, or an asset is missing.
    """
    tree = _graph_tree(model)
    if model.is_saved_model:
        tree = _saved_model_tree(model, tree)
    _check_size(tree, model)
    if model.is_saved_model:
        path.mkdir()
    with OutputFile(model.message_path(path), checksums=checksums) as out:
        if model.output_format == "text":
            tree.write_text(out)
        else:
            tree.write(out)
    if model.is_saved_model:
        _write_variables(model, path / "variables")
        _copy_assets(model, path)


def value_less(model: FrozenModel) -> Any:
    """Returns the GraphDef without the values of the constants for variables."""
    message = protos.message_class("GraphDef")()
    message.versions.CopyFrom(model.source.graph.versions)
    message.node.extend(model.graph.nodes)
    message.library.function.extend(model.graph.functions)
    return message


def _graph_tree(model: FrozenModel) -> Tree:
    """Returns the GraphDef; large values stay where the checkpoint has them."""
    source, graph = model.source, model.graph
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


def _saved_model_tree(model: FrozenModel, content: Tree) -> Tree:
    """Returns the SavedModel around a GraphDef."""
    source, graph, state = model.source, model.graph, model.state
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
    meta.asset_file_def.extend(model.assets)
    if state.saver_def is not None:
        meta.saver_def.CopyFrom(state.saver_def)
    tree = Tree(protos.message_class("SavedModel")(saved_model_schema_version=1))
    tree.children.append(("meta_graphs", Tree(meta, [("graph_def", content)])))
    return tree


def _check_size(tree: Tree, model: FrozenModel) -> None:
    """Refuses what protobuf cannot hold, before anything is written."""
    if tree.size <= wire.MAX_BYTES:
        return
    values = [constant.value for constant in model.graph.constants]
    largest = sorted(values, key=lambda value: -value.size_bytes)[:5]
    listed = ", ".join(f"{v.name} ({v.size_bytes:,} bytes)" for v in largest)
    way_out = (
        "keep_variables_over=BYTES or variable_names_denylist, which leave large "
        "variables in the output's variables/ folder"
    )
    if not model.is_saved_model:
        way_out = f'output_format="saved_model" with {way_out}'
    raise ConversionError(
        "The frozen graph is too large for one protobuf message. Expected at most "
        f"{wire.MAX_BYTES:,} bytes. Use {way_out}. "
        f"Received: {tree.size:,} bytes; the largest variables: {listed}"
    )


def _write_variables(model: FrozenModel, folder: pathlib.Path) -> None:
    checkpoint = model.source.checkpoint
    if not model.state.stored or checkpoint is None:
        return
    folder.mkdir()
    with BundleWriter(folder / "variables") as writer:
        for key, value in model.state.stored.items():
            saved = value.saved
            if saved.part is None:
                writer.copy(checkpoint, saved.key, new_key=key)
            else:
                part = checkpoint.read(saved.key, saved.part)
                writer.add(key, part, dtype=value.dtype)


def _copy_assets(model: FrozenModel, path: pathlib.Path) -> None:
    folder = model.source.folder
    if folder is None:
        return
    for asset in model.assets:
        target = path / "assets" / asset.filename
        origin = assets.locate(folder, asset.filename)
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy_asset(origin, target)
    assets.copy_extra(folder, path)


def _copy_asset(origin: pathlib.Path, target: pathlib.Path) -> None:
    if not origin.is_file():
        raise TfoptError(
            "The model lacks an asset. Expected all files that the SavedModel lists. "
            f"Received: {origin}"
        )
    shutil.copyfile(origin, target)


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
