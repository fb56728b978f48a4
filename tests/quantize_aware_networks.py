"""Small networks, one for each family of architectures, for QuantizeAware's matrix.

Each is a function of `keras.layers` and the inputs; `NETWORKS` has the shapes of the
inputs too, and what is known to stay float.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Network:
    """A network.

    Attributes:
        build: Function of `keras.layers` and the inputs, which returns the outputs.
        shapes: Of the inputs, without batch; those of type int are indices below 20.
        floats: Kinds of the layers that stay float.
        exclude: What the user leaves float.
        keras3: It needs what only Keras 3 has.
    """

    build: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    indices: bool = False
    floats: frozenset[str] = frozenset()
    exclude: tuple[str, ...] | None = None
    keras3: bool = False

    def model(self, keras):
        """Builds it, with random weights everywhere: biases and statistics, too."""
        keras.utils.set_random_seed(1)
        dtype = "int32" if self.indices else "float32"
        inputs = [
            keras.Input(shape, dtype=dtype, name=f"in{number}")
            for number, shape in enumerate(self.shapes)
        ]
        outputs = self.build(keras.layers, *inputs)
        model = keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs)
        rng = np.random.default_rng(1)
        for layer in model.layers:
            layer.set_weights([_weight(rng, w) for w in layer.get_weights()])
        return model

    def data(self, examples):
        """Random inputs, in the structure that the model takes."""
        rng = np.random.default_rng(2)
        arrays = [
            rng.integers(0, 20, (examples, *shape)).astype(np.int32)
            if self.indices
            else rng.normal(size=(examples, *shape)).astype(np.float32)
            for shape in self.shapes
        ]
        return arrays if len(arrays) > 1 else arrays[0]


def _weight(rng, weight):
    if weight.dtype != np.float32:
        return weight  # a generator's state
    if weight.ndim < 2:
        return rng.uniform(0.5, 1.2, weight.shape) * np.where(
            np.arange(weight.size) % 3 == 0, 1.0, 0.7
        ).reshape(weight.shape)
    fan_in = max(weight.size // weight.shape[-1], 1)
    return rng.normal(size=weight.shape) * np.sqrt(2 / fan_in)


def mlp(k, x):
    x = k.BatchNormalization()(k.Dense(16, activation="relu")(x))
    return k.Dense(5, activation="softmax")(k.Dense(12, activation="tanh")(x))


def plain_cnn(k, x):
    x = k.MaxPooling2D()(k.Conv2D(8, 3, activation="relu")(x))
    return k.Dense(5)(k.Flatten()(k.SpatialDropout2D(0.1)(x)))


def residual(k, x):
    x = k.Conv2D(8, 3, padding="same")(x)
    for _ in range(2):
        y = k.ReLU()(k.BatchNormalization()(k.Conv2D(8, 3, padding="same")(x)))
        y = k.BatchNormalization()(k.Conv2D(8, 3, padding="same", use_bias=False)(y))
        x = k.ReLU()(k.Add()([x, y]))
    return k.Dense(5)(k.GlobalAveragePooling2D()(x))


def preactivated_residual(k, x):
    x = k.Conv2D(8, 3, padding="same")(x)
    for _ in range(2):
        y = k.Activation("relu")(k.BatchNormalization()(x))
        y = k.Conv2D(8, 3, padding="same")(y)
        y = k.ReLU()(k.BatchNormalization()(y))
        x = k.Add()([x, k.Conv2D(8, 3, padding="same")(y)])
    x = k.ReLU()(k.BatchNormalization()(x))
    return k.Dense(5)(k.GlobalAveragePooling2D()(x))


def dense_block(k, x):
    x = k.Conv2D(6, 3, padding="same", use_bias=False)(x)
    for _ in range(3):
        y = k.ReLU()(k.BatchNormalization()(x))
        y = k.Conv2D(4, 3, padding="same", use_bias=False)(y)
        x = k.Concatenate()([x, y])
    x = k.Conv2D(6, 1)(k.ReLU()(k.BatchNormalization()(x)))
    return k.Dense(5)(k.GlobalAveragePooling2D()(k.AveragePooling2D(2)(x)))


def _squeezed(k, x, channels, gate="sigmoid"):
    y = k.Reshape((1, 1, channels))(k.GlobalAveragePooling2D()(x))
    y = k.Conv2D(4, 1, activation="swish")(y)
    return k.Multiply()([x, k.Conv2D(channels, 1, activation=gate)(y)])


def inverted_residual(k, x):
    x = k.Conv2D(4, 1)(x)
    y = k.Activation("swish")(k.BatchNormalization()(k.Conv2D(12, 1)(x)))
    y = k.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
    y = k.Activation("swish")(k.BatchNormalization()(y))
    y = k.BatchNormalization()(k.Conv2D(4, 1)(_squeezed(k, y, 12)))
    x = k.Add()([x, k.Dropout(0.1)(y)])
    return k.Dense(5)(k.GlobalAveragePooling2D()(x))


def hard_gates(k, x):
    x = k.Conv2D(8, 3, padding="same", activation="hard_sigmoid")(x)
    x = _squeezed(k, x, 8, "hard_sigmoid")
    return k.Dense(5)(k.GlobalAveragePooling2D()(x))


def hard_swish(k, x):
    x = k.Activation("hard_swish")(k.BatchNormalization()(k.Conv2D(8, 3)(x)))
    x = k.Activation("hard_swish")(k.DepthwiseConv2D(3)(x))
    return k.Dense(5)(k.GlobalAveragePooling2D()(x))


def separable(k, x):
    y = k.BatchNormalization()(k.SeparableConv2D(8, 3, padding="same")(x))
    y = k.SeparableConv2D(8, 3, padding="same", depth_multiplier=2)(k.ReLU()(y))
    y = k.MaxPooling2D(3, strides=2, padding="same")(k.BatchNormalization()(y))
    x = k.BatchNormalization()(k.Conv2D(8, 1, strides=2)(x))
    x = k.Add()([x, y])
    return k.Dense(5)(k.GlobalAveragePooling2D()(x))


def unet(k, x):
    wide = k.Conv2D(4, 3, padding="same", activation="relu")(x)
    y = k.Conv2D(8, 3, padding="same", activation="relu")(k.MaxPooling2D()(wide))
    y = k.Conv2DTranspose(4, 2, strides=2)(y)
    y = k.Concatenate()([y, wide])
    y = k.ReLU()(k.BatchNormalization()(k.Conv2DTranspose(6, 3, padding="same")(y)))
    return k.Conv2D(3, 1)(y)


def unet_upsampling(k, x):
    wide = k.Conv2D(4, 3, padding="same", activation="relu")(x)
    y = k.Conv2D(8, 3, padding="same", activation="relu")(k.AveragePooling2D(2)(wide))
    smooth = k.UpSampling2D(interpolation="bilinear")(y)
    y = k.Concatenate()([k.UpSampling2D()(y), wide, smooth])
    return k.Conv2D(3, 3, padding="same", activation="sigmoid")(y)


def pyramid(k, x):
    branches = [
        k.ReLU()(k.BatchNormalization()(k.Conv2D(4, 3, padding="same", **rate)(x)))
        for rate in ({}, {"dilation_rate": 2}, {"dilation_rate": (1, 2)})
    ]
    pooled = k.Conv2D(4, 1)(k.GlobalAveragePooling2D(keepdims=True)(x))
    branches.append(k.UpSampling2D(8, interpolation="bilinear")(pooled))
    return k.Conv2D(3, 1)(k.Concatenate()(branches))


def wave(k, x):
    skips = []
    x = k.Conv1D(6, 1)(x)
    for rate in (1, 2, 4):
        filtered = k.Conv1D(6, 2, padding="causal", dilation_rate=rate)(x)
        gate = k.Conv1D(6, 2, padding="causal", dilation_rate=rate)(x)
        y = k.Multiply()(
            [k.Activation("tanh")(filtered), k.Activation("sigmoid")(gate)]
        )
        skips.append(k.Conv1D(6, 1)(y))
        x = k.Add()([x, skips[-1]])
    x = k.ReLU()(k.Add()(skips))
    return k.Dense(5)(k.GlobalAveragePooling1D()(x))


def audio(k, x):
    x = k.SeparableConv1D(8, 3, padding="same", activation="relu")(x)
    x = k.MaxPooling1D()(k.DepthwiseConv1D(3)(x))
    x = k.ReLU()(k.BatchNormalization()(k.Conv1D(8, 3, padding="same")(x)))
    return k.Dense(5)(k.Flatten()(k.AveragePooling1D(2)(x)))


def audio_autoencoder(k, x):
    y = k.Conv1D(8, 3, strides=2, padding="same", activation="relu")(x)
    y = k.Conv1DTranspose(6, 3, strides=2, padding="same", activation="relu")(y)
    return k.Conv1D(4, 3, padding="same")(y)


def volumes(k, x):
    x = k.ReLU()(k.BatchNormalization()(k.Conv3D(4, 3, padding="same")(x)))
    x = k.Conv3D(6, (2, 3, 3), activation="relu")(k.MaxPooling3D()(x))
    return k.Dense(5)(k.GlobalAveragePooling3D()(x))


def volumes_averaged(k, x):
    x = k.Conv3D(4, 3, strides=(1, 2, 2), padding="same", activation="elu")(x)
    x = k.Conv3D(5, 1)(k.AveragePooling3D((2, 1, 1))(k.BatchNormalization()(x)))
    return k.GlobalMaxPooling3D()(x)


def text(k, x):
    x = k.Conv1D(8, 3, activation="relu")(k.Embedding(20, 6)(x))
    return k.Dense(5)(k.GlobalMaxPooling1D()(x))


def text_averaged(k, x):
    x = k.GlobalAveragePooling1D()(k.SpatialDropout1D(0.1)(k.Embedding(20, 6)(x)))
    return k.Dense(5, activation="softmax")(k.Dense(8, activation="gelu")(x))


def text_masked(k, x):
    x = k.GlobalAveragePooling1D()(k.Embedding(20, 6, mask_zero=True)(x))
    return k.Dense(5)(x)


def mixer(k, x):
    x = k.Dense(8)(x)
    y = k.EinsumDense("ntc,ts->nsc", (10, 8), bias_axes="s")(k.BatchNormalization()(x))
    y = k.EinsumDense("nsc,st->ntc", (6, 8), bias_axes="t")(k.Activation("gelu")(y))
    x = k.Add()([x, y])
    y = k.EinsumDense("...c,cd->...d", 12, bias_axes="d", activation="gelu")(x)
    x = k.Add()([x, k.EinsumDense("...d,dc->...c", 8, bias_axes="c")(y)])
    return k.Dense(5)(k.GlobalAveragePooling1D()(x))


def heads(k, x):
    query, key, value = (
        k.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de")(x)
        for _ in range(3)
    )
    y = k.Multiply()([k.Add()([query, key]), k.Activation("sigmoid")(value)])
    return k.EinsumDense("abde,dec->abc", (None, 4), bias_axes="c")(y)


def siamese(k, one, other):
    conv = k.Conv2D(4, 3, activation="swish")
    dense = k.Dense(6, activation="tanh")
    one, other = (dense(k.Flatten()(conv(x))) for x in (one, other))
    distance = k.Dense(3)(k.Subtract()([one, other]))
    return k.Concatenate()([distance, k.Dot(axes=1)([one, other])])


def shared_norms(k, x):
    conv = k.Conv2D(4, 3, padding="same", dilation_rate=2)
    x = k.Conv2D(4, 1)(x)
    for _ in range(2):
        x = k.ReLU()(k.BatchNormalization()(conv(x)))
    return k.Dense(5)(k.GlobalAveragePooling2D()(x))


def two_in_two_out(k, image, vector):
    x = k.GlobalAveragePooling2D()(k.Conv2D(6, 3, activation="relu")(image))
    x = k.Concatenate()([x, k.Dense(4, activation="selu")(vector)])
    return [k.Dense(5)(x), k.Dense(3, activation="softmax")(x)]


def discriminator(k, x):
    x = k.LeakyReLU()(k.Conv2D(6, 3, strides=2, padding="same")(x))
    x = k.PReLU(shared_axes=[1, 2])(k.BatchNormalization()(k.Conv2D(8, 3)(x)))
    return k.Dense(3, activation=k.LeakyReLU())(k.Flatten()(x))


def generator(k, x):
    x = k.Reshape((2, 2, 8))(k.Dense(32)(x))
    x = k.ReLU()(k.BatchNormalization()(x))
    for filters, activation in ((6, "relu"), (3, "tanh")):
        x = k.Conv2DTranspose(filters, 4, strides=2, padding="same")(x)
        x = k.Activation(activation)(k.BatchNormalization()(x))
    return x


def exponential_units(k, x):
    x = k.Dense(12, activation="elu")(x)
    x = k.Dense(12, activation="selu")(k.AlphaDropout(0.1)(x))
    return k.Dense(5)(k.ELU(alpha=0.5)(k.Dense(8)(x)))


def smooth_units(k, x):
    x = k.Dense(12, activation="softplus")(x)
    x = k.Dense(12, activation="mish")(x)
    return k.Dense(5, activation="softsign")(x)


def merges(k, x):
    one, other, third = (k.Conv2D(4, 1)(x) for _ in range(3))
    largest = k.Maximum()([one, other, third])
    smallest = k.Minimum()([one, k.ReLU()(other)])
    mean = k.Average()([largest, smallest, k.Multiply()([one, other, third])])
    return k.Conv2D(3, 1)(k.Subtract()([mean, one]))


def preprocessing(k, x):
    x = k.RandomFlip("horizontal")(k.Rescaling(0.5, offset=0.25)(x))
    x = k.Normalization(mean=[0.1, 0.2, 0.3], variance=[0.5, 1.0, 2.0])(x)
    x = k.Resizing(6, 6)(k.ZeroPadding2D(1)(k.GaussianNoise(0.1)(x)))
    x = k.Conv2D(4, 3, activation="relu")(k.Cropping2D(1)(x))
    return k.Dense(5)(k.Flatten()(x))


def videos(k, x):
    x = k.TimeDistributed(k.Conv2D(4, 3, activation="relu"))(x)
    x = k.TimeDistributed(k.GlobalAveragePooling2D())(x)
    return k.GlobalMaxPooling1D()(k.TimeDistributed(k.Dense(5))(x))


def shapes(k, x):
    x = k.Permute((2, 1))(k.Dense(6)(x))
    x = k.ZeroPadding1D(1)(k.UpSampling1D(2)(k.Cropping1D(1)(x)))
    x = k.Flatten()(k.Conv1D(3, 3)(x))
    return k.Dense(4)(k.RepeatVector(3)(k.Dense(5)(x)))


def attention_pooling(k, x):
    weights = k.Softmax(axis=1)(k.Dense(1)(k.Dense(6, activation="tanh")(x)))
    return k.Dense(5)(k.Flatten()(k.Dot(axes=1)([weights, x])))


def channel_attention(k, x):
    x = k.Conv2D(8, 3, activation="relu")(x)
    shared = k.Dense(8)
    pooled = [k.GlobalAveragePooling2D()(x), k.GlobalMaxPooling2D()(x)]
    gate = k.Activation("sigmoid")(k.Add()([shared(y) for y in pooled]))
    x = k.Multiply()([x, k.Reshape((1, 1, 8))(gate)])
    return k.Dense(5)(k.GlobalAveragePooling2D()(x))


def grouped(k, x):
    x = k.Conv2D(8, 1, activation="relu")(x)
    y = k.Conv2D(8, 3, groups=4, padding="same")(x)
    y = k.ReLU()(k.BatchNormalization()(y))
    y = k.Permute((1, 2, 4, 3))(k.Reshape((8, 8, 2, 4))(y))
    x = k.Add()([x, k.Conv2D(8, 1)(k.Reshape((8, 8, 8))(y))])
    return k.Dense(5)(k.GlobalAveragePooling2D()(x))


def fire(k, x):
    x = k.Conv2D(3, 1, activation="relu")(x)
    one = k.Conv2D(4, 1, activation="relu")(x)
    other = k.Conv2D(4, 3, padding="same", activation="relu")(x)
    x = k.Conv2D(5, 1, activation="relu")(k.Concatenate()([one, other]))
    return k.Softmax()(k.GlobalAveragePooling2D()(x))


def inception(k, x):
    def unit(x, filters, size):
        x = k.Conv2D(filters, size, padding="same", use_bias=False)(x)
        return k.Activation("relu")(k.BatchNormalization(scale=False)(x))

    pooled = k.AveragePooling2D(3, strides=1, padding="same")(x)
    branches = [unit(x, 4, 1), unit(unit(x, 3, 1), 4, (1, 3)), unit(pooled, 4, 1)]
    x = k.Concatenate()([*branches, k.MaxPooling2D(3, 1, padding="same")(x)])
    return k.Dense(5)(k.GlobalAveragePooling2D()(x))


def metric(k, x):
    return k.UnitNormalization()(k.Dense(6)(k.Dense(12, activation="relu")(x)))


def highway(k, x):
    x = k.Dense(8, activation="relu")(x)
    gate = k.Dense(8, activation="sigmoid")(x)
    kept = k.Multiply()([x, k.Rescaling(-1.0, offset=1.0)(gate)])
    new = k.Multiply()([k.Dense(8, activation="relu")(x), gate])
    return k.Dense(5)(k.Add()([kept, new]))


def limited(k, x):
    low = k.ReLU(max_value=0.5)(k.Conv2D(4, 3)(x))
    leaky = k.ReLU(negative_slope=0.1)(k.Conv2D(4, 3)(x))
    x = k.Concatenate()([low, leaky, k.ReLU(6.0)(k.Conv2D(4, 3)(x))])
    return k.Dense(5)(k.GlobalAveragePooling2D()(x))


def excluded(k, x):
    x = k.SeparableConv2D(4, 3, activation="swish", name="apart")(x)
    x = k.Conv2D(4, 3, activation="relu", name="kept")(x)
    x = k.BatchNormalization(name="norm")(x)
    return k.Dense(5)(k.GlobalAveragePooling2D()(x))


def group_norm(k, x):
    x = k.GroupNormalization(2)(k.Dense(8)(x))
    return k.Dense(5)(x)


def causal_transformer(k, x):
    x = k.Dense(8)(x)
    x = k.Add()([x, k.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)])
    x = k.Add()([x, k.Dense(8)(k.Dense(16, activation="relu")(x))])
    return k.Dense(5)(x)


def masked_softmax(k, x):
    scores = k.Dot(axes=2)([k.Dense(4)(x), k.Dense(4)(x)])
    near = np.abs(np.subtract.outer(np.arange(12), np.arange(12))) < 3
    return k.Dense(5)(k.Dot(axes=(2, 1))([k.Softmax()(scores, near[None]), x]))


IMAGE, VECTOR, SERIES, VOLUME, WORDS = (8, 8, 3), (8,), (12, 4), (6, 6, 6, 2), (7,)
NETWORKS = {
    "attention_pooling": Network(attention_pooling, (SERIES,)),
    "audio": Network(audio, (SERIES,)),
    "audio_autoencoder": Network(audio_autoencoder, (SERIES,)),
    "causal_transformer": Network(causal_transformer, (SERIES,)),
    "channel_attention": Network(channel_attention, (IMAGE,)),
    "dense_block": Network(dense_block, (IMAGE,)),
    "discriminator": Network(discriminator, (IMAGE,)),
    "excluded": Network(
        excluded,
        (IMAGE,),
        floats=frozenset(
            [
                "DepthwiseConv2D",
                "Conv2D",
                "Activation",
                "Multiply",
                "BatchNormalization",
            ]
        ),
        exclude=("apart", "norm"),
    ),
    "exponential_units": Network(exponential_units, (VECTOR,)),
    "fire": Network(fire, (IMAGE,)),
    "generator": Network(generator, (VECTOR,)),
    "grouped": Network(grouped, (IMAGE,)),
    "group_norm": Network(
        group_norm, (VECTOR,), floats=frozenset(["GroupNormalization"])
    ),
    "hard_gates": Network(hard_gates, (IMAGE,)),
    "hard_swish": Network(hard_swish, (IMAGE,), keras3=True),
    "heads": Network(heads, (SERIES,)),
    "highway": Network(highway, (VECTOR,)),
    "inception": Network(inception, (IMAGE,)),
    "inverted_residual": Network(inverted_residual, (IMAGE,)),
    "limited": Network(limited, (IMAGE,)),
    "masked_softmax": Network(masked_softmax, (SERIES,)),
    "merges": Network(merges, (IMAGE,)),
    "metric": Network(metric, (VECTOR,)),
    "mixer": Network(mixer, ((6, 5),)),
    "mlp": Network(mlp, (VECTOR,)),
    "plain_cnn": Network(plain_cnn, (IMAGE,)),
    "preactivated_residual": Network(preactivated_residual, (IMAGE,)),
    "preprocessing": Network(preprocessing, (IMAGE,)),
    "pyramid": Network(pyramid, (IMAGE,)),
    "residual": Network(residual, (IMAGE,)),
    "separable": Network(separable, (IMAGE,)),
    "shapes": Network(shapes, (SERIES,)),
    "shared_norms": Network(shared_norms, (IMAGE,)),
    "siamese": Network(siamese, (IMAGE, IMAGE)),
    "smooth_units": Network(smooth_units, (VECTOR,)),
    "text": Network(text, (WORDS,), indices=True),
    "text_averaged": Network(text_averaged, (WORDS,), indices=True),
    "text_masked": Network(
        text_masked,
        (WORDS,),
        indices=True,
        floats=frozenset(["GlobalAveragePooling1D", "NotEqual"]),
    ),
    "two_in_two_out": Network(two_in_two_out, (IMAGE, VECTOR)),
    "unet": Network(unet, (IMAGE,)),
    "unet_upsampling": Network(unet_upsampling, (IMAGE,)),
    "videos": Network(videos, ((3, 6, 6, 2),)),
    "volumes": Network(volumes, (VOLUME,)),
    "volumes_averaged": Network(volumes_averaged, (VOLUME,)),
    "wave": Network(wave, (SERIES,)),
}
