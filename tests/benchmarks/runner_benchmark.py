"""Runner against Keras, a plain loop, ONNX Runtime and OpenVINO; memory; long streams.

    PYTHONPATH=. python tests/benchmarks/runner_benchmark.py --rounds=15

Parts: `mnist` (10,000 images), `mobilenet` (MobileNetV2 96x96 int8), `memory` (1, 2 and
4 workers on 100 MB of weights), `isolation`, `stream` (1 M small batches of a
generator). `--part=mnist --part=memory` runs some. The other runtimes are those of the
extra [benchmark]; without them their rows are left out.

Prints medians and ratios of one interleaved run, and for how many samples the machine
was quiet. The weights are untrained: speed does not depend on them.
"""

import argparse
import importlib.util
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import runner_peers as peers
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tfopt.benchmark import interleave
from tfopt.conversion import convert
from tfopt.runner import Runner

MNIST = pathlib.Path(__file__).parents[2] / "testdata" / "mnist.npz"
BATCH = 32
PARTS = ("mnist", "mobilenet", "memory", "isolation", "stream")
HAS_PEERS = all(
    importlib.util.find_spec(name) for name in ("onnxruntime", "openvino", "tf2onnx")
)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--part", action="append", choices=PARTS)
    arguments = parser.parse_args()
    for part in arguments.part or PARTS:
        print(f"\n# {part}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            globals()[part](pathlib.Path(folder), arguments.rounds)


def mnist(folder, rounds):
    with np.load(MNIST) as data:
        images = (data["x_test"] / 255).astype(np.float32)
    batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    model = build_model()
    content = convert(model)
    quantized = convert(model, quantization="int8", representative_dataset=images[:100])
    (folder / "float.tflite").write_bytes(content)
    (folder / "int8.tflite").write_bytes(quantized)
    with (
        Runner(content) as auto,
        Runner(content, num_workers=2, num_threads=1, batch_size=BATCH) as by_32,
        Runner(content, num_workers=1, num_threads=1, batch_size=BATCH) as alone,
        Runner(quantized) as int8,
    ):
        print(f"auto: {auto.plan}\nint8: {int8.plan}")
        check(model, auto, images)
        candidates = {
            "keras predict(batch_size=32)": lambda: model.predict(
                images, batch_size=BATCH, verbose=0
            ),
            "plain loop, batch 32": plain_loop(content, batches),
            "Runner.run, 1 worker, batch 32": lambda: alone.run(images),
            "Runner.run, batch 32": lambda: by_32.run(images),
            "Runner.map, batches of 32": lambda: list(by_32.map(batches)),
            f"Runner.run, auto ({auto.batch_size})": lambda: auto.run(images),
            "int8: plain loop, batch 32": plain_loop(quantized, batches),
            "int8: Runner.map, batches of 32": lambda: list(int8.map(batches)),
            f"int8: Runner.run, auto ({int8.batch_size})": lambda: int8.run(images),
        }
        if HAS_PEERS:
            onnx = peers.onnx_of(model, tf.TensorSpec([None, 28, 28], tf.float32))
            several = {
                f"onnxruntime, {n} x {k}": peers.onnxruntime_of(
                    onnx, images, BATCH, sessions=n, threads=k
                )
                for n, k in ((2, 1), (1, 2))
            }
            several["OpenVINO throughput"] = peers.openvino_of(
                folder / "float.tflite", images, BATCH
            )
            several["OpenVINO throughput, float32"] = peers.openvino_of(
                folder / "float.tflite", images, BATCH, INFERENCE_PRECISION_HINT="f32"
            )
            agree(auto.run(images), several, 0.05)
            candidates |= several
        report(f"{len(images)} images", interleave(candidates, rounds=rounds))
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


def mobilenet(folder, rounds):
    """64 images; int8 means int8 from input to output, for all that can."""
    tf.keras.utils.set_random_seed(0)
    model = tf.keras.applications.MobileNetV2(
        (96, 96, 3), weights=None, classifier_activation=None
    )
    images = np.random.default_rng(0).uniform(-1, 1, (64, 96, 96, 3)).astype("f")
    path = folder / "int8.tflite"
    path.write_bytes(
        convert(
            model,
            quantization="int8",
            representative_dataset=images[:32],
            inference_input_type="int8",
            inference_output_type="int8",
            verify=False,  # random weights: nothing to agree on
        )
    )
    with Runner(path) as runner:
        (info,) = runner.signature.inputs
        codes = np.rint(images / info.scale[0] + info.zero_point[0])
        codes = codes.clip(-128, 127).astype(np.int8)
        print(runner.plan)
        candidates = {
            "keras predict (float32)": lambda: model.predict(images, verbose=0),
            "plain loop, batch 32": plain_loop(
                path.read_bytes(), [codes[:32], codes[32:]]
            ),
            f"Runner.run, auto ({runner.batch_size})": lambda: runner.run(codes),
            "Runner.run, float inputs": lambda: runner.run(images),
        }
        if HAS_PEERS:
            onnx = peers.onnx_of_tflite(path)
            several = {
                f"OpenVINO throughput, batch {batch}": peers.openvino_of(
                    path, codes, batch
                )
                for batch in (4, 16)
            }
            several |= {
                f"onnxruntime, {n} x {k}": peers.onnxruntime_of(
                    onnx, codes, 16, sessions=n, threads=k
                )
                for n, k in ((2, 1), (1, 2))
            }
            # With random weights rounding adds up: figures to read, not to judge.
            agree(runner.run(codes), several, float("inf"))
            candidates |= several
        report("64 images", interleave(candidates, rounds=rounds))


def memory(folder, rounds):
    """Private memory that 1, 2 and 4 workers add, shared pages counted once."""
    path = folder / "large.tflite"
    weights = [
        np.random.default_rng(seed).normal(size=(2240, 2240), scale=0.02).astype("f")
        for seed in range(5)
    ]

    @tf.function(input_signature=[tf.TensorSpec([None, 2240])])
    def dense(x):
        for weight in weights:
            x = tf.nn.relu(x @ weight)
        return x

    path.write_bytes(convert(dense, verify=False))
    print(f"{path.stat().st_size / 1e6:.0f} MB")
    for isolate in (0, 1):
        for workers in (1, 2, 4):
            command = (sys.executable, "-c", MEMORY, path, str(workers), str(isolate))
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(
                f"isolate={bool(isolate)!s:5} {workers} workers: {done.stdout}", end=""
            )


MEMORY = """
import os, pathlib, sys
import numpy as np
from tfopt.runner import Runner
def below(pid):
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    found = [c for t in tasks for c in (t / "children").read_text().split()]
    return found + [c for child in found for c in below(child)]
def private():
    total = 0
    for pid in (os.getpid(), *below(os.getpid())):
        for line in open(f"/proc/{pid}/smaps_rollup"):
            if line.startswith("Pss_Anon:"):
                total += int(line.split()[1]) / 1024
    return total
x = np.random.rand(128 * 4, 2240).astype("f")
before = private()
workers = int(sys.argv[2])
with Runner(sys.argv[1], num_workers=workers, num_threads=1, batch_size=32,
            isolate=sys.argv[3] == "1") as runner:
    pool = runner._pool._engines
    engines = [pool.take() for _ in range(workers)]
    for engine in engines:
        engine.run([x[:32]])
    print(f"{private() - before:.0f} MB")
    for engine in engines:
        pool.give(engine)
"""


def isolation(folder, rounds):
    """What processes cost: MNIST by pieces of 32, and a larger model."""
    with np.load(MNIST) as data:
        images = (data["x_test"] / 255).astype(np.float32)
    path = folder / "model.tflite"
    path.write_bytes(convert(build_model()))
    candidates = {}
    options = {"num_workers": 2, "num_threads": 1, "batch_size": BATCH}
    begin = time.perf_counter()
    with Runner(path, **options) as local:
        opened = time.perf_counter()
        with Runner(path, isolate=True, **options) as apart:
            print(
                f"opened in {1e3 * (opened - begin):.0f} ms, isolated in "
                f"{1e3 * (time.perf_counter() - opened):.0f} ms"
            )
            candidates["isolated, 10,000 images"] = lambda: apart.run(images)
            candidates["local, 10,000 images"] = lambda: local.run(images)
            candidates["isolated, 1 image"] = lambda: apart.run(images[:1])
            candidates["local, 1 image"] = lambda: local.run(images[:1])
            report("isolation", interleave(candidates, rounds=rounds))


def stream(folder, rounds):
    """A million batches of 4 rows from a generator."""
    dense = tf.function(lambda x: x @ tf.ones([8, 4]))
    concrete = dense.get_concrete_function(tf.TensorSpec([None, 8]))
    content = convert(concrete, verify=False)
    batch = np.ones((4, 8), np.float32)
    with Runner(content) as runner:
        begin = time.perf_counter()
        results = runner.map(itertools.repeat(batch, 1_000_000))
        for index, _ in enumerate(results, 1):
            if index in (1_000, 10_000, 100_000, 1_000_000):
                used = resident_kb()
                print(f"{index:9,} batches: {used:,} kB resident", flush=True)
    print(f"{1e6 * (time.perf_counter() - begin) / index:.1f} us a batch")


def resident_kb():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def agree(expected, candidates, tolerance):
    """All compute the same: OpenVINO's default is bfloat16, hence the tolerance."""
    for name, run in candidates.items():
        difference = np.abs(run().astype(np.float32) - expected).max()
        print(f"{name}: largest difference {difference:.2g}")
        if not difference <= tolerance:
            raise SystemExit(f"wrong results of {name}")


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
