"""Prune with structures: blocks, m:n and channels, in the layers' own layouts."""

import numpy as np
import prune_samples as samples
import pytest

from tfopt import masks
from tfopt._keras import channels, kernels, variables
from tfopt.methods.prune import Prune
from tfopt.types import TfoptError, VerificationError

pytestmark = pytest.mark.both_keras


def kernel_layout(layer, shape, name="kernel"):
    layer.build(shape)
    for variable in layer.weights:
        last = variable.name.rsplit("/", 1)[-1].split(":")[0]
        if last == name or (name == "kernel" and last == "depthwise_kernel"):
            weight = variables.Weight(last, variable, True, layer)
            return kernels.layout(weight)
    raise AssertionError(name)


def test_layouts(keras):
    layers = keras.layers
    for layer, shape, split in [
        (layers.Dense(5), (None, 3), (1, 3, 5)),
        (layers.Conv1D(5, 2), (None, 8, 3), (2, 3, 5)),
        (layers.Conv2D(6, 2, groups=3), (None, 8, 8, 3), (4, 1, 6)),
        (layers.Conv3D(5, 2), (None, 8, 8, 8, 3), (8, 3, 5)),
        (layers.Conv2DTranspose(5, 2), (None, 8, 8, 3), (4, 3, 5)),
        (layers.DepthwiseConv2D(2, depth_multiplier=2), (None, 8, 8, 3), (4, 1, 6)),
        (layers.EinsumDense("abc,cde->abde", (None, 4, 5)), (None, 7, 3), (1, 3, 20)),
        (layers.EinsumDense("abc,bcd->abd", (7, 5)), (None, 7, 3), (7, 3, 5)),
        (layers.EinsumDense("...x,xy->...y", 5), (None, 7, 3), (1, 3, 5)),
        (layers.EinsumDense("abcd,cde->abe", (None, 9)), (None, 7, 2, 3), (1, 6, 9)),
    ]:
        layout = kernel_layout(layer, shape)
        assert layout.split == split, layer.name
        values = np.arange(np.prod(layout.shape)).reshape(layout.shape)
        assert np.array_equal(layout.kernel(layout.matrices(values)), values)
    table = kernel_layout(layers.Embedding(9, 4), (None, 7), "embeddings")
    assert table.split == (1, 9, 4)


