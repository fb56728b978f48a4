"""What QuantizeAware splits up for training and replaces for LiteRT."""

import numpy as np
import pytest
import quantize_aware_networks as networks

from tfopt import _keras, tflite_file
from tfopt.conversion import convert
from tfopt.methods.quantize_aware import QuantizeAware
from tfopt.methods.quantize_aware._lowering import _einsum
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras

# Equation, shapes of input and kernel, shape of the bias and its axes.
EQUATIONS = {
    "dense": ("ab,bc->ac", (3, 4), (4, 5), (5,), "c"),
    "ellipsis": ("...x,xy->...y", (3, 2, 4), (4, 5), (5,), "y"),
    "heads": ("abc,cde->abde", (3, 2, 4), (4, 5, 6), (5, 6), "de"),
    "heads_first": ("abc,cde->adbe", (3, 2, 4), (4, 5, 6), (5, 1, 6), "de"),
    "joined_heads": ("abde,dec->abc", (3, 2, 4, 5), (4, 5, 6), (6,), "c"),
    "mixing": ("abc,bd->adc", (3, 2, 4), (2, 5), (5, 1), "d"),
    "turned_kernel": ("abc,edc->abde", (3, 2, 4), (6, 5, 4), (5, 6), "de"),
}


@pytest.mark.parametrize("name", sorted(EQUATIONS))
def test_einsum_is_a_matrix_product(keras, name):
    equation, shape, kernel_shape, bias_shape, bias_axes = EQUATIONS[name]
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.normal(size=s) for s in (shape, kernel_shape, bias_shape))
    plan = _einsum.plan(equation, (None, *shape[1:]), kernel_shape)
    matrix, row = plan.matrices(kernel, bias, bias_axes=bias_axes)
    value = x.transpose(plan.before) if plan.before else x
    value = (value.reshape(-1, len(matrix)) @ matrix + row).reshape(plan.sizes)
    got = value.transpose(plan.after) if plan.after else value
    assert np.allclose(got, np.einsum(equation, x, kernel) + bias, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["mixer", "preprocessing", "pyramid", "shared_norms", "volumes", "wave"]
)
def test_lowered_model_computes_the_same(keras, name):
    network = networks.NETWORKS[name]
    model, data = network.model(keras), network.data(16)
    method = QuantizeAware(representative_dataset=data)
    prepared = method.prepare(model)
    got = np.asarray(method.finalize(prepared)(data, training=False))
    expected = np.asarray(prepared(data, training=False))
    step = np.ptp(expected) / 255
    assert np.abs(got - expected).mean() < 0.1 * step
    # Both are rounded: the float model is further away.
    exact = np.asarray(model(data, training=False))
    assert np.abs(exact - expected).mean() > 0.1 * step


@pytest.mark.parametrize(
    ("kind", "build"),
    [
        ("Conv3D", lambda k, x: k.Conv3D(2, 2, dilation_rate=2)(x)),
        ("Conv3DTranspose", lambda k, x: k.Conv3DTranspose(2, 2)(x)),
        ("GroupNormalization", lambda k, x: k.GroupNormalization(2)(x)),
        ("LayerNormalization", lambda k, x: k.LayerNormalization(axis=[-2, -1])(x)),
        (
            "Resizing",
            lambda k, x: k.Resizing(3, 3, "bicubic")(k.Reshape((6, 36, 2))(x)),
        ),
        ("ReLU", lambda k, x: k.ReLU(threshold=0.5)(x)),
        ("Softmax", lambda k, x: k.Softmax(axis=[1, 2])(x)),
        ("UnitNormalization", lambda k, x: k.UnitNormalization(axis=1)(x)),
    ],
)
def test_what_has_no_kernel_is_listed_or_refused(keras, kind, build):
    inputs = keras.Input((6, 6, 6, 2))
    x = build(keras.layers, keras.layers.Dense(2)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    method = QuantizeAware()
    method.prepare(model)
    (entry,) = [e for e in method.report if e["treatment"] == "float"]
    assert entry["kind"] == kind
    assert len(entry["reason"]) > 10
    with pytest.raises(TfoptError, match=kind):
        QuantizeAware(strict=True).prepare(model)


def test_series_of_free_length_are_int8(keras):
    k = keras.layers
    inputs = keras.Input((None, 4))
    x = k.BatchNormalization()(k.Dense(5, activation="relu")(inputs))
    x = k.Conv1D(6, 3, activation="swish")(x)
    model = keras.Model(inputs, k.Dense(3)(k.GlobalAveragePooling1D()(x)))
    for layer in model.layers:
        layer.set_weights([w + 0.1 if w.ndim == 1 else w for w in layer.get_weights()])
    data = np.random.default_rng(0).normal(size=(16, 12, 4)).astype(np.float32)
    method = QuantizeAware(representative_dataset=data, strict=True)
    final = method.finalize(method.prepare(model))
    content = convert(final, quantization="int8", verify=False)
    assert tflite_file.float_operators(tflite_file.read(content)) == []


@pytest.mark.parametrize("name", ["exponential_units", "wave"])
def test_split_and_lowered_models_survive_saving(keras, name, tmp_path):
    network = networks.NETWORKS[name]
    data = network.data(8)
    method = QuantizeAware(representative_dataset=data)
    prepared = method.prepare(network.model(keras))
    final = method.finalize(prepared)
    prepared.save(tmp_path / "prepared.keras")
    final.save(tmp_path / "final.keras")
    expected = np.asarray(final(data, training=False))
    for again in (
        _keras.load(tmp_path / "final.keras"),
        method.finalize(_keras.load(tmp_path / "prepared.keras")),
    ):
        assert np.array_equal(np.asarray(again(data, training=False)), expected)


def test_layer_norm_serves_weak_and_strong_inputs(keras):
    rng = np.random.default_rng(0)
    strength = np.exp(rng.normal(size=(64, 1, 1)) * 0.5)
    data = (rng.normal(size=(64, 5, 32)) * strength).astype(np.float32)
    inputs = keras.Input((5, 32))
    model = keras.Model(inputs, keras.layers.LayerNormalization()(inputs))
    prepared = QuantizeAware(representative_dataset=data, strict=True).prepare(model)
    assert [tuple(w.shape) for w in prepared.trainable_weights] == [(32,), (32,)]
    expected = np.asarray(model(data))
    error = np.asarray(prepared(data, training=False)) - expected
    ratio = 10 * np.log10(np.square(expected).mean() / np.square(error).mean())
    # int8 at input and output alone leave 26 dB of these inputs.
    assert ratio > 22


def test_layer_norm_of_many_channels_stays_float(keras):
    inputs = keras.Input((257,))
    x = keras.layers.LayerNormalization()(keras.layers.Dense(257)(inputs))
    method = QuantizeAware()
    method.prepare(keras.Model(inputs, keras.layers.Dense(2)(x)))
    (entry,) = [e for e in method.report if e["treatment"] == "float"]
    assert "256 channels" in entry["reason"]
