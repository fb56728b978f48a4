"""transform_graph: lists of transforms, sources, outputs, and what is checked."""

import contextlib
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from transforms_samples import flat, normal
from transforms_structure_samples import X, run

import tfopt
from tfopt.savedmodel import protos
from tfopt.transforms import (
    _base,
    _checking,
    _options,
    _presets,
    _registry,
    _syntax,
    _verifier,
)

v1 = tf.compat.v1


# The text form.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t", []),
        ("a b", [("a", {}), ("b", {})]),
        ("a(x=1)b( y = 2 )", [("a", {"x": ("1",)}), ("b", {"y": ("2",)})]),
        ("a()", [("a", {})]),
        ("a(x=1, y=k/l:0)", [("a", {"x": ("1",), "y": ("k/l:0",)})]),
        ("a(x=1, y=3, x=2)", [("a", {"x": ("1", "2"), "y": ("3",)})]),
        ('a(shape="1,299, 3")', [("a", {"shape": ("1,299, 3",)})]),
        ("a(x='(', y=\"it's\")", [("a", {"x": ("(",), "y": ("it's",)})]),
        (r'a(x="a \"b\" \\")', [("a", {"x": (r'a "b" \\'[:-1],)})]),
        ("a \\\n  b", [("a", {}), ("b", {})]),
        ("a(x=-1e-3)", [("a", {"x": ("-1e-3",)})]),
    ],
)
def test_texts_are_read(text, expected):
    assert _syntax.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "position", "expected", "found"),
    [
        ("a(", 3, "the name of an option", "the end"),
        ("a(x)", 4, "'=' and the option's value", "')'"),
        ("a(x=)", 5, "a value", "')'"),
        ("a(x=1", 6, "',' or ')'", "the end"),
        ("a(x=1 y=2)", 7, "',' or ')'", "'y'"),
        ("a(x=1,)", 7, "the name of an option", "')'"),
        ("a, b", 2, "a space before the next transform", "','"),
        ("a) b", 2, "a space before", "')'"),
        ('a(x="b)', 5, "a quoted value", "'\"'"),
        ("1a", 1, "the name of a transform", "'1'"),
        ("remove_nodes(op=Identity) (b)", 27, "the name of a transform", "'('"),
    ],
)
def test_faults_in_texts_are_located(text, position, expected, found):
    with pytest.raises(ValueError, match="Cannot read the list") as caught:
        _syntax.parse(text)
    message = str(caught.value)
    assert f"Expected {expected}" in message
    assert f"at character {position}," in message
    assert f"but found {found}." in message


@pytest.mark.parametrize(
    ("option", "annotation", "texts", "value"),
    [
        ("size", int, ["3"], 3),
        ("rate", float | None, ["0.5"], 0.5),
        ("rate", float | None, ["none"], None),
        ("flag", bool, ["true"], True),
        ("flag", bool, ["False"], False),
        ("name", str, ["12"], "12"),
    ],
)
def test_texts_become_values(option, annotation, texts, value):
    from tfopt._signatures import Parameter

    parameter = Parameter(option, annotation, None, "")
    assert _options.from_text("example", parameter, texts) == value
    assert _options.check("example", parameter, value) == value


def parameter(name, option):
    return _registry.get(name).options[option]


def test_choices_and_lists():
    bits = parameter("quantize_weights", "bits")
    assert _options.from_text("q", bits, ["4"]) == 4
    assert _options.from_text("q", bits, ["float16"]) == "float16"
    with pytest.raises(ValueError, match="Expected 8, 4, float16, bfloat16"):
        _options.from_text("q", bits, ["5"])
    with pytest.raises(ValueError, match="takes the option once"):
        _options.from_text("q", bits, ["8", "4"])
    with pytest.raises(ValueError, match=r"bits=8\.0"):
        _options.check("q", bits, 8.0)
    assert _options.check("q", bits, np.int64(8)) == 8
    op = parameter("remove_nodes", "op")
    assert _options.from_text("r", op, ["A", "B"]) == ("A", "B")
    assert _options.check("r", op, ["A"]) == ("A",)
    with pytest.raises(ValueError, match="Expected a text, may be repeated"):
        _options.check("r", op, [1])
    size = parameter("quantize_weights", "minimum_size")
    with pytest.raises(ValueError, match="Expected an integer"):
        _options.check("q", size, True)


