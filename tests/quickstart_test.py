"""The quickstart on a slice of the digits, as a user starts it."""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import ROOT

from tfopt import artifacts
from tfopt.quickstart import quickstart
from tfopt.runner import Runner

FILES = {
    "base.keras",
    "pruned.keras",
    "qat.keras",
    "pruned.tflite",
    "qat.tflite",
    "pruned_qat.tflite",
    "best.tflite",
    "report.md",
    "report.json",
    "report.png",
}
MODELS = [
    "base",
    "pruned",
    "qat",
    "pruned_tflite",
    "qat_tflite",
    "pruned_qat_tflite",
    "best_tflite",
]
METRICS = {
    "accuracy",
    "raw_bytes",
    "gzip_bytes",
    "gzip_ratio",
    "batch32_ms",
    "batch32_speedup",
    "loop_ms",
    "loop_speedup",
    "threads_ms",
    "threads_speedup",
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory, testdata):
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    with np.load(testdata / "mnist.npz") as file:
        np.savez(
            path,
            x_train=file["x_train"][:6000],
            y_train=file["y_train"][:6000],
            x_test=file["x_test"][:500],
            y_test=file["y_test"][:500],
        )
    return path


def run_tool(*flags):
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "quickstart.py", *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def native(digits, tmp_path_factory):
    """The output of the tool, made once."""
    folder = tmp_path_factory.mktemp("native")
    result = run_tool("--epochs=2", f"--data={digits}", f"--output_dir={folder}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("pruned + QAT + TFLite") >= 3
    return folder


@pytest.fixture(scope="module")
def tfmot(digits, tmp_path_factory):
    """The output with the other engine, from Python, whose process must not change."""
    folder = tmp_path_factory.mktemp("tfmot")
    code = (
        "import os, sys; from tfopt.quickstart import quickstart\n"
        f"quickstart(engine='tfmot', epochs=2, data={str(digits)!r}, "
        f"output_dir={str(folder)!r})\n"
        "assert 'TF_USE_LEGACY_KERAS' not in os.environ\n"
        "assert 'tensorflow_model_optimization' not in sys.modules\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["native", "tfmot"])
def test_makes_all_files_and_reports_what_they_are(engine, request):
    folder = request.getfixturevalue(engine)
    assert {path.name for path in folder.iterdir()} == FILES
    content = json.loads((folder / "report.json").read_text())
    assert content["engine"] == engine
    assert content["versions"]["tensorflow"].startswith("2.")
    assert list(content["models"]) == MODELS
    for name, row in content["models"].items():
        assert set(row) == METRICS, name
        assert row["accuracy"] > 0.8, name
        suffix = ".tflite" if name.endswith("_tflite") else ".keras"
        path = folder / (name.removesuffix("_tflite") + suffix)
        assert row["raw_bytes"] == path.stat().st_size
        assert row["gzip_bytes"] == artifacts.gzip_size(path)
        assert (row["threads_ms"] is None) == (suffix == ".keras"), name
    ratio = {name: row["gzip_ratio"] for name, row in content["models"].items()}
    assert ratio["base"] == 1
    assert (
        1 < ratio["pruned_tflite"] < ratio["pruned_qat_tflite"] < ratio["best_tflite"]
    )


@pytest.mark.slow
def test_files_are_what_their_names_say(digits, native):
    with np.load(digits) as file:
        images = file["x_test"].astype(np.float32) / 255
    with zipfile.ZipFile(native / "base.keras") as archive:
        config = json.loads(archive.read("config.json"))
    assert [layer["class_name"] for layer in config["config"]["layers"]][-5:] == [
        "Reshape",
        "Conv2D",
        "MaxPooling2D",
        "Flatten",
        "Dense",
    ]
    with Runner(native / "pruned_qat.tflite") as runner:
        assert runner.run(images).shape == (500, 10)


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"engine='other'"):
        quickstart(engine="other", output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"epochs=0"):
        quickstart(epochs=0, output_dir=tmp_path)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--engine=fast"], 2, "native, tfmot"),
        (["--epochs=many"], 2, "integer"),
        (["--data=missing.npz"], 1, "No such data file"),
    ],
)
def test_mistakes_are_one_line(flags, code, words, tmp_path):
    result = run_tool(*flags, f"--output_dir={tmp_path}")
    assert result.returncode == code
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert "Traceback" not in result.stderr
