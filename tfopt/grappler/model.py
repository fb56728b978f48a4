"""The model that is optimized: frozen, as one graph with all that must stay in it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from tfopt import artifacts, freezing
from tfopt.freezing import restore, sources
from tfopt.freezing.flow import producer
from tfopt.savedmodel import assets, dtypes, outside, protos, reader, wire
from tfopt.types import Artifact, ConversionError, Signature, TfoptError

_MAIN_OP = "saved_model_main_op"
_TRAIN_OP = "train_op"
_FED = "tfopt_fed"
_GRAPHS = (".pb", ".pbtxt")
_TABLE_FILLERS = (
    *("InitializeTable", "InitializeTableV2", "LookupTableImport"),
    *("InitializeTableFromTextFile", "InitializeTableFromTextFileV2"),
    "LookupTableImportV2",
)
_VARIABLE_OPS = restore.RESOURCE_VARIABLES | restore.REF_VARIABLES


@dataclasses.dataclass(frozen=True)
class Model:
    """A frozen model.

    Attributes:
        where: Where it came from, for messages.
        folder: The frozen SavedModel, in a temporary place.
        message: Its SavedModel message, with one meta graph.
        original: How `checking.compare_execution` loads what the user gave.
        assets: Folder of the user's asset files, `None` if there are none.
        details: Of the freeze.
    """

    where: str
    folder: pathlib.Path
    message: Any
    original: dict[str, Any]
    assets: pathlib.Path | None
    details: dict[str, Any]

    @property
    def meta_graph(self) -> Any:
        """The MetaGraphDef."""
        return self.message.meta_graphs[0]

    @property
    def graph(self) -> Any:
        """The GraphDef."""
        return self.meta_graph.graph_def

    @property
    def signatures(self) -> dict[str, Any]:
        """Key -> SignatureDef."""
        return dict(self.meta_graph.signature_def)

    @property
    def main_key(self) -> str:
        """The key of the signature `serving_default`, or else of the first."""
        keys = sorted(self.signatures)
        default = sources.SERVING_DEFAULT
        return default if default in keys else keys[0]

    @property
    def signature(self) -> Signature:
        """The main signature."""
        return reader.signature_of(self.main_key, self.signatures[self.main_key])

    @property
    def init_op(self) -> str | None:
        """The node that loaders run once."""
        names = sources.collection_names(self.meta_graph, _MAIN_OP)
        return names[0] if names else None

    @property
    def kept(self) -> list[str]:
        """Names of variables that are still variables."""
        return [kept["name"] for kept in self.details["kept_variables"]]

    @property
    def has_stored_variables(self) -> bool:
        """Whether values of variables lie beside the graph."""
        return bool(self.meta_graph.saver_def.restore_op_name)

    @property
    def asset_feeds(self) -> dict[str, str]:
        """Tensor -> file that the init op of a plain graph has to be fed."""
        found = assets.listed(self.meta_graph)
        if found and self.assets is None:
            raise ConversionError(
                "A plain graph cannot carry asset files. Expected a source that is a "
                'SavedModel directory, or output_format="saved_model". '
                f"Received: source={self.where}"
            )
        if self.assets is None:
            return {}
        model = self.assets.parent
        return {
            item.tensor_info.name: str(assets.locate(model, item.filename))
            for item in found
        }

    @property
    def entry_nodes(self) -> list[str]:
        """The nodes that loaders and callers ask for."""
        infos = [
            info
            for signature in self.signatures.values()
            for side in (signature.inputs, signature.outputs)
            for info in side.values()
        ]
        names = [name for info in infos for name in reader.tensor_names(info)]
        saver = self.meta_graph.saver_def
        names += [saver.save_tensor_name, saver.restore_op_name]
        names += [saver.filename_tensor_name, self.init_op or ""]
        names += [item.tensor_info.name for item in assets.listed(self.meta_graph)]
        return list(dict.fromkeys(producer(name) for name in names if name))

    def for_grappler(self) -> Any:
        """Returns the MetaGraphDef that makes Grappler keep all that must stay."""
        meta = protos.message_class("MetaGraphDef")()
        meta.graph_def.CopyFrom(self.graph)
        for key, signature in self.signatures.items():
            meta.signature_def[key].CopyFrom(signature)
        # What loaders feed must not be taken for constant.
        fed = meta.signature_def[_FED].inputs
        names = [item.tensor_info.name for item in assets.listed(self.meta_graph)]
        for name in [*names, self.meta_graph.saver_def.filename_tensor_name]:
            if name:
                fed[name].name = name
                fed[name].dtype = dtypes.STRING
        if not fed:
            del meta.signature_def[_FED]
        meta.collection_def[_TRAIN_OP].node_list.value.extend(self.entry_nodes)
        return meta

    def for_measuring(self) -> Any:
        """Returns the MetaGraphDef of which Grappler's cluster runs the outputs.

        It makes up the inputs, for which it has to know their sizes: 1 where free.
        """
        meta = protos.message_class("MetaGraphDef")()
        meta.graph_def.CopyFrom(self.graph)
        for node in meta.graph_def.node:
            if node.op == "Placeholder":
                for dim in node.attr["shape"].shape.dim:
                    dim.size = abs(dim.size)
        nodes = [
            producer(name)
            for info in self.signatures[self.main_key].outputs.values()
            for name in reader.tensor_names(info)
        ]
        meta.collection_def[_TRAIN_OP].node_list.value.extend(dict.fromkeys(nodes))
        if self.init_op is not None:
            first = meta.collection_def["table_initializer"].node_list
            first.value.append(self.init_op)
        return meta

    def as_graph(self, path: str | os.PathLike[str], form: str) -> dict[str, Any]:
        """Returns how a plain graph of this model, written to `path`, is loaded."""
        return {
            "kind": form,
            "path": os.fspath(path),
            "init_op": self.init_op,
            "asset_feeds": self.asset_feeds,
        }

    def as_saved_model(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Returns how a SavedModel of this model, written to `path`, is loaded."""
        tags = list(self.meta_graph.meta_info_def.tags)
        return {"kind": "saved_model", "path": os.fspath(path), "tags": tags}

    def write(self, path: pathlib.Path, form: str, graph: Any, op_list: Any) -> None:
        """Writes the model with another graph.

        Args:
            path: A new file or directory.
            form: `"graph_def"`, `"text"` or `"saved_model"`.
            graph: The GraphDef.
            op_list: The OpList of the operations that it uses.

        Raises:
            ConversionError: It is over 2 GiB.
        """
        size = graph.ByteSize()
        if size > wire.MAX_BYTES:
            raise ConversionError(
                "The optimized graph is too large for one protobuf message. Expected "
                f"at most {wire.MAX_BYTES:,} bytes. Received: {size:,} bytes"
            )
        if form == "graph_def":
            path.write_bytes(graph.SerializeToString())
        elif form == "text":
            from google.protobuf import text_format

            path.write_text(text_format.MessageToString(graph), encoding="utf-8")
        else:
            message = type(self.message)()
            message.CopyFrom(self.message)
            message.meta_graphs[0].graph_def.CopyFrom(graph)
            stripped = message.meta_graphs[0].meta_info_def.stripped_op_list
            stripped.CopyFrom(op_list)
            path.mkdir()
            (path / "saved_model.pb").write_bytes(message.SerializeToString())
            for part in ("variables", "assets", "assets.extra"):
                if (self.folder / part).is_dir():
                    shutil.copytree(self.folder / part, path / part)