# The registry.


def test_names_aliases_and_close_matches():
    assert "inline_functions" in _registry.names()
    assert not any(name.startswith("_") for name in _registry.names())
    alias = _registry.get("fold_old_batch_norms")
    assert alias.name == "fold_batch_norms"
    with pytest.raises(ValueError, match="Did you mean fold_batch_norms") as caught:
        _registry.get("fold_batchnorms")
    assert "deploy" in str(caught.value)
    with pytest.raises(ValueError, match=r"Did you mean minimum_size\? Expected some"):
        _registry.resolve("quantize_weights(min_size=3)")
    with pytest.raises(ValueError, match="remove_nodes lacks an option"):
        _registry.resolve("remove_nodes")


def test_lists_of_transforms():
    steps = _registry.resolve(
        [
            "remove_device sort_by_execution_order",
            ("quantize_weights", {"bits": 4}),
            "remove_nodes(op=Identity, op=Snapshot)",
        ]
    )
    assert [str(step) for step in steps] == [
        "remove_device",
        "sort_by_execution_order",
        "quantize_weights(bits=4)",
        "remove_nodes(op=Identity, op=Snapshot)",
    ]
    for wrong in (3, [3], [("remove_device",)], [("remove_device", 3)], None):
        with pytest.raises(ValueError, match="transforms"):
            _registry.resolve(wrong)


def test_presets_are_expanded():
    deploy = [step.transform.name for step in _registry.resolve("deploy")]
    small = [step.transform.name for step in _registry.resolve("small")]
    assert small[: len(deploy)] == deploy
    assert "quantize_weights" in small
    promises = [step.transform.promise for step in _registry.resolve("deploy")]
    assert {promise.outputs for promise in promises} == {"equal", "close"}
    assert max(promise.tolerance for promise in promises) <= 1e-4
    with pytest.raises(ValueError, match="preset takes no options"):
        _registry.resolve("small(bits=4)")
    assert all(preset.summary for preset in _presets.PRESETS.values())


# Sources and outputs.


@pytest.fixture(scope="module")
def child():
    """One child process for all tests, as TensorFlow takes seconds to load."""
    with _verifier.open_verifier() as verifier:
        yield verifier


@pytest.fixture
def own_child():
    """For tests that kill their child."""


@pytest.fixture(autouse=True)
def shared(request, monkeypatch):
    """Lets tests share a child, unless it may die."""
    if "own_child" not in request.fixturenames:
        shared = contextlib.nullcontext(request.getfixturevalue("child"))
        monkeypatch.setattr(_verifier, "open_verifier", lambda: shared)


@pytest.fixture(scope="module")
def graph():
    """A tf.Graph; `y` is its output."""
    with tf.Graph().as_default() as built:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        hidden = tf.identity(tf.nn.relu(tf.matmul(x, normal(0, 3, 4))))
        tf.identity(hidden, name="y")
        tf.add(hidden, 1.0, name="unused")
    return built


def quick(source, output, transforms="remove_nodes(op=Identity)", **options):
    return tfopt.transform_graph(
        source, output, transforms, **{"verify": "structure", **options}
    )


def read(path):
    return protos.message_class("GraphDef").FromString(pathlib.Path(path).read_bytes())


def test_graph_defs_in_all_forms_give_the_same(graph, tmp_path):
    message = graph.as_graph_def()
    folder = str(tmp_path)
    tf.io.write_graph(message, folder, "in.pb", as_text=False)
    tf.io.write_graph(message, folder, "in.pbtxt")
    results = []
    for source in (
        graph,
        message,
        message.SerializeToString(),
        tmp_path / "in.pb",
        str(tmp_path / "in.pbtxt"),
    ):
        artifact = quick(source, tmp_path / "out.pb", outputs=["y"])
        assert artifact.format == "graph_def"
        results.append(artifact.sha256)
    assert len(set(results)) == 1
    assert artifact.details["signatures"][""]["inputs"] == {"x": "x:0"}
    assert artifact.details["nodes_before"] > artifact.details["nodes"] == 5


