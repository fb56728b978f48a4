"""Prune under tf.distribute: two virtual CPU devices, and two worker processes.

Both change the process they run in, so they run in children.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import pytest

pytestmark = [pytest.mark.both_keras, pytest.mark.slow]

TESTS = pathlib.Path(__file__).parent

MIRRORED = """
import json, sys
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
import prune_samples as samples
from tfopt.methods.prune import Prune

keras = tf.keras
x, y = samples.data()
CASES = {
    "magnitude": dict(final_sparsity=0.8, end_step=9, scope="global"),
    "gradient": dict(final_sparsity=0.8, end_step=9, frequency=3, score="gradient"),
    "gradient_once": dict(
        final_sparsity=0.5, schedule="constant", begin_step=4, score="gradient"),
    "movement": dict(final_sparsity=0.8, begin_step=1, end_step=9, score="movement"),
    "activation": dict(
        final_sparsity=0.8, end_step=9, score="activation", data=[x[:16]]),
    "2:4": dict(structure="2:4", end_step=9),
    "channel": dict(structure="channel", final_sparsity=0.5, end_step=9),
    "penalty": dict(final_sparsity=0.8, end_step=9, rewind_step=2,
                    sparsity_penalty={"kind": "l1", "strength": 1e-3}),
}
found = {}
for name, options in CASES.items():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    frozen = name == "gradient_once"
    with strategy.scope():
        optimizer = keras.optimizers.SGD(0.0) if frozen else "adam"
        model = samples.compiled(keras, optimizer=optimizer)
    initial = [w.tolist() for w in model.get_weights()]
    prune, watcher = Prune(**options), samples.watch(keras)
    samples.fit(model, [watcher, prune])
    prune.finalize(model)
    found[name] = {
        "seen": [[step, {k: int(v) for k, v in zeros.items()}]
                 for step, zeros in watcher.seen],
        "masks": {k: v.astype(int).tolist() for k, v in prune.masks.items()},
        "initial": initial,
    }
print("RESULT" + json.dumps(found))
"""

WORKER = """
import json, os, sys
os.environ["TF_CONFIG"] = sys.argv[1]
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import prune_samples as samples
from tfopt.methods.prune import Prune

keras = tf.keras
x, y = samples.data()
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = (
    tf.data.experimental.AutoShardPolicy.DATA)
data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16).with_options(options)
found = {}
for score in ("magnitude", "gradient"):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = samples.compiled(keras)
    prune = Prune(final_sparsity=0.8, begin_step=1, end_step=5, score=score,
                  log_dir=sys.argv[2])
    model.fit(data, epochs=3, verbose=0, callbacks=[prune])
    prune.finalize(model)
    found[score] = {
        "masks": {k: v.astype(int).tolist() for k, v in prune.masks.items()},
        "kernel": model.get_layer("first").kernel.numpy().tolist(),
    }
print("RESULT" + json.dumps(found), flush=True)
"""


def start(code, *arguments):
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    env = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(child, timeout=300):
    try:
        output, errors = child.communicate(timeout=timeout)
    finally:
        child.kill()
    lines = [line for line in output.splitlines() if line.startswith("RESULT")]
    assert child.returncode == 0, errors[-3000:]
    assert lines, errors[-3000:]
    return json.loads(lines[-1].removeprefix("RESULT"))


@pytest.fixture(scope="module")
def mirrored():
    return result(start(MIRRORED))


@pytest.mark.parametrize(
    "name", ["gradient", "movement", "activation", "penalty", "magnitude"]
)
def test_two_devices_hold_the_target(mirrored, name):
    seen = [zeros for step, zeros in mirrored[name]["seen"] if step >= 9]
    assert seen
    for zeros in seen:
        if name == "magnitude":
            assert sum(zeros.values()) == 272 - 54
        else:
            assert zeros == {"first/kernel": 154, "second/kernel": 64}


def test_two_devices_structures(mirrored):
    assert mirrored["2:4"]["seen"][-1][1] == {"first/kernel": 96, "second/kernel": 40}
    assert mirrored["channel"]["seen"][-1][1]["first/kernel"] == 96


def test_gradients_of_two_devices_are_averaged(mirrored):
    """Over replicas as over batches: here each replica has half of a batch."""
    import numpy as np
    import prune_samples as samples

    from tfopt import masks

    found = mirrored["gradient_once"]
    first, bias, second, last = (np.array(w) for w in found["initial"])
    x, y = samples.data()
    scores = []
    for start in range(0, 3 * samples.BATCH, samples.BATCH // 2):
        inputs, labels = x[start : start + 4], y[start : start + 4]
        hidden = np.maximum(inputs @ first + bias, 0)
        logits = hidden @ second + last
        odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        odds[np.arange(4), labels] -= 1
        gradient = inputs.T @ ((odds @ second.T) * (hidden > 0))
        scores.append(np.abs(first * gradient))
    expected = masks.compute([np.mean(scores, 0)], 0.5)[0]
    assert np.array_equal(found["masks"]["first/kernel"], expected)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def test_two_workers_have_one_and_the_same_masks(keras, tmp_path):
    if keras.Model.__module__.startswith("keras."):
        pytest.skip("Keras 3's own `fit` cannot run on several workers (PerReplica)")
    workers = [f"localhost:{port}" for port in free_ports(2)]
    children = [
        start(
            WORKER,
            json.dumps(
                {
                    "cluster": {"worker": workers},
                    "task": {"type": "worker", "index": index},
                }
            ),
            str(tmp_path / f"logs{index}"),
        )
        for index in range(2)
    ]
    try:
        first, second = (result(child) for child in children)
    finally:
        for child in children:
            child.kill()
    assert first == second
    for found in first.values():
        masked = found["masks"]
        assert sum(map(sum, masked["first/kernel"])) == 192 - 154
        assert sum(map(sum, masked["second/kernel"])) == 80 - 64
    assert list((tmp_path / "logs0").glob("events*"))
    assert not (tmp_path / "logs1").exists()  # only the first worker writes
