"""Removing channels: equality with masked models, over many topologies."""

import numpy as np
import pytest
from surgery_samples import (
    ZOO,
    functional,
    inputs_of,
    largest_error,
    plain,
    randomize,
    residual,
    run,
    weights_by_layer,
    zeroed,
)

from tfopt import _keras
from tfopt.surgery import remove_channels, remove_channels_with_report
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras


def is_zeroed_copy(masked, model):
    """Whether two models have equal weights, but for zeros in the first."""
    pairs = zip(weights_by_layer(masked), weights_by_layer(model), strict=True)
    return all(np.all((got == want) | (got == 0)) for (*_, got), (*_, want) in pairs)


def group_of(removal, layer):
    (group,) = [group for group in removal.groups if layer in group.layers]
    return group


# A target.


@pytest.mark.parametrize("name", ZOO)
def test_the_small_model_equals_the_masked_one(keras, name):
    model = ZOO[name](keras)
    weights = model.get_weights()
    removal = remove_channels_with_report(model, sparsity=0.5)
    masked = removal.masked_model()
    assert largest_error(removal.model, masked) <= 1e-5
    # Negative controls: masking has an effect, and so have the inputs.
    assert largest_error(masked, model) > 0.01
    inputs = inputs_of(masked)
    assert all(np.ptp(x, axis=0).max() > 1e-3 for x in run(masked, inputs))
    assert is_zeroed_copy(masked, model)
    assert removal.after.parameters == removal.model.count_params()
    assert removal.before.parameters == model.count_params()
    assert removal.after.parameters < 0.65 * removal.before.parameters or (
        name in ("refusing", "wrapped")
    )
    assert removal.after.macs < removal.before.macs
    for got, want in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["plain", "residual", "mobile"])
def test_masked_are_the_reported_channels(keras, name):
    model = ZOO[name](keras)
    removal = remove_channels_with_report(model, sparsity=0.4)
    masked = {(p, i): a for p, i, a in weights_by_layer(removal.masked_model())}
    original = {(p, i): a for p, i, a in weights_by_layer(model)}
    for group in removal.groups:
        for layer, indices in group.indices.items():
            kernel = original[layer, 0]
            touched = np.argwhere(masked[layer, 0] != kernel)
            if "separable" in layer:  # its depthwise part stays
                assert len(touched) == 0
                continue
            axis = kernel.ndim - 1
            assert set(touched[:, axis].tolist()) == set(indices)
            assert len(touched) == kernel.size // kernel.shape[axis] * len(indices)


@pytest.mark.parametrize("score", ["magnitude", "l1", "random"])
def test_lowest_scores_go(keras, score):
    model = plain(keras)
    removal = remove_channels_with_report(model, sparsity=0.5, score=score, seed=3)
    kernel = model.get_layer("conv2").get_weights()[0]
    power = {"magnitude": 2, "l1": 1, "random": 1}[score]
    norms = (np.abs(kernel) ** power).sum((0, 1, 2))
    lowest = tuple(sorted(np.argsort(norms)[:6].tolist()))
    found = group_of(removal, "conv2").indices["conv2"]
    assert (found == lowest) == (score != "random")
    assert len(found) == 6


def test_scores_are_summed_over_a_group(keras):
    model = residual(keras)
    removal = remove_channels_with_report(model, sparsity=0.5)
    kernels = [model.get_layer(name).get_weights()[0] for name in ("stem", "back")]
    kernels.append(model.get_layer("third").get_weights()[0])
    norms = sum((kernel**2).sum((0, 1, 2)) for kernel in kernels)
    lowest = tuple(sorted(np.argsort(norms)[:4].tolist()))
    assert group_of(removal, "stem").indices == dict.fromkeys(
        ("stem", "back", "third"), lowest
    )


def test_scores_of_batch_norm_and_of_ones_own(keras):
    model = plain(keras)
    removal = remove_channels_with_report(model, sparsity=0.5, score="batch_norm")
    lowest = np.argsort(np.abs(model.get_layer("norm").get_weights()[0]))[:4]
    assert group_of(removal, "conv1").indices["conv1"] == tuple(sorted(lowest.tolist()))
    assert group_of(removal, "conv2").reason == "not scored"
    mine = {"conv2": np.arange(12.0)[::-1]}
    removal = remove_channels_with_report(model, sparsity=0.25, score=mine)
    assert group_of(removal, "conv2").indices["conv2"] == (9, 10, 11)
    assert group_of(removal, "conv1").removed == 0


