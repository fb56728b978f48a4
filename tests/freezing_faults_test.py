"""Freezing: the checks of its results, damaged models, and the tool."""

import os
import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from freezing_samples import X, save_checkpoint, save_model, serve, weights
from google.protobuf import text_format

from tfopt.freezing import checking, freeze, output
from tfopt.savedmodel import protos, reader
from tfopt.types import TfoptError, VerificationError

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A SavedModel with a small, a larger and a written variable."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The folder of a TF1 graph with its checkpoint, and its outputs."""
    folder = tmp_path_factory.mktemp("checkpoint")
    return folder, save_checkpoint(folder)


# ----------------------------------------------------------------------- checks


def test_execution_is_compared(model, tmp_path):
    np.savez(tmp_path / "data.npz", x=X)
    for form, data in (
        ("saved_model", None),
        ("graph_def", str(tmp_path / "data.npz")),
    ):
        artifact = freeze(
            model,
            tmp_path / form,
            output_format=form,
            verify="execution",
            verify_data=data,
        )
        found = artifact.details["verified"]["execution"]
        assert set(found) == {"serving_default", "counted"}
        for outputs in found.values():
            for measured in outputs.values():
                assert measured["equal"]
                assert measured["deterministic"]
                assert measured["scale"] > 0


def test_execution_tells_differences_and_randomness(model, tmp_path):
    module = tf.Module()
    module.w = tf.Variable(weights(1, 4, 3) * 1.01)

    def call(x):
        # Not tf.random.uniform: a seed set by another test would be saved with it.
        random = tf.raw_ops.RandomUniform(shape=tf.shape(x), dtype=tf.float32)
        return {"y": x @ module.w, "random": random}

    other = str(tmp_path / "other")
    tf.saved_model.save(module, other, signatures=serve(call))
    one = {"kind": "saved_model", "path": other, "tags": ["serve"]}
    meta_graph = reader.read_saved_model(other).meta_graphs[0]
    signatures = reader.select_signatures(meta_graph, None, "x")
    found = checking.check_execution(one, one, signatures, data=None)
    assert not found["serving_default"]["random"]["deterministic"]
    assert found["serving_default"]["y"]["equal"]
    module.w.assign(weights(1, 4, 3))
    changed = str(tmp_path / "changed")
    tf.saved_model.save(module, changed, signatures=serve(call))
    two = {"kind": "saved_model", "path": changed, "tags": ["serve"]}
    with pytest.raises(VerificationError, match=r"computes something else.*/y'"):
        checking.check_execution(one, two, signatures, data=None)


def test_changed_bytes_are_noticed(model, tmp_path, monkeypatch):
    written = output.write

    def write_and_damage(model, path, **options):
        written(model, path, **options)
        data = bytearray(path.read_bytes())
        value = weights(1, 3, 50).numpy().tobytes()
        data[data.index(value) + 100] ^= 1
        path.write_bytes(data)

    freeze(model, tmp_path / "a.pb")
    before = (tmp_path / "a.pb").read_bytes()
    monkeypatch.setattr(output, "write", write_and_damage)
    with pytest.raises(VerificationError, match=r"differs from the checkpoint.*large"):
        freeze(model, tmp_path / "a.pb")
    freeze(model, tmp_path / "b.pb", verify="structure")  # Which doesn't look.
    assert (tmp_path / "a.pb").read_bytes() == before


