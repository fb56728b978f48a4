"""The bars of `tfopt.optimize`; prints the candidates and whether each bar is met.

    python tests/benchmarks/optimize_benchmark.py [mnist latency basic_pitch fragile]
        [--time_budget=600] [--epochs=N] [--output_dir=DIR] [--tones=64]

`mnist`: the quickstart's network, trained on 60,000 digits; at least 20 times smaller
than the unquantized `.tflite`, both after gzip, at one point at most on the 10,000 test
digits, in ten minutes. `latency`: the same for speed; at least as fast as the
quickstart's best recipe. `basic_pitch`: made-up tones without labels, mean absolute
difference of the outputs at most 0.005; at least 1.5 times smaller, and why full int8
loses. `fragile`: a network like MobileNetV2, one of whose layers has channels of very
different ranges: int8 breaks the budget, int8 with at most a tenth of the
multiplications in float keeps it, and none of the layers in float can be spared, be the
objective latency or size. Run again with the same `--output_dir`, it goes on.
"""

import argparse
import logging
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import lifting_benchmark
import numpy as np
import ptq_benchmark
import tensorflow as tf

import tfopt
from tfopt import artifacts
from tfopt.data import Split
from tfopt.quickstart import _recipes
from tfopt.report import accuracy

keras = tf.keras
ROOT = pathlib.Path(__file__).parents[2]
FRAGILE_EXAMPLES = 12_000
BARS = ("mnist", "latency", "basic_pitch", "fragile")


class Quiet:
    """Takes the quickstart's progress."""

    def stage(self, text):
        logging.info(text)

    def epoch(self):
        pass


def digits():
    with np.load(ROOT / "testdata" / "mnist.npz") as arrays:
        return {
            part: (
                arrays[f"x_{part}"].astype(np.float32) / 255,
                arrays[f"y_{part}"].astype(np.int32),
            )
            for part in ("train", "test")
        }


def trainer(parts, epochs):
    data = _recipes.Digits(*parts["train"], *parts["test"])
    return _recipes.Trainer(
        keras=keras, digits=data, epochs=epochs, seed=1, progress=Quiet()
    )


def base_model(parts, folder, epochs=5):
    """The quickstart's base model, trained once for all runs in a folder."""
    path = folder / "base.keras"
    if not path.exists():
        made = trainer(parts, epochs)
        model = made.fit(made.build(), "base")
        with artifacts.atomic_path(path) as temporary:
            model.save(temporary)
    return keras.models.load_model(path)


def as_data(parts):
    return tfopt.Data(train=Split(parts["train"]), test=Split(parts["test"]))


def say(name, bar, is_met):
    print(f"BAR {name}: {bar}: {'met' if is_met else 'NOT MET'}", flush=True)


def mnist(args, folder):
    parts = digits()
    model = base_model(parts, folder)
    found, seconds = searched(model, as_data(parts), args, folder / "mnist")
    if found.best is None:
        return say("mnist", found.failure(), False)
    figures = found.best.holdout
    ratio = figures.baseline_gzip_bytes / figures.gzip_bytes
    images, labels = parts["test"]
    before = accuracy(model.predict(images, batch_size=500, verbose=0), labels)
    with tfopt.Runner(found.best.path) as run:
        after = accuracy(run.run(images), labels)
    say("mnist", f"{ratio:.1f}× smaller", ratio >= 20)
    text = f"{before:.4f} -> {after:.4f} on {len(labels):,} digits"
    say("mnist", text, before - after <= 0.01)
    say("mnist", f"{seconds:.0f} s", seconds <= 600)


def latency(args, folder):
    parts = digits()
    model = base_model(parts, folder)
    found, _ = searched(
        model, as_data(parts), args, folder / "latency", objective="latency"
    )
    path = folder / "quickstart_best.tflite"
    if not path.exists():
        artifacts.write_bytes(path, _recipes.best(trainer(parts, 1), model))
    files = {"ours": found.best.path, "quickstart": str(path)}
    times = tfopt.benchmark_models(files, num_runs=200, rounds=40)
    ours, other = (times[name].latency.median_ms for name in files)
    text = f"{ours * 1e3:.2f} µs, the quickstart's best recipe {other * 1e3:.2f} µs"
    # Equal files differ by a few percent from run to run.
    say("latency", text, ours <= other * 1.03)


def basic_pitch(args, folder):
    tones = lifting_benchmark._tones(args.tones)
    source = str(ROOT / "testdata" / "basic_pitch" / "saved_model")
    found, _ = searched(
        source, tones, args, folder / "basic_pitch", max_accuracy_drop=0.005
    )
    if found.best is None:
        return say("basic_pitch", found.failure(), False)
    figures = found.best.holdout
    ratio = figures.baseline_gzip_bytes / figures.gzip_bytes
    raw = artifacts.raw_size(found.candidates[0].path) / figures.size_bytes
    text = (
        f"{raw:.2f}× smaller, {ratio:.2f}× after gzip, difference {figures.value:.5f}"
    )
    say("basic_pitch", text, raw >= 1.5)
    why = [note for note in found.notes if note.startswith("Why not int8")]
    say("basic_pitch", why[0] if why else "int8 is not explained", bool(why))


