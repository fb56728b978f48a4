"""Models that are written as Python code, as flat graphs."""

import json

import numpy as np
import pytest
import tensorflow as tf
from opening_samples import ALL, called, data_for, randomized

from tfopt._keras import operations
from tfopt._keras.flatten import flatten, to_model
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras


def outputs(model, data, **options):
    return [np.asarray(x) for x in tf.nest.flatten(model(data, **options))]


def kinds(model):
    """What each call of the flat graph is: a kind of operation or a class."""
    return [
        operations.canonical_kind(call.layer) or call.layer.cls.__name__
        for call in flatten(model).calls
    ]


@pytest.mark.parametrize("name", ALL)
def test_the_flat_model_equals_the_one_in_code(keras, name, tmp_path):
    model = randomized(ALL[name](keras))
    data = data_for(model)
    layers = list(model._flatten_layers())
    before = [len(layer._inbound_nodes) for layer in layers]
    attributes = [set(vars(layer)) for layer in layers]
    flat = to_model(flatten(model))
    # The model in code is as it was.
    assert [len(layer._inbound_nodes) for layer in layers] == before
    assert [set(vars(layer)) for layer in layers] == attributes
    assert flat.count_params() == model.count_params()
    assert len(flat.trainable_variables) == len(model.trainable_variables)
    expected = outputs(model, data)
    for one, other in zip(expected, outputs(flat, data), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
        assert np.std(one) > 0.01
    # A copy of the flat model survives a file.
    flat.save(tmp_path / "flat.keras")
    loaded = keras.models.load_model(tmp_path / "flat.keras")
    for one, other in zip(expected, outputs(loaded, data), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert json.dumps(loaded.get_config(), default=str)


def test_layers_inside_behave_in_training_as_ever(keras):
    model = randomized(ALL["subclassed_blocks"](keras))
    flat, data = to_model(flatten(model)), data_for(model)
    first = outputs(flat, data, training=True)[0]
    assert np.abs(first - outputs(flat, data, training=True)[0]).max() > 1e-3  # dropout
    norm = flat.get_layer("first_norm")
    before = norm.get_weights()
    flat.compile("sgd", "mse")
    flat.fit(data, np.zeros((len(data), 3)), verbose=0)
    assert all(np.any(a != b) for a, b in zip(before, norm.get_weights(), strict=True))


def test_what_an_opened_layer_is_made_of(keras):
    names = [call.layer.path for call in flatten(ALL["transformer"](keras)).calls]
    assert "encoder/up" in names
    assert "encoder/norm1/gamma" in names
    made = kinds(ALL["attention_block"](keras))
    assert made.count("EinsumDense") == 4
    assert made.count("einsum") == 2
    assert {"mul", "Softmax"} <= set(made) or {"mul", "softmax"} <= set(made)
    assert "MultiHeadAttention" not in made
    closed = flatten(ALL["attention_block"](keras), open_layers=False)
    assert "MultiHeadAttention" in [x.cls.__name__ for x in closed.layers()]


def test_sizes_that_code_computes_are_constants(keras):
    made = kinds(ALL["raw_operations"](keras))
    assert "reshape" in made
    assert "shape" not in made
    graph = flatten(ALL["raw_operations"](keras))
    (reshape,) = [
        call
        for call in graph.calls
        if operations.canonical_kind(call.layer) == "reshape"
    ]
    assert reshape.output.shape == (None, 384)
    assert len(reshape.inputs) == 1


def test_layers_that_cannot_be_opened_stay_whole(keras):
    class Noisy(keras.layers.Layer):
        """No layers inside, but another behaviour in training."""

        def call(self, inputs, training=None):
            return inputs + 1.0 if training else inputs

    class Tied(keras.layers.Layer):
        """Computes with a variable of a layer inside, before symbols come in."""

        def __init__(self, **options):
            super().__init__(**options)
            self.inner = keras.layers.Dense(4, use_bias=False)

        def call(self, inputs):
            return tf.matmul(
                self.inner(inputs),
                tf.transpose(tf.convert_to_tensor(self.inner.kernel)),
            )

    class Mine(keras.layers.Dense):
        """A Dense layer that computes something else."""

        def call(self, inputs):
            return super().call(inputs) * 2.0

    inputs = keras.Input((4,))
    x = Tied(name="tied")(Noisy(name="noisy")(inputs))
    model = keras.Model(inputs, Mine(3, name="mine")(x))
    graph = flatten(model)
    assert [spec.name for spec in graph.layers()] == ["noisy", "tied", "mine"]
    assert "variable" in graph.layers()[1].closed
    data = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(to_model(graph)(data), model(data), atol=1e-6)

    class Code(keras.Model):
        def call(self, inputs):
            return inputs if float(inputs[0, 0]) > 0 else -inputs

    with pytest.raises(TfoptError, match="symbolic"):
        flatten(called(Code(), (4,)))


def test_variables_of_opened_layers_train_and_are_shared(keras):
    class Scale(keras.layers.Layer):
        def build(self, shape):
            self.factor = self.add_weight(name="factor", shape=(), initializer="ones")
            self.fixed = self.add_weight(
                name="fixed", shape=(shape[-1],), initializer="ones", trainable=False
            )
            self.built = True

        def call(self, inputs):
            return inputs * self.factor + tf.expand_dims(self.fixed, 0)

    inputs = keras.Input((4,))
    scale = Scale(name="scale")
    model = keras.Model(inputs, scale(keras.layers.Dense(4)(scale(inputs))))
    randomized(model)
    graph = flatten(model)
    assert [spec.cls.__name__ for spec in graph.layers()].count("Weight") == 2
    flat, data = to_model(graph), np.ones((2, 4), np.float32)
    np.testing.assert_allclose(flat(data), model(data), atol=1e-6)
    assert len(flat.trainable_variables) == 3
    assert len(flat.non_trainable_variables) == 1
    before = flat.get_layer("factor").get_weights()[0]
    flat.compile("sgd", "mse")
    flat.fit(data, np.zeros((2, 4)), verbose=0)
    assert flat.get_layer("factor").get_weights()[0] != before


def test_half_precision_is_kept(keras):
    class Halved(keras.layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.inner = keras.layers.Dense(4, dtype=options["dtype"])

        def build(self, shape):
            self.gamma = self.add_weight(name="gamma", shape=(4,), initializer="ones")
            super().build(shape)

        def call(self, inputs):
            return self.inner(tf.nn.relu(inputs)) * self.gamma

    inputs = keras.Input((4,))
    model = keras.Model(inputs, Halved(dtype="mixed_bfloat16")(inputs))
    data = np.ones((2, 4), np.float32)
    flat = to_model(flatten(model))
    assert flat(data).dtype == model(data).dtype == tf.bfloat16
    assert {tf.as_dtype(v.dtype) for v in flat.trainable_variables} == {tf.float32}
    np.testing.assert_allclose(
        tf.cast(flat(data), tf.float32), tf.cast(model(data), tf.float32), atol=0.02
    )


def test_several_arguments_and_training_step(keras):
    class Pair(keras.Model):
        def __init__(self):
            super().__init__(name="pair")
            self.top = keras.layers.Dense(2)

        def call(self, left, right):
            return self.top(left), right * 2.0

    given = [keras.Input((3,), name=name) for name in ("a", "b")]
    model = keras.Model(given, Pair()(*given))
    flat = to_model(flatten(model))
    data = [np.ones((2, 3), np.float32), np.full((2, 3), 4.0, np.float32)]
    for one, other in zip(model(data), flat(data), strict=True):
        np.testing.assert_allclose(one, other)
