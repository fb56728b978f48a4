"""Lifts exported models, trains them for int8 and measures; prints figures.

    python tests/benchmarks/lifting_benchmark.py mnist
    python tests/benchmarks/lifting_benchmark.py MobileNetV2 [ResNet50 ...]
    python tests/benchmarks/lifting_benchmark.py basic_pitch

`mnist`: a trained network is exported as a SavedModel, which is lifted and trained for
an epoch with QuantizeAware; accuracies on the 10,000 test digits. Names of
`keras.applications` (without trained weights, 64x64 pixels): lifted, prepared,
calibrated and converted. `basic_pitch`: likewise, on made-up tones, the part before its
first convolution of spectra left in float, then one epoch towards its own outputs.
With TF_USE_LEGACY_KERAS=1 models are made and lifted with tf_keras.
"""

import collections
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import tfopt

keras = tf.keras
TESTDATA = pathlib.Path(__file__).parent.parent.parent / "testdata"


def main():
    for name in sys.argv[1:] or ["mnist"]:
        {"mnist": _mnist, "basic_pitch": _basic_pitch}.get(name, _application)(name)


def _export(model):
    folder = pathlib.Path(tempfile.mkdtemp()) / "saved_model"
    if hasattr(keras, "__version__") or "tf_keras" not in type(model).__module__:
        model.export(folder, verbose=False)
    else:
        model.save(folder, save_format="tf", include_optimizer=False)
    return str(folder)


def _digits(split):
    with np.load(TESTDATA / "mnist.npz") as arrays:
        images = arrays[f"x_{split}"].astype("float32")[..., None] / 255
        return images, arrays[f"y_{split}"].astype("int64")


def _mnist(_):
    keras.utils.set_random_seed(1)
    train, test = _digits("train"), _digits("test")
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(12, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(*train, batch_size=64, epochs=2, verbose=0)
    print("float (Keras)", _accuracy(model.predict(test[0], verbose=0), test[1]))
    folder = _export(model)
    calibration = train[0][:256]
    plain = tfopt.convert(
        folder, quantization="int8", representative_dataset=calibration
    )
    print("int8, after training (PTQ)", _tflite_accuracy(plain, *test))
    methods = [tfopt.QuantizeAware(representative_dataset=calibration)]
    student = tfopt.prepare(folder, methods)
    student.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy")
    student.fit(*train, batch_size=64, epochs=1, verbose=0, callbacks=methods)
    final = tfopt.finalize(student, methods)
    done = tfopt.convert_with_report(final, quantization="int8")
    print("fake-quantized", _accuracy(final.predict(test[0], verbose=0), test[1]))
    print("int8, trained for it (lifted)", _tflite_accuracy(done.content, *test))
    print("float operators", len(done.report["float_operators"]), done.signature)


def _accuracy(outputs, labels):
    return round(float((np.argmax(outputs, axis=1) == labels).mean()), 4)


def _tflite_accuracy(content, images, labels):
    path = pathlib.Path(tempfile.mkdtemp()) / "model.tflite"
    path.write_bytes(content)
    with tfopt.Runner(path) as run:
        outputs = [
            run(images[start : start + 500]) for start in range(0, len(images), 500)
        ]
    return _accuracy(np.concatenate(outputs), labels)


def _application(name):
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(64, 64, 3), classes=10
    )
    folder = _export(model)
    start = time.perf_counter()
    lifted = tfopt.lift(folder)
    seconds = time.perf_counter() - start
    print(f"{name}: lifted in {seconds:.1f} s, {_kinds(lifted)}")
    print("  parameters", model.count_params(), lifted.count_params())
    images = np.random.default_rng(0).uniform(-1, 1, (16, 64, 64, 3))
    _convert(lifted, images.astype("float32"))


def _basic_pitch(_):
    start = time.perf_counter()
    lifted = tfopt.lift(str(TESTDATA / "basic_pitch" / "saved_model"))
    print(f"basic_pitch: lifted in {time.perf_counter() - start:.1f} s")
    print(" ", _kinds(lifted))
    tones = _tones(12)
    front = [
        layer.name
        for layer in lifted.layers[1:]
        if layer.name.startswith(("cq_", "normalized_log", "keras_", "tf."))
    ]
    _convert(lifted, tones, exclude=front, targets=lifted.predict(tones, verbose=0))


def _tones(count):
    """Chords of sines with decaying amplitudes, 44,100 samples at 22,050 Hz."""
    generator = np.random.default_rng(0)
    seconds = np.arange(43844) / 22050
    waves = [
        sum(
            np.exp(-2 * seconds) * np.sin(2 * np.pi * pitch * seconds)
            for pitch in 110 * 2 ** (generator.integers(0, 36, 3) / 12)
        )
        for _ in range(count)
    ]
    return 0.2 * np.array(waves, np.float32)[..., None]


def _convert(lifted, data, *, exclude=None, targets=None):
    methods = [
        tfopt.QuantizeAware(
            representative_dataset=data, exclude=exclude, freeze_batch_norm_after=1
        )
    ]
    start = time.perf_counter()
    student = tfopt.prepare(lifted, methods)
    treatments = collections.Counter(row["treatment"] for row in methods[0].report)
    print(f"  prepared in {time.perf_counter() - start:.1f} s: {dict(treatments)}")
    left = [
        row
        for row in methods[0].report
        if row["treatment"] == "float" and row["reason"] != "excluded"
    ]
    for row in left:
        print(f"  float: {row['name']} [{row['kind']}] {row['reason']}")
    if targets is not None:
        student.compile(keras.optimizers.Adam(1e-5), "mse")
        before = student.evaluate(data, targets, verbose=0, return_dict=True)["loss"]
        student.fit(data, targets, batch_size=2, verbose=0, callbacks=methods)
        after = student.evaluate(data, targets, verbose=0, return_dict=True)["loss"]
        print(f"  error towards its own outputs: {before:.3g}, trained {after:.3g}")
    final = tfopt.finalize(student, methods)
    start = time.perf_counter()
    done = tfopt.convert_with_report(
        final, quantization="int8", allow_float_fallback=True
    )
    print(f"  converted in {time.perf_counter() - start:.1f} s")
    floats = done.report["float_operators"]
    inside = [one for one in floats if "cq_" not in one and "normalized_log" not in one]
    print(f"  float operators: {len(floats)}, not in the front end {len(inside)}")
    for one in inside[:8]:
        print("   ", one[:200])
    print(" ", done.report["operators"])
    for name, figures in done.report["verification"]["outputs"].items():
        print(f"  {name}: {figures}")


def _kinds(model):
    found = collections.Counter(type(layer).__name__ for layer in model.layers)
    raw = collections.Counter(
        layer.function for layer in model.layers if hasattr(layer, "function")
    )
    return f"{dict(found)} {dict(raw) or ''}"


if __name__ == "__main__":
    main()
