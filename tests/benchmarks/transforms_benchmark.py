"""What the presets of transform_graph do to three models: nodes, bytes, errors, times.

    PYTHONPATH=. python tests/benchmarks/transforms_benchmark.py [--rounds=20]
        [--only mobilenet basic_pitch embedding]

- MobileNetV2 of tf.keras.applications, untrained; the statistics of its batch
  normalization are those of random images, as zeros and ones would hide errors.
- basic-pitch, from testdata.
- An embedding of 100 MB with a dense layer.

Errors are those that transform_graph measures, TensorFlow's own optimizer off. Latency
is that of one call in this process, TensorFlow's optimizer on, taken in turns; "quiet"
is how many samples had the cores to themselves. Transform times are the sum over the
transforms, without checks, and the best of three runs.
"""

import argparse
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import tfopt
from tfopt.savedmodel import protos

ROOT = pathlib.Path(__file__).parents[2]
KEY = "serving_default"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    names = ["mobilenet", "basic_pitch", "embedding"]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            print(f"\n{name}")
            globals()[name](pathlib.Path(folder), options.rounds)


def mobilenet(folder, rounds):
    source = folder / "mobilenet"
    build_mobilenet().export(source, verbose=False)
    image = np.random.default_rng(1).standard_normal((1, 224, 224, 3))
    feed = tf.constant(image.astype(np.float32))
    calls = {"SavedModel": signature(source)}
    paths = apply_presets(source, folder, ["", "deploy", "small"])
    for name, artifact in paths.items():
        calls[name] = load(artifact)
        kinds = [node.op for node in read(artifact).node]
        norms = sum("BatchNorm" in op for op in kinds)
        print(f"  {name}: {len(kinds)} nodes, {norms} batch normalizations")
    expected = calls["SavedModel"](feed)
    for name in ("deploy", "small"):
        gap = np.abs(calls[name](feed) - expected).max()
        print(f"  {name}: logits differ by {gap:.2g} of {np.abs(expected).max():.3g}")
    latency(
        {name: lambda call=call: call(feed) for name, call in calls.items()}, rounds
    )


def build_mobilenet():
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.applications.MobileNetV2(weights=None, classifier_activation=None)
    images = np.random.default_rng(0).standard_normal((8, 224, 224, 3))
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images.astype(np.float32), training=True)
    return model


def basic_pitch(folder, rounds):
    source = ROOT / "testdata" / "basic_pitch" / "saved_model"
    paths = apply_presets(source, folder, ["", "deploy", "small"])
    original = paths["frozen"].size_bytes
    for name in ("deploy", "small"):
        print(f"  {name}: {original / paths[name].size_bytes:.2f} times smaller")
    details = paths["small"].details
    findings = {step["name"]: step["findings"] for step in details["steps"]}
    print(f"  quantize_weights: {counts(findings['quantize_weights'])}")
    print(
        f"  of {details['graph_bytes']:,} bytes {details['constant_bytes']:,} are "
        "constants; the largest:"
    )
    for entry in details["largest_constants"][:5]:
        print(
            f"    {entry['bytes']:6,} {entry['dtype']} {entry['shape']} {entry['node']}"
        )


def embedding(folder, rounds):
    source = folder / "embedding"
    module = tf.Module()
    random = np.random.default_rng(0)
    table = random.standard_normal((200_000, 128)).astype(np.float32)
    kernel = random.standard_normal((128, 64)).astype(np.float32)
    module.table, module.kernel = tf.Variable(table), tf.Variable(kernel)

    @tf.function(input_signature=[tf.TensorSpec([None, 32], tf.int32, "ids")])
    def serve(ids):
        rows = tf.reduce_mean(tf.gather(module.table, ids), 1)
        return {"y": tf.matmul(rows, module.kernel)}

    tf.saved_model.save(module, str(source), signatures=serve)
    # Functions of the same names, with variables, are loaded already.
    texts = ["inline_functions", "inline_functions quantize_weights"]
    paths = apply_presets(source, folder, texts)
    first, last = paths.values()
    print(f"  {first.size_bytes / last.size_bytes:.2f} times smaller")
    ids = tf.constant(random.integers(0, 200_000, (1, 32)), tf.int32)
    calls = {name: load(artifact) for name, artifact in paths.items()}
    latency({name: lambda call=call: call(ids) for name, call in calls.items()}, rounds)


def apply_presets(source, folder, texts):
    """Transforms a model by each text; returns name -> Artifact."""
    artifacts = {}
    for text in texts:
        name = text or "frozen"
        path = folder / f"{name.split()[-1]}.pb"
        options = {"signature_keys": [KEY]}
        artifact = tfopt.transform_graph(source, path, text, **options)
        artifacts[name] = artifact
        seconds = [
            tfopt.transform_graph(
                source, path, text, verify="structure", **options
            ).details["transform_seconds"]
            for _ in range(3)
        ]
        details = artifact.details
        errors = [found["max_error"] for found in (details["outputs"] or {}).values()]
        print(
            f"  {name}: {details['nodes_before']} -> {details['nodes']} nodes, "
            f"{artifact.size_bytes:,} bytes, {artifact.gzip_bytes or 0:,} gzip; "
            f"transforms {min(seconds):.2f} s, checks {details['verify_seconds']:.1f} s"
            f"; largest error {max(errors, default=0.0):.2g}"
        )
    return artifacts


def read(artifact):
    data = pathlib.Path(artifact.path).read_bytes()
    return protos.message_class("GraphDef").FromString(data)


def signature(path):
    """Returns a function of one input, of the SavedModel as it is."""
    loaded = tf.saved_model.load(str(path))
    call = loaded.signatures[KEY]
    (name,) = call.structured_input_signature[1]

    def run(value, keep=loaded):
        (found,) = call(**{name: value}).values()
        return found.numpy()

    return run


def load(artifact):
    """Returns a function of one input, of a GraphDef."""
    tensors = artifact.details["signatures"][KEY]
    data = pathlib.Path(artifact.path).read_bytes()
    graph_def = tf.compat.v1.GraphDef.FromString(data)
    wrapped = tf.compat.v1.wrap_function(
        lambda: tf.import_graph_def(graph_def, name=""), []
    )
    inputs, outputs = (list(tensors[side].values()) for side in ("inputs", "outputs"))
    call = wrapped.prune(
        [wrapped.graph.get_tensor_by_name(name) for name in inputs],
        [wrapped.graph.get_tensor_by_name(name) for name in outputs],
    )
    return lambda value: call(value)[0].numpy()


def counts(findings):
    return {k: v for k, v in findings.items() if isinstance(v, (int, float))}


def latency(calls, rounds):
    timings = tfopt.interleave(calls, rounds=rounds, warmup=2)
    first = next(iter(timings.values()))
    for name, timing in timings.items():
        quiet = sum(share < 0.05 for share in timing.queue_shares or ())
        ratio = np.median(np.array(first.samples_ms) / np.array(timing.samples_ms))
        print(
            f"  {name}: {np.median(timing.samples_ms):.3f} ms, {ratio:.2f} times as "
            f"fast as the first; quiet {quiet} of {rounds}"
        )


if __name__ == "__main__":
    main()