def test_text_output_reads_back(graph, tmp_path):
    binary = quick(graph, tmp_path / "a.pb", outputs=["y"])
    text = quick(graph, tmp_path / "a.pbtxt", outputs=["y"])
    assert text.format == "graph_def"
    again = quick(tmp_path / "a.pbtxt", tmp_path / "b.pb", outputs=["y:0"])
    assert again.sha256 == binary.sha256


def test_wrong_inputs_and_outputs(graph, tmp_path):
    with pytest.raises(ValueError, match="outputs=None"):
        quick(graph, tmp_path / "o.pb")
    with pytest.raises(ValueError, match=r"list of strings.*outputs='y'"):
        quick(graph, tmp_path / "o.pb", outputs="y")
    with pytest.raises(tfopt.TfoptError, match=r"unused or .*outputs with 'unusd'"):
        quick(graph, tmp_path / "o.pb", outputs=["unusd"])
    with pytest.raises(tfopt.TfoptError, match="inputs with 'z'"):
        quick(graph, tmp_path / "o.pb", outputs=["y"], inputs=["z"])
    with pytest.raises(ValueError, match="cannot be written as a SavedModel"):
        quick(graph, tmp_path / "o", outputs=["y"])
    with pytest.raises(ValueError, match=r"neither signatures.*no tags"):
        quick(graph, tmp_path / "o.pb", outputs=["y"], tags=["serve"])
    with pytest.raises(ValueError, match="Unknown verify"):
        quick(graph, tmp_path / "o.pb", outputs=["y"], verify="maybe")
    with pytest.raises(tfopt.TfoptError, match="Cannot read the bytes"):
        quick(b"nonsense", tmp_path / "o.pb", outputs=["y"])
    assert not list(tmp_path.iterdir())


def test_a_damaged_graph_is_refused(graph, tmp_path):
    message = graph.as_graph_def()
    (node,) = (node for node in message.node if node.name == "y")
    node.input[0] = "nobody"
    with pytest.raises(tfopt.TfoptError, match=r"damaged before any.*nobody"):
        quick(message, tmp_path / "o.pb", outputs=["y"])


class Model(tf.Module):
    """A model with a table from an asset, weights and a counter."""

    def __init__(self, folder):
        vocabulary = folder / "vocabulary.txt"
        vocabulary.write_text("a\nb\nc\n")
        self.w = tf.Variable(normal(0, 3, 400), name="w")
        self.count = tf.Variable(0.0, name="count")
        initializer = tf.lookup.TextFileInitializer(
            str(vocabulary),
            *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
            *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
        )
        self.table = tf.lookup.StaticHashTable(initializer, -1)

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, "x")])
    def dense(self, x):
        return {"y": tf.nn.relu(x @ self.w), "n": self.count.assign_add(1.0)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "words")])
    def look_up(self, words):
        return {"ids": self.table.lookup(words)}


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved_model")
    model = Model(folder)
    signatures = {"dense": model.dense, "look_up": model.look_up}
    tf.saved_model.save(model, str(folder / "model"), signatures=signatures)
    return folder / "model"


def test_a_saved_model_keeps_what_belongs_to_it(saved_model, tmp_path):
    artifact = tfopt.transform_graph(saved_model, tmp_path / "out", "small")
    assert artifact.format == "saved_model"
    loaded = tf.saved_model.load(str(tmp_path / "out"))
    expected = tf.saved_model.load(str(saved_model))
    words = tf.constant(["c", "x", "a"])
    ids = loaded.signatures["look_up"](words=words)["ids"]
    assert ids.numpy().tolist() == [2, -1, 0]
    dense = loaded.signatures["dense"]
    first, second = (dense(x=tf.constant(X)) for _ in range(2))
    wanted = expected.signatures["dense"](x=tf.constant(X))
    assert np.allclose(first["y"], wanted["y"], atol=0.2)
    assert not np.array_equal(first["y"], wanted["y"])
    assert (first["n"], second["n"]) == (1.0, 2.0)
    details = artifact.details
    assert set(details["outputs"]) == {"dense/y", "dense/n", "look_up/ids"}
    assert details["outputs"]["look_up/ids"]["max_error"] == 0.0
    assert kept_for(artifact, "written") == ["count"]
    used = {node.op for node in _meta_graph(tmp_path / "out").graph_def.node}
    listed = _meta_graph(tmp_path / "out").meta_info_def.stripped_op_list.op
    assert {definition.name for definition in listed} == used


