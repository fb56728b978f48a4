"""What freeze does beyond the zoo: its options, sources and sizes."""

import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf
from freezing_samples import (
    X_SPEC,
    X,
    near,
    parse,
    run_graph,
    run_loaded,
    save_checkpoint,
    save_model,
    serve,
    weights,
)
from google.protobuf import text_format

from tfopt.freezing import freeze
from tfopt.savedmodel import crc32c, protos, reader, table
from tfopt.savedmodel.bundle import BundleReader
from tfopt.types import ConversionError, TfoptError, VerificationError

v1 = tf.compat.v1

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A SavedModel with a small, a larger and a written variable."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def expected():
    small, large = weights(0, 4, 3).numpy(), weights(1, 3, 50).numpy()
    return X @ small @ large


# --------------------------------------------------------------------- options


def test_text_is_the_same_graph(model, tmp_path):
    options = {"signature_keys": ["serving_default"]}
    binary = freeze(model, tmp_path / "a.pb", **options)
    text = freeze(model, tmp_path / "a.pbtxt", output_format="text", **options)
    parsed = text_format.Parse((tmp_path / "a.pbtxt").read_bytes(), v1.GraphDef())
    original = v1.GraphDef.FromString((tmp_path / "a.pb").read_bytes())
    assert parsed == original
    assert (binary.format, text.format) == ("graph_def", "graph_def")


def test_signature_keys_leave_out_what_others_need(model, tmp_path, expected):
    artifact = freeze(model, tmp_path / "a.pb", signature_keys=["serving_default"])
    assert artifact.details["kept_variables"] == []
    assert artifact.details["constants"] == 2
    assert list(artifact.details["signatures"]) == ["serving_default"]
    assert str(artifact.signature) == (
        "serving_default(x: float32 [?, 4]) -> (y: float32 [?, 50])"
    )
    assert near(run_graph(artifact.path, artifact.details)["y"], expected)
    text = str(parse(tmp_path / "a.pb"))
    assert "Assign" not in text
    assert "Restore" not in text
    assert "count" not in text


def test_a_written_variable_is_listed_and_starts_from_its_saved_value(model, tmp_path):
    artifact = freeze(model, tmp_path / "a.pb")
    (kept,) = artifact.details["kept_variables"]
    assert (kept["name"], kept["reason"], kept["storage"]) == (
        "count",
        "written",
        "init",
    )
    assert [use["op"] for use in kept["writers"]] == ["AssignAddVariableOp"]
    assert run_graph(artifact.path, artifact.details, "counted", times=3)["n"] == 8.0
    saved = freeze(model, tmp_path / "a", output_format="saved_model")
    assert run_loaded(saved.path, "counted", times=3)["n"] == 8.0


def test_state_can_be_refused(model, tmp_path):
    message = r"count by AssignAddVariableOp \(__inference_.*\)"
    with pytest.raises(ConversionError, match=message):
        freeze(model, tmp_path / "a.pb", stateful="error")
    assert not (tmp_path / "a.pb").exists()
    keys = ["serving_default"]
    freeze(model, tmp_path / "a.pb", stateful="error", signature_keys=keys)


def test_devices_go_or_stay(model, tmp_path):
    cleared = freeze(model, tmp_path / "a.pb")
    assert "worker" not in str(parse(pathlib.Path(cleared.path)))
    kept = freeze(model, tmp_path / "b.pb", clear_devices=False)
    assert "/job:worker" in str(parse(pathlib.Path(kept.path)))


@pytest.mark.parametrize("pattern", ["part/large", "part/large:0", "*/large", "large*"])
def test_variables_on_the_denylist_stay(model, tmp_path, expected, pattern):
    artifact = freeze(
        model,
        tmp_path / "a.pb",
        signature_keys=["serving_default"],
        variable_names_denylist=[pattern],
    )
    (kept,) = artifact.details["kept_variables"]
    assert (kept["name"], kept["reason"]) == ("part/large", "denylist")
    assert artifact.details["init_op"]
    assert near(run_graph(artifact.path, artifact.details)["y"], expected)


def test_a_denylist_that_matches_nothing(model, tmp_path):
    with pytest.raises(ValueError, match=r"part/small.*denylist='nothing/\*'"):
        freeze(
            model, tmp_path / "a.pb", variable_names_denylist=["*small", "nothing/*"]
        )


