"""Small networks of every topology that channel removal has to understand."""

import numpy as np

from tfopt import _keras
from tfopt._keras import flatten, variables


def randomize(model, seed=0):
    """Random weights everywhere, so that no bias or statistic is what it began as."""
    rng = np.random.default_rng(seed)
    for weight in variables.weights(model):
        values = rng.normal(0, 0.3, weight.shape)
        if "variance" in weight.name:
            values = rng.uniform(0.5, 2, weight.shape)
        elif len(weight.shape) > 1:
            read = weight.shape[: -2 if "depthwise" in weight.name else -1]
            values = rng.normal(0, 1.5 / np.sqrt(np.prod(read)), weight.shape)
        elif "gamma" in weight.name:
            values += np.sign(values)
        weight.variable.assign(values.astype(np.float32))
    return model


def functional(keras, shape, body, **options):
    inputs = keras.Input(shape, **options)
    return randomize(keras.Model(inputs, body(keras.layers, inputs)))


def plain(keras):
    layers = keras.layers
    return randomize(
        keras.Sequential(
            [
                keras.Input((12, 12, 3)),
                layers.Conv2D(8, 3, activation="relu", name="conv1"),
                layers.BatchNormalization(name="norm"),
                layers.MaxPooling2D(name="pool"),
                layers.Conv2D(12, 3, padding="same", name="conv2"),
                layers.ReLU(name="relu"),
                layers.Flatten(name="flatten"),
                layers.Dense(16, activation="relu", name="hidden"),
                layers.Dropout(0.5, name="dropout"),
                layers.Dense(4, name="logits"),
            ]
        )
    )


def residual(keras):
    def body(layers, x):
        x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(x)
        x = y = layers.BatchNormalization()(x)
        y = layers.Conv2D(10, 3, padding="same", name="inner")(y)
        y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
        y = layers.Conv2D(8, 3, padding="same", name="back")(y)
        x = layers.ReLU()(layers.Add()([x, y]))
        y = layers.Conv2D(8, 1, name="third")(x)
        x = layers.Maximum()([layers.Subtract()([x, y]), layers.Average()([x, y])])
        return layers.Dense(5)(layers.GlobalAveragePooling2D()(x))

    return functional(keras, (8, 8, 3), body)


def mobile(keras):
    """Depthwise, separable, multipliers above one, padding, an activation as layer."""

    def body(layers, x):
        x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="stem")(x)
        x = layers.Activation("relu6")(layers.BatchNormalization()(x))
        x = layers.ZeroPadding2D(1)(x)
        x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
        x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x)
        x = layers.BatchNormalization()(x)
        x = layers.Conv2D(12, 1, name="pointwise")(x)
        x = layers.SeparableConv2D(6, 3, depth_multiplier=2, name="separable")(x)
        x = layers.PReLU(shared_axes=[1, 2])(layers.Cropping2D(1)(x))
        x = layers.SeparableConv2D(10, 3, padding="same", use_bias=False)(x)
        x = layers.AveragePooling2D(2, padding="same")(layers.LeakyReLU()(x))
        return layers.Dense(3)(layers.GlobalMaxPooling2D(keepdims=True)(x))

    return functional(keras, (20, 20, 3), body)


def squeeze_excite(keras):
    def body(layers, x):
        x = layers.Conv2D(8, 3, activation="swish", padding="same", name="conv")(x)
        y = layers.GlobalAveragePooling2D()(x)
        y = layers.Reshape((1, 1, 8))(y)
        y = layers.Conv2D(4, 1, activation="relu", name="squeeze")(y)
        y = layers.Conv2D(8, 1, activation="sigmoid", name="excite")(y)
        x = layers.Multiply()([x, y])
        y = layers.Dense(6, activation="relu")(layers.GlobalMaxPooling2D()(x))
        y = layers.Dense(8, activation="hard_sigmoid", name="gate")(y)
        x = layers.Multiply()([x, layers.Reshape((1, 1, 8))(y)])
        return layers.Conv2D(3, 3, name="out")(x)

    return functional(keras, (8, 8, 3), body)


def dense_blocks(keras):
    """Concatenations of concatenations, each normalized."""

    def body(layers, x):
        x = layers.Conv2D(6, 3, padding="same", name="stem")(x)
        for index in range(3):
            y = layers.ReLU()(layers.BatchNormalization()(x))
            y = layers.Conv2D(4, 3, padding="same", name=f"grow{index}")(y)
            x = layers.Concatenate()([x, y])
        left = layers.Conv2D(5, 1, name="left")(x)
        right = layers.Conv2D(13, 1, name="right")(x)
        x = layers.Add()([layers.Concatenate()([left, right]), layers.Conv2D(18, 1)(x)])
        return layers.Dense(3)(layers.Flatten()(x))

    return functional(keras, (6, 6, 2), body)


