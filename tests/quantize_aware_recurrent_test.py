"""Recurrent layers: unrolled into int8 kernels, or float for a reason that is said."""

import numpy as np
import pytest
import quantize_aware_samples as samples

from tfopt import tflite_file
from tfopt.conversion import convert
from tfopt.methods.quantize_aware import QuantizeAware
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras

STEPS, VALUES = 3, 4
DATA = np.random.default_rng(0).normal(size=(64, STEPS, VALUES)).astype(np.float32)

LAYERS = {
    "lstm": lambda k: k.LSTM(5),
    "lstm_without_bias": lambda k: k.LSTM(5, use_bias=False, dropout=0.1),
    "gru": lambda k: k.GRU(5, go_backwards=True, return_sequences=True),
    "gru_without_bias": lambda k: k.GRU(5, use_bias=False),
    "simple": lambda k: k.SimpleRNN(5, return_sequences=True),
    "relu": lambda k: k.SimpleRNN(5, activation="relu"),
    "bidirectional": lambda k: k.Bidirectional(k.GRU(3, return_sequences=True)),
    "both_last_states": lambda k: k.Bidirectional(k.LSTM(3), merge_mode="sum"),
    "two_kinds": lambda k: k.Bidirectional(
        k.LSTM(3), backward_layer=k.LSTM(3, go_backwards=True), merge_mode="mul"
    ),
}


def network(keras, layer):
    inputs = keras.Input((STEPS, VALUES))
    model = keras.Model(inputs, layer(keras.layers)(inputs))
    rng = np.random.default_rng(1)
    model.set_weights([w + rng.normal(size=w.shape) * 0.3 for w in model.get_weights()])
    return model


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_unrolled_layers_are_int8_and_agree(keras, name):
    model = network(keras, LAYERS[name])
    method = QuantizeAware(representative_dataset=DATA, strict=True)
    prepared = method.prepare(model)
    expected = samples.outputs(model, DATA)
    got = samples.outputs(prepared, DATA)
    assert got.shape == expected.shape
    assert np.abs(got - expected).mean() < 0.05 * expected.std()
    content = convert(
        method.finalize(prepared), quantization="int8", representative_dataset=DATA
    )
    assert tflite_file.float_operators(tflite_file.read(content)) == []
    names = samples.operators(content)
    assert names.count("FULLY_CONNECTED") >= STEPS
    assert "WHILE" not in names


def test_the_comparison_notices_another_order_of_gates(keras):
    """Negative control of the test above."""
    model = network(keras, LAYERS["lstm"])
    expected = samples.outputs(model, DATA)
    weights = [np.roll(w, 5, axis=-1) for w in model.get_weights()]
    model.set_weights(weights)
    method = QuantizeAware(representative_dataset=DATA)
    got = samples.outputs(method.prepare(model), DATA)
    assert np.abs(got - expected).mean() > 0.2 * expected.std()


def test_an_unrolled_layer_trains(keras):
    method = QuantizeAware()
    prepared = method.prepare(network(keras, LAYERS["lstm"]))
    kernels = [w for w in prepared.trainable_weights if len(w.shape) == 2]
    assert [tuple(w.shape) for w in kernels] == [(VALUES, 20), (5, 20)]
    before = [w.numpy() for w in kernels]
    prepared.compile("adam", "mse", run_eagerly=True)  # these are two steps
    prepared.fit(DATA, np.ones((64, 5)), verbose=0, callbacks=[method])
    for old, new in zip(before, kernels, strict=True):
        assert np.abs(old - new.numpy()).max() > 1e-4


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (lambda k: k.LSTM(3), (None, VALUES), "fixed number"),
        (lambda k: k.LSTM(3), (65, VALUES), "65 steps"),
        (lambda k: k.GRU(3, reset_after=False), (STEPS, VALUES), "reset_after"),
        (lambda k: k.GRU(3, recurrent_dropout=0.2), (STEPS, VALUES), "no unrolled"),
        (lambda k: k.LSTM(3, return_state=True), (STEPS, VALUES), "returned"),
    ],
)
def test_what_stays_float_says_why(keras, layer, shape, reason):
    inputs = keras.Input(shape)
    x = keras.layers.Dense(VALUES)(inputs)
    outputs = layer(keras.layers)(x)
    method = QuantizeAware()
    model = keras.Model(inputs, outputs)
    method.prepare(model)
    (entry,) = (e for e in method.report if e["treatment"] == "float")
    assert reason in entry["reason"]
    with pytest.raises(TfoptError, match="strict"):
        QuantizeAware(strict=True).prepare(model)


def test_masked_sequences_stay_float(keras):
    layers = keras.layers
    inputs = keras.Input((STEPS, VALUES))
    x = layers.Dense(3)(inputs)
    model = keras.Model(inputs, layers.LSTM(3)(layers.Masking()(x)))
    method = QuantizeAware()
    method.prepare(model)
    reasons = {e["kind"]: e.get("reason", "") for e in method.report}
    assert "mask" in reasons["LSTM"]
