"""One tiny classifier in all formats, for what measures models."""

import pathlib

import numpy as np
import runner_samples
import tensorflow as tf

INPUT, OUTPUT = "image", "scores"
ROWS = 64


def oracle(kernel, bias, x):
    logits = x @ kernel + bias
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


class Module(tf.Module):
    """image [?, 8] -> scores [?, 4], with variables."""

    def __init__(self, kernel, bias):
        super().__init__()
        self.kernel, self.bias = tf.Variable(kernel), tf.Variable(bias)

    @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32, INPUT)])
    def serve(self, image):
        return {OUTPUT: tf.nn.softmax(tf.matmul(image, self.kernel) + self.bias)}


def write_all(folder):
    """Writes the model in each format; returns inputs and what it gives for them."""
    folder = pathlib.Path(folder)
    random = np.random.default_rng(0)
    kernel = random.normal(size=(8, 4)).astype(np.float32)
    bias = random.normal(size=4).astype(np.float32)
    data = random.normal(size=(ROWS, 8)).astype(np.float32)
    write_keras(folder / "model.keras", kernel, bias)
    module = Module(kernel, bias)
    tf.saved_model.save(module, str(folder / "saved"), signatures=module.serve)
    write_graph(folder / "graph.pb", kernel, bias)

    def call(image):
        return tf.nn.softmax(tf.matmul(image, kernel) + bias)

    def quantize(converter):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([row[None]] for row in data)
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8

    spec = runner_samples.spec(None, 8, name=INPUT)
    (folder / "float.tflite").write_bytes(runner_samples.convert(call, spec))
    (folder / "int8.tflite").write_bytes(
        runner_samples.convert(call, spec, setting=quantize)
    )
    (folder / "broken.tflite").write_bytes(b"\x18\0\0\0TFL3 and no more")
    return data, oracle(kernel, bias, data)


def write_keras(path, kernel, bias):
    keras = tf.keras
    image = keras.Input((8,), name=INPUT)
    layer = keras.layers.Dense(4, activation="softmax", name=OUTPUT)
    model = keras.Model(image, layer(image))
    model.set_weights([kernel, bias])
    model.save(path)


def write_graph(path, kernel, bias):
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(tf.float32, [None, 8], INPUT)
        tf.nn.softmax(tf.matmul(image, kernel) + bias, name=OUTPUT)
    path.write_bytes(graph.as_graph_def().SerializeToString())
