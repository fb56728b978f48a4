"""Removing channels that have no effect any more, and making up for constants."""

import numpy as np
import pytest
from surgery_samples import functional, largest_error, plain, zeroed

from tfopt.methods.prune import Prune
from tfopt.surgery import remove_channels, remove_channels_with_report
from tfopt.types import TfoptError, VerificationError

pytestmark = pytest.mark.both_keras


def chain(keras, *, activation=None, padding="valid", kernel=1, norm=False, **options):
    """conv -> (norm) -> activation -> reader -> logits."""

    def body(layers, x):
        x = layers.Conv2D(8, 3, name="conv")(x)
        if norm:
            x = layers.BatchNormalization(name="norm", **options)(x)
        x = layers.Activation(activation or "linear")(x)
        use_bias = not norm
        reader = layers.Conv2D(
            6, kernel, padding=padding, use_bias=use_bias, name="reader"
        )
        return layers.Dense(3, name="logits")(layers.Flatten()(reader(x)))

    return functional(keras, (8, 8, 2), body)


def filters_of(model, name="conv"):
    return model.get_layer(name).filters


def zero_filters(*indices):
    return {"conv/kernel": (-1, indices), "conv/bias": (-1, indices)}


def test_zero_channels_go_and_others_stay(keras):
    model = zeroed(chain(keras, activation="relu", kernel=3), zero_filters(1, 4, 5))
    removal = remove_channels_with_report(model)
    assert removal.groups[0].indices == {"conv": (1, 4, 5)}
    assert [group.removed for group in removal.groups] == [3, 0, 0]
    assert removal.folded == ()
    assert largest_error(removal.model, model) <= 1e-5


def test_nothing_to_remove(keras):
    model = plain(keras)
    removal = remove_channels_with_report(model)
    assert removal.before == removal.after
    assert largest_error(removal.model, model) == 0


@pytest.mark.parametrize(
    ("activation", "constant", "kernel"),
    [
        ("linear", 0.7, 1),
        ("relu", 0.7, 3),
        ("relu", -0.7, 3),
        ("sigmoid", 0.0, 1),
        ("swish", 0.5, 3),
    ],
)
def test_constants_go_into_the_bias_of_the_reader(keras, activation, constant, kernel):
    model = zeroed(
        chain(keras, activation=activation, kernel=kernel), zero_filters(2, 6)
    )
    layer = model.get_layer("conv")
    weights, bias = layer.get_weights()
    bias[[2, 6]] = constant
    layer.set_weights([weights, bias])
    removal = remove_channels_with_report(model)
    assert filters_of(removal.model) == 6
    is_zero = activation == "relu" and constant < 0
    assert removal.folded == (() if is_zero else ("reader",))
    assert largest_error(removal.model, model) <= 1e-5
    # Negative control: without the constants in the bias, it is another function.
    reader = removal.model.get_layer("reader")
    old = model.get_layer("reader").get_weights()[1]
    reader.set_weights([reader.get_weights()[0], old])
    assert (largest_error(removal.model, model) > 1e-3) != is_zero


def test_constants_behind_a_normalization(keras):
    model = chain(keras, norm=True, activation="relu")
    model = zeroed(model, {**zero_filters(0, 1), "norm/gamma": (-1, [0, 1, 2])})
    removal = remove_channels_with_report(model)
    # Scaled by zero, channel 2 is its offset, whatever the convolution makes.
    assert removal.groups[0].indices == {"conv": (0, 1, 2)}
    assert largest_error(removal.model, model) <= 1e-5
    # The reader had no bias.
    assert removal.model.get_layer("reader").use_bias == bool(removal.folded)


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {}])
def test_masking_makes_normalized_channels_zero(keras, options):
    model = chain(keras, norm=True, kernel=3, padding="same", **options)
    removal = remove_channels_with_report(model, sparsity=0.5)
    assert filters_of(removal.model) == 4
    assert removal.folded == ()
    assert largest_error(removal.model, removal.masked_model()) <= 1e-5


def test_constants_stay_where_zeros_are_padded_around_them(keras):
    model = chain(keras, activation="sigmoid", kernel=3, padding="same")
    dead = zeroed(model, zero_filters(3))
    removal = remove_channels_with_report(dead)
    assert filters_of(removal.model) == 8
    assert removal.groups[0].reason == (
        "1 dead ones stay: they are constant but not zero, and 'reader' pads them "
        "with zeros"
    )
    removal = remove_channels_with_report(model, sparsity=0.5)
    assert [group.removed for group in removal.groups] == [0, 3, 0]
    assert removal.groups[0].refused
    with pytest.raises(TfoptError, match="pads them with zeros"):
        remove_channels(model, sparsity=0.5, strict=True)
    with pytest.raises(ValueError, match="pads them with zeros"):
        remove_channels(model, channels={"conv": [0]})


