"""All kinds of layers and models: exactly at the target, nothing silently unpruned."""

import numpy as np
import prune_samples as samples
import pytest

from tfopt import masks
from tfopt._keras import variables
from tfopt.methods.prune import Prune

pytestmark = pytest.mark.both_keras

RATE = 0.6


def sequential(keras, *layers, shape=(12,)):
    return keras.Sequential(
        [
            keras.layers.Input((12,)),
            keras.layers.Reshape(shape),
            *layers,
            keras.layers.Flatten(),
            keras.layers.Dense(5, name="head"),
        ]
    )


def dense(keras):
    return sequential(keras, keras.layers.Dense(8), keras.layers.Dense(7))


def conv1d(keras):
    layers = keras.layers
    return sequential(
        keras,
        layers.Conv1D(5, 3, padding="causal"),
        layers.Conv1DTranspose(4, 2),
        layers.SeparableConv1D(5, 2),
        layers.DepthwiseConv1D(2),
        shape=(6, 2),
    )


def conv2d(keras):
    layers = keras.layers
    return sequential(
        keras,
        layers.Conv2D(6, 2, padding="same", groups=1),
        layers.BatchNormalization(),
        layers.DepthwiseConv2D(2, depth_multiplier=2, padding="same"),
        layers.SeparableConv2D(5, 2, padding="same"),
        layers.Conv2DTranspose(4, 2),
        shape=(3, 4, 1),
    )


def conv3d(keras):
    layers = keras.layers
    shape = (3, 2, 2, 1)
    return sequential(
        keras, layers.Conv3D(4, 2), layers.Conv3DTranspose(3, 2), shape=shape
    )


def einsum(keras):
    layer = keras.layers.EinsumDense("abc,cd->abd", (4, 5), bias_axes="d")
    return sequential(keras, layer, shape=(4, 3))


def attention(keras):
    inputs = keras.Input((12,))
    x = keras.layers.Reshape((4, 3))(inputs)
    x = keras.layers.MultiHeadAttention(2, 3)(x, x)
    x = keras.layers.LayerNormalization()(x)
    return keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(x)))


def recurrent(keras):
    layers = keras.layers
    cells = [layers.GRUCell(3), layers.LSTMCell(4)]
    return sequential(
        keras,
        layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
        layers.GRU(4, return_sequences=True),
        layers.SimpleRNN(4, return_sequences=True),
        layers.TimeDistributed(layers.Dense(4)),
        layers.RNN(cells, return_sequences=True),
        shape=(4, 3),
    )


def embedding(keras):
    inputs = keras.Input((12,))
    tokens = keras.layers.Lambda(lambda x: abs(x) * 2, output_shape=(12,))(inputs)
    x = keras.layers.Embedding(16, 6)(tokens)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(5)(x))


def nested(keras):
    inner = keras.Sequential(
        [keras.layers.Input((8,)), keras.layers.Dense(8, name="same")], name="inner"
    )
    outer = keras.Sequential(
        [keras.layers.Input((8,)), inner, keras.layers.Dense(8, name="same")],
        name="outer",
    )
    inputs = keras.Input((12,))
    x = keras.layers.Dense(8, name="same")(inputs)
    return keras.Model(inputs, keras.layers.Dense(5)(outer(outer(x))))


def shared(keras):
    inputs = keras.Input((12,))
    layer = keras.layers.Dense(12, activation="relu")
    x = keras.layers.Add()([layer(inputs), layer(layer(inputs))])
    return keras.Model(inputs, keras.layers.Dense(5)(x))


