"""Recipes: reading, writing, refusing, and doing their steps."""

import json

import numpy as np
import optimizing_samples as samples
import pytest

import tfopt
from tfopt import artifacts
from tfopt.data import Split

INT8 = {"do": "convert", "quantization": "int8", "min_sqnr": -100.0}
FLOAT = {"do": "convert"}
HALF = {"sparsity": 0.5}


def data():
    return tfopt.Data(train=Split(samples.blobs()), test=Split(samples.blobs(seed=1)))


@pytest.fixture(scope="module")
def model():
    import tensorflow as tf

    return samples.network(tf.keras)


def applied(recipe, model, path, **given):
    inputs, _ = samples.blobs()
    done = recipe.apply(
        model, path / "m.tflite", representative_dataset=inputs[:64], **given
    )
    return done.path.read_bytes(), done


def test_a_recipe_is_the_same_after_a_round_trip(tmp_path):
    recipe = tfopt.Recipe(
        steps=[
            {"do": "remove_channels", "sparsity": 0.5},
            {
                "do": "train",
                "epochs": 2,
                "methods": [{"name": "quantize_aware"}, {"name": "prune"}],
            },
            INT8,
        ],
        rules=[{"layers": "*", "precision": "float"}, {"layers": "a", "sparsity": 0.5}],
        name="both",
        seed=3,
    )
    recipe.save(tmp_path / "r.json")
    again = tfopt.Recipe.load(tmp_path / "r.json")
    assert again == recipe
    assert again.digest() == recipe.digest()
    assert again.trains
    assert again.target == "tflite"
    other = tfopt.Recipe(steps=[FLOAT], name="x")
    assert other.digest() == tfopt.Recipe(steps=[FLOAT]).digest() != again.digest()


