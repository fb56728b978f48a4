"""Sensitivity to quantization: scores, picks, files, and what conversion does."""

import json

import numpy as np
import ptq_samples as samples
import pytest
import tensorflow as tf
from conversion_samples import run, trained
from ptq_samples import IMAGES, network

import tfopt
from tfopt import affine, quantization
from tfopt.quantization import Layer, QuantizationSensitivity, Score
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras

LABELS = np.arange(len(IMAGES)) % 4


@pytest.fixture(scope="module")
def model():
    return network(tf.keras, spread=3)


@pytest.fixture(scope="module")
def measured(model):
    return tfopt.sensitivity(
        model, (IMAGES, LABELS), methods=("int8", "int4_weights"), mode="both"
    )


def outputs(model, images=IMAGES):
    return model(tf.constant(images)).numpy()


def converted(model, **options):
    content = tfopt.convert(
        model,
        quantization="int8",
        representative_dataset=IMAGES,
        min_sqnr=-99,
        **options,
    )
    return run(content, {"image": IMAGES})["logits"]


def test_scores_are_those_of_real_conversions(model, measured):
    reference = outputs(model)
    layers = list(measured.layers)
    names = "stem dw pw add side add_1 pool twice logits"
    assert layers == names.split()
    whole = samples.sqnr(reference, converted(model))
    assert measured.whole["int8"].sqnr_db == pytest.approx(whole, abs=0.01)
    for layer in ("stem", "dw", "twice"):
        rest = [name for name in layers if name != layer]
        alone = samples.sqnr(reference, converted(model, keep_float=rest))
        assert measured.alone["int8"][layer].sqnr_db == pytest.approx(alone, abs=0.01)
        restored = samples.sqnr(reference, converted(model, keep_float=layer))
        found = measured.restored["int8"][layer].sqnr_db
        assert found == pytest.approx(restored, abs=0.01)
    ratios = [score.sqnr_db for score in measured.alone["int8"].values()]
    assert max(ratios) - min(ratios) > 3  # the control: layers differ


def test_rounded_weights_against_numpy(keras, model, measured):
    twin = network(keras, spread=0)
    twin.set_weights(model.get_weights())
    layer = twin.get_layer("pw")
    kernel, bias = layer.get_weights()
    rounded = affine.fake_quantize_weights(kernel, bits=4, channel_axes=(-1,))
    layer.set_weights([rounded, bias])
    expected = samples.sqnr(outputs(model), outputs(twin))
    found = measured.alone["int4_weights"]
    assert found["pw"].sqnr_db == pytest.approx(expected, abs=0.05)
    layer.set_weights([affine.fake_quantize_weights(kernel, bits=4), bias])
    assert abs(samples.sqnr(outputs(model), outputs(twin)) - expected) > 0.5
    # What has no weights cannot change.
    assert "add" not in found
    assert "add" in measured.alone["int8"]


def test_accuracy_and_other_metrics(model, measured):
    accuracy = np.mean(outputs(model).argmax(-1) == LABELS)
    assert measured.metric == "accuracy"
    assert measured.baseline == pytest.approx(accuracy)
    converted_accuracy = np.mean(converted(model).argmax(-1) == LABELS)
    assert measured.whole["int8"].metric == pytest.approx(converted_accuracy)

    def squared_error(values, labels):
        return np.mean((values - labels) ** 2)

    targets = outputs(model)
    found = tfopt.sensitivity(
        model,
        tf.data.Dataset.from_tensor_slices((IMAGES, targets)).batch(7),
        methods="float16",
        metric=squared_error,
        include=["stem", "ADD"],
    )
    assert list(found.layers) == ["stem", "add", "add_1"]
    assert list(found.alone["float16"]) == ["stem"]
    assert not found.higher_is_better
    assert found.baseline < 1e-9
    assert found.whole["float16"].metric > found.baseline


def test_other_sources(model, tmp_path):
    kernel = model.get_layer("stem").get_weights()[0]

    @tf.function(input_signature=[tf.TensorSpec([None, 10, 10, 1], name="image")])
    def function(image):
        x = tf.nn.relu(tf.nn.conv2d(image, kernel, 1, "VALID", name="first"))
        return tf.reduce_mean(tf.nn.sigmoid(x, name="second"), [1, 2], name="third")

    found = tfopt.sensitivity(function, IMAGES, methods="int8")
    assert list(found.layers) == ["first", "second", "third"]
    assert found.baseline is None
    tf.saved_model.save(tf.Module(), str(tmp_path), signatures=function)
    other = tfopt.sensitivity(str(tmp_path), IMAGES, methods="int8")
    assert other == found


# Picking layers

