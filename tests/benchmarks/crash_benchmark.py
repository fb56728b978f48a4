"""kill -9 at many moments of every tool that writes: old or new output, never a mix.

    PYTHONPATH=. python tests/benchmarks/crash_benchmark.py [TOOL ...] [--runs=200]
        [--seed=0] [--folder=...]
    PYTHONPATH=. python tests/benchmarks/crash_benchmark.py [TOOL ...] --disks

Each run starts with an old output in place, starts the tool in a fork of this process,
which has imported TensorFlow but not used it, and kills it: 70 % before a change of
files chosen by its number, so that each is hit, and 30 % by the clock, half of these
together with its children. Then each output must be wholly the old or wholly the new
one. Of outputs that belong together some may be new and others old; `artifacts.prepare`
must complete them. At last the tool runs again: its output must be the new one, and
nothing may be left beside it or in the place for temporary files.

The tools take the part of their work that is slow and writes nothing as short as can
be: structure checks only, the converter in the same process, one epoch.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import crash_samples  # noqa: E402 (beside the tests)
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from tfopt import artifacts  # noqa: E402

# What differs from run to run: times, and what is measured.
_TIMED = ("report.json", "report.md", "report.html", "report.png", "r.json")
# What is free on a full disk, so that it fails at the begin, and later.
_PAGES = (0, 3, 6, 10)


def tool(name, *flags):
    """Returns a writer that runs a tool."""

    def writer():
        sys.argv = [f"tools/{name}.py", *map(str, flags)]
        spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        module.run()

    return writer


def in_fork(function):
    """Runs what uses TensorFlow, so that this process does not."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def build(folder):
    """Makes two models in all formats, and examples."""
    keras = tf.keras
    data = np.random.default_rng(0)
    images = data.standard_normal((64, 8)).astype(np.float32)
    labels = (images.sum(1) > 0).astype(np.int32)
    np.savez(
        folder / "data.npz",
        x_train=images,
        y_train=labels,
        x_test=images,
        y_test=labels,
    )
    digits = data.integers(0, 255, (64, 28, 28)).astype(np.uint8)
    classes = data.integers(0, 10, 64).astype(np.uint8)
    np.savez(
        folder / "digits.npz",
        x_train=digits,
        y_train=classes,
        x_test=digits,
        y_test=classes,
    )
    np.savez(folder / "in.npz", x=images)
    from tfopt import conversion

    for number, name in enumerate("ab"):
        keras.utils.set_random_seed(number + 1)
        inputs = keras.Input((8,), name="x")
        hidden = keras.layers.Dense(16 + 8 * number, activation="relu")(inputs)
        model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
        model.save(folder / f"{name}.keras")
        model.export(folder / name, verbose=False)
        (folder / f"{name}.tflite").write_bytes(conversion.convert(model))


def without_times(content):
    """Makes reports comparable: which model they are about stays."""
    found = {}
    for name, value in content.items():
        if name in _TIMED and value is not None:
            found[name] = _subject(name, value)
        elif name.endswith(".keras") and value is not None:
            found[name] = _weights(value)
        else:
            found[name] = value
    return found


def _subject(name, value):
    """Returns which model a whole report is about; raises if it isn't whole."""
    if name.endswith(".json"):
        json.loads(value)
    elif name.endswith(".html"):
        assert value.rstrip().endswith(b"</html>")
    elif name.endswith(".png"):
        assert value.endswith(b"IEND\xaeB`\x82")
    return name, b"old" in value, b"new" in value


def _weights(value):
    """Returns the weights in a `.keras` file, whose entries have times."""
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(value)) as archive:
        assert archive.testzip() is None
        return archive.read("model.weights.h5")