def branches(keras):
    """Concatenated branches that are added to a whole."""

    def body(layers, x):
        left = layers.Conv2D(5, 3, padding="same", activation="relu", name="left")(x)
        right = layers.Conv2D(7, 1, activation="tanh", name="right")(x)
        whole = layers.Conv2D(12, 3, padding="same", name="whole")(x)
        x = layers.Add()([layers.Concatenate()([left, right]), whole])
        above = layers.Conv2D(12, 1, name="above")(x)
        x = layers.Concatenate(axis=1)([x, above])
        x = layers.UpSampling2D(2)(layers.MaxPooling2D(2)(x))
        return layers.Dense(3)(layers.Flatten()(x))

    return functional(keras, (6, 6, 2), body)


def generator(keras):
    """From a vector to an image: Reshape makes channels of units."""

    def body(layers, x):
        x = layers.Dense(4 * 4 * 8, use_bias=False, name="project")(x)
        x = layers.LeakyReLU()(layers.BatchNormalization()(x))
        x = layers.Reshape((4, 4, 8))(x)
        x = layers.Conv2DTranspose(6, 3, strides=2, padding="same", name="up1")(x)
        x = layers.ELU()(layers.BatchNormalization()(x))
        x = layers.Conv2DTranspose(4, 3, strides=2, activation="relu", name="up2")(x)
        return layers.Conv2DTranspose(1, 3, activation="tanh")(x)

    return functional(keras, (10,), body)


def sequence(keras):
    """Tokens, causal convolutions over time, Permute and RepeatVector."""

    def body(layers, x):
        x = layers.Embedding(20, 12, name="table")(x)
        x = layers.SpatialDropout1D(0.1)(x)
        x = layers.Conv1D(8, 3, padding="causal", dilation_rate=2, name="causal")(x)
        x = layers.ReLU()(layers.ZeroPadding1D(1)(x))
        x = layers.SeparableConv1D(6, 3, name="separable")(x)
        x = layers.MaxPooling1D(2)(x)
        x = layers.Permute((2, 1))(layers.Permute((2, 1))(x))
        x = layers.Conv1DTranspose(6, 3, name="up")(x)
        x = layers.GlobalAveragePooling1D()(layers.UpSampling1D(2)(x))
        x = layers.RepeatVector(3)(layers.Dense(7, activation="gelu")(x))
        return layers.Dense(2)(layers.Flatten()(x))

    return functional(keras, (10,), body, dtype="int32")


def volume(keras):
    def body(layers, x):
        x = layers.Conv3D(6, 2, activation="relu", name="conv")(x)
        x = layers.MaxPooling3D(2)(layers.ZeroPadding3D(1)(x))
        x = layers.Conv3DTranspose(5, 2, name="up")(layers.Cropping3D(0)(x))
        x = layers.GlobalMaxPooling3D()(layers.BatchNormalization()(x))
        return layers.Dense(2)(x)

    return functional(keras, (5, 5, 5, 2), body)