def test_only_where_the_padded_weights_are_not_zero(keras):
    model = chain(keras, activation="sigmoid", kernel=3, padding="same")
    model = zeroed(model, {**zero_filters(3), "reader/kernel": (-2, [3])})
    small = remove_channels(model)
    assert filters_of(small) == 7
    assert largest_error(small, model) <= 1e-5


def test_channels_that_nothing_reads_go_with_what_only_they_read(keras):
    model = zeroed(chain(keras, activation="relu", kernel=3), {})
    kernel, bias = model.get_layer("reader").get_weights()
    kernel[..., 5, :] = 0
    kernel[..., 6, :4] = 0  # channel 6 of conv is read by 4 and 5 alone
    model.get_layer("reader").set_weights([kernel, bias])
    logits, bias = model.get_layer("logits").get_weights()
    logits.reshape(-1, 6, 3)[:, 4:] = 0  # and these by none
    model.get_layer("logits").set_weights([logits, bias])
    removal = remove_channels_with_report(model)
    assert removal.groups[0].indices == {"conv": (5, 6)}
    assert removal.groups[1].indices == {"reader": (4, 5)}
    assert largest_error(removal.model, model) <= 1e-5


def test_rounding_keeps_dead_channels(keras):
    model = zeroed(chain(keras, activation="relu", kernel=3), zero_filters(0, 1, 2))
    removal = remove_channels_with_report(model, round_to=4)
    assert filters_of(removal.model) == 8
    assert removal.groups[0].reason == ("3 more stay for round_to=4 and min_channels=1")
    removal = remove_channels_with_report(model, round_to=2)
    assert filters_of(removal.model) == 6
    assert largest_error(removal.model, model) <= 1e-5


def test_at_least_one_channel_stays(keras):
    model = zeroed(chain(keras, activation="relu"), zero_filters(*range(8)))
    small = remove_channels(model)
    assert filters_of(small) == 1
    # Its output is constant, and so is what follows.
    assert largest_error(small, model) <= 1e-5


def test_a_sum_keeps_what_one_branch_still_makes(keras):
    def body(layers, x):
        left = layers.Conv2D(6, 3, name="left")(x)
        right = layers.Conv2D(6, 3, name="right")(x)
        x = layers.ReLU()(layers.Add()([left, right]))
        return layers.Dense(2)(layers.GlobalAveragePooling2D()(x))

    model = functional(keras, (6, 6, 2), body)
    names = [f"left/{name}" for name in ("kernel", "bias")]
    model = zeroed(model, {name: (-1, [0, 1]) for name in names})
    assert filters_of(remove_channels(model), "left") == 6
    names = [f"right/{name}" for name in ("kernel", "bias")]
    model = zeroed(model, {name: (-1, [1, 2]) for name in names})
    small = remove_channels(model)
    assert filters_of(small, "left") == filters_of(small, "right") == 5
    assert largest_error(small, model) <= 1e-5


def test_a_product_with_zero_is_zero(keras):
    def body(layers, x):
        x = layers.Conv2D(6, 3, name="conv")(x)
        y = layers.GlobalAveragePooling2D()(x)
        y = layers.Dense(6, activation="sigmoid", name="gate")(y)
        x = layers.Multiply()([x, layers.Reshape((1, 1, 6))(y)])
        return layers.Conv2D(2, 3, padding="same")(x)

    model = zeroed(functional(keras, (6, 6, 2), body), zero_filters(1, 3))
    small = remove_channels(model)
    assert filters_of(small) == small.get_layer("gate").units == 4
    assert largest_error(small, model) <= 1e-5


def test_depthwise_filters_that_are_zero_take_their_inputs_along(keras):
    def body(layers, x):
        x = layers.Conv2D(8, 1, activation="relu", name="conv")(x)
        x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
        return layers.Conv2D(2, 3, padding="same")(layers.ReLU()(x))

    model = functional(keras, (6, 6, 2), body)
    kernel, bias = model.get_layer("depthwise").get_weights()
    kernel[:, :, [2, 7]], bias[[2, 7]] = 0, -1.0
    model.get_layer("depthwise").set_weights([kernel, bias])
    small = remove_channels(model)
    assert filters_of(small) == 6
    assert largest_error(small, model) <= 1e-5


def test_a_shared_layer_has_one_bias(keras):
    """Its first call reads the constant 1, its second one 2: no bias fits both."""

    def body(layers, x):
        x = layers.Conv2D(4, 1, name="conv")(x)
        y = layers.Rescaling(2.0)(x)
        shared = layers.Conv2D(3, 1, name="shared")
        return layers.Concatenate()([shared(x), shared(y)])

    model = zeroed(functional(keras, (4, 4, 2), body), zero_filters(0, 1))
    layer = model.get_layer("conv")
    kernel, bias = layer.get_weights()
    bias[0] = 1.0
    layer.set_weights([kernel, bias])
    removal = remove_channels_with_report(model)
    assert removal.groups[0].indices == {"conv": (1,)}
    assert "'shared' is shared" in removal.groups[0].reason
    assert largest_error(removal.model, model) <= 1e-5