def kept_for(artifact, reason):
    kept = artifact.details["kept_variables"]
    return [entry["name"] for entry in kept if entry["reason"] == reason]


def _meta_graph(path):
    saved = protos.message_class("SavedModel")
    return saved.FromString((path / "saved_model.pb").read_bytes()).meta_graphs[0]


def test_a_saved_model_becomes_a_graph_with_its_init_op(saved_model, tmp_path):
    artifact = quick(saved_model, tmp_path / "out.pb", "deploy")
    details = artifact.details
    assert details["init_op"]
    assert list(details["signatures"]) == ["dense", "look_up"]
    # And as a graph it can be transformed once more, and run.
    again = tfopt.transform_graph(
        tmp_path / "out.pb",
        tmp_path / "again.pb",
        "remove_device",
        inputs=list(details["signatures"]["look_up"]["inputs"].values()),
        outputs=list(details["signatures"]["look_up"]["outputs"].values()),
        init_op=details["init_op"],
        asset_feeds=details["asset_feeds"],
        verify="final",
    )
    assert again.details["outputs"]
    assert details["init_op"] in {
        node.name for node in read(tmp_path / "again.pb").node
    }


def test_large_variables_stay_beside_the_graph(saved_model, tmp_path):
    options = {"signature_keys": ["dense"], "keep_variables_over": 1000}
    artifact = tfopt.transform_graph(
        saved_model, tmp_path / "out", "deploy", verify="final", **options
    )
    assert kept_for(artifact, "over 1000 bytes") == ["w"]
    assert kept_for(artifact, "written") == ["count"]
    loaded = tf.saved_model.load(str(tmp_path / "out"))
    expected = tf.saved_model.load(str(saved_model))
    found, wanted = (
        model.signatures["dense"](x=tf.constant(X))["y"] for model in (loaded, expected)
    )
    assert np.allclose(found, wanted, rtol=1e-5)


def test_options_of_a_graph_are_refused_for_a_model(saved_model, tmp_path):
    with pytest.raises(ValueError, match=r"signature_keys.*no outputs"):
        quick(saved_model, tmp_path / "out.pb", outputs=["y"])


def test_the_report(tmp_path):
    model = flat()
    data = model.to_graph_def().SerializeToString()
    artifact = tfopt.transform_graph(
        data,
        tmp_path / "o.pb",
        ["deploy", ("quantize_weights", {"minimum_size": 100})],
        outputs=["out", "class"],
    )
    details, steps = artifact.details, artifact.details["steps"]
    assert steps[-1]["name"] == "quantize_weights"
    assert steps[-1]["options"] == {"minimum_size": 100}
    assert steps[0]["nodes_before"] <= details["nodes_before"]
    assert steps[-1]["nodes_after"] == details["nodes"]
    assert steps[-1]["bytes_after"] == artifact.size_bytes == details["graph_bytes"]
    assert 0 < artifact.gzip_bytes < artifact.size_bytes
    assert details["transform_seconds"] == pytest.approx(
        sum(step["seconds"] for step in steps), abs=1e-3
    )
    # Lossless up to the last step; the error is that to the source.
    errors = [step["outputs"]["out"]["max_error"] for step in steps]
    assert max(errors[:-1]) < 1e-4 < errors[-1]
    assert details["outputs"] == steps[-1]["outputs"]
    largest = details["largest_constants"]
    assert largest[0]["dtype"] == "int8"
    assert largest[0]["shape"] in ([200, 8], [8, 160])
    sizes = [entry["bytes"] for entry in largest]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) <= details["constant_bytes"] < details["graph_bytes"]
    mean = details["outputs"]["out"]["mean_error"]
    assert 0.0 < mean < errors[-1] < details["outputs"]["out"]["scale"]
    (history,) = artifact.history
    assert history["transforms"][-1] == "quantize_weights(minimum_size=100)"
    # An oracle for the largest error, on other inputs.
    small = read(tmp_path / "o.pb").SerializeToString()
    results = [run(_model(one), {"x:0": X}) for one in (data, small)]
    assert 0.0 < np.abs(results[0][0] - results[1][0]).max() < 10 * errors[-1]


