"""The command `tflite_convert`, as builds call it."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfopt import data, inspection, tflite_file
from tfopt.conversion import command
from tfopt.types import TfoptError, UsageError

ROOT = pathlib.Path(__file__).parent.parent
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A SavedModel of two signatures over one weight, and typical inputs."""
    folder = tmp_path_factory.mktemp("tool")

    class Net(tf.Module):
        def __init__(self):
            super().__init__()
            self.weight = tf.Variable(RNG.normal(size=(64, 32)).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec([None, 64], name="x")])
        def forward(self, x):
            return {"y": tf.nn.relu(x @ self.weight)}

        @tf.function(input_signature=[tf.TensorSpec([None, 32], name="y")])
        def back(self, y):
            return {"x": tf.matmul(y, self.weight, transpose_b=True)}

    net = Net()
    signatures = {"serving_default": net.forward, "back": net.back}
    tf.saved_model.save(net, str(folder / "saved"), signatures=signatures)
    np.save(folder / "x.npy", RNG.normal(size=(20, 64)).astype(np.float32))
    np.savez(folder / "x.npz", x=RNG.normal(size=(20, 64)).astype(np.float32))
    return folder


def convert(saved, **options):
    return command.tflite_convert(
        saved_model_dir=str(saved / "saved"), isolate=False, **options
    )


def all_outputs(folder):
    return {
        "output_file": str(folder / "net.tflite"),
        "c_array": str(folder / "net.c"),
        "c_name": "net",
        "op_resolver": str(folder / "net_ops.h"),
        "required_ops": str(folder / "ops.txt"),
        "manifest": str(folder / "net.json"),
    }


@pytest.fixture(scope="module")
def built(saved):
    """All outputs of an int8 conversion, and what the command returned."""
    folder = saved / "build"
    done = convert(
        saved,
        quantization="int8",
        representative_data=str(saved / "x.npz"),
        inference_input_type="int8",
        **all_outputs(folder),
    )
    return folder, done


def test_the_manifest_says_what_builds_need(built):
    folder, _ = built
    content = (folder / "net.tflite").read_bytes()
    found = json.loads((folder / "net.json").read_text())
    assert found["sha256"] == hashlib.sha256(content).hexdigest()
    assert found["size_bytes"] == len(content) > found["gzip_bytes"]
    (signature,) = found["signatures"]
    (given,) = signature["inputs"]
    info = tflite_file.read(content).signatures[0].inputs[0]
    assert (given["name"], given["dtype"]) == ("x", "int8")
    assert given["scale"] == pytest.approx(info.scale)
    assert given["zero_point"] == list(info.zero_point)
    assert found["operators"]["FULLY_CONNECTED"] == {"int8": 1}
    assert found["conversion"]["quantization"] == "int8"
    assert found["macs"] == 64 * 32
    assert found["arena_bytes"] > 0
    assert {"tensorflow", "ai-edge-litert"} <= set(found["versions"])


def test_the_outputs_for_microcontrollers(built, tmp_path):
    folder, _ = built
    content = (folder / "net.tflite").read_bytes()
    source = (folder / "net.c").read_text()
    assert source.startswith('#include "net.h"\n')
    assert f"net_len = {len(content)};" in source
    assert "extern const unsigned char net[];" in (folder / "net.h").read_text()
    assert "AddFullyConnected" in (folder / "net_ops.h").read_text()
    lines = (folder / "ops.txt").read_text().splitlines()
    assert "FULLY_CONNECTED int8" in lines
    if compiler := shutil.which("cc"):
        done = subprocess.run(
            [
                compiler,
                "-std=c11",
                "-Wall",
                "-Werror",
                "-c",
                "net.c",
                "-o",
                str(tmp_path / "net.o"),
            ],
            cwd=folder,
            check=False,
        )
        assert done.returncode == 0


def test_the_same_model_gives_the_same_files(saved, built, tmp_path):
    folder, _ = built
    arguments = {
        "quantization": "int8",
        "representative_data": str(saved / "x.npz"),
        "inference_input_type": "int8",
    }
    convert(saved, **arguments, **all_outputs(tmp_path))
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name
    # What is the same keeps its time, all of it; what isn't is written.
    for path in tmp_path.iterdir():
        os.utime(path, (1000, 1000))
    (tmp_path / "ops.txt").write_text("old\n")
    done = convert(saved, if_changed=True, **arguments, **all_outputs(tmp_path))
    written = {pathlib.Path(path).name for path, new in done.written.items() if new}
    assert written == {"ops.txt"}
    times = {path.name: path.stat().st_mtime for path in tmp_path.iterdir()}
    assert {name for name, time in times.items() if time != 1000} == {"ops.txt"}
    assert "unchanged" in str(done)


