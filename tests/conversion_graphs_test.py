"""Conversion of frozen graphs and of SavedModels of all ages, by several signatures."""

import json

import numpy as np
import pytest
import tensorflow as tf
from conversion_samples import RNG, one_line
from google.protobuf import text_format

from tfopt import conversion, tflite_file
from tfopt.conversion import _graphs
from tfopt.runner import Runner
from tfopt.types import ConversionError, TfoptError

v1 = tf.compat.v1
WEIGHT = RNG.normal(size=(6, 4)).astype(np.float32)
X = RNG.normal(size=(5, 6)).astype(np.float32)


def convert(model, **options):
    """In this process: what is tested doesn't depend on where the converter runs."""
    return conversion.convert_with_report(model, isolate=False, **options)


def run(content, inputs, key=None):
    with Runner(content, signature_key=key, num_workers=1, num_threads=1) as runner:
        return runner.run(inputs)


@pytest.fixture(scope="module")
def graph_def():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 6], "image")
        y = tf.nn.relu(tf.matmul(x, WEIGHT), name="hidden/relu")
        tf.reduce_sum(y, axis=1, name="total")
    return graph.as_graph_def()


@pytest.mark.parametrize("kind", [".pb", ".pbtxt", "GraphDef", "Graph"])
def test_a_frozen_graph(graph_def, tmp_path, kind):
    model = graph_def
    if kind == "Graph":
        model = tf.Graph()
        with model.as_default():
            tf.import_graph_def(graph_def, name="")
    elif kind.startswith("."):
        model = tmp_path / f"frozen{kind}"
        text = text_format.MessageToString(graph_def).encode()
        model.write_bytes(text if kind == ".pbtxt" else graph_def.SerializeToString())
    done = convert(model)
    assert str(done.signature) == (
        "serving_default(image: float32 [?, 6]) -> (total: float32 [?])"
    )
    expected = np.maximum(X @ WEIGHT, 0).sum(1)
    np.testing.assert_allclose(run(done.content, X), expected, rtol=1e-5)
    inner = convert(
        model, input_arrays=["image:0"], output_arrays=["total", "hidden/relu"]
    )
    assert [info.name for info in inner.signature.outputs] == ["total", "hidden/relu"]
    found = run(inner.content, X)
    np.testing.assert_allclose(found["total"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        found["hidden/relu"], np.maximum(X @ WEIGHT, 0), atol=1e-5
    )


def test_a_graph_from_the_middle(graph_def):
    done = convert(graph_def, input_arrays=["hidden/relu"], output_arrays=["total"])
    np.testing.assert_allclose(run(done.content, X[:, :4]), X[:, :4].sum(1), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"output_arrays": ["nothing"]}, ValueError, "output_arrays=.*nothing"),
        ({"input_arrays": ["x", "x"]}, ValueError, "different names"),
        ({"input_shapes": {"y": [1]}}, ValueError, "no such inputs.*image"),
        ({"tags": ["serve"]}, ValueError, "Only a SavedModel has tags"),
    ],
)
def test_what_does_not_fit_a_graph(graph_def, options, error, why):
    with pytest.raises(error, match=why) as raised:
        convert(graph_def, **options)
    one_line(raised)


def test_graphs_that_say_too_little(graph_def, tmp_path):
    two = v1.GraphDef()
    two.CopyFrom(graph_def)
    two.node.add(name="other", op="Identity", input=["hidden/relu"]).attr[
        "T"
    ].type = tf.float32.as_datatype_enum
    with pytest.raises(ValueError, match=r"output_arrays.*'total', 'other'"):
        convert(two)
    variable = v1.GraphDef()
    variable.CopyFrom(graph_def)
    variable.node.add(name="w", op="VarHandleOp")
    with pytest.raises(ConversionError, match=r"Freeze it first.*VarHandleOp 'w'"):
        convert(variable)
    (tmp_path / "bad.pb").write_bytes(b"\xff" * 100)
    with pytest.raises(TfoptError, match=r"bad\.pb"):
        convert(tmp_path / "bad.pb")
    with pytest.raises(ValueError, match="are for graphs"):
        convert(
            tf.function(lambda x: x, input_signature=[tf.TensorSpec([1])]),
            input_arrays=["x"],
        )


