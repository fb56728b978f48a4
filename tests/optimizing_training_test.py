"""Searches that train: plans by the clock, seeds, reuse, and trainings that go on."""

import dataclasses
import json
import pathlib
import time

import optimizing_samples as samples
import pytest

import tfopt
from tfopt import artifacts
from tfopt.data import Split
from tfopt.optimizing import _planning, _problem, _trainer, _training, _trials
from tfopt.optimizing._search import Search, Training
from tfopt.optimizing._trainer import Schedule

ROOT = pathlib.Path(__file__).parent.parent
TRAINED = {
    "max_accuracy_drop": 0.05,
    "methods": ["int8", "prune"],
    "epochs": 1,
    "batch_size": 50,
}


def data():
    return tfopt.Data(
        train=Split(samples.blobs(600)), test=Split(samples.blobs(400, seed=1))
    )


@pytest.fixture(scope="module")
def model():
    import tensorflow as tf

    return samples.network(tf.keras)


@pytest.fixture(scope="module")
def search(model, tmp_path_factory):
    """A search before its first stage."""
    problem = _problem.pose(model, data(), metric=None, higher_is_better=None, seed=0)
    study = _trials.Study(
        problem,
        tmp_path_factory.mktemp("trials"),
        teacher=None,
        seed=0,
        baseline=_planning.baseline("tflite", 0),
    )
    # Plans are made of it: not what this machine took just now.
    study.baseline = dataclasses.replace(study.baseline, seconds=1.0)
    return Search(
        problem=problem,
        study=study,
        budget=0.05,
        objective="size",
        methods=frozenset(["int8", "prune_once", "prune"]),
        time_budget=None,
        training=Training(None, 50, 2e-3, "adam", None),
        has_teacher=False,
        started=time.monotonic(),
    )


@pytest.fixture(scope="module")
def verdicts(search):
    """A trial that is accepted and one that isn't."""
    fine = search.study.baseline
    steps = [{"do": "prune_once", "sparsity": 1.0}, {"do": "convert"}]
    bad = search.attempt("nothing is left", steps)
    assert search.is_accepted(fine)
    assert not search.is_accepted(bad)
    return fine, bad


def test_bisection_finds_the_edge_by_what_is_left(search, verdicts):
    fine, bad = verdicts
    asked = []

    def attempt(fraction):
        asked.append(fraction)
        return fine if fraction <= 0.962 else bad

    options = {"low": 0.5, "high": 0.99, "first": 0.9}
    assert search.bisect(attempt, **options, tries=20, relative=True) is fine
    # Of 0.1 and 0.01 that are left, the next one is the geometric middle.
    assert asked[:2] == [0.9, pytest.approx(1 - 0.001**0.5, abs=1e-4)]
    best = max(fraction for fraction in asked if fraction <= 0.962)
    assert (1 - best) / (1 - 0.962) < 1.07
    assert len(asked) < 9
    # Nothing is accepted, and there is no time.
    assert search.bisect(lambda _: bad, **options, tries=3) is None
    assert search.bisect(lambda _: None, **options, tries=3) is None


def test_long_trainings_begin_between_what_was_reached_and_what_was_not(verdicts):
    fine, bad = verdicts
    line = _training.Line("4 bits", 4)
    line.accepted[0.9] = fine
    line.rejected[0.96] = line.rejected[0.98] = bad
    found = line.interval()
    assert found["low"] == 0.9
    assert found["first"] == pytest.approx(1 - (0.1 * 0.04) ** 0.5, abs=1e-4)
    # Longer trainings reach more than short ones.
    assert 0.96 < found["high"] < 0.98
    nothing = _training.Line("4 bits", 4)
    nothing.rejected[0.7] = bad
    assert nothing.interval()["low"] < nothing.interval()["first"] == 0.7
    assert line.best is fine
    assert nothing.best is None


@pytest.mark.parametrize(
    ("budget", "seconds", "expected"),
    [
        (None, 3.0, Schedule(5, 30)),
        (600, 1e-6, Schedule(5, 60)),
        (600, 40.0, Schedule(1, 8)),  # one of the latter at most
        (600, 400.0, Schedule(1, 0)),
        (600, 1e4, Schedule(0, 0)),
    ],
)
def test_the_clock_says_how_long_trainings_are(search, budget, seconds, expected):
    trainer = _trainer.Trainer(search, search.problem.train.train)
    assert trainer.seconds_per_epoch > 0
    search.time_budget = budget
    search.started = time.monotonic()
    try:
        trainer.seconds_per_epoch = seconds
        planned = trainer._planned()
        assert planned == expected
        trainer.seconds_per_epoch = 3.0
        usual = trainer._planned()
        if budget is not None:
            # Most of the time is planned for, and no more than there is.
            spent = _trainer.SHORT * trainer.seconds(usual.short)
            spent += _trainer.LONG * trainer.seconds(usual.long)
            assert 0.85 * search.seconds_left < spent <= search.seconds_left
            # It went faster than expected: long trainings take what is left.
            trainer.schedule = usual
            trainer.seconds_per_epoch = 1.5
            trainer.plan_long()
            assert trainer.schedule.short == usual.short
            assert trainer.schedule.long > usual.long
    finally:
        search.time_budget = None


def test_what_was_decided_by_the_clock_stays_decided(search):
    assert search.kept("test", lambda: 3, a=1) == 3
    assert search.kept("test", lambda: 4, a=1) == 3
    assert search.kept("test", lambda: 4, a=2) == 4


