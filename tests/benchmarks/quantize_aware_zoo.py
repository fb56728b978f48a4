"""QuantizeAware on models of keras.applications: coverage; prints a table.

    python tests/benchmarks/quantize_aware_zoo.py [--only=MobileNetV3Small,Xception]
    TF_USE_LEGACY_KERAS=1 python tests/benchmarks/quantize_aware_zoo.py

With random weights and small images: prepare with calibration, finalize, convert, and
list what stays float. Untrained, these networks multiply each difference from layer to
layer, so the mean error of the file's output relative to the prepared model, in steps
("error"), has two others beside it: that between LiteRT's own two sets of kernels
("kernels") and that of the prepared model relative to the float one ("rounding").
"spread" is how much the output differs between images.
"""

import argparse
import collections
import logging
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType

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
    # Smooth images: what many layers make of noise differs in noise only.
    small = rng.uniform(0, 255, size=(16, 4, 4, 3))
    images = tf.image.resize(small, (side, side), "bicubic").numpy()
    _liven(model, images)
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

    def error(one, other):
        return f"{np.abs(one - other).mean() / step:.2f}"

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
        "error": error(got, expected),
        "kernels": error(got, _by_reference_kernels(content, images)),
        "rounding": error(expected, np.asarray(model(images, training=False))),
        "spread": f"{expected.std(axis=0).mean() / step:.2f}",
        "prepare s": f"{prepare_seconds:.0f}",
        "convert s": f"{convert_seconds:.0f}",
        "MB": f"{len(content) / 1e6:.1f}",
    }


def _by_reference_kernels(content, images):
    """Runs a file without XNNPACK and without LiteRT's optimized kernels."""
    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    (given,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(given["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], images)
    interpreter.invoke()
    (made,) = interpreter.get_output_details()
    return interpreter.get_tensor(made["index"])


def _liven(model, images):
    """Lets activations vary: statistics of the images, and a steep last layer."""
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.momentum = 0.0
    model(images, training=True)
    last = [layer for layer in model.layers if layer.get_weights()][-1]
    kernel, *bias = last.get_weights()
    last.set_weights([kernel * 4, *bias])


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