FOUR = QuantizationSensitivity(
    metric="accuracy",
    higher_is_better=True,
    baseline=0.9,
    layers={
        "small": Layer(("CONV_2D",), 10, 400),
        "large": Layer(("CONV_2D",), 1000, 40),
        "free": Layer(("ADD",), 0, 0),
        "[x]": Layer(("CONV_2D",), 100, 100),
    },
    whole={"int8": Score(10 * np.log10(1 / 0.1111), 0.8)},
    # Noise powers 0.01, 0.1, 0.0001, 0.001.
    alone={
        "int8": {
            "small": Score(20.0, 0.9),
            "large": Score(10.0, 0.8),
            "free": Score(40.0, 0.9),
            "[x]": Score(30.0, 0.9),
        }
    },
    restored={"int8": {}},
)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"min_sqnr": 9.0}, []),
        ({"max_drop": 0.1}, []),
        ({"min_sqnr": 10.0}, ["large"]),
        # Half of the drop, half of the noise: only the large layer has that much.
        ({"max_drop": 0.05}, ["large"]),
        ({"min_sqnr": 25.0}, ["small", "large"]),
        ({"min_sqnr": 35.0}, ["small", "large", "[[]x]"]),
        ({"min_sqnr": 99.0}, ["small", "large", "free", "[[]x]"]),
        ({"min_sqnr": 19.0, "per": "bytes"}, ["large"]),
        ({"min_sqnr": 19.9, "per": "bytes"}, ["small", "large"]),
    ],
)
def test_layers_that_buy_most(limits, expected):
    assert FOUR.keep_float(**limits) == expected


def test_a_pick_is_what_conversion_takes(model, measured):
    for target in (measured.whole["int8"].sqnr_db + 2, 60.0):
        picked = measured.keep_float(min_sqnr=target, method="int8")
        assert 0 < len(picked) < len(measured.layers)
        reached = samples.sqnr(outputs(model), converted(model, keep_float=picked))
        # Noises add up but roughly.
        assert reached > target - 3
    assert measured.keep_float(min_sqnr=5.0, method="int8") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "max_drop=None"),
        ({"max_drop": 0.1, "min_sqnr": 9.0}, "min_sqnr=9.0"),
        ({"max_drop": -0.1}, "max_drop=-0.1"),
        ({"min_sqnr": 20.0, "method": "int4"}, "method='int4'"),
        ({"min_sqnr": 20.0, "per": "time"}, "per='time'"),
    ],
)
def test_wrong_limits(arguments, message):
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        FOUR.keep_float(**arguments)


# Tables, plots, files


def test_reports(measured, tmp_path):
    text = str(measured)
    assert "depthwise_conv_2d" in text
    assert "(all)" in text
    assert "| layer |" in measured.report().markdown()
    measured.report().write(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["sensitivity"]["alone"]["int8"]["dw"]["sqnr_db"] > 0
    pytest.importorskip("matplotlib")
    measured.plot(tmp_path / "bars.png", method="int8")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_saved_and_loaded(measured, tmp_path):
    measured.save(tmp_path / "found.json")
    assert QuantizationSensitivity.load(tmp_path / "found.json") == measured
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json"):
        QuantizationSensitivity.load(tmp_path / "other.json")


def test_scores_are_measured_once(model, tmp_path, monkeypatch):
    cache = tmp_path / "scores.json"
    options = {"methods": "float16", "cache": cache}
    first = tfopt.sensitivity(model, IMAGES, **options, include=["stem", "dw"])
    known = json.loads(cache.read_text())["scores"]
    assert set(known) == {"float16/whole/", "float16/alone/stem", "float16/alone/dw"}
    known["float16/alone/dw"]["sqnr_db"] = 1.5
    cache.write_text(json.dumps({**json.loads(cache.read_text()), "scores": known}))
    second = tfopt.sensitivity(model, IMAGES, **options, include=["stem", "dw", "pw"])
    assert second.alone["float16"]["dw"].sqnr_db == 1.5
    assert second.alone["float16"]["stem"] == first.alone["float16"]["stem"]
    with pytest.raises(ValueError, match="of other data"):
        tfopt.sensitivity(model, IMAGES * 2, **options)
    cache.write_text("[]")
    with pytest.raises(ValueError, match="Not a file of scores"):
        tfopt.sensitivity(model, IMAGES, **options)


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "int7"}, "methods='int7'"),
        ({"methods": ()}, r"methods=\(\)"),
        ({"methods": ("int8", "prune")}, "methods="),
        ({"methods": "int8", "sparsities": (0.5,)}, "sparsities="),
        ({"cache": "x.json"}, "cache='x.json' with methods='prune'"),
        ({"methods": "int8", "mode": "one"}, "mode='one'"),
        ({"methods": "int8", "examples": 0}, "examples=0"),
        ({"methods": "int8", "include": "x"}, "include='x'"),
        ({"methods": "int8", "exclude": "*"}, "exclude='\\*'"),
        ({"methods": "int8", "metric": "f2"}, "metric='f2'"),
    ],
)
def test_wrong_arguments(model, options, message):
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        tfopt.sensitivity(model, (IMAGES, LABELS), **options)