def cases(place, out):
    """Yields (name, case, set)."""

    def case(name, make, outputs, normal=lambda content: content):
        return crash_samples.Case(
            name, make("a"), make("b"), tuple(out / item for item in outputs), normal
        )

    def flags(key, value):
        return f"--{key}={place / value}"

    def freeze(target, flag):
        return lambda model: tool(
            "freeze_graph", flags("input_saved_model_dir", model), f"--{flag}={target}"
        )

    yield case("freeze_graph", freeze(out / "f.pb", "output_graph"), ["f.pb"])
    yield case("freeze_graph_dir", freeze(out / "f", "output_saved_model_dir"), ["f"])
    yield case(
        "slim_checkpoint",
        lambda model: tool(
            "slim_checkpoint",
            flags("input_checkpoint", model),
            f"--output_checkpoint={out / 's'}",
        ),
        ["s"],
        _checkpoint_of(out / "s"),
    )
    yield case("light_checkpoint", lambda model: _light(out / "l", model), ["l"], _last)

    def transform(target, flag):
        return lambda model: tool(
            "transform_graph",
            flags("saved_model_dir", model),
            f"--{flag}={target}",
            "--transforms=fold_constants",
            "--verify=structure",
        )

    yield case("transform_graph", transform(out / "t.pb", "out_graph"), ["t.pb"])
    yield case(
        "transform_graph_dir", transform(out / "t", "output_saved_model_dir"), ["t"]
    )
    yield case(
        "run_grappler",
        lambda model: tool(
            "run_grappler",
            flags("saved_model_dir", model),
            f"--output_saved_model_dir={out / 'g'}",
            "--verify=structure",
        ),
        ["g"],
    )
    yield case(
        "tflite_convert",
        lambda model: tool(
            "tflite_convert",
            flags("saved_model_dir", model),
            f"--output_file={out / 'c.tflite'}",
            f"--c_array={out / 'c.cc'}",
            f"--op_resolver={out / 'ops.h'}",
            f"--manifest={out / 'c.json'}",
            f"--c_name={model}",
            "--noisolate",
            "--noverify",
        ),
        ["c.h", "c.cc", "ops.h", "c.json", "c.tflite"],
    )
    yield case(
        "run_tflite",
        lambda model: tool(
            "run_tflite",
            flags("model", f"{model}.tflite"),
            flags("input", "in.npz"),
            f"--output={out / 'y.npz'}",
        ),
        ["y.npz"],
    )
    yield case(
        "benchmark_model",
        lambda model: tool(
            "benchmark_model",
            f"--model={_word(model)}={place / f'{model}.tflite'}",
            "--num_runs=2",
            "--warmup_runs=1",
            f"--report={out / 'r.json'}",
        ),
        ["r.json"],
        without_times,
    )
    yield case(
        "inspect_model",
        lambda model: tool(
            "inspect_model",
            flags("model", f"{model}.tflite"),
            f"--report={out / 'r.json'}",
        ),
        ["r.json"],
    )
    yield case(
        "compare_models",
        lambda model: tool(
            "compare_models",
            f"--model={_word(model)}={place / f'{model}.tflite'}",
            f"--model=other={place / 'a.tflite'}",
            flags("data", "data.npz"),
            "--num_runs=2",
            f"--output_dir={out / 'rep'}",
        ),
        ["rep/report.json", "rep/report.md", "rep/report.html"],
        without_times,
    )
    yield case(
        "finetune",
        lambda model: tool(
            "finetune",
            flags("model", f"{model}.keras"),
            flags("data", "data.npz"),
            f"--output_dir={out / 'ft'}",
            "--methods=prune",
            "--prune.final_sparsity=0.5",
            "--epochs=2",
            "--quantization=none",
        ),
        ["ft/model.keras", "ft/model.tflite", "ft/report.json"],
        _finetuned,
    )
    yield case(
        "optimize",
        lambda model: tool(
            "optimize",
            flags("model", f"{model}.keras"),
            flags("data", "data.npz"),
            "--methods=float16",
            "--max_accuracy_drop=0.5",
            f"--seed={ord(model)}",
            f"--output_dir={out / 'opt'}",
            f"--trials_dir={out / ('trials_' + model)}",
        ),
        ["opt/recipe.json", "opt/report.json", "opt/best.tflite"],
        _optimized,
    )
    yield case(
        "quickstart",
        lambda model: tool(
            "quickstart",
            flags("data", "digits.npz"),
            "--epochs=1",
            f"--seed={ord(model)}",
            f"--output_dir={out / 'q'}",
        ),
        ["q/base.keras", "q/pruned.tflite", "q/best.tflite"],
        without_times,
    )
    yield case(
        "pack", lambda model: _pack(place / model, out / "p.tar.zst"), ["p.tar.zst"]
    )
    yield case("unpack", lambda model: _unpack(place, model, out / "u"), ["u"])
    yield case("Recipe.save", lambda model: _recipe(model, out / "r.json"), ["r.json"])


def _word(model):
    return {"a": "old", "b": "new"}[model]


def _checkpoint_of(prefix):
    """Returns content as TensorFlow reads it: what the index leads to."""

    def normal(_):
        from tfopt.savedmodel.bundle import BundleReader

        reader = BundleReader(prefix)
        return {"s": {key: reader.read(key).tolist() for key in sorted(reader.keys())}}

    return normal


def _light(folder, model):
    """Two epochs of a training; with another number of checkpoints to keep."""

    def writer():
        from tfopt import LightCheckpoint

        shutil.rmtree(folder, ignore_errors=True) if model == "a" else None
        net = tf.keras.Sequential([tf.keras.Input((2,)), tf.keras.layers.Dense(1)])
        net.compile("sgd", "mse")
        x = np.ones((4, 2), np.float32)
        light = LightCheckpoint(folder, max_to_keep=2)
        net.fit(x, x[:, :1], epochs=2, verbose=0, callbacks=[light])

    return writer


