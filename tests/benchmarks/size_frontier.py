"""Accuracy and compressed size of the MNIST network: sparsity × clusters × QAT.

    python tests/benchmarks/size_frontier.py [--epochs=8] [--only=best] [--penalty=0]

Prints a table row by row. All models start from one base model and are measured on the
10,000 test digits, as the int8 `.tflite` file that runs through the Runner; sizes are
`gzip -9` of that file, and the ratio is to the base model's `.keras` file. Base and
small models alike train on 60,000 digits that are shifted by up to one pixel.

All pruning is by magnitude over all weights together, under an L1 penalty
(`--penalty=0`: none). "QAT no" is training in float and quantization afterwards.
"best" is the recipe for 25 times smaller at a loss of at most one point, with four
times as many epochs.
"""

import argparse
import os
import pathlib
import tempfile
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from tfopt import _keras, artifacts, training
from tfopt.conversion import convert
from tfopt.methods.cluster import Cluster
from tfopt.methods.prune import Prune
from tfopt.methods.quantize_aware import QuantizeAware
from tfopt.quickstart import _digits, _recipes
from tfopt.runner import Runner

keras = tf.keras
BATCH = 128
ROOT = pathlib.Path(__file__).parents[2]
# Parts of a training: pruning ends, clustering begins.
PRUNED, CLUSTERED = 0.5, 0.55
GRID = [
    (sparsity, clusters, qat)
    for sparsity in (0.8, 0.9, 0.95)
    for clusters in (None, 16, 8, 4)
    for qat in (False, True)
]
HEADER = (
    "| sparsity | clusters | QAT | epochs | accuracy | points | gzip, bytes | ratio "
    "| seconds |\n| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
)


class Experiment:
    """The data, the base model, and what becomes of it."""

    def __init__(self, seed):
        self.digits = _digits(str(ROOT / "testdata" / "mnist.npz"))
        self.seed = seed
        self.steps = len(self.digits.labels) // BATCH
        padded = np.pad(self.digits.images, [(0, 0), (1, 1), (1, 1)])
        self._padded = tf.constant(np.rint(padded * 255).astype(np.uint8))
        self._labels = tf.constant(self.digits.labels)

    def build(self):
        """Returns the quickstart's untrained network."""
        trainer = _recipes.Trainer(
            keras=keras, digits=self.digits, epochs=1, seed=self.seed, progress=None
        )
        return trainer.build()

    def batches(self):
        """Batches of shifted digits; each epoch draws anew."""

        def batch(indices):
            row, column = tf.unstack(tf.random.uniform([2], 0, 3, tf.int32))
            images = tf.gather(self._padded, indices)
            images = images[:, row : row + 28, column : column + 28]
            images = tf.cast(images, tf.float32) / 255
            return images, tf.gather(self._labels, indices)

        count = len(self.digits.labels)
        order = tf.data.Dataset.range(count).shuffle(count, seed=self.seed)
        return order.batch(BATCH, drop_remainder=True).map(batch).prefetch(4)

    def fit(self, model, epochs, callbacks=()):
        """Trains with a learning rate that falls along a cosine."""
        rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * self.steps)
        model.compile(
            keras.optimizers.Adam(rate),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            steps_per_execution=self.steps // 2,
        )
        with warnings.catch_warnings():
            # Keras 3 says that it does not shuffle datasets.
            warnings.filterwarnings("ignore", message=".*shuffle=True")
            data = self.batches()
            model.fit(data, epochs=epochs, verbose=0, callbacks=list(callbacks))
        return model

    def small(self, base, sparsity, clusters, quantize, epochs, penalty):
        """Returns the `.tflite` that a row of the table stands for."""
        l1 = {"kind": "l1", "strength": penalty} if penalty else None
        steps = epochs * self.steps
        methods = [] if quantize is None else [quantize]
        if sparsity:
            methods.append(
                Prune(
                    initial_sparsity=0.5,
                    final_sparsity=sparsity,
                    end_step=int(PRUNED * steps),
                    scope="global",
                    sparsity_penalty=l1,
                )
            )
        if clusters:
            methods.append(
                Cluster(
                    num_clusters=clusters,
                    begin_step=int(CLUSTERED * steps),
                    # The converter scales by channel, unless QAT has one scale.
                    channel_scales=quantize is None or quantize.per_channel,
                )
            )
        model = training.prepare(base, methods)
        self.fit(model, epochs, methods)
        return convert(
            training.finalize(model, methods),
            quantization="int8",
            representative_dataset=self.digits.images[:256],
            strip_debug_info=True,
        )

    def accuracy(self, content):
        """Percent of the test digits."""
        with Runner(content, num_workers=1) as run:
            found = run.run(self.digits.test_images).argmax(axis=-1)
        return 100 * float(np.mean(found == self.digits.test_labels))

    def keras_accuracy(self, model):
        """Percent of the test digits, of a Keras model."""
        outputs = model.predict(self.digits.test_images, batch_size=1000, verbose=0)
        return 100 * float(np.mean(outputs.argmax(-1) == self.digits.test_labels))


def gzip_bytes(content):
    """Returns what `gzip -9` makes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model"
        path.write_bytes(content)
        return artifacts.gzip_size(path)


def base_model(experiment, path, epochs):
    """Trains the base model, or takes one trained before; returns it and its size."""
    if not path.exists():
        with artifacts.atomic_path(path) as temporary:
            _keras.save(experiment.fit(experiment.build(), epochs), temporary)
    return _keras.load(path), artifacts.gzip_size(path)


def rows(epochs, only):
    """Yields sparsity, clusters, QAT method, its name and the epochs of each row."""
    if only in ("all", "grid"):
        for sparsity, clusters, qat in GRID:
            method = QuantizeAware() if qat else None
            yield sparsity, clusters, method, "8 bit" if qat else "no", epochs
        for sparsity in (0.8, 0.9, 0.95):
            yield sparsity, None, QuantizeAware(weight_bits=4), "4 bit", epochs
    if only in ("all", "best"):
        best = QuantizeAware(per_channel=False)
        yield 0.93, 8, best, "8 bit, one scale per weight (best)", 4 * epochs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8, help="of every small model")
    parser.add_argument("--base_epochs", type=int, default=24)
    parser.add_argument("--only", choices=("all", "grid", "best"), default="all")
    parser.add_argument("--penalty", type=float, default=1e-4, help="L1 strength")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--base", default="/tmp/size_frontier_base.keras", help="kept for the next run"
    )
    args = parser.parse_args()
    experiment = Experiment(args.seed)
    base, base_bytes = base_model(experiment, pathlib.Path(args.base), args.base_epochs)
    base_accuracy = experiment.keras_accuracy(base)
    print(f"base: {base_accuracy:.2f} %, {base_bytes:,} bytes in gzip\n\n{HEADER}")
    for sparsity, clusters, method, name, epochs in rows(args.epochs, args.only):
        start = time.monotonic()
        content = experiment.small(
            base, sparsity, clusters, method, epochs, args.penalty
        )
        accuracy, size = experiment.accuracy(content), gzip_bytes(content)
        print(
            f"| {sparsity} | {clusters or '–'} | {name} | {epochs} | {accuracy:.2f} % "
            f"| {accuracy - base_accuracy:+.2f} | {size:,} | {base_bytes / size:.1f}× "
            f"| {time.monotonic() - start:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
