"""Freezes SavedModels of growing size: time and peak memory, TensorFlow's way and ours.

    python tests/benchmarks/freeze_benchmark.py [--megabytes 100 400 1500]
        [--rounds=3] [--memory_limit_gb=20] [--folder=DIR] [--only ours]
        [--partial=2600]

Each model is one float32 embedding of width 128 and two small dense layers. Rows:

- TensorFlow: load the SavedModel, `convert_variables_to_constants_v2`, write the graph;
- tfopt: the command `tools/freeze_graph.py`, as it comes (it verifies all bytes);
- unverified: the same with `--verify=structure`;
- cp, cp + sync: copying the checkpoint's data file, and flushing the copy to disk, as
  tfopt does before it replaces the old output.

Every row is a process of its own; time is from its start to its end, and memory the
peak of its resident set. "less" is both without what the same command takes for a model
of 1 MB: start-up. Of several rounds, taken in turns, the fastest counts; TensorFlow's
way runs once, under a limit of its address space.

`--partial` instead freezes one model that no single protobuf message can hold, keeping
its embedding as a variable, and compares the outputs of both.
"""

import argparse
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
WIDTH = 128

# What runs in children; this process stays small, as a child's peak includes what its
# parent held when it was forked.
BUILD = """
import pathlib, sys
import numpy as np
import tensorflow as tf
from tfopt.savedmodel import reader, slices
from tfopt.savedmodel.bundle import BundleReader
from tfopt.savedmodel.bundle_writing import BundleWriter

folder, rows = pathlib.Path(sys.argv[1]), int(sys.argv[2])
module = tf.Module()
module.table = tf.Variable(tf.zeros([4, 128]), shape=[4, 128])
module.first = tf.Variable(tf.random.normal([128, 64]))
module.second = tf.Variable(tf.random.normal([64, 8]))

@tf.function(input_signature=[tf.TensorSpec([None, 3], tf.int32, name="ids")])
def serve(ids):
    x = tf.reduce_mean(tf.gather(module.table, ids), 1)
    return {"y": tf.nn.relu(x @ module.first) @ module.second}

tf.saved_model.save(module, str(folder), signatures=serve)
# Make the table large without holding it in memory.
saved_model = reader.read_saved_model(folder)
for node in saved_model.meta_graphs[0].graph_def.node:
    dims = node.attr["shape"].shape.dim if node.op == "VarHandleOp" else []
    if [dim.size for dim in dims] == [4, 128]:
        dims[0].size = rows
for item in saved_model.meta_graphs[0].object_graph_def.nodes:
    dims = item.variable.shape.dim
    if [dim.size for dim in dims] == [4, 128]:
        dims[0].size = rows
(folder / "saved_model.pb").write_bytes(saved_model.SerializeToString())
prefix = folder / "variables" / "variables"
old = BundleReader(prefix)
values = np.memmap(folder / "values", np.float32, "w+", shape=(rows, 128))
random = np.random.default_rng(0)
for start in range(0, rows, 10_000):
    part = values[start : start + 10_000]
    part[:] = random.standard_normal(part.shape, np.float32)
with BundleWriter(folder / "new") as writer:
    for key in old.keys():
        if old.entry(key).shape == (4, 128):
            writer.add(key, values)
        else:
            writer.copy(old, key)
(folder / "values").unlink()
for suffix in (".index", ".data-00000-of-00001"):
    (folder / ("new" + suffix)).rename(prefix.with_name("variables" + suffix))
(folder / "fingerprint.pb").unlink(missing_ok=True)
"""

CONVERT = """
import sys
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)

model = tf.saved_model.load(sys.argv[1])
frozen = convert_variables_to_constants_v2(model.signatures["serving_default"])
with open(sys.argv[2], "wb") as file:
    file.write(frozen.graph.as_graph_def().SerializeToString())
"""

COMPARE = """
import sys
import numpy as np
import tensorflow as tf

ids = tf.constant(np.random.default_rng(0).integers(0, int(sys.argv[3]), (64, 3)))
results = []
for path in sys.argv[1:3]:
    model = tf.saved_model.load(path)
    results.append(model.signatures["serving_default"](ids=tf.cast(ids, tf.int32))["y"])
    del model
gap = float(np.max(np.abs(results[0] - results[1])))
print(f"largest difference of {results[0].shape} outputs: {gap:.3g}")
sys.exit(gap > 1e-5)
"""