def _last(content):
    """Every checkpoint that is listed can be read."""
    from tfopt.checkpoint import callback
    from tfopt.savedmodel.bundle import BundleReader

    del content
    state = callback.read_state(_last.folder)
    numbers = [item["number"] for item in state["checkpoints"]]
    for number in numbers:
        reader = BundleReader(_last.folder / f"ckpt-{number}")
        for key in list(reader.keys()):
            reader.read(key)
    return {"l": numbers[:1] == [1] or (numbers and "later")}


def _finetuned(content):
    found = dict(content)
    if content["report.json"] is not None:
        report = json.loads(content["report.json"])
        found["report.json"] = round(report["before"]["loss"], 4)
    if content["model.keras"] is not None:
        found["model.keras"] = _weights(content["model.keras"])
    return found


def _optimized(content):
    found = dict(content)
    if content["report.json"] is not None:
        report = json.loads(content["report.json"])
        found["report.json"] = report["best"]["search"]["gzip_bytes"]
    return found


def _pack(source, target):
    def writer():
        from tfopt import packing

        packing.pack(source, target, level=3)

    return writer


def _unpack(place, model, target):
    def writer():
        from tfopt import packing

        packing.unpack(place / f"{model}.tar.zst", target)

    return writer


def _recipe(model, target):
    def writer():
        import tfopt

        seed = ord(model)
        steps = [{"do": "convert", "quantization": "float16"}]
        tfopt.Recipe(steps=steps, seed=seed).save(target)

    return writer


def try_disks(case, out, temporary):
    """Runs a tool on a full and on a read-only disk; returns what is wrong."""
    log = temporary.parent / "log"
    log.touch()
    os.environ["CRASH_LOG"] = str(log)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(out)], check=True
    )
    wrong = []
    try:
        first = crash_samples.run(case.old, (out,)).code
        assert first == 0, log.read_text(errors="replace")[-2000:]
        old = case.normal(crash_samples.snapshot(case.outputs))
        with (out / "filler").open("wb", 0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))
        full = (out / "filler").stat().st_size
        for words, room in (
            *(("No space left on device", pages * 4096) for pages in _PAGES),
            ("Read-only file system", None),
        ):
            if room is None:
                remount = ["mount", "-o", "remount,ro", str(out)]
                subprocess.run(remount, check=True)
            else:
                os.truncate(out / "filler", full - room)
            code = crash_samples.run(case.new, (out,)).code
            lines = log.read_text(errors="replace").strip().splitlines() or [""]
            print(f"    exit {code}: {lines[-1][:300]}", flush=True)
            if code == 0 and room:
                break  # there was room for it
            if code != 1 or words not in lines[-1]:
                wrong.append(words)
            if case.normal(crash_samples.snapshot(case.outputs)) != old:
                wrong.append("the old output is lost")
            wrong += crash_samples.leftovers(out, temporary)
    finally:
        subprocess.run(["umount", str(out)], check=True)
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tools", nargs="*")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--disks", action="store_true", help="full and read-only ones (needs root)"
    )
    parser.add_argument("--folder", help="by default one in memory")
    options = parser.parse_args()
    place = options.folder or crash_samples.fast_place()
    root = pathlib.Path(tempfile.mkdtemp(prefix="crash-", dir=place))
    place, out, temporary = (root / name for name in ("models", "out", "tmp"))
    for folder in (place, out, temporary):
        folder.mkdir()
    in_fork(lambda: build(place))
    in_fork(lambda: [_pack(place / m, place / f"{m}.tar.zst")() for m in "ab"])
    tempfile.tempdir, os.environ["TMPDIR"] = str(temporary), str(temporary)
    _last.folder = out / "l"
    bad = []
    try:
        for case in cases(place, out):
            if options.tools and case.name not in options.tools:
                continue
            if options.disks:
                print(case.name)
                wrong = try_disks(case, out, temporary)
                print("   ", wrong or "good", flush=True)
                bad += [case.name] if wrong else []
                continue
            start = time.monotonic()
            tally = crash_samples.crash(
                case,
                out,
                temporary,
                runs=options.runs,
                seed=options.seed,
                recover=artifacts.prepare,
            )
            print(
                f"{case.name:20} runs {tally.runs:3}  killed {tally.killed:3} "
                f"({tally.events} changes, {tally.seconds * 1000:.0f} ms)  "
                f"old {tally.old:3}  new {tally.new:3}  completed {tally.mixed:2}  "
                f"leftovers {tally.left:3}, after the next run "
                f"{len(tally.uncleaned)}  orphans {tally.orphans}  "
                f"{time.monotonic() - start:.0f} s",
                flush=True,
            )
            for found in (tally.broken, tally.failed, tally.uncleaned):
                if found:
                    print("   ", found[:3], flush=True)
            bad += [] if tally.is_good else [case.name]
            for item in out.iterdir():
                shutil.rmtree(item) if item.is_dir() else item.unlink()
    finally:
        shutil.rmtree(root)
    sys.exit(f"defects: {', '.join(bad)}" if bad else 0)


if __name__ == "__main__":
    main()