def graph_of(text):
    return text_format.Parse(text, protos.message_class("GraphDef")())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('node { name: "v" op: "VarHandleOp" }', "v is still a variable"),
        ('node { name: "v" op: "VariableV2" }', "v is still a variable"),
        ('node { name: "a" op: "Neg" input: "b" }', "a needs b, which is missing"),
        ('node { name: "a" op: "RestoreV2" }', "a uses a checkpoint"),
        (
            'node { name: "a" op: "Neg" attr { key: "_class" value { list { '
            's: "loc:@gone" } } } }',
            "a is colocated with a missing node",
        ),
        (
            'node { name: "a" op: "PartitionedCall" attr { key: "f" value { func { '
            'name: "gone" } } } }',
            "function gone is missing",
        ),
        (
            'library { function { signature { name: "f" } } }',
            "function f isn't used",
        ),
        (
            'node { name: "a" op: "f" } library { function { signature { name: "f" } '
            'node_def { name: "v" op: "VarHandleOp" } } }',
            "f/v is still a variable",
        ),
        ("", "y:0 is missing"),
    ],
)
def test_faults_of_structure_are_noticed(text, fault):
    good = graph_of('node { name: "y" op: "NoOp" }')
    options = {"kept": ["k"], "has_checkpoint": False}
    checking.check_structure(good, tensors=["y:0"], **options)
    bad = graph_of(text)
    if text:
        bad.node.extend(good.node)
    with pytest.raises(VerificationError, match=fault):
        checking.check_structure(bad, tensors=["y:0"], **options)


# --------------------------------------------------------------------- failures


def damage_shard(folder):
    path = folder / "variables/variables.data-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[data.index(weights(1, 3, 50).numpy().tobytes())] ^= 1
    path.write_bytes(data)


def damage_index(folder):
    path = folder / "variables/variables.index"
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)


def truncate_shard(folder):
    os.truncate(folder / "variables/variables.data-00000-of-00001", 100)


def remove_shard(folder):
    (folder / "variables/variables.data-00000-of-00001").unlink()


def truncate_graph(folder):
    os.truncate(folder / "saved_model.pb", 1000)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_shard, r"crc32c mismatch for tensor 'large/.*variables\.data-00000"),
        (damage_index, r"crc32c mismatch in the block.*variables\.index"),
        (truncate_shard, r"truncated: tensor .*variables\.data-00000"),
        (remove_shard, r"No such file.*variables\.data-00000"),
        (truncate_graph, r"Cannot read the file as a SavedModel.*saved_model\.pb"),
    ],
)
@pytest.mark.parametrize("form", ["graph_def", "saved_model"])
def test_a_damaged_model_leaves_the_old_output(model, tmp_path, damage, message, form):
    folder = tmp_path / "model"
    subprocess.run(["cp", "-r", model, folder], check=True)
    old = freeze(folder, tmp_path / "old", output_format=form)
    damage(folder)
    for options in (
        {},
        {"verify": "structure"},
        {"variable_names_denylist": ["*large"]},
    ):
        with pytest.raises(TfoptError, match=message):
            freeze(folder, old.path, output_format=form, **options)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["model", "old"]
    assert old.size_bytes == sum(
        path.stat().st_size
        for path in [tmp_path / "old", *(tmp_path / "old").rglob("*")]
        if path.is_file()
    )


