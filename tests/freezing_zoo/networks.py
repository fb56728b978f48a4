"""Keras models, of the Keras that `tf.keras` is in this process."""

import functools

import numpy as np
import tensorflow as tf

keras = tf.keras

MODELS = {}
RANDOM = np.random.default_rng(2)
ROWS = RANDOM.standard_normal((2, 6, 4)).astype(np.float32)
IMAGE = RANDOM.standard_normal((2, 8, 8, 3)).astype(np.float32)
IDS = RANDOM.integers(0, 9, (2, 6)).astype(np.int32)
TEXT = np.array([[b"the cat sat"], [b"a dog"]], object)


def model(data, kept=(), save="export"):
    """Registers a function that returns a Keras model."""

    def register(build):
        @functools.wraps(build)
        def write(path):
            keras.utils.set_random_seed(0)
            network = build()
            if save == "export":
                network.export(path)
            else:
                network.save(path, save_format="tf")
            loaded = tf.saved_model.load(path)
            signature = loaded.signatures["serving_default"]
            (name,) = signature.structured_input_signature[1]
            inputs = {"serving_default": {name: data}}
            return {"kept": list(kept), "inputs": inputs}

        MODELS[build.__name__] = write
        return build

    return register


def network(inputs, *layers):
    return keras.Sequential([inputs, *layers])


@model(ROWS)
def dense():
    return network(keras.Input((6, 4)), keras.layers.Dense(3, activation="gelu"))


@model(IMAGE)
def conv_batch_norm():
    built = network(
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(4, 3, padding="same"),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.DepthwiseConv2D(3),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(2, activation="softmax"),
    )
    built.layers[1].set_weights(
        [RANDOM.uniform(0.5, 1.5, 4).astype(np.float32) for _ in range(4)]
    )
    return built


@model(ROWS)
def lstm():
    return network(keras.Input((6, 4)), keras.layers.LSTM(3))


@model(ROWS)
def gru():
    return network(keras.Input((6, 4)), keras.layers.GRU(3, return_sequences=True))


@model(IDS)
def embedding_bidirectional():
    return network(
        keras.Input((6,), dtype="int32"),
        keras.layers.Embedding(9, 4, mask_zero=True),
        keras.layers.Bidirectional(keras.layers.LSTM(3)),
        keras.layers.Dense(2),
    )


@model(ROWS)
def attention():
    inputs = keras.Input((6, 4))
    mixed = keras.layers.MultiHeadAttention(2, 3)(inputs, inputs)
    return keras.Model(inputs, keras.layers.LayerNormalization()(mixed + inputs))


@model(ROWS[:1, :, :])
def normalization():
    layer = keras.layers.Normalization()
    layer.adapt(ROWS)
    return network(keras.Input((6, 4)), layer, keras.layers.Dense(2))


@model(TEXT[:, 0:1])
def text_vectorization():
    layer = keras.layers.TextVectorization(output_sequence_length=5)
    layer.adapt([b"the cat sat on the mat", b"a dog"])
    return network(
        keras.Input((1,), dtype="string"), layer, keras.layers.Embedding(10, 3)
    )


@model(np.array([[b"b"], [b"?"]], object))
def string_lookup():
    return network(
        keras.Input((1,), dtype="string"),
        keras.layers.StringLookup(vocabulary=["a", "b"]),
        keras.layers.Embedding(3, 2),
    )


@model(ROWS, kept=["AssignVariableOp"])
def stateful_rnn():
    return network(
        keras.Input((6, 4), batch_size=2), keras.layers.SimpleRNN(3, stateful=True)
    )


@model(IDS, save="save")
def saved_with_training_functions():
    built = embedding_bidirectional()
    built.compile("adam", "mse")
    return built


if keras.Model.__module__.startswith("keras."):  # Keras 3 only exports.
    del MODELS["saved_with_training_functions"]
