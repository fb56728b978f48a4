"""Small networks that are written as Python code: subclassed, custom, with raw ops."""

import numpy as np
import tensorflow as tf

SHAPE = (8, 8, 3)


def subclassed_blocks(keras):
    layers = keras.layers

    class Block(layers.Layer):
        def __init__(self, filters, **options):
            super().__init__(**options)
            self.conv = layers.Conv2D(filters, 3, padding="same")
            self.norm = layers.BatchNormalization(name=f"{self.name}_norm")
            self.drop = layers.Dropout(0.25)

        def call(self, inputs, training=None):
            x = self.norm(self.conv(inputs), training=training)
            return self.drop(keras.activations.relu(x), training=training)

    class Blocks(keras.Model):
        def __init__(self):
            super().__init__(name="blocks")
            self.blocks = [Block(4, name="first"), Block(4, name="second")]
            self.pool = layers.GlobalAveragePooling2D()
            self.top = layers.Dense(3, name="top")

        def call(self, inputs, training=False):
            x = self.blocks[0](inputs, training=training)
            x = x + self.blocks[1](x, training=training)
            if training:
                x = x * 1.0
            return self.top(self.pool(x))

    return called(Blocks(), SHAPE)


def raw_operations(keras):
    layers = keras.layers

    class Raw(keras.Model):
        def __init__(self):
            super().__init__(name="raw")
            self.conv = layers.Conv2D(4, 3, padding="same", name="conv")
            self.hidden = layers.Dense(6, name="hidden")
            self.top = layers.Dense(3, name="top")

        def call(self, inputs):
            x = tf.nn.relu(self.conv(inputs))
            x = tf.concat([x, x[..., :2]], axis=-1)
            x = tf.reshape(x, [tf.shape(x)[0], -1])
            x = tf.nn.relu6(self.hidden(x) * 0.5 + np.float32(0.25))
            return self.top(tf.identity(x))

    return called(Raw(), SHAPE)


def nested_in_functional(keras):
    inputs = keras.Input(SHAPE)
    x = keras.layers.Conv2D(3, 3, padding="same")(inputs)
    x = raw_operations(keras)(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="last")(x))


def functional_operations(keras):
    """Raw operations where the Keras takes them, and `keras.ops`."""
    inputs = keras.Input(SHAPE)
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    if hasattr(keras, "ops"):
        x = keras.ops.relu(x * 2.0)
        x = keras.ops.mean(x, axis=[1, 2]) - keras.ops.max(x, axis=[1, 2])
    else:
        x = tf.nn.relu(x * 2.0)
        x = tf.reduce_mean(x, axis=[1, 2]) - tf.reduce_max(x, axis=[1, 2])
    return keras.Model(inputs, keras.layers.Dense(3, name="top")(x))


def named_inputs(keras):
    layers = keras.layers

    class Siamese(keras.Model):
        def __init__(self):
            super().__init__(name="siamese")
            self.conv = layers.Conv2D(4, 3, name="shared")
            self.pool = layers.GlobalAveragePooling2D()
            self.top = layers.Dense(3, name="top")

        def call(self, inputs):
            left = self.pool(self.conv(inputs["left"]))
            right = self.pool(self.conv(inputs["right"]))
            return {"class": self.top(left * right), "distance": left - right}

    model = Siamese()
    model({name: np.zeros((2, *SHAPE), np.float32) for name in ("left", "right")})
    return model


def attention_block(keras):
    layers = keras.layers
    inputs = keras.Input((6, 8))
    x = layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    x = layers.Add()([x, inputs])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def transformer(keras):
    layers = keras.layers

    class Normalize(layers.Layer):
        """A normalization by operations, with variables of its own."""

        def build(self, shape):
            options = {"shape": (shape[-1],), "initializer": "ones"}
            self.gamma = self.add_weight(name="gamma", **options)
            self.beta = self.add_weight(name="beta", **options)
            self.built = True

        def call(self, inputs):
            centred = inputs - tf.reduce_mean(inputs, axis=-1, keepdims=True)
            variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
            return centred * tf.math.rsqrt(variance + 1e-3) * self.gamma + self.beta

    class Encoder(layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.attention = layers.MultiHeadAttention(2, 4, dropout=0.1)
            self.norms = [Normalize(name="norm1"), Normalize(name="norm2")]
            self.up = layers.Dense(16, activation="relu", name="up")
            self.down = layers.Dense(8, name="down")

        def call(self, inputs, training=None):
            x = self.norms[0](inputs)
            x = inputs + self.attention(x, x, training=training)
            return x + self.down(self.up(self.norms[1](x)))

    inputs = keras.Input((6, 8))
    x = Encoder(name="encoder")(inputs)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3, name="top")(x))


ALL = {
    function.__name__: function
    for function in (
        subclassed_blocks,
        raw_operations,
        nested_in_functional,
        functional_operations,
        named_inputs,
        attention_block,
        transformer,
    )
}


def called(model, shape):
    model(np.zeros((2, *shape), np.float32))
    return model


def randomized(model, seed=0):
    rng = np.random.default_rng(seed)
    model.set_weights(
        [
            rng.uniform(0.5, 1.5, w.shape).astype(np.float32)
            if "variance" in (v.path if hasattr(v, "path") else v.name)
            else rng.normal(0, 0.4, w.shape).astype(np.float32)
            for v, w in zip(model.weights, model.get_weights(), strict=True)
        ]
    )
    return model


def data_for(model, count=16, seed=1):
    """Inputs in the structure that a model takes."""
    rng = np.random.default_rng(seed)
    shape = (6, 8) if len(getattr(model, "input_shape", None) or SHAPE) == 3 else SHAPE
    if model.name == "siamese":
        return {
            name: rng.normal(size=(count, *SHAPE)).astype(np.float32)
            for name in ("left", "right")
        }
    try:
        shape = tuple(model.inputs[0].shape[1:])
    except (AttributeError, TypeError):
        shape = SHAPE
    return rng.normal(size=(count, *shape)).astype(np.float32)
