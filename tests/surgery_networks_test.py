"""Channel removal in real architectures, and with training."""

import numpy as np
import pytest
import training_samples
from surgery_samples import largest_error, randomize

from tfopt.surgery import remove_channels_with_report

pytestmark = [pytest.mark.both_keras, pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "options", "fraction"),
    [("MobileNetV2", {"alpha": 0.35}, 0.5), ("ResNet50", {}, 0.3)],
)
def test_architectures_shrink(keras, name, options, fraction):
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(64, 64, 3), classes=10, **options
    )
    removal = remove_channels_with_report(
        randomize(model), sparsity=0.5, round_to=8, strict=True
    )
    assert removal.max_error <= 1e-5
    assert removal.after.parameters < fraction * removal.before.parameters
    assert removal.after.macs < fraction * removal.before.macs
    kept = {group.channels - group.removed for group in removal.groups[:-1]}
    assert all(count % 8 == 0 for count in kept)


def test_fine_tuning_brings_accuracy_back(keras, testdata):
    layers = keras.layers
    keras.utils.set_random_seed(0)
    with np.load(testdata / "mnist.npz") as file:
        images, labels = file["x_train"][:4000], file["y_train"][:4000].astype(np.int32)
    images = images[..., None].astype(np.float32) / 255
    train, test = (images[:3000], labels[:3000]), (images[3000:], labels[3000:])
    x = inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(16, 5, strides=2, activation="relu", name="stem")(x)
    y = layers.Conv2D(24, 3, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(y))
    x = layers.Add()([x, layers.Conv2D(16, 3, padding="same")(y)])
    x = layers.Dense(64, activation="relu")(layers.Flatten()(layers.MaxPool2D()(x)))
    model = keras.Model(inputs, layers.Dense(10)(x))

    def accuracy(model, epochs):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(2e-3), loss)
        if epochs:
            training_samples.built(model)
            model.fit(*train, batch_size=64, epochs=epochs, verbose=0)
        found = training_samples.outputs(model, test[0]).argmax(-1)
        return np.mean(found == test[1])

    before = accuracy(model, 4)
    removal = remove_channels_with_report(model, sparsity=0.5)
    assert largest_error(removal.model, removal.masked_model()) <= 1e-5
    cut = accuracy(removal.model, 0)
    tuned = accuracy(removal.model, 3)
    assert before > 0.93
    assert cut < before
    assert tuned > max(cut, before - 0.05)  # of 1,000 examples: 0.007 is by chance
    assert removal.after.parameters < 0.35 * removal.before.parameters
