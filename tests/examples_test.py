"""README's three whole examples, as users run them: a script, a build, a server."""

import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from readme_test import README, ROOT, blocks, files

MARK = "# the one new line"
TOOLS = {"FREEZE": "freeze_graph", "CONVERT": "tflite_convert"}


def run_script(text, folder, monkeypatch, capsys, arguments=()):
    """Runs a script in a folder; returns what it printed."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
    script = folder / "script.py"
    script.write_text(text)
    capsys.readouterr()
    runpy.run_path(str(script), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.both_keras
def test_one_more_line_makes_a_training_script_s_model_smaller(
    keras, tmp_path, monkeypatch, capsys
):
    (tmp_path / "testdata").symlink_to(ROOT / "testdata")
    (script,) = [text for _, text in blocks(README, "python") if MARK in text]
    without = "".join(
        line for line in script.splitlines(keepends=True) if MARK not in line
    )
    assert len(without.splitlines()) == len(script.splitlines()) - 1
    printed = [
        re.fullmatch(
            r"([\d.]+)%, (\d+) bytes, gzip (\d+)\n",
            run_script(text, tmp_path, monkeypatch, capsys),
        )
        for text in (without, script)
    ]
    (accuracy, size, packed), (pruned_accuracy, pruned_size, pruned_packed) = [
        (float(found[1]), int(found[2]), int(found[3])) for found in printed
    ]
    assert packed > 3 * pruned_packed
    assert abs(size - pruned_size) < 1000
    assert pruned_accuracy > accuracy - 3 > 90
    model = keras.models.load_model("digits.keras")
    kernel = model.get_layer("digit").kernel.numpy()
    assert np.mean(kernel == 0) == pytest.approx(0.8, abs=0.01)


def test_the_data_function_gives_data(tmp_path, monkeypatch):
    from tfopt import load_data

    (tmp_path / "testdata").symlink_to(ROOT / "testdata")
    (tmp_path / "my_data.py").write_text(files(README, "python")["my_data.py"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    images, labels = load_data("my_data:load").test.arrays()
    assert images.shape == (10000, 28, 28)
    assert images.max() == 1
    assert labels.shape == (10000,)


class Build:
    """A folder with README's Makefile, a program, and a model to build from."""

    def __init__(self, folder):
        self.folder = folder
        commands = folder / "bin"
        commands.mkdir()
        for name in TOOLS.values():
            # What an installation makes of a tool.
            command = commands / f"tfopt-{name.replace('_', '-')}"
            command.write_text(f'#!/bin/sh\nexec {self.tool(name)} "$@"\n')
            command.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        for name, content in files(README, "make", "c").items():
            (folder / name).write_text(content)

    @staticmethod
    def tool(name):
        return f"{sys.executable} {ROOT / 'tools' / name}.py"

    def make(self, *arguments):
        return subprocess.run(
            ["make", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def touch(self, name):
        """Makes a source newer than all there is."""
        time.sleep(0.02)  # some file systems' clocks tick slowly
        os.utime(self.folder / name)

    def remake(self):
        """Runs `make` with tools that only say that they ran, by their outputs' times.

        Returns:
            What was done: freeze, convert, compile (a source), link.
        """
        done = self.make(
            "FREEZE=touch frozen/saved_model.pb; true",
            "CONVERT=touch net.c net.h net.json net.tflite; true",
        )
        assert done.returncode == 0, done.stderr
        kinds = (
            ("freeze", "^touch frozen"),
            ("convert", "^touch net"),
            ("main.c", r"main\.c$"),
            ("net.c", r"net\.c$"),
            ("link", "-o firmware"),
        )
        lines = done.stdout.replace("\\\n", "").splitlines()
        return [name for line in lines for name, text in kinds if re.search(text, line)]

    def times(self):
        names = ("frozen/saved_model.pb", "net.tflite", "net.c", "net.o", "firmware")
        return {name: (self.folder / name).stat().st_mtime_ns for name in names}


def has_make():
    if not (shutil.which("make") and shutil.which("cc")):
        return False
    text = subprocess.run(["make", "--version"], capture_output=True, text=True).stdout
    found = re.match(r"GNU Make (\d+)\.(\d+)", text)
    return bool(found) and (int(found[1]), int(found[2])) >= (4, 3)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """A build that has been made once, with the installed commands."""
    if not has_make():
        pytest.skip("needs cc and GNU make 4.3")
    import tensorflow as tf

    build = Build(tmp_path_factory.mktemp("build"))
    weights = tf.Variable(np.random.default_rng(0).normal(size=[8, 4]), dtype="float32")
    module = tf.Module()
    module.weights = weights
    module.serve = tf.function(
        lambda x: tf.nn.relu(x @ weights),
        input_signature=[tf.TensorSpec([None, 8], tf.float32, "x")],
    )
    tf.saved_model.save(module, str(build.folder / "model"), module.serve)
    typical = np.random.default_rng(1).normal(size=[20, 8]).astype(np.float32)
    np.savez(build.folder / "typical.npz", x=typical)
    done = build.make()
    assert done.returncode == 0, done.stdout + done.stderr
    return build


def test_the_build_makes_a_program_with_the_model_in_it(build):
    done = subprocess.run(
        [build.folder / "firmware"], capture_output=True, text=True, check=True
    )
    size = (build.folder / "net.tflite").stat().st_size
    assert done.stdout == f"{size} bytes of TFL3\n"
    before = build.times()
    done = build.make()
    assert (done.returncode, done.stdout) == (0, "make: 'firmware' is up to date.\n")
    assert build.times() == before


@pytest.mark.parametrize(
    ("changed", "steps"),
    [
        ("main.c", ["main.c", "link"]),
        ("typical.npz", ["convert", "main.c", "net.c", "link"]),
        ("model/saved_model.pb", ["freeze", "convert", "main.c", "net.c", "link"]),
        (
            "model/variables/variables.index",
            ["freeze", "convert", "main.c", "net.c", "link"],
        ),
    ],
)
def test_what_depends_on_a_change_is_built_and_nothing_else(build, changed, steps):
    assert build.remake() == []
    build.touch(changed)
    assert sorted(build.remake()) == sorted(steps)
    assert build.remake() == []


def test_other_flags_build_anew_and_failures_leave_what_was_there(build):
    before, content = build.times(), (build.folder / "net.tflite").read_bytes()
    done = build.make("FLAGS=--quantization=int7")
    assert done.returncode != 0
    assert "quantization" in done.stderr
    assert build.times() == before

    variables = [f"{name}={build.tool(tool)}" for name, tool in TOOLS.items()]
    done = build.make("FLAGS=--quantization=none", *variables)
    assert done.returncode == 0, done.stderr
    assert str(ROOT / "tools") in done.stdout
    assert (build.folder / "net.tflite").read_bytes() != content
    after = build.times()
    assert after["frozen/saved_model.pb"] == before["frozen/saved_model.pb"]
    assert after["firmware"] > before["firmware"]
    # The flags of what is there are others again.
    assert "convert" in build.remake()


def test_clean_leaves_the_sources(build):
    """Runs last: the others need what it removes."""
    assert build.make("clean").returncode == 0
    left = {path.name for path in build.folder.iterdir()}
    assert left == {"Makefile", "main.c", "model", "typical.npz", "bin"}


def test_versions_of_a_saved_model_are_served_in_turn(tmp_path, monkeypatch, capsys):
    import tensorflow as tf

    keras = tf.keras
    layers = [
        keras.layers.Conv2D(4, 3, use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3),
    ]
    model = keras.Sequential([keras.Input((8, 8, 1), name="image"), *layers])
    model.export(tmp_path / "served" / "1", verbose=False)
    printed = run_script(
        files(README, "python")["serve.py"],
        *(tmp_path, monkeypatch, capsys, ["served", 0.09]),
    )
    rows = re.findall(
        r"version (\d): ([\d,]+) bytes, ([\d,]+) nodes, ([\d.]+) requests/s, "
        r"differs by (\S+)",
        printed,
    )
    assert [row[0] for row in rows] == ["1", "2", "3"]
    sizes, nodes = ([int(row[i].replace(",", "")) for row in rows] for i in (1, 2))
    assert max(sizes[1:]) < sizes[0]
    assert max(nodes[1:]) < nodes[0]
    assert all(float(row[3]) > 0 for row in rows)
    assert float(rows[0][4]) == 0
    assert all(float(row[4]) < 1e-5 for row in rows)
    for version in ("1", "2", "3"):
        path = pathlib.Path("served", version)
        assert "serving_default" in tf.saved_model.load(str(path)).signatures