def test_a_slope_of_its_own_for_each_position_is_not_constant(keras):
    def body(layers, x):
        x = layers.PReLU(name="prelu")(layers.Conv2D(4, 1, name="conv")(x))
        return layers.Dense(2)(layers.Flatten()(x))

    model = zeroed(functional(keras, (4, 4, 2), body), zero_filters(0, 1))
    layer = model.get_layer("conv")
    kernel, bias = layer.get_weights()
    bias[:2] = [1.0, -1.0]
    layer.set_weights([kernel, bias])
    removal = remove_channels_with_report(model)
    assert removal.groups[0].indices == {"conv": (0,)}
    assert removal.model.get_layer("prelu").alpha.shape == (4, 4, 3)
    assert largest_error(removal.model, model) <= 1e-5


def test_verification_finds_a_wrong_model(keras, monkeypatch):
    from tfopt.surgery import _rebuild

    right = _rebuild.cut

    def wrong(*arguments):
        graph, folded = right(*arguments)
        for spec in graph.layers():
            if spec.path == "conv":
                spec.weights[0] = spec.weights[0][..., ::-1]
        return graph, folded

    monkeypatch.setattr(_rebuild, "cut", wrong)
    with pytest.raises(VerificationError, match="at the layer 'conv'"):
        remove_channels(plain_chain(keras), sparsity=0.5)
    remove_channels(plain_chain(keras), sparsity=0.5, verify=False)


def plain_chain(keras):
    return chain(keras, activation="relu", kernel=3)


def test_data_to_verify_with(keras):
    model = plain_chain(keras)
    x = np.zeros((2, 8, 8, 2), np.float32)
    assert remove_channels_with_report(model, sparsity=0.5, data=x).max_error < 1e-5
    with pytest.raises(VerificationError, match="not finite"):
        remove_channels(model, sparsity=0.5, data=x + np.nan)
    with pytest.raises(ValueError, match="1 inputs"):
        remove_channels(model, sparsity=0.5, data=[x, x])
    unverified = remove_channels_with_report(model, sparsity=0.5, verify=False)
    assert unverified.max_error is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"sparsity": {"conv": -0.1}}, "sparsity="),
        ({"sparsity": {"cnov": 0.5}}, "cnov"),
        ({"sparsity": 0.5, "channels": {}}, "not both"),
        ({"sparsity": 0.5, "scope": "globl"}, "scope='globl'"),
        ({"sparsity": {"conv": 0.5}, "scope": "global"}, "one fraction"),
        ({"sparsity": 0.5, "score": "l3"}, "score='l3'"),
        ({"sparsity": 0.5, "score": {"cnov": [1]}}, "cnov"),
        ({"sparsity": 0.5, "score": {"conv": [1]}}, "8 finite scores"),
        ({"sparsity": 0.5, "round_to": 0}, "round_to=0"),
        ({"sparsity": 0.5, "min_channels": 1.5}, "min_channels=1.5"),
        ({"sparsity": 0.5, "include": "cnov"}, "cnov"),
        ({"sparsity": 0.5, "exclude": ["cnov"]}, "cnov"),
        ({"sparsity": 0.5, "include": []}, None),
        ({"channels": {"cnov": [0]}}, "cnov"),
        ({"channels": {"conv": [8]}}, "8 is none"),
        ({"channels": {"logits": [0]}}, "an output of the model"),
        ({"channels": {"conv": [0]}, "round_to": 4}, "round_to=4"),
        ({"channels": {"conv": range(8)}}, "min_channels=1"),
    ],
)
def test_wrong_arguments(keras, options, message):
    model = plain_chain(keras)
    if message is None:
        removal = remove_channels_with_report(model, **options)
        assert not any(group.removed for group in removal.groups)
        return
    with pytest.raises(ValueError, match=message):
        remove_channels(model, **options)


def test_what_prune_masked_goes(keras):
    model = plain(keras)
    x = np.random.default_rng(0).normal(size=(16, 12, 12, 3)).astype(np.float32)
    model.compile("adam", "mse")
    prune = Prune(final_sparsity=0.5, structure="channel", end_step=2)
    y = np.ones((16, 4), np.float32)
    model.fit(x, y, batch_size=4, epochs=1, verbose=0, callbacks=[prune])
    removal = remove_channels_with_report(prune.finalize(model))
    kept = [group.channels - group.removed for group in removal.groups]
    assert kept == [4, 6, 8, 4]
    assert largest_error(removal.model, model) <= 1e-5