def _model(data):
    from transforms_structure_samples import model_of

    return model_of(v1.GraphDef.FromString(data), ["out", "class"])


# Promises.


@pytest.fixture
def fake(monkeypatch):
    """Registers a function as the transform `fake`."""
    real = _registry.get

    def register(function, **promise):
        made = _registry.Transform(
            "fake", function, _base.Promise(**promise), {}, "Does harm."
        )
        monkeypatch.setattr(
            _registry, "get", lambda name: made if name == "fake" else real(name)
        )

    return register


def relus(graph):
    return [node for node in graph.main if node.op == "Relu"]


def to_op(op, **attributes):
    def change(graph):
        from tfopt.transforms import _ops

        for node in relus(graph):
            node.op = op
            _ops.set_attributes(node, **attributes)
        return {}

    return change


def add_node(graph):
    graph.main.add("NoOp", "extra", controls=["x"])
    return {}


def lose_input(graph):
    for node in relus(graph):
        node.input[:] = ["nobody"]
    graph.main.changed()
    return {}


def go_round(graph):
    (relu,) = relus(graph)
    (user,) = (use.node for use in graph.main.uses((relu.name, 0)))
    relu.input.append(f"^{user.name}")
    graph.main.changed()
    return {}


def lose_output(graph):
    graph.main.remove(["y"])
    return {}


def call_nobody(graph):
    for node in relus(graph):
        node.attr["f"].func.name = "nobody"
    return {}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (add_node, "extra is new"),
        (lose_input, "needs nobody, which is missing"),
        (go_round, "nodes wait for each other"),
        (lose_output, "y, which must stay, is missing"),
        (call_nobody, "calls nobody, which is missing"),
    ],
)
def test_broken_structure_is_noticed(function, message, fake, graph, tmp_path):
    fake(function)
    with pytest.raises(tfopt.VerificationError, match=message) as caught:
        quick(graph, tmp_path / "o.pb", "remove_device fake", outputs=["y"])
    assert str(caught.value).startswith("fake broke the graph; nothing is written.")
    assert "Applied before: remove_device." in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_promises_about_nodes_and_types_are_checked(fake, graph, tmp_path):
    def rename(model):
        model.main.add(
            "Relu", "other", model.main.inputs(relus(model)[0]), T=np.dtype("f4")
        )
        (old, new) = relus(model)
        model.main.redirect((old.name, 0), _tensor(new.name))
        model.main.remove([old.name])
        return {}

    fake(rename, keeps_nodes=True, adds_nodes=True)
    with pytest.raises(tfopt.VerificationError, match="Relu is gone"):
        quick(graph, tmp_path / "o.pb", "fake", outputs=["y"])
    to_half = to_op("Cast", SrcT=np.dtype("f4"), DstT=np.dtype("f2"))
    fake(to_half)
    with pytest.raises(tfopt.VerificationError, match="Relu has another type"):
        quick(graph, tmp_path / "o.pb", "fake", outputs=["y"])

    def output_to_half(model):
        node = model.main.nodes["y"]
        node.attr["T"].type = 19
        return {}

    fake(output_to_half, keeps_dtypes=False)
    with pytest.raises(tfopt.VerificationError, match="y:0, an input or output"):
        quick(graph, tmp_path / "o.pb", "fake", outputs=["y"])


def _tensor(name):
    from tfopt.transforms._graph import Tensor

    return Tensor(name)


def test_the_last_check_of_structure_knows_operations(fake, graph, tmp_path):
    fake(to_op("Add"))
    with pytest.raises(tfopt.VerificationError, match="takes 1 inputs, not 2"):
        quick(graph, tmp_path / "o.pb", "fake", outputs=["y"])


