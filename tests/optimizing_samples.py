"""Tiny networks and examples for searches, and recipes."""

import os
import pathlib
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent


def blobs(count=400, seed=0):
    """Three classes of points; and their labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    inputs = generator.normal(size=(count, 8)) + 3 * np.eye(8)[labels]
    return inputs.astype(np.float32), labels


def network(keras, units=32):
    """A trained classifier of blobs, with logits."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8,), name="point"),
            layers.Dense(units, activation="relu", name="hidden"),
            layers.Dense(3, name="logits"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss)
    model.fit(*blobs(), batch_size=50, epochs=3, verbose=0)
    return model


def fragile(keras):
    """Classifies blobs through a layer that full int8 ruins.

    The inner layer's outputs are a large constant channel beside the small ones that
    matter; one scale for all of them rounds these away.
    """
    model = network(keras)
    hidden, logits = (
        model.get_layer(name).get_weights() for name in ("hidden", "logits")
    )
    layers = keras.layers
    inputs = keras.Input((8,), name="point")
    x = layers.Dense(32, activation="relu", name="hidden")(inputs)
    x = layers.Dense(4, name="fragile")(x)
    x = layers.Dense(64, name="wide")(x)
    outputs = layers.Dense(3, name="logits")(x)
    result = keras.Model(inputs, outputs)
    kernel, bias = logits
    large = np.zeros((32, 1), np.float32)
    result.get_layer("hidden").set_weights(hidden)
    result.get_layer("fragile").set_weights(
        [np.concatenate([kernel, large], 1), np.append(bias, 3e4).astype(np.float32)]
    )
    first = np.zeros((4, 64), np.float32)
    first[:3, :3] = np.eye(3)
    result.get_layer("wide").set_weights([first, np.zeros(64, np.float32)])
    last = np.zeros((64, 3), np.float32)
    last[:3] = np.eye(3)
    result.get_layer("logits").set_weights([last, np.zeros(3, np.float32)])
    return result


class Child:
    """Code in a process of its own, which can be killed and run again."""

    def __init__(self, code, *arguments):
        paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        self._command = [sys.executable, "-c", code, *map(str, arguments)]
        self._options = {
            "env": {**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }

    def kill_when(self, is_time, *, seconds, pause):
        """Runs it until something is true, at most so many seconds, and kills it."""
        running = subprocess.Popen(self._command, **self._options)
        deadline = time.monotonic() + seconds
        while not is_time() and time.monotonic() < deadline:
            time.sleep(pause)
        running.kill()
        running.communicate()

    def run(self, *, seconds):
        """Runs it to its end."""
        return subprocess.run(
            self._command, check=False, timeout=seconds, **self._options
        )
