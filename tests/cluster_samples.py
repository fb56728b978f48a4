"""Models and measurements that the tests of clustering share."""

import numpy as np
import prune_samples
import training_samples

from tfopt import runner, tflite_file
from tfopt._keras import variables
from tfopt.conversion import convert

fit, compiled, dense = prune_samples.fit, prune_samples.compiled, prune_samples.dense


def distinct(model):
    """Number of different values by kernel name."""
    return {
        weight.name: len(np.unique(weight.variable.numpy()))
        for weight in variables.kernels(model)
    }


def watch(keras):
    """A callback whose `seen` has the most different values of a kernel, each step."""

    class Watch(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seen = []

        def on_train_batch_end(self, batch, logs=None):
            self.seen.append(max(distinct(self.model).values()))

    return Watch()


def images(keras, normalized=True, seed=0):
    """A small convolutional network for [6, 6, 2]; BatchNormalization if asked."""
    layers = keras.layers
    norm = [layers.BatchNormalization(momentum=0.8)] if normalized else []
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(6, 3, name="conv"),
            *norm,
            layers.ReLU(),
            layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
            layers.Flatten(),
            layers.Dense(5, name="head"),
        ]
    )


def image_data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(48, 6, 6, 2)).astype(np.float32), rng.integers(0, 5, 48)


def fit_images(keras, model, callbacks, epochs=3):
    x, y = image_data()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    training_samples.built(model)
    model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=callbacks)


def codes(model):
    """int8 codes of the kernels of the `.tflite` file that a model becomes.

    The file computes what the model does, to within a few of its steps.
    """
    x, _ = image_data()
    content = convert(model, quantization="int8", verify=False)
    with runner.Runner(content, num_workers=1) as run:
        got = run.run(x)
    expected = training_samples.outputs(model, x)
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    subgraph = tflite_file.read(content).subgraphs[0]
    return [
        subgraph.tensors[operator.inputs[1]].codes()
        for operator in subgraph.operators
        if operator.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    ]


def most_codes(model):
    return max(len(np.unique(kernel)) for kernel in codes(model))