def test_global_scope_takes_from_groups_with_many_small_scores(keras):
    model = plain(keras)
    kernel, bias = model.get_layer("conv2").get_weights()
    kernel[..., :9] *= 0.01
    model.get_layer("conv2").set_weights([kernel, bias])
    removal = remove_channels_with_report(model, sparsity=0.25, scope="global")
    assert sum(group.removed for group in removal.groups) == 9  # of 36
    assert group_of(removal, "conv2").indices["conv2"] == tuple(range(9))


def test_fractions_by_layer_and_patterns(keras):
    model = ZOO["nested"](keras)
    removal = remove_channels_with_report(model, sparsity={"stem": 0.5, "sh*": 0.25})
    removed = {group.layers[0]: group.removed for group in removal.groups}
    assert removed["stem"] == 4
    assert removed["shared"] == 2
    assert removed["first/conv"] == 0
    removal = remove_channels_with_report(model, sparsity=0.5, include="first")
    assert [g.removed for g in removal.groups if g.removed] == [4]
    assert group_of(removal, "stem").reason == "not in `include`"
    removal = remove_channels_with_report(model, sparsity=0.5, exclude=["second/conv"])
    assert group_of(removal, "first/conv").reason == "in `exclude`"
    assert group_of(removal, "shared").removed == 4


def test_rounding_and_minimum(keras):
    model = plain(keras)  # 8, 12 and 16 channels
    removal = remove_channels_with_report(model, sparsity=0.6, round_to=8)
    kept = [group.channels - group.removed for group in removal.groups]
    assert kept == [8, 8, 8, 4]
    removal = remove_channels_with_report(model, sparsity=0.9, min_channels=3)
    kept = [group.channels - group.removed for group in removal.groups]
    assert kept == [3, 3, 3, 4]


def test_channels_by_index(keras):
    model = plain(keras)
    small = remove_channels(model, channels={"conv1": [1, -1], "hidden": range(15)})
    kernel = model.get_layer("conv1").get_weights()[0]
    kept = small.get_layer("conv1").get_weights()[0]
    np.testing.assert_array_equal(kept, np.delete(kernel, [1, 7], axis=-1))
    assert small.get_layer("hidden").units == 1
    masked = {
        **{f"conv1/{name}": (-1, [1, 7]) for name in ("kernel", "bias")},
        **{f"norm/{name}": (-1, [1, 7]) for name in ("gamma", "beta", "moving_mean")},
        **{f"hidden/{name}": (-1, range(15)) for name in ("kernel", "bias")},
    }
    assert largest_error(small, zeroed(model, masked)) <= 1e-5


# Layers without a rule.


def test_what_cannot_be_handled_is_named(keras):
    removal = remove_channels_with_report(ZOO["refusing"](keras), sparsity=0.5)
    assert set(removal.refused) == {"norm", "lstm"}
    refused = {g.layers[0]: g.reason for g in removal.groups if g.refused}
    assert set(refused) == {"before", "between", "mixing"}
    assert "LayerNormalization" in refused["before"]
    assert "softmax" in refused["mixing"]
    assert group_of(removal, "out").reason == "an output of the model"
    assert not group_of(removal, "out").refused
    assert "norm is a LayerNormalization layer, which has no rule" in str(removal)


def test_strict_raises_for_it(keras):
    with pytest.raises(TfoptError, match=r"LayerNormalization.*lstm.*mixing"):
        remove_channels(ZOO["refusing"](keras), sparsity=0.5, strict=True)
    remove_channels(residual(keras), sparsity=0.5, strict=True)


def test_a_custom_layer_keeps_its_channels(keras):
    class Mine(keras.layers.Dense):
        """May do anything, so being a Dense layer says nothing."""

    def body(layers, x):
        x = layers.Dense(8, name="before")(x)
        return layers.Dense(2)(layers.Dense(6, name="after")(Mine(8, name="mine")(x)))

    removal = remove_channels_with_report(functional(keras, (5,), body), sparsity=0.5)
    assert removal.refused == {"mine": "is a layer of its own class, Mine"}
    assert [group.removed for group in removal.groups] == [0, 3, 0]


def test_channels_tied_to_an_input_stay(keras):
    def body(layers, x):
        y = layers.Conv2D(3, 1, name="tied")(x)
        return layers.Conv2D(2, 1)(layers.Add()([x, y]))

    removal = remove_channels_with_report(
        functional(keras, (4, 4, 3), body), sparsity=0.5
    )
    assert group_of(removal, "tied").reason == "an input of the model"


