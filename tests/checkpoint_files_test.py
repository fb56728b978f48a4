"""Light checkpoints as files: TF1, odd sources, faults, atomicity, the command."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfopt.checkpoint import slim_checkpoint, sources, writing
from tfopt.savedmodel.bundle import BundleReader
from tfopt.types import TfoptError

ROOT = pathlib.Path(__file__).parent.parent
WITHOUT_TENSORFLOW = """
import runpy, sys
for name in ("tensorflow", "keras", "tf_keras"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def saver(tmp_path_factory):
    """Prefix of a TF1 checkpoint with its graph, of a model trained by Adam."""
    prefix = str(tmp_path_factory.mktemp("tf1") / "model")
    v1 = tf.compat.v1
    with tf.Graph().as_default():
        x = tf.ones([2, 8])
        kernel = v1.get_variable("dense/kernel", [8, 4], use_resource=False)
        bias = v1.get_variable("dense/bias", [4], use_resource=True)
        table = v1.get_variable(
            "table", [8, 4], partitioner=v1.fixed_size_partitioner(2)
        )
        v1.get_variable("bn/moving_mean", [4], trainable=False)
        v1.get_variable("vocabulary", initializer=["a", "b"], trainable=False)
        step = v1.train.get_or_create_global_step()
        loss = tf.reduce_sum(x @ kernel + bias + x @ tf.convert_to_tensor(table))
        average = tf.train.ExponentialMovingAverage(0.9)
        train = v1.train.AdamOptimizer().minimize(loss, global_step=step)
        with tf.control_dependencies([train]):
            train = average.apply([bias])
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run(train)
            return v1.train.Saver().save(session, prefix, global_step=7)


@pytest.fixture
def big(tmp_path):
    """Prefix of a TF2 checkpoint of some size."""
    kernel = tf.Variable(tf.random.stateless_normal([300, 1000], [1, 2]))
    model = tf.Module()
    model.kernel, model.count = kernel, tf.Variable(7, dtype=tf.int64)
    return tf.train.Checkpoint(model=model).write(str(tmp_path / "big"))


def contents(prefix):
    reader = BundleReader(prefix)
    return {key: reader.read(key) for key in reader.keys()}  # noqa: SIM118


def weights_in(prefix):
    names = [name for name, _ in tf.train.list_variables(str(prefix))]
    return sorted(name for name in names if not name.startswith("_"))


INFERENCE = [
    *("bn/moving_mean", "dense/bias", "dense/bias/ExponentialMovingAverage"),
    *("dense/kernel", "table", "vocabulary"),
]


def test_tf1_inference(saver, tmp_path):
    artifact = slim_checkpoint(saver, tmp_path / "light")
    assert weights_in(tmp_path / "light") == INFERENCE
    assert artifact.details["dropped"] == {"optimizer": 9}
    full, light = contents(saver), contents(tmp_path / "light")
    for name in INFERENCE:
        np.testing.assert_array_equal(full[name], light[name])
    original = sum(map(os.path.getsize, [*writing.files(saver), saver + ".meta"]))
    assert artifact.size_bytes < original / 3


def test_tf1_trainable_by_the_graph_beside_it(saver, tmp_path):
    slim_checkpoint(saver, tmp_path / "light", keep="trainable")
    trainable = ["dense/bias", "dense/kernel", "table"]
    assert weights_in(tmp_path / "light") == trainable
    for path in writing.files(saver):
        copy = tmp_path / os.path.basename(path)
        copy.write_bytes(pathlib.Path(path).read_bytes())
    with pytest.raises(TfoptError, match=r"model-7\.meta"):
        slim_checkpoint(tmp_path / "model-7", tmp_path / "x", keep="trainable")
    (tmp_path / "model-7.meta").write_bytes(b"\xff" * 9)
    with pytest.raises(TfoptError, match="MetaGraphDef"):
        slim_checkpoint(tmp_path / "model-7", tmp_path / "x", keep="trainable")


def test_tf1_saver_restores_it(saver, tmp_path):
    slim_checkpoint(saver, tmp_path / "light")
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        kernel = v1.get_variable("dense/kernel", [8, 4])
        v1.get_variable("table", [8, 4], partitioner=v1.fixed_size_partitioner(2))
        v1.train.Saver().restore(session, str(tmp_path / "light"))
        found = session.run(kernel)
    np.testing.assert_array_equal(found, contents(saver)["dense/kernel"])


def test_float16_of_tf1_keeps_strings(saver, tmp_path):
    artifact = slim_checkpoint(saver, tmp_path / "light", dtype="float16")
    assert artifact.details["converted"] == len(INFERENCE) - 1
    light = contents(tmp_path / "light")
    assert light["vocabulary"].tolist() == [b"a", b"b"]
    assert light["table"].dtype == np.float16
    np.testing.assert_allclose(light["table"], contents(saver)["table"], rtol=1e-3)


def test_paths_that_mean_a_checkpoint(saver, big, tmp_path):
    folder = os.path.dirname(saver)
    for path in (
        saver,
        f"{saver}.index",
        f"{saver}.meta",
        folder,
        pathlib.Path(folder),
    ):
        assert sources.resolve(path) == saver
    assert sources.resolve(f"{saver}.data-00000-of-00001") == saver
    assert sources.resolve(os.path.dirname(big)) == big  # the only one there
    slim_checkpoint(big, tmp_path / "second")
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "nothing.index"):
        with pytest.raises(TfoptError, match="Expected a"):
            sources.resolve(path)


