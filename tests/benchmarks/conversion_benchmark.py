"""Times `convert` against `TFLiteConverter.from_keras_model`; prints sizes as well.

    python tests/benchmarks/conversion_benchmark.py [--rounds=9]
        [--model=MobileNetV2] [--modes none int8]

The two take turns in one process, on the same model and calibration data; the figures
are medians of CPU time, which other load on the machine disturbs least. "verified" is
`convert` as it comes, "unverified" with `verify=False`. Sizes are bytes of `gzip -9`
(of the raw file) for the MNIST network with a share of its kernels set to zero, as
int8.
"""

import argparse
import contextlib
import io
import os
import statistics
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from tfopt import artifacts, conversion

keras = tf.keras
RNG = np.random.default_rng(0)


def _digits():
    layers = keras.layers
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            layers.Input((28, 28), name="image"),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(12, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, name="logits"),
        ]
    )


def _model(name):
    if name == "digits":
        return _digits(), (28, 28)
    maker = getattr(keras.applications, name)
    return maker(weights=None, input_shape=(96, 96, 3)), (96, 96, 3)


def _theirs(model, mode, data):
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if mode != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if mode == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if mode == "int8":
        converter.representative_dataset = lambda: ([row[None]] for row in data)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    with contextlib.redirect_stdout(io.StringIO()):
        return converter.convert()


def _ours(model, mode, data, **options):
    data = data if mode == "int8" else None
    return conversion.convert(
        model, quantization=mode, representative_dataset=data, **options
    )


def _times(name, rounds, modes):
    model, shape = _model(name)
    data = RNG.random((16, *shape), dtype=np.float32)
    candidates = {
        "from_keras_model": _theirs,
        "verified": lambda *args: _ours(*args, min_sqnr=0),
        "unverified": lambda *args: _ours(*args, verify=False),
    }
    print(f"{name}: median CPU milliseconds of {rounds} rounds (and times faster)")
    for mode in modes:
        seconds = {candidate: [] for candidate in candidates}
        for _ in range(rounds + 1):
            for candidate, convert in candidates.items():
                start = time.process_time()
                convert(model, mode, data)
                seconds[candidate].append(time.process_time() - start)
        middle = {key: statistics.median(value[1:]) for key, value in seconds.items()}
        base = middle["from_keras_model"]
        print(
            f"  {mode:8s}",
            *(f"{key} {1e3 * t:7.1f} ({base / t:4.1f}x)" for key, t in middle.items()),
        )


def _sizes():
    data = RNG.random((64, 28, 28), dtype=np.float32)
    print("MNIST network, int8: gzip bytes (raw bytes)")
    for share in (0.0, 0.8, 0.9):
        model = _digits()
        for layer in model.layers:
            weights = layer.get_weights()
            if weights:
                kernel, bias = weights
                kernel[abs(kernel) < np.quantile(abs(kernel), share)] = 0
                layer.set_weights([kernel, bias])
        files = {
            "from_keras_model": _theirs(model, "int8", data),
            "convert": _ours(model, "int8", data),
            "stripped": _ours(model, "int8", data, strip_debug_info=True),
        }
        print(
            f"  {share:.0%} zeros:",
            *(
                f"{name} {artifacts.gzip_size(content)} ({len(content)})"
                for name, content in files.items()
            ),
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", default="digits", help="or of keras.applications")
    parser.add_argument(
        "--modes", nargs="+", default=["none", "dynamic", "float16", "int8"]
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    _times(args.model, args.rounds, args.modes)
    _sizes()


if __name__ == "__main__":
    main()
