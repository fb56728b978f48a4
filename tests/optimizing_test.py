"""The search: verdicts, held-out choice, resuming, and what each stage does."""

import json
import pathlib

import numpy as np
import optimizing_samples as samples
import pytest

import tfopt
from tfopt import artifacts

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model():
    import tensorflow as tf

    return samples.network(tf.keras)


@pytest.fixture(scope="module")
def untrained(model, tmp_path_factory):
    """A search without training examples, and its folder."""
    folder = tmp_path_factory.mktemp("untrained")
    found = tfopt.optimize(
        model,
        samples.blobs(300, seed=1),
        max_accuracy_drop=0.02,
        methods=["float16", "int8", "prune_once"],
        output_dir=folder,
    )
    return found, folder


def test_the_best_keeps_the_budget_on_held_out_examples(untrained):
    found, folder = untrained
    assert found.best.judgement.verdict == "accepted"
    assert found.best.holdout.value >= found.best.holdout.baseline - 0.02
    smaller = [item for item in found.candidates if item.holdout is not None]
    smallest = min(
        item.holdout.gzip_bytes
        for item in smaller
        if item.judgement.verdict == "accepted"
    )
    assert found.best.holdout.gzip_bytes == smallest
    assert artifacts.gzip_size(folder / "best.tflite") == smallest
    inputs, labels = samples.blobs(300, seed=1)
    with tfopt.Runner(folder / "best.tflite") as runner:
        right = (runner.run(inputs).argmax(-1) == labels).mean()
    figures = found.best.holdout, found.best.trial.figures
    assert right == pytest.approx(np.mean([item.value for item in figures]), abs=1e-6)


def test_everything_is_written_for_people_and_machines(untrained):
    found, folder = untrained
    written = {path.name for path in folder.iterdir()}
    assert {"report.md", "report.html", "report.json", "recipe.json"} <= written
    content = json.loads((folder / "report.json").read_text())
    assert content["best"]["name"] == found.best.name
    assert len(content["candidates"]) == len(found.candidates)
    for item in content["candidates"]:
        assert item["verdict"] in ("accepted", "over budget", "anomalous", "infeasible")
        assert item["reason"]
    assert any(item["is_on_front"] for item in content["candidates"])
    trial = json.loads(
        (pathlib.Path(found.best.path).parent / "trial.json").read_text()
    )
    assert {"recipe", "seed", "figures", "parent", "seconds"} <= set(trial)
    assert "candidate" in str(found)


def test_a_recipe_is_replayed_exactly(untrained, model, tmp_path):
    _, folder = untrained
    again = tfopt.optimize(
        model,
        samples.blobs(300, seed=1),
        max_accuracy_drop=0.02,
        recipe=folder / "recipe.json",
        output_dir=tmp_path,
    )
    assert len(again.candidates) == 2
    first = (folder / "best.tflite").read_bytes()
    assert (tmp_path / "best.tflite").read_bytes() == first


def test_what_an_earlier_search_has_tried_is_a_candidate(untrained, model):
    found, folder = untrained
    stamps = {x: x.stat().st_mtime_ns for x in folder.glob("trials/*/*/trial.json")}
    again = tfopt.optimize(
        model,
        samples.blobs(300, seed=1),
        max_accuracy_drop=0.9,
        methods=["int8", "prune_once"],
        trials_dir=folder / "trials",
        objective="latency",  # which prunes nothing by itself
    )
    # Without what makes use of other methods.
    expected = {x.name for x in found.candidates} - {"float16"}
    assert {item.name for item in again.candidates} == expected
    assert any("taken over" in note for note in again.notes)
    assert stamps == {x: x.stat().st_mtime_ns for x in stamps}


def test_memory_is_judged_by_file_and_arena_before_it_is_measured(untrained):
    from tfopt.optimizing import _judging

    found, _ = untrained
    for item in found.candidates:
        figures = item.trial.figures
        inspected = tfopt.inspect(item.path)
        planned = inspected.size_bytes + inspected.arena_bytes
        assert inspected.arena_bytes > 0
        assert _judging.cost(figures, "memory") == planned
        if item.holdout is not None:  # a process of its own
            assert _judging.cost(item.holdout, "memory") == item.holdout.peak_bytes


