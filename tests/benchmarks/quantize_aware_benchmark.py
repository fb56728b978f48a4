"""Times a training step with and without QuantizeAware; prints a table.

    python tests/benchmarks/quantize_aware_benchmark.py [--network=mobile] [--jit]
    TF_USE_LEGACY_KERAS=1 python tests/benchmarks/quantize_aware_benchmark.py

One model per variant; they take turns block by block, so that other load on the machine
hits all alike; the figures are medians over the blocks. With TF_USE_LEGACY_KERAS=1 and
TFMOT installed, its `quantize_model` is measured too.
"""

import argparse
import importlib.util
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from tfopt.methods.quantize_aware import QuantizeAware

keras = tf.keras


def _quickstart():
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(12, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def _mobile():
    layers = keras.layers
    inputs = x = keras.Input((28, 28, 1))
    for filters, strides in ((8, 2), (16, 1), (24, 2), (24, 1), (32, 2)):
        shortcut = x
        for layer in (
            layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False),
            layers.Conv2D(filters, 1, use_bias=False),
        ):
            x = layers.ReLU(6.0)(layers.BatchNormalization()(layer(x)))
        if shortcut.shape == x.shape:
            x = layers.Add()([shortcut, x])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def _variants(build, trackings):
    model = build()
    yield "float", model
    for tracking in trackings:
        yield tracking, QuantizeAware(range_tracking=tracking).prepare(model)
    legacy = keras.__name__.startswith("tf_keras") or "tf_keras" in model.__module__
    if legacy and importlib.util.find_spec("tensorflow_model_optimization"):
        from tensorflow_model_optimization.quantization.keras import quantize_model

        yield "TFMOT", quantize_model(keras.models.clone_model(model))


def _trainer(model, args, data):
    """Returns a function that trains one block and returns its seconds."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=args.jit)
    model.fit(data.take(1), verbose=0)
    iterator = iter(data.repeat())

    def block():
        start = time.perf_counter()
        for _ in range(args.steps):
            model.train_function(iterator)
        return time.perf_counter() - start

    return block


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20, help="steps of one block")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--network", choices=("quickstart", "mobile"))
    parser.add_argument(
        "--range_tracking", nargs="+", default=["ema"], help="each is a variant"
    )
    parser.add_argument("--jit", action="store_true", help="jit_compile=True")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.random((8 * args.batch_size, 28, 28, 1), np.float32)
    y = rng.integers(0, 10, len(x))
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(args.batch_size).cache()
    build = _mobile if args.network == "mobile" else _quickstart
    trainers = {
        n: _trainer(model, args, data)
        for n, model in _variants(build, args.range_tracking)
    }
    for block in trainers.values():
        block()
    times = {name: [] for name in trainers}
    for _ in range(args.blocks):
        for name, block in trainers.items():
            times[name].append(block())
    library = keras.Model.__module__.split(".", 1)[0]
    print(f"{library}, {build.__name__[1:]}, batch {args.batch_size}, jit {args.jit}")
    for name, seconds in times.items():
        pairs = zip(seconds, times["float"], strict=True)
        ratio = statistics.median(mine / base for mine, base in pairs)
        median = statistics.median(seconds) / args.steps
        print(f"{name:14} {1e3 * median:7.2f} ms/step, {ratio:.2f} × float (paired)")


if __name__ == "__main__":
    main()
