"""Networks, data and measurements that the tests of QuantizeAware share."""

import dataclasses

import numpy as np
import training_samples

from tfopt import _keras, affine, runner, tflite_file
from tfopt._keras import fake_quantize
from tfopt.conversion import convert

outputs = training_samples.outputs


def digits(testdata, count):
    """Digits at 14×14 in [0, 1], float32 [n, 14, 14, 1], and their labels."""
    with np.load(testdata / "mnist.npz") as arrays:
        images = arrays["x_train"][:count].astype(np.float32) / 255
        labels = arrays["y_train"][:count].astype(np.int32)
    return images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4))[..., None], labels


def quickstart(keras):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((14, 14, 1)),
            layers.Reshape((14, 14, 1)),
            layers.Conv2D(8, 3, activation="relu", name="conv"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, name="logits"),
        ]
    )


def mobile(keras):
    """Every layer kind of the first scope, with branches and BatchNormalization."""
    layers = keras.layers

    def normalized(x, layer, activation):
        return activation(layers.BatchNormalization(momentum=0.8)(layer(x)))

    inputs = keras.Input((14, 14, 1))
    conv = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)
    x = normalized(inputs, conv, layers.ReLU(6.0))
    x = layers.ZeroPadding2D(1)(x)
    x = normalized(x, layers.DepthwiseConv2D(3), layers.Activation("relu"))
    x = y = normalized(x, layers.Conv2D(16, 1), layers.Activation("relu6"))
    x = normalized(
        x, layers.DepthwiseConv2D(3, padding="same"), layers.Activation("linear")
    )
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.AveragePooling2D(2)(x)
    wide = layers.Conv2D(12, 3, padding="same", activation="relu", name="wide")(x)
    thin = layers.Conv2D(4, 1, name="thin")(x)
    x = layers.Concatenate()([wide, thin, x])
    x = layers.GlobalAveragePooling2D()(layers.Dropout(0.1)(x))
    outputs = layers.Dense(10, activation="softmax")(x)
    return keras.Model(inputs, outputs, name="mobile")


def nested(keras):
    """Nested models with equal names inside, and a layer that is called twice."""
    layers = keras.layers

    def block(name):
        parts = [
            keras.Input((7, 7, 8)),
            layers.Conv2D(8, 3, padding="same", name="conv"),
            layers.BatchNormalization(momentum=0.8, name="norm"),
            layers.ReLU(name="relu"),
        ]
        return keras.Sequential(parts, name=name)

    inputs = keras.Input((14, 14, 1))
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(inputs)
    x = layers.Add()([block("second")(block("first")(x)), x])
    x = layers.Flatten()(layers.MaxPooling2D(2)(x))
    shared = layers.Dense(16, activation="relu", name="shared")
    x = shared(layers.Dense(16, activation="tanh")(x))
    head = keras.Sequential([keras.Input((16,)), layers.Dense(10)], name="head")
    return keras.Model(inputs, head(shared(x)))


def compiled(keras, model, **options):
    # Of the networks here, `mobile` returns probabilities.
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=model.name != "mobile"
    )
    model.compile(keras.optimizers.Adam(5e-3), loss, **options)
    return training_samples.built(model)


def ranges(model):
    """Bounds of all activation ranges of a prepared model, in order."""
    cls = fake_quantize.classes(_keras.module_of(model)).ActivationRange
    return [layer.bounds() for layer in model.layers if isinstance(layer, cls)]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How a `.tflite` file compares with the fake-quantized model."""

    argmax_equal: float
    mean_error_steps: float

    @property
    def is_good(self):
        return self.argmax_equal >= 0.995 and self.mean_error_steps <= 1


def agreement(content, model, images):
    """Compares a file with a model, in steps of the output's int8 scale."""
    subgraph = tflite_file.read(content).subgraphs[0]
    dequantize = [op for op in subgraph.operators if op.name == "DEQUANTIZE"][-1]
    (step,) = subgraph.tensors[dequantize.inputs[0]].scale
    expected = outputs(model, images)
    with runner.Runner(content, num_workers=1) as run:
        got = run.run(images)
    return Agreement(
        argmax_equal=float(np.mean(got.argmax(-1) == expected.argmax(-1))),
        mean_error_steps=float(np.abs(got - expected).mean() / step),
    )


def operators(content):
    """Names of the operators in order, conversions at the border left out."""
    subgraph = tflite_file.read(content).subgraphs[0]
    return [operator.name for operator in subgraph.operators][1:-1]


def kernels(content):
    """int8 codes of the constants with more than one axis that operators multiply."""
    subgraph = tflite_file.read(content).subgraphs[0]
    names = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    return [
        subgraph.tensors[operator.inputs[1]].codes()
        for operator in subgraph.operators
        if operator.name in names
    ]


def to_tflite(model):
    return convert(model, quantization="int8", verify=False)


def expected_codes(weights, bits, channel_axes=(-1,)):
    return affine.quantize_weights(weights, bits=bits, channel_axes=channel_axes)[0]
