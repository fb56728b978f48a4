"""Attention whose mask is known beforehand, in int8; layers with adapted statistics."""

import numpy as np
import pytest
import tensorflow as tf
import training_samples

from tfopt import _keras, runner, tflite_file
from tfopt.conversion import convert
from tfopt.methods.quantize_aware import QuantizeAware

pytestmark = pytest.mark.both_keras

RNG = np.random.default_rng(0)
SERIES = RNG.normal(size=(128, 6, 4)).astype(np.float32)
CAUSAL = np.tril(np.ones((6, 6), bool))


def chosen(keras, scores):
    where = keras.ops.where if hasattr(keras, "ops") else tf.where
    return keras.layers.Softmax()(where(~CAUSAL, -1e9, scores))


def added(keras, scores):
    return keras.layers.Softmax()(scores + np.where(CAUSAL, 0, -1e9).astype("float32"))


def given(keras, scores):
    return keras.layers.Softmax()(scores, tf.constant(CAUSAL[None]))


def causal(keras, queries):
    attention = keras.layers.MultiHeadAttention(2, 4)
    return attention(queries, queries, use_causal_mask=True)


def attention(keras, form):
    k = keras.layers
    keras.utils.set_random_seed(3)
    x = keras.Input((6, 4))
    if form is causal:
        return keras.Model(x, k.Dense(3)(causal(keras, x)))
    queries, keys = (k.Dense(4)(x) for _ in range(2))
    weights = form(keras, k.Dot(axes=2)([queries, keys]))
    return keras.Model(x, k.Dense(3)(k.Dot(axes=(2, 1))([weights, x])))


def rms(one, other):
    return np.sqrt(np.mean(np.square(np.asarray(one) - np.asarray(other))))


FORMS = [chosen, added, given, causal]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_constant_mask_is_int8(keras, form, tmp_path):
    model = attention(keras, form)
    method = QuantizeAware(representative_dataset=SERIES, strict=True)
    prepared = method.prepare(model)
    exact = training_samples.outputs(model, SERIES)
    fake = training_samples.outputs(prepared, SERIES)
    assert rms(exact, fake) < 0.06 * exact.std()
    later = SERIES.copy()
    later[:, 1:] += 1.0
    seen = training_samples.outputs(prepared, later)
    # What comes later has less than one step of influence on the first output.
    assert np.abs(seen - fake)[:, 0].max() < np.ptp(fake) / 200
    assert np.abs(seen - fake)[:, 5].max() > np.ptp(fake) / 20

    prepared.save(tmp_path / "training.keras")
    final = method.finalize(_keras.load(tmp_path / "training.keras"))
    content = convert(final, quantization="int8", verify=False)
    assert not tflite_file.float_operators(tflite_file.read(content))
    with runner.Runner(content, num_workers=1) as run:
        assert rms(run.run(SERIES), fake) < np.ptp(fake) / 255


def test_masked_scores_that_are_an_output_stay_what_they_are(keras):
    where = keras.ops.where if hasattr(keras, "ops") else tf.where
    x = keras.Input((6, 6))
    scores = where(CAUSAL, keras.layers.Dense(6)(x), -1e9)
    method = QuantizeAware()
    prepared = method.prepare(keras.Model(x, scores))
    floats = [e["reason"] for e in method.report if e["treatment"] == "float"]
    assert floats == ["it chooses by a condition"]
    outputs = prepared.predict(RNG.normal(size=(4, 6, 6)).astype(np.float32), verbose=0)
    assert np.all(outputs[:, ~CAUSAL] == np.float32(-1e9))


def test_int16_activations_keep_their_steps_beside_a_mask(keras):
    model = attention(keras, causal)
    method = QuantizeAware(representative_dataset=SERIES, scheme="int16x8")
    prepared = method.prepare(model)
    exact = training_samples.outputs(model, SERIES)
    assert rms(exact, training_samples.outputs(prepared, SERIES)) < 0.02 * exact.std()
    final = method.finalize(prepared)
    assert rms(exact, training_samples.outputs(final, SERIES)) < 0.02 * exact.std()


