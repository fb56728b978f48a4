"""What `inspect` finds in models of every format, against counting by hand."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt import tflite_file
from tfopt.inspection import _arena
from tfopt.savedmodel import reader
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras

# Of the network below: convolution, depthwise convolution, transposed one, dense.
PARAMETERS = (3 * 3 * 1 * 4 + 4) + (3 * 3 * 4 + 4) + (2 * 2 * 3 * 4 + 3) + (768 * 5 + 5)
MACS = {
    "conv": 8 * 8 * 4 * 9,
    "depthwise": 8 * 8 * 4 * 9,
    "up": 8 * 8 * 4 * 2 * 2 * 3,
    "dense": 768 * 5,
}


@pytest.fixture(scope="module")
def keras():
    return tf.keras


@pytest.fixture(scope="module")
def network(keras):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(4, 3, padding="same", activation="relu", name="conv"),
            layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
            layers.Conv2DTranspose(3, 2, strides=2, name="up"),
            layers.Flatten(name="flatten"),
            layers.Dense(5, name="dense"),
        ],
        name="net",
    )
    kernel, bias = model.get_layer("dense").get_weights()
    kernel[:, :2] = 0
    model.get_layer("dense").set_weights([kernel, bias])
    return model


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    network.save(folder / "net.keras")
    network.export(folder / "saved")
    (folder / "net.tflite").write_bytes(tfopt.convert(network))
    (folder / "dynamic.tflite").write_bytes(
        tfopt.convert(network, quantization="dynamic", verify=False)
    )
    tfopt.freeze(
        str(folder / "saved"),
        folder / "net.pb",
        verify="structure",
        signature_keys=["serving_default"],
    )
    tfopt.freeze(
        str(folder / "saved"),
        folder / "inline.pb",
        verify="structure",
        inline_functions=True,
        signature_keys=["serving_default"],
    )
    tf.train.Checkpoint(step=tf.Variable([1.0, 0.0]), n=tf.Variable(3)).write(
        str(folder / "weights")
    )
    return folder


@pytest.mark.parametrize("name", ["net.keras", "saved", "inline.pb", "net.tflite"])
def test_every_format_gives_the_same_counts(files, name):
    found = tfopt.inspect(files / name)
    assert found.macs == sum(MACS.values())
    # The converter leaves out biases that are zero.
    zero_biases = 4 + 4 + 3 + 5 if name == "net.tflite" else 0
    assert PARAMETERS - zero_biases <= found.parameters <= PARAMETERS
    assert found.precision["weight_bytes"] == {"float32": 4 * found.parameters}
    assert found.precision["macs"] == {"float32": found.macs}
    assert 768 * 2 <= found.sparsity * found.parameters < 768 * 2 + 30
    assert found.size_bytes > 0
    assert found.gzip_bytes > 0


def test_a_model_in_memory_is_what_its_file_is(network, files):
    found = tfopt.inspect(network)
    from_file = tfopt.inspect(files / "net.keras")
    assert found.size_bytes is None
    assert found.layers == from_file.layers
    assert found.trainable == PARAMETERS
    rows = {layer.name: layer for layer in found.layers}
    assert {name: row.macs for name, row in rows.items()} == MACS
    assert rows["dense"].sparsity == pytest.approx((768 * 2 + 5) / (768 * 5 + 5))
    assert rows["up"].kind == "Conv2DTranspose"
    assert str(found.signatures[0]).startswith("call(image: float32 [?, 8, 8, 1])")


def test_layers_of_a_saved_model_have_their_multiplications(files):
    rows = {x.name.split("/")[-1]: x for x in tfopt.inspect(files / "saved").layers}
    assert {name: row.macs for name, row in rows.items()} == MACS
    assert rows["depthwise"].kind == "DepthwiseConv2dNative"
    assert rows["up"].kind == "Conv2DBackpropInput"


def test_functions_of_a_graph_are_looked_into(files):
    found = tfopt.inspect(files / "net.pb")
    assert found.macs == sum(MACS.values())
    assert any("serving_default_image" in note for note in found.notes)


def test_multiplications_in_a_loop_are_not_counted(tmp_path):
    @tf.function(input_signature=[tf.TensorSpec([1, 4])])
    def steps(x):
        weights = tf.constant(np.ones([4, 4]), tf.float32)
        return tf.while_loop(
            lambda i, _: i < 3, lambda i, y: (i + 1, y @ weights), (0, x)
        )

    tfopt.freeze(steps, tmp_path / "loop.pb", verify="structure")
    found = tfopt.inspect(tmp_path / "loop.pb")
    assert found.macs is None
    assert any("not counted" in note for note in found.notes)
    assert found.parameters >= 16


def test_what_inference_does_not_need_is_noted(tmp_path):
    module = tf.Module()
    module.kernel = tf.Variable(tf.ones([4, 2]))
    module.unused = tf.Variable(tf.zeros([1000]))
    module.serve = tf.function(
        lambda x: x @ module.kernel,
        input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")],
    )
    tf.saved_model.save(module, tmp_path / "saved", signatures=module.serve)
    found = tfopt.inspect(tmp_path / "saved")
    assert (found.parameters, found.macs) == (8, 8)
    assert any("slim_checkpoint" in note for note in found.notes)


def test_quantized_weights_are_told_apart(files):
    found = tfopt.inspect(files / "dynamic.tflite")
    kinds = found.precision["operators"]
    assert "float32 with int8 weights" in kinds
    assert found.macs == sum(MACS.values())
    assert {"int8", "float32"} <= found.precision["weight_bytes"].keys()
    dense = max(found.weights, key=lambda item: item.size)
    assert dense.dtype == "int8"
    assert dense.zeros >= 768 * 2
    assert dense.distinct <= 255


def test_one_signature_is_looked_into(files):
    found = tfopt.inspect(files / "saved", signature_key="serving_default")
    assert any("signature serving_default" in note for note in found.notes) == (
        len(found.signatures) > 1
    )
    with pytest.raises(TfoptError, match="signature_key='other'"):
        tfopt.inspect(files / "saved", signature_key="other")
    with pytest.raises(ValueError, match="signature_key='other'"):
        tfopt.inspect(files / "net.tflite", signature_key="other")


def test_a_checkpoint_lists_its_variables(files):
    found = tfopt.inspect(files / "weights")
    assert found.format == "checkpoint"
    step = next(item for item in found.weights if item.name.startswith("step"))
    assert (step.shape, step.zeros, step.size_bytes) == ((2,), 1, 8)
    assert found.macs is None


def test_basic_pitch_has_the_same_multiplications_before_and_after(testdata):
    folder = testdata / "basic_pitch"
    saved = tfopt.inspect(folder / "saved_model")
    lite = tfopt.inspect(folder / "reference.tflite")
    assert saved.macs == lite.macs > 5e8
    assert lite.arena_bytes > 1e6


def test_the_arena_reuses_what_is_dead():
    def tensor(index, size, raw=None):
        return tflite_file.Tensor(
            index, f"t{index}", "FLOAT32", (1, size), (), (), 0, False, raw
        )

    def operator(index, inputs, outputs):
        return tflite_file.Operator(index, "RELU", False, inputs, outputs, None)

    # A chain of 16-value tensors (64 bytes each): two are alive at a time.
    chain = tflite_file.Subgraph(
        name="",
        inputs=(0,),
        outputs=(4,),
        tensors=tuple(tensor(i, 16) for i in range(5)),
        operators=tuple(operator(i, (i,), (i + 1,)) for i in range(4)),
    )
    assert _arena.arena_bytes(chain) == 128
    # One that skips to the end stays alive beside both.
    kept = dataclasses.replace(
        chain,
        operators=(*chain.operators[:3], operator(3, (3, 0), (4,))),
    )
    assert _arena.arena_bytes(kept) == 192
    weights = dataclasses.replace(
        chain, tensors=(*chain.tensors[:4], tensor(4, 16, np.zeros(64, np.uint8)))
    )
    assert _arena.arena_bytes(dataclasses.replace(weights, outputs=())) == 128


def test_einsum_counts_all_its_labels(keras, tmp_path):
    layer = keras.layers.EinsumDense("abc,cde->abde", output_shape=(6, 3, 2))
    model = keras.Sequential([keras.Input((6, 5)), layer])
    found = tfopt.inspect(model)
    assert found.macs == 6 * 5 * 3 * 2


def test_transposed_products_count_what_they_sum_over():
    @tf.function(input_signature=[tf.TensorSpec([2, 5, 3]), tf.TensorSpec([2, 5, 7])])
    def product(x, y):
        return tf.matmul(x, y, transpose_a=True)

    found = tfopt.inspect(tfopt.convert(product))
    assert found.operations["BATCH_MATMUL"] == 1
    assert found.macs == 2 * 3 * 7 * 5


def test_free_sizes_leave_multiplications_unknown(keras):
    model = keras.Sequential(
        [keras.Input((None, None, 1)), keras.layers.Conv2D(2, 3, name="conv")]
    )
    found = tfopt.inspect(model)
    assert found.macs is None
    assert any("free" in note for note in found.notes)


def test_difference_names_what_changed(files):
    before = tfopt.inspect(files / "net.tflite")
    after = tfopt.inspect(files / "dynamic.tflite")
    found = tfopt.diff(before, after)
    changed = [pair for pair in found.layers.values() if pair[0] != pair[1]]
    assert len(changed) >= 1
    text = str(found)
    assert "int8" in text
    assert "weight bytes" in text
    same = str(tfopt.diff(before, before))
    assert "Layers: no change" in same
    assert "Operations: no change" in same
    assert "Signatures: no change" in same


def test_json_and_markdown_hold_everything(files, tmp_path):
    found = tfopt.inspect(files / "net.tflite")
    found.report().write(tmp_path / "found.json")
    content = json.loads((tmp_path / "found.json").read_text())["inspection"]
    assert content["macs"] == found.macs
    assert content["layers"][0]["parameters"] == found.layers[0].parameters
    found.report(largest=0).write(tmp_path / "found.md")
    assert "Largest" not in (tmp_path / "found.md").read_text()


def test_half_and_packed_constants_are_read(tmp_path):
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float16, [None, 4], "x")
        weights = tf.constant(np.full((4, 2), 1.5), tf.float16, name="layer/kernel")
        tf.linalg.matmul(x, weights, name="layer/MatMul")
    path = tmp_path / "half.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    found = tfopt.inspect(path)
    assert found.precision == {
        "weight_bytes": {"float16": 16},
        "macs": {"float16": 8},
    }
    assert found.weights[0].distinct == 1
    assert found.weights[0].zeros == 0
    # Stored as one value that stands for all.
    message = reader.read_message(path, "GraphDef")
    node = next(node for node in message.node if node.op == "Const")
    node.attr["value"].tensor.ClearField("tensor_content")
    del node.attr["value"].tensor.half_val[:]
    node.attr["value"].tensor.half_val.append(0)
    path.write_bytes(message.SerializeToString())
    assert tfopt.inspect(path).weights[0].zeros == 8


@pytest.mark.parametrize("what", ["missing", "text.bin", "cut.tflite", "empty.tflite"])
def test_other_files_are_refused(what, files, tmp_path):
    path = tmp_path / what
    if what == "text.bin":
        path.write_text("no model")
    elif what == "cut.tflite":
        path.write_bytes((files / "net.tflite").read_bytes()[:200])
    elif what == "empty.tflite":
        path.write_bytes(b"")
    with pytest.raises(TfoptError, match=what):
        tfopt.inspect(path)


def test_tables_survive_names_like_markup(tmp_path):
    tf.train.Checkpoint(**{"a_[bold]_x": tf.Variable([1.0])}).write(
        str(tmp_path / "weights")
    )
    assert "a_[bold]_x" in str(tfopt.inspect(tmp_path / "weights"))
