"""Quantization after training, refined, beside quantization-aware training: accuracy.

    python tests/benchmarks/ptq_benchmark.py [--epochs=2] [--seed=0]

Trains two networks on the 60,000 MNIST digits and converts each to int8 in every way;
accuracies and signal-to-noise ratios of the logits are on the 10,000 test digits.
"fragile": the trained MobileNet-like network with the channels between neighbouring
layers scaled by random factors from 1/64 to 64, which its float outputs don't show. The
last lines say whether the bars are met.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import tfopt
from tfopt.report import accuracy

keras = tf.keras
layers = keras.layers
VARIANTS = {
    "PTQ": {},
    "+ equalize": {"equalize": True},
    "+ correct_bias": {"correct_bias": True},
    "+ both": {"equalize": True, "correct_bias": True},
}
CALIBRATION = 200


def plain():
    """The MNIST network: convolution, pooling, Dense."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(12, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def mobile():
    """Like MobileNet: depthwise and pointwise convolutions with batch norms, ReLU."""
    inputs = keras.Input((28, 28, 1))
    x = normed(layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(inputs))
    for filters, strides in ((32, 1), (48, 2), (64, 1), (96, 2)):
        depthwise = layers.DepthwiseConv2D(
            3, strides=strides, padding="same", use_bias=False
        )
        x = normed(depthwise(x))
        x = normed(layers.Conv2D(filters, 1, use_bias=False)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def normed(x):
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))


def fragile(model, seed):
    """The same function with channels of very different ranges."""
    generator = np.random.default_rng(seed)
    model = tfopt.prepare(model, [])
    linear = [x for x in model.layers if hasattr(x, "kernel") or depthwise(x)]
    norms = [x for x in model.layers if isinstance(x, layers.BatchNormalization)]
    for norm, following in zip(norms, linear[1:], strict=True):
        gamma, beta, mean, variance = norm.get_weights()
        factor = np.exp2(generator.uniform(-6, 6, gamma.shape)).astype(np.float32)
        norm.set_weights([gamma * factor, beta * factor, mean, variance])
        kernel, *rest = following.get_weights()
        # Input channels are the last axis but one, of all three kinds of kernels.
        following.set_weights([kernel / factor[:, None], *rest])
    return model


def depthwise(layer):
    return isinstance(layer, layers.DepthwiseConv2D)


def compiled(model, rate):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    return model


def quantization_aware(model, data):
    method = tfopt.QuantizeAware()
    ready = compiled(tfopt.prepare(model, [method]), 3e-4)
    ready.fit(*data, batch_size=128, epochs=1, verbose=0, callbacks=[method])
    return tfopt.convert(
        tfopt.finalize(ready, [method]),
        quantization="int8",
        representative_dataset=data[0][:CALIBRATION],
    )


def measured(content, test, logits):
    """Returns accuracy, and signal-to-noise ratio in dB against the float logits."""
    with tfopt.Runner(content) as run:
        outputs = run.run(test[0])
    noise = np.mean((outputs - logits) ** 2)
    return accuracy(outputs, test[1]), 10 * np.log10(np.mean(logits**2) / noise)


def row(model, train, test, *, qat):
    """Returns accuracies by variant."""
    logits = model.predict(test[0], batch_size=500, verbose=0)
    found = {"float": (accuracy(logits, test[1]), None)}
    for name, options in VARIANTS.items():
        content = tfopt.convert(
            model,
            quantization="int8",
            representative_dataset=train[0][:CALIBRATION],
            # How bad it may get is what is to be seen.
            min_sqnr=-100,
            **options,
        )
        found[name] = measured(content, test, logits)
    if qat:
        content = quantization_aware(model, train)
        found["QAT"] = measured(content, test, logits)[0], None
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    data = np.load("testdata/mnist.npz")
    train, test = (
        (data[f"x_{part}"][..., None].astype(np.float32) / 255, data[f"y_{part}"])
        for part in ("train", "test")
    )
    began = time.perf_counter()
    rows = {}
    for name, build in (("MNIST net", plain), ("MobileNet-like", mobile)):
        model = compiled(build(), 3e-3)
        model.fit(*train, batch_size=128, epochs=args.epochs, verbose=0)
        rows[name] = row(model, train, test, qat=True)
        if build is mobile:
            weak = fragile(model, args.seed)
            rows["MobileNet-like, fragile"] = row(weak, train, test, qat=False)
    columns = ["float", *VARIANTS, "QAT"]
    for which, title in enumerate(("accuracy [%]", "SQNR [dB]")):
        print(f"| {title} | {' | '.join(columns)} |")
        print(f"| :--- |{' ---: |' * len(columns)}")
        for name, found in rows.items():
            values = [found.get(column, (None, None))[which] for column in columns]
            factor = 1 if which else 100
            cells = ["–" if x is None else f"{factor * x:.2f}" for x in values]
            print(f"| {name} | {' | '.join(cells)} |")
        print()
    for name in ("MNIST net", "MobileNet-like"):
        found = {column: pair[0] for column, pair in rows[name].items()}
        close = found["float"] - found["PTQ"] <= 0.005
        print(f"{name}: int8 within 0.5 points of float: {close}")
        print(f"{name}: QAT at least PTQ: {found['QAT'] >= found['PTQ']}")
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