def conv_model(keras):
    layers = keras.layers
    inputs = keras.Input((12,))
    x = layers.Reshape((3, 4, 1))(inputs)
    x = layers.Conv2D(6, 2, padding="same", name="first", activation="relu")(x)
    x = layers.Conv2D(5, 2, padding="same", name="middle", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Conv2DTranspose(4, 2, padding="same", name="transposed")(x)
    x = layers.Reshape((12, 4))(x)
    x = layers.Conv1D(6, 3, name="line")(x)
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(5, name="head")(x)
    return keras.Model(inputs, layers.Activation("linear")(x))


def kernel(model, name):
    weight = next(w for w in variables.weights(model) if w.name == name)
    return kernels.layout(weight).matrices(weight.variable.numpy())


def trained(keras, model=None, **options):
    keras.utils.set_random_seed(1)
    model = samples.compiled(keras, conv_model(keras) if model is None else model)
    prune = Prune(end_step=9, frequency=3, **options)
    samples.fit(model, [prune])
    return prune.finalize(model), prune


def test_two_of_four_in_every_layer(keras, tmp_path):
    model, prune = trained(keras, structure="2:4")
    zeros = samples.zeros(model)
    assert zeros == {
        "first/kernel": 0,  # one input channel
        "middle/kernel": 4 * 5 * 2,  # 6 inputs: 4, and 2 that both stay
        "transposed/kernel": 4 * 4 * 2,  # 5 inputs: 4, and 1 that stays
        "line/kernel": 3 * 6 * 2,
        "head/kernel": 5 * 2,
    }
    assert prune.report[0]["reason"].startswith("1 inputs per output: 2:4 leaves")
    for name in ("middle/kernel", "transposed/kernel", "line/kernel"):
        group = kernel(model, name)[:, :4]
        assert (np.count_nonzero(group, axis=1) == 2).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert samples.zeros(loaded) == zeros
    assert prune.finalize(loaded) is loaded


@pytest.mark.parametrize("scope", masks.SCOPES)
def test_two_of_four_ramps_over_the_groups(keras, scope):
    model = samples.compiled(keras)
    watcher = samples.watch(keras)
    prune = Prune(structure="2:4", end_step=9, frequency=3, scope=scope)
    samples.fit(model, [prune, watcher])
    counts = [sum(found.values()) for _, found in watcher.seen]
    assert counts == sorted(counts)
    assert len(set(counts)) == 4
    assert counts[-1] == (192 + 80) // 2


@pytest.mark.parametrize("scope", masks.SCOPES)
@pytest.mark.parametrize("word", ["1x4", "4x1", "2x3"])
def test_blocks(keras, word, scope):
    options = {"structure": word, "final_sparsity": 0.6, "scope": scope}
    model, prune = trained(keras, **options)
    for row in prune.report:
        if row["pruned"]:
            structured = masks.structured_zeros(kernel(model, row["name"]), word)
            assert structured == samples.zeros(model)[row["name"]]
            if scope == "local":
                # To the nearest block.
                assert abs(structured - 0.6 * row["size"]) <= 3
    weight = model.get_layer("middle").kernel
    value = weight.numpy()
    value[value == 0] = 1e-3
    weight.assign(value)
    with pytest.raises(VerificationError, match="less sparse"):
        prune.finalize(model)


def test_zeros_at_random_are_no_blocks(keras):
    model = samples.compiled(keras)
    rng = np.random.default_rng(0)
    for weight in variables.kernels(model):
        weight.variable.assign(rng.permutation(weight.size).reshape(weight.shape) % 2)
    Prune(final_sparsity=0.5).finalize(model)
    with pytest.raises(VerificationError, match="zeros in 192 weights"):
        Prune(final_sparsity=0.5, structure="4x1").finalize(model)
    with pytest.raises(VerificationError, match="zeros in 192 weights"):
        Prune(structure="2:4").finalize(model)


def test_channels_die_with_bias_and_normalization(keras):
    model, prune = trained(keras, structure="channel", final_sparsity=0.5)
    reasons = {row["name"]: row["reason"] for row in prune.report}
    assert reasons["head/kernel"] == "its channels are the model's outputs"
    assert reasons["first/bias"] == "follows the channels of 'first/kernel'"
    assert reasons["norm/beta"] == "follows the channels of 'middle/kernel'"
    assert reasons["norm/moving_mean"] == "not a kernel"
    for name, kept in (("first", 3), ("middle", 2), ("transposed", 2), ("line", 3)):
        alive = kernel(model, f"{name}/kernel").any(axis=(0, 1))
        assert np.count_nonzero(alive) == kept
        if name != "middle":
            assert not model.get_layer(name).bias.numpy()[~alive].any()
    norm = model.get_layer("norm")
    alive = kernel(model, "middle/kernel").any(axis=(0, 1))
    assert not norm.gamma.numpy()[~alive].any()
    assert not norm.beta.numpy()[~alive].any()
    assert norm.gamma.numpy()[alive].all()
    # So the channels behind the normalization are zero, not only constant.
    x = np.random.default_rng(5).normal(size=(4, 12)).astype(np.float32)
    behind = keras.Model(model.inputs, norm.output).predict(x, verbose=0)
    assert not behind[..., ~alive].any()
    assert behind[..., alive].any()


def test_channels_of_the_smallest_norm_go(keras):
    model = samples.compiled(keras, optimizer=keras.optimizers.SGD(0.0))
    norms = np.linalg.norm(model.get_layer("first").kernel.numpy(), axis=0)
    prune = Prune(final_sparsity=0.75, structure="filter", schedule="constant")
    samples.fit(model, [prune], epochs=1)
    alive = prune.masks["first/kernel"].any(axis=0)
    assert set(np.flatnonzero(alive)) == set(np.argsort(norms)[-4:])
    assert np.array_equal(prune.masks["first/bias"], alive)


def test_channels_of_a_sum_and_of_recurrent_cells(keras):
    layers = keras.layers
    inputs = keras.Input((12,))
    a, b = layers.Dense(6, name="a")(inputs), layers.Dense(6, name="b")(inputs)
    x = layers.BatchNormalization(name="norm")(layers.Add()([a, b]))
    x = layers.GRU(4, name="gru")(layers.Reshape((2, 3))(x))
    outputs = [layers.Dense(5, name=name)(x) for name in ("c", "d")]
    model = keras.Model(inputs, layers.Add()(outputs))
    graph = channels.trace(model)
    assert graph.leaving == {"c", "d"}
    assert graph.normalized == {}  # zeros of one addend are not zeros of the sum
    samples.compiled(keras, model)
    prune = Prune(final_sparsity=0.5, structure="channel", schedule="constant")
    samples.fit(model, [prune], epochs=1)
    pruned = {row["name"] for row in prune.report if row["pruned"]}
    assert pruned == {"a/kernel", "b/kernel"}
    reasons = [row["reason"] for row in prune.report if "gru" in row["name"]]
    assert "the gates of a recurrent cell share their units" in reasons


@pytest.mark.parametrize("readable", [True, False])
def test_channels_of_a_subclassed_model(readable, keras):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.one = keras.layers.Dense(8, name="one")
            self.two = keras.layers.Dense(5, name="two")

        def call(self, x):
            if not readable and "KerasTensor" in type(x).__name__:
                raise ValueError("Not for symbolic tensors.")
            return self.two(self.one(x))

    model = Net()
    model(samples.data()[0])
    samples.compiled(keras, model)
    options = {"structure": "channel", "final_sparsity": 0.5, "schedule": "constant"}
    prune = Prune(**options)
    if not readable:
        # Which channels leave the model is unknown, and needs a word.
        with pytest.raises(TfoptError, match="`exclude` for the last layer"):
            samples.fit(model, [prune])
        prune = Prune(exclude="two", **options)
    samples.fit(model, [prune])
    prune.finalize(model)
    assert model.two.kernel.numpy().any(axis=0).all()
    alive = model.one.kernel.numpy().any(axis=0)
    assert np.count_nonzero(alive) == 4
    assert not model.one.bias.numpy()[~alive].any()
