"""compare(): formats, metrics, agreement, failures; no assertion on timings."""

import json

import benchmark_samples as samples
import numpy as np
import pytest
import runner_samples
import tensorflow as tf

from tfopt import artifacts, comparison
from tfopt.comparison import _examples, _judging, compare
from tfopt.data import Data, Split, load_examples
from tfopt.types import TfoptError

FAST = {"num_runs": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    inputs, outputs = samples.write_all(folder)
    labels = outputs.argmax(axis=1)
    labels[:8] = (labels[:8] + 1) % 4  # so that nobody is always right
    np.savez(folder / "data.npz", x_test=inputs, y_test=labels)
    return folder, inputs, outputs, labels


@pytest.fixture(scope="module")
def report(models, tmp_path_factory):
    """One comparison for several tests: TensorFlow is started once."""
    folder, inputs, _, labels = models
    return compare(
        {
            "keras": folder / "model.keras",
            "float": folder / "float.tflite",
            "int8": folder / "int8.tflite",
            "broken": folder / "broken.tflite",
        },
        data=(inputs, labels),
        metric=["accuracy", "top_2", "auc"],
        profile=True,
        **FAST,
    )


def test_quality_is_that_of_the_oracle(models, report):
    folder, inputs, outputs, labels = models
    rows = report.tables[0].rows
    expected = (outputs.argmax(axis=1) == labels).mean()
    assert rows["keras"]["accuracy"] == expected == 56 / 64
    assert rows["float"]["accuracy"] == expected
    assert rows["keras"]["top_2"] > expected
    assert rows["float"]["auc"] == pytest.approx(rows["keras"]["auc"])
    int8 = runner_outputs(folder / "int8.tflite", inputs)
    assert rows["int8"]["accuracy"] == (int8.argmax(axis=1) == labels).mean()


def runner_outputs(path, inputs):
    from tfopt.runner import Runner

    with Runner(path, quantized_io="float", num_workers=1) as runner:
        return runner.run(inputs)


def test_an_integer_model_is_fed_and_read_in_floats(models, report):
    folder, inputs, outputs, _ = models
    rows = report.tables[1].rows
    int8 = runner_outputs(folder / "int8.tflite", inputs)
    gaps = np.abs(int8.astype(np.float64) - outputs)
    assert rows["int8"]["max_difference"] == pytest.approx(gaps.max(), rel=1e-3)
    assert rows["int8"]["mean_difference"] == pytest.approx(gaps.mean(), rel=1e-3)
    noise = 10 * np.log10((outputs.astype(np.float64) ** 2).sum() / (gaps**2).sum())
    assert rows["int8"]["sqnr_db"] == pytest.approx(noise, rel=1e-3)
    assert 20 < rows["int8"]["sqnr_db"] < 60
    assert rows["float"]["max_difference"] < 1e-6
    assert rows["keras"]["sqnr_db"] == np.inf
    same = (int8.argmax(axis=1) == outputs.argmax(axis=1)).mean()
    assert rows["int8"]["argmax_agreement"] == same


def test_a_failing_model_is_a_row_with_the_reason(report):
    row = report.tables[0].rows["broken"]
    assert {row["accuracy"], row["p50_ms"], row["gzip_bytes"]} == {None}
    assert "broken.tflite" in report.tables[0].footnotes["broken"]
    assert "Failed" in report.text()


def test_sizes_and_contents_are_measured(models, report):
    folder = models[0]
    rows = report.tables[2].rows
    for name, file in (("keras", "model.keras"), ("int8", "int8.tflite")):
        assert rows[name]["size_bytes"] == artifacts.raw_size(folder / file)
        assert rows[name]["gzip_bytes"] == artifacts.gzip_size(folder / file)
        assert rows[name]["parameters"] == 8 * 4 + 4
        assert rows[name]["sparsity"] == pytest.approx(0, abs=0.1)
    shares = {table.title.split(",")[0]: table.rows for table in report.tables[3:]}
    weights = shares["Share of the weights' bytes"]
    assert weights["keras"]["float32"] == 1
    assert weights["int8"]["int8"] == 32 / (32 + 4 * 4)  # biases are int32
    assert shares["Share of the operators"]["int8"]["int8"] == 1


def test_the_report_is_written_in_all_forms(report, tmp_path):
    comparison.write(report, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"report.md", "report.json", "report.html"} <= names
    assert {"accuracy_gzip_bytes.png", "auc_p50_ms.png"} <= names
    content = json.loads((tmp_path / "out/report.json").read_text())
    assert content["reference"] == "keras"
    assert content["models"]["int8"]["measurement"]["num_calls"] >= 1
    assert content["models"]["broken"]["error"]
    page = (tmp_path / "out/report.html").read_text()
    profiles = [row["measurement"]["profile"] for row in content["models"].values()]
    # A profile counts whole microseconds, which a tiny model may not take.
    timed = sum(any(op["time_us"] for op in profile) for profile in profiles)
    assert timed >= 1
    assert page.count("<svg") == 6 + 3 + timed  # metrics x 2, weights, operators


def test_without_labels_there_is_agreement(models, tmp_path):
    folder, inputs, *_ = models
    found = compare(
        [folder / "float.tflite", folder / "int8.tflite"], data=inputs, **FAST
    )
    assert found.tables[0].columns[0].key == "argmax_agreement"
    assert found.tables[1].rows["int8.tflite"]["argmax_agreement"] > 0.9
    assert [chart.y for chart in found.charts[:2]] == ["argmax_agreement"] * 2


def two_inputs(folder):
    """a [?, 3], b [?, 2] -> sum, difference [?, 1] each, by name."""

    def call(a, b):
        total = tf.reduce_sum(a, 1, keepdims=True)
        other = tf.reduce_sum(b, 1, keepdims=True)
        return total + other, total - other

    specs = (
        runner_samples.spec(None, 3, name="a"),
        runner_samples.spec(None, 2, name="b"),
    )
    path = folder / "two.tflite"
    path.write_bytes(runner_samples.convert(call, *specs))
    return path


def test_several_inputs_and_outputs(tmp_path):
    path = two_inputs(tmp_path)
    a, b = np.ones([5, 3], np.float32), np.arange(10, dtype=np.float32).reshape(5, 2)
    np.savez(
        tmp_path / "data.npz",
        **{"x_test/a": a, "x_test/b": b, "y_test": 3 + b.sum(axis=1)},
    )
    data = tmp_path / "data.npz"
    with pytest.raises(ValueError, match="Which output is judged"):
        _judging._judged_output(["sum", "difference"], None)
    from tfopt.runner import Runner

    with Runner(path, num_workers=1) as runner:
        outputs = runner.run({"a": a, "b": b})
    errors = {
        name: float(np.mean((value[:, 0] - 3 - b.sum(axis=1)) ** 2))
        for name, value in outputs.items()
    }
    assert sorted(errors.values())[0] == 0 < sorted(errors.values())[1]
    name, error = max(errors.items(), key=lambda item: item[1])
    found = compare([path], data=data, metric="mse", output=name, **FAST)
    assert found.tables[0].rows["two.tflite"]["mse"] == pytest.approx(error)


def test_data_come_in_several_forms(models):
    folder, inputs, _, labels = models
    expected = (64, (64, 8))

    def facts(data, **options):
        found = _examples.load(data, **options)
        return len(found), next(iter(found.inputs.values())).shape

    pair = (inputs, labels)
    split = Split(pair)
    for data in (pair, inputs, {"image": inputs}, split, Data(split, split)):
        assert facts(data) == expected
    assert facts(folder / "data.npz") == expected
    assert facts(tf.data.Dataset.from_tensor_slices(pair).batch(10)) == expected
    assert facts(pair, limit=7) == (7, (7, 8))
    assert _examples.load(pair, limit=7).labels.shape == (7,)
    for wrong in (3, None, [1]):
        with pytest.raises(ValueError, match="Received: data="):
            facts(wrong)
    with pytest.raises(TfoptError, match="same length"):
        facts((inputs, labels[:5]))
    with pytest.raises(ValueError, match="num_examples=0"):
        facts(pair, limit=0)


def test_examples_without_labels_or_names(tmp_path):
    np.savez(tmp_path / "plain.npz", a=np.zeros([3, 1]), b=np.ones([3, 2]))
    inputs, labels = load_examples(tmp_path / "plain.npz")
    assert sorted(inputs) == ["a", "b"]
    assert labels is None
    np.savez(tmp_path / "train.npz", x_train=np.zeros([3, 1]), y_train=np.ones(3))
    assert load_examples(tmp_path / "train.npz", split="train")[1].shape == (3,)
    with pytest.raises(TfoptError, match="x_test"):
        load_examples(tmp_path / "train.npz")
    np.savez(tmp_path / "bad.npz", x_test=np.zeros([3, 1]), y_test=np.ones(2))
    with pytest.raises(TfoptError, match="as many labels"):
        load_examples(tmp_path / "bad.npz")


def test_outputs_are_aligned_with_the_reference():
    a, b = np.zeros([2, 3]), np.ones([2, 4])
    reference = {"first": a, "second": b}
    found, by_position = _judging.aligned({"x": b, "y": a}, reference)
    assert found["first"] is a
    assert not by_position
    found, by_position = _judging.aligned({"x": a, "y": a}, {"first": a, "second": a})
    assert by_position
    with pytest.raises(ValueError, match="not the reference's"):
        _judging.aligned({"x": a}, reference)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reference": "nobody"}, ValueError, "reference='nobody'"),
        ({"metric": "acuracy"}, ValueError, "metric='acuracy'"),
        ({"metric": "f1"}, ValueError, "needs labels"),
        ({"num_runs": 0}, ValueError, "num_runs=0"),
        ({"output": "nothing", **FAST}, ValueError, "output='nothing'"),
        ({"data": "none.npz"}, TfoptError, "none.npz"),
    ],
)
def test_bad_requests_are_refused(models, options, error, message):
    folder, inputs, *_ = models
    with pytest.raises(error, match=message):
        compare(folder / "float.tflite", **{"data": inputs, **options})


def test_a_failing_reference_is_an_error(models):
    folder, inputs, *_ = models
    with pytest.raises(TfoptError, match="The reference model fails"):
        compare(folder / "broken.tflite", data=inputs, **FAST)


def test_a_metric_that_fails_for_one_model_is_its_reason(models):
    folder, inputs, outputs, labels = models

    def picky(values, _):
        if not np.allclose(values, outputs, atol=1e-5):
            raise ValueError("not exact")
        return 1.0

    found = compare(
        [folder / "float.tflite", folder / "int8.tflite"],
        data=(inputs, labels),
        metric=picky,
        **FAST,
    )
    assert found.tables[0].rows["float.tflite"]["picky"] == 1.0
    assert "not exact" in found.tables[0].footnotes["int8.tflite"]
