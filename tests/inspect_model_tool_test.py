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