@pytest.mark.parametrize(
    "content",
    [
        {"steps": []},
        {"steps": "convert"},
        {"steps": [{"do": "eval", "code": "1"}]},
        {"steps": [{"do": ["convert"]}]},
        {"steps": [{"do": "convert", "no_such_option": 1}]},
        {"steps": [{"do": "convert", "representative_dataset": "os:system"}]},
        {"steps": [{"do": "convert", "min_sqnr": float("nan")}]},
        {"steps": [FLOAT, FLOAT]},
        {"steps": [FLOAT, {"do": "train", "methods": []}]},
        {"steps": [{"do": "remove_channels", "sparsity": 0.5}]},
        {"steps": [{"do": "transform_graph"}]},
        {"steps": [{"do": "train", "methods": [{"name": "os"}]}, FLOAT]},
        {"steps": [{"do": "train", "methods": [{"name": "prune", "data": 1}]}, FLOAT]},
        {
            "steps": [
                {"do": "train", "methods": [{"name": "prune", "log_dir": "/x"}]},
                FLOAT,
            ]
        },
        {
            "steps": [
                {"do": "train", "methods": [{"name": "distill", "teacher": "m"}]},
                FLOAT,
            ]
        },
        {"steps": [FLOAT], "rules": [{"layers": "a", "precision": "float"}]},
        {"steps": [INT8], "rules": [{"layers": "a", "sparsity": 0.5}]},
        {"steps": [INT8], "rules": [{"layers": "a"}]},
        {"steps": [INT8], "rules": [{"layers": "a", "precision": "int3"}]},
        {"steps": [{"do": "prune_once"}, FLOAT], "rules": [{"layers": "", **HALF}]},
        {
            "steps": [{"do": "prune_once"}, FLOAT],
            "rules": [{"layers": "a", "sparsity": 1.0}],
        },
        {"steps": [FLOAT], "seed": -1},
        {"steps": [FLOAT], "name": 3},
    ],
)
def test_what_no_recipe_may_hold_is_refused(content):
    with pytest.raises(ValueError, match="Received"):
        tfopt.Recipe(**content)
    whole = {"format": "tfopt.recipe", "version": 1, **content}
    with pytest.raises(tfopt.TfoptError, match="Received"):
        tfopt.Recipe.from_json(whole)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"format": "tfopt.recipe", "version": 2, "steps": []}',
        b'{"format": "tfopt.recipe", "version": 1}',
        b'{"format": "tfopt.recipe", "version": 1, "steps": [], "code": 1}',
        b"[" * 100_000,
        b" " * 2_000_000,
    ],
)
def test_damaged_files_are_named_errors(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_bytes(text)
    with pytest.raises(tfopt.TfoptError, match=r"r\.json"):
        tfopt.Recipe.load(path)


def test_no_recipe_is_a_pickle(tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "r.json"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(tfopt.TfoptError, match="Cannot read"):
        tfopt.Recipe.load(path)
    assert not (tmp_path / "ran").exists()


def test_of_several_rules_the_last_one_counts(model, tmp_path):
    rules = [
        {"layers": "*", "precision": "float"},
        {"layers": "hidden", "precision": "quantized"},
    ]
    _, done = applied(tfopt.Recipe(steps=[INT8], rules=rules), model, tmp_path)
    assert done.reports[-1]["report"]["kept_float"]["layers"] == ["logits"]
    _, done = applied(tfopt.Recipe(steps=[INT8], rules=rules[::-1]), model, tmp_path)
    layers = done.reports[-1]["report"]["kept_float"]["layers"]
    assert layers == ["hidden", "logits"]


@pytest.mark.parametrize(
    "rule",
    [{"layers": "nothing*", "precision": "float"}, {"layers": "x", "sparsity": 0.5}],
)
def test_a_rule_that_matches_nothing_is_an_error(model, tmp_path, rule):
    steps = [{"do": "prune_once", "sparsity": 0.5}, INT8]
    recipe = tfopt.Recipe(steps=steps, rules=[rule])
    with pytest.raises(ValueError, match="matches no"):
        applied(recipe, model, tmp_path)


def test_rules_divide_sparsity(model, tmp_path):
    steps = [{"do": "prune_once"}, FLOAT]
    rules = [{"layers": "*", "sparsity": 0.5}, {"layers": "logits", "sparsity": 0.0}]
    content, _ = applied(tfopt.Recipe(steps=steps, rules=rules), model, tmp_path)
    found = tfopt.sparsity(content)
    del found["total"]
    assert sorted(np.round(list(found.values()), 2)) == [0.0, 0.5]


def test_trainings_are_taken_over_and_give_the_same_bytes(model, tmp_path):
    methods = [
        {"name": "quantize_aware"},
        {"name": "prune", "final_sparsity": 0.5, "end_step": 4},
    ]
    steps = [{"do": "train", "epochs": 1, "batch_size": 50, "methods": methods}, INT8]
    recipe = tfopt.Recipe(steps=steps)
    first, _ = applied(
        recipe, model, tmp_path, examples=data(), stages_dir=tmp_path / "stages"
    )
    (stage,) = (tmp_path / "stages").iterdir()
    before = artifacts.sha256(stage)
    again, _ = applied(
        recipe, model, tmp_path, examples=data(), stages_dir=tmp_path / "stages"
    )
    anew, _ = applied(recipe, model, tmp_path, examples=data())
    assert first == again == anew
    assert artifacts.sha256(stage) == before
    with pytest.raises(tfopt.TfoptError, match="examples=None"):
        applied(recipe, model, tmp_path)


def test_a_file_written_by_hand_is_applied(model, tmp_path):
    content = {"format": "tfopt.recipe", "version": 1, "steps": [FLOAT]}
    (tmp_path / "r.json").write_text(json.dumps(content))
    recipe = tfopt.Recipe.load(tmp_path / "r.json")
    content, done = applied(recipe, model, tmp_path)
    assert done.format == "tflite"
    with tfopt.Runner(content) as runner:
        inputs, _ = samples.blobs()
        expected = model.predict(inputs, verbose=0)
        np.testing.assert_allclose(runner.run(inputs), expected, atol=1e-4)


def test_graph_steps_make_a_saved_model(model, tmp_path):
    model.export(tmp_path / "in", verbose=False)
    recipe = tfopt.Recipe(steps=[{"do": "transform_graph", "transforms": "deploy"}])
    done = recipe.apply(str(tmp_path / "in"), tmp_path / "out")
    assert (done.format, recipe.target) == ("saved_model", "saved_model")
    assert (tmp_path / "out" / "saved_model.pb").exists()
