"""The command run_grappler."""

import json
import os
import pathlib
import subprocess
import sys

import grappler_samples
import pytest

from tfopt import GrapplerConfig, _signatures
from tfopt.grappler import command, registry
from tfopt.types import UsageError

ROOT = pathlib.Path(__file__).parent.parent
MODEL = ROOT / "testdata" / "basic_pitch" / "saved_model"


def run(*arguments, folder):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "run_grappler.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_field_has_a_flag(tmp_path):
    text = run("--helpshort", folder=tmp_path).stdout
    names = _signatures.parameters("tfopt.grappler.config:GrapplerConfig")
    missing = [
        item.name
        for item in names
        if f"--{item.name}:" not in text and f"--[no]{item.name}:" not in text
    ]
    assert len(names) > 30
    assert not missing


def test_it_writes_a_graph_and_a_report(tmp_path):
    done = run(
        f"--saved_model_dir={MODEL}",
        "--out_graph=fast.pb",
        "--preset=lossless",
        "--rewriter_options=meta_optimizer_iterations=one",
        "--verify=structure",
        "--report=report.json",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fast.pb: graph_def, ")
    report = json.loads((tmp_path / "report.json").read_text())
    details = report["details"]
    assert f"{details['nodes']:,} nodes of {details['nodes_before']:,}" in done.stdout
    assert details["config"]["meta_optimizer_iterations"] == "one"
    assert details["config"]["optimizers"][0] == "function"


@pytest.mark.slow
def test_it_explains(tmp_path):
    grappler_samples.save_network(tmp_path / "network")
    done = run(
        "--saved_model_dir=network",
        "--explain",
        "--rounds=1",
        "--timeout_s=120",
        "--report=report.json",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    rows = report["rows"]
    assert rows["lossless"]["max_error"] == 0
    assert rows["default"]["nodes"] < rows["source"]["nodes"]
    alone = {name for name in rows if name.startswith("only ")}
    assert {f"only {name}" for name in registry.SWITCHES} - alone == {
        "only autoparallel"
    }
    assert all(rows[name]["status"] == "ok" for name in alone)
    assert "only constfold, pruning" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--out_graph=x.pb"], 2, "Which input is meant is unclear"),
        (["--saved_model_dir=m", "--in_graph=g.pb"], 2, "saved_model_dir, in_graph"),
        (["--saved_model_dir=m"], 2, "Which output is meant is unclear"),
        (["--saved_model_dir=m", "--explain", "--out_graph=x"], 2, "writes no model"),
        (["--saved_model_dir=m", "--rewriter_options=x"], 2, "Expected name=value"),
        (["--remapping=of", "--saved_model_dir=m"], 2, "remapping"),
        (["--saved_model_dir=m", "--rewriter_options=x=1"], 1, "Unknown option"),
        (["--saved_model_dir=m", "--out_graph=x.pb"], 1, "No such model"),
        (["--in_graph=g.pb", "--out_graph=x.pb"], 1, "names of its outputs"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, code, message):
    done = run(*arguments, folder=tmp_path)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_flags_change_the_preset():
    config = command._config(
        "bfloat16",
        {"remapping": "on"},
        ["min_graph_nodes=7", "disable_model_pruning=true"],
    )
    assert config == GrapplerConfig(
        auto_mixed_precision_onednn_bfloat16="on",
        remapping="on",
        min_graph_nodes=7,
        disable_model_pruning=True,
    )
    with pytest.raises(UsageError):
        command._config(None, {}, ["nothing"])