def test_an_operation_that_tensorflow_does_not_know(model, tmp_path):
    folder = tmp_path / "model"
    subprocess.run(["cp", "-r", model, folder], check=True)
    saved_model = reader.read_saved_model(folder)
    for function in saved_model.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            if node.op == "MatMul":
                node.op = "HouseMatMul"
    (folder / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    freeze(folder, tmp_path / "a.pb")
    with pytest.raises(VerificationError, match=r"cannot be run.*HouseMatMul"):
        freeze(folder, tmp_path / "b.pb", verify="execution")
    assert not (tmp_path / "b.pb").exists()


def test_a_handle_that_an_unknown_operation_takes_is_kept(model, tmp_path):
    folder = tmp_path / "model"
    subprocess.run(["cp", "-r", model, folder], check=True)
    saved_model = reader.read_saved_model(folder)
    for function in saved_model.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            if node.op == "ReadVariableOp":
                node.op = "HouseRead"
    (folder / "saved_model.pb").write_bytes(saved_model.SerializeToString())
    artifact = freeze(folder, tmp_path / "a.pb", signature_keys=["serving_default"])
    kept = artifact.details["kept_variables"]
    assert [entry["writers"][0]["op"] for entry in kept] == ["HouseRead"] * 2


# ---------------------------------------------------------------------- the tool


TOOL = """
import runpy, sys
for name in ("tensorflow", "keras", "tf_keras"):
    sys.modules[name] = None
sys.argv = [{tool!r}, *sys.argv[1:]]
{before}
runpy.run_path({tool!r}, run_name="__main__")
"""


def run_tool(*arguments, before=""):
    script = TOOL.format(tool=str(ROOT / "tools/freeze_graph.py"), before=before)
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_tool_needs_no_tensorflow(model, tmp_path):
    done = run_tool(
        f"--input_saved_model_dir={model}",
        f"--output_graph={tmp_path / 'a.pb'}",
        f"--report={tmp_path / 'report.json'}",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "kept variable count: written by AssignAddVariableOp (__inf" in done.stdout
    assert "run before use: tfopt_init/all" in done.stdout
    assert (tmp_path / "report.json").stat().st_size > 500
    freeze(model, tmp_path / "b.pb")
    assert (tmp_path / "a.pb").read_bytes() == (tmp_path / "b.pb").read_bytes()


def test_the_tool_with_a_checkpoint(checkpoint, tmp_path):
    folder, _ = checkpoint
    done = run_tool(
        f"--input_meta_graph={folder / 'model.meta'}",
        f"--input_checkpoint={folder / 'model'}",
        "--output_node_names=y,classes",
        f"--output_saved_model_dir={tmp_path / 'a'}",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "a/saved_model.pb").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "exactly one of input_saved_model_dir, input_keras_file,"),
        (("--input_graph=a", "--input_meta_graph=b"), 2, "Received: input_meta_graph,"),
        (("--saved_model_tags=train",), 1, "Expected one of {serve}. Received: tags="),
        (("--signature_keys=a",), 1, "Expected one of ['counted', 'serving_default']"),
        (("--stateful=error",), 1, "Received: count by AssignAddVariableOp"),
    ],
)
def test_the_tool_fails_in_one_line(model, tmp_path, arguments, code, message):
    given = [f"--output_graph={tmp_path / 'a.pb'}", *arguments]
    if not any(item.startswith("--input") for item in arguments) and arguments:
        given.append(f"--input_saved_model_dir={model}")
    done = run_tool(*given)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert not (tmp_path / "a.pb").exists()


KILL = """
import os
os.copy_file_range = lambda *_: os.kill(os.getpid(), 9)
"""


def test_a_kill_while_writing_leaves_the_old_output(tmp_path):
    module = tf.Module()
    module.w = weights(0, 4, 50_000)
    path = str(tmp_path / "model")
    call = serve(lambda x: {"y": x @ module.w})
    tf.saved_model.save(module, path, signatures=call)
    target = tmp_path / "out" / "a.pb"
    arguments = (f"--input_saved_model_dir={path}", f"--output_graph={target}")
    assert run_tool(*arguments).returncode == 0
    old = target.read_bytes()
    target.write_bytes(old + b"\x0a\x00")  # The same graph, and yet another file.
    assert run_tool(*arguments, before=KILL).returncode == -9
    assert target.read_bytes() == old + b"\x0a\x00"
    assert len(list(target.parent.iterdir())) == 2
    assert run_tool(*arguments).returncode == 0
    assert target.read_bytes() == old
    assert list(target.parent.iterdir()) == [target]


def test_a_full_disk_is_one_line(model, tmp_path):
    (tmp_path / "a.pb").write_bytes(b"old")
    before = f"import resource; resource.setrlimit({resource.RLIMIT_FSIZE}, (500, 500))"
    done = run_tool(
        f"--input_saved_model_dir={model}",
        f"--output_graph={tmp_path / 'a.pb'}",
        before=before,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("freeze_graph: Cannot write the output: File too")
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.pb"]
    assert (tmp_path / "a.pb").read_bytes() == b"old"
