"""The command transform_graph."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from transforms_samples import flat

from tfopt.transforms import _command, _registry
from tfopt.types import UsageError

ROOT = pathlib.Path(__file__).parent.parent
WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules["tensorflow"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
v1 = tf.compat.v1


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "in.pb"
    path.write_bytes(flat().to_graph_def().SerializeToString())
    return path


def run_tool(*arguments, folder, code=None):
    tool = str(ROOT / "tools" / "transform_graph.py")
    start = [tool] if code is None else ["-c", code, tool]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_a_graph_is_transformed_and_reported(graph, tmp_path):
    done = run_tool(
        "--in_graph=in.pb",
        "--out_graph=out.pb",
        "--inputs=x",
        "--outputs=out,class",
        "--transforms=remove_nodes(op=Identity) quantize_weights(minimum_size=100)",
        "--report=report.json",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        *("transform", "nodes", "bytes", "seconds", "error", "findings")
    ]
    assert "quantize_weights" in done.stdout
    assert "output out: differs by at most" in done.stdout
    size = (tmp_path / "out.pb").stat().st_size
    assert f"out.pb: graph_def, {size:,} bytes" in done.stdout
    assert size < graph.stat().st_size
    report = json.loads((tmp_path / "report.json").read_text())
    assert [step["name"] for step in report["details"]["steps"]] == [
        "remove_nodes",
        "quantize_weights",
    ]
    with tf.Graph().as_default(), v1.Session() as session:
        data = (tmp_path / "out.pb").read_bytes()
        tf.import_graph_def(v1.GraphDef.FromString(data), name="")
        found = session.run("out:0", {"x:0": np.zeros([5, 3], np.float32)})
    assert found.shape[0] == 5


def test_the_list_needs_no_tensorflow(tmp_path):
    done = run_tool(
        "--list_transforms",
        "--report=list.json",
        folder=tmp_path,
        code=WITHOUT_TENSORFLOW,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first_words = {line.split()[0] for line in done.stdout.splitlines() if line.split()}
    assert {*_registry.names(), "deploy", "small", "minimum_size"} <= first_words
    assert "Default 1024." in done.stdout
    content = json.loads((tmp_path / "list.json").read_text())
    assert set(content["transforms"]) == set(_registry.names())
    options = content["transforms"]["quantize_weights"]["options"]
    assert options["bits"]["takes"] == "8, 4, float16, bfloat16"
    assert content["presets"]["small"]["transforms"][0] == "deploy"


def test_a_graph_can_be_written_as_text(graph, tmp_path):
    result = _command.transform_graph(
        in_graph=str(graph),
        out_graph=str(tmp_path / "out.txt"),
        output_format="text",
        outputs=["out"],
        transforms="remove_device",
        verify="structure",
    )
    assert "verified: structure only" in str(result)
    assert b"MatMul" in (tmp_path / "out.txt").read_bytes()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "exactly one of in_graph, saved_model_dir, keras_model_file"),
        (["--in_graph=in.pb"], 2, "exactly one of out_graph, output_saved_model_dir"),
        (["--in_graph=in.pb", "--out_graph=o.pb"], 2, "Expected --transforms"),
        (
            ["--in_graph=in.pb", "--out_graph=o.pb", "--transforms=deploy("],
            1,
            "Cannot read the list of transforms",
        ),
        (
            ["--in_graph=no.pb", "--out_graph=o.pb", "--transforms=remove_device"],
            1,
            "Cannot read the file as a GraphDef",
        ),
    ],
)
def test_failures_are_one_line(flags, code, message, tmp_path, graph):
    options = ["--verify=structure", *flags]
    done = run_tool(*options, folder=tmp_path)
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert line.startswith("transform_graph: ")
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["in.pb"]


def test_flags_of_two_sources_do_not_go_together(tmp_path):
    with pytest.raises(UsageError, match="Received: in_graph, saved_model_dir"):
        _command.transform_graph(
            in_graph="a.pb",
            saved_model_dir="b",
            out_graph=str(tmp_path / "o.pb"),
            transforms="deploy",
        )


def test_what_a_saved_model_needs_before_use_is_said(tmp_path, testdata):
    result = _command.transform_graph(
        saved_model_dir=str(testdata / "basic_pitch" / "saved_model"),
        output_saved_model_dir=str(tmp_path / "out"),
        transforms="inline_functions",
        verify="structure",
    )
    assert result.artifact.format == "saved_model"
    assert "inlined 2" in str(result)
    details = {
        **result.artifact.details,
        "init_op": "init",
        "asset_feeds": {"a:0": "f"},
    }
    from tfopt.types import Artifact

    shown = str(
        _command.Transformed(Artifact("x.pb", "graph_def", 1, 1, "", details=details))
    )
    assert "run before use: init\n  feeding a:0 with f" in shown