@contextlib.contextmanager
def open_model(
    source: Any,
    *,
    outputs: Sequence[str] = (),
    signature_keys: Sequence[str] | None = None,
    tags: Collection[str] | None = None,
    as_graph: bool = False,
    runs: bool = True,
) -> Iterator[Model]:
    """Freezes a model into a temporary place, which lasts until the block ends.

    Args:
        source: See `optimize_graph`.
        outputs: Outputs of a graph file.
        signature_keys: Signatures to keep.
        tags: Tag set of the SavedModel.
        as_graph: Whether all state must be in the graph, none beside it.
        runs: Whether the model will be run, not merely rewritten.

    Raises:
        ValueError: Options that don't fit the source.
        TfoptError: It cannot be read or frozen.
    """
    with artifacts.temporary_folder() as name:
        folder = pathlib.Path(name)
        is_path = isinstance(source, (str, os.PathLike))
        path = pathlib.Path(source) if is_path else pathlib.Path()
        if is_path and runs:
            outside.check_file(path, "run", tags)
        if is_path and path.suffix in _GRAPHS and not path.is_dir():
            options: dict[str, Any] = {"output_node_names": outputs}
            given: Any = _meta_graph_file(path, outputs, folder / "graph.meta")
        else:
            if outputs:
                raise ValueError(
                    "Only a graph file has outputs by name. Expected `signature_keys` "
                    f"for other sources. Received: outputs={list(outputs)}"
                )
            options, given = {"tags": tags}, source
        artifact = _freeze(given, folder / "model", signature_keys, options)
        model = _opened(source, folder / "model", artifact)
        if as_graph and model.has_stored_variables:
            # The same names, with the variables' values in the init op.
            frozen = freezing.freeze(
                given, folder / "graph.pb", signature_keys=signature_keys, **options
            )
            model = _with_state(model, folder / "graph.pb", frozen)
        yield model


