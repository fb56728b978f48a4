"""Names, selection and constraints of variables, on both Keras versions."""

import prune_samples as samples
import pytest

from tfopt._keras import variables

pytestmark = pytest.mark.both_keras


def names(model):
    return [weight.name for weight in variables.weights(model)]


def test_names_say_where_a_weight_sits(keras):
    layers = keras.layers
    inner = keras.Sequential([layers.Input((8,)), layers.Dense(4, name="d")], name="in")
    tokens = keras.Input((3, 8))
    x = layers.TimeDistributed(inner, name="each")(tokens)
    x = layers.Bidirectional(layers.LSTM(3, name="lstm"), name="both")(x)
    model = keras.Model(tokens, layers.Dense(2, use_bias=False, name="d")(x))
    cells = [
        f"both/{way}_lstm/lstm_cell/{kind}"
        for way in ("forward", "backward")
        for kind in ("kernel", "recurrent_kernel", "bias")
    ]
    found = names(model)
    assert [name for name in found if "lstm" not in name] == [
        *("each/in/d/kernel", "each/in/d/bias", "d/kernel")
    ]
    assert [name for name in found if "lstm" in name] == cells
    assert [weight.name for weight in variables.kernels(model)] == [
        name for name in found if name.endswith("kernel")
    ]


def test_names_are_unique_where_layers_share_a_name(keras):
    class Pair(keras.layers.Layer):
        def __init__(self):
            super().__init__(name="pair")
            self.first = keras.layers.Dense(3, name="d")
            self.second = keras.layers.Dense(3, name="d")

        def call(self, x):
            return self.second(self.first(x))

    inputs = keras.Input((3,))
    model = keras.Model(inputs, Pair()(inputs))
    assert names(model) == [
        *("pair/d/kernel", "pair/d/bias", "pair/d/kernel#2", "pair/d/bias#2")
    ]
    assert [w.last_name for w in variables.kernels(model)] == ["kernel", "kernel"]


def test_shared_layers_and_metrics(keras):
    layer = keras.layers.Dense(12, name="shared")
    inputs = keras.Input((12,))
    model = keras.Model(inputs, layer(layer(inputs)))
    samples.compiled(keras, model, metrics=["accuracy"])
    samples.fit(model, epochs=1)
    assert names(model) == ["shared/kernel", "shared/bias"]


def test_trainable_and_sizes(keras):
    model = samples.dense(keras)
    model.get_layer("second").trainable = False
    found = {weight.name: weight for weight in variables.weights(model)}
    assert found["first/kernel"].trainable
    assert not found["second/kernel"].trainable
    assert found["first/kernel"].shape == (12, 16)
    assert found["first/kernel"].size == 192
    assert found["first/kernel"].is_kernel
    assert not found["first/bias"].is_kernel


def custom(keras):
    class Custom(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(name="w", shape=(12, 4))
            self.codebook = self.add_weight(name="codebook", shape=(12, 4))
            super().build(shape)

        def call(self, x):
            return x @ (self.w + self.codebook)

    inputs = keras.Input((12,))
    outputs = keras.layers.Dense(5, name="d")(Custom(name="own")(inputs))
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, None, ["own/w", "d/kernel"]),
        ("own", None, ["own/w"]),
        ("own/codebook", None, ["own/codebook"]),
        (["*", "*/codebook"], None, ["own/w", "own/codebook", "d/kernel"]),
        (None, "own", ["d/kernel"]),
        ("*kernel", None, ["d/kernel"]),
        (None, ["d*"], ["own/w"]),
    ],
)
def test_select(keras, include, exclude, expected):
    candidates = variables.weights(custom(keras))
    chosen, reasons = variables.select(candidates, include=include, exclude=exclude)
    assert [weight.name for weight in chosen] == expected
    assert sorted([*reasons, *expected]) == sorted(w.name for w in candidates)


def test_constraints_can_be_set_and_taken_back(keras):
    policy = "mixed_float16"  # tf_keras wraps the variable
    for model in (samples.dense(keras), samples.dense(keras, dtype=policy)):
        variable = variables.kernels(model)[0].variable
        assert variables.get_constraint(variable) is None
        variables.set_constraint(variable, abs)
        assert variables.get_constraint(variable) is abs
        variables.set_constraint(variable, None)
        assert variables.get_constraint(variable) is None


def test_steps(keras):
    model = samples.compiled(keras, steps_per_execution=3)
    assert variables.steps_per_execution(model) == 3
    assert variables.iterations(model, ahead=4) == 4
    samples.fit(model, epochs=1)
    assert variables.iterations(model) == samples.STEPS
    assert variables.steps_per_execution(samples.compiled(keras)) == 1
