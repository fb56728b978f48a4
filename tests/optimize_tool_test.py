"""The optimize tool: files in, files out, and its exit codes."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import optimizing_samples as samples
import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("files")
    samples.network(tf.keras).save(folder / "m.keras")
    inputs, labels = samples.blobs(200, seed=1)
    np.savez(folder / "d.npz", x_test=inputs, y_test=labels)
    return folder


def run_tool(files, *arguments):
    return run_optimize(
        f"--model={files / 'm.keras'}", f"--data={files / 'd.npz'}", *arguments
    )


def run_optimize(*arguments):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [
            *(sys.executable, str(ROOT / "tools" / "optimize.py")),
            *arguments,
        ],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_files_in_files_out(files, tmp_path):
    done = run_tool(
        files,
        *(f"--output_dir={tmp_path / 'out'}", "--methods=float16,int8"),
        *("--max_accuracy_drop=0.05", f"--report={tmp_path / 'r.json'}"),
    )
    assert done.returncode == 0, done.stderr
    assert "best: " in done.stdout
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"best.tflite", "recipe.json", "report.json", "report.html"} <= names
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["best"]["verdict"] == "accepted"


@pytest.mark.slow
def test_nothing_within_the_budget_is_exit_1_with_the_closest(files, tmp_path):
    done = run_tool(
        files,
        *(f"--output_dir={tmp_path / 'out'}", "--methods=int8"),
        *("--metric=max_difference", "--max_accuracy_drop=0"),
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.strip().splitlines()[-1:]
    assert "Closest: int8" in line
    assert (tmp_path / "out" / "report.json").exists()


@pytest.mark.slow
def test_a_dry_run_prints_the_plan(files, tmp_path):
    done = run_tool(files, f"--output_dir={tmp_path / 'out'}", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "prune at once" in done.stdout
    assert not (tmp_path / "out" / "report.json").exists()
