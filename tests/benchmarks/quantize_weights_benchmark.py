"""Weights in fewer bits: size, error and latency; a 100 MB embedding.

    python tests/benchmarks/quantize_weights_benchmark.py [--rounds=30] [--folder=DIR]
        [--only=mobilenet|embedding]

First MobileNetV2 at 224 x 224 with random weights, its batch statistics filled by
forward passes, through the preset `deploy`; then each storage of its weights. Latency
is that of one image in a Session, with TensorFlow's graph optimizers on and off,
storages in turn, medians. The error is the largest of any logit, as a fraction of the
largest logit of 8 images; of random weights it shows the mechanics, no accuracy.

Then one table of 100 MB, 64 rows of it looked up: the largest error, as a fraction of
the largest weight, and latency as above.
"""

import argparse
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import tfopt
from tfopt import artifacts

v1 = tf.compat.v1
STORAGES = {
    "float32": "remove_device",
    "round 256": "round_weights(num_steps=256)",
    "prune 50 %": "prune_weights(sparsity=0.5)",
    "float16": "quantize_weights(bits=float16)",
    "bfloat16": "quantize_weights(bits=bfloat16)",
    "int8": "quantize_weights",
    "int8, per tensor": "quantize_weights(per_channel=false)",
    "4 bits, groups of 32": "quantize_weights(bits=4)",
    "4 bits, channels": "quantize_weights(bits=4, group_size=0)",
}


def open_session(path, optimize):
    """Returns a session with the graph of a file."""
    graph_def = v1.GraphDef.FromString(pathlib.Path(path).read_bytes())
    config = v1.ConfigProto()
    if not optimize:
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        config.graph_options.optimizer_options.opt_level = -1
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        return v1.Session(graph=graph, config=config)


def caller(path, name, feed, fetch, *, optimize):
    """Returns a function that runs a graph on one input."""
    call = open_session(path, optimize).make_callable(fetch, [name])
    return lambda: call(feed)


def transform(source, folder, storages, **options):
    """Writes each storage; returns their files, and seconds that the step took."""
    files, seconds = {}, {}
    for name, transforms in storages.items():
        files[name] = folder / f"{len(files)}.pb"
        artifact = tfopt.transform_graph(
            source, files[name], transforms, verify="structure", **options
        )
        seconds[name] = artifact.details["steps"][0]["seconds"]
    return files, seconds


def table(files, seconds, feed, name, fetch, few, rounds, scale):
    """Prints a line per storage."""
    outputs = {
        key: caller(path, name, feed, fetch, optimize=False)()
        for key, path in files.items()
    }
    expected = next(iter(outputs.values()))
    timings = []
    for optimize in (True, False):
        calls = {
            key: caller(path, name, few, fetch, optimize=optimize)
            for key, path in files.items()
        }
        timings.append(tfopt.interleave(calls, rounds=rounds, warmup=3))
    print("| storage | MB | ratio | gz MB | error | on ms | off ms | transform s |")
    print("|---|---|---|---|---|---|---|---|")
    largest = artifacts.raw_size(next(iter(files.values())))
    for key, path in files.items():
        size = artifacts.raw_size(path)
        packed = artifacts.gzip_size(path) / 1e6 if size < 2e7 else float("nan")
        error = float(np.max(np.abs(outputs[key] - expected))) / (
            scale or float(np.max(np.abs(expected)))
        )
        on, off = (timing[key].median_ms for timing in timings)
        print(
            f"| {key} | {size / 1e6:.2f} | {largest / size:.2f} | {packed:.2f} "
            f"| {error:.2g} | {on:.3f} | {off:.3f} | {seconds[key]:.3f} |"
        )
    times = timings[0]
    first = next(iter(times))
    for label in ("median_ms", "min_ms"):
        ratios = {
            key: getattr(times[key], label) / getattr(times[first], label)
            for key in files
        }
        listed = ", ".join(f"{key} {ratio:.2f}" for key, ratio in ratios.items())
        print(f"{label} over that of the first, optimizers on: {listed}")


def mobilenet(folder, rounds):
    """Prints the table of MobileNetV2."""
    keras = tf.keras
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(weights=None, classifier_activation=None)
    images = np.random.default_rng(0).uniform(-1, 1, (8, 224, 224, 3))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    for _ in range(3):
        model(images, training=True)
    model.export(folder / "saved_model", verbose=False)
    tfopt.transform_graph(
        folder / "saved_model",
        folder / "deploy.pb",
        "deploy",
        signature_keys=["serving_default"],
        verify="structure",
    )
    graph_def = v1.GraphDef.FromString((folder / "deploy.pb").read_bytes())
    name = next(node.name for node in graph_def.node if node.op == "Placeholder")
    taken = {ref.split(":")[0].lstrip("^") for n in graph_def.node for ref in n.input}
    fetch = next(
        n.name for n in graph_def.node if n.name not in taken and n.op != "NoOp"
    )
    files, seconds = transform(
        folder / "deploy.pb", folder, STORAGES, inputs=[name], outputs=[fetch]
    )
    name, fetch = f"{name}:0", f"{fetch}:0"
    table(files, seconds, images, name, fetch, images[:1], rounds, None)


def embedding(folder, rounds):
    """Prints the table of an embedding of 100 MB."""
    weights = np.random.default_rng(0).standard_normal((195_313, 128), np.float32)
    with tf.Graph().as_default() as graph:
        ids = v1.placeholder(tf.int32, [None], "ids")
        read = tf.identity(tf.constant(weights, name="table"))
        tf.gather(read, ids, name="rows")
        (folder / "source.pb").write_bytes(graph.as_graph_def().SerializeToString())
    names = ("float32", "float16", "int8", "int8, per tensor", "4 bits, channels")
    files, seconds = transform(
        folder / "source.pb",
        folder,
        {name: STORAGES[name] for name in names},
        inputs=["ids"],
        outputs=["rows"],
    )
    chosen = np.random.default_rng(1).integers(0, len(weights), 64)
    peak = float(np.abs(weights[chosen]).max())
    table(files, seconds, chosen, "ids:0", "rows:0", chosen, rounds, peak)


def main():
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--folder")
    parser.add_argument("--only", choices=["mobilenet", "embedding"])
    options = parser.parse_args()
    for run in (mobilenet, embedding):
        if options.only in (None, run.__name__):
            start = time.perf_counter()
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                run(pathlib.Path(folder), options.rounds)
            print(f"{run.__name__}: {time.perf_counter() - start:.0f} s in all\n")


if __name__ == "__main__":
    main()
