"""What can be frozen: every kind of model becomes one `Source`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from tfopt import artifacts
from tfopt.freezing import restore
from tfopt.freezing.flow import attr, producer
from tfopt.savedmodel import assets, dtypes, graphs, protos, reader
from tfopt.savedmodel.bundle import BundleReader
from tfopt.types import ConversionError, TfoptError

SERVING_DEFAULT = "serving_default"
_GRAPH_SUFFIXES = (".pb", ".pbtxt", ".meta")


# The attribute with the type of the output, of what usually ends a network.
_USUAL_OUTPUTS = (
    *("Add", "AddV2", "BiasAdd", "ConcatV2", "Identity", "LogSoftmax", "MatMul", "Mul"),
    *("Relu", "Reshape", "Sigmoid", "Softmax", "Squeeze", "Sub", "Tanh"),
)
_TYPE_ATTRIBUTES = {
    "ArgMax": "output_type",
    "Cast": "DstT",
    **dict.fromkeys(_USUAL_OUTPUTS, "T"),
}


@dataclasses.dataclass
class Source:
    """A graph with variables, its entry points and its checkpoint.

    Attributes:
        where: Where it came from, for messages.
        meta_graph: The MetaGraphDef.
        signatures: Key -> SignatureDef, those to keep.
        checkpoint: The values of the variables, `None` if there are none.
        init_op: Node that initialises tables, `None` if there is none.
        folder: The SavedModel's directory (for its assets), `None` for graph files.
    """

    where: str
    meta_graph: Any
    signatures: dict[str, Any]
    checkpoint: BundleReader | None
    init_op: str | None
    folder: pathlib.Path | None

    @property
    def graph(self) -> Any:
        """The GraphDef."""
        return self.meta_graph.graph_def

    @property
    def library(self) -> dict[str, Any]:
        """The FunctionDefs by name."""
        return {f.signature.name: f for f in self.graph.library.function}

    @property
    def op_defs(self) -> dict[str, Any]:
        """The definitions that the model carries for its operations, by name."""
        operations = self.meta_graph.meta_info_def.stripped_op_list.op
        return {definition.name: definition for definition in operations}

    @property
    def assets(self) -> list[Any]:
        """The AssetFileDefs: which tensor is the path of which file."""
        return assets.listed(self.meta_graph)

    @property
    def entry_nodes(self) -> list[str]:
        """The nodes that the signatures name, inputs and outputs."""
        return [
            producer(name)
            for signature in self.signatures.values()
            for infos in (signature.inputs, signature.outputs)
            for info in infos.values()
            for name in reader.tensor_names(info)
        ]


@contextlib.contextmanager
def open_source(
    source: Any,
    *,
    signature_keys: Sequence[str] | None = None,
    tags: Collection[str] | None = None,
    checkpoint: str | None = None,
    output_node_names: Sequence[str] = (),
) -> Iterator[Source]:
    """Opens a model; what had to be exported lives until the block ends.

    Args:
        source: A SavedModel directory; a graph file (`.meta`, or a GraphDef in `.pb` or
            `.pbtxt`); a Keras model; a tf.Module, tf.function or ConcreteFunction.
        signature_keys: Signatures to keep, default all for inference.
        tags: Tag set of the SavedModel, default `{"serve"}`.
        checkpoint: Prefix of the checkpoint of a graph file.
        output_node_names: Outputs of a graph file.

    Raises:
        TfoptError: It cannot be read, or tags or signatures don't exist.
        ValueError: Options that don't fit the kind of source.
    """
    if not isinstance(source, (str, os.PathLike)):
        from tfopt.freezing import exporting

        with artifacts.temporary_folder() as folder:
            exporting.export(source, folder)
            yield _saved_model(folder, signature_keys, tags, type(source).__name__)
        return
    path = pathlib.Path(source)
    if path.is_dir():
        if checkpoint or output_node_names:
            raise ValueError(
                "A SavedModel brings its own variables and outputs. Expected "
                "`checkpoint` and `output_node_names` with a graph file only; choose "
                "outputs of a SavedModel by `signature_keys`. Received: "
                f"checkpoint={checkpoint!r}, output_node_names={output_node_names!r}"
            )
        if (path / "keras_metadata.pb").exists():
            with _keras_model(path, signature_keys, tags) as opened:
                yield opened
            return
        yield _saved_model(path, signature_keys, tags, str(path))
    elif path.suffix in artifacts.KERAS_SUFFIXES:
        with _keras_model(path, signature_keys, tags) as opened:
            yield opened
    elif path.suffix in _GRAPH_SUFFIXES and path.exists():
        yield _graph_file(path, checkpoint, output_node_names)
    else:
        raise TfoptError(
            "No such model. Expected a SavedModel directory, a graph file (.meta, .pb, "
            f".pbtxt) or a .keras file. Received: source={os.fspath(path)!r}"
        )


@contextlib.contextmanager
def _keras_model(
    path: pathlib.Path,
    signature_keys: Sequence[str] | None,
    tags: Collection[str] | None,
) -> Iterator[Source]:
    """Opens what Keras wrote, without TFMOT's wrappers."""
    from tfopt import _keras
    from tfopt._keras import foreign

    with foreign.plain(path) as plain:
        if plain.is_dir():
            yield _saved_model(plain, signature_keys, tags, str(path))
            return
        model = _keras.load(plain)
    with open_source(model, signature_keys=signature_keys, tags=tags) as loaded:
        yield loaded