def test_outputs_are_checked_after_every_step(fake, graph, tmp_path):
    fake(to_op("Elu"))
    text = "remove_nodes(op=Identity) fake sort_by_execution_order"
    with pytest.raises(tfopt.VerificationError, match="output y differs by") as caught:
        tfopt.transform_graph(graph, tmp_path / "o.pb", text, outputs=["y"])
    assert str(caught.value).startswith("fake broke")
    assert "Applied before: remove_nodes(op=Identity)." in str(caught.value)
    # At the end nobody knows which it was.
    with pytest.raises(tfopt.VerificationError, match=r"The transforms broke.*differs"):
        tfopt.transform_graph(
            graph, tmp_path / "o.pb", text, outputs=["y"], verify="final"
        )
    fake(to_op("Elu"), outputs="close", tolerance=1e-3)
    with pytest.raises(tfopt.VerificationError, match=r"more than 0\.00"):
        tfopt.transform_graph(graph, tmp_path / "o.pb", "fake", outputs=["y"])
    assert not list(tmp_path.iterdir())
    fake(to_op("Elu"), outputs="reported")
    artifact = tfopt.transform_graph(graph, tmp_path / "o.pb", "fake", outputs=["y"])
    assert 0.1 < artifact.details["outputs"]["y"]["max_error"] <= 1.0


def test_graphs_that_kill_their_process_do_not_kill_ours(
    own_child, fake, graph, tmp_path
):
    def abort(model):
        body = model.main
        (relu,) = relus(model)
        body.add("Abort", "abort")
        body.set_inputs(relu, body.inputs(relu), ["abort"])
        return {}

    fake(abort, adds_nodes=True)
    with pytest.raises(tfopt.VerificationError, match=r"died .SIGABRT.") as caught:
        tfopt.transform_graph(graph, tmp_path / "o.pb", "fake", outputs=["y"])
    assert str(caught.value).startswith("fake broke")


def test_graphs_that_hang_are_stopped(own_child, fake, graph, tmp_path, monkeypatch):
    def hang(model):
        body = model.main
        (relu,) = relus(model)
        queue = body.add("FIFOQueueV2", "queue", component_types=[_float()])
        node = body.add(
            "QueueDequeueV2",
            "never",
            [_tensor(queue.name)],
            component_types=[_float()],
        )
        body.set_inputs(relu, body.inputs(relu), [node.name])
        return {}

    fake(hang, adds_nodes=True)
    real = _verifier.Verifier.start

    def start(self, *args):
        random = real(self, *args)
        self._limit = 3.0
        return random

    monkeypatch.setattr(_verifier.Verifier, "start", start)
    with pytest.raises(tfopt.VerificationError, match="did not end within 3 s"):
        tfopt.transform_graph(graph, tmp_path / "o.pb", "fake", outputs=["y"])


def _float():
    from tfopt.transforms._ops import Type

    return Type(1)


def test_a_transform_that_raises_is_named(fake, graph, tmp_path):
    def refuse(model):
        raise ValueError("Expected more. Received: size=1")

    fake(refuse)
    with pytest.raises(ValueError, match=r"^fake: Expected more.*Applied before: noth"):
        quick(graph, tmp_path / "o.pb", "fake", outputs=["y"])

    def fail(model):
        raise KeyError("relu")

    fake(fail)
    with pytest.raises(
        tfopt.TfoptError, match=r"^fake failed.*KeyError: 'relu' .fail:"
    ):
        quick(graph, tmp_path / "o.pb", "fake", outputs=["y"])


