"""Models whose classes train in a way of their own, and are made anew."""

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt import _keras

pytestmark = pytest.mark.both_keras

RNG = np.random.default_rng(0)
IMAGES = RNG.random((32, 6, 6, 1), np.float32)
LABELS = RNG.integers(0, 3, 32)


def own(keras, step):
    """A subclassed model with state, and a `train_step` as given."""
    k = keras.layers

    class Own(keras.Model):
        def __init__(self, factor=0.5):
            super().__init__()
            self.factor = factor
            self.conv = k.Conv2D(4, 3, activation="relu")
            self.norm = k.BatchNormalization()
            self.top = k.Dense(3)
            self.augment = [k.GaussianNoise(0.1)]
            self.tracker = keras.metrics.Mean(name="mine")

        def call(self, inputs, training=None):
            x = self.norm(self.conv(inputs), training=training)
            return self.top(x[:, 1, 1, :])

        @property
        def metrics(self):
            return [self.tracker]

        def train_step(self, data):
            return step(self, data)

        def test_step(self, data):
            self.tracker.update_state(7.0)
            return {"mine": self.tracker.result()}

    model = Own(0.25)
    model(IMAGES[:2])
    return model


def by_tape(model, data):
    x, y = data
    with tf.GradientTape() as tape:
        outputs = model(model.augment[0](x, training=True), training=True)
        wrong = tf.nn.sparse_softmax_cross_entropy_with_logits(y, outputs)
        loss = model.factor * tf.reduce_mean(wrong)
    gradients = tape.gradient(loss, model.trainable_variables)
    assert None not in gradients
    model.optimizer.apply_gradients(
        zip(gradients, model.trainable_variables, strict=True)
    )
    model.tracker.update_state(loss)
    return {"mine": model.tracker.result()}


def past_the_model(model, data):
    model.top(data[0])


def fitted(model, methods, **options):
    student = tfopt.prepare(model, methods)
    student.compile(optimizer="adam", **options)
    history = student.fit(
        *(IMAGES, LABELS),
        validation_data=(IMAGES, LABELS),
        verbose=0,
        callbacks=methods,
    )
    return student, history.history


def methods():
    prune = tfopt.Prune(final_sparsity=0.5, end_step=1)
    return [tfopt.QuantizeAware(representative_dataset=IMAGES), prune]


def test_a_subclassed_model_trains_by_its_own_step(keras, tmp_path):
    model, used = own(keras, by_tape), methods()
    before = model.get_weights()
    student, history = fitted(model, used)
    assert student.factor == 0.25
    assert history["val_mine"] == [7.0]
    assert history["mine"][0] != 7.0
    assert student.tracker is not model.tracker
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    expected = student.predict(IMAGES, verbose=0)

    path = str(tmp_path / "state.weights.h5")
    student.save_weights(path)
    again = tfopt.prepare(model, methods())
    again.load_weights(path)
    np.testing.assert_array_equal(again.predict(IMAGES, verbose=0), expected)
    copy = _keras.clone(student)
    assert copy.factor == 0.25
    np.testing.assert_array_equal(copy.predict(IMAGES, verbose=0), expected)
    with pytest.raises(NotImplementedError, match="save_weights"):
        student.save(tmp_path / "whole.keras")

    final = tfopt.finalize(student, used)
    assert not hasattr(type(final), "original_class")
    assert type(final).train_step is keras.Model.train_step
    np.testing.assert_allclose(final.predict(IMAGES, verbose=0), expected, atol=1e-5)
    keras.models.load_model(saved(final, tmp_path / "final.keras"))


def saved(model, path):
    model.save(path)
    return path


def test_layers_of_the_original_model_cannot_be_used(keras):
    student = tfopt.prepare(own(keras, past_the_model), [tfopt.QuantizeAware()])
    student.compile(optimizer="adam", run_eagerly=True)
    with pytest.raises(tfopt.TfoptError, match=r"self\(inputs.*Own.top of class Dense"):
        student.fit(IMAGES, LABELS, verbose=0)
    assert not hasattr(student, "top")
    assert not hasattr(student, "nowhere")


def test_classes_that_make_their_own_graph(keras):
    class Twice:
        def train_step(self, data):
            super().train_step(data)
            return super().train_step(data)

    def layers():
        k = keras.layers
        return [k.Conv2D(4, 3, activation="relu"), k.Flatten(), k.Dense(3)]

    class Graph(Twice, keras.Model):
        def __init__(self):
            x = y = keras.Input((6, 6, 1))
            for layer in layers():
                y = layer(y)
            super().__init__(x, y)

    class Stack(Twice, keras.Sequential):
        pass

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for model in (Graph(), Stack([keras.Input((6, 6, 1)), *layers()])):
        student, _ = fitted(model, methods(), loss=loss)
        assert int(np.asarray(student.optimizer.iterations)) == 2
