"""Models of all formats in processes of their own; no assertion on timings."""

import json
import math
import os
import pathlib
import sys

import benchmark_samples as samples
import numpy as np
import pytest

from tfopt import artifacts
from tfopt.benchmark import (
    _inputs,
    _litert_profile,
    _models,
    _process,
    benchmark_models,
)
from tfopt.benchmark._measurement import Measurement, mean_profile
from tfopt.types import Artifact, Signature, TensorInfo, TfoptError

FAST = {"num_runs": 2, "rounds": 2, "warmup_runs": 0, "min_round_ms": 0.0}
SLEEP = ["sleep", "2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    data, _ = samples.write_all(folder)
    np.savez(folder / "data.npz", x_test=data)
    return folder


@pytest.fixture(scope="module")
def found(models):
    """One benchmark for all tests; comparison_test.py has a Keras model."""
    return benchmark_models(
        {
            "float": models / "float.tflite",
            "saved": models / "saved",
            "graph": models / "graph.pb",
            "broken": models / "broken.tflite",
        },
        **FAST,
        batch_size=3,
        profile=True,
        outputs=[samples.OUTPUT],
    )


def test_every_format_is_measured(found, models):
    names = ["float", "saved", "graph"]
    for name in names:
        row = found[name]
        assert row.error is None
        assert row.rows == 3
        assert len(row.latency.samples_ms) == len(row.throughput.samples_ms) == 2
        assert len(row.calls_ms) == 2
        figures = [row.load_ms, row.first_ms, row.import_ms, row.rows_per_second]
        assert all(math.isfinite(value) and value > 0 for value in figures)
        assert row.peak_added_bytes is None or row.peak_added_bytes > 0
        assert row.size_bytes == artifacts.raw_size(row.path)
        assert row.gzip_bytes == artifacts.gzip_size(row.path)
        assert "image: float32 [?, 8]" in row.signature
    formats = [found[name].format for name in names]
    assert formats == ["tflite", "saved_model", "graph_def"]


def test_a_broken_model_is_a_row_with_the_reason(found):
    row = found["broken"]
    assert "broken.tflite" in row.error
    assert row.latency is None
    assert row.size_bytes == 20
    assert "Not measured" in str(found)
    assert "broken.tflite" in str(found)


def test_profiles_name_the_operators(found):
    ops = {name: [row.op for row in found[name].profile] for name in ("float", "graph")}
    assert any("Fully Connected" in op for op in ops["float"])
    assert any("MatMul" in op for op in ops["graph"])
    for name in ("float", "saved", "graph"):
        profile = found[name].profile
        shares = sum(row.share for row in profile)
        # Microseconds rounded down may all be 0.
        assert shares == pytest.approx(1) or not any(row.time_us for row in profile)
        assert profile == tuple(sorted(profile, key=lambda row: -row.time_us))


def test_the_report_is_plain_data(found):
    content = json.loads(artifacts.to_json(found))
    rows = {row["name"]: row for row in content["models"]}
    assert rows["float"]["num_calls"] == 2
    assert rows["float"]["p50_ms"] <= rows["float"]["p99_ms"]
    assert rows["broken"]["latency"] is None
    assert content["settings"]["batch_size"] == 3
    assert content["machine"]
    assert "calls_ms" not in rows["float"]


def test_tflite_processes_never_import_tensorflow(models):
    with _process.ModelProcess(timeout_s=60) as process:
        opened = process.call(
            "open",
            file=str(models / "float.tflite"),
            format="tflite",
            rows=1,
            data=None,
            seed=0,
            options={"num_workers": 1, "num_threads": 1},
        )
        assert opened["tensorflow"] is False


def test_data_pinning_and_autotuning(models):
    core = min(os.sched_getaffinity(0))
    data = np.load(models / "data.npz")["x_test"]
    found = benchmark_models(
        [models / "int8.tflite"], **FAST, data=data, cpus=[core], autotune=True
    )
    row = found["int8.tflite"]
    assert row.error is None
    assert row.num_workers == row.num_threads == 1  # on one core
    speeds = [trial["rows_per_second"] for trial in row.autotuned]
    assert speeds == sorted(speeds, reverse=True)
    assert row.rows == row.autotuned[0]["rows"]
    assert "Set-ups of int8.tflite" in str(found)
    wrong = benchmark_models([models / "int8.tflite"], **FAST, data=data[:, :5])
    assert "don't fit the input image" in wrong["int8.tflite"].error


def test_a_dying_process_is_a_reason():
    with (
        _process.ModelProcess(timeout_s=60) as process,
        pytest.raises(TfoptError, match=r"killed by SIGABRT.*while: call"),
    ):
        process.call("call", target="os:abort", arguments={})
    with (
        _process.ModelProcess(timeout_s=60) as process,
        pytest.raises(TfoptError, match="exit code 7"),
    ):
        process.call("call", target="os:_exit", arguments={"status": 7})
    with _process.ModelProcess(timeout_s=60) as process:
        process._timeout_s = 0.3
        with pytest.raises(TfoptError, match=r"no result after 0\.3 s"):
            process.call("call", target="subprocess:call", arguments={"args": SLEEP})
        with pytest.raises(TfoptError, match="was ended"):
            process.call("memory")


def test_what_a_child_prints_is_no_answer():
    with _process.ModelProcess(timeout_s=60) as process:
        result = process.call(
            "call", target="subprocess:call", arguments={"args": ["echo", "noise"]}
        )
        assert result == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_runs": 0}, "num_runs=0"),
        ({"rounds": True}, "rounds=True"),
        ({"warmup_runs": -1}, "warmup_runs=-1"),
        ({"min_round_ms": math.nan}, "min_round_ms=nan"),
        ({"num_workers": 0}, "num_workers=0"),
        ({"num_threads": "two"}, "num_threads='two'"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"cpus": [10_000]}, "cpus="),
        ({"cpus": []}, "cpus="),
    ],
)
def test_bad_options_are_refused(models, options, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        benchmark_models([models / "float.tflite"], **options)


def test_models_are_named_and_recognised(models, tmp_path):
    path = str(models / "float.tflite")
    assert _models.parse(["a=b.tflite", "c/d.tflite"]) == {
        "a": "b.tflite",
        "d.tflite": "c/d.tflite",
    }
    with pytest.raises(ValueError, match="same name"):
        _models.parse(["a/x.tflite", "b/x.tflite"])
    odd = tmp_path / "a=b.tflite"
    odd.write_bytes((models / "float.tflite").read_bytes())
    assert _models.parse([str(odd)]) == {"a=b.tflite": str(odd)}
    artifact = Artifact(path, "tflite", 1, 1, None)
    content = (models / "float.tflite").read_bytes()
    several = {"a": artifact, "b": content, "c": models / "saved"}
    with _models.as_files(several) as files:
        assert [file.format for file in files] == ["tflite", "tflite", "saved_model"]
        assert pathlib.Path(files[1].path).read_bytes() == content
    with pytest.raises(TfoptError, match="nothing there"), _models.as_files("none.pb"):
        pass
    with pytest.raises(TfoptError, match="no model file"):
        _models.format_of(models / "data.npz")
    with pytest.raises(ValueError, match="Not a model"), _models.as_files({"a": 3}):
        pass
    with pytest.raises(ValueError, match="No models"), _models.as_files({}):
        pass


def info(name="x", dtype=np.float32, shape=(None, 2), **more):
    return TensorInfo(name, np.dtype(dtype), shape, **more)


def test_made_up_inputs_are_seeded_by_name():
    first = Signature("a", (info("x"), info("y", np.int8), info("z", np.int64)), ())
    second = Signature("b", (info("y", np.int8), info("x")), ())
    one, two = (
        _inputs.random_inputs(signature, rows=500) for signature in (first, second)
    )
    np.testing.assert_array_equal(one["x"], two["x"])
    np.testing.assert_array_equal(one["y"], two["y"])
    assert one["x"].dtype == np.float32
    assert (one["y"].min(), one["y"].max()) == (-128, 127)
    assert set(one["z"].ravel()) == {0, 1}
    other = _inputs.random_inputs(first, rows=500, seed=1)
    assert not np.array_equal(one["x"], other["x"])
    words = Signature("", (info("w", object, (None, None)),), ())
    assert _inputs.random_inputs(words, rows=2)["w"].shape == (2, 16)
    with pytest.raises(TfoptError, match="unknown rank"):
        _inputs.random_inputs(Signature("", (info(shape=None),), ()), rows=1)


def test_data_are_matched_by_name_and_never_lose_values():
    signature = Signature("", (info("serving_default_image"), info("mask")), ())
    arrays = {"mask": np.zeros([3, 2]), "image": np.ones([3, 2])}
    found = _inputs.match(signature, arrays)
    assert found["serving_default_image"] is arrays["image"]
    with pytest.raises(TfoptError, match="don't fit"):
        _inputs.match(signature, {"mask": arrays["mask"], "other": arrays["mask"]})
    with pytest.raises(TfoptError, match="a single array"):
        _inputs.match(signature, arrays["mask"])
    whole = np.array([[1, 2]], np.int64)
    assert _inputs.fitted(info(dtype=np.uint8), whole).dtype == np.uint8
    assert _inputs.fitted(info(), whole).dtype == np.float32
    quantized = info(dtype=np.int8, scale=(0.5,), zero_point=(0,))
    assert _inputs.fitted(quantized, whole, floats=True).dtype == np.float32
    for wrong in (whole * 1000, whole * 1.5, whole[:, :1], whole[0]):
        with pytest.raises(TfoptError, match="don't fit the input"):
            _inputs.fitted(info(dtype=np.uint8), wrong)


def test_means_of_profiles():
    row = {"name": "0", "op": "A", "time_us": 4.0}
    other = {"name": "1", "op": "B", "time_us": 2.0}
    found = mean_profile([[row, other], [row]])
    assert [(item.op, item.time_us, item.share) for item in found] == [
        ("A", 4.0, 0.8),
        ("B", 1.0, 0.2),
    ]


def test_figures_that_are_unknown_stay_unknown():
    row = Measurement(name="a", path="a", format="tflite", error="no")
    assert row.percentile_ms(50) is None
    assert row.rows_per_second is None
    assert row.is_noisy is False
    assert row.to_json()["p99_ms"] is None


def test_an_untried_litert_is_not_profiled(monkeypatch):
    monkeypatch.setattr(_litert_profile.importlib.metadata, "version", lambda _: "9.0")
    with pytest.raises(TfoptError, match=r"Received: 9\.0"):
        _litert_profile._Library()


def test_kernels_of_several_parts_keep_apart():
    events = (_litert_profile._Event * 5)()
    kinds = (_litert_profile._OPERATOR, _litert_profile._DELEGATE_PROFILED)
    for event, (tag, kind, index) in zip(
        events,
        [
            (b"A", kinds[1], 0),
            (b"B", kinds[1], 1),
            (b"TfLiteXNNPackDelegate", kinds[0], 9),
            (b"PACK", kinds[0], 4),
            (b"A", kinds[1], 0),
        ],
        strict=True,
    ):
        event.tag, event.event_type, event.event_metadata1 = tag, kind, index
        event.elapsed_time_us = 3
    found = [(event.name, event.place) for event in _litert_profile._operators(events)]
    assert found == [("A", "0.0"), ("B", "0.1"), ("PACK", "4"), ("A", "1.0")]


def test_outputs_of_computed_shape_are_profiled(testdata):
    """LiteRT's C interface runs such a model once only."""
    found = benchmark_models(
        testdata / "basic_pitch/reference.tflite", **FAST, profile=True
    )
    row = found.measurements[0]
    assert "first runs" in row.notes[0]
    assert sum("Convolution" in item.op for item in row.profile) > 5
    assert len({item.name for item in row.profile}) == len(row.profile)


def test_the_parent_stays_free_of_tensorflow(models):
    """The tool measures .tflite files where TensorFlow can't be imported."""
    import subprocess

    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from tfopt.benchmark.command import benchmark_model as b\n"
        f"f = b(model=[{str(models / 'float.tflite')!r}], num_runs=1, rounds=1)\n"
        "print(f.measurements[0].error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout == "None\n", done.stderr