def test_integers_stay_and_slimming_twice(big, tmp_path):
    slim_checkpoint(big, tmp_path / "a", dtype="float16")
    assert contents(tmp_path / "a")["model/count/.ATTRIBUTES/VARIABLE_VALUE"] == 7
    slim_checkpoint(big, tmp_path / "b")
    slim_checkpoint(tmp_path / "b", tmp_path / "c", dtype="float16")
    first, second = contents(tmp_path / "a"), contents(tmp_path / "c")
    for key in first:
        if not key.startswith("_TFOPT"):
            np.testing.assert_array_equal(first[key], second[key])
    # In place, too: the old index is valid until the new one is.
    slim_checkpoint(tmp_path / "b", tmp_path / "b", dtype="float16")
    assert contents(tmp_path / "b").keys() == first.keys()


def test_replacing_switches_by_the_index(big, tmp_path):
    output = str(tmp_path / "light")
    names = []
    for dtype in ("float32", "float16", "float32"):
        slim_checkpoint(big, output, dtype=dtype)
        names.append([os.path.basename(path) for path in writing.files(output)])
        kernel = tf.train.load_variable(
            output, "model/kernel/.ATTRIBUTES/VARIABLE_VALUE"
        )
        assert kernel.dtype == dtype
    one = ["light.index", "light.data-00000-of-00001"]
    two = ["light.index", "light.data-00000-of-00002", "light.data-00001-of-00002"]
    assert names == [one, two, one]


KILLED = """
import os, signal, sys
from tfopt.checkpoint import slim_checkpoint
rename, allowed = os.replace, int(sys.argv[3])
def replace(source, target):
    global allowed
    if allowed == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    allowed -= 1
    rename(source, target)
os.replace = replace
slim_checkpoint(sys.argv[1], sys.argv[2], dtype="float16")
"""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_between_any_two_renames(big, tmp_path, renames):
    output = str(tmp_path / "light")
    slim_checkpoint(big, output)
    before = contents(output)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, big, output, str(renames)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    after = contents(output)
    assert after.keys() == before.keys()
    for key in before:
        np.testing.assert_array_equal(after[key], before[key])
    # The next run succeeds and removes what the killed one left.
    slim_checkpoint(big, output, dtype="float16")
    left = sorted(path.name for path in tmp_path.iterdir())
    expected = [os.path.basename(path) for path in writing.files(output)]
    assert [name for name in left if name.startswith((".", "light"))] == sorted(
        expected
    )
    kernel = contents(output)["model/kernel/.ATTRIBUTES/VARIABLE_VALUE"]
    assert kernel.dtype == np.float16


@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
@pytest.mark.parametrize("fault", ["truncated", "flipped", "missing"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_damaged_sources_leave_the_old_output(big, tmp_path, part, fault, dtype):
    output = str(tmp_path / "light")
    slim_checkpoint(big, output)
    before = [pathlib.Path(path).read_bytes() for path in writing.files(output)]
    file = pathlib.Path(f"{big}.{part}")
    data = bytearray(file.read_bytes())
    if fault == "missing":
        file.unlink()
    elif fault == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with pytest.raises(TfoptError) as error:
        slim_checkpoint(big, output, dtype=dtype)
    assert "\n" not in str(error.value)
    after = [pathlib.Path(path).read_bytes() for path in writing.files(output)]
    assert before == after
    assert not list(tmp_path.glob(".tfopt-*"))


def test_nothing_to_keep(tmp_path):
    counter = tf.train.Checkpoint().save(str(tmp_path / "empty"))
    with pytest.raises(TfoptError, match="no weights"):
        slim_checkpoint(counter, tmp_path / "light")


def test_a_symbolic_link_is_refused(big, tmp_path):
    (tmp_path / "light.index").symlink_to(big + ".index")
    with pytest.raises(TfoptError, match="symbolic link"):
        slim_checkpoint(big, tmp_path / "light")


def run_tool(*arguments, folder):
    return subprocess.run(
        [
            *(sys.executable, "-c", WITHOUT_TENSORFLOW),
            *(str(ROOT / "tools" / "slim_checkpoint.py"), *arguments),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_needs_no_tensorflow(saver, tmp_path):
    done = run_tool(
        f"--input_checkpoint={os.path.dirname(saver)}",
        "--output_checkpoint=light",
        "--keep=trainable",
        "--dtype=bfloat16",
        "--report=report.json",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "3 tensors, 3 of them stored as bfloat16" in done.stdout
    assert "left out: optimizer 9, not trainable 3" in done.stdout
    assert "recalibrate_batch_norm" in done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["details"]["tensors"] == 3
    assert report["format"] == "checkpoint"
    assert len(weights_in(tmp_path / "light")) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--input_checkpoint=none"], 1, "There is no checkpoint"),
        (["--input_checkpoint=none", "--dtype=int8"], 2, "dtype"),
        ([], 2, "input_checkpoint"),
    ],
)
def test_the_command_fails_in_one_line(tmp_path, arguments, code, message):
    done = run_tool("--output_checkpoint=light", *arguments, folder=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
