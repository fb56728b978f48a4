"""SavedModels and graphs from elsewhere: what reaches outside is named, not run."""

import os

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt.savedmodel import outside, protos, reader
from tfopt.types import TfoptError

SPEC = [tf.TensorSpec([None, 4], tf.float32, "x")]
REFUSED = "reaches outside of it"


def save(folder, function, **parts):
    module = tf.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    served = tf.function(function, input_signature=SPEC)
    tf.saved_model.save(module, folder, served.get_concrete_function())
    return folder


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """A model that gives away a file; its path and the file's content."""
    folder = tmp_path_factory.mktemp("reading")
    (folder / "secret").write_text("classified4711")
    path = str(folder / "secret")
    save(str(folder / "model"), lambda x: {"y": x * 2, "s": tf.io.read_file(path)})
    return folder / "model"


@pytest.fixture(scope="module")
def writing(tmp_path_factory):
    """A model that writes a file `written` beside it, if it is run."""
    folder = tmp_path_factory.mktemp("writing")
    path = str(folder / "written")

    def serve(x):
        with tf.control_dependencies([tf.io.write_file(path, "x")]):
            return {"y": tf.identity(x) * 2}

    save(str(folder / "model"), serve)
    return folder / "model"


def kinds(folder):
    meta_graph = reader.select_meta_graph(
        reader.read_saved_model(folder), None, str(folder)
    )
    return {(item.op, item.kind) for item in outside.in_meta_graph(meta_graph)}


def running(model, folder):
    data = {"x": np.zeros((2, 4), np.float32)}
    target = str(folder / "out.pb")
    return {
        "convert": lambda **k: tfopt.convert(str(model), isolate=False, **k),
        "freeze": lambda **k: tfopt.freeze(model, target, verify="execution", **k),
        "transform_graph": lambda **k: tfopt.transform_graph(
            model, target, ["fold_constants"], **k
        ),
        "optimize_graph": lambda **k: tfopt.optimize_graph(model, target, **k),
        "lift": lambda **k: tfopt.lift(model, **k),
        "optimize": lambda **k: tfopt.optimize(
            str(model), data, output_dir=str(folder / "trials"), **k
        ),
    }


@pytest.mark.parametrize(
    "name",
    ["convert", "freeze", "transform_graph", "optimize_graph", "lift", "optimize"],
)
def test_what_runs_a_model_refuses_files(name, reading, writing, tmp_path):
    for model, op in ((reading, "ReadFile"), (writing, "WriteFile")):
        with pytest.raises(TfoptError, match=rf"{op}.*safe_mode=False") as caught:
            running(model, tmp_path)[name]()
        assert REFUSED in str(caught.value)
        assert not (writing.parent / "written").exists()
        assert not (tmp_path / "out.pb").exists()


@pytest.mark.slow
def test_benchmark_refuses_in_its_process_too(writing):
    measured = tfopt.benchmark_models({"m": str(writing)}, num_runs=1, rounds=1)
    assert "WriteFile" in measured.measurements[0].error
    assert not (writing.parent / "written").exists()
    measured = tfopt.benchmark_models(
        {"m": str(writing)}, num_runs=1, rounds=1, safe_mode=False
    )
    assert not measured.measurements[0].error
    (writing.parent / "written").unlink()


def test_freezing_and_inspecting_run_nothing(reading, writing, tmp_path):
    for model in (reading, writing):
        tfopt.freeze(model, tmp_path / "frozen.pb")
        assert b"classified" not in (tmp_path / "frozen.pb").read_bytes()
        target = tmp_path / "t.pb"
        tfopt.transform_graph(model, target, ["fold_constants"], verify="structure")
        assert b"classified" not in target.read_bytes()
        for source in (model, tmp_path / "frozen.pb"):
            notes = " ".join(tfopt.inspect(source).notes)
            assert "WARNING" in notes
            assert "File" in notes
    assert not (writing.parent / "written").exists()


def test_a_trusted_model_runs(writing, tmp_path):
    tfopt.lift(writing, safe_mode=False)
    written = writing.parent / "written"
    assert written.read_text() == "x"
    written.unlink()


def test_ordinary_models_reach_nowhere(tmp_path):
    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_text("a\nb\n")
    table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(vocabulary), tf.string, 0, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        ),
        -1,
    )
    state = tf.Variable(3.0)
    asset = tf.saved_model.Asset(str(vocabulary))

    def serve(x):
        tf.print("called", x)
        found = table.lookup(tf.as_string(tf.cast(x, tf.int32)))
        return {"y": x * state.assign_add(1.0), "found": found}

    folder = save(str(tmp_path / "m"), serve, table=table, state=state, asset=asset)
    assert kinds(folder) == set()
    frozen = str(tmp_path / "frozen")
    tfopt.freeze(folder, frozen, output_format="saved_model")
    assert kinds(frozen) == set()


