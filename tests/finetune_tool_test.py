"""The finetune tool: interruptions and wrong flags."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).parent.parent
TOOL = ROOT / "tools" / "finetune.py"


def blobs(count=240, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    inputs = generator.normal(size=(count, 8)) + 3 * np.eye(8)[labels]
    return inputs.astype(np.float32), labels


@pytest.fixture
def files(tmp_path):
    (x_train, y_train), (x_test, y_test) = blobs(1200), blobs(seed=1)
    np.savez(
        tmp_path / "data.npz",
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
    )
    layers = tf.keras.layers
    hidden = layers.Dense(16, activation="relu", name="hidden")
    model = tf.keras.Sequential([layers.Input((8,)), hidden, layers.Dense(3)])
    model.save(tmp_path / "base.keras")
    return [
        *(sys.executable, str(TOOL), f"--model={tmp_path / 'base.keras'}"),
        *(f"--data={tmp_path / 'data.npz'}", f"--output_dir={tmp_path / 'out'}"),
    ]


def environment():
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


@pytest.mark.slow
def test_ctrl_c_leaves_a_state_from_which_the_tool_goes_on(files, tmp_path):
    command = [*files, "--methods=prune", "--prune.final_sparsity=0.6"]
    command += ["--epochs=15", "--batch_size=8"]
    running = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # Where jobs run in the background, they inherit that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    state = tmp_path / "out" / ".training" / "training.json"
    deadline = time.monotonic() + 60
    while not state.exists() and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    assert "goes on from there" in errors
    done = json.loads(state.read_text())["epochs"]
    again = subprocess.run(
        command, capture_output=True, text=True, env=environment(), check=False
    )
    assert again.returncode == 0, again.stderr
    assert f"continued after epoch {done}" in again.stdout
    assert "hidden/kernel: 60.2%" in again.stdout
    assert not state.exists()


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        (["--methods=prun"], 2, "--methods=prun"),
        (["--prune.final_sparsity=0.5"], 2, "--prune.final_sparsity"),
        (["--methods=prune"], 2, "final_sparsity"),
        (["--model=missing.keras"], 1, "missing.keras"),
    ],
)
def test_the_tool_names_wrong_flags(files, flags, code, named):
    done = subprocess.run(
        [*files, *flags], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == code, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert named in line
    assert "Traceback" not in done.stderr


def test_a_recipe_says_how_to_train(files, tmp_path):
    from tfopt import Recipe
    from tfopt.finetuning.command import finetune_model
    from tfopt.types import UsageError

    prune = {"name": "prune", "final_sparsity": 0.5, "end_step": 10}
    train = {"do": "train", "epochs": 2, "batch_size": 50, "methods": [prune]}
    recipe = Recipe(steps=[train, {"do": "convert", "quantization": "float16"}])
    recipe.save(tmp_path / "r.json")
    given = {
        "model": str(tmp_path / "base.keras"),
        "data": str(tmp_path / "data.npz"),
        "output_dir": str(tmp_path / "out"),
        "recipe": str(tmp_path / "r.json"),
    }
    found = finetune_model(**given)
    assert found.epochs == 2
    assert found.sparsity["total"] == pytest.approx(0.5, abs=0.01)
    assert "tflite" in found.artifacts
    with pytest.raises(UsageError, match="--recipe"):
        finetune_model(**given, methods=["prune"])
    Recipe(steps=recipe.steps[1:]).save(tmp_path / "r.json")
    with pytest.raises(UsageError, match="train and convert"):
        finetune_model(**given)
