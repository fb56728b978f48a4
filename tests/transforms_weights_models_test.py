"""quantize_weights on real models: Basic Pitch, and Keras layers with embeddings."""

import numpy as np
import pytest
import tensorflow as tf
from transforms_linear_samples import difference, run
from transforms_weights_test import rounded

import tfopt
from tfopt.savedmodel import protos
from tfopt.transforms import _constants
from tfopt.transforms._graph import GraphModel
from tfopt.transforms.prune_weights import prune_weights
from tfopt.transforms.quantize_weights import quantize_weights


def frozen(source, tmp_path):
    """The graph of a model's serving signature, as freezing leaves it."""
    path = tmp_path / "frozen.pb"
    artifact = tfopt.freeze(source, path, signature_keys=["serving_default"])
    message = protos.message_class("GraphDef").FromString(path.read_bytes())
    names = artifact.details["signatures"]["serving_default"]
    return GraphModel.from_graph_def(
        message,
        inputs=[tensor for (tensor,) in names["inputs"].values()],
        outputs=[tensor for (tensor,) in names["outputs"].values()],
    )


def size(model):
    model.remove_dead()
    return model.to_graph_def().ByteSize()


@pytest.fixture(scope="module")
def basic_pitch(testdata, tmp_path_factory):
    folder = tmp_path_factory.mktemp("basic_pitch")
    source = testdata / "basic_pitch" / "saved_model"
    return lambda: frozen(source, folder)


@pytest.fixture(scope="module")
def sound():
    time = np.arange(43844) / 22050
    waves = [
        np.sin(2 * np.pi * tone * time) / n for n, tone in enumerate((220, 330), 1)
    ]
    return np.float32(sum(waves))[None, :, None] / 2


def test_basic_pitch(basic_pitch, sound):
    model = basic_pitch()
    before = run(model, sound)
    found = quantize_weights(model)
    assert found["quantized"] == 5
    assert found["skipped"] == []
    assert found["ratio"] > 3.6
    after = run(model, sound)
    # The oracle: the same weights, rounded in the original graph.
    oracle = basic_pitch()
    for line in found["tensors"]:
        name = line["node"].rpartition("/codes")[0] or line["node"]
        node = find(oracle, name)
        array = _constants.to_array(node.attr["value"].tensor)
        # Filters of the transform are stored [out, 1, length] and transposed.
        axis = 0 if array.ndim == 3 else array.ndim - 1
        value = _constants.to_proto(rounded(array, (axis,)))
        node.attr["value"].tensor.CopyFrom(value)
    assert difference(run(oracle, sound), after) <= 1e-4
    for old, new in zip(before, after, strict=True):
        assert 1e-5 < np.abs(old - new).mean() < 0.02
    # What is left is no weights.
    remaining = found["remaining"]
    assert remaining["codes"] < 0.3 * found["bytes_before"]
    assert remaining["float_constants"] < 13_000
    assert remaining["nodes"] > 2 * remaining["codes"]


def find(model, name):
    """Returns the constant of that name in the findings."""
    for body in model.bodies:
        local = name.removeprefix(f"{body.name}/") if body.name else name
        if local in body.nodes and body.nodes[local].op == "Const":
            return body.nodes[local]
    raise KeyError(name)


def test_groups_help_where_weights_are_trained(basic_pitch, sound):
    """Of 4 bits, groups halve the error at least; that is why they are the default."""
    errors = []
    for group_size in (0, 32):
        model = basic_pitch()
        before = run(model, sound)
        quantize_weights(model, bits=4, group_size=group_size)
        after = run(model, sound)
        gaps = [np.abs(a - b).mean() for a, b in zip(before, after, strict=True)]
        errors.append(float(np.mean(gaps)))
    assert errors[1] < errors[0] / 2


def test_pruning_basic_pitch(basic_pitch):
    model = basic_pitch()
    found = prune_weights(model, sparsity=0.5)
    assert found["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert found["gzip_after"] < found["gzip_before"]


@pytest.mark.both_keras
@pytest.mark.parametrize("bits", [8, 4, "float16"])
def test_keras_layers(keras, tmp_path, bits):
    """Embedding, convolution, recurrent, attention and dense layers."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((12,), dtype="int32", name="ids")
    x = keras.layers.Embedding(500, 64)(ids)
    x = keras.layers.Conv1D(48, 3, activation="relu")(x)
    x = keras.layers.MultiHeadAttention(4, 12)(x, x)
    x = keras.layers.LSTM(40)(x)
    outputs = keras.layers.Dense(64, name="logits")(x)
    source = keras.Model(ids, outputs)
    model = frozen(source, tmp_path)
    chosen = np.random.default_rng(0).integers(0, 500, (2, 12))
    before, original = run(model, chosen), size(model)
    expected = source(tf.constant(chosen, tf.int32)).numpy()
    assert difference([expected], before) < 1e-4
    found = quantize_weights(model, bits=bits)
    assert found["lookups"] == 1
    # Embedding, convolution, 4 of attention, 2 of the LSTM, dense.
    assert found["quantized"] == 9
    assert found["ratio"] > {8: 3.5, 4: 4.8, "float16": 1.9}[bits]
    assert size(model) < original - 0.99 * (
        found["bytes_before"] - found["bytes_after"]
    )
    limit = {8: 0.03, 4: 0.5, "float16": 3e-3}[bits]
    assert 0 < difference(before, run(model, chosen)) < limit
    assert quantize_weights(model, bits=bits)["quantized"] == 0


@pytest.mark.slow
def test_whole_way(tmp_path):
    """Through transform_graph: the error is reported."""
    rng = np.random.default_rng(0)

    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.table = tf.Variable(rng.standard_normal((300, 64)), dtype=tf.float32)
            self.kernel = tf.Variable(rng.standard_normal((64, 70)), dtype=tf.float32)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "ids")])
        def __call__(self, ids):
            return {"y": tf.gather(self.table, ids % 300) @ self.kernel}

    module = Module()
    tf.saved_model.save(module, str(tmp_path / "model"))
    artifact = tfopt.transform_graph(
        tmp_path / "model", tmp_path / "small.pb", "quantize_weights(bits=8)"
    )
    step = artifact.details["steps"][0]
    assert step["findings"]["quantized"] == 2
    assert step["findings"]["lookups"] == 1
    (output,) = artifact.details["outputs"].values()
    assert 0 < output["max_error"] < 0.03 * output["scale"]