def test_random_outputs_have_only_their_shape_checked(fake, tmp_path):
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        tf.add(x, tf.random.uniform([3]), name="random")
        tf.nn.relu(x, name="y")
    names = ["random", "y"]
    artifact = tfopt.transform_graph(
        graph, tmp_path / "o.pb", "remove_device", outputs=names
    )
    assert artifact.details["outputs"]["random"]["random"]
    assert not artifact.details["outputs"]["y"]["random"]

    def reduce(model):
        body = model.main
        node = body.nodes["random"]
        zero = body.add("Shape", "axes", body.inputs(node)[:1], T=_float())
        node.op = "Max"
        body.set_inputs(node, [body.input(node, 0), _tensor(zero.name)])
        node.attr["Tidx"].type = 3
        return {}

    fake(reduce, adds_nodes=True, outputs="reported")
    with pytest.raises(tfopt.VerificationError):
        tfopt.transform_graph(graph, tmp_path / "p.pb", "fake", outputs=names)


def test_verify_data_is_used(graph, tmp_path):
    file = tmp_path / "data.npz"
    np.savez(file, x=np.full([4, 3], 100.0, np.float32))
    options = {"outputs": ["y"], "verify_data": str(file)}
    artifact = tfopt.transform_graph(graph, tmp_path / "o.pb", "deploy", **options)
    assert artifact.details["outputs"]["y"]["scale"] > 50.0
    np.savez(file, z=X)
    with pytest.raises(tfopt.VerificationError, match="verify_data lacks x; it has z"):
        tfopt.transform_graph(graph, tmp_path / "o.pb", "deploy", **options)


def test_a_source_that_cannot_run_is_an_error_with_a_way_out(tmp_path):
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        with tf.control_dependencies([v1.debugging.assert_greater(x, 1e9)]):
            tf.identity(x, name="y")
    with pytest.raises(tfopt.VerificationError, match="even before it is") as caught:
        tfopt.transform_graph(graph, tmp_path / "o.pb", "deploy", outputs=["y"])
    assert "verify_data" in str(caught.value)
    quick(graph, tmp_path / "o.pb", "deploy", outputs=["y"])


def test_a_transform_that_fixes_the_batch_size_is_noticed(fake, tmp_path):
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        tf.reshape(tf.nn.relu(x), [-1, 3], name="y")

    def fix(model):
        from tfopt.transforms import _constants

        shape = np.array([2, 3], np.int32)
        node = model.main.nodes["y"]
        model.main.set_input(node, 1, _constants.add_constant(model.main, "s", shape))
        return {}

    fake(fix, adds_nodes=True)
    with pytest.raises(tfopt.VerificationError, match="cannot be run"):
        tfopt.transform_graph(graph, tmp_path / "o.pb", "fake", outputs=["y"])


def test_dead_nodes_functions_and_colocation_are_cleaned():
    model = flat()
    body = model.main
    body.add("NoOp", "idle")
    body.nodes["w"].attr["_class"].list.s.extend([b"loc:@idle", b"loc:@table"])
    assert _checking.clean(model) > 0
    assert "idle" not in body.nodes
    assert list(body.nodes["w"].attr["_class"].list.s) == [b"loc:@table"]
    assert _checking.clean(model) == 0


def test_the_index_of_consumers_stays_right():
    """After random edits it is what a new index would be."""
    model = flat()
    body = model.main
    random = np.random.default_rng(0)
    names = list(body.nodes)
    for _ in range(200):
        body.uses(_tensor(names[0]))
        name, other = random.choice(names, 2)
        node = body.nodes[name]
        kind = random.integers(5)
        inputs = body.inputs(node)
        if kind == 0 and inputs:
            body.set_input(node, int(random.integers(len(inputs))), _tensor(other))
        elif kind == 1:
            body.redirect(_tensor(name), _tensor(other))
        elif kind == 2:
            body.set_inputs(node, inputs, [other])
        elif kind == 3:
            body.add("Identity", "new", [_tensor(other)], controls=[name])
        elif not body.uses(_tensor(name)) and not body.is_kept(name) and name in names:
            body.remove([name])
            names.remove(name)
        found = index_of(body)
        body.changed()
        body.uses(_tensor(names[0]))
        assert found == index_of(body)


def index_of(body):
    uses = {
        tensor: sorted((use.node.name, use.position) for use in found)
        for tensor, found in body._uses.items()
    }
    controls = {
        name: sorted(user.name for user in found)
        for name, found in body._controls.items()
    }
    return [{k: v for k, v in one.items() if v} for one in (uses, controls)]
