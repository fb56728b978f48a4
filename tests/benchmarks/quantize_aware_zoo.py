"""QuantizeAware on models of keras.applications: coverage; prints a table.

    python tests/benchmarks/quantize_aware_zoo.py [--only=MobileNetV3Small,Xception]
    TF_USE_LEGACY_KERAS=1 python tests/benchmarks/quantize_aware_zoo.py

With random weights and small images: prepare with calibration, finalize, convert, and
list what stays float. "same argmax" and "error" compare the file with the prepared
model on random images, the error in steps of the output.
"""

import argparse
import collections
import logging
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from tfopt import runner, tflite_file
from tfopt.conversion import convert
from tfopt.methods.quantize_aware import QuantizeAware

keras = tf.keras

# Name -> side of the images; the smallest that Keras takes, or a little more.
SIDES = {
    "MobileNetV3Small": 64,
    "Xception": 71,
    "EfficientNetB0": 64,
    "MobileNet": 64,
    "MobileNetV2": 64,
    "ResNet50": 64,
    "DenseNet121": 64,
    "NASNetMobile": 64,
}
_CLASSES = 20


def measure(name):
    """Prepares, converts and runs one model; returns the row of the table."""
    keras.utils.set_random_seed(0)
    side = SIDES[name]
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(side, side, 3), classes=_CLASSES
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        # Statistics that are not those of an identity, for activations that vary.
        if type(layer).__name__ == "BatchNormalization":
            layer.set_weights([_varied(rng, w) for w in layer.get_weights()])
    images = rng.uniform(0, 255, size=(16, side, side, 3)).astype(np.float32)
    start = time.perf_counter()
    method = QuantizeAware(representative_dataset=images)
    prepared = method.prepare(model)
    prepare_seconds = time.perf_counter() - start
    start = time.perf_counter()
    content = convert(
        method.finalize(prepared),
        quantization="int8",
        verify=False,
        allow_float_fallback=True,
    )
    convert_seconds = time.perf_counter() - start
    file = tflite_file.read(content)
    expected = np.asarray(prepared(images, training=False))
    with runner.Runner(content, num_workers=1) as run:
        got = run.run(images)
    step = 1 / 256  # of the softmax at the end
    counts = collections.Counter(entry["treatment"] for entry in method.report)
    floats = collections.Counter(
        found.operator.name for found in tflite_file.float_operators(file)
    )
    for entry in method.report:
        if entry["treatment"] == "float":
            print(f"  float: {entry['path']} [{entry['kind']}]: {entry['reason']}")
    return {
        "model": name,
        "int8": counts["int8"],
        "fused": counts["fused"],
        "moved": counts["same_scale"] + counts["identity"],
        "float": counts["float"],
        "float operators": dict(floats) or 0,
        "same argmax": f"{np.mean(got.argmax(-1) == expected.argmax(-1)):.3f}",
        "error": f"{np.abs(got - expected).mean() / step:.3f}",
        "prepare s": f"{prepare_seconds:.0f}",
        "convert s": f"{convert_seconds:.0f}",
        "MB": f"{len(content) / 1e6:.1f}",
    }


def _varied(rng, weight):
    return weight * rng.uniform(0.8, 1.25, weight.shape)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(SIDES))
    names = parser.parse_args().only.split(",")
    logging.getLogger("tfopt").setLevel(logging.ERROR)
    for number, name in enumerate(names):
        row = measure(name)
        if not number:
            print(" | ".join(row))
        print(" | ".join(str(value) for value in row.values()), flush=True)
        keras.backend.clear_session()


if __name__ == "__main__":
    main()
