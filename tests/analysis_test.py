"""Counted sparsity of Keras models and of `.tflite` files."""

import numpy as np
import prune_samples as samples
import pytest

from tfopt import analysis
from tfopt._keras import variables
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras


def image_model(keras):
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, name="depth"),
            layers.Flatten(),
            layers.Dense(32, name="dense"),
        ]
    )


def prune_by_hand(model, fraction):
    """Makes the smallest weights zero; returns the sparsity by kernel and in all."""
    kernels = variables.kernels(model)
    for weight in kernels:
        value = weight.variable.numpy()
        value.flat[np.argsort(abs(value.ravel()))[: int(fraction * value.size)]] = 0
        weight.variable.assign(value)
    exact = {w.name: int(fraction * w.size) / w.size for w in kernels}
    total = sum(int(fraction * w.size) for w in kernels) / sum(w.size for w in kernels)
    return {**exact, "total": total}


def test_keras_model(keras, tmp_path):
    model = image_model(keras)
    assert set(analysis.sparsity(model).values()) == {0.0}
    expected = prune_by_hand(model, 0.7)
    assert len(expected) == 4
    assert analysis.sparsity(model) == pytest.approx(expected, abs=0)
    path = tmp_path / "model.keras"
    model.save(path)
    assert analysis.sparsity(path) == expected


def test_biases_do_not_count(keras):
    model = samples.dense(keras)
    assert analysis.sparsity(model)["total"] == 0.0  # though all biases are zero


def test_model_without_kernels(keras):
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.ReLU()])
    assert analysis.sparsity(model) == {"total": 0.0}


@pytest.mark.parametrize("kind", ["float", "float16", "dynamic", "int8", "sparse"])
def test_tflite(keras, kind, tmp_path):
    import tensorflow as tf

    model = image_model(keras)
    # Rounding to eight bits adds zeros among the small weights: leave a gap.
    for weight in variables.kernels(model):
        value = weight.variable.numpy()
        weight.variable.assign(np.sign(value) * (abs(value) + 0.1))
    expected = prune_by_hand(model, 0.8)
    spec = tf.TensorSpec([1, 8, 8, 3])
    module = tf.Module()
    # Keras 3 hides its variables from TensorFlow.
    module.held = [v.value if hasattr(v, "path") else v for v in model.variables]
    function = tf.function(lambda x: model(x)).get_concrete_function(spec)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    optimize = tf.lite.Optimize
    converter.optimizations = {
        "float": [],
        "sparse": [optimize.EXPERIMENTAL_SPARSITY],
    }.get(kind, [optimize.DEFAULT])
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        rng = np.random.default_rng(0)
        converter.representative_dataset = lambda: (
            [rng.random((1, 8, 8, 3), np.float32)] for _ in range(4)
        )
    content = converter.convert()
    found = analysis.sparsity(content)
    assert sorted(found.values()) == pytest.approx(sorted(expected.values()), abs=1e-12)
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    assert analysis.sparsity(path) == analysis.sparsity(str(path)) == found


@pytest.mark.parametrize("thing", [object(), b"no flatbuffer", "missing.tflite"])
def test_no_model(thing):
    with pytest.raises(TfoptError, match="Received"):
        analysis.sparsity(thing)