@pytest.mark.parametrize(
    "options", [{"keep_variables_over": 500}, {"variable_names_denylist": ["*large"]}]
)
def test_a_partial_freeze_ships_only_what_is_kept(model, tmp_path, expected, options):
    artifact = freeze(model, tmp_path / "a", output_format="saved_model", **options)
    stored = BundleReader(tmp_path / "a/variables/variables")
    assert stored.keys() == ["part/large"]
    assert stored.read("part/large").tolist() == weights(1, 3, 50).numpy().tolist()
    assert artifact.details["constants"] == 2  # One of them for the counter.
    assert near(run_loaded(artifact.path)["y"], expected)
    assert run_loaded(artifact.path, "counted", times=2)["n"] == 7.0
    with tf.Graph().as_default(), v1.Session() as session:
        loaded = v1.saved_model.load(session, ["serve"], artifact.path)
        signature = loaded.signature_def["serving_default"]
        feed = {signature.inputs["x"].name: X}
        assert near(session.run(signature.outputs["y"].name, feed), expected)
        # It can be saved and frozen in turn.
        saver = v1.train.Saver(saver_def=loaded.saver_def)
        saver.save(session, str(tmp_path / "again"), write_meta_graph=False)
    assert BundleReader(tmp_path / "again").keys() == ["part/large"]
    whole = freeze(artifact.path, tmp_path / "b", signature_keys=["serving_default"])
    assert whole.details["kept_variables"] == []
    assert near(run_graph(whole.path, whole.details)["y"], expected)


def test_only_a_saved_model_keeps_large_variables(model, tmp_path):
    with pytest.raises(ValueError, match="keep_variables_over=5, output_format='text'"):
        freeze(model, tmp_path / "a", keep_variables_over=5, output_format="text")


def test_a_partition_can_be_kept(tmp_path):
    path = str(tmp_path / "model")
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        x = v1.placeholder(tf.float32, [None, 4], "x")
        w = v1.get_variable(
            "w",
            [4, 6],
            initializer=v1.random_normal_initializer(seed=3),
            partitioner=v1.fixed_size_partitioner(3, axis=1),
            use_resource=True,
        )
        y = tf.matmul(x, tf.convert_to_tensor(w))
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, path, {"x": x}, {"y": y})
        expected = session.run(y, {x: X})
    artifact = freeze(
        path,
        tmp_path / "a",
        output_format="saved_model",
        variable_names_denylist=["w/part_1"],
    )
    stored = BundleReader(tmp_path / "a/variables/variables")
    assert stored.entry("w/part_1").shape == (4, 2)
    assert near(run_loaded(artifact.path)["y"], expected)


def test_a_handle_inside_a_function(tmp_path):
    module = tf.Module()
    module.w = weights(0, 4, 3, name="inner")

    def call(x):
        handle = tf.raw_ops.VarHandleOp(
            shared_name="inner", dtype=tf.float32, shape=[4, 3]
        )
        return {"y": x @ tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)}

    path = str(tmp_path / "model")
    tf.saved_model.save(module, path, signatures=serve(call))
    artifact = freeze(path, tmp_path / "a.pb")
    found = run_graph(artifact.path, artifact.details)["y"]
    assert near(found, X @ module.w.numpy())
    kept = freeze(path, tmp_path / "b.pb", variable_names_denylist=["inner"])
    assert near(run_graph(kept.path, kept.details)["y"], X @ module.w.numpy())
    with pytest.raises(ConversionError, match=r"Cannot inline.*in function '__inf"):
        freeze(path, tmp_path / "c.pb", inline_functions=True)


# --------------------------------------------------------------------- sources


@pytest.mark.both_keras
def test_keras_models_and_files(keras, tmp_path):
    first, second = keras.Input((4,), name="x"), keras.Input((4,), name="z")
    y = keras.layers.Dense(3, name="y")(first + second)
    network = keras.Model([first, second], [y, keras.layers.Dropout(0.5)(second)])
    expected = network([X, X])[0].numpy()
    network.save(tmp_path / "network.keras")
    for source in (network, tmp_path / "network.keras"):
        saved = freeze(source, tmp_path / "frozen", output_format="saved_model")
        assert str(saved.signature).startswith(
            "serving_default(x: float32 [?, 4], z: float32 [?, 4]) -> (dropout"
        )
        function = tf.saved_model.load(saved.path).signatures["serving_default"]
        assert near(function(x=tf.constant(X), z=tf.constant(X))["y"], expected)
    # The checkpoint it came from was a temporary one.
    assert not (tmp_path / "frozen/variables").exists()


@pytest.mark.both_keras
def test_a_keras_model_with_a_table(keras, tmp_path):
    network = keras.Sequential(
        [
            keras.layers.Input((1,), dtype="string", name="word"),
            keras.layers.StringLookup(vocabulary=["a", "b"]),
            keras.layers.Embedding(3, 2),
        ]
    )
    words = tf.constant([["b"], ["?"]])
    saved = freeze(network, tmp_path / "frozen", output_format="saved_model")
    function = tf.saved_model.load(saved.path).signatures["serving_default"]
    (found,) = function(word=words).values()
    assert near(found, network(words))


