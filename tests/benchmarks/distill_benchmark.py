"""Trains a small student alone and with a teacher, on few labels; prints a table.

    python tests/benchmarks/distill_benchmark.py [--labels=500] [--seeds=5]
        [--steps=1500] [--hidden=32] [--teacher_epochs=2]

The teacher is a convolutional network that has seen all 60,000 training digits with
their labels. A student is a dense network; it sees `--labels` digits. Alone and with
the teacher it has the same initial weights, digits, batches, optimizer and number of
steps; the seed changes the first three. `more labels` is what the teacher's own labels
would be worth: the student alone, on all digits, for as many steps.
"""

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import tfopt

keras = tf.keras
DATA = pathlib.Path(__file__).parents[2] / "testdata" / "mnist.npz"
BATCH = 50
LOSS = {"from_logits": True}
VARIANTS = {
    "alone": None,
    "kl, T=4, weight 0.1": {"temperature": 4.0},
    "kl, T=1, weight 0.1": {"temperature": 1.0},
    "mse of logits, weight 0.1": {"distillation_loss": "mse"},
}


def load():
    with np.load(DATA) as file:
        return {
            name: file[name].astype(np.float32) / 255
            if name.startswith("x")
            else file[name].astype(np.int64)
            for name in file
        }


def teacher_of(data, epochs):
    """Returns a trained teacher and its accuracy on the test digits."""
    keras.utils.set_random_seed(100)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(**LOSS)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(data["x_train"], data["y_train"], 128, epochs=epochs, verbose=0)
    return model, accuracy(model, data)


def accuracy(model, data):
    logits = model.predict(data["x_test"], batch_size=500, verbose=0)
    return float((logits.argmax(1) == data["y_test"]).mean())


def train(args, data, chosen, seed, callbacks):
    """Returns the test accuracy of a student after `--steps` steps."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    student = keras.Sequential(
        [
            keras.Input((28, 28)),
            layers.Flatten(),
            layers.Dense(args.hidden, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(**LOSS)
    student.compile(keras.optimizers.Adam(1e-3), loss)
    digits = tf.data.Dataset.from_tensor_slices(
        (data["x_train"][chosen], data["y_train"][chosen])
    )
    batches = digits.shuffle(len(chosen), seed=seed).repeat().batch(BATCH)
    student.fit(
        batches,
        steps_per_epoch=args.steps,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    return accuracy(student, data)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--labels", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--teacher_epochs", type=int, default=2)
    args = parser.parse_args()
    data = load()
    start = time.monotonic()
    teacher, best = teacher_of(data, args.teacher_epochs)
    found = {name: [] for name in [*VARIANTS, "more labels, alone"]}
    for seed in range(args.seeds):
        order = np.random.default_rng(seed).permutation(len(data["x_train"]))
        few = order[: args.labels]
        for name, options in VARIANTS.items():
            callbacks = []
            if options is not None:
                callbacks = [tfopt.Distill(teacher, cache=True, **options)]
            found[name].append(train(args, data, few, seed, callbacks))
        found["more labels, alone"].append(train(args, data, order, seed, []))
    show(args, found, best)
    print(f"{time.monotonic() - start:.0f} s")


def show(args, found, best):
    alone = np.array(found["alone"])
    print(
        f"teacher {best:.2%}; students of {args.hidden} hidden units, {args.labels} "
        f"digits, {args.steps} steps of {BATCH}, {args.seeds} seeds\n"
    )
    print("| student | mean % | sd | by seed | gain over alone | sd | better |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, values in found.items():
        values = np.array(values)
        gain = 100 * (values - alone)
        print(
            f"| {name} | {100 * values.mean():.2f} | {spread(100 * values):.2f} | "
            + " ".join(f"{100 * value:.2f}" for value in values)
            + f" | {gain.mean():+.2f} | {spread(gain):.2f} | "
            f"{(gain > 0).sum()} of {len(gain)} |"
        )


def spread(values):
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
