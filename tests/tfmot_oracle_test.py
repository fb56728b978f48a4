"""TFMOT's own numbers are the oracle: schedule values, mask counts, whole masks.

TFMOT works on tf_keras only and changes the process that imports it, so it runs in a
child process and its numbers come back as JSON.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tfopt import masks, schedules

# initial, final, begin, end, power, frequency
RAMPS = [
    *((0.0, 0.8, 0, 100, 3, 10), (0.5, 0.8, 0, 1688, 3, 100), (0.2, 0.9, 7, 40, 1, 5)),
    *((0.0, 0.99, 100, 101, 2, 1), (0.3, 0.3, 3, 50, 3, 7), (0.1, 0.75, 2, 99, 0.5, 4)),
    *((0.05, 0.5, 50, 2000, 8, 13), (0.0, 0.0, 0, 9, 3, 2)),
]
CONSTANTS = [(0.5, 0, -1, 100), (0.9, 10, 57, 5), (0.0, 3, 4, 1), (0.8, 20, 400, 50)]
SIZES = [1, 2, 3, 5, 7, 10, 12, 15, 25, 35, 64, 100, 108, 1125, 20280, 65536]
SPARSITIES = [0.0, 0.1, 0.25, 0.3, 0.5, 0.6, 0.75, 0.8, 0.875, 0.9, 0.95, 0.98, 0.999]
SHAPES = [(8, 3), (12, 5), (10, 4), (3, 7), (3, 3, 4, 5), (2, 2, 6, 3), (3, 3, 1, 4)]
M_BY_N = [(2, 4), (1, 4), (1, 2), (3, 5)]
BLOCKS = [
    *(
        ((12, 8), block, pooling)
        for block in [(1, 4), (4, 1), (3, 2)]
        for pooling in ("AVG", "MAX")
    ),
]
STEPS = [*range(0, 130), *range(130, 2100, 17), 400]

CHILD = """
import json, sys
import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_schedule

asked = json.loads(sys.argv[1])

def table(schedule):
    pairs = [schedule(tf.constant(step)) for step in asked["steps"]]
    return [[bool(update), float(value)] for update, value in pairs]

def mask(weights, sparsity):
    pruning = pruning_impl.Pruning(
        lambda: tf.constant(1), [], pruning_schedule.ConstantSparsity(sparsity, 0),
        (1, 1), "AVG")
    return pruning._update_mask(tf.constant(weights))[1].numpy()

def structured(shape, m_by_n=None, block=(1, 1), pooling="AVG"):
    values = tf.constant(weights(int(np.prod(shape))).reshape(shape))
    pruning = pruning_impl.Pruning(
        lambda: tf.constant(1), [], pruning_schedule.ConstantSparsity(0.5, 0),
        block, pooling, m_by_n)
    return np.asarray(pruning._maybe_update_block_mask(values)[1]).astype(int).tolist()

def weights(size):
    ranks = np.random.default_rng(size).permutation(size).astype(np.float32)
    return ranks - 0.3137 * size

print(json.dumps({
    "ramps": [table(pruning_schedule.PolynomialDecay(*a)) for a in asked["ramps"]],
    "constants": [
        table(pruning_schedule.ConstantSparsity(*a)) for a in asked["constants"]],
    "kept": [[np.flatnonzero(mask(weights(n), s)).tolist() if n < 200
              else int(mask(weights(n), s).sum())
              for s in asked["sparsities"]] for n in asked["sizes"]],
    "m_by_n": [structured(shape, m_by_n=tuple(m_n))
               for shape in asked["shapes"] for m_n in asked["m_by_n"]],
    "blocks": [structured(shape, block=tuple(block), pooling=pooling)
               for shape, block, pooling in asked["blocks"]],
    "ties": int(mask(np.ones(10, np.float32), 0.5).sum()),
    "nan": float(pruning_schedule.PolynomialDecay(0., .8, 5, 5)(tf.constant(5))[1]),
}))
"""


def weights(size):
    """The child's: no two magnitudes are equal."""
    return (
        np.random.default_rng(size).permutation(size).astype(np.float32) - 0.3137 * size
    )


