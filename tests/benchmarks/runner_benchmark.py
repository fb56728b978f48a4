"""Runner against Keras `predict` and a plain loop: the MNIST net, 10,000 images.

    PYTHONPATH=. python tests/benchmarks/runner_benchmark.py --rounds=15

Prints medians and ratios of one interleaved run, and for how many samples the machine
was quiet. The weights are untrained: speed does not depend on them.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tfopt.benchmark import interleave
from tfopt.conversion import convert
from tfopt.runner import Runner

MNIST = pathlib.Path(__file__).parents[2] / "testdata" / "mnist.npz"
BATCH = 32


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with np.load(MNIST) as data:
        images = (data["x_test"] / 255).astype(np.float32)
    batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    model = build_model()
    content = convert(model)
    quantized = convert(model, quantization="int8", representative_dataset=images[:100])
    with (
        Runner(content) as auto,
        Runner(content, batch_size=BATCH) as by_32,
        Runner(content, num_workers=1, batch_size=BATCH) as one_worker,
        Runner(quantized) as int8,
    ):
        check(model, auto, images)
        report(
            f"{len(images)} images",
            interleave(
                {
                    "keras predict(batch_size=32)": lambda: model.predict(
                        images, batch_size=BATCH, verbose=0
                    ),
                    "plain loop, batch 32": plain_loop(content, batches),
                    "Runner.run, 1 worker, batch 32": lambda: one_worker.run(images),
                    "Runner.run, batch 32": lambda: by_32.run(images),
                    "Runner.map, batches of 32": lambda: list(by_32.map(batches)),
                    f"Runner.run, auto ({auto.batch_size})": lambda: auto.run(images),
                    "int8: plain loop, batch 32": plain_loop(quantized, batches),
                    "int8: Runner.map, batches of 32": lambda: list(int8.map(batches)),
                    f"int8: Runner.run, auto ({int8.batch_size})": lambda: int8.run(
                        images
                    ),
                },
                rounds=rounds,
            ),
        )
        for rows in (1, BATCH):
            few = images[:rows]
            report(
                f"{rows} images",
                interleave(
                    {
                        "keras predict": lambda few=few: model.predict(few, verbose=0),
                        "keras model(x)": lambda few=few: model(few, training=False),
                        "plain": plain_loop(content, [few]),
                        "Runner.run": lambda few=few: auto.run(few),
                        "Runner.submit": lambda few=few: auto.submit(few).result(),
                    },
                    rounds=rounds,
                ),
            )


def build_model():
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            layers.Input((28, 28)),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(12, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def plain_loop(content, batches):
    """One interpreter as its documentation uses it, resized when the size changes."""
    interpreter = Interpreter(model_content=content)
    source = interpreter.get_input_details()[0]["index"]
    sink = interpreter.get_output_details()[0]["index"]
    rows = None

    def run():
        nonlocal rows
        outputs = []
        for batch in batches:
            if len(batch) != rows:
                rows = len(batch)
                interpreter.resize_tensor_input(source, batch.shape, strict=True)
                interpreter.allocate_tensors()
            interpreter.set_tensor(source, batch)
            interpreter.invoke()
            outputs.append(interpreter.get_tensor(sink))
        return outputs

    return run


def check(model, runner, images):
    expected = model.predict(images, batch_size=1000, verbose=0)
    error = np.abs(runner.run(images) - expected).max()
    if error > 1e-4:
        raise SystemExit(f"wrong results: largest difference {error}")
    print(f"largest difference from Keras: {error:.1e}")


def report(title, timings):
    first, second = list(timings)[:2]
    print(f"\n{title}: times faster than (1) {first} and (2) {second},")
    print("by medians, and by minima in brackets")
    for name, timing in timings.items():
        ratios = ""
        for reference in (timings[first], timings[second]):
            by_minima = reference.min_ms / timing.min_ms
            ratios += f"{timing.speedup_over(reference):8.2f} ({by_minima:7.2f})"
        print(f"  {name:34}{ratios}   {timing}")


if __name__ == "__main__":
    main()
