"""The examples in docstrings run, and print what they say.

An example without a printed result only has to run. What examples may take for
granted is `world`.
"""

import doctest
import importlib
import pathlib
import shutil

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
# Their examples take no TensorFlow; the others wait for it.
LIGHT = (
    *("types", "artifacts", "schedules", "masks", "affine", "report", "data"),
    *("savedmodel", "_processes", "_samples", "_signatures", "_flags", "_writing"),
)


def modules():
    found = []
    for path in sorted(ROOT.glob("tfopt/**/*.py")):
        if ">>>" not in path.read_text(encoding="utf-8"):
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        slow = [] if len(parts) == 1 or parts[1] in LIGHT else [pytest.mark.slow]
        found.append(pytest.param(".".join(parts), marks=slow))
    return found


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A compiled Keras model for digits, its loss, and a folder with it in files."""
    import tensorflow as tf

    from tfopt.conversion import convert

    keras = tf.keras
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Input((28, 28), name="image"),
        keras.layers.Flatten(),
        keras.layers.Dense(10, name="logits"),
    ]
    model = keras.Sequential(layers, name="digits")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    folder = tmp_path_factory.mktemp("digits")
    model.export(folder / "saved_model")
    (folder / "model.tflite").write_bytes(convert(model))
    return model, model.get_weights(), loss, folder


@pytest.fixture
def world(request, tmp_path, monkeypatch):
    """The names that an example may use, and the folder that it runs in.

    In the folder are `model.tflite`, `saved_model/` and `testdata/`.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "testdata").symlink_to(ROOT / "testdata")
    if not request.node.get_closest_marker("slow"):
        yield {"np": np}
        return
    model, weights, loss, folder = request.getfixturevalue("digits")
    # As if no other example had trained it.
    model.set_weights(weights)
    model.compile("adam", loss, metrics=["accuracy"])
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    rng = np.random.default_rng(0)
    images = rng.random([64, 28, 28], np.float32)
    with importlib.import_module("tfopt.runner").Runner("model.tflite") as runner:
        yield {
            "np": np,
            "tfopt": importlib.import_module("tfopt"),
            "model": model,
            "loss": loss,
            "images": images,
            "labels": rng.integers(0, 10, 64),
            "batches": np.split(images, 4),
            "runner": runner,
        }


class Checker(doctest.OutputChecker):
    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def run_examples(thing, name, names):
    """Returns how many examples failed; what they printed is on stdout."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    runner = doctest.DocTestRunner(Checker(), optionflags=flags)
    for test in finder.find(thing, name, globs=names):
        runner.run(test)
    return runner.summarize(verbose=False).failed


@pytest.mark.parametrize("name", modules())
def test_examples(name, world, capsys):
    module = importlib.import_module(name)
    names = {**world, **vars(module)}
    assert not run_examples(module, name, names), capsys.readouterr().out


def test_wrong_examples_fail(capsys):
    class Wrong:
        """Says what is not so.

        >>> 1 + 1
        2
        >>> 1 + 1
        3
        >>> 1 / 1
        >>> 1 / 0
        """

    assert run_examples(Wrong, "Wrong", {}) == 2
    output = capsys.readouterr().out
    assert "Expected:\n    3" in output
    assert "ZeroDivisionError" in output
