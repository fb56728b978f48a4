"""What Grappler does to MobileNetV2: presets, and optimizer by optimizer.

    python tests/benchmarks/grappler_benchmark.py [--size=224] [--rounds=20]
        [--report=FILE.json]

The network is that of tf.keras.applications without trained weights; the statistics of
its batch normalization are those of random images, as zeros and ones would hide errors.
Errors are of logits. It is frozen with its functions inlined. With
TF_USE_LEGACY_KERAS=1 it is that of tf_keras, whose batch normalization is one node.
"""

import argparse
import pathlib
import sys
import tempfile

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import tfopt
from tfopt import artifacts


def build(folder, size):
    """Saves the network; returns its path."""
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.applications.MobileNetV2(
        input_shape=(size, size, 3), weights=None, classifier_activation=None
    )
    images = np.random.default_rng(0).standard_normal((8, size, size, 3))
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images.astype(np.float32), training=True)
    serve = tf.function(
        lambda image: {"logits": model(image, training=False)},
        input_signature=[tf.TensorSpec([None, size, size, 3], name="image")],
    )
    module = tf.Module()
    module.model = model
    tf.saved_model.save(module, str(folder / "mobilenet"), signatures=serve)
    return folder / "mobilenet"


def show(name, details):
    """Prints one line of a preset."""
    ops = details["ops"]
    norms = sum(n for op, n in ops.items() if op.startswith("FusedBatchNorm"))
    print(
        f"{name:24}{details['nodes_before']:7,}{details['nodes']:7,}"
        f"{details['bytes']:13,}{details['max_error']:11.2g}{norms:7}"
        f"{details['bfloat16_nodes']:7}{details['seconds']:8.2f}",
        flush=True,
    )


def main():
    """Builds, optimizes, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--report", default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        source = build(folder, options.size)
        frozen = tfopt.freeze(source, folder / "frozen.pb", inline_functions=True)
        signature = frozen.details["signatures"]["serving_default"]
        outputs = [tensors[0] for tensors in signature["outputs"].values()]
        print(
            f"{'preset':24}{'before':>7}{'nodes':>7}{'bytes':>13}{'max error':>11}"
            f"{'norms':>7}{'bf16':>7}{'s':>8}"
        )
        for preset in ("lossless", "default", "bfloat16"):
            done = tfopt.optimize_graph(
                frozen.path, folder / f"{preset}.pb", preset, outputs=outputs
            )
            show(preset, done.details)
        done = tfopt.optimize_graph(
            folder / "default.pb", folder / "both.pb", "bfloat16", outputs=outputs
        )
        show("default, then bfloat16", done.details)
        costs = tfopt.measure_costs(frozen.path, outputs=outputs)
        print(f"\n{costs}\n")
        report = tfopt.explain_graph(
            frozen.path, outputs=outputs, rounds=options.rounds
        )
        print(report)
        if options.report:
            artifacts.write_json(options.report, report)


if __name__ == "__main__":
    main()