def test_another_teacher_is_another_task(model, search, tmp_path):
    import tensorflow as tf

    folders = {
        _trials.Study(
            search.problem,
            tmp_path,
            teacher=teacher,
            seed=0,
            baseline=_planning.baseline("tflite", 0),
        ).folder
        for teacher in (None, model, samples.network(tf.keras, units=8))
    }
    assert len(folders) == 3


@pytest.mark.slow
def test_training_makes_it_smaller_and_the_seed_makes_it_the_same(model, tmp_path):
    first = tfopt.optimize(model, data(), trials_dir=tmp_path / "a", **TRAINED)
    trained = [item for item in first.candidates if item.trial.recipe.trains]
    assert trained
    assert min(x.trial.figures.gzip_bytes for x in trained) < next(
        x.trial.figures.gzip_bytes for x in first.candidates if x.name == "int8"
    )
    again = tfopt.optimize(model, data(), trials_dir=tmp_path / "b", **TRAINED)
    assert _files(again) == _files(first)
    assert again.best.name == first.best.name
    # Another budget takes over what is there.
    looser = tfopt.optimize(
        model,
        data(),
        trials_dir=tmp_path / "a",
        **{**TRAINED, "max_accuracy_drop": 0.9},
    )
    known = {item.trial.key: item.trial.seconds for item in first.candidates}
    found = {item.trial.key: item.trial.seconds for item in looser.candidates}
    assert known.items() <= found.items()


@pytest.mark.slow
def test_all_that_trains(model, tmp_path):
    methods = ["int8", "low_bit", "prune", "quantize_aware", "cluster", "distill"]
    found = tfopt.optimize(
        model,
        data(),
        teacher=model,
        trials_dir=tmp_path / "size",
        **{**TRAINED, "methods": methods},
    )
    trained = [item for item in found.candidates if item.trial.recipe.trains]
    assert any("clusters" in item.name for item in trained)
    assert not [x for x in trained if x.judgement.verdict == "infeasible"]
    fast = tfopt.optimize(
        model,
        data(),
        objective="latency",
        trials_dir=tmp_path / "latency",
        **{**TRAINED, "methods": ["int8", "quantize_aware", "remove_channels"]},
    )
    removed = [item for item in fast.candidates if "channels" in item.name]
    assert removed
    assert not [x for x in removed if x.judgement.verdict == "infeasible"]


@pytest.mark.slow
def test_long_trainings_follow_short_ones_and_a_rerun_makes_none(
    model, tmp_path, monkeypatch
):
    monkeypatch.setattr(_training, "_SHORT_TRIES", (1,))
    monkeypatch.setattr(_training, "_LONG_TRIES", 1)
    options = {
        "max_accuracy_drop": 0.05,
        "methods": ["int8", "prune"],
        "batch_size": 50,
        "time_budget": 3600,
        "trials_dir": tmp_path,
    }
    first = tfopt.optimize(model, data(), **options)
    lengths = [
        step.options["epochs"]
        for item in first.candidates
        for step in item.recipe.steps
        if step.do == "train"
    ]
    assert lengths[0] == 5
    assert set(lengths[1:]) == {60}
    stamps = {x: x.stat().st_mtime_ns for x in tmp_path.glob("*/*/trial.json")}
    again = tfopt.optimize(model, data(), **options)
    assert again.best.name == first.best.name
    after = {x: x.stat().st_mtime_ns for x in tmp_path.glob("*/*/trial.json")}
    assert after == stamps


@pytest.mark.slow
def test_a_frozen_graph_is_trained_as_what_it_is_lifted_to(model, tmp_path):
    from tfopt.freezing import memory

    model.export(tmp_path / "saved", verbose=False)
    tfopt.freeze(str(tmp_path / "saved"), tmp_path / "g.pb")
    frozen = memory.frozen_graph(str(tmp_path / "saved"))
    found = tfopt.optimize(
        tmp_path / "g.pb",
        data(),
        inputs=list(frozen.inputs.values()),
        outputs=list(frozen.outputs.values()),
        trials_dir=tmp_path / "trials",
        **{**TRAINED, "methods": ["int8", "prune_once", "prune"]},
    )
    for kind in ("pruned at once", "trained for int8"):
        (first, *_) = [item for item in found.candidates if kind in item.name]
        assert first.judgement.verdict in ("accepted", "over budget")
    with pytest.raises(ValueError, match="outputs"):
        tfopt.optimize(tmp_path / "g.pb", data())


def _files(found):
    return {
        item.name: artifacts.sha256(item.path)
        for item in found.candidates
        if item.path is not None
    }


CHILD = """
import sys
import optimizing_samples as samples
import tfopt
from tfopt.data import Split
data = tfopt.Data(train=Split(samples.blobs(600)), test=Split(samples.blobs(400, 1)))
found = tfopt.optimize(
    sys.argv[1], data, max_accuracy_drop=0.9, methods=["prune"], trials_dir=sys.argv[2],
    epochs=12, batch_size=50)
print(found.best.name)
"""


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_next_epoch(model, tmp_path):
    model.save(tmp_path / "m.keras")
    trials = tmp_path / "trials"
    child = samples.Child(CHILD, tmp_path / "m.keras", trials)
    child.kill_when(lambda: _epochs(trials), seconds=120, pause=0.02)
    done = _epochs(trials)
    assert 0 < done < 12
    again = child.run(seconds=300)
    assert again.returncode == 0, again.stderr
    reports = trials.glob("*/stages/*/report.json")
    notes = [json.loads(path.read_text())["notes"] for path in reports]
    assert [note for note in notes if f"continued after epoch {done}" in note]


def _epochs(trials):
    """Complete epochs of the training that is being made."""
    for path in trials.glob("*/stages/*/.training/training.json"):
        try:
            return json.loads(path.read_text())["epochs"]
        except OSError:
            return 0
    return 0