class Table(tf.Module):
    """A module with two functions of its own, one of them with a table."""

    def __init__(self):
        super().__init__()
        self.w = weights(0, 4, 3)
        pairs = tf.lookup.KeyValueTensorInitializer([1], [7])
        self.table = tf.lookup.StaticHashTable(pairs, -1)

    @tf.function(input_signature=[X_SPEC])
    def __call__(self, x):
        return {"y": x @ self.w}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "ids")])
    def look_up(self, ids):
        return self.table.lookup(ids)


@pytest.fixture(scope="module")
def module():
    return Table()


@pytest.mark.parametrize("kind", ["module", "function", "concrete", "loaded"])
def test_modules_and_functions(module, kind, tmp_path):
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.__call__)
    source = {
        "module": lambda: module,
        "function": lambda: module.__call__,
        "concrete": module.__call__.get_concrete_function,
        "loaded": lambda: tf.saved_model.load(str(tmp_path / "model")),
    }[kind]()
    artifact = freeze(source, tmp_path / "a.pb")
    assert near(run_graph(artifact.path, artifact.details)["y"], X @ module.w.numpy())
    keys = {"serving_default"} | ({"look_up"} if kind == "module" else set())
    assert set(artifact.details["signatures"]) == keys


def test_sources_that_cannot_be_exported(module, tmp_path):
    for source, message in (
        (module.look_up, "Expected the tf.Module or model that owns"),
        (tf.function(lambda x: x), "inputs are unknown"),
        (3, "Nothing to freeze.*type int"),
        (tf.Module(), "Nothing to freeze.*type Module"),
    ):
        with pytest.raises(ConversionError, match=message):
            freeze(source, tmp_path / "a.pb")
    with pytest.raises(TfoptError, match=r"No such model.*'/no/where'"):
        freeze("/no/where", tmp_path / "a.pb")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a TF1 graph with its checkpoint, and its outputs."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return folder, save_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.meta", "graph.pb", "graph.pbtxt"])
@pytest.mark.parametrize("form", ["graph_def", "saved_model"])
def test_a_graph_with_a_checkpoint(checkpoint, name, form, tmp_path):
    folder, expected = checkpoint
    artifact = freeze(
        folder / name,
        tmp_path / "frozen",
        checkpoint=str(folder / "model"),
        output_node_names=["y", "classes"],
        output_format=form,
    )
    assert "classes: int64" in str(artifact.signature)
    assert artifact.details["constants"] == 1
    if form == "graph_def":
        found = run_graph(artifact.path, artifact.details)
    else:
        found = run_loaded(artifact.path)
    assert near(found["y"], expected["y"])
    assert (
        found["classes"].tolist() == expected["classes"].tolist()
        if (form == "graph_def")
        else found["classes"].numpy().tolist() == expected["classes"].tolist()
    )


def test_options_that_do_not_fit_the_source(checkpoint, model, tmp_path):
    folder, _ = checkpoint
    meta, prefix = folder / "model.meta", str(folder / "model")
    with pytest.raises(ValueError, match=r"has no signatures.*output_node_names=\(\)"):
        freeze(meta, tmp_path / "a", checkpoint=prefix)
    with pytest.raises(TfoptError, match=r"no such node.*'z'"):
        freeze(meta, tmp_path / "a", checkpoint=prefix, output_node_names=["z"])
    other = pathlib.Path(folder / "graph.pb")
    with pytest.raises(ConversionError, match=r"type of an output.*op=Shape"):
        freeze(other, tmp_path / "a", checkpoint=prefix, output_node_names=["size"])
    with pytest.raises(ConversionError, match=r"without a checkpoint.*variable='w'"):
        freeze(meta, tmp_path / "a", output_node_names=["y"])
    with pytest.raises(ValueError, match="brings its own variables"):
        freeze(model, tmp_path / "a", checkpoint=prefix)
    with pytest.raises(TfoptError, match=r"one of \{serve\}.*tags='train'"):
        freeze(model, tmp_path / "a", tags=["train"])
    with pytest.raises(TfoptError, match=r"\['counted', 'serving_default'\].*'none'"):
        freeze(model, tmp_path / "a", signature_keys=["none"])
    for option in ("output_format", "stateful", "verify"):
        with pytest.raises(ValueError, match=f"Unknown {option}.*{option}='no'"):
            freeze(model, tmp_path / "a", **{option: "no"})
    with pytest.raises(ValueError, match=r"list of strings.*signature_keys='counted'"):
        freeze(model, tmp_path / "a", signature_keys="counted")
    assert not list(tmp_path.iterdir())


