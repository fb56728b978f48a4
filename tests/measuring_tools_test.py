"""The commands benchmark_model and compare_models, as users run them."""

import json
import os
import pathlib
import subprocess
import sys

import benchmark_samples as samples
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
# .tflite files are measured where there is no TensorFlow.
WITHOUT_TENSORFLOW = """
import runpy, sys
for name in ("tensorflow", "keras", "tf_keras"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(tool, *arguments, folder):
    return subprocess.run(
        [
            *(sys.executable, "-c", WITHOUT_TENSORFLOW),
            *(str(ROOT / "tools" / f"{tool}.py"), *arguments),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    inputs, outputs = samples.write_all(folder)
    labels = outputs.argmax(axis=1)
    np.savez(folder / "data.npz", x_test=inputs, y_test=labels)
    np.savez(folder / "raw.npz", x_test=inputs * -4, y_test=labels)
    return folder


def test_benchmark_model(folder):
    done = run(
        "benchmark_model",
        *("--model=float=float.tflite", "--model=int8.tflite,broken.tflite"),
        *("--num_runs=2", "--rounds=2", "--min_round_ms=0", "--batch_size=4"),
        *("--data=data.npz", "--profile", "--report=report.json"),
        folder=folder,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("p99 [ms]", "float", "int8.tflite", "broken.tflite", "Not measured"):
        assert word in done.stdout
    assert "Where the time of float goes" in done.stdout
    content = json.loads((folder / "report.json").read_text())
    rows = {row["name"]: row for row in content["models"]}
    assert list(rows) == ["float", "int8.tflite", "broken.tflite"]
    assert rows["float"]["rows"] == 4
    assert rows["float"]["error"] is None
    assert rows["broken.tflite"]["error"]


def test_compare_models(folder):
    done = run(
        "compare_models",
        *("--model=float=float.tflite", "--model=int8=int8.tflite"),
        *("--data=raw.npz", "--input_scale=-0.25"),  # undoes what was done to them
        *("--metric=accuracy,f1", "--output_dir=out"),
        *("--num_runs=1", "--reference=float", "--num_examples=32"),
        folder=folder,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Models on 32 examples" in done.stdout
    assert "100.00%" in done.stdout
    names = {path.suffix for path in (folder / "out").iterdir()}
    assert {".md", ".json", ".html"} <= names


@pytest.mark.parametrize(
    ("tool", "arguments", "code", "message"),
    [
        ("benchmark_model", ["--model=none.tflite"], 1, "nothing there"),
        ("benchmark_model", ["--model=broken.tflite"], 1, "No model could be measured"),
        ("benchmark_model", [], 2, "--model"),
        ("benchmark_model", ["--model=a.tflite", "--num_workers=x"], 2, "num_workers"),
        ("compare_models", ["--model=float.tflite"], 2, "--data"),
        (
            "compare_models",
            ["--model=float.tflite", "--data=data.npz", "--metric=acuracy"],
            1,
            "Expected one of accuracy",
        ),
        (
            "compare_models",
            ["--model=float.tflite", "--data=none.npz"],
            1,
            "No such data file",
        ),
    ],
)
def test_failures_are_one_line(folder, tool, arguments, code, message):
    done = run(tool, *arguments, folder=folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"{tool}: ")
    assert message in done.stderr