@pytest.fixture(scope="module")
def tfmot():
    asked = {
        "steps": STEPS,
        "ramps": RAMPS,
        "constants": CONSTANTS,
        "sizes": SIZES,
        "sparsities": SPARSITIES,
        "shapes": SHAPES,
        "m_by_n": M_BY_N,
        "blocks": BLOCKS,
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, json.dumps(asked)],
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_updates(schedule, expected):
    """Updates are TFMOT's, and one more at an end step off the grid."""
    for step, (updates, _) in zip(STEPS, expected, strict=True):
        if step == schedule.end_step:
            assert schedule.updates_at(step)
        else:
            assert schedule.updates_at(step) == updates


@pytest.mark.parametrize("number", range(len(RAMPS)))
def test_polynomial_decay(tfmot, number):
    schedule = schedules.PolynomialDecay(*RAMPS[number])
    expected = tfmot["ramps"][number]
    values = [schedule(step) for step in STEPS]
    np.testing.assert_allclose(values, [v for _, v in expected], rtol=0, atol=3e-7)
    check_updates(schedule, expected)


@pytest.mark.parametrize("number", range(len(CONSTANTS)))
def test_constant_sparsity(tfmot, number):
    final, begin, end, frequency = CONSTANTS[number]
    schedule = schedules.ConstantSparsity(
        final, begin, None if end == -1 else end, frequency
    )
    expected = tfmot["constants"][number]
    values = [schedule(step) for step in STEPS]
    np.testing.assert_allclose(values, [v for _, v in expected], rtol=0, atol=3e-8)
    check_updates(schedule, expected)


def test_another_power_is_noticed(tfmot):
    initial, final, begin, end, _, frequency = RAMPS[0]
    other = schedules.PolynomialDecay(initial, final, begin, end, 2.99, frequency)
    values = [other(step) for step in STEPS]
    expected = [value for _, value in tfmot["ramps"][0]]
    assert not np.allclose(values, expected, rtol=0, atol=3e-7)


def test_masks_and_kept_counts(tfmot):
    for size, row in zip(SIZES, tfmot["kept"], strict=True):
        for sparsity, kept in zip(SPARSITIES, row, strict=True):
            (mask,) = masks.compute([np.abs(weights(size))], sparsity)
            if isinstance(kept, list):
                assert np.flatnonzero(mask).tolist() == kept, (size, sparsity)
            else:
                assert np.count_nonzero(mask) == kept, (size, sparsity)


def matrices(shape):
    """The child's weights as [positions, inputs, outputs]."""
    return np.abs(weights(np.prod(shape))).reshape(-1, *shape[-2:])


def test_masks_of_m_by_n(tfmot):
    cases = [(shape, m_n) for shape in SHAPES for m_n in M_BY_N]
    for (shape, (m, n)), expected in zip(cases, tfmot["m_by_n"], strict=True):
        (mask,) = masks.compute([matrices(shape)], m / n, structure=f"{m}:{n}")
        assert mask.reshape(shape).astype(int).tolist() == expected, (shape, m, n)


def test_masks_of_blocks(tfmot):
    for (shape, (m, n), pooling), expected in zip(BLOCKS, tfmot["blocks"], strict=True):
        (mask,) = masks.compute(
            [matrices(shape)], 0.5, structure=f"{m}x{n}", pooling=pooling.lower()
        )
        assert mask.reshape(shape).astype(int).tolist() == expected, (m, n, pooling)


def test_exceptions_to_the_oracle(tfmot):
    # Of equal weights TFMOT's threshold keeps all; here the count is exact.
    assert tfmot["ties"] == 10
    assert np.count_nonzero(masks.compute([np.ones(10)], 0.5)[0]) == 5
    # A ramp without length is NaN there, an error here.
    assert np.isnan(tfmot["nan"])
    with pytest.raises(ValueError, match="begin_step=5, end_step=5"):
        schedules.PolynomialDecay(0.0, 0.8, 5, 5)
    # An end step off the grid never comes there.
    ramp = schedules.PolynomialDecay(*RAMPS[1])
    updates = [update for update, _ in tfmot["ramps"][1]]
    assert 1688 not in [s for s, update in zip(STEPS, updates, strict=True) if update]
    assert ramp.updates_at(1688)