def test_subclassed_models_are_cut_and_become_functional(keras):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = keras.layers.Dense(8, activation="relu", name="hidden")
            self.top = keras.layers.Dense(2, name="top")

        def call(self, x):
            return self.top(self.hidden(x))

    model = Own()
    data = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    model(data)
    removal = remove_channels_with_report(model, sparsity=0.5)
    small, masked = removal.model, removal.masked_model()
    assert small.get_layer("hidden").units == 4
    np.testing.assert_allclose(small(data), masked(data), atol=1e-6)
    assert np.abs(small(data) - model(data)).max() > 1e-3


def test_subclassed_models_that_python_decides_in_raise(keras):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            y = self.dense(x)
            return y if float(y[0, 0]) > 0 else -y

    model = Own()
    model.dense.build((None, 3))
    model.build((None, 3)) if keras.__name__ == "keras" else model(
        np.zeros((1, 3), np.float32)
    )
    with pytest.raises(TfoptError, match="subclassed model"):
        remove_channels(model, sparsity=0.5)


# What the small model is.


def test_layers_keep_their_settings(keras):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2), name="image"),
            layers.Conv2D(8, 3, name="conv", kernel_regularizer="l2", trainable=False),
            layers.Dropout(0.25, name="dropout"),
            layers.Flatten(),
            layers.Dense(3, name="logits", dtype="float64"),
        ],
        name="net",
    )
    small = remove_channels(model, sparsity=0.5)
    assert isinstance(small, keras.Model)
    assert small.name == "net"
    assert [x.name for x in small.layers][-1] == "logits"
    conv = small.get_layer("conv")
    assert conv.filters == 4
    assert not conv.trainable
    assert conv.kernel_regularizer is not None
    assert small.get_layer("dropout").rate == 0.25
    assert small.get_layer("logits").compute_dtype == "float64"
    assert small.input_shape == (None, 6, 6, 2)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_compared_in_float32(keras, policy):
    layers = keras.layers
    make = [
        keras.Input((6, 6, 2)),
        layers.Conv2D(8, 3, activation="sigmoid", dtype=policy, name="conv"),
        layers.Conv2D(6, 3, dtype=policy, name="after"),
        layers.Flatten(),
        layers.Dense(3, dtype="float32"),
    ]
    removal = remove_channels_with_report(
        randomize(keras.Sequential(make)), sparsity=0.5
    )
    assert removal.max_error <= 1e-5
    assert removal.folded == ("after",)
    assert removal.model.get_layer("conv").compute_dtype == policy.split("_")[1]


def test_it_trains_saves_and_loads(keras, tmp_path):
    model = remove_channels(plain(keras), sparsity=0.5)
    model.compile("sgd", "mse")
    x = inputs_of(model, batch=8)
    model.fit(x, np.zeros((8, 4), np.float32), verbose=0)
    _keras.save(model, tmp_path / "small.keras")
    again = _keras.load(tmp_path / "small.keras")
    np.testing.assert_array_equal(run(again, x)[0], run(model, x)[0])


def test_report_as_plain_values(keras):
    import json

    removal = remove_channels_with_report(plain(keras), sparsity=0.5)
    plainly = json.loads(json.dumps(removal.as_dict()))
    assert plainly["groups"][0]["channels"] == 8
    assert plainly["after"]["macs"] == removal.after.macs
    assert removal.after.flops == 2 * removal.after.macs


def test_macs_against_sums_by_hand(keras):
    removal = remove_channels_with_report(ZOO["mobile"](keras), sparsity=0.0)
    by_hand = (
        9 * 9 * 3 * 3 * 3 * 8  # stem
        + 9 * 9 * 3 * 3 * 8  # depthwise
        + 9 * 9 * 3 * 3 * 16  # with multiplier 2
        + 9 * 9 * 16 * 12  # pointwise
        + 7 * 7 * (3 * 3 * 24 + 24 * 6)  # separable with multiplier 2
        + 5 * 5 * (3 * 3 * 6 + 6 * 10)  # separable
        + 10 * 3
    )
    assert removal.before.macs == removal.after.macs == by_hand


def test_free_sizes(keras):
    def body(layers, x):
        x = layers.Conv2D(8, 3, name="conv")(x)
        return layers.Dense(2)(layers.GlobalAveragePooling2D()(x))

    model = functional(keras, (None, None, 3), body)
    removal = remove_channels_with_report(model, sparsity=0.5)
    assert removal.after.macs is None
    assert group_of(removal, "conv").removed == 4
    assert "unknown" in str(removal)