def test_a_sparse_input(tmp_path):
    path = str(tmp_path / "model")
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        x = v1.sparse_placeholder(tf.float32, [None, 4], "x")
        w = v1.get_variable("w", [4, 3], use_resource=True)
        y = tf.sparse.sparse_dense_matmul(x, w)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, path, {"x": x}, {"y": y})
        given = tf.compat.v1.SparseTensorValue([[0, 1], [1, 3]], [1.0, 2.0], [2, 4])
        expected = session.run(y, {x: given})
    artifact = freeze(path, tmp_path / "a.pb")
    tensors = artifact.details["signatures"]["serving_default"]
    with tf.Graph().as_default(), v1.Session() as session:
        tf.import_graph_def(
            v1.GraphDef.FromString((tmp_path / "a.pb").read_bytes()), name=""
        )
        feed = dict(zip(tensors["inputs"]["x"], given, strict=True))
        assert near(session.run(tensors["outputs"]["y"][0], feed), expected)
    with pytest.raises(VerificationError, match=r"cannot be made up.*input 'x'"):
        freeze(path, tmp_path / "b.pb", verify="execution")


def test_graphs_that_call_what_is_not_there(model, tmp_path):
    folder = tmp_path / "model"
    subprocess.run(["cp", "-r", model, folder], check=True)
    saved_model = reader.read_saved_model(folder)
    graph = saved_model.meta_graphs[0].graph_def
    call = next(n for n in graph.node if n.op == "StatefulPartitionedCall")
    call.attr["f"].func.name = "gone"
    (folder / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    with pytest.raises(ConversionError, match=r"doesn't have.*function='gone'"):
        freeze(folder, tmp_path / "a.pb")


# ------------------------------------------------------------------------ sizes


def inflate(path, rows, crc=0):
    """Makes the one variable of a SavedModel larger by zeros that take no disk."""
    folder = pathlib.Path(path)
    saved_model = reader.read_saved_model(folder)
    for node in saved_model.meta_graphs[0].graph_def.node:
        if node.op == "VarHandleOp":
            node.attr["shape"].shape.dim[0].size = rows
    (folder / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    index = folder / "variables/variables.index"
    pairs = table.read_table(index)
    (key,) = [key for key in pairs if key.startswith(b"w/")]
    entry = protos.message_class("BundleEntryProto").FromString(pairs[key])
    shard = folder / "variables/variables.data-00000-of-00001"
    entry.offset = shard.stat().st_size
    entry.shape.dim[0].size = rows
    entry.size = rows * 4 * entry.shape.dim[1].size
    entry.crc32c = crc
    os.truncate(shard, entry.offset + entry.size)
    table.write_table(index, pairs | {key: entry.SerializeToString()})


@pytest.fixture
def one_variable(tmp_path):
    module = tf.Module()
    module.w = weights(0, 4, 1024, name="w")

    def call(x):
        return {"y": x @ tf.gather(module.w, [0, 1, 2, 3])}

    path = tmp_path / "model"
    tf.saved_model.save(module, str(path), signatures=serve(call))
    return path


def test_over_two_gigabytes_is_refused_before_writing(one_variable, tmp_path):
    inflate(one_variable, 600_000)
    for form, way_out in (
        ("graph_def", 'output_format="saved_model" with keep_variables_over'),
        ("saved_model", r"Use keep_variables_over=BYTES"),
    ):
        message = rf"{way_out}.*largest variables: w \(2,457,600,000 bytes\)"
        with pytest.raises(ConversionError, match=message):
            freeze(one_variable, tmp_path / "frozen", output_format=form)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


MEASURE = """
import sys
from tfopt.freezing import freeze
artifact = freeze(sys.argv[1], sys.argv[2])
print(artifact.size_bytes, artifact.sha256, len(artifact.details["warnings"]))
# Not ru_maxrss: that includes the process that this one was forked from.
status = open("/proc/self/status").read()
print(status.split("VmHWM:")[1].split()[0], "tensorflow" in sys.modules)
"""


def test_weights_take_no_memory_and_large_graphs_are_warned_of(one_variable, tmp_path):
    rows = 40_000
    zeros = bytes(rows * 4)
    crc = 0
    for _ in range(1024):
        crc = crc32c.extend(crc, zeros)
    inflate(one_variable, rows, crc32c.mask(crc))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(one_variable), str(tmp_path / "a.pb")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    size, digest, warnings, kilobytes, imported = done.stdout.split()
    assert int(size) > rows * 4096
    assert (digest, warnings, imported) == ("None", "1", "False")
    assert int(kilobytes) < 120_000
    assert "8 to 91 s" in done.stderr
