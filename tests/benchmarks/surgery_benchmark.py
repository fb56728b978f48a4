"""What removing channels saves, and what it costs in accuracy; prints tables.

    python tests/benchmarks/surgery_benchmark.py [--size=224] [--rounds=15]
        [--digits=10000] [--epochs=4] [--only=networks|mnist|resnet20]

Networks: MobileNetV2 and ResNet50 of keras.applications without trained weights, with
random BatchNormalization statistics, at several fractions. Latency of one image: as a
float `.tflite` through the Runner on one thread, and as a `tf.function` of the Keras
model on all; the big and the small models take turns, medians.

Training: a network for MNIST digits, and a ResNet-20 (as for CIFAR, 32×32×3) for digits
enlarged, shifted, coloured and laid over coloured clutter. Accuracy of the big model,
right after the removal, and after fine-tuning.
"""

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from tfopt import benchmark, surgery
from tfopt.conversion import convert
from tfopt.runner import Runner

keras = tf.keras
MNIST = pathlib.Path(__file__).parents[2] / "testdata" / "mnist.npz"


def randomize_statistics(model, seed=0):
    """Fills BatchNormalization as training might have, so that none is an identity."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            layer.set_weights(
                [
                    rng.uniform(0.5, 1.5, gamma.shape),
                    rng.normal(0, 0.2, beta.shape),
                    rng.normal(0, 0.2, mean.shape),
                    rng.uniform(0.5, 1.5, variance.shape),
                ]
            )
    return model


def mnist_network():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10),
        ],
        name="mnist",
    )


def resnet20(widths=(16, 32, 64), blocks=3):
    """He et al., https://arxiv.org/abs/1512.03385, section 4.2, with projections."""
    layers = keras.layers

    def conv(x, filters, size=3, strides=1):
        x = layers.Conv2D(
            filters, size, strides=strides, padding="same", use_bias=False
        )(x)
        return layers.BatchNormalization(momentum=0.9)(x)

    x = inputs = keras.Input((32, 32, 3))
    x = layers.ReLU()(conv(x, widths[0]))
    for stage, filters in enumerate(widths):
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            y = layers.ReLU()(conv(x, filters, strides=strides))
            y = conv(y, filters)
            if strides > 1:
                x = conv(x, filters, size=1, strides=strides)
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x), name="resnet20")


def digits(train, test):
    """The first digits of MNIST: x_train, y_train, x_test, y_test."""
    with np.load(MNIST) as file:
        return (
            file["x_train"][:train, ..., None].astype(np.float32) / 255,
            file["y_train"][:train].astype(np.int32),
            file["x_test"][:test, ..., None].astype(np.float32) / 255,
            file["y_test"][:test].astype(np.int32),
        )


def coloured(images, seed):
    """Digits as 32×32×3 pictures: shifted, in a random colour, over patches."""
    rng = np.random.default_rng(seed)
    count = len(images)
    masks = np.zeros((count, 32, 32, 1), np.float32)
    for index, (row, column) in enumerate(rng.integers(0, 5, (count, 2))):
        masks[index, row : row + 28, column : column + 28] = images[index]
    coarse = rng.random((count, 8, 8, 3), np.float32)
    clutter = 0.5 * coarse.repeat(4, axis=1).repeat(4, axis=2)
    ink = rng.uniform(0.6, 1.0, (count, 1, 1, 3)).astype(np.float32)
    noise = rng.normal(0, 0.1, clutter.shape).astype(np.float32)
    return masks * ink + (1 - masks) * clutter + noise - 0.5


def train(model, data, *, epochs, rate, seed=0):
    """Trains with a rate that falls along a cosine; returns the test accuracy."""
    keras.utils.set_random_seed(seed)
    x_train, y_train, x_test, y_test = data
    steps = max(epochs * -(-len(x_train) // 64), 1)
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
    if epochs:
        model.fit(x_train, y_train, batch_size=64, epochs=epochs, verbose=0)
    return model.evaluate(x_test, y_test, batch_size=256, verbose=0)[1]


def runners(models):
    """Functions of no arguments that run one input, by name and engine."""
    found = {}
    for name, model in models.items():
        shape = [1, *model.inputs[0].shape[1:]]
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        runner = Runner(convert(model, verify=False), num_workers=1, num_threads=1)
        function = tf.function(lambda x, model=model: model(x, training=False))
        tensor = tf.constant(x)
        found[name, "litert"] = lambda runner=runner, x=x: runner.run(x)
        found[name, "keras"] = lambda f=function, x=tensor: f(x).numpy()
    return found


def networks(args):
    print(f"\n{keras.__name__}, {args.size}x{args.size}, 1 image, median ms")
    print("network        | removed | parameters | MMACs | .tflite MB | litert | keras")
    for make in (keras.applications.MobileNetV2, keras.applications.ResNet50):
        model = make(weights=None, input_shape=(args.size, args.size, 3))
        randomize_statistics(model)
        models, costs, errors = {"0 %": model}, {}, []
        for sparsity in (0.3, 0.5, 0.7):
            begin = time.perf_counter()
            done = surgery.remove_channels_with_report(
                model, sparsity=sparsity, round_to=8
            )
            seconds = time.perf_counter() - begin
            models[f"{sparsity:.0%}"] = done.model
            costs["0 %"], costs[f"{sparsity:.0%}"] = done.before, done.after
            errors.append(f"{done.max_error:.1e} ({seconds:.0f} s)")
        timings = benchmark.interleave(runners(models), rounds=args.rounds)
        for name, one in models.items():
            size = len(convert(one, verify=False)) / 1e6
            lite, eager = (timings[name, e].median_ms for e in ("litert", "keras"))
            print(
                f"{model.name:14} | {name:7} | {costs[name].parameters:10,} | "
                f"{costs[name].macs / 1e6:5.0f} | {size:10.1f} | {lite:6.1f} | "
                f"{eager:6.1f}"
            )
        print(f"  largest difference from the masked model: {', '.join(errors)}")


def training(args):
    plain = digits(args.digits, 10_000)
    pictures = (
        *(coloured(plain[0], 1), plain[1]),
        *(coloured(plain[2], 2), plain[3]),
    )
    print(f"\n{keras.__name__}, {args.digits:,} training digits, 10,000 test digits")
    print("network  | removed | parameters | MMACs | before | cut | fine-tuned")
    for model, data in ((mnist_network(), plain), (resnet20(), pictures)):
        if args.only not in (None, model.name):
            continue
        before = train(model, data, epochs=args.epochs, rate=3e-3)
        for sparsity in (0.3, 0.5, 0.7):
            done = surgery.remove_channels_with_report(model, sparsity=sparsity)
            small = done.model
            cut = train(small, data, epochs=0, rate=1e-3)
            tuned = train(small, data, epochs=args.epochs, rate=1e-3)
            print(
                f"{model.name:8} | {sparsity:7.0%} | "
                f"{done.before.parameters:,} -> {done.after.parameters:,} | "
                f"{done.before.macs / 1e6:.2f} -> {done.after.macs / 1e6:.2f} | "
                f"{before:.4f} | {cut:.4f} | {tuned:.4f}",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--digits", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--only", choices=["networks", "mnist", "resnet20"])
    args = parser.parse_args()
    if args.only in (None, "networks"):
        networks(args)
    if args.only != "networks":
        training(args)


if __name__ == "__main__":
    main()