# SavedModels


def save_v1(path, use_resource, tags=("serve",)):
    """A SavedModel as TensorFlow 1 wrote them."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 6], "x")
        table = v1.get_variable("w", initializer=WEIGHT, use_resource=use_resource)
        y = tf.matmul(x, table)
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
        builder.add_meta_graph_and_variables(
            session, list(tags), signature_def_map={"serving_default": signature}
        )
        builder.save()


@pytest.mark.parametrize("use_resource", [False, True])
def test_a_saved_model_of_tensorflow_1(tmp_path, use_resource):
    save_v1(tmp_path / "saved", use_resource)
    done = convert(tmp_path / "saved")
    np.testing.assert_allclose(run(done.content, X), X @ WEIGHT, atol=1e-5)
    assert done.report["verification"]["outputs"]["y"]["argmax_equal"] == 1


def test_tags_of_a_saved_model(tmp_path):
    save_v1(tmp_path / "saved", True, tags=("serve", "gpu"))
    with pytest.raises(TfoptError, match=r"\{gpu,serve\}"):
        convert(tmp_path / "saved", tags=["serve", "tpu"])
    done = convert(tmp_path / "saved", tags=["serve", "gpu"])
    np.testing.assert_allclose(run(done.content, X), X @ WEIGHT, atol=1e-5)


class Module(tf.Module):
    """What TensorFlow's own freezing cannot take: embeddings in a loop."""

    def __init__(self):
        super().__init__()
        self.table = tf.Variable(WEIGHT)

    @tf.function(input_signature=[tf.TensorSpec([3], tf.int32, name="ids")])
    def embed(self, ids):
        total = tf.zeros([4])
        for i in tf.range(3):
            total += tf.gather(self.table, ids[i])
        return {"total": total}

    @tf.function(input_signature=[tf.TensorSpec([None, 6], name="x")])
    def dense(self, x):
        return {"y": x @ self.table}

    @tf.function(input_signature=[tf.TensorSpec([None, 4], name="y")])
    def back(self, y):
        return {"x": tf.matmul(y, self.table, transpose_b=True)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("several") / "saved"
    module = Module()
    signatures = {name: getattr(module, name) for name in ("embed", "dense", "back")}
    tf.saved_model.save(module, str(path), signatures=signatures)
    return path


def test_an_embedding_in_a_loop(saved):
    done = convert(saved, signature_key="embed")
    ids = np.array([5, 0, 2], np.int32)
    np.testing.assert_allclose(run(done.content, ids), WEIGHT[ids].sum(0), atol=1e-5)
    assert done.report["verification"]["outputs"]["total"]["equal"] > 0.5


def test_several_signatures_in_one_file(saved):
    keys = ["dense", "embed", "back"]
    done = convert(saved, signature_keys=keys)
    assert [signature.key for signature in done.signatures] == keys
    assert done.signature == done.signatures[0]
    assert set(done.report["signatures"]) == set(keys)
    for report in done.report["signatures"].values():
        assert report["verification"] is not None
    ids = np.array([1, 1, 3], np.int32)
    np.testing.assert_allclose(run(done.content, X, "dense"), X @ WEIGHT, atol=1e-5)
    np.testing.assert_allclose(
        run(done.content, ids, "embed"), WEIGHT[ids].sum(0), atol=1e-5
    )
    y = X[:, :4]
    np.testing.assert_allclose(run(done.content, y, "back"), y @ WEIGHT.T, atol=1e-5)
    # Constants are shared where equal: the embedding's table is the weight of `back`.
    alone = sum(len(convert(saved, signature_key=key).content) for key in keys)
    assert len(done.content) < alone
    assert convert(saved, signature_keys=keys).content == done.content


def test_several_quantized_signatures_have_data_of_their_own(saved):
    done = convert(
        saved,
        signature_keys=["dense", "back"],
        quantization="int8",
        representative_dataset={"dense": X, "back": 100 * X[:, :4]},
    )
    scales = [signature.inputs[0].name for signature in done.signatures]
    assert scales == ["x", "y"]
    graphs = tflite_file.read(done.content).subgraphs
    first, second = (
        max(t.scale[0] for t in graph.tensors if t.scale and t.raw is None)
        for graph in graphs
    )
    assert second > 20 * first


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ("dense", "list of different keys"),
        (["dense", "dense"], "list of different keys"),
        ([], "list of different keys"),
        (["dense", "other"], "other"),
    ],
)
def test_bad_signature_keys(saved, keys, why):
    with pytest.raises(ValueError, match=why):
        convert(saved, signature_keys=keys)