def test_metrics_by_name(model):
    targets = outputs(model)
    options = {"methods": "float16", "include": "stem"}
    noise = tfopt.sensitivity(model, (IMAGES, targets + 1), metric="mse", **options)
    assert (noise.metric, noise.higher_is_better) == ("mse", False)
    assert noise.baseline == pytest.approx(1.0)
    top = tfopt.sensitivity(model, (IMAGES, LABELS), metric="top_2", **options)
    assert top.higher_is_better
    best = np.argsort(targets)[:, -2:] == LABELS[:, None]
    assert top.baseline == pytest.approx(best.any(-1).mean())


def test_what_cannot_be_measured(model):
    with pytest.raises(ValueError, match="trained for int8"):
        quantization.measure(trained(), IMAGES, methods="int8")
    with pytest.raises(ValueError, match="needs labels"):
        tfopt.sensitivity(model, IMAGES, methods="int8", metric="accuracy")
    with pytest.raises(ValueError, match="39 labels"):
        tfopt.sensitivity(model, (IMAGES, LABELS[1:]), methods="int8")

    def undefined(values, labels):
        return np.nan

    with pytest.raises(ValueError, match="undefined=nan"):
        tfopt.sensitivity(model, (IMAGES, LABELS), methods="int8", metric=undefined)
    with pytest.raises((ValueError, TfoptError)):
        tfopt.sensitivity(3, IMAGES, methods="int8")


# What layers hold


def test_dynamic_scores_are_those_of_real_conversions(keras):
    layers = keras.layers
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((40,), name="x"),
            layers.Dense(64, name="first", activation="relu"),
            layers.Dense(4, name="second"),
            layers.Dense(300, name="third"),
        ]
    )
    data = np.random.default_rng(0).normal(size=(16, 40)).astype(np.float32)
    found = tfopt.sensitivity(model, data, methods="dynamic")
    # The converter leaves fewer than 1024 weights as they are.
    assert list(found.alone["dynamic"]) == ["first", "third"]
    for layer, rest in (("first", "third"), ("third", "first")):
        content = tfopt.convert(model, quantization="dynamic", keep_float=rest)
        reference = model(tf.constant(data)).numpy()
        real = samples.sqnr(reference, run(content, {"x": data})["third"])
        assert found.alone["dynamic"][layer].sqnr_db == pytest.approx(real, abs=0.01)


def test_ranges_and_constants_of_layers(keras):
    layers = keras.layers
    inputs = keras.Input((4,), name="x")
    x = layers.Dense(3, use_bias=False, name="wide")(inputs)
    model = keras.Model(inputs, layers.Dense(2, use_bias=False, name="last")(x))
    kernel = np.zeros((4, 3), np.float32)
    kernel[0] = 255.0, 1e-9, 0.4
    model.get_layer("wide").set_weights([kernel])
    data = np.eye(4, dtype=np.float32)
    found = tfopt.sensitivity(model, data, methods="float16")
    layer = found.layers["wide"]
    assert layer.outputs.lowest == 0.0
    assert layer.outputs.highest == pytest.approx(255, rel=1e-5)
    assert layer.outputs.step == pytest.approx(1, rel=1e-5)
    # 1e-9 and 0.4 are less than half a step.
    assert layer.outputs.lost == pytest.approx(2 / 3)
    (constant,) = layer.constants.values()
    assert (constant.bytes, constant.lost_in_float16) == (48, 1)
    assert constant.smallest == pytest.approx(1e-9)
    assert constant.largest == 255
    assert "255" in str(layer.outputs)


def test_a_layer_that_cannot_run_on_integers_has_the_worst_score(keras):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((4, 4, 8), name="x"),
            layers.Conv2D(8, 1, use_bias=False, name="first"),
            layers.Conv2D(8, 1, use_bias=False, name="second"),
        ]
    )
    factor = np.exp2(np.linspace(-12, 12, 8)).astype(np.float32)
    kernel = np.eye(8, dtype=np.float32)[None, None]
    model.get_layer("first").set_weights([kernel * factor])
    model.get_layer("second").set_weights([kernel / factor])
    data = np.random.default_rng(0).normal(size=(8, 4, 4, 8)).astype(np.float32)
    found = tfopt.sensitivity(model, data, methods="int8")
    # LiteRT refuses to multiply by a scale of 256 or more.
    assert found.alone["int8"]["second"].sqnr_db == -100
    assert found.whole["int8"].sqnr_db == -100
    assert found.alone["int8"]["first"].sqnr_db > -100
