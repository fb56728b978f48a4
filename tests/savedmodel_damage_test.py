"""Checkpoints and graphs that ask for what there isn't; each was found by fuzzing."""

import os

import numpy as np
import pytest

import tfopt
from tfopt import checkpoint, freezing
from tfopt.savedmodel import graphs, protos, reader, slices, table, tensors
from tfopt.savedmodel.bundle import BundleReader
from tfopt.savedmodel.bundle_writing import BundleWriter
from tfopt.types import ConversionError, TfoptError

ROWS = ((0, 2), (0, 4))


@pytest.fixture
def prefix(tmp_path):
    place = tmp_path / "model"
    with BundleWriter(place) as writer:
        writer.add("w", np.arange(4, dtype=np.float32))
        writer.add_part("table", (4, 4), ROWS, np.ones((2, 4), np.float32))
        writer.add_part("table", (4, 4), ((2, 2), (0, 4)), np.ones((2, 4), np.float32))
    return place


def change(prefix, key, edit):
    """Changes an entry; the checksums of the table are right."""
    pairs = table.read_table(f"{prefix}.index")
    entry = protos.message_class("BundleEntryProto").FromString(pairs[key])
    edit(entry)
    pairs[key] = entry.SerializeToString()
    table.write_table(f"{prefix}.index", pairs)


def ask_for_a_terabyte(entry):
    entry.shape.dim[0].size = 1 << 38
    entry.size = 1 << 40


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (ask_for_a_terabyte, "truncated"),
        (lambda entry: setattr(entry, "offset", 1 << 62), "truncated"),
        (lambda entry: setattr(entry, "offset", -1), "the place"),
        (lambda entry: setattr(entry, "shard_id", 7), "data file 7"),
        (lambda entry: setattr(entry, "dtype", 99), "type 99"),
        (lambda entry: setattr(entry, "dtype", 21), "array form"),
        (lambda entry: setattr(entry.shape.dim[0], "size", -4), "the shape"),
        (lambda entry: entry.slices.add(), "the slice"),
    ],
)
def test_entries_that_ask_for_what_there_is_not(prefix, edit, message):
    change(prefix, b"w", edit)
    with pytest.raises(TfoptError, match=rf"(?s){message}.*model\.") as raised:
        BundleReader(prefix).read("w")
    assert not isinstance(raised.value.__cause__, MemoryError)


def test_a_slice_that_is_not_the_part_it_says(prefix):
    def widen(entry):
        entry.shape.dim[0].size, entry.shape.dim[1].size = 4, 2

    change(prefix, slices.index_key("table", ROWS), widen)
    with pytest.raises(TfoptError, match="contradicts itself"):
        BundleReader(prefix).read("table")


def test_names_that_are_no_texts(prefix):
    pairs = table.read_table(f"{prefix}.index")
    table.write_table(f"{prefix}.index", pairs | {b"\xff": pairs[b"w"]})
    with pytest.raises(TfoptError, match=r"UTF-8.*model\.index"):
        BundleReader(prefix)


def test_edges_of_the_object_graph_that_lead_nowhere(tmp_path):
    graph = protos.message_class("TrackableObjectGraph")()
    graph.nodes.add().children.add(node_id=5, local_name="layer")
    with BundleWriter(tmp_path / "model") as writer:
        value = np.array(graph.SerializeToString(), object)
        writer.add("_CHECKPOINTABLE_OBJECT_GRAPH", value)
    with pytest.raises(TfoptError, match=r"leads out of the 1 nodes|an edge leads"):
        checkpoint.slim_checkpoint(tmp_path / "model", tmp_path / "slim")


def graph_of(*nodes):
    graph = protos.message_class("GraphDef")()
    for name, op, *inputs in nodes:
        graph.node.add(name=name, op=op, input=inputs)
    return graph


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("x", "Placeholder"), ("y", "Identity", "z:0")], "'y' needs 'z:0'"),
        ([("x", "Placeholder"), ("y", "Identity", "^z")], r"'y' needs '\^z'"),
        ([("x", "Placeholder"), ("x", "Identity", "x")], "'x' is there twice"),
    ],
)
def test_graphs_with_missing_or_repeated_nodes(tmp_path, nodes, message):
    path = tmp_path / "graph.pb"
    path.write_bytes(graph_of(*nodes).SerializeToString())
    for work in (
        lambda: freezing.freeze(path, tmp_path / "out.pb", output_node_names=["x"]),
        lambda: tfopt.inspect(path),
        lambda: tfopt.transform_graph(
            path, tmp_path / "out.pb", ["remove_device"], outputs=["x"]
        ),
    ):
        with pytest.raises(TfoptError, match=rf"graph\.pb.*{message}"):
            work()
    assert not os.path.exists(tmp_path / "out.pb")


def test_functions_without_what_they_return():
    graph = graph_of(("x", "Placeholder"))
    function = graph.library.function.add()
    function.signature.name = "f"
    function.signature.output_arg.add(name="y")
    function.ret["y"] = "nothing:output:0"
    with pytest.raises(TfoptError, match="result 'y' of 'f' is missing"):
        graphs.check(graph, "a.pb")
    function.signature.input_arg.add(name="nothing")
    graphs.check(graph, "a.pb")


def test_constants_that_are_hardly_in_the_file():
    proto = protos.message_class("TensorProto")(dtype=1, float_val=[2.0])
    dim = proto.tensor_shape.dim.add(size=1000)
    assert tensors.to_array(proto).tolist() == [2.0] * 1000
    dim.size = 1 << 40
    with pytest.raises(TfoptError, match="most of them not in the file"):
        tensors.to_array(proto)


def test_texts_that_are_no_utf8_or_too_deep(tmp_path):
    path = tmp_path / "graph.pbtxt"
    for content in (b"node { name: \xff }", b"node { attr {" * 20_000):
        path.write_bytes(content)
        with pytest.raises(TfoptError, match=r"graph\.pbtxt"):
            reader.read_message(path, "GraphDef")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyError("x"), TfoptError),
        (IndexError("x"), TfoptError),
        (RecursionError("x"), TfoptError),
        (ConversionError("wrong"), ConversionError),
        (ValueError("wrong"), ValueError),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "x"), TfoptError),
    ],
)
def test_errors_about_a_model_on_disk_name_it(error, kind):
    with pytest.raises(kind, match=r"a/model\.pb"), graphs.errors_of("a/model.pb"):
        raise error
    # Of what is in memory, they are left alone.
    with pytest.raises(type(error)) as raised, graphs.errors_of(object()):
        raise error
    assert raised.value is error
