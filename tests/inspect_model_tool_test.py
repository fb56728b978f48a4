"""The command `inspect_model`, as a user starts it."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT


def run_tool(*flags):
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "inspect_model.py", *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def lite(testdata):
    return testdata / "basic_pitch" / "reference.tflite"


def test_shows_a_file_and_writes_json(lite, tmp_path):
    result = run_tool(f"--model={lite}", f"--report={tmp_path / 'r.json'}")
    assert result.returncode == 0, result.stderr
    for word in ("CONV_2D", "multiply-accumulates", "arena", "serving_default"):
        assert word in result.stdout
    assert result.stderr == ""
    assert json.loads((tmp_path / "r.json").read_text())["macs"] > 5e8


def test_shows_a_difference(lite):
    result = run_tool(f"--model={lite}", f"--against={lite}")
    assert result.returncode == 0, result.stderr
    assert "Operations: no change" in result.stdout


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--model=missing.tflite"], 1, "missing.tflite"),
        (["--model=missing.tflite", "--largest=-1"], 1, "largest"),
        ([], 2, "model"),
        (["--model=x", "--nonsense=1"], 2, "nonsense"),
    ],
)
def test_mistakes_are_one_line(flags, code, words):
    result = run_tool(*flags)
    assert result.returncode == code
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_shows_what_each_layer_loses(tmp_path):
    code = (
        "import numpy as np, tensorflow as tf\n"
        "model = tf.keras.Sequential([tf.keras.Input((6,)),\n"
        "  tf.keras.layers.Dense(5, 'relu', name='first'),\n"
        "  tf.keras.layers.Dense(3, name='second')])\n"
        f"model.save({str(tmp_path / 'm.keras')!r})\n"
        "x = np.random.default_rng(0).integers(0, 256, (64, 6), np.uint8)\n"
        f"np.savez({str(tmp_path / 'd.npz')!r}, x_test=x, y_test=np.zeros(64, int))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    result = run_tool(
        f"--model={tmp_path / 'm.keras'}",
        f"--data={tmp_path / 'd.npz'}",
        "--input_scale=0.0039",
        "--sensitivity=int8",
        f"--report={tmp_path / 'r.json'}",
    )
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "r.json").read_text())["sensitivity"]
    rows = content["tables"][0]["rows"]
    assert {"first", "second"} <= set(rows)
    assert "first" in result.stdout


def test_sensitivity_needs_data(lite):
    result = run_tool(f"--model={lite}", "--sensitivity=int8")
    assert result.returncode == 2
    assert "--data" in result.stderr
