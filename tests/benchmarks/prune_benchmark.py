"""Times a training step with and without Prune; prints a table.

    python tests/benchmarks/prune_benchmark.py [--blocks=60] [--big] [--jit]

One model per variant; they take turns block by block (50 steps), so that other load on
the machine hits all alike; the figures are medians over the blocks. "hold": the masks
are final. "ramp": new masks every 20 steps, as in a ramp of 1000 steps.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from tfopt.methods.prune import Prune

BLOCK, BATCH = 50, 32
keras = tf.keras


def _model(big):
    layers = keras.layers
    convolution = [layers.Conv2D(12, 3, activation="relu"), layers.MaxPooling2D()]
    dense = [layers.Dense(units, activation="relu") for units in (1024, 512)]
    head = [layers.Flatten(), *dense] if big else [*convolution, layers.Flatten()]
    return keras.Sequential(
        [keras.Input((28, 28, 1)), *head, layers.Dense(10)],
    )


def _trainer(variant, args, data):
    """Returns a function that trains one block and returns its seconds."""
    model = _model(args.big)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=args.jit)
    model.fit(data.take(1), verbose=0)
    total = BLOCK * (args.blocks + 2)
    end = {"hold": BLOCK, "ramp": total}.get(variant)
    prune = Prune(final_sparsity=0.8, end_step=end, frequency=20) if end else None
    callbacks = keras.callbacks.CallbackList(
        [prune] if prune else [], model=model, epochs=1, steps=total
    )
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    iterator = iter(data.repeat())
    done = 0

    def block():
        nonlocal done
        start = time.perf_counter()
        for step in range(done, done + BLOCK):
            callbacks.on_train_batch_begin(step)
            model.train_function(iterator)
        done += BLOCK
        return time.perf_counter() - start

    return block


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument("--big", action="store_true", help="1.3 M weights, not 20 k")
    parser.add_argument("--jit", action="store_true", help="jit_compile=True")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.random((BLOCK * BATCH, 28, 28, 1), np.float32)
    y = rng.integers(0, 10, BLOCK * BATCH)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).cache()
    trainers = {name: _trainer(name, args, data) for name in ("base", "hold", "ramp")}
    for block in trainers.values():  # traces; ends the ramp of "hold"
        block()
    times = {name: [] for name in trainers}
    for _ in range(args.blocks):
        for name, block in trainers.items():
            times[name].append(block())
    print(f"{keras.__name__}, {_model(args.big).count_params():,} parameters")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        pairs = zip(seconds, times["base"], strict=True)
        ratios = [mine / base for mine, base in pairs]
        print(
            f"{name:5} {1e3 * median / BLOCK:7.3f} ms/step, x"
            f"{statistics.median(ratios):.3f} of base (median of paired blocks)"
        )


if __name__ == "__main__":
    main()