def test_only_saved_models_have_several_signatures(graph_def):
    with pytest.raises(ValueError, match="Only a SavedModel"):
        convert(graph_def, signature_keys=["a", "b"])


# Shapes


def test_free_sizes_can_be_fixed(saved, graph_def):
    done = convert(saved, signature_key="dense", input_shapes={"x": [2, 6]})
    assert done.signature.inputs[0].shape == (2, 6)
    assert done.signature.outputs[0].shape == (2, 4)
    assert convert(graph_def, input_shapes={"image": [7, 6]}).signature.inputs[
        0
    ].shape == (7, 6)
    function = tf.function(
        lambda a: tf.nn.avg_pool2d(a, 2, 2, "VALID"),
        input_signature=[tf.TensorSpec([None, None, None, 3], name="a")],
    )
    done = convert(function, input_shapes={"a": [None, 8, 8, 3]})
    assert done.signature.outputs[0].shape == (None, 4, 4, 3)
    with pytest.raises(ValueError, match="does not fit the model's input 'a'"):
        convert(function, input_shapes={"a": [1, 8, 8, 4]})
    with pytest.raises(ValueError, match="no such inputs"):
        convert(function, input_shapes={"b": [1, 8, 8, 3]})


# TensorFlow's kernels, and notes in the file


def test_operators_that_only_flex_runs():
    function = tf.function(
        lambda x: {"y": tf.linalg.det(x) * 2},
        input_signature=[tf.TensorSpec([None, 3, 3], name="x")],
    )
    with pytest.raises(
        ConversionError, match=r"MatrixDeterminant.*allow_select_tf_ops"
    ):
        convert(function)
    done = convert(function, allow_select_tf_ops=True)
    assert done.report["select_tf_operators"] == ["FlexMatrixDeterminant"]
    assert done.report["verification"] is None
    assert any("Not verified: FlexMatrix" in note for note in done.report["notes"])
    names = tflite_file.read(done.content).operator_counts()
    assert "FlexMatrixDeterminant" in names
    # The control: what needs none of them is verified as ever.
    plain = tf.function(lambda x: x * 2, input_signature=[tf.TensorSpec([None, 3])])
    done = convert(plain, allow_select_tf_ops=True)
    assert done.report["select_tf_operators"] == []
    assert done.report["verification"]["data"] == "random"


def test_the_file_notes_how_it_was_made(graph_def):
    done = convert(graph_def, quantization="dynamic")
    note = json.loads(tflite_file.read(done.content).metadata["tfopt"])
    assert note["signatures"] == ["serving_default"]
    assert note["history"] == [{"operation": "convert", "quantization": "dynamic"}]
    stripped = convert(graph_def, quantization="dynamic", strip_debug_info=True)
    assert "tfopt" not in tflite_file.read(stripped.content).metadata


def test_graphs_by_their_kind():
    assert _graphs.is_graph("a/b.pb")
    assert _graphs.is_graph(v1.GraphDef())
    assert not _graphs.is_graph("a/b")
    assert not _graphs.is_graph(b"pb")
