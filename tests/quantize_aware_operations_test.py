"""Quantization-aware training of models that are written as Python code."""

import numpy as np
import pytest
import tensorflow as tf
import training_samples
from opening_samples import ALL, data_for, randomized
from quantize_aware_samples import operators, to_tflite

import tfopt
from tfopt import runner, tflite_file
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras


def trained(keras, model, data):
    """A finalized model, the report, and whether the prepared one came back equal."""
    method = tfopt.QuantizeAware(representative_dataset=[data])
    prepared = method.prepare(model)
    targets = tf.nest.map_structure(
        np.zeros_like, training_samples.outputs(prepared, data)
    )
    prepared.compile(keras.optimizers.Adam(1e-4), "mse")
    training_samples.built(prepared)
    prepared.fit(data, targets, batch_size=8, verbose=0, callbacks=[method])
    return prepared, method.finalize(prepared), method.report


def check_file(content, model, data):
    """The file computes on integers, what the model computes."""
    subgraph = tflite_file.read(content).subgraphs[0]
    ends = [op for op in subgraph.operators if op.name == "DEQUANTIZE"]
    steps = {
        tuple(subgraph.tensors[op.outputs[0]].shape[1:]): subgraph.tensors[
            op.inputs[0]
        ].scale[0]
        for op in ends
    }
    expected = tf.nest.flatten(training_samples.outputs(model, data))
    with runner.Runner(content, num_workers=1) as run:
        got = run.run(data)
    got = list(got.values()) if isinstance(got, dict) else [got]
    for want in expected:
        (have,) = [x for x in got if x.shape == want.shape]
        assert np.abs(have - want).mean() <= steps[want.shape[1:]]
        assert np.std(want) > 2 * steps[want.shape[1:]]


@pytest.mark.parametrize("name", ALL)
def test_models_in_code(keras, name, tmp_path):
    model = randomized(ALL[name](keras))
    data = data_for(model)
    prepared, final, report = trained(keras, model, data)
    assert not [entry for entry in report if entry["treatment"] == "float"]
    prepared.save(tmp_path / "prepared.keras")
    loaded = keras.models.load_model(tmp_path / "prepared.keras")
    for one, other in zip(
        tf.nest.flatten(prepared(data)), tf.nest.flatten(loaded(data)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    check_file(to_tflite(final), final, data)


def branches(x):
    """Operations of which each has an int8 kernel, or is made of some."""
    matrix = np.linspace(-1, 1, 12).reshape(4, 3).astype(np.float32)
    vector = np.array([0.5, -1.0, 2.0, 0.25], np.float32)
    products = tf.matmul(x, matrix), tf.einsum("bijc,cd->bijd", x, matrix)
    yield "products", tf.concat(products, -1)
    yield "constants", (2.0 * x - 0.5) / 3.0 + x * vector + vector
    yield "two", tf.maximum(tf.nn.relu6(x), x * 0.5) - tf.minimum(x, -x)
    yield "curves", tf.nn.silu(x) + tf.nn.gelu(x) + tf.sigmoid(x) * tf.tanh(x)
    root = tf.math.rsqrt(tf.abs(x) + 0.5)
    yield "powers", tf.square(x) * 0.1 + x**3.0 * 0.01 + root
    turned = tf.transpose(tf.reverse(x, [1]), [0, 2, 1, 3])
    yield "moves", tf.pad(turned[:, 1:4], [[0, 0], [1, 2], [0, 0], [0, 0]])
    left, right = tf.split(x, 2, axis=-1)
    yield "parts", tf.stack([left, right], 1)
    yield "lists", tf.add_n(tf.unstack(x, axis=1))
    means = tf.reduce_mean(x, [1, 2]) + tf.reduce_max(x, [1, 2])
    yield "reductions", means + tf.reduce_sum(x, [1, 2]) * 0.1
    variance = tf.math.reduce_variance(x, -1, keepdims=True)
    yield "variance", x * tf.math.rsqrt(variance + 1.0)
    yield "softmax", tf.nn.softmax(tf.gather(x, [0, 2], axis=1))
    yield "clip", tf.clip_by_value(tf.roll(x, 1, 1), -1.0, 1.0)


def branch_model(keras, number):
    class Branch(keras.layers.Layer):
        def call(self, inputs):
            return list(branches(inputs))[number][1]

    inputs = keras.Input((6, 6, 3))
    x = Branch(name="branch")(keras.layers.Conv2D(4, 1, name="conv")(inputs))
    x = keras.layers.Flatten()(x)
    return randomized(keras.Model(inputs, keras.layers.Dense(3, name="top")(x)))


@pytest.mark.parametrize("number", range(12))
def test_operations(keras, number):
    model = branch_model(keras, number)
    data = data_for(model)
    _, final, report = trained(keras, model, data)
    left = [entry for entry in report if entry["treatment"] == "float"]
    assert not left
    check_file(to_tflite(final), final, data)


def test_constants_become_codes(keras):
    vector = np.array([0.5, -1.0, 2.0, 0.25], np.float32)

    class Own(keras.layers.Layer):
        def call(self, inputs):
            return inputs * vector

    inputs = keras.Input((6, 4))
    x = Own()(keras.layers.Dense(4)(inputs))
    model = randomized(keras.Model(inputs, x))
    data = data_for(model)
    _, final, _ = trained(keras, model, data)
    content = to_tflite(final)
    subgraph = tflite_file.read(content).subgraphs[0]
    (product,) = [op for op in subgraph.operators if op.name == "MUL"]
    tensor = next(
        subgraph.tensors[i]
        for i in product.inputs
        if subgraph.tensors[i].raw is not None
    )
    codes = np.frombuffer(tensor.raw, np.int8).astype(np.float64)
    values = (codes - tensor.zero_point[0]) * tensor.scale[0]
    np.testing.assert_allclose(values.ravel(), vector, atol=tensor.scale[0])


def test_variables_train_and_become_codes(keras):
    class Own(keras.layers.Layer):
        def build(self, shape):
            self.matrix = self.add_weight(name="matrix", shape=(4, 5))
            self.bias = self.add_weight(name="bias", shape=(5,))
            self.built = True

        def call(self, inputs):
            return tf.nn.relu(tf.matmul(inputs, self.matrix) + self.bias)

    inputs = keras.Input((4,))
    model = randomized(keras.Model(inputs, keras.layers.Dense(3)(Own()(inputs))))
    data = data_for(model)
    prepared, final, report = trained(keras, model, data)
    assert len(prepared.trainable_variables) == 4
    assert not [entry for entry in report if entry["treatment"] == "float"]
    content = to_tflite(final)
    assert operators(content).count("FULLY_CONNECTED") == 2
    check_file(content, final, data)


def test_what_stays_float_is_listed_with_the_reason(keras):
    class Sums(keras.layers.Layer):
        def call(self, inputs):
            return tf.cumsum(inputs, 1)

    class Noisy(keras.layers.Layer):
        def call(self, inputs, training=None):
            return inputs + 0.0 * tf.cast(bool(training), tf.float32)

    inputs = keras.Input((6, 4))
    x = Noisy(name="noisy")(Sums(name="sums")(keras.layers.Dense(4)(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    method = tfopt.QuantizeAware()
    method.prepare(model)
    left = {
        entry["path"].split("/")[0]: entry["reason"]
        for entry in method.report
        if entry["treatment"] == "float"
    }
    assert "cumsum" in left["sums"]
    assert "Noisy" in left["noisy"]
    with pytest.raises(TfoptError, match="cumsum"):
        tfopt.QuantizeAware(strict=True).prepare(model)
