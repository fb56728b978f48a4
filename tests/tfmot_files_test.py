"""Models in TFMOT wrappers, from files: taken as meant, without TFMOT here."""

import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import tfopt
from tfopt import _keras
from tfopt._keras import foreign

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent
MAKE = """
import os, sys
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import numpy as np, tf_keras, tensorflow_model_optimization as tfmot
from tf_keras import layers
tf_keras.utils.set_random_seed(0)
plain = tf_keras.Sequential([
    layers.Input((8, 8, 1)), layers.Conv2D(4, 3, activation="relu"),
    layers.Flatten(), layers.Dense(3)])
plain.save("plain.keras")
x = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")
np.savez("data.npz", x_train=x, y_train=np.arange(64) % 3, x_test=x,
         y_test=np.arange(64) % 3)
schedule = tfmot.sparsity.keras.ConstantSparsity(0.75, 0, frequency=1)
pruned = tfmot.sparsity.keras.prune_low_magnitude(plain, pruning_schedule=schedule)
pruned.compile("sgd", "mse")
pruned.fit(x, np.zeros((64, 3)), verbose=0,
           callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
pruned.save("pruned.keras")
pruned.save("pruned_saved_model", save_format="tf")
np.save("pruned.npy", tfmot.sparsity.keras.strip_pruning(pruned).predict(x))
quantized = tfmot.quantization.keras.quantize_model(plain)
quantized.compile("sgd", "mse")
quantized.fit(x, np.zeros((64, 3)), epochs=2, verbose=0)
quantized.save("quantized.h5")
np.save("quantized.npy", quantized.predict(x))
"""


def environment():
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("wrapped")
    done = subprocess.run(
        [sys.executable, "-c", MAKE],
        cwd=path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return path


def images(folder):
    with np.load(folder / "data.npz") as file:
        return file["x_test"]


def test_wrappers_are_recognised(folder):
    kinds = {
        name: foreign.kind_of(folder / name)
        for name in ("plain.keras", "pruned.keras", "quantized.h5", "missing.keras")
    }
    assert kinds == {
        "plain.keras": "",
        "pruned.keras": "pruned",
        "quantized.h5": "quantized",
        "missing.keras": "",
    }


def test_a_model_in_pruning_is_stripped(folder):
    model = _keras.load(folder / "pruned.keras")
    assert [layer.name for layer in model.layers] == ["conv2d", "flatten", "dense"]
    expected = np.load(folder / "pruned.npy")
    found = model.predict(images(folder), verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert tfopt.sparsity(model)["total"] == pytest.approx(0.75, abs=0.01)
    assert "tensorflow_model_optimization" not in sys.modules
    assert not np.allclose(found, np.load(folder / "quantized.npy"), atol=1e-3)


def test_a_saved_model_in_pruning_is_stripped(folder, tmp_path):
    frozen = tfopt.freeze(folder / "pruned_saved_model", tmp_path / "frozen.pb")
    assert len(frozen.details["kept_variables"]) == 0


def test_a_model_trained_for_int8_converts_to_integers(folder):
    done = tfopt.convert_with_report(folder / "quantized.h5", quantization="int8")
    assert done.report["float_operators"] == []
    expected = np.load(folder / "quantized.npy")
    with tfopt.Runner(done.content) as runner:
        found = runner.run(images(folder))
    step = np.abs(expected).max() / 100
    np.testing.assert_allclose(found, expected, atol=2 * step)


def test_keras_cannot_have_its_layers(folder):
    with pytest.raises(tfopt.TfoptError, match=r"need TFMOT.*quantized\.h5"):
        _keras.load(folder / "quantized.h5")


def test_schedules_of_tfmot_give_the_same_values():
    code = """
    import os
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import numpy as np, tensorflow_model_optimization as tfmot, tfopt
    theirs = tfmot.sparsity.keras.PolynomialDecay(0.2, 0.9, 10, 60, 2, 7)
    ours = tfopt.Prune(schedule=theirs).schedule
    for step in range(10, 80):
        update, value = theirs(step)
        assert abs(float(value) - ours(step)) < 1e-6, step
        # On top, ours is exact at end_step.
        assert bool(update) == ours.updates_at(step) or step >= 60, step
    assert abs(float(theirs(40)[1]) - tfopt.PolynomialDecay(0.2, 0.9, 10, 60)(40)) > .01
    theirs = tfmot.sparsity.keras.ConstantSparsity(0.5, 3, frequency=2)
    ours = tfopt.Prune(schedule=theirs).schedule
    assert ours == tfopt.ConstantSparsity(0.5, begin_step=3, frequency=2)
    class Other(tfmot.sparsity.keras.PruningSchedule):
        def __call__(self, step): ...
        def get_config(self): return {"class_name": "Other", "config": {}}
    Other.__module__ = "tensorflow_model_optimization.other"
    try:
        tfopt.Prune(schedule=Other())
    except ValueError as error:
        assert "Other" in str(error)
    else:
        raise AssertionError("no error")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("methods", ["prune,quantize_aware"])
def test_finetune_trains_through_tfmot(folder, tmp_path, methods):
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tools" / "finetune.py"), "--engine=tfmot"),
            *(f"--model={folder / 'plain.keras'}", f"--data={folder / 'data.npz'}"),
            *(f"--methods={methods}", "--prune.final_sparsity=0.75"),
            *("--prune.frequency=1", "--epochs=3", "--quantization=int8"),
            f"--output_dir={tmp_path / 'out'}",
        ],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "model.h5" in done.stdout
    assert tfopt.sparsity(tmp_path / "out" / "model.tflite")["total"] >= 0.74
    pruned = tmp_path / "out" / "pruned" / "model.keras"
    assert tfopt.sparsity(pruned)["total"] == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--methods=quantize_aware,prune"], "--methods=quantize_aware,prune"),
        (["--methods=prune", "--prune.scope=global"], "--prune.scope"),
    ],
)
def test_what_tfmot_lacks_is_named(folder, tmp_path, flags, named):
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tools" / "finetune.py"), "--engine=tfmot"),
            *(f"--model={folder / 'plain.keras'}", f"--data={folder / 'data.npz'}"),
            *("--prune.final_sparsity=0.5", f"--output_dir={tmp_path}", *flags),
        ],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
