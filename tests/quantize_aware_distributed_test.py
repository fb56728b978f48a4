"""QuantizeAware under tf.distribute: two virtual CPU devices, in a child process."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.both_keras, pytest.mark.slow]

TESTS = pathlib.Path(__file__).parent

MIRRORED = """
import json
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
import quantize_aware_samples as samples
from tfopt.conversion import convert_with_report
from tfopt.methods.quantize_aware import QuantizeAware

keras = tf.keras
images = np.random.default_rng(0).random((64, 14, 14, 1), np.float32)
images[:32] *= 0.5  # another range on each device, in each batch of 64
labels = np.random.default_rng(1).integers(0, 10, 64)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
method = QuantizeAware(delay_steps=1, freeze_ranges_after=3, ema_decay=0.5)
with strategy.scope():
    prepared = samples.compiled(keras, method.prepare(samples.mobile(keras)))
prepared.fit(images, labels, batch_size=64, epochs=2, shuffle=False, verbose=0,
             callbacks=[method])
early = samples.ranges(prepared)
prepared.fit(images, labels, batch_size=64, epochs=2, shuffle=False, verbose=0,
             callbacks=[method])
late = samples.ranges(prepared)
prepared.fit(2 * images, labels, batch_size=64, shuffle=False, verbose=0,
             callbacks=[method])
frozen = samples.ranges(prepared)
report = convert_with_report(method.finalize(prepared), quantization="int8",
                             representative_dataset=images).report
print("RESULT" + json.dumps({
    "early": early, "late": late, "frozen": frozen,
    "floats": report["float_operators"],
    "outputs": report["verification"]["outputs"],
}))
"""


@pytest.fixture(scope="module")
def mirrored():
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MIRRORED],
        env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    lines = [x for x in child.stdout.splitlines() if x.startswith("RESULT")]
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(lines[-1].removeprefix("RESULT"))


def test_ranges_are_means_over_devices(mirrored):
    # One device sees inputs below 0.5, the other one below 1.
    assert mirrored["early"][0] == pytest.approx([0, 0.75], abs=0.02)


def test_ranges_follow_until_they_freeze(mirrored):
    assert mirrored["late"] != mirrored["early"]
    assert mirrored["frozen"] == mirrored["late"]


def test_the_file_agrees(mirrored):
    assert mirrored["floats"] == []
    (output,) = mirrored["outputs"].values()
    assert output["sqnr_db"] > 25