def test_the_front_has_no_candidate_that_another_one_beats(untrained):
    found, _ = untrained
    points = [
        (f.gzip_bytes, f.baseline - f.value, f.latency_ratio)
        for f in (item.trial.figures for item in found.front)
    ]
    for point in points:
        assert not any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True))
            for other in points
        )


def test_a_dry_run_tries_nothing(model, tmp_path):
    found = tfopt.optimize(
        model, samples.blobs(), trials_dir=tmp_path / "trials", dry_run=True
    )
    assert found.best is None
    assert found.candidates == []
    assert found.plan[0]["stage"] == "quantize"
    assert all(item["seconds"] >= 0 for item in found.plan)
    assert "Plan" in str(found)


def test_a_budget_that_nothing_keeps_says_what_came_closest(model, tmp_path):
    found = tfopt.optimize(
        model,
        samples.blobs()[0],
        metric="max_difference",
        max_accuracy_drop=0.0,
        methods=["int8"],
        output_dir=tmp_path,
    )
    assert found.best is None
    assert found.closest.judgement.verdict == "over budget"
    assert found.closest.name in found.failure()
    assert not (tmp_path / "best.tflite").exists()
    assert (tmp_path / "report.json").exists()


@pytest.fixture(scope="module")
def rescued(tmp_path_factory):
    import tensorflow as tf

    return tfopt.optimize(
        samples.fragile(tf.keras),
        samples.blobs(200, seed=2),
        max_accuracy_drop=0.02,
        methods=["int8", "mixed"],
        trials_dir=tmp_path_factory.mktemp("fragile"),
    )


def test_int8_loses_and_the_report_says_by_which_layer(rescued):
    plain = next(item for item in rescued.candidates if item.name == "int8")
    assert plain.judgement.verdict in ("over budget", "anomalous")
    (why,) = [note for note in rescued.notes if note.startswith("Why not int8")]
    assert "fragile" in why or "wide" in why


def test_few_layers_in_float_keep_the_budget(rescued):
    kept = rescued.best.trial.kept_float
    assert 0 < kept["macs_share"] < 1
    assert rescued.best.judgement.verdict == "accepted"
    # Each one alone was needed: without any of them the budget breaks.
    layers = set(kept["layers"])
    for item in rescued.candidates:
        fewer = item.trial.kept_float
        if fewer is not None and set(fewer["layers"]) < layers:
            assert item.judgement.verdict != "accepted"


def test_another_budget_is_solved_from_the_saved_scores(rescued):
    import tensorflow as tf

    folder = pathlib.Path(rescued.trials_dir)
    scores = sorted(folder.glob("sensitivity_*.json"))
    assert scores
    stamps = [path.stat().st_mtime_ns for path in scores]
    again = tfopt.optimize(
        samples.fragile(tf.keras),
        samples.blobs(200, seed=2),
        max_accuracy_drop=0.05,
        methods=["int8", "mixed"],
        trials_dir=folder.parent,
    )
    assert again.best.judgement.verdict == "accepted"
    assert sorted(folder.glob("sensitivity_*.json")) == scores
    assert [path.stat().st_mtime_ns for path in scores] == stamps
    known = {item.trial.key: item.trial.seconds for item in rescued.candidates}
    assert (
        known.items()
        <= {item.trial.key: item.trial.seconds for item in again.candidates}.items()
    )


def test_verdicts_tell_chance_and_failure(model):
    from tfopt.optimizing import _judging, _problem
    from tfopt.optimizing._trials import Figures

    problem = _problem.pose(
        model, samples.blobs(), metric=None, higher_is_better=None, seed=0
    )
    usual = {
        "baseline": 0.95,
        "gzip_bytes": 1,
        "baseline_gzip_bytes": 2,
        "size_bytes": 1,
        "latency_ms": 1.0,
        "latency_ratio": 1.0,
        "peak_bytes": None,
        "sqnr_db": 20.0,
        "is_finite": True,
    }

    def verdict(**more):
        figures = Figures(**{**usual, **more})
        return _judging.judge_figures(figures, problem, 0.01, trained=False).verdict

    assert problem.chance == pytest.approx(1 / 3, abs=0.05)
    assert verdict(value=0.95) == "accepted"
    assert verdict(value=0.93) == "over budget"
    assert verdict(value=0.36) == "anomalous"
    assert verdict(value=0.95, is_finite=False) == "anomalous"
    assert verdict(value=0.80, sqnr_db=-3.0) == "anomalous"


