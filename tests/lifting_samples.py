"""Small networks, exported without a trace of Keras code."""

import numpy as np
import tensorflow as tf

from tfopt import _keras


def images(keras):
    """Convolutions, normalizations, activations, pooling, resizing and a head."""
    layers = keras.layers
    given = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="first")(given)
    x = layers.BatchNormalization(name="first_bn")(x)
    x = layers.ReLU(6.0)(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depth")(x)
    x = layers.BatchNormalization(scale=False, name="depth_bn")(x)
    x = layers.PReLU(shared_axes=[1, 2], name="slopes")(x)
    y = layers.Conv2D(8, 3, dilation_rate=2, padding="same", name="wide")(x)
    x = layers.Add(name="sum")([x, layers.LeakyReLU()(y)])
    x = layers.Conv2DTranspose(4, 3, strides=2, name="back")(x)
    x = layers.MaxPooling2D(2)(layers.ZeroPadding2D(1)(layers.Cropping2D(2)(x)))
    x = layers.UpSampling2D(2)(x)
    x = layers.Conv2D(4, 3, groups=2, activation="swish", name="grouped")(x)
    x = layers.Concatenate()([x, layers.Activation("sigmoid")(x)])
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Dense(8, activation="hard_sigmoid", name="gate")(gate)
    x = layers.Multiply()([x, gate])
    x = layers.GlobalMaxPooling2D()(x)
    x = layers.Dense(6, use_bias=False, name="hidden")(x)
    x = layers.BatchNormalization(name="hidden_bn")(x)
    x = layers.Activation("gelu")(x)
    return keras.Model(given, layers.Dense(4, activation="softmax", name="out")(x))


def sequences(keras):
    """Convolutions of sequences."""
    layers = keras.layers
    given = keras.Input((24, 4), name="wave")
    x = layers.Normalization(mean=[1.0, 2, 3, 4], variance=[4.0, 3, 2, 1])(given)
    x = layers.Conv1D(6, 3, padding="causal", dilation_rate=2, name="causal")(x)
    x = layers.BatchNormalization(name="causal_bn")(x)
    x = layers.MaxPooling1D(2)(layers.Activation("tanh")(x))
    x = layers.SeparableConv1D(5, 3, activation="relu", name="apart")(x)
    x = layers.Permute((2, 1))(layers.AveragePooling1D(2, padding="same")(x))
    x = layers.Rescaling(0.5, offset=-1.0)(x)
    return keras.Model(given, layers.Dense(3, name="out")(layers.Flatten()(x)))


def tokens(keras):
    """A small transformer, with positions that no layer of Keras holds."""
    layers = keras.layers

    class Positions(layers.Layer):
        def build(self, input_shape):
            self.table = self.add_weight(name="table", shape=(6, 8))

        def call(self, inputs):
            return inputs + self.table

    given = keras.Input((6,), dtype="int32", name="ids")
    x = Positions(name="positions")(layers.Embedding(20, 8, name="words")(given))
    y = layers.LayerNormalization(name="norm")(x)
    y = layers.MultiHeadAttention(2, 4, name="attention")(y, y)
    x = layers.Add()([x, y])
    x = layers.Dense(8, activation="gelu", name="feed")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(given, layers.Dense(3, activation="softmax", name="out")(x))


def pairs(keras):
    """Two inputs, one convolution for both, two outputs."""
    layers = keras.layers
    left = keras.Input((8, 8, 3), name="left")
    right = keras.Input((8, 8, 3), name="right")
    shared = layers.Conv2D(4, 3, activation="relu", name="shared")
    x = layers.Flatten()(layers.Concatenate()([shared(left), shared(right)]))
    outputs = {
        "same": layers.Dense(1, activation="sigmoid", name="same")(x),
        "kind": layers.Dense(3, name="kind")(x),
    }
    return keras.Model({"left": left, "right": right}, outputs)


SAMPLES = {each.__name__: each for each in (images, sequences, tokens, pairs)}


def randomized(model):
    """Gives a model weights of which none can be mistaken for another."""
    generator = np.random.default_rng(0)
    model.set_weights(
        [
            (
                generator.uniform(0.2, 1, weight.shape)
                if weight.ndim == 1
                else generator.normal(size=weight.shape) * 0.3
            ).astype(weight.dtype)
            for weight in model.get_weights()
        ]
    )
    return model


def export(model, folder):
    """Writes a SavedModel as its Keras does; returns the path as text."""
    if _keras.is_keras3(model):
        model.export(folder, verbose=False)
    else:
        model.save(folder, save_format="tf", include_optimizer=False)
    return str(folder)


def inputs_of(model, count=4):
    """Returns random inputs by name."""
    generator = np.random.default_rng(1)
    return {
        tensor.name.split(":")[0]: (
            generator.integers(0, 6, (count, *tensor.shape[1:])).astype("int32")
            if "int" in str(tensor.dtype)
            else generator.normal(size=(count, *tensor.shape[1:])).astype("float32")
        )
        for tensor in model.inputs
    }


def outputs_of(model, arrays):
    """Returns the outputs, as a list in the order of their names."""
    takes_names = isinstance(model.input, dict)
    given = arrays if takes_names else next(iter(arrays.values()))
    return [np.asarray(x) for x in tf.nest.flatten(model(given, training=False))]