def subclassed(keras):
    class Own(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(name="w", shape=(shape[-1], 6))
            super().build(shape)

        def call(self, x):
            return x @ self.w

    class Block(keras.layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.parts = [Own(), keras.layers.Dense(6)]

        def call(self, x):
            for part in self.parts:
                x = part(x)
            return x

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [Block(), Block()]
            self.head = keras.layers.Dense(5)

        def call(self, x):
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    model = Net()
    model(np.zeros((1, 12), np.float32))
    return model


def operators(keras):
    """A graph with operations and several branches."""
    inputs = keras.Input((12,))
    a, b = keras.layers.Dense(6)(inputs), keras.layers.Dense(6)(inputs)
    x = keras.layers.Concatenate()([a * 2.0 + b, a - b])
    return keras.Model(inputs, keras.layers.Dense(5)(x))


MODELS = {
    build.__name__: (build, kernels)
    for build, kernels in [
        (dense, 3),
        (conv1d, 6),
        (conv2d, 6),
        (conv3d, 3),
        (einsum, 2),
        (attention, 5),
        (recurrent, 14),
        (embedding, 2),
        (nested, 4),
        (shared, 2),
        (subclassed, 5),
        (operators, 3),
    ]
}


@pytest.mark.parametrize("name", MODELS)
def test_held_at_exactly_the_target(keras, name):
    build, kernels = MODELS[name]
    model = samples.compiled(keras, build(keras))
    prune = Prune(final_sparsity=RATE, end_step=8, strict=True)
    watcher = samples.watch(keras)
    samples.fit(model, [prune, watcher])
    final = [zeros for step, zeros in watcher.seen if step >= 8]
    expected = samples.expected_zeros(model, RATE)
    assert len(expected) == kernels
    assert all(zeros == expected for zeros in final)
    for weight in variables.kernels(model):
        target = weight.size * RATE
        assert abs(expected[weight.name] - target) <= 1, weight.name
    assert prune.finalize(model) is model


@pytest.mark.parametrize(
    ("name", "word"),
    [
        *(
            ("conv3d", "1:2"),
            pytest.param("recurrent", "1:2", marks=pytest.mark.slow),
            ("attention", "1:2"),
        ),
        *(("conv1d", "2x2"), ("embedding", "2x2"), ("conv2d", "2x2")),
    ],
)
def test_structures(keras, name, word):
    model = samples.compiled(keras, MODELS[name][0](keras))
    final = None if ":" in word else RATE
    prune = Prune(final_sparsity=final, schedule="constant", structure=word)
    samples.fit(model, [prune], epochs=1)
    prune.finalize(model)
    pruned = [row for row in prune.report if row["pruned"]]
    left = [row for row in prune.report if row["name"].endswith("kernel")]
    assert all(row["sparsity"] > 0.2 for row in pruned)
    for row in left:
        assert row["pruned"] or "leaves nothing to prune" in row["reason"]


@pytest.mark.parametrize(
    ("name", "score"),
    [
        *(
            pytest.param("recurrent", "gradient", marks=pytest.mark.slow),
            ("embedding", "gradient"),
            ("shared", "movement"),
        ),
        *((name, "activation") for name in ("conv2d", "attention", "embedding")),
    ],
)
def test_scores(keras, name, score):
    if name == "nested" and score == "movement":
        pytest.skip("one score of gradients is enough here")
    model = samples.compiled(keras, MODELS[name][0](keras))
    exclude = None
    if (name, score) == ("conv2d", "activation"):  # what is inside is not seen
        names = [w.name for w in variables.kernels(model)]
        exclude = [n.split("/")[0] for n in names if "pointwise" in n]
    prune = Prune(
        final_sparsity=RATE,
        begin_step=2,
        end_step=5,
        score=score,
        data=[samples.data()[0]] if score == "activation" else None,
        exclude=exclude,
    )
    samples.fit(model, [prune], epochs=1)
    prune.finalize(model)


def test_two_masks_for_tied_weights_are_one(keras):
    """A shared layer is listed, masked and counted once."""
    model = samples.compiled(keras, shared(keras))
    prune = Prune(final_sparsity=0.5, schedule="constant")
    samples.fit(model, [prune], epochs=1)
    assert len([row for row in prune.report if row["pruned"]]) == 2
    assert sum(mask.size for mask in prune.masks.values()) == 12 * 12 + 12 * 5
    assert masks.num_kept(144, 0.5) == 72
