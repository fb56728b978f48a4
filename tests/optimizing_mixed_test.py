"""Layers kept in float, frozen graphs and SavedModels in the search."""

import json
import pathlib

import numpy as np
import optimizing_samples as samples
import pytest

import tfopt
from tfopt.data import Split
from tfopt.optimizing import _mixed
from tfopt.quantization import Constant, Layer


def logarithmic(keras):
    """A network with a constant that is 0 in float16, before a logarithm."""
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((8,), name="point")
    x = layers.Dense(64, activation="relu", name="hidden")(inputs)
    x = layers.Rescaling(1.0, offset=1e-9, name="small")(x)
    x = layers.Lambda(tf.math.log, name="log")(x)
    return keras.Model(inputs, layers.Dense(64, name="wide")(x))


@pytest.fixture(scope="module")
def rescued(tmp_path_factory):
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("logarithmic")
    model = logarithmic(tf.keras)
    found = tfopt.optimize(
        model,
        samples.blobs(40, seed=2)[0],
        max_accuracy_drop=0.5,
        methods=["float16", "mixed"],
        output_dir=folder,
    )
    return model, found, folder


def test_a_constant_that_float16_loses_stays_in_float32(rescued):
    _, found, _ = rescued
    plain = next(item for item in found.candidates if item.name == "float16")
    assert plain.judgement.verdict != "accepted"
    assert found.best.trial.kept_float["layers"] == ["small"]
    figures = found.best.holdout
    assert figures.value < 0.5
    assert figures.size_bytes < 0.8 * found.candidates[0].trial.figures.size_bytes
    (why,) = [note for note in found.notes if note.startswith("Why not float16")]
    assert "small" in why
    assert "1e-09" in why


def test_a_mixed_recipe_is_replayed_byte_by_byte(rescued, tmp_path):
    model, _, folder = rescued
    recipe = tfopt.Recipe.load(folder / "recipe.json")
    assert [str(rule) for rule in recipe.rules] == ["small: float"]
    again = tfopt.optimize(
        model,
        samples.blobs(40, seed=2)[0],
        max_accuracy_drop=0.5,
        recipe=folder / "recipe.json",
        output_dir=tmp_path,
    )
    assert again.best.judgement.verdict == "accepted"
    first = (folder / "best.tflite").read_bytes()
    assert (tmp_path / "best.tflite").read_bytes() == first


def constant(size):
    return Constant(bytes=size, smallest=0.1, largest=1.0, lost_in_float16=0)


def test_layers_that_share_weights_stay_together():
    shared, own, bias = constant(4096), constant(2048), constant(16)
    layers = {
        "a": Layer(("CONV_2D",), 1, 0, {"x": shared, "b": bias}),
        "b": Layer(("CONV_2D",), 1, 0, {"y": own, "b": bias}),
        "c": Layer(("CONV_2D",), 1, 0, {"x": shared}),
        "d": Layer(("LOG",), 0, 0),
    }
    groups = _mixed.sharing(layers, list(layers))
    assert sorted(sorted(group) for group in groups) == [["a", "c"], ["b"], ["d"]]


@pytest.mark.parametrize("needed", [{0}, {2}, {0, 3}, {1, 5}, {0, 1, 2, 3, 4, 5}])
def test_what_is_kept_is_the_least_that_is_needed(needed):
    order = [_mixed.Unit((str(i),), 1.0 / (i + 1), 1.0) for i in range(6)]
    tried = []

    class Search:
        seconds_left = 1.0

        def is_accepted(self, trial):
            return needed <= trial

        def note(self, text):
            raise AssertionError(text)

    def attempt(units):
        tried.append({order.index(unit) for unit in units})
        return tried[-1]

    kept = _mixed.shortest(Search(), order, attempt)
    assert len(kept) == max(needed) + 1
    kept = _mixed.step_back(Search(), kept, attempt)
    assert {order.index(unit) for unit in kept} == needed
    assert len(tried) <= 12


def test_no_division_is_enough():
    order = [_mixed.Unit((str(i),), 1.0, 1.0) for i in range(6)]

    class Search:
        seconds_left = 1.0

        def is_accepted(self, trial):
            return False

    assert _mixed.shortest(Search(), order, len) is None


# Graphs


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A SavedModel, the same as a frozen graph, and inputs alone."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("exported")
    samples.network(tf.keras, units=256).export(folder / "saved", verbose=False)
    tfopt.freeze(
        str(folder / "saved"), folder / "g.pb", signature_keys=["serving_default"]
    )
    np.savez(folder / "d.npz", x_test=samples.blobs(100, seed=1)[0])
    return folder


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("g.pb", ["--methods=float16,int8"]),
        pytest.param("saved", ["--methods=dynamic,int8,mixed"], marks=pytest.mark.slow),
        pytest.param(
            "g.pb",
            ["--target=saved_model", "--methods=deploy,small"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_typical_inputs_are_enough(exported, tmp_path, model, options):
    from optimize_tool_test import run_optimize

    done = run_optimize(
        f"--model={exported / model}",
        f"--data={exported / 'd.npz'}",
        f"--output_dir={tmp_path / 'out'}",
        "--max_accuracy_drop=0.1",
        *options,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["metric"] == "mean_difference"
    assert report["best"]["verdict"] == "accepted"
    name = "best" if "--target=saved_model" in options else "best.tflite"
    assert pathlib.Path(tmp_path / "out" / name).exists()


def test_names_of_a_graph_that_it_lacks(exported, tmp_path):
    with pytest.raises(ValueError, match=r"Received: outputs=.*'nothing'"):
        tfopt.optimize(
            exported / "g.pb",
            samples.blobs(20)[0],
            outputs=["nothing"],
            trials_dir=tmp_path,
        )
    with pytest.raises(ValueError, match="for a frozen graph only"):
        tfopt.optimize(
            exported / "saved", samples.blobs(20)[0], outputs=["x"], trials_dir=tmp_path
        )


@pytest.mark.slow
def test_a_frozen_graph_is_lifted_and_trained(exported, tmp_path):
    data = tfopt.Data(
        train=Split(samples.blobs(300)), test=Split(samples.blobs(200, seed=1))
    )
    options = {"max_accuracy_drop": 0.1, "epochs": 1, "batch_size": 50}
    for target, methods in (
        ("tflite", ["float16", "prune"]),
        ("saved_model", ["deploy", "prune"]),
    ):
        found = tfopt.optimize(
            exported / "g.pb",
            data,
            target=target,
            methods=methods,
            loss="sparse_categorical_crossentropy",
            trials_dir=tmp_path,
            **options,
        )
        trained = [item for item in found.candidates if item.trial.recipe.trains]
        assert trained, found.notes
        assert not [x for x in trained if x.judgement.verdict == "infeasible"], found


@pytest.mark.slow
def test_weights_of_a_saved_model_that_4_bits_ruin_stay_float(exported, tmp_path):
    found = tfopt.optimize(
        str(exported / "saved"),
        samples.blobs(100, seed=1)[0],
        target="saved_model",
        max_accuracy_drop=0.04,
        methods=["small", "mixed", "prune_once"],
        trials_dir=tmp_path,
    )
    names = [item.name for item in found.candidates]
    assert any(name.startswith("pruned at once") for name in names)
    assert any("in float: " in name for name in names), found
    assert found.best is not None
