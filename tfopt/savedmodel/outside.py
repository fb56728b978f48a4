"""Operations that reach outside of a model when it is run: files, Python, network.

Loading or running a graph from elsewhere runs them with the user's rights. Freezing,
inspecting and rewriting do not run a graph; verifying and converting do.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from tfopt import _trust
from tfopt.savedmodel import assets, reader
from tfopt.types import TfoptError

# Kind of reach -> names of operations, as regular expressions.
# Source: ops with a file, path, address or token among their inputs and attributes.
_KINDS = {
    "writes files": r"""
        CacheDataset(V2)? CreateSummary(Db|File)Writer DatasetToTFRecord
        DistributedSave ExperimentalDatasetToTFRecord MergeV2Checkpoints Save
        SaveDataset(V2)? SaveSlices SaveV2 Snapshot(Chunk)?Dataset(V2)? WriteFile
    """,
    "reads files": r"""
        (Experimental)?(CSV|LMDB|MatchingFiles|Sql)Dataset(V2)?
        FixedLengthRecord(Dataset|Reader)(V2)? GenerateVocabRemapping
        IdentityReader(V2)? ImmutableConst LMDBReader ListSnapshotChunksDataset
        LoadAndRemapMatrix LoadDataset MatchingFiles ReadFile RecordInput
        Restore(Slice|V2)?
        SnapshotDatasetReader TFRecord(Dataset|Reader)(V2)?
        TextLine(Dataset|Reader)(V2)? WholeFileReader(V2)?
    """,
    "calls Python": r"EagerPyFunc PyFunc PyFuncStateless",
    "uses the network": r"""
        .*BigQuery.* .*Bigtable.* DataServiceDataset(V\d)? FileSystemSetConfiguration
        Gcs\w* Kafka\w* RegisterDataset(V2)? Rpc(Call|Client|Server\w*) TryRpc
    """,
}
_PATTERNS = {kind: re.compile("|".join(text.split())) for kind, text in _KINDS.items()}
# They do so only if an attribute says so: operation -> attribute, what it then matches,
# kind.
_PROTO = ("descriptor_source", re.compile(rb"^(?!local://$|bytes://).+", re.S))
_BY_ATTRIBUTE = {
    "DecodeProtoV2": (*_PROTO, "reads files"),
    "EncodeProto": (*_PROTO, "reads files"),
    "FixedUnigramCandidateSampler": ("vocab_file", re.compile(b"."), "reads files"),
    "PrintV2": ("output_stream", re.compile(b"file://"), "writes files"),
    **dict.fromkeys(
        (
            *("DebugIdentity", "DebugIdentityV2", "DebugIdentityV3"),
            *("DebugNanCount", "DebugNumericSummary"),
        ),
        ("debug_urls", re.compile(b"(file|grpc)://"), "writes files or to the network"),
    ),
}
# A vocabulary comes by an asset, whose path whoever loads the model fills in.
_TABLE = re.compile(r"InitializeTableFromTextFile(V2)?")
_RESTORING = re.compile(r"Restore(Slice|V2)?")
# What TensorFlow runs while it loads a model of its second version.
_ON_LOADING = ("_create_resource", "_initialize")
_INITIALIZERS = (
    *("legacy_init_op", "main_op", "saved_model_main_op", "table_initializer"),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """An operation that reaches outside.

    Attributes:
        op: The operation, such as `"WriteFile"`.
        kind: What it does, such as `"writes files"`.
        node: The first of its nodes.
        count: Number of nodes.
    """

    op: str
    kind: str
    node: str
    count: int

    def __str__(self) -> str:
        more = f" and {self.count - 1} more" if self.count > 1 else ""
        return f"{self.op} {self.kind} (node {self.node!r}{more})"


def kind_of(op: str) -> str:
    """Returns how an operation may reach outside of its model, "" if in no way."""
    for kind, pattern in _PATTERNS.items():
        if pattern.fullmatch(op):
            return kind
    if op in _BY_ATTRIBUTE:
        return _BY_ATTRIBUTE[op][2]
    return ""


def in_graph(graph_def: Any, roots: Iterable[str] | None = None) -> tuple[Found, ...]:
    """Returns the operations of a graph that reach outside if it is run.

    Args:
        graph_def: A GraphDef.
        roots: Names of the nodes or tensors that are asked for; None: any node.
    """
    reach = _Reach(graph_def, frozenset())
    reach.follow(reach.nodes if roots is None else roots)
    return reach.found()


def in_meta_graph(meta_graph: Any) -> tuple[Found, ...]:
    """Returns the operations of a SavedModel that reach outside if it is used.

    That is: loaded, initialised, or asked for the outputs of any signature. Saving it
    is not; that every model can do.
    """
    paths = [asset.tensor_info.name for asset in assets.listed(meta_graph)]
    reach = _Reach(meta_graph.graph_def, map(_producer, paths))
    restoring = meta_graph.saver_def.restore_op_name
    reach.follow([restoring] if restoring else [], may_restore=True)
    reach.follow(_outputs(meta_graph))
    reach.call(_run_on_loading(meta_graph))
    return reach.found()


def check(found: Iterable[Found], what: str, where: str) -> None:
    """Raises if a graph that is about to be run reaches outside and isn't trusted.

    Args:
        found: What `in_graph` or `in_meta_graph` returned.
        what: What is about to be done, such as `"verify"`.
        where: The model's path or kind.

    Raises:
        TfoptError: It does.
    """
    listed = [str(item) for item in found]
    if listed and not _trust.is_trusted():
        raise TfoptError(
            f"Refused to {what} a model whose graph reaches outside of it when it "
            f"runs: {', '.join(listed[:5])}. {_trust.HOW}. Received: model={where!r}"
        )


def check_file(
    path: str | os.PathLike[str], what: str, tags: Collection[str] | None = None
) -> None:
    """Raises if a SavedModel or graph file is not to be run, see `check`.

    Args:
        path: A SavedModel directory, or a GraphDef (`.pb`, `.pbtxt`); others pass.
        what: What is about to be done.
        tags: Tag set of the SavedModel that is going to be loaded.

    Raises:
        TfoptError: It reaches outside, or cannot be read.
    """
    file = pathlib.Path(path)
    if _trust.is_trusted():
        return
    if file.suffix in (".pb", ".pbtxt") and file.is_file():
        found = in_graph(reader.read_message(file, "GraphDef"))
    elif (file / "saved_model.pb").exists() or (file / "saved_model.pbtxt").exists():
        message = reader.read_saved_model(file)
        try:
            chosen = [reader.select_meta_graph(message, tags, os.fspath(file))]
        except TfoptError:  # whoever loads it has a say, too
            chosen = list(message.meta_graphs)
        found = tuple(item for meta in chosen for item in in_meta_graph(meta))
        for asset in (asset for meta in chosen for asset in assets.listed(meta)):
            assets.locate(file, asset.filename)  # the loader reads whatever it names
    else:
        return
    check(found, what, os.fspath(file))


class _Reach:
    """Walks a graph from what is asked for to what that runs."""

    def __init__(self, graph_def: Any, assets: Iterable[str]):
        self.nodes: Mapping[str, Any] = {node.name: node for node in graph_def.node}
        self._functions = {
            function.signature.name: function for function in graph_def.library.function
        }
        self._assets = frozenset(assets)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], str] = {}
        self._visited: set[str] = set()
        self._called: set[str] = set()

    def follow(self, roots: Iterable[str], *, may_restore: bool = False) -> None:
        """Visits the nodes that the given ones need, and the functions these call."""
        waiting = [_producer(name) for name in roots]
        called: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name in self._visited or name not in self.nodes:
                continue
            self._visited.add(name)
            node = self.nodes[name]
            called.update(self._look(node, name, self.nodes, may_restore))
            waiting += map(_producer, node.input)
        self.call(called, may_restore=may_restore)

    def call(self, names: Iterable[str], *, may_restore: bool = False) -> None:
        """Visits functions, and those that they call."""
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name in self._called or name not in self._functions:
                continue
            self._called.add(name)
            body = {node.name: node for node in self._functions[name].node_def}
            for node in body.values():
                found = self._look(node, f"{name}/{node.name}", body, may_restore)
                waiting += found

    def found(self) -> tuple[Found, ...]:
        """Returns what was met, by kind and operation."""
        return tuple(
            Found(op, kind, self._first[op, kind], count)
            for (op, kind), count in sorted(self._counts.items(), key=lambda x: x[0])
        )

    def _look(
        self, node: Any, path: str, body: Mapping[str, Any], may_restore: bool
    ) -> list[str]:
        """Notes what a node does; returns the functions that it calls."""
        kind = self._kind(node, body)
        if kind and not (may_restore and _RESTORING.fullmatch(node.op)):
            self._counts[node.op, kind] += 1
            self._first.setdefault((node.op, kind), path)
        called = [node.op] if node.op in self._functions else []
        for value in node.attr.values():
            called += [value.func.name] if value.HasField("func") else []
            called += [function.name for function in value.list.func]
        return called

    def _kind(self, node: Any, body: Mapping[str, Any]) -> str:
        if _TABLE.fullmatch(node.op):
            source = body.get(_producer(node.input[1])) if len(node.input) > 1 else None
            if source is None or source.op != "Const":
                return ""
            if source.name not in self._assets:
                return "reads files"
            return ""
        if node.op in _BY_ATTRIBUTE:
            name, pattern, kind = _BY_ATTRIBUTE[node.op]
            if name not in node.attr:  # asking a map of a message adds to it
                return ""
            texts = [node.attr[name].s, *node.attr[name].list.s]
            return kind if any(pattern.search(text) for text in texts) else ""
        return kind_of(node.op)


def _outputs(meta_graph: Any) -> Iterator[str]:
    for signature in meta_graph.signature_def.values():
        for info in signature.outputs.values():
            yield from reader.tensor_names(info)
    for key in _INITIALIZERS:
        if key in meta_graph.collection_def:
            yield from meta_graph.collection_def[key].node_list.value


def _run_on_loading(meta_graph: Any) -> Iterator[str]:
    """Yields the functions by which objects of TensorFlow 2 are made and restored."""
    nodes = meta_graph.object_graph_def.nodes
    for node in nodes:
        children = [child for child in node.children if child.local_name in _ON_LOADING]
        indices = [child.node_id for child in children]
        indices += [item.restore_function for item in node.saveable_objects.values()]
        for index in indices:
            if 0 < index < len(nodes):
                yield from nodes[index].function.concrete_functions
                name = nodes[index].bare_concrete_function.concrete_function_name
                yield from [name] if name else []


def _producer(tensor: str) -> str:
    """Returns the name of the node that a tensor or control input is of."""
    return tensor.removeprefix("^").split(":", 1)[0]
