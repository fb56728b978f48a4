"""A model in quantization-aware training, as a SavedModel and in a checkpoint."""

import numpy as np
import pytest
import tensorflow as tf
import training_samples

import tfopt
from tfopt import runner
from tfopt._keras import is_keras3

pytestmark = pytest.mark.both_keras

RNG = np.random.default_rng(0)
IMAGES = RNG.random((32, 8, 8, 1), np.float32)
LABELS = RNG.integers(0, 3, 32)


def compiled(keras):
    k = keras.layers
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            k.Conv2D(4, 3),
            k.BatchNormalization(),
            k.ReLU(),
            k.Flatten(),
            k.Dense(3),
        ]
    )
    methods = [tfopt.QuantizeAware(representative_dataset=IMAGES)]
    student = tfopt.prepare(model, methods)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile(keras.optimizers.Adam(1e-2), loss)
    return training_samples.built(student), methods


def fit(student, methods):
    student.fit(
        *(IMAGES, LABELS), batch_size=16, shuffle=False, verbose=0, callbacks=methods
    )


def test_a_saved_model_of_it_computes_and_converts(keras, tmp_path):
    student, methods = compiled(keras)
    fit(student, methods)
    expected = student.predict(IMAGES, verbose=0)
    path = str(tmp_path / "saved")
    if is_keras3(student):
        student.export(path, verbose=False)
    else:
        student.save(path)
    loaded = tf.saved_model.load(path)
    (outputs,) = loaded.signatures["serving_default"](tf.constant(IMAGES)).values()
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    content = tfopt.convert(path, quantization="int8")
    with runner.Runner(content, num_workers=1) as run:
        error = np.abs(run.run(IMAGES) - expected)
    assert error.mean() < np.ptp(expected) / 255

    if not is_keras3(student):
        again = keras.models.load_model(path)
        np.testing.assert_array_equal(again.predict(IMAGES, verbose=0), expected)
        fit(again, methods)
        assert np.any(again.predict(IMAGES, verbose=0) != expected)
        tfopt.finalize(again, methods)


def test_a_checkpoint_with_its_optimizer_goes_on_the_same_way(keras, tmp_path):
    student, methods = compiled(keras)
    fit(student, methods)
    saved = tf.train.Checkpoint(model=student, optimizer=student.optimizer)
    path = saved.save(str(tmp_path / "state"))
    fit(student, methods)
    expected = student.predict(IMAGES, verbose=0)

    again, methods = compiled(keras)
    restored = tf.train.Checkpoint(model=again, optimizer=again.optimizer)
    restored.restore(path)
    fit(again, methods)
    np.testing.assert_array_equal(again.predict(IMAGES, verbose=0), expected)
    assert int(np.asarray(again.optimizer.iterations)) == 4

    fresh, methods = compiled(keras)
    fit(fresh, methods)  # without what was restored
    assert np.any(fresh.predict(IMAGES, verbose=0) != expected)
