"""The tool `run_tflite`: files in, a file out, whatever the model does."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import runner_samples as samples

from tfopt.runner import Runner, _files, command
from tfopt.types import TfoptError, UsageError

ROOT = pathlib.Path(__file__).parent.parent
TOOL = ROOT / "tools" / "run_tflite.py"
# Starts the tool where importing TensorFlow fails.
START = """
import runpy, sys
for name in ("tensorflow", "keras", "tf_keras"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FAST = {"isolate": False, "num_workers": 2, "num_threads": 1}


def rows(count, width=8, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def tool(folder, **flags):
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    return subprocess.run(
        [sys.executable, "-c", START, str(TOOL), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, content):
        (tmp_path / name).write_bytes(content)

    write("dense.tflite", samples.dense())
    write("two.tflite", samples.two_by_two())
    np.save("x.npy", rows(1000))
    return tmp_path


def run(model="dense.tflite", input=("x.npy",), output="out.npz", **options):
    return command.run_tflite(
        model=model, input=input, output=output, **{**FAST, **options}
    )


def test_a_run_from_the_command_line(folder):
    done = tool(
        folder,
        model="dense.tflite",
        input="x.npy",
        output="out.npz",
        batch_size=32,
        report="report.json",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"out.npz: {os.path.getsize('out.npz'):,} bytes"
    assert lines[1] == "Identity: float32 [1000, 4]"
    assert "1,000 rows in" in lines[2]
    assert "rows/s" in lines[2]
    report = json.loads((folder / "report.json").read_text())
    assert report["rows"] == 1000
    assert report["batch_size"] == 32
    assert report["isolated"] is True
    assert report["outputs"] == {"Identity": {"dtype": "float32", "shape": [1000, 4]}}
    assert sorted(os.listdir(folder)) == sorted(
        ["dense.tflite", "two.tflite", "x.npy", "out.npz", "report.json"]
    )
    with np.load("out.npz") as result:
        assert np.allclose(result["Identity"], rows(1000) @ samples.WEIGHTS, atol=1e-5)


def test_models_that_crash_are_one_line(folder):
    (folder / "bad.tflite").write_bytes(samples.crashing())
    (folder / "out.npz").write_bytes(b"old")
    np.save("one.npy", rows(1))
    done = tool(folder, model="bad.tflite", input="one.npy", output="out.npz")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("run_tflite: Cannot run the model: the process")
    assert "SIG" in line
    assert (folder / "out.npz").read_bytes() == b"old"


def test_a_batch_that_crashes_is_named_by_its_rows(folder):
    (folder / "mod.tflite").write_bytes(samples.remainder())
    x, y = np.full(3000, 17, np.int32), np.full(3000, 5, np.int32)
    np.savez("good.npz", x=x, y=y)
    x[1701], y[1701] = -(2**31), -1
    np.savez("bad.npz", x=x, y=y)
    options = {"batch_size": 10, "isolate": True}
    run("mod.tflite", ["good.npz"], **options)
    assert (np.load("out.npz")["Identity"] == 2).all()
    with pytest.raises(TfoptError, match=r"Rows 1700 to 1709 failed: the.*FPE"):
        run("mod.tflite", ["bad.npz"], **options)


def test_every_form_of_input_and_output(folder):
    x, a, b = rows(1000), rows(7, 3), rows(7, 3, seed=1)
    np.savez("x.npz", anything=x)
    np.savez_compressed("both.npz", a=a, b=b, more=b)
    np.save("a.npy", a)
    np.save("b=.npy", b)
    expected = x @ samples.WEIGHTS
    for form in ("x.npy", "x.npz", "x=x.npy"):
        run(input=[form], output="out.npy")
        assert np.allclose(np.load("out.npy"), expected, atol=1e-5)
    for form in (["both.npz"], ["a=a.npy", "b=b=.npy"], ["a=both.npz", "b=b=.npy"]):
        result = run("two.tflite", form)
        with np.load("out.npz") as found:
            names = list(found)
            assert result.outputs.keys() == set(names)
            assert np.allclose(found[names[0]], b + 2 * a, atol=1e-6)
            assert np.allclose(found[names[1]], b * a, atol=1e-6)
    first = (folder / "out.npz").read_bytes()
    time.sleep(0.01)
    run("two.tflite", ["both.npz"])
    assert (folder / "out.npz").read_bytes() == first


def test_results_do_not_depend_on_how_rows_are_cut(folder, monkeypatch):
    monkeypatch.setattr(command, "_CHUNK_BYTES", 1000)
    for batch_size in (1, 7, 100, "auto", None):
        run(output="out.npy", batch_size=batch_size)
        result = np.load("out.npy")
        assert np.allclose(result, rows(1000) @ samples.WEIGHTS, atol=1e-5)
    with Runner(samples.dense()) as runner:
        batching = runner.batching(rows(1000))
        assert (batching.rows, batching.inputs) == (1000, ("x",))


@pytest.mark.parametrize(
    ("sample", "arrays"),
    [
        ("fixed", {"x": rows(10)}),
        ("mean", {"x": rows(10)}),
        ("positive", {"x": rows(50, 3)}),
        ("above", {"x": rows(900, 3), "limit": np.float32(0.5)}),
        ("look_up_in", {"table": rows(9, 3), "index": np.arange(300, dtype="i4") % 9}),
        ("words", {"words": np.array(["a", "bcd", "é"]), "index": np.int32([2, 0, 1])}),
        ("image_filter", {"x": rows(40 * 9, 9).reshape(40, 9, 9, 1)}),
        ("dense", {"x": rows(0)}),
    ],
)
def test_models_of_every_kind(folder, sample, arrays):
    model = getattr(samples, sample)()
    (folder / "model.tflite").write_bytes(model)
    np.savez("in.npz", **arrays)
    with Runner(model) as runner:
        expected = runner.run(arrays)
    result = run("model.tflite", ["in.npz"])
    with np.load("out.npz") as found:
        (array,) = (found[name] for name in found)
    assert next(iter(result.outputs.values()))["shape"] == list(expected.shape)
    if expected.dtype == object:
        assert array.tolist() == expected.tolist() == [b"\xc3\xa9", b"a", b"bcd"]
    else:
        assert array.dtype == expected.dtype
        assert np.array_equal(array, expected)


def test_large_inputs_stay_in_their_file(folder):
    """A file of 256 MB, of zeros that take no room on the disk."""
    header = np.lib.format.open_memmap("x.npy", "w+", np.float32, (8_000_000, 8))
    del header
    done = subprocess.run(
        [
            *(sys.executable, "-c", MEMORY, str(ROOT)),
            *("dense.tflite", "x.npy", "out.npy"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert np.load("out.npy", mmap_mode="r").shape == (8_000_000, 4)
    # Private memory only: pages of the mapped file don't count.
    assert int(done.stdout) < 100 << 20


MEMORY = """
import sys
sys.path.insert(0, sys.argv[1])
from tfopt.runner import command
model, source, target = sys.argv[2:]
def private():
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith("RssAnon"))
before = int(private())
most = 0
add = command.Outputs.add
def watched(self, results):
    global most
    most = max(most, int(private()))
    add(self, results)
command.Outputs.add = watched
command.run_tflite(model=model, input=[source], output=target, isolate=False,
                   num_workers=2, num_threads=1, batch_size=4096)
print((most - before) * 1024)
"""


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"output": "out.csv"}, UsageError, "ends with .npz or .npy"),
        ({"input": ["a=x.npy"]}, TfoptError, "No such file.*a=x.npy"),
        ({"input": ["no.npy"]}, TfoptError, "Cannot read the input: No such file"),
        ({"input": ["dense.tflite"]}, TfoptError, "Cannot read the input"),
        ({"input": ["x.npy", "x.npy"]}, UsageError, "given twice"),
        ({"input": ["objects.npy"]}, TfoptError, "Cannot read the input: .*bjects"),
        ({"input": ["wide.npy"]}, ValueError, r"Expected x: float32 \[\?, 8\]"),
        ({"input": ["two.npz"]}, UsageError, "lacks inputs.*Received: a, b"),
        ({"model": "two.tflite"}, UsageError, "one of b, a"),
        (
            {"model": "two.tflite", "input": ["two.npz"], "output": "a.npy"},
            UsageError,
            "holds one array",
        ),
        ({"model": "no.tflite"}, TfoptError, "Cannot read the model: No such file"),
        ({"model": "x.npy"}, TfoptError, "Not a complete"),
        ({"signature_key": "train"}, ValueError, "signature_key='train'"),
        ({"output": "x.npy/out.npz"}, TfoptError, "its folder is a file"),
    ],
)
def test_what_is_refused(folder, flags, error, message):
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    np.save("wide.npy", rows(3, 9))
    np.savez("two.npz", a=rows(2, 3), b=rows(2, 3))
    before = sorted(os.listdir(folder))
    with pytest.raises(error, match=message) as got:
        run(**flags)
    assert "\n" not in str(got.value)
    assert sorted(os.listdir(folder)) == before


def test_strings_that_no_file_can_hold():
    assert _files._fixed_length([b"a\0b", b""], "y").tolist() == [b"a\0b", b""]
    assert _files._fixed_length([], "y").size == 0
    with pytest.raises(TfoptError, match="ends with a zero byte"):
        _files._fixed_length([b"a\0"], "y")
