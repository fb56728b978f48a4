"""Times a training step with and without Prune; prints a table.

    python tests/benchmarks/prune_benchmark.py [--blocks=60] [--big] [--jit]
    TF_USE_LEGACY_KERAS=1 python tests/benchmarks/prune_benchmark.py [...] --tfmot

One model per variant; they take turns block by block (50 steps), so that other load on
the machine hits all alike; the figures are medians over the blocks. "hold": the masks
are final. "ramp": new masks every 20 steps, as in a ramp of 1000 steps. "default": new
masks 50 times in 3/4 of the steps, as by default. "2:4" and "gradient" are ramps too,
with that structure and that score. "tfmot" and "tfmot_hold": TFMOT's wrappers with the
same ramp, and after it.
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


def _options(variant, total):
    """Returns Prune's arguments for a variant, or None."""
    ramp = {"end_step": total, "frequency": 20}
    return {
        "hold": {"final_sparsity": 0.8, "end_step": BLOCK, "frequency": 20},
        "default": {"final_sparsity": 0.8},
        "ramp": {"final_sparsity": 0.8, **ramp},
        "2:4": {"structure": "2:4", **ramp},
        "gradient": {"final_sparsity": 0.8, "score": "gradient", **ramp},
    }.get(variant)


def _wrapped(model, end):
    """Returns the model in TFMOT's wrappers, and their callbacks."""
    from tfopt import tfmot

    return tfmot.prune_low_magnitude(
        model,
        initial_sparsity=0.0,
        final_sparsity=0.8,
        begin_step=0,
        end_step=end,
        frequency=20,
    )


def _trainer(variant, args, data):
    """Returns a function that trains one block and returns its seconds."""
    model, callbacks = _model(args.big), []
    total = BLOCK * (args.blocks + 2)
    if variant.startswith("tfmot"):
        end = BLOCK if variant.endswith("hold") else total
        model, callbacks = _wrapped(model, end)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=args.jit)
    model.fit(data.take(1), verbose=0, callbacks=callbacks)
    options = _options(variant, total)
    if options is not None:
        callbacks = [Prune(**options)]
    callbacks = keras.callbacks.CallbackList(
        callbacks, model=model, epochs=1, steps=total
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
    parser.add_argument("--tfmot", action="store_true", help="TFMOT's wrappers too")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.random((BLOCK * BATCH, 28, 28, 1), np.float32)
    y = rng.integers(0, 10, BLOCK * BATCH)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).cache()
    names = ["base", "hold", "default", "ramp", "2:4", "gradient"]
    names += ["tfmot_hold", "tfmot"] * args.tfmot
    trainers = {name: _trainer(name, args, data) for name in names}
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
            f"{name:10} {1e3 * median / BLOCK:7.3f} ms/step, x"
            f"{statistics.median(ratios):.3f} of base (median of paired blocks)"
        )


if __name__ == "__main__":
    main()