def run(command, limit=None, show=False):
    """Runs a command; returns seconds and megabytes, or why it failed."""

    def limit_memory():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    start = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)),
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=None if show else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=limit_memory,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        return f"failed (exit code {process.returncode}) after {seconds:.0f} s"
    return seconds, usage.ru_maxrss / 1024


def commands(model, target):
    """Returns row -> command."""
    tool = [
        sys.executable,
        ROOT / "tools/freeze_graph.py",
        f"--input_saved_model_dir={model}",
        f"--output_graph={target}",
    ]
    data = model / "variables/variables.data-00000-of-00001"
    return {
        "TensorFlow": [sys.executable, "-c", CONVERT, model, target],
        "tfopt": tool,
        "unverified": [*tool, "--verify=structure"],
        "cp": ["cp", data, target],
        "cp + sync": ["sh", "-c", 'cp "$0" "$1" && sync "$1"', data, target],
    }


def build(model, megabytes):
    """Builds the model; returns the rows of its embedding."""
    rows = megabytes * 1_000_000 // (WIDTH * 4)
    built = run([sys.executable, "-c", BUILD, model, rows])
    if isinstance(built, str):
        sys.exit(f"cannot build the model: {built}")
    return rows


def measure(folder, megabytes, rounds, limit, only):
    """Returns row -> (seconds, megabytes), or why it failed."""
    model, target = folder / "model", folder / "frozen.pb"
    build(model, megabytes)
    wanted = {
        name: command
        for name, command in commands(model, target).items()
        if only is None or name != "TensorFlow"
    }
    found = {}
    for number in range(rounds):
        for name, command in wanted.items():
            if name == "TensorFlow" and number:
                continue
            result = run(command, limit if name == "TensorFlow" else None)
            target.unlink(missing_ok=True)
            if name not in found or (
                not isinstance(result, str) and result[0] < found[name][0]
            ):
                found[name] = result
    shutil.rmtree(model)
    return found


def show(megabytes, found, base):
    """Prints the rows of one size."""
    print(f"\n{megabytes} MB of weights")
    print(f"{'':12}{'seconds':>9}{'less':>9}{'MB':>9}{'less':>9}")
    for name, result in found.items():
        if isinstance(result, str):
            print(f"{name:12}{result}")
            continue
        seconds, memory = result
        start = base[name] if not isinstance(base[name], str) else (0.0, 0.0)
        less = (seconds - start[0], max(0.0, memory - start[1]))
        print(f"{name:12}{seconds:9.2f}{less[0]:9.2f}{memory:9.0f}{less[1]:9.0f}")
    theirs, ours = found.get("TensorFlow"), found["tfopt"]
    if isinstance(theirs, tuple) and isinstance(ours, tuple):
        print(
            f"TensorFlow / tfopt: {theirs[0] / ours[0]:.0f} times the time, "
            f"{theirs[1] / ours[1]:.0f} times the memory"
        )
    if isinstance(ours, tuple):
        beyond = ours[0] - base["tfopt"][0]
        for name in ("cp", "cp + sync"):
            ratio = beyond / found[name][0]
            print(f"tfopt beyond start-up / {name}: {ratio:.2f}")


def partial(folder, megabytes, limit):
    """Freezes a large model but for its embedding, and compares."""
    model, graph, target = folder / "model", folder / "frozen.pb", folder / "frozen"
    rows = build(model, megabytes)
    tool = [
        sys.executable,
        ROOT / "tools/freeze_graph.py",
        f"--input_saved_model_dir={model}",
    ]
    print(f"{megabytes} MB as one graph:", run([*tool, f"--output_graph={graph}"]))
    kept = [f"--output_saved_model_dir={target}", "--keep_variables_over=1000000"]
    print("partly, seconds and MB:", run([*tool, *kept], show=True))
    compare = [sys.executable, "-c", COMPARE, model, target, rows]
    print("compared, seconds and MB:", run(compare, limit, show=True))


def main():
    """Builds, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[100, 400, 1500])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory_limit_gb", type=float, default=20)
    parser.add_argument("--folder", default=None, help="where the models are built")
    parser.add_argument("--only", choices=["ours"], default=None)
    parser.add_argument("--partial", type=int, default=None, metavar="MEGABYTES")
    options = parser.parse_args()
    limit = int(options.memory_limit_gb * 1e9)
    if options.partial is not None:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            partial(pathlib.Path(folder), options.partial, limit)
        return
    base = None
    for megabytes in [1, *options.megabytes]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found = measure(
                pathlib.Path(folder), megabytes, options.rounds, limit, options.only
            )
        base = base or found
        show(megabytes, found, base)


if __name__ == "__main__":
    main()
