"""transform_graph: sources, outputs and the report."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from transforms_samples import flat, normal, quick
from transforms_structure_samples import X, model_of, run

import tfopt
from tfopt.savedmodel import protos

pytest_plugins = ["transforms_fixtures"]
pytestmark = pytest.mark.usefixtures("shared")
v1 = tf.compat.v1


def read(path):
    return protos.message_class("GraphDef").FromString(pathlib.Path(path).read_bytes())


def test_graph_defs_in_all_forms_give_the_same(graph, tmp_path):
    message = graph.as_graph_def()
    folder = str(tmp_path)
    tf.io.write_graph(message, folder, "in.pb", as_text=False)
    tf.io.write_graph(message, folder, "in.pbtxt")
    results = []
    for source in (
        graph,
        message,
        message.SerializeToString(),
        tmp_path / "in.pb",
        str(tmp_path / "in.pbtxt"),
    ):
        artifact = quick(source, tmp_path / "out.pb", outputs=["y"])
        assert artifact.format == "graph_def"
        results.append(artifact.sha256)
    assert len(set(results)) == 1
    assert artifact.details["signatures"][""]["inputs"] == {"x": "x:0"}
    assert artifact.details["nodes_before"] > artifact.details["nodes"] == 5


def test_text_output_reads_back(graph, tmp_path):
    binary = quick(graph, tmp_path / "a.pb", outputs=["y"])
    text = quick(graph, tmp_path / "a.pbtxt", outputs=["y"])
    assert text.format == "graph_def"
    again = quick(tmp_path / "a.pbtxt", tmp_path / "b.pb", outputs=["y:0"])
    assert again.sha256 == binary.sha256


def test_wrong_inputs_and_outputs(graph, tmp_path):
    with pytest.raises(ValueError, match="outputs=None"):
        quick(graph, tmp_path / "o.pb")
    with pytest.raises(ValueError, match=r"list of strings.*outputs='y'"):
        quick(graph, tmp_path / "o.pb", outputs="y")
    with pytest.raises(tfopt.TfoptError, match=r"unused or .*outputs with 'unusd'"):
        quick(graph, tmp_path / "o.pb", outputs=["unusd"])
    with pytest.raises(tfopt.TfoptError, match="inputs with 'z'"):
        quick(graph, tmp_path / "o.pb", outputs=["y"], inputs=["z"])
    with pytest.raises(ValueError, match="cannot be written as a SavedModel"):
        quick(graph, tmp_path / "o", outputs=["y"])
    with pytest.raises(ValueError, match=r"neither signatures.*no tags"):
        quick(graph, tmp_path / "o.pb", outputs=["y"], tags=["serve"])
    with pytest.raises(ValueError, match="Unknown verify"):
        quick(graph, tmp_path / "o.pb", outputs=["y"], verify="maybe")
    with pytest.raises(tfopt.TfoptError, match="Cannot read the bytes"):
        quick(b"nonsense", tmp_path / "o.pb", outputs=["y"])
    assert not list(tmp_path.iterdir())


def test_a_damaged_graph_is_refused(graph, tmp_path):
    message = graph.as_graph_def()
    (node,) = (node for node in message.node if node.name == "y")
    node.input[0] = "nobody"
    with pytest.raises(tfopt.TfoptError, match=r"graph is damaged.*nobody"):
        quick(message, tmp_path / "o.pb", outputs=["y"])


class Model(tf.Module):
    """A model with a table from an asset, weights and a counter."""

    def __init__(self, folder):
        vocabulary = folder / "vocabulary.txt"
        vocabulary.write_text("a\nb\nc\n")
        self.w = tf.Variable(normal(0, 3, 400), name="w")
        self.count = tf.Variable(0.0, name="count")
        initializer = tf.lookup.TextFileInitializer(
            str(vocabulary),
            *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
            *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
        )
        self.table = tf.lookup.StaticHashTable(initializer, -1)

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
    def dense(self, x):
        return {"y": tf.nn.relu(x @ self.w), "n": self.count.assign_add(1.0)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "words")])
    def look_up(self, words):
        return {"ids": self.table.lookup(words)}


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved_model")
    model = Model(folder)
    signatures = {"dense": model.dense, "look_up": model.look_up}
    tf.saved_model.save(model, str(folder / "model"), signatures=signatures)
    return folder / "model"


def test_a_saved_model_keeps_what_belongs_to_it(saved_model, tmp_path):
    artifact = tfopt.transform_graph(saved_model, tmp_path / "out", "small")
    assert artifact.format == "saved_model"
    loaded = tf.saved_model.load(str(tmp_path / "out"))
    expected = tf.saved_model.load(str(saved_model))
    words = tf.constant(["c", "x", "a"])
    ids = loaded.signatures["look_up"](words=words)["ids"]
    assert ids.numpy().tolist() == [2, -1, 0]
    dense = loaded.signatures["dense"]
    first, second = (dense(x=tf.constant(X)) for _ in range(2))
    wanted = expected.signatures["dense"](x=tf.constant(X))
    assert np.allclose(first["y"], wanted["y"], atol=0.2)
    assert not np.array_equal(first["y"], wanted["y"])
    assert (first["n"], second["n"]) == (1.0, 2.0)
    details = artifact.details
    assert set(details["outputs"]) == {"dense/y", "dense/n", "look_up/ids"}
    assert details["outputs"]["look_up/ids"]["max_error"] == 0.0
    assert kept_for(artifact, "written") == ["count"]
    used = {node.op for node in _meta_graph(tmp_path / "out").graph_def.node}
    listed = _meta_graph(tmp_path / "out").meta_info_def.stripped_op_list.op
    assert {definition.name for definition in listed} == used


def kept_for(artifact, reason):
    kept = artifact.details["kept_variables"]
    return [entry["name"] for entry in kept if entry["reason"] == reason]


def _meta_graph(path):
    saved = protos.message_class("SavedModel")
    return saved.FromString((path / "saved_model.pb").read_bytes()).meta_graphs[0]


def test_a_saved_model_becomes_a_graph_with_its_init_op(saved_model, tmp_path):
    artifact = quick(saved_model, tmp_path / "out.pb", "deploy")
    details = artifact.details
    assert details["init_op"]
    assert list(details["signatures"]) == ["dense", "look_up"]
    # And as a graph it can be transformed once more, and run.
    again = tfopt.transform_graph(
        tmp_path / "out.pb",
        tmp_path / "again.pb",
        "remove_device",
        inputs=list(details["signatures"]["look_up"]["inputs"].values()),
        outputs=list(details["signatures"]["look_up"]["outputs"].values()),
        init_op=details["init_op"],
        asset_feeds=details["asset_feeds"],
        verify="final",
    )
    assert again.details["outputs"]
    assert details["init_op"] in {
        node.name for node in read(tmp_path / "again.pb").node
    }


def test_large_variables_stay_beside_the_graph(saved_model, tmp_path):
    options = {"signature_keys": ["dense"], "keep_variables_over": 1000}
    artifact = tfopt.transform_graph(
        saved_model, tmp_path / "out", "deploy", verify="final", **options
    )
    assert kept_for(artifact, "over 1000 bytes") == ["w"]
    assert kept_for(artifact, "written") == ["count"]
    loaded = tf.saved_model.load(str(tmp_path / "out"))
    expected = tf.saved_model.load(str(saved_model))
    found, wanted = (
        model.signatures["dense"](x=tf.constant(X))["y"] for model in (loaded, expected)
    )
    assert np.allclose(found, wanted, rtol=1e-5)


def test_options_of_a_graph_are_refused_for_a_model(saved_model, tmp_path):
    with pytest.raises(ValueError, match=r"signature_keys.*no outputs"):
        quick(saved_model, tmp_path / "out.pb", outputs=["y"])


def test_the_report(tmp_path):
    model = flat()
    data = model.to_graph_def().SerializeToString()
    artifact = tfopt.transform_graph(
        data,
        tmp_path / "o.pb",
        ["deploy", ("quantize_weights", {"minimum_size": 100})],
        outputs=["out", "class"],
    )
    details, steps = artifact.details, artifact.details["steps"]
    assert steps[-1]["name"] == "quantize_weights"
    assert steps[-1]["options"] == {"minimum_size": 100}
    assert steps[0]["nodes_before"] <= details["nodes_before"]
    assert steps[-1]["nodes_after"] == details["nodes"]
    assert steps[-1]["bytes_after"] == artifact.size_bytes == details["graph_bytes"]
    assert 0 < artifact.gzip_bytes < artifact.size_bytes
    assert details["transform_seconds"] == pytest.approx(
        sum(step["seconds"] for step in steps), abs=1e-3
    )
    # Lossless up to the last step; the error is that to the source.
    errors = [step["outputs"]["out"]["max_error"] for step in steps]
    assert max(errors[:-1]) < 1e-4 < errors[-1]
    assert details["outputs"] == steps[-1]["outputs"]
    largest = details["largest_constants"]
    assert largest[0]["dtype"] == "int8"
    assert largest[0]["shape"] in ([200, 8], [8, 160])
    sizes = [entry["bytes"] for entry in largest]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) <= details["constant_bytes"] < details["graph_bytes"]
    mean = details["outputs"]["out"]["mean_error"]
    assert 0.0 < mean < errors[-1] < details["outputs"]["out"]["scale"]
    (history,) = artifact.history
    assert history["transforms"][-1] == "quantize_weights(minimum_size=100)"
    # An oracle for the largest error, on other inputs.
    small = read(tmp_path / "o.pb").SerializeToString()
    results = [run(_model(one), {"x:0": X}) for one in (data, small)]
    assert 0.0 < np.abs(results[0][0] - results[1][0]).max() < 10 * errors[-1]


def _model(data):
    return model_of(v1.GraphDef.FromString(data), ["out", "class"])


@pytest.mark.both_keras
def test_keras_models_and_functions_are_frozen_on_the_way(keras, tmp_path):
    layers = [keras.layers.Input((3,)), keras.layers.Dense(4, activation="relu")]
    model = keras.Sequential(layers)
    artifact = quick(model, tmp_path / "out.pb", "deploy")
    (tensors,) = artifact.details["signatures"].values()
    data = read(tmp_path / "out.pb").SerializeToString()
    graph_def = v1.GraphDef.FromString(data)
    with tf.Graph().as_default(), v1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        feed = dict.fromkeys(tensors["inputs"].values(), X)
        (found,) = session.run(list(tensors["outputs"].values()), feed)
    assert np.allclose(found, model(X), atol=1e-6)