def test_several_signatures_and_shapes(saved, tmp_path):
    path = tmp_path / "two.tflite"
    done = convert(
        saved, output_file=str(path), signature_keys=["serving_default", "back"]
    )
    file = tflite_file.read(path)
    assert [item.key for item in file.signatures] == ["serving_default", "back"]
    assert str(done).count("verified ") == 2
    convert(saved, output_file=str(path), input_shapes="x=4,64")
    assert tflite_file.read(path).signatures[0].inputs[0].shape == (4, 64)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"keras_model_file": "a.keras"}, "exactly one of"),
        ({"saved_model_dir": None}, "exactly one of"),
        ({"saved_model_dir": None, "keras_model_file": "a.pb"}, ".keras or .h5"),
        ({"c_array": "out/a.py"}, ".c, .cc or .cpp"),
        ({"c_array": "out/a.c", "op_resolver": "out/a.h"}, "same name"),
        ({"manifest": "out/a.tflite"}, "same name"),
        ({"input_shapes": "4,64"}, "input_arrays"),
        ({"input_shapes": "x=four"}, "Expected shapes by name"),
    ],
)
def test_bad_usage(saved, tmp_path, monkeypatch, options, why):
    monkeypatch.chdir(tmp_path)
    given = {"saved_model_dir": str(saved / "saved"), "output_file": "out/a.tflite"}
    with pytest.raises(UsageError, match=why):
        command.tflite_convert(**{**given, **options})
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_unless_everything_can_be(saved, tmp_path):
    """TFLite Micro has no kernel for one operator, so there is no resolver."""
    function = tf.function(
        lambda x: tf.math.cumsum(tf.math.atan2(x, x + 2)),
        input_signature=[tf.TensorSpec([None, 4], name="x")],
    )
    module = tf.Module()
    module.function = function
    folder = str(tmp_path / "odd")
    tf.saved_model.save(module, folder, signatures={"serving_default": function})
    with pytest.raises(TfoptError, match="ATAN2"):
        command.tflite_convert(
            saved_model_dir=folder, isolate=False, **all_outputs(tmp_path / "out")
        )
    assert not (tmp_path / "out").exists()


def test_inspection_shows_how_the_file_was_made(built):
    folder, _ = built
    content = (folder / "net.tflite").read_bytes()
    found = inspection.inspect(content)
    (note,) = (note for note in found.notes if note.startswith("Made by tfopt"))
    assert note.endswith(": convert quantization=int8")
    assert note in found.report(largest=3).text().replace("\n", " ")
    bare = tflite_file.rewrite(content, strip_debug_info=True)
    assert "tfopt" not in tflite_file.read(bare).metadata
    other = tflite_file.rewrite(content, metadata={"tfopt": b"{"})
    assert any("cannot be read" in item for item in inspection.inspect(other).notes)


def function_data():
    return {"train": (np.full((3, 2), 7), np.zeros(3)), "test": (X[:1], np.zeros(1))}


def generated():
    return iter(X)


X = np.arange(6.0).reshape(3, 2)


def test_representative_data(tmp_path):
    np.savez(tmp_path / "split.npz", x_train=X, y_train=np.zeros(3), x_test=X[:1])
    np.savez(tmp_path / "test.npz", x_test=X)
    np.savez(tmp_path / "named.npz", a=X, b=X + 1)
    np.save(tmp_path / "plain.npy", X)
    for name in ("split.npz", "test.npz", "plain.npy"):
        np.testing.assert_array_equal(data.load_representative(tmp_path / name), X)
    assert list(data.load_representative(tmp_path / "named.npz")) == ["a", "b"]
    module = __name__
    assert np.all(data.load_representative(f"{module}:function_data") == 7)
    assert next(data.load_representative(f"{module}:generated"))[1] == 1
    (tmp_path / "bad.npy").write_bytes(b"no array")
    for spec in ("bad.npy", "none.npy", "none.npz", "x.csv"):
        with pytest.raises(TfoptError, match=spec.split(".")[0]):
            data.load_representative(tmp_path / spec)
    with pytest.raises(TfoptError, match="no_such"):
        data.load_representative(f"{module}:no_such")


def test_from_make(saved, tmp_path):
    """The whole command in a process, from a Makefile: made once, then up to date."""
    (tmp_path / "Makefile").write_text(
        f"net.tflite: {saved}/saved/saved_model.pb\n"
        f"\t{sys.executable} {ROOT}/tools/tflite_convert.py --saved_model_dir={saved}"
        "/saved --output_file=$@ --quantization=int8 "
        f"--representative_data={saved}/x.npy --manifest=net.json\n"
    )
    make = shutil.which("make")
    if make is None:
        pytest.skip("there is no make")
    run = [make, "-s", "net.tflite"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for expected in ("verified outputs: y", "up to date"):
        done = subprocess.run(
            run[:1] + run[2:] if expected == "up to date" else run,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert expected in done.stdout
    assert json.loads((tmp_path / "net.json").read_text())["format"] == "tflite"