def nested(keras):
    """Nested models, equal names inside, a frozen one, and shared layers."""
    layers = keras.layers

    def block(name):
        parts = [
            keras.Input((6, 6, 8)),
            layers.Conv2D(8, 3, padding="same", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
        ]
        return keras.Sequential(parts, name=name)

    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    first, second = block("first"), block("second")
    second.trainable = False
    x = layers.Add()([second(first(x)), first(x)])
    shared = layers.Conv2D(8, 1, activation="relu", name="shared")
    y = shared(x)
    z = layers.Conv2D(8, 1, name="other")(y)
    x = layers.Concatenate()([shared(z), y])
    outputs = layers.Dense(4)(layers.Flatten()(x))
    return randomize(keras.Model(inputs, outputs))


def many_ends(keras):
    """Two inputs as a dictionary, three outputs, one of them from within."""
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    vector = keras.Input((5,), name="vector")
    x = layers.Conv2D(8, 3, activation="relu", name="conv")(image)
    seen = layers.Conv2D(6, 1, name="seen")(x)
    y = layers.Dense(6, activation="tanh", name="embed")(vector)
    y = layers.Dense(6, name="embed2")(y)
    z = layers.Multiply()([layers.Conv2D(6, 1, name="unseen")(x), y])
    pooled = layers.GlobalAveragePooling2D()(z)
    joined = layers.Concatenate()([pooled, vector])
    first = layers.Dense(3, activation="softmax", name="first")(joined)
    second = layers.Dense(2, name="second")(layers.Dense(9, name="mid")(joined))
    return randomize(
        keras.Model({"image": image, "vector": vector}, [first, second, seen])
    )


def grouped(keras):
    def body(layers, x):
        x = layers.Conv2D(12, 3, activation="relu", name="conv")(x)
        x = layers.Conv2D(24, 3, groups=4, activation="relu", name="groups")(x)
        return layers.Dense(3)(layers.GlobalAveragePooling2D()(x))

    return functional(keras, (8, 8, 3), body)


def operators(keras):
    """Arithmetic written with operators, and means over positions."""
    import tensorflow as tf

    legacy = hasattr(keras, "__internal__")

    def body(layers, x):
        x = layers.Conv2D(8, 3, padding="same", name="conv")(x)
        y = layers.Conv2D(8, 1, name="other")(x)
        x = (x + y) * 0.5 - y
        relu6 = tf.nn.relu6 if legacy else keras.ops.relu6
        x = x * relu6(x + 3.0) / 6.0
        mean = tf.reduce_mean if legacy else keras.ops.mean
        return layers.Dense(3)(mean(x, axis=[1, 2]))

    return functional(keras, (6, 6, 2), body)


def refusing(keras):
    """Layers without a rule, with a layer on either side."""

    def body(layers, x):
        x = layers.Dense(8, name="before")(x)
        x = layers.LayerNormalization(name="norm")(x)
        x = layers.Dense(9, name="between")(x)
        x = layers.LSTM(6, name="lstm")(x)
        x = layers.Dense(10, activation="softmax", name="mixing")(x)
        x = layers.Dense(11, name="free")(x)
        return layers.Dense(3, name="out")(x)

    return functional(keras, (4, 5), body)


def wrapped(keras):
    """Layers that hold others, which stay as they are between those that are cut."""

    def body(layers, x):
        x = layers.TimeDistributed(layers.Dense(6, name="held"), name="each")(x)
        x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
        x = layers.GlobalAveragePooling1D()(x)
        return layers.Dense(2)(layers.Dense(16, name="free")(x))

    return functional(keras, (5, 3), body)


ZOO = {
    function.__name__: function
    for function in (
        *(plain, residual, mobile, squeeze_excite, branches, generator, sequence),
        *(
            volume,
            nested,
            many_ends,
            grouped,
            operators,
            refusing,
            wrapped,
            dense_blocks,
        ),
    )
}


def inputs_of(model, seed=1, batch=3):
    """Random inputs in the structure of the model's inputs."""
    import tensorflow as tf

    rng = np.random.default_rng(seed)

    def random(tensor):
        shape = (batch, *tensor.shape[1:])
        if "int" in str(tensor.dtype):
            return rng.integers(0, 20, shape).astype(np.int32)
        return rng.normal(size=shape).astype(np.float32)

    if len(model.inputs) == 1:
        return random(model.inputs[0])
    return tf.nest.map_structure(random, model.input)


def run(model, inputs):
    """Flat list of outputs as arrays."""
    import tensorflow as tf

    return [np.asarray(x) for x in tf.nest.flatten(model(inputs, training=False))]


def largest_error(model, reference, **options):
    """Largest difference as a fraction of the largest output, over all outputs."""
    inputs = inputs_of(reference, **options)
    return max(
        np.abs(got - want).max() / np.abs(want).max()
        for got, want in zip(run(model, inputs), run(reference, inputs), strict=True)
    )


def weights_by_layer(model):
    """Path, index and array of all weights, in the order of the flat model."""
    return [
        (spec.path, index, array)
        for spec in flatten.flatten(model, open_layers=False).layers()
        for index, array in enumerate(spec.weights or [])
    ]


def zeroed(model, changes):
    """A copy in which slices of weights are zero: weight name -> (axis, indices)."""
    copy = _keras.clone(model)
    by_name = {weight.name: weight.variable for weight in variables.weights(copy)}
    for name, (axis, indices) in changes.items():
        array = by_name[name].numpy()
        np.moveaxis(array, axis, 0)[list(indices)] = 0
        by_name[name].assign(array)
    return copy
