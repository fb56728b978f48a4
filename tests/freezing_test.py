"""Freezing a zoo of models: each runs as before, in every form that is written."""

import ast
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfopt.freezing import freeze
from tfopt.runner import Runner

v1 = tf.compat.v1

HERE = pathlib.Path(__file__).parent
ZOO = HERE / "freezing_zoo"
CALLS = 3


def names():
    """Returns the names of the zoo's models, from its source."""
    found = []
    for part, prefixes in {
        "modules": ["module"],
        "graphs": ["graph"],
        "networks": ["keras3", "tf_keras"],
    }.items():
        for node in ast.parse((ZOO / f"{part}.py").read_text()).body:
            decorators = getattr(node, "decorator_list", [])
            if any(ast.unparse(item).startswith("model(") for item in decorators):
                found += [f"{prefix}_{node.name}" for prefix in prefixes]
    found.remove("keras3_saved_with_training_functions")
    return [*found, "graph_several_tags", "graph_checkpoint"]


NAMES = names()


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """A folder with all models, made by two processes: one for each Keras."""
    folder = tmp_path_factory.mktemp("zoo")
    for legacy, parts in (
        ("0", ["modules", "graphs", "networks"]),
        ("1", ["networks"]),
    ):
        done = subprocess.run(
            [sys.executable, str(ZOO), str(folder), *parts],
            env={**os.environ, "TF_USE_LEGACY_KERAS": legacy},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


class Case:
    """A model of the zoo and what to expect of it."""

    def __init__(self, folder):
        known = pickle.loads((folder / "case.pickle").read_bytes())
        self.path = folder / known["source"]
        self.tags = known["tags"]
        self.kept = sorted(known["kept"])
        self.inputs = known["inputs"]
        self.outputs = known["outputs"]
        if "checkpoint" in known:
            self.options = {
                "checkpoint": str(folder / known["checkpoint"]),
                "output_node_names": known["output_node_names"],
            }
        else:
            self.options = {"tags": self.tags}

    def freeze(self, output, **options):
        return freeze(self.path, output, **self.options, **options)


@pytest.fixture
def case(zoo, request):
    return Case(zoo / request.param)


every_model = pytest.mark.parametrize("case", NAMES, indirect=True)


def session(graph):
    config = v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = -1
    return v1.Session(graph=graph, config=config)


def run_graph(artifact, case, key):
    """Runs a frozen GraphDef as its report says."""
    graph_def = v1.GraphDef.FromString(pathlib.Path(artifact.path).read_bytes())
    tensors = artifact.details["signatures"][key]
    with tf.Graph().as_default() as graph, session(graph) as running:
        tf.import_graph_def(graph_def, name="")
        if artifact.details["init_op"]:
            running.run(artifact.details["init_op"], artifact.details["asset_feeds"])
        feed = {tensors["inputs"][n][0]: v for n, v in case.inputs[key].items()}
        fetch = {name: names[0] for name, names in tensors["outputs"].items()}
        return [running.run(fetch, feed) for _ in range(CALLS)]


def run_saved_model(artifact, case, key):
    """Runs a frozen SavedModel as TF1 code does."""
    with tf.Graph().as_default() as graph, session(graph) as running:
        loaded = v1.saved_model.load(running, case.tags, artifact.path)
        signature = loaded.signature_def[key]
        feed = {signature.inputs[n].name: v for n, v in case.inputs[key].items()}
        fetch = {name: info.name for name, info in signature.outputs.items()}
        return [running.run(fetch, feed) for _ in range(CALLS)]


def run_loaded(artifact, case, key):
    """Runs a frozen SavedModel as TF2 code does."""
    signature = tf.saved_model.load(artifact.path, case.tags).signatures[key]
    given = {name: tf.constant(value) for name, value in case.inputs[key].items()}
    calls = [signature(**given) for _ in range(CALLS)]
    return [{name: value.numpy() for name, value in call.items()} for call in calls]


def check_equal(calls, expected):
    """Checks outputs, call by call, bit by bit."""
    assert set(calls[0]) == set(expected)
    for name, values in expected.items():
        for call, value in zip(calls, values, strict=True):
            found = np.asarray(call[name])
            value = np.asarray(value)
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            if value.dtype == object:
                assert found.tolist() == value.tolist()
            else:
                assert found.tobytes() == value.tobytes(), (
                    name,
                    np.max(np.abs(found.astype(float) - value.astype(float))),
                )


def test_the_zoo_is_complete(zoo):
    assert sorted(path.name for path in zoo.iterdir()) == sorted(NAMES)
    assert len(NAMES) >= 35


@every_model
@pytest.mark.parametrize("inline", [False, True], ids=["functions", "inlined"])
def test_every_model_runs_equal(case, inline, tmp_path):
    graph = case.freeze(tmp_path / "frozen.pb", inline_functions=inline)
    model = case.freeze(
        tmp_path / "frozen", inline_functions=inline, output_format="saved_model"
    )
    writers = [kept["writers"] for kept in graph.details["kept_variables"]]
    assert sorted({use["op"] for uses in writers for use in uses}) == case.kept
    for key, expected in case.outputs.items():
        check_equal(run_graph(graph, case, key), expected)
        check_equal(run_saved_model(model, case, key), expected)


# What TensorFlow 2 cannot do with the original either: return a reference.
NOT_IN_TF2 = {"graph_reference_counter"}


@pytest.mark.parametrize("case", sorted(set(NAMES) - NOT_IN_TF2), indirect=True)
def test_every_model_loads_in_tf2(case, tmp_path):
    model = case.freeze(tmp_path / "frozen", output_format="saved_model")
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        for key, expected in case.outputs.items():
            check_equal(run_loaded(model, case, key), expected)
    finally:
        tf.config.optimizer.set_experimental_options(
            {"disable_meta_optimizer": False} | before
        )


def test_a_trained_network_of_others(testdata, tmp_path):
    """Basic Pitch: equal to the original, near to the TFLite file of its authors."""
    artifact = freeze(
        testdata / "basic_pitch/saved_model", tmp_path / "a.pb", verify="execution"
    )
    outputs = artifact.details["verified"]["execution"]["serving_default"]
    assert sorted(outputs) == ["contour", "note", "onset"]
    assert all(measured["equal"] for measured in outputs.values())
    assert artifact.details["kept_variables"] == []
    # The training functions and the optimizer's variables are gone.
    assert artifact.size_bytes < 320_000
    assert artifact.details["functions"] == 2
    sound = np.random.default_rng(0).uniform(-1, 1, (1, 43844, 1)).astype(np.float32)
    with Runner(testdata / "basic_pitch/reference.tflite") as runner:
        reference = runner(sound)
    graph_def = v1.GraphDef.FromString((tmp_path / "a.pb").read_bytes())
    names = artifact.details["signatures"]["serving_default"]["outputs"]
    with tf.Graph().as_default(), v1.Session() as running:
        tf.import_graph_def(graph_def, name="")
        fetch = {name: tensors[0] for name, tensors in names.items()}
        found = running.run(fetch, {"serving_default_input_2:0": sound})
    for name, values in found.items():
        assert np.allclose(values, reference[name], rtol=0, atol=1e-5)
    assert not np.allclose(found["note"], reference["onset"], rtol=0, atol=1e-5)