def fragile(args, folder):
    (images, labels), test = (
        (x[..., None], y) for x, y in (digits()[part] for part in ("train", "test"))
    )
    keras.utils.set_random_seed(1)
    model = ptq_benchmark.compiled(mobile_v2(), 3e-3)
    few = slice(0, FRAGILE_EXAMPLES)
    model.fit(
        images[few], labels[few], batch_size=64, epochs=args.epochs or 3, verbose=0
    )
    for objective in ("latency", "size"):
        found, _ = searched(
            one_fragile_layer(model),
            test,
            args,
            folder / f"fragile_{objective}",
            objective=objective,
            methods=["int8", "mixed"],
        )
        plain = next(item for item in found.candidates if item.name == "int8")
        text = f"plain int8 is {plain.judgement.verdict}: {plain.judgement.reason}"
        say(f"fragile, {objective}", text, plain.judgement.verdict != "accepted")
        if found.best is None:
            say(f"fragile, {objective}", found.failure(), False)
            continue
        # Latencies differ from run to run, so the best one may have more.
        divided = [item for item in found.candidates if item.trial.kept_float]
        accepted = [x for x in divided if x.judgement.verdict == "accepted"]
        least = min(accepted, key=lambda item: len(names(item)))
        share = least.trial.kept_float["macs_share"]
        text = f"{least.judgement.reason}; {share:.1%} of the MACs in float"
        say(f"fragile, {objective}", f"{text}: {sorted(names(least))}", share <= 0.1)
        share = found.best.trial.kept_float["macs_share"]
        text = f"the best one has {share:.1%} of the MACs in float"
        say(f"fragile, {objective}", text, share <= 0.1)
        fewer = [item for item in divided if names(item) < names(least)]
        text = f"{len(fewer)} smaller divisions break the budget"
        is_least = not any(item in accepted for item in fewer)
        say(f"fragile, {objective}", text, is_least and bool(fewer))


def names(candidate):
    return set(candidate.trial.kept_float["layers"])


def mobile_v2():
    """Like MobileNetV2: inverted residuals of expansion 4, linear bottlenecks."""
    layers = keras.layers

    def normed(x, name, relu=True):
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
        return layers.ReLU(name=f"{name}_relu")(x) if relu else x

    inputs = keras.Input((28, 28, 1), name="image")
    x = layers.Conv2D(16, 3, 2, "same", use_bias=False, name="stem")(inputs)
    x = normed(x, "stem")
    blocks = ((16, 1), (24, 2), (24, 1), (32, 2), (32, 1), (48, 1))
    for number, (filters, strides) in enumerate(blocks):
        width = x.shape[-1]
        names = [f"{kind}_{number}" for kind in ("expand", "depthwise", "project")]
        y = layers.Conv2D(4 * width, 1, use_bias=False, name=names[0])(x)
        y = layers.DepthwiseConv2D(3, strides, "same", use_bias=False, name=names[1])(
            normed(y, names[0])
        )
        y = layers.Conv2D(filters, 1, use_bias=False, name=names[2])(
            normed(y, names[1])
        )
        y = normed(y, names[2], relu=False)
        is_same = strides == 1 and width == filters
        x = layers.Add(name=f"add_{number}")([x, y]) if is_same else y
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x))


def one_fragile_layer(model, name="depthwise_4", following="project_4", bits=7):
    """Returns the same function, one layer's channels scaled by 2**-bits to 2**bits."""
    weak = tfopt.prepare(model, [])
    norm = weak.get_layer(f"{name}_norm")
    gamma, beta, mean, variance = norm.get_weights()
    generator = np.random.default_rng(0)
    factor = np.exp2(generator.uniform(-bits, bits, gamma.shape)).astype(np.float32)
    norm.set_weights([gamma * factor, beta * factor, mean, variance])
    (kernel,) = weak.get_layer(following).get_weights()
    weak.get_layer(following).set_weights([kernel / factor[:, None]])
    return weak


def searched(model, data, args, folder, **options):
    """Searches, prints the candidates, and returns the result and the seconds."""
    begin = time.monotonic()
    found = tfopt.optimize(
        model,
        data,
        time_budget=args.time_budget,
        epochs=args.epochs,
        output_dir=folder,
        **options,
    )
    seconds = time.monotonic() - begin
    print(found, f"{seconds:.0f} s", sep="\n", flush=True)
    return found, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bars", nargs="*", help=f"some of {BARS}, by default all")
    parser.add_argument("--time_budget", type=float, default=540)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--tones", type=int, default=64)
    parser.add_argument("--output_dir", default=None)
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("tfopt.optimizing").setLevel(logging.INFO)
    folder = pathlib.Path(args.output_dir or tempfile.mkdtemp(prefix="tfopt-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"in {folder}", flush=True)
    for bar in args.bars or BARS:
        globals()[bar](args, folder)


if __name__ == "__main__":
    main()
