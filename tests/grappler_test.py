"""optimize_graph, explain_graph and measure_costs on small and real models."""

import json
import pathlib

import grappler_samples as samples
import numpy as np
import pytest
import tensorflow as tf

from tfopt import (
    ConversionError,
    GrapplerConfig,
    VerificationError,
    explain_graph,
    freeze,
    measure_costs,
    optimize_graph,
)
from tfopt.grappler import child, optimizing
from tfopt.types import TfoptError

X = samples.values(9, 3, 8, 8, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("grappler")


@pytest.fixture(scope="module")
def network(folder):
    return samples.save_network(folder / "network")


@pytest.fixture(scope="module")
def frozen(folder, network):
    """The network as a graph file, inlined; its output."""
    artifact = freeze(network, folder / "frozen.pb", inline_functions=True)
    tensors = artifact.details["signatures"]["serving_default"]
    return folder / "frozen.pb", tensors["outputs"]["y"][0], tensors["inputs"]["x"][0]


@pytest.fixture(scope="module")
def stateful(folder):
    return samples.save_stateful(folder / "stateful", folder / "words.txt")


@pytest.fixture(scope="module")
def default(folder, frozen):
    path, output, _ = frozen
    return optimize_graph(path, folder / "default.pb", outputs=[output])


def test_the_default_folds_fuses_and_computes_the_same(folder, frozen, default):
    path, output, feed = frozen
    details = default.details
    found = samples.ops(folder / "default.pb")
    assert "FusedBatchNormV3" in samples.ops(path)
    assert "FusedBatchNormV3" not in found
    assert found.count("Conv2D") == 1
    assert details["nodes"] == len(found) < details["nodes_before"]
    assert details["bytes"] == (folder / "default.pb").stat().st_size
    assert sum(details["ops"].values()) == details["nodes"]
    fetch = {"y": output}
    before = samples.run_graph(path, {feed: X}, output)
    after = samples.run_graph(folder / "default.pb", {feed: X}, fetch)["y"]
    # Folded, so rounded differently, and that is what was reported.
    assert 0 < details["max_error"] < 1e-4
    assert 0 < np.max(np.abs(before - after)) < 1e-4
    assert before.shape == (3, 8, 8, 4)


def test_the_result_is_portable(folder, default):
    assert not [op for op in samples.ops(folder / "default.pb") if op[0] == "_"]
    assert samples.devices(folder / "default.pb") == {""}
    assert default.history[0]["operation"] == "optimize_graph"
    assert default.details["config"]["min_graph_nodes"] == -1
    names = {step["optimizer"] for step in default.details["steps"]}
    assert {"constant_folding", "remapper", "dependency_optimizer"} <= names
    assert default.signature.inputs[0].shape == (None, 8, 8, 2)


def test_what_is_not_portable_is_found():
    graph = tf.compat.v1.GraphDef()
    graph.node.add(name="a", op="_FusedConv2D")
    graph.node.add(name="b", op="Conv2D")
    assert optimizing.internal_ops(graph) == {"_FusedConv2D"}


def test_lossless_is_bitwise(folder, frozen):
    path, output, feed = frozen
    done = optimize_graph(path, folder / "same.pb", "lossless", outputs=[output])
    assert done.details["max_error"] == 0.0
    assert done.details["nodes"] < done.details["nodes_before"]
    assert "FusedBatchNormV3" in done.details["ops"]
    # The two equal branches are one now.
    assert done.details["ops"]["BiasAdd"] == 1
    assert samples.ops(path).count("BiasAdd") == 2
    after = samples.run_graph(folder / "same.pb", {feed: X}, output)
    assert np.array_equal(samples.run_graph(path, {feed: X}, output), after)


def test_what_counts_as_the_same(default):
    results = default.details["verified"]["execution"]["serving_default"]
    (found,) = results.values()
    config = GrapplerConfig()
    usual = optimizing.limit(found, config, None)
    assert 0 < found["difference"] <= usual == found["limit"] < 1e-2
    assert optimizing.is_within(found, usual)
    assert not optimizing.is_within(found, found["difference"] / 2)
    assert not optimizing.is_within(found, optimizing.limit(found, config, 0.0))
    assert optimizing.is_within({**found, "equal": True}, 0.0)
    half = GrapplerConfig.preset("bfloat16")
    assert optimizing.limit(found, half, None) is None
    assert optimizing.limit(found, half, 0.5) == 0.5 * found["scale"]
    random = {**found, "deterministic": False}
    assert optimizing.is_within(random, 0.0)
    assert not optimizing.is_within({**random, "same_shapes": False}, usual)


@pytest.mark.slow
def test_rounding_is_not_lossless(folder, frozen):
    path, output, _ = frozen
    target = folder / "not_written.pb"
    with pytest.raises(VerificationError, match=r"within 0,.*off by \d"):
        optimize_graph(path, target, outputs=[output], tolerance=0.0)
    assert not target.exists()


def test_a_saved_model_keeps_state_tables_and_assets(folder, stateful):
    done = optimize_graph(stateful, folder / "fast", verify="structure")
    moved = (folder / "fast").rename(folder / "moved")
    serve = tf.saved_model.load(str(moved)).signatures["serving_default"]
    words = tf.constant(["the", "a", "unknown"])
    results = [serve(words=words) for _ in range(2)]
    assert results[0]["ids"].numpy().tolist() == [2, 0, -1]
    assert [int(result["count"]) for result in results] == [6, 7]
    rows = samples.values(5, 4, 3)[[2, 0, 0]]
    for _ in range(3):
        rows = np.tanh(rows)
    assert np.allclose(results[0]["rows"], rows, atol=1e-6)
    assert [kept["reason"] for kept in done.details["kept_variables"]]
    # The loop is still one operation, that TensorFlow may lower at run time.
    assert {"StatelessWhile", "While"} & set(done.details["ops"])
    assert "Enter" not in done.details["ops"]


def test_a_plain_graph_names_what_must_run_first(folder, stateful):
    done = optimize_graph(stateful, folder / "words.pb", verify="structure")
    details = done.details
    assert details["init_op"]
    assert all(pathlib.Path(file).exists() for file in details["asset_feeds"].values())
    graph_def = tf.compat.v1.GraphDef.FromString((folder / "words.pb").read_bytes())
    tensors = details["signatures"]["serving_default"]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        session.run(details["init_op"], details["asset_feeds"])
        feed = {tensors["inputs"]["words"][0]: ["the", "no"]}
        found = session.run(tensors["outputs"]["ids"][0], feed)
    assert found.tolist() == [2, -1]


def test_a_crash_is_an_error(folder, frozen):
    path, output, _ = frozen
    # TensorFlow aborts the process for want of auto_parallel.num_replicas.
    config = GrapplerConfig(optimizers=["autoparallel"])
    with pytest.raises(ConversionError, match=r"SIGABRT.*num_replicas_ >= 2"):
        optimize_graph(path, folder / "no.pb", config, outputs=[output])
    assert not (folder / "no.pb").exists()


@pytest.mark.slow
def test_state_is_verified_by_execution(folder, stateful):
    done = optimize_graph(stateful, folder / "verified", "lossless")
    found = done.details["verified"]["execution"]["serving_default"]
    assert {name for name in found if found[name]["equal"]} == {"ids", "rows", "count"}


def test_a_hang_and_a_failure_are_outcomes(tmp_path):
    missing = {"meta_graph": str(tmp_path / "none"), "config": "", "output": ""}
    jobs = [{"task": "sleep", "seconds": 60}, {"task": "optimize", **missing}]
    slow, failed = child.run_all(jobs, timeout_s=0.5)
    assert (slow.status, slow.message) == ("timeout", "no result after 0.5 s")
    assert failed.status == "failed"
    assert "FileNotFoundError" in failed.message
    assert slow.seconds < 30


@pytest.mark.slow
def test_explain_measures_every_variant(frozen):
    path, output, _ = frozen
    variants = {
        "default": GrapplerConfig(),
        "constfold": GrapplerConfig(optimizers=["constfold"]),
        "constfold, pruning": GrapplerConfig(optimizers=["constfold", "pruning"]),
        "lossless": GrapplerConfig.preset("lossless"),
        "half": GrapplerConfig(auto_mixed_precision_cpu="on", remapping="off"),
        "crash": GrapplerConfig(optimizers=["autoparallel"]),
    }
    report = explain_graph(path, outputs=[output], variants=variants, rounds=2)
    rows = report.data["rows"]
    assert list(rows) == ["source", "source, optimized at run time", *variants]
    assert rows["crash"]["status"].startswith("crashed: SIGABRT")
    assert rows["lossless"]["max_error"] == 0.0
    assert 0 < rows["default"]["max_error"] < 1e-4 < rows["half"]["max_error"]
    assert rows["constfold, pruning"]["nodes"] < rows["constfold"]["nodes"]
    assert rows["default"]["nodes"] < rows["source"]["nodes"]
    timed = [name for name, row in rows.items() if row.get("latency_ms")]
    assert timed == [name for name in rows if name != "crash"]
    assert "num_replicas" in str(report)
    assert json.loads(json.dumps(report.data["rows"]["default"]["steps"]))


def test_costs_are_by_node(network):
    costs = measure_costs(network)
    assert costs.step_ms > 0
    # As it is run: oneDNN has operations of its own for some.
    assert any("Conv2D" in op for op in costs.by_op())
    times = [cost.time_us for cost in costs.nodes]
    assert times == sorted(times, reverse=True)
    assert "BiasAdd" in str(costs)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"outputs": ()}, ValueError, "names of its outputs"),
        ({"outputs": "y"}, ValueError, "as a list.*outputs='y'"),
        ({"outputs": ["no_such"]}, TfoptError, "no such node.*no_such"),
        ({"config": "fast"}, ValueError, "Unknown preset.*fast"),
        ({"config": {"remapping": "off"}}, ValueError, "a GrapplerConfig"),
        ({"verify": "yes"}, ValueError, "verify='yes'"),
        ({"timeout_s": 0}, ValueError, "timeout_s=0"),
        ({"tolerance": -1.0}, ValueError, "tolerance=-1"),
        ({"output_format": "pb"}, ValueError, "output_format='pb'"),
        ({"tags": "serve"}, ValueError, "tags='serve'"),
    ],
)
def test_bad_arguments(tmp_path, frozen, options, error, message):
    path, output, _ = frozen
    arguments = {"outputs": [output], **options}
    with pytest.raises(error, match=message):
        optimize_graph(path, tmp_path / "out.pb", **arguments)
    assert not list(tmp_path.iterdir())


def test_bad_sources(tmp_path, network):
    with pytest.raises(ValueError, match="outputs by name"):
        optimize_graph(network, tmp_path / "out.pb", outputs=["y"])
    with pytest.raises(TfoptError, match="No such model"):
        optimize_graph(tmp_path / "no.pb", tmp_path / "out.pb", outputs=["y"])
    with pytest.raises(ValueError, match="rounds=-1"):
        explain_graph(network, rounds=-1)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["lossless", "default", "bfloat16"])
def test_a_real_model(tmp_path, testdata, preset):
    source = testdata / "basic_pitch" / "saved_model"
    done = optimize_graph(source, tmp_path / "fast", preset)
    details = done.details
    assert details["nodes"] < details["nodes_before"] / 2
    if preset == "bfloat16":
        assert details["bfloat16_nodes"] or details["warnings"]
    else:
        assert details["max_error"] <= (1e-5 if preset == "default" else 0.0)
    loaded = tf.saved_model.load(str(tmp_path / "fast"))
    assert set(loaded.signatures["serving_default"].structured_outputs) == {
        "contour",
        "note",
        "onset",
    }