def test_every_way_in_is_seen(tmp_path):
    target = str(tmp_path / "x")

    class Resource(tf.saved_model.experimental.TrackableResource):
        def __init__(self):
            super().__init__()
            self.resource_handle  # noqa: B018  made by asking

        def _create_resource(self):
            return tf.raw_ops.MutableHashTableV2(
                key_dtype=tf.string, value_dtype=tf.int64
            )

        def _initialize(self):
            tf.io.write_file(target, "x")

        def _destroy_resource(self):
            pass

    cases = {
        ("WriteFile", "writes files"): lambda x: (
            tf.cond(
                tf.reduce_sum(x) > 0, lambda: tf.io.write_file(target, "x"), tf.no_op
            ),
            x,
        )[1],
        ("PrintV2", "writes files"): lambda x: (
            tf.print("x", output_stream=f"file://{target}"),
            x,
        )[1],
        ("EagerPyFunc", "calls Python"): lambda x: tf.py_function(
            lambda y: y, [x], tf.float32
        ),
        ("SaveV2", "writes files"): lambda x: (
            tf.raw_ops.SaveV2(
                prefix=target, tensor_names=["x"], shape_and_slices=[""], tensors=[x]
            ),
            x,
        )[1],
        ("MatchingFiles", "reads files"): lambda x: tf.cast(
            tf.size(tf.io.matching_files("/etc/*")), tf.float32
        ),
    }
    for index, (expected, function) in enumerate(cases.items()):
        folder = save(str(tmp_path / str(index)), lambda x, f=function: {"y": f(x)})
        assert kinds(folder) == {expected}
    resource = Resource()
    (tmp_path / "x").unlink(missing_ok=True)
    folder = save(str(tmp_path / "r"), lambda x: {"y": x}, resource=resource)
    assert kinds(folder) == {("WriteFile", "writes files")}
    assert not os.path.exists(target)


def test_a_table_is_not_filled_from_any_file(tmp_path):
    graph = tf.Graph()
    with graph.as_default():
        table = tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
        init = tf.raw_ops.InitializeTableFromTextFileV2(
            table_handle=table, filename="/etc/passwd", key_index=-2, value_index=-1
        )
    found = outside.in_graph(graph.as_graph_def(), [init.name])
    assert [(item.op, item.kind) for item in found] == [
        ("InitializeTableFromTextFileV2", "reads files")
    ]
    # Asking changes nothing.
    before = graph.as_graph_def().SerializeToString(deterministic=True)
    outside.in_graph(graph.as_graph_def())
    assert graph.as_graph_def().SerializeToString(deterministic=True) == before


def test_loops_of_functions_end(tmp_path):
    graph = tf.compat.v1.GraphDef()
    function = graph.library.function.add()
    function.signature.name = "f"
    function.node_def.add(name="again", op="f")
    function.node_def.add(name="w", op="WriteFile")
    graph.node.add(name="a", op="f", input=["b"])
    graph.node.add(name="b", op="NoOp", input=["a", "^missing"])
    assert [item.op for item in outside.in_graph(graph, ["a"])] == ["WriteFile"]
    assert outside.in_graph(graph, ["missing"]) == ()


@pytest.mark.parametrize(
    ("op", "attribute", "harmless", "harmful"),
    [
        ("DecodeProtoV2", "descriptor_source", b"local://", b"/etc/passwd"),
        ("EncodeProto", "descriptor_source", b"bytes://\n", b"secret.pb"),
        ("PrintV2", "output_stream", b"stderr", b"file:///tmp/x"),
        ("DebugIdentityV3", "debug_urls", b"memcbk:///x", b"grpc://example.org:1"),
        ("FixedUnigramCandidateSampler", "vocab_file", b"", b"words.txt"),
    ],
)
def test_what_an_operation_reaches_may_depend_on_an_attribute(
    op, attribute, harmless, harmful
):
    for value, expected in ((harmless, []), (harmful, [op])):
        graph = protos.message_class("GraphDef")()
        node = graph.node.add(name="x", op=op)
        if attribute == "debug_urls":
            node.attr[attribute].list.s.append(value)
        else:
            node.attr[attribute].s = value
        assert [found.op for found in outside.in_graph(graph)] == expected
