"""TFMOT through tfopt, in child processes: importing it switches Keras."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from tfopt import tfmot
from tfopt.types import TfoptError

TRAIN = """
import numpy as np
import tf_keras as keras
from tfopt import tfmot, sparsity
from tfopt.types import TfoptError

def network(activation="relu"):
    layers = keras.layers
    return keras.Sequential(
        [layers.InputLayer((8,)), layers.Dense(32, activation), layers.Dense(4)]
    )

x = np.random.default_rng(0).normal(size=(256, 8)).astype("f")
y = x[:, :4]

def train(model, callbacks=()):
    model.compile("adam", "mse")
    model.fit(x, y, batch_size=16, epochs=3, verbose=0, callbacks=list(callbacks))
    return model
"""


def run(code):
    return subprocess.run(
        [sys.executable, "-c", TRAIN + code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_USE_LEGACY_KERAS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_prunes_strips_and_quantizes_with_the_zeros_kept():
    done = run(
        """
wrapped, callbacks = tfmot.prune_low_magnitude(
    network(), initial_sparsity=0.25, final_sparsity=0.75, begin_step=0, end_step=40,
    frequency=10)
pruned = tfmot.strip_pruning(train(wrapped, callbacks))
assert abs(sparsity(pruned)["total"] - 0.75) < 0.01, sparsity(pruned)

quantized = train(tfmot.quantize_model(pruned, preserve_sparsity=True))
kernels = [w.numpy() for w in quantized.weights if w.name.endswith("kernel:0")]
assert len(kernels) == 2
zeros = sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels)
assert abs(zeros - 0.75) < 0.01, zeros

plain = train(tfmot.quantize_model(pruned))
kernels = [w.numpy() for w in plain.weights if w.name.endswith("kernel:0")]
assert sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels) < 0.7
"""
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_what_tfmot_refuses_is_one_error():
    done = run(
        """
for refused in (
    lambda: tfmot.quantize_model(network("selu")),
    lambda: tfmot.strip_pruning(object()),
):
    try:
        refused()
    except TfoptError as error:
        print(error)
    else:
        raise SystemExit("not refused")
"""
    )
    assert done.returncode == 0, done.stderr
    assert "TFMOT's quantize_model refused the model" in done.stdout
    assert "Expected a Keras model" in done.stdout


def test_keras_3_models_are_refused_before_tfmot_is_imported():
    import keras

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    with pytest.raises(TfoptError, match=r"tf_keras models only"):
        tfmot.quantize_model(model)
    assert "tensorflow_model_optimization" not in sys.modules