def test_an_infeasible_recipe_is_a_candidate_with_the_reason(model, tmp_path):
    recipe = tfopt.Recipe(
        steps=[{"do": "convert", "quantization": "int8"}],
        rules=[{"layers": "nothing", "precision": "float"}],
    )
    found = tfopt.optimize(model, samples.blobs(), recipe=recipe, trials_dir=tmp_path)
    assert found.best is None
    (item,) = [item for item in found.candidates if item.name != "float"]
    assert item.judgement.verdict == "infeasible"
    assert "matches no layer" in item.judgement.reason


CHILD = """
import sys
import optimizing_samples as samples
import tfopt
found = tfopt.optimize(
    sys.argv[1], samples.blobs(200, seed=1), max_accuracy_drop=0.02,
    methods=["float16", "dynamic", "int8", "prune_once"], trials_dir=sys.argv[2])
print(found.best.name)
"""


@pytest.mark.slow
def test_a_killed_search_goes_on_where_it_was(model, tmp_path):
    model.save(tmp_path / "m.keras")
    child = samples.Child(CHILD, tmp_path / "m.keras", tmp_path / "trials")
    child.kill_when(lambda: len(_trials(tmp_path)) >= 2, seconds=60, pause=0.05)
    done = _trials(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in done}
    again = child.run(seconds=120)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == stamps
    assert len(_trials(tmp_path)) > len(done) >= 2
    assert not list((tmp_path / "trials").rglob(".tfopt-*"))


def _trials(folder):
    # Complete ones only: the temporary folder of a running trial has a dot.
    found = (folder / "trials").glob("*/*/trial.json")
    return [path for path in found if not path.parent.name.startswith(".")]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"max_accuracy_drop": -1}, "max_accuracy_drop"),
        ({"objective": "speed"}, "objective"),
        ({"target": "onnx"}, "target"),
        ({"methods": ["magic"]}, "methods"),
        ({"methods": "int8"}, "methods"),
        ({"methods": ["deploy"]}, "methods"),
        ({"time_budget": 0}, "time_budget"),
        ({"epochs": 0}, "epochs"),
        ({"inputs": ["x"]}, "inputs"),
        ({"metric": "beauty"}, "metric"),
        ({"metric": lambda outputs, labels: 1.0}, "higher_is_better"),
    ],
)
def test_bad_arguments_are_named(model, given, match):
    with pytest.raises(ValueError, match=match):
        tfopt.optimize(model, samples.blobs(20), **given)


def test_a_task_metric_needs_labels_and_examples_two_parts(model):
    with pytest.raises(ValueError, match="needs labels"):
        tfopt.optimize(model, samples.blobs(20)[0], metric="accuracy")
    with pytest.raises(tfopt.TfoptError, match="at least two"):
        tfopt.optimize(model, samples.blobs(1))
    inputs, _ = samples.blobs(20)
    with pytest.raises(ValueError, match="no classes"):
        tfopt.optimize(model, (inputs, inputs))


def test_a_frozen_graph_needs_only_typical_inputs(model, tmp_path):
    model.export(tmp_path / "saved", verbose=False)
    tfopt.freeze(str(tmp_path / "saved"), tmp_path / "g.pb")
    from tfopt.freezing import memory

    frozen = memory.frozen_graph(str(tmp_path / "saved"))
    found = tfopt.optimize(
        tmp_path / "g.pb",
        samples.blobs(100)[0],
        inputs=list(frozen.inputs.values()),
        outputs=list(frozen.outputs.values()),
        max_accuracy_drop=0.05,
        methods=["float16", "int8"],
        trials_dir=tmp_path / "trials",
    )
    assert found.metric == "mean_difference"
    assert found.best is not None
    with pytest.raises(ValueError, match="outputs"):
        tfopt.optimize(tmp_path / "g.pb", samples.blobs(20)[0])


@pytest.mark.slow
def test_graph_transforms_for_a_saved_model(model, tmp_path):
    model.export(tmp_path / "saved", verbose=False)
    found = tfopt.optimize(
        str(tmp_path / "saved"),
        samples.blobs(100),
        target="saved_model",
        methods=["deploy", "half"],
        output_dir=tmp_path / "out",
    )
    assert {item.name for item in found.candidates} > {"deploy"}
    assert (tmp_path / "out" / "best" / "saved_model.pb").exists()