def _freeze(
    source: Any,
    target: pathlib.Path,
    signature_keys: Sequence[str] | None,
    options: dict[str, Any],
) -> Artifact:
    return freezing.freeze(
        source,
        target,
        signature_keys=signature_keys,
        output_format="saved_model",
        **options,
    )


def _opened(source: Any, folder: pathlib.Path, frozen: Artifact) -> Model:
    message = reader.read_saved_model(folder)
    where, assets = type(source).__name__, None
    original = {"kind": "saved_model", "path": str(folder)}
    if isinstance(source, (str, os.PathLike)):
        where = os.fspath(source)
        if os.path.isdir(source):
            original["path"], assets = where, pathlib.Path(where).resolve() / "assets"
    tags = list(message.meta_graphs[0].meta_info_def.tags)
    return Model(
        where=where,
        folder=folder,
        message=message,
        original={**original, "tags": tags},
        assets=assets,
        details=dict(frozen.details),
    )


def _with_state(model: Model, path: pathlib.Path, frozen: Artifact) -> Model:
    message = type(model.message)()
    message.CopyFrom(model.message)
    meta = message.meta_graphs[0]
    meta.graph_def.CopyFrom(reader.read_message(path, "GraphDef"))
    meta.ClearField("saver_def")
    init_op = frozen.details["init_op"]
    meta.collection_def[_MAIN_OP].node_list.value[:] = [init_op] if init_op else []
    return dataclasses.replace(model, message=message, details=dict(frozen.details))


def _meta_graph_file(
    path: pathlib.Path, outputs: Sequence[str], target: pathlib.Path
) -> pathlib.Path:
    """Writes a graph file with the definitions of its operations; returns it.

    Raises:
        ValueError: No outputs are given.
        TfoptError: There is no such file or node, or it has variables.
    """
    if isinstance(outputs, str) or not outputs:
        raise ValueError(
            "A graph file has no signatures. Expected the names of its outputs, as a "
            f"list. Received: outputs={outputs!r} for {path}"
        )
    if not path.exists():
        raise TfoptError(
            "No such model. Expected a SavedModel directory or a graph file (.pb, "
            f".pbtxt). Received: source={str(path)!r}"
        )
    graph = reader.read_message(path, "GraphDef")
    variables = [node.name for node in graph.node if node.op in _VARIABLE_OPS]
    if variables:
        raise ConversionError(
            "A graph file doesn't hold the values of its variables. Expected a frozen "
            "graph or a SavedModel; use tfopt.freeze with its checkpoint first. "
            f"Received: variables {variables[:3]} in {path}"
        )
    meta = protos.message_class("MetaGraphDef")()
    meta.graph_def.CopyFrom(graph)
    nodes = {node.name: node for node in graph.node}
    roots = [nodes[producer(name)].op for name in outputs if producer(name) in nodes]
    _add_definitions(meta, roots)
    tables = [node.name for node in graph.node if node.op in _TABLE_FILLERS]
    if tables:
        meta.collection_def["table_initializer"].node_list.value.extend(tables)
    target.write_bytes(meta.SerializeToString())
    return target


def _add_definitions(meta: Any, ops: Collection[str]) -> None:
    """Adds the definitions of operations, by which types of outputs are told."""
    from tensorflow.python.framework import op_def_registry

    for name in sorted(set(ops)):
        definition = op_def_registry.get(name)
        if definition is not None:
            added = meta.meta_info_def.stripped_op_list.op.add()
            added.ParseFromString(definition.SerializeToString())
