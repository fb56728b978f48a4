"""Networks, data and plain interpreters for the tests of conversion."""

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tfopt import affine

MODES = ("none", "dynamic", "float16", "int8")
RNG = np.random.default_rng(0)
IMAGES = RNG.random((48, 28, 28), dtype=np.float32)


def digits(keras, kernel=None):
    """The MNIST network; `kernel` replaces the Dense kernel."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((28, 28), name="image"),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(12, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, name="logits"),
        ]
    )
    if kernel is not None:
        model.layers[-1].set_weights([kernel, np.zeros(10, np.float32)])
    return model


def residual(keras):
    """Conv, BatchNorm, ReLU6, depthwise, Add, global pooling, softmax."""
    layers = keras.layers
    keras.utils.set_random_seed(1)
    inputs = layers.Input((16, 16, 3), name="image")
    generator = np.random.default_rng(1)

    def normed(x):
        norm = layers.BatchNormalization()
        x = norm(x)
        size = x.shape[-1]
        norm.set_weights(
            [generator.uniform(low, 1.5, size) for low in (0.5, -1, -1, 0.5)],
        )
        return layers.ReLU(6.0)(x)

    x = normed(layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(inputs))
    y = normed(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
    y = normed(layers.Conv2D(16, 1, use_bias=False)(y))
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="probs")(x))


def two_by_two(keras):
    """Two inputs whose alphabetical order is not their own, two outputs likewise."""
    layers = keras.layers
    keras.utils.set_random_seed(2)
    right = layers.Input((6, 6, 3), name="right")
    left = layers.Input((8,), name="left")
    x = layers.Flatten()(layers.Conv2D(8, 3, activation="relu")(right))
    x = layers.Concatenate()([x, layers.Dense(16, activation="relu")(left)])
    score = layers.Dense(1, activation="sigmoid", name="score")(x)
    return keras.Model([right, left], [score, layers.Dense(3, name="kind")(x)])


NETWORKS = {"digits": digits, "residual": residual, "two_by_two": two_by_two}
INPUTS = {
    "digits": {"image": IMAGES},
    "residual": {"image": RNG.normal(size=(48, 16, 16, 3)).astype(np.float32)},
    "two_by_two": {
        "left": RNG.normal(size=(48, 8)).astype(np.float32),
        "right": RNG.random((48, 6, 6, 3), dtype=np.float32),
    },
}
# Lowest signal-to-noise ratio that the networks above may have, in dB: about 6 dB
# below what they reach.
SQNR = {"none": 100, "float16": 60, "dynamic": 35, "int8": 27}


def run(content, inputs):
    """Runs the first signature with a plain interpreter; quantizes by hand."""
    interpreter = Interpreter(model_content=content)
    (key,) = interpreter.get_signature_list()
    runner = interpreter.get_signature_runner(key)
    given = {}
    for name, detail in runner.get_input_details().items():
        value = inputs[name]
        if detail["dtype"] != value.dtype:
            limits = np.iinfo(detail["dtype"])
            value = affine.quantize(
                value,
                *detail["quantization"],
                minimum=limits.min,
                maximum=limits.max,
            )
        given[name] = value
    results = runner(**given)
    for name, detail in runner.get_output_details().items():
        if detail["dtype"] in (np.int8, np.uint8):
            results[name] = affine.dequantize(results[name], *detail["quantization"])
    return results


def predict(model, inputs):
    """The model's outputs by name."""
    tensors = [tf.constant(inputs[item.name]) for item in model.inputs]
    outputs = model(tensors if len(tensors) > 1 else tensors[0])
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    names = getattr(model, "output_names", None) or [model.layers[-1].name]
    return {name: value.numpy() for name, value in zip(names, outputs, strict=True)}


def sqnr(reference, value):
    # Never quite zero: equal outputs count as 200 dB.
    noise = np.mean((reference.astype(np.float64) - value) ** 2) + 1e-20
    return 10 * np.log10(np.mean(reference.astype(np.float64) ** 2) / noise)


def trained(*, output=True, inner=True):
    """The MNIST network as QAT leaves it: fixed ranges, weights as plain floats."""
    generator = np.random.default_rng(2)
    kernel = generator.normal(size=(3, 3, 1, 12)).astype(np.float32) / 3
    weights = generator.normal(size=(2028, 10)).astype(np.float32) / 30

    def quantized(x, low, high):
        return tf.quantization.fake_quant_with_min_max_args(x, low, high)

    def function(image):
        x = quantized(tf.reshape(image, [-1, 28, 28, 1]), 0, 1)
        x = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "VALID"))
        x = quantized(x, 0, 4) if inner else x
        x = tf.reshape(tf.nn.max_pool2d(x, 2, 2, "VALID"), [-1, 2028]) @ weights
        return {"logits": quantized(x, -8, 8) if output else x}

    return tf.function(function, input_signature=[tf.TensorSpec([None, 28, 28])])


def one_line(raised):
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 900
    return text


def spec(*shape, dtype=tf.float32):
    return tf.TensorSpec(shape, dtype, "x")
