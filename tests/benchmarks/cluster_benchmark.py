"""Times a training step with and without Cluster; prints a table.

    python tests/benchmarks/cluster_benchmark.py [--blocks=40] [--big] [--jit]

One model per variant; they take turns block by block, so that other load on the machine
hits all alike; the ratios are medians over the blocks.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from tfopt.methods.cluster import Cluster

STEPS, BATCH = 25, 32
VARIANTS = {
    "no clusters": None,
    "16, frequency=1": {"frequency": 1},
    "16, frequency=100": {"frequency": 100},
    "16, frequency=None": {"frequency": None},
    "16, channel_scales=True": {"channel_scales": True},
}
keras = tf.keras


def build(big):
    layers = keras.layers
    body = [layers.Conv2D(12, 3, activation="relu"), layers.MaxPooling2D()]
    if big:
        body = [layers.Flatten()]
        body += [layers.Dense(units, activation="relu") for units in (1024, 512)]
    return keras.Sequential(
        [keras.Input((28, 28, 1)), *body, layers.Flatten(), layers.Dense(10)]
    )


def blocks(options, args, data):
    """Yields the seconds of one block after the other, all inside one `fit` state."""
    model = build(args.big)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=args.jit)
    model.fit(data.take(1), verbose=0)
    steps = STEPS * (args.blocks + 1)
    callbacks = keras.callbacks.CallbackList(
        [] if options is None else [Cluster(num_clusters=16, **options)],
        model=model,
        epochs=1,
        steps=steps,
    )
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    iterator = iter(data.repeat())
    for block in range(args.blocks + 1):
        start = time.perf_counter()
        for step in range(block * STEPS, (block + 1) * STEPS):
            callbacks.on_train_batch_begin(step)
            model.train_function(iterator)
        yield time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--big", action="store_true", help="1.3 M weights, not 20 k")
    parser.add_argument("--jit", action="store_true", help="jit_compile=True")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.random((STEPS * BATCH, 28, 28, 1), np.float32)
    y = rng.integers(0, 10, STEPS * BATCH)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).cache()
    runs = {name: blocks(options, args, data) for name, options in VARIANTS.items()}
    for run in runs.values():  # traces
        next(run)
    times = [
        {name: next(run) for name, run in runs.items()} for _ in range(args.blocks)
    ]
    print(f"{keras.__name__}, {build(args.big).count_params():,} parameters")
    for name in VARIANTS:
        median = statistics.median(block[name] for block in times)
        ratio = statistics.median(block[name] / block["no clusters"] for block in times)
        print(f"{name:24} {1e3 * median / STEPS:7.3f} ms/step, x{ratio:.3f}")


if __name__ == "__main__":
    main()