def test_adapted_statistics_are_copied(keras):
    """Normalization computes with copies of its weights, made when it is adapted."""
    data = RNG.normal(100.0, 5.0, (64, 3)).astype(np.float32)
    normalization = keras.layers.Normalization()
    normalization.adapt(data)
    x = keras.Input((3,))
    model = keras.Model(x, keras.layers.Dense(2)(normalization(x)))
    expected = training_samples.outputs(model, data)
    copy = _keras.clone(model)
    np.testing.assert_allclose(
        training_samples.outputs(copy, data), expected, atol=1e-5
    )
    method = QuantizeAware(representative_dataset=data)
    prepared = method.prepare(model)
    assert (
        rms(training_samples.outputs(prepared, data), expected) < 0.05 * expected.std()
    )
    final = method.finalize(prepared)
    assert rms(training_samples.outputs(final, data), expected) < 0.05 * expected.std()


def test_the_datasets_of_fit_calibrate_too(keras):
    a, b = (keras.Input((4,), name=name) for name in ("a", "b"))
    both = keras.layers.Concatenate()([a, b])
    model = keras.Model({"a": a, "b": b}, keras.layers.Dense(2)(both))
    inputs = {"a": SERIES[:, 0], "b": SERIES[:, 1]}
    data = tf.data.Dataset.from_tensor_slices((inputs, SERIES[:, 2])).batch(32)
    prepared = QuantizeAware(representative_dataset=data).prepare(model)
    expected = training_samples.outputs(model, inputs)
    assert (
        rms(training_samples.outputs(prepared, inputs), expected)
        < 0.05 * expected.std()
    )
    same = QuantizeAware(representative_dataset=inputs).prepare(model)
    assert np.array_equal(
        training_samples.outputs(same, inputs),
        training_samples.outputs(prepared, inputs),
    )


def masked_by_booleans(keras, scores, mask):
    where = keras.ops.where if hasattr(keras, "ops") else tf.where
    return where(mask > 0.5, scores, -1e9)


def masked_by_a_sum(keras, scores, mask):
    return scores + (1.0 - mask) * -1e9


@pytest.mark.parametrize("masked", [masked_by_booleans, masked_by_a_sum])
def test_a_mask_that_is_computed_leaves_its_scores_float(keras, masked):
    k = keras.layers
    keras.utils.set_random_seed(3)
    x, mask = keras.Input((6, 4), name="x"), keras.Input((6, 6), name="mask")
    scores = k.Dot(axes=2)([k.Dense(4)(x), k.Dense(4)(x)])
    weights = k.Softmax()(masked(keras, scores, mask))
    model = keras.Model([x, mask], k.Dense(3)(k.Dot(axes=(2, 1))([weights, x])))
    seen = (RNG.random((len(SERIES), 6, 6)) > 0.4) | np.eye(6, dtype=bool)
    data = [SERIES, seen.astype(np.float32)]

    method = QuantizeAware(representative_dataset=lambda: [tuple(data)])
    prepared = method.prepare(model)
    kinds = {e["kind"] for e in method.report if e["treatment"] == "float"}
    assert "Softmax" in kinds
    assert not kinds & {"Dense", "Dot"}
    exact = training_samples.outputs(model, data)
    # With a range down to -1e9, all scores would be alike: 0.5 of the deviation.
    assert rms(training_samples.outputs(prepared, data), exact) < 0.06 * exact.std()
    content = convert(
        method.finalize(prepared),
        quantization="int8",
        verify=False,
        allow_float_fallback=True,
    )
    with runner.Runner(content, num_workers=1) as run:
        got = run.run({"x": data[0], "mask": data[1]})
    assert rms(got, exact) < 0.06 * exact.std()