def _saved_model(
    folder: str | pathlib.Path,
    signature_keys: Sequence[str] | None,
    tags: Collection[str] | None,
    where: str,
) -> Source:
    saved_model = reader.read_saved_model(folder)
    meta_graph = reader.select_meta_graph(saved_model, tags, where)
    graphs.check(meta_graph.graph_def, where)
    return Source(
        where=where,
        meta_graph=meta_graph,
        signatures=reader.select_signatures(meta_graph, signature_keys, where),
        checkpoint=reader.open_variables(folder),
        init_op=_init_op(meta_graph),
        folder=pathlib.Path(folder),
    )


def _init_op(meta_graph: Any) -> str | None:
    """Returns the node that loaders run after restoring the variables."""
    signature = meta_graph.signature_def.get(reader.INIT_SIGNATURE)
    if signature is not None:
        return producer(signature.outputs[reader.INIT_SIGNATURE].name)
    for collection in ("saved_model_main_op", "legacy_init_op"):
        names = collection_names(meta_graph, collection)
        if names:
            return producer(names[0])
    return None


def collection_names(meta_graph: Any, collection: str) -> list[str]:
    """Returns the nodes that a collection of a MetaGraphDef lists."""
    if collection not in meta_graph.collection_def:
        return []
    return list(meta_graph.collection_def[collection].node_list.value)


def _graph_file(
    path: pathlib.Path, checkpoint: str | None, output_node_names: Sequence[str]
) -> Source:
    if not output_node_names:
        raise ValueError(
            "A graph file has no signatures. Expected the names of its output nodes. "
            f"Received: output_node_names={output_node_names!r} for {path}"
        )
    if path.suffix == ".meta":
        meta_graph = reader.read_message(path, "MetaGraphDef")
    else:
        meta_graph = protos.message_class("MetaGraphDef")()
        meta_graph.graph_def.CopyFrom(reader.read_message(path, "GraphDef"))
    graphs.check(meta_graph.graph_def, path)
    source = Source(
        where=str(path),
        meta_graph=meta_graph,
        signatures={},
        checkpoint=None if checkpoint is None else BundleReader(checkpoint),
        init_op=None,
        folder=None,
    )
    source.signatures[SERVING_DEFAULT] = _make_signature(source, output_node_names)
    tables = collection_names(meta_graph, "table_initializer")
    if tables:
        init = meta_graph.graph_def.node.add(name="tfopt_init_tables", op="NoOp")
        init.input.extend("^" + producer(name) for name in tables)
        source.init_op = init.name
    return source


def _make_signature(source: Source, output_node_names: Sequence[str]) -> Any:
    """Makes a signature of the outputs and of the placeholders they need."""
    by_name = {node.name: node for node in source.graph.node}
    signature = protos.message_class("SignatureDef")(
        method_name="tensorflow/serving/predict"
    )
    op_defs = source.op_defs
    for name in output_node_names:
        node_name, _, index = name.partition(":")
        if node_name not in by_name:
            raise TfoptError(
                "The graph has no such node. Expected names of nodes. Received: "
                f"output_node_names={name!r} in {source.where}"
            )
        info = signature.outputs[node_name]
        info.name = f"{node_name}:{index or 0}"
        info.dtype = _output_type(by_name[node_name], int(index or 0), op_defs)
        info.tensor_shape.unknown_rank = True
    roots = [producer(name) for name in output_node_names]
    for node in restore.reachable(source.graph.node, roots):
        if node.op == "Placeholder" and attr(node, "dtype").type != dtypes.RESOURCE:
            info = signature.inputs[node.name]
            info.name = f"{node.name}:0"
            info.dtype = attr(node, "dtype").type
            info.tensor_shape.CopyFrom(attr(node, "shape").shape)
    return signature


def _output_type(node: Any, index: int, op_defs: dict[str, Any]) -> int:
    """Returns the type of a node's output, from the operation's definition."""
    definition = op_defs.get(node.op)
    if definition is None:
        # A bare GraphDef doesn't bring them along.
        if node.op in _TYPE_ATTRIBUTES:
            return attr(node, _TYPE_ATTRIBUTES[node.op]).type
        if index < len(attr(node, "Tout").list.type):  # calls, loops and branches
            return attr(node, "Tout").list.type[index]
        raise ConversionError(
            "The type of an output is unknown, as the graph comes without definitions "
            "of its operations. Expected a .meta file, which has them, or as output "
            f"one of {', '.join(_TYPE_ATTRIBUTES)}. "
            f"Received: node={node.name!r}, op={node.op}"
        )
    types: list[int] = []
    for argument in definition.output_arg:
        if argument.type_list_attr:
            types += attr(node, argument.type_list_attr).list.type
            continue
        kind = argument.type or attr(node, argument.type_attr).type
        count = attr(node, argument.number_attr).i if argument.number_attr else 1
        types += [kind] * count
    return types[index]
