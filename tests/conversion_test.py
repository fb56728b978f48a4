import contextlib
import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from tfopt import affine, artifacts, conversion, tflite_file
from tfopt.conversion import _errors, _freezing, _noise, _samples, _verification
from tfopt.types import ConversionError, TfoptError, VerificationError

pytestmark = pytest.mark.both_keras

MODES = ("none", "dynamic", "float16", "int8")
RNG = np.random.default_rng(0)
IMAGES = RNG.random((48, 28, 28), dtype=np.float32)


def digits(keras, kernel=None):
    """The MNIST network; `kernel` replaces the Dense kernel."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((28, 28), name="image"),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(12, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, name="logits"),
        ]
    )
    if kernel is not None:
        model.layers[-1].set_weights([kernel, np.zeros(10, np.float32)])
    return model


def residual(keras):
    """Conv, BatchNorm, ReLU6, depthwise, Add, global pooling, softmax."""
    layers = keras.layers
    keras.utils.set_random_seed(1)
    inputs = layers.Input((16, 16, 3), name="image")

    def normed(x):
        norm = layers.BatchNormalization()
        x = norm(x)
        size = x.shape[-1]
        norm.set_weights(
            [RNG.uniform(low, 1.5, size) for low in (0.5, -1, -1, 0.5)],
        )
        return layers.ReLU(6.0)(x)

    x = normed(layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(inputs))
    y = normed(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x))
    y = normed(layers.Conv2D(16, 1, use_bias=False)(y))
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="probs")(x))


def two_by_two(keras):
    """Two inputs whose alphabetical order is not their own, two outputs likewise."""
    layers = keras.layers
    keras.utils.set_random_seed(2)
    right = layers.Input((6, 6, 3), name="right")
    left = layers.Input((8,), name="left")
    x = layers.Flatten()(layers.Conv2D(8, 3, activation="relu")(right))
    x = layers.Concatenate()([x, layers.Dense(16, activation="relu")(left)])
    score = layers.Dense(1, activation="sigmoid", name="score")(x)
    return keras.Model([right, left], [score, layers.Dense(3, name="kind")(x)])


NETWORKS = {"digits": digits, "residual": residual, "two_by_two": two_by_two}
INPUTS = {
    "digits": {"image": IMAGES},
    "residual": {"image": RNG.normal(size=(48, 16, 16, 3)).astype(np.float32)},
    "two_by_two": {
        "left": RNG.normal(size=(48, 8)).astype(np.float32),
        "right": RNG.random((48, 6, 6, 3), dtype=np.float32),
    },
}
# Lowest signal-to-noise ratio that the networks above may have, in dB: about 6 dB
# below what they reach.
SQNR = {"none": 100, "float16": 60, "dynamic": 35, "int8": 27}


def run(content, inputs):
    """Runs the first signature with a plain interpreter; quantizes by hand."""
    interpreter = Interpreter(model_content=content)
    (key,) = interpreter.get_signature_list()
    runner = interpreter.get_signature_runner(key)
    given = {}
    for name, detail in runner.get_input_details().items():
        value = inputs[name]
        if detail["dtype"] != value.dtype:
            limits = np.iinfo(detail["dtype"])
            value = affine.quantize(
                value,
                *detail["quantization"],
                minimum=limits.min,
                maximum=limits.max,
            )
        given[name] = value
    results = runner(**given)
    for name, detail in runner.get_output_details().items():
        if detail["dtype"] in (np.int8, np.uint8):
            results[name] = affine.dequantize(results[name], *detail["quantization"])
    return results


def predict(model, inputs):
    """The model's outputs by name."""
    tensors = [tf.constant(inputs[item.name]) for item in model.inputs]
    outputs = model(tensors if len(tensors) > 1 else tensors[0])
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    names = getattr(model, "output_names", None) or [model.layers[-1].name]
    return {name: value.numpy() for name, value in zip(names, outputs, strict=True)}


def sqnr(reference, value):
    # Never quite zero: equal outputs count as 200 dB.
    noise = np.mean((reference.astype(np.float64) - value) ** 2) + 1e-20
    return 10 * np.log10(np.mean(reference.astype(np.float64) ** 2) / noise)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_agrees_with_the_model(keras, mode, name):
    model, inputs = NETWORKS[name](keras), INPUTS[name]
    done = conversion.convert_with_report(
        model, quantization=mode, representative_dataset=inputs
    )
    expected, actual = predict(model, inputs), run(done.content, inputs)
    assert list(expected) == [info.name for info in done.signature.outputs]
    for output, value in expected.items():
        ratio = sqnr(value, actual[output])
        assert ratio > SQNR[mode], output
        # The control: the same outputs, one row off.
        assert sqnr(value, np.roll(actual[output], 1, 0)) < ratio - 10
        reported = done.report["verification"]["outputs"][output]["sqnr_db"]
        # Beyond 100 dB, eager and traced networks differ in the last bits themselves.
        assert min(reported or 100, 100) == pytest.approx(min(ratio, 100), abs=0.5)


@pytest.mark.parametrize("name", NETWORKS)
def test_int8_kernels_have_a_scale_per_channel(keras, name):
    done = conversion.convert_with_report(
        NETWORKS[name](keras), quantization="int8", representative_dataset=INPUTS[name]
    )
    graph = tflite_file.read(done.content).subgraphs[0]
    seen = []
    for operator in graph.operators:
        if operator.name.endswith(("CONV_2D", "FULLY_CONNECTED")):
            kernel = graph.tensors[operator.inputs[1]]
            assert kernel.type == "INT8"
            assert len(kernel.scale) == kernel.shape[kernel.channel_axis]
            assert set(kernel.zero_point) == {0}
            seen.append(operator.name)
    assert "FULLY_CONNECTED" in seen
    assert done.report["float_operators"] == []
    assert "float32" not in done.report["constant_bytes"]


@pytest.mark.parametrize(
    ("source", "target"), [("int8", "uint8"), ("uint8", "float32")]
)
def test_integer_inputs_and_outputs(keras, source, target):
    model, inputs = two_by_two(keras), INPUTS["two_by_two"]
    done = conversion.convert_with_report(
        model,
        quantization="int8",
        representative_dataset=inputs,
        inference_input_type=source,
        inference_output_type=target,
    )
    assert {str(info.dtype) for info in done.signature.inputs} == {source}
    assert {str(info.dtype) for info in done.signature.outputs} == {target}
    for output, value in predict(model, inputs).items():
        assert sqnr(value, run(done.content, inputs)[output]) > SQNR["int8"]


def test_signature_has_the_models_names_in_its_order(keras):
    done = conversion.convert_with_report(two_by_two(keras))
    assert str(done.signature) == (
        "serving_default(right: float32 [?, 6, 6, 3], left: float32 [?, 8]) -> "
        "(score: float32 [?, 1], kind: float32 [?, 3])"
    )
    (signature,) = Interpreter(model_content=done.content).get_signature_list().items()
    assert signature == (
        "serving_default",
        {"inputs": ["left", "right"], "outputs": ["kind", "score"]},
    )
    named = conversion.convert_with_report(two_by_two(keras), signature_key="run")
    assert named.signature.key == "run"


def test_batch_is_free_and_reshapes_are_constant(keras):
    done = conversion.convert_with_report(digits(keras))
    assert set(done.report["operators"]) == {
        *("CONV_2D", "FULLY_CONNECTED", "MAX_POOL_2D", "RESHAPE")
    }
    model = digits(keras)
    for rows in (1, 7):
        images = {"image": IMAGES[:rows]}
        actual = run(done.content, images)["logits"]
        assert sqnr(predict(model, images)["logits"], actual) > SQNR["none"]


def test_a_declared_batch_size_stays(keras):
    inputs = keras.layers.Input((3,), batch_size=4, name="x")
    model = keras.Model(inputs, keras.layers.Dense(2, name="y")(inputs))
    done = conversion.convert_with_report(model, representative_dataset=np.eye(9, 3))
    assert done.signature.inputs[0].shape == (4, 3)
    assert done.report["verification"]["batch_sizes"] == [4]


# Kinds of models


def test_nested_model(keras):
    layers = keras.layers
    inner = residual(keras)
    inputs = layers.Input((16, 16, 3), name="picture")
    outer = keras.Model(inputs, layers.Dense(2, name="last")(inner(inputs)))
    done = conversion.convert_with_report(
        outer,
        quantization="int8",
        representative_dataset=INPUTS["residual"]["image"],
    )
    assert [info.name for info in done.signature.inputs] == ["picture"]
    assert [info.name for info in done.signature.outputs] == ["last"]


def test_dictionary_inputs_and_outputs(keras):
    layers = keras.layers
    second, first = layers.Input((3,), name="second"), layers.Input((2,), name="first")
    outputs = {"sum": layers.Dense(4)(second), "copy": layers.Dense(5)(first)}
    model = keras.Model({"second": second, "first": first}, outputs)
    done = conversion.convert_with_report(model)
    assert str(done.signature) == (
        "serving_default(first: float32 [?, 2], second: float32 [?, 3]) -> "
        "(copy: float32 [?, 5], sum: float32 [?, 4])"
    )
    inputs = {"first": np.ones((1, 2), np.float32), "second": np.eye(1, 3).astype("f4")}
    expected = model({name: tf.constant(value) for name, value in inputs.items()})
    for name, value in run(done.content, inputs).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6)


def subclassed(keras):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv = keras.layers.Conv2D(8, 3, activation="relu")
            self.drop = keras.layers.Dropout(0.5)
            self.dense = keras.layers.Dense(3)

        def call(self, picture, training=False):
            x = tf.reduce_mean(self.conv(picture), [1, 2])
            return {"kind": self.dense(self.drop(x, training=training)), "mean": x}

    return Net()


def test_subclassed_model(keras):
    model = subclassed(keras)
    pictures = INPUTS["residual"]["image"][:5]
    model(pictures)
    done = conversion.convert_with_report(model)
    assert str(done.signature) == (
        "serving_default(picture: float32 [?, 16, 16, 3]) -> "
        "(kind: float32 [?, 3], mean: float32 [?, 8])"
    )
    expected = model(pictures)
    for name, value in run(done.content, {"picture": pictures}).items():
        assert sqnr(np.array(expected[name]), value) > SQNR["none"]


def test_subclassed_model_of_unknown_inputs_is_refused(keras):
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, a, b):
            return self.dense(a) + self.dense(b)

    model = Two()
    with pytest.raises(TfoptError, match="no weights yet"):
        conversion.convert(model)
    model(np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32))
    if hasattr(model, "save_spec"):  # tf_keras remembers both
        names = conversion.convert_with_report(model).signature.inputs
        assert [info.name for info in names] == ["a", "b"]
    else:
        with pytest.raises(ValueError, match=r"1 of its 2 arguments \(\['a', 'b'\]\)"):
            conversion.convert(model)


def test_sequential_model_without_input_layer(keras):
    model = keras.Sequential([keras.layers.Dense(3, name="end")])
    model(np.zeros((5, 4), np.float32))
    done = conversion.convert_with_report(model)
    assert done.signature.inputs[0].shape == (None, 4)
    assert done.signature.outputs[0].name == "end"


def test_integer_inputs_of_embeddings(keras):
    layers = keras.layers
    inputs = layers.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(50, 32)(inputs)
    model = keras.Model(inputs, layers.Dense(4, name="out")(layers.Flatten()(x)))
    tokens = RNG.integers(0, 50, (20, 6)).astype(np.int32)
    done = conversion.convert_with_report(
        model, quantization="int8", representative_dataset=tokens
    )
    assert done.signature.inputs[0].dtype == np.int32
    assert "float32" not in done.report["constant_bytes"]
    # Random tokens stay inside every table.
    assert conversion.convert(model)


def test_functions_with_names_and_structure():
    @tf.function(
        input_signature=[
            {"b": tf.TensorSpec([None, 2]), "a": tf.TensorSpec([None, 2])},
            tf.TensorSpec([None, 2], name="c"),
        ]
    )
    def function(pair, c):
        return {"x": pair["a"] - pair["b"], "y": (pair["b"] * c, c)}

    inputs = {name: RNG.normal(size=(3, 2)).astype(np.float32) for name in "abc"}
    for source in (function, function.get_concrete_function()):
        done = conversion.convert_with_report(source)
        names = [info.name for info in done.signature.inputs]
        assert len(names) == 3
        values = dict(zip(names, inputs.values(), strict=True))
        found = run(done.content, values)
        np.testing.assert_allclose(found["x"], inputs["a"] - inputs["b"], atol=1e-6)
        np.testing.assert_allclose(found["y"], inputs["b"] * inputs["c"], atol=1e-6)
        np.testing.assert_array_equal(found["y_1"], inputs["c"])


def test_a_function_without_signature_is_refused():
    with pytest.raises(ValueError, match="input_signature"):
        conversion.convert(tf.function(lambda x: x + 1))


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(RNG.normal(size=(4, 3)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec([None, 4], name="x")] * 1)
    def forward(self, x):
        return {"y": x @ self.weight}

    @tf.function(input_signature=[tf.TensorSpec([None, 3], name="y")])
    def back(self, y):
        return {"x": y @ tf.transpose(self.weight)}


@pytest.fixture
def saved_model(tmp_path):
    module = Module()
    tf.saved_model.save(
        module,
        str(tmp_path / "saved"),
        signatures={"serving_default": module.forward, "back": module.back},
    )
    return module, tmp_path / "saved"


def test_saved_model_and_its_signatures(saved_model):
    module, path = saved_model
    x = RNG.normal(size=(5, 4)).astype(np.float32)
    content = conversion.convert(path)
    np.testing.assert_allclose(
        run(content, {"x": x})["y"], x @ module.weight.numpy(), atol=1e-5
    )
    back = conversion.convert_with_report(str(path), signature_key="back")
    assert str(back.signature) == "back(y: float32 [?, 3]) -> (x: float32 [?, 4])"
    with pytest.raises(ValueError, match=r"\['back', 'serving_default'\].*'other'"):
        conversion.convert(path, signature_key="other")


def test_keras_export_and_keras_file(keras, tmp_path):
    model = residual(keras)
    images = INPUTS["residual"]
    expected = predict(model, images)["probs"]
    model.save(tmp_path / "model.keras")
    content = conversion.convert(tmp_path / "model.keras")
    assert sqnr(expected, run(content, images)["probs"]) > SQNR["none"]
    with contextlib.redirect_stdout(io.StringIO()):
        model.export(str(tmp_path / "exported"))
    done = conversion.convert_with_report(tmp_path / "exported")
    assert done.signature.key == "serving_default"
    (name,) = (info.name for info in done.signature.inputs)
    (value,) = run(done.content, {name: images["image"]}).values()
    assert sqnr(expected, value) > SQNR["none"]


@pytest.mark.parametrize("source", [42, "no/such/folder", b"TFL3"])
def test_other_sources_are_refused(source):
    with pytest.raises((ValueError, TfoptError)) as raised:
        conversion.convert(source)
    assert "Received" in one_line(raised)


# Fake quantization


def trained(*, output=True, inner=True):
    """The MNIST network as QAT leaves it: fixed ranges, weights as plain floats."""
    kernel = RNG.normal(size=(3, 3, 1, 12)).astype(np.float32) / 3
    weights = RNG.normal(size=(2028, 10)).astype(np.float32) / 30

    def quantized(x, low, high):
        return tf.quantization.fake_quant_with_min_max_args(x, low, high)

    def function(image):
        x = quantized(tf.reshape(image, [-1, 28, 28, 1]), 0, 1)
        x = tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "VALID"))
        x = quantized(x, 0, 4) if inner else x
        x = tf.reshape(tf.nn.max_pool2d(x, 2, 2, "VALID"), [-1, 2028]) @ weights
        return {"logits": quantized(x, -8, 8) if output else x}

    return tf.function(function, input_signature=[tf.TensorSpec([None, 28, 28])])


def test_quantization_aware_model_needs_no_data():
    model = trained()
    done = conversion.convert_with_report(model, quantization="int8")
    assert done.report["float_operators"] == []
    assert done.report["calibration_examples"] == 0
    expected = model(IMAGES)["logits"].numpy()
    (info,) = done.signature.inputs
    actual = run(done.content, {info.name: IMAGES})["logits"]
    # 16/255 is one step of the output; kernels may round the other way.
    assert np.max(abs(actual - expected)) < 2.1 * 16 / 255
    assert np.mean(np.argmax(actual, -1) == np.argmax(expected, -1)) > 0.9


def test_random_inputs_cover_the_declared_range():
    source = trained().get_concrete_function()
    assert _freezing.input_ranges(_freezing.freeze(source)) == {0: (0.0, 1.0)}
    specs = {"image": tf.TensorSpec([None, 28, 28])}
    batch = _samples.random(specs, {0: (0.0, 1.0)}).batches[0]["image"]
    assert 0 <= batch.min() < 0.01 < 0.99 < batch.max() <= 1
    assert _samples.random(specs, {}).batches[0]["image"].min() < -1


@pytest.mark.parametrize("mode", ["none", "dynamic", "float16"])
def test_fake_quantization_in_other_modes_is_refused(mode):
    with pytest.raises(ValueError, match="trained for int8"):
        conversion.convert(trained(), quantization=mode)


def test_missing_ranges_are_reported_filled_or_accepted():
    model = trained(output=False)
    with pytest.raises(VerificationError, match=r"FULLY_CONNECTED.*logits") as raised:
        conversion.convert(model, quantization="int8")
    assert "allow_float_fallback" in one_line(raised)
    with pytest.raises(ConversionError, match="'logits', not the int8"):
        conversion.convert(
            model,
            quantization="int8",
            inference_output_type="int8",
            allow_float_fallback=True,
        )
    accepted = conversion.convert_with_report(
        model, quantization="int8", allow_float_fallback=True
    ).report
    assert any("FULLY_CONNECTED" in text for text in accepted["float_operators"])
    filled = conversion.convert_with_report(
        model, quantization="int8", representative_dataset=IMAGES
    ).report
    assert filled["float_operators"] == []


def test_existing_ranges_outrank_the_data():
    def step(content):
        file = tflite_file.read(content)
        return _verification.output_steps(file)["logits"]

    data = {"representative_dataset": IMAGES}
    with_data = conversion.convert(trained(), quantization="int8", **data)
    assert step(with_data) == pytest.approx(16 / 255, rel=1e-5)
    calibrated = conversion.convert(trained(output=False), quantization="int8", **data)
    assert step(calibrated) != pytest.approx(16 / 255, rel=0.05)


def test_calibrating_loops_is_refused_because_it_crashes(keras):
    # The converter leaves some unrolled layers in float, depending on the data.
    keras.utils.set_random_seed(0)
    inputs = keras.layers.Input((5, 3), batch_size=1)
    data = np.random.default_rng(0).normal(size=(8, 5, 3))

    def recurrent(**options):
        return keras.Model(inputs, keras.layers.LSTM(4, **options)(inputs))

    def convert(model):
        return conversion.convert_with_report(
            model, quantization="int8", representative_dataset=data
        )

    with pytest.raises(ConversionError, match=r"unroll=True.*dynamic"):
        convert(recurrent())
    assert convert(recurrent(unroll=True)).report["float_operators"] == []


# Verification


def corrupted(content, change):
    """The file with its largest constant changed in place."""
    model = schema.ModelT.InitFromPackedBuf(content)
    index = np.argmax([0 if b.data is None else b.data.size for b in model.buffers])
    old = model.buffers[index].data.tobytes()
    assert content.count(old) == 1
    new = np.frombuffer(old, np.int8).copy()
    change(new)
    return content.replace(old, new.tobytes())


def check(content, source, mode):
    """What `convert` does with a file that it has made."""
    file = tflite_file.read(content)
    signature = file.signatures[0]
    batches = _samples.random(
        {"image": tf.TensorSpec([None, 28, 28])}, {0: (0.0, 1.0)}
    ).merged(16, 16)
    expected = [{"logits": np.array(source(batch["image"]))} for batch in batches]
    return _verification.compare(
        expected,
        _verification.run(content, signature, batches),
        signature=signature,
        steps=_verification.output_steps(file),
        quantization=mode,
        min_sqnr=None,
    )


def flip_one_sign(data):
    # The sign bit of a float in the middle, large enough to matter.
    floats = data.view(np.float32)
    floats[np.argmax(abs(floats))] *= -1


def scramble(data):
    data[:] = data[::-1].copy()


@pytest.mark.parametrize(
    ("mode", "change"), [("none", flip_one_sign), ("int8", scramble)]
)
def test_a_corrupted_weight_is_found(keras, mode, change):
    model = digits(keras)
    content = conversion.convert(
        model, quantization=mode, representative_dataset=IMAGES
    )
    assert check(content, model, mode)["logits"].argmax_equal == 1
    with pytest.raises(VerificationError, match=r"'logits'.*signal-to-noise"):
        check(corrupted(content, change), model, mode)


def agreement(reference, value, **options):
    info = types.SimpleNamespace(name="y")
    options = {"quantization": "none", "min_sqnr": None, "steps": {}, **options}
    return _verification.compare(
        [{"y": np.array(reference)}],
        [{"y": np.array(value)}],
        signature=types.SimpleNamespace(outputs=[info]),
        **options,
    )["y"]


@pytest.mark.parametrize(
    ("reference", "value", "options"),
    [
        ([1.0, 2.0], [1.0, np.nan], {"min_sqnr": -1000.0}),
        ([np.nan, 2.0], [np.nan, 2.0], {"min_sqnr": -1000.0}),
        ([1.0, 2.0], [1.0, np.inf], {"min_sqnr": -1000.0}),
        ([1.0, np.inf], [1.0, -np.inf], {"min_sqnr": -1000.0}),
        ([0.0, 0.0], [0.0, 1e-3], {}),
        ([1.0, 2.0], [1.0, 2.001], {}),
        ([[1.0, 2.0]], [[1.0]], {}),
        ([1, 2, 3], [1, 2, 4], {}),
        ([1.0, 2.0], [1.0, 2.21], {"steps": {"y": 0.1}}),
        ([1.0, 2.0], [1.0, 2.00001], {"min_sqnr": 120.0}),
    ],
)
def test_disagreement_is_an_error(reference, value, options):
    with pytest.raises(VerificationError, match="'y'"):
        agreement(reference, value, **options)


@pytest.mark.parametrize(
    ("reference", "value", "options"),
    [
        ([1.0, 2.0], [1.0, 2.00001], {}),
        ([0.0, 0.0], [0.0, 0.0], {}),
        ([1.0, -np.inf], [1.0, -np.inf], {}),
        ([1.0, 2.0], [1.0, 2.19], {"steps": {"y": 0.1}}),
        ([1.0, 2.0], [1.0, 2.1], {"min_sqnr": 20.0}),
        ([1, 2, 3], [1, 2, 3], {}),
        ([True, False], [True, False], {}),
        ([b"a", b"b"], [b"a", b"b"], {}),
    ],
)
def test_agreement_is_not(reference, value, options):
    assert agreement(reference, value, **options)


def test_figures_of_the_comparison():
    found = agreement([[3.0, 4.0], [0.0, 5.0]], [[3.0, 4.0], [1.0, 5.0]], min_sqnr=0.0)
    assert found == _verification.Agreement(
        sqnr_db=pytest.approx(10 * np.log10(50)),
        max_error=1.0,
        mean_error=0.25,
        peak=5.0,
        equal=0.75,
        argmax_equal=1.0,
    )


def test_a_model_that_returns_nan_is_refused(keras):
    kernel = np.zeros((2028, 10), np.float32)
    kernel[7, 3] = np.nan
    with pytest.raises(
        VerificationError, match="itself returns NaN at output 'logits'"
    ):
        conversion.convert(digits(keras, kernel))
    assert conversion.convert(digits(keras, kernel), verify=False)


def test_min_sqnr_decides(keras):
    model = digits(keras)
    options = {"quantization": "dynamic", "representative_dataset": IMAGES}
    reached = conversion.convert_with_report(model, **options).report["verification"]
    limit = reached["outputs"]["logits"]["sqnr_db"]
    conversion.convert(model, **options, min_sqnr=limit - 0.1)
    with pytest.raises(VerificationError, match="at least"):
        conversion.convert(model, **options, min_sqnr=limit + 0.1)


def test_uninitialised_variables_and_custom_operators_are_refused():
    def file(*names, is_custom=False):
        operators = tuple(
            tflite_file.Operator(i, name, is_custom, (), (), None)
            for i, name in enumerate(names)
        )
        graph = tflite_file.Subgraph("", (), (), (), operators)
        return tflite_file.TfliteFile((graph,), (), {}, "")

    _verification.check_runnable(file("CONV_2D"))
    with pytest.raises(ConversionError, match=r"\['READ_VARIABLE', 'VAR_HANDLE'\]"):
        _verification.check_runnable(file("VAR_HANDLE", "READ_VARIABLE", "CONV_2D"))
    with pytest.raises(ConversionError, match="FlexErfinv"):
        _verification.check_runnable(file("FlexErfinv", is_custom=True))


# Representative data


def test_all_forms_of_data_give_the_same_file(keras):
    model, data = two_by_two(keras), INPUTS["two_by_two"]
    left, right = data["left"], data["right"]
    forms = [
        data,
        [
            {"left": left[:20], "right": right[:20]},
            {"left": left[20:], "right": right[20:]},
        ],
        [(right, left)],
        lambda: ([right[i : i + 1], left[i : i + 1]] for i in range(48)),
        ((right[i], left[i]) for i in range(48)),
        tf.data.Dataset.from_tensor_slices((right, left)),
        tf.data.Dataset.from_tensor_slices(data).batch(7),
    ]
    contents = {
        conversion.convert(model, quantization="int8", representative_dataset=form)
        for form in forms
    }
    assert len(contents) == 1
    other = {"left": left * 2, "right": right}
    assert (
        conversion.convert(model, quantization="int8", representative_dataset=other)
        not in contents
    )


def test_endless_data_ends(keras):
    def endless():
        while True:
            yield IMAGES[0]

    report = conversion.convert_with_report(
        digits(keras),
        quantization="int8",
        representative_dataset=endless,
        calibration_examples=5,
    ).report
    assert report["calibration_examples"] == 5


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ([], "empty"),
        (np.zeros((0, 28, 28), np.float32), "empty"),
        (3, "Expected an array"),
        ([(IMAGES, np.zeros(48))], "labels don't belong here.*item 0 with 2"),
        (np.zeros((4, 27, 28), np.float32), r"\(\?, 28, 28\).*\(1, 27, 28\)"),
        ({"picture": IMAGES}, r"the inputs \['image'\].*\['picture'\]"),
        (np.full((4, 28, 28), np.nan), "item 0, input 'image' with NaN"),
        (np.full((4, 28, 28), "x"), "float32 values.*<U1"),
    ],
)
def test_data_that_does_not_fit(keras, data, why):
    with pytest.raises(ValueError, match=why) as raised:
        conversion.convert(
            digits(keras), quantization="int8", representative_dataset=data
        )
    one_line(raised)


def test_arrays_of_different_lengths():
    specs = {"a": tf.TensorSpec([None]), "b": tf.TensorSpec([None])}
    with pytest.raises(ValueError, match="'a': 2, 'b': 3"):
        _samples.representative({"a": np.zeros(2), "b": np.zeros(3)}, specs, limit=9)


# Files and errors


def test_stripped_file_is_smaller_and_equal(keras):
    model = digits(keras)
    options = {"quantization": "int8", "representative_dataset": IMAGES}
    plain = conversion.convert_with_report(model, **options)
    stripped = conversion.convert_with_report(model, **options, strip_debug_info=True)
    np.testing.assert_array_equal(
        run(plain.content, {"image": IMAGES})["logits"],
        run(stripped.content, {"image": IMAGES})["logits"],
    )
    assert stripped.signature == plain.signature
    sizes = [artifacts.gzip_size(done.content) for done in (plain, stripped)]
    assert sizes[1] < sizes[0] - 300
    assert stripped.report["bytes"] == len(stripped.content)
    json.dumps(stripped.report, allow_nan=False)


def test_report_is_plain_json_even_for_equal_outputs():
    function = tf.function(lambda x: x + 1, input_signature=[spec(None)])
    report = conversion.convert_with_report(function).report
    assert report["verification"]["outputs"]["output_0"]["sqnr_db"] is None
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize("mode", MODES)
def test_same_model_gives_same_bytes(keras, mode):
    model = residual(keras)
    options = {
        "quantization": mode,
        "representative_dataset": INPUTS["residual"]["image"],
    }
    assert conversion.convert(model, **options) == conversion.convert(model, **options)


def test_small_and_depthwise_weights_are_noted(keras):
    report = conversion.convert_with_report(residual(keras), quantization="dynamic")
    assert "No weight was stored as int8" in report.report["notes"][0]
    layers = keras.layers
    inputs = layers.Input((8, 8, 256))
    model = keras.Model(inputs, layers.DepthwiseConv2D(3)(inputs))
    report = conversion.convert_with_report(model, quantization="dynamic").report
    assert "Depthwise" in report["notes"][0]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"quantization": "int4"}, "quantization='int4'"),
        ({"quantization": "int8"}, "must see typical inputs"),
        ({"inference_input_type": "int8"}, 'need quantization="int8"'),
        ({"inference_output_type": "int32"}, "inference_output_type='int32'"),
        ({"calibration_examples": 0}, "calibration_examples=0"),
    ],
)
def test_bad_arguments(keras, options, why):
    with pytest.raises(ValueError, match=why) as raised:
        conversion.convert(digits(keras), **options)
    one_line(raised)


def one_line(raised):
    text = str(raised.value)
    assert "\n" not in text
    assert len(text) < 900
    return text


def spec(*shape, dtype=tf.float32):
    return tf.TensorSpec(shape, dtype, "x")


@pytest.mark.parametrize(
    ("function", "signature", "why"),
    [
        (tf.linalg.det, spec(None, 3, 3), "tf.MatrixDeterminant.*no kernel for it"),
        (tf.strings.upper, spec(None, dtype=tf.string), "tf.StringUpper"),
        (
            lambda x: tf.nn.conv2d(
                tf.cast(x, tf.float16), np.ones((3, 3, 1, 2)), 1, "SAME"
            ),
            spec(None, 8, 8, 1),
            "tf.Conv2D.*f16.*half precision",
        ),
    ],
)
def test_what_tflite_lacks_is_named(capfd, function, signature, why):
    function = tf.function(function, input_signature=[signature])
    with pytest.raises(ConversionError, match=why) as raised:
        conversion.convert(function)
    one_line(raised)
    assert capfd.readouterr() == ("", "")


def test_recurrent_layers_get_advice(keras):
    layers = keras.layers
    inputs = layers.Input((5, 3))
    with pytest.raises(ConversionError, match=r"TensorListReserve.*lstm.*unroll=True"):
        conversion.convert(keras.Model(inputs, layers.LSTM(4)(inputs)))
    unrolled = keras.Model(inputs, layers.LSTM(4, unroll=True)(inputs))
    assert conversion.convert_with_report(unrolled).signature.inputs[0].shape[0] is None


def test_unquantizable_operators_are_named():
    function = tf.function(lambda x: tf.cumsum(x * 2), input_signature=[spec(None, 5)])
    with pytest.raises(VerificationError, match="CUMSUM"):
        conversion.convert(
            function, quantization="int8", representative_dataset=np.eye(5)
        )


@pytest.mark.parametrize(
    ("function", "signature", "why"),
    [
        (lambda x: x * 2, tf.TensorSpec(None), "how many axes"),
        (lambda x: {}, spec(None), "returns nothing"),
        (lambda x: x.flat_values, tf.RaggedTensorSpec([None, None]), "ragged"),
        (lambda x: tf.reshape(x, [3]) + "a", spec(None), "Cannot trace"),
    ],
)
def test_functions_that_tflite_cannot_take(function, signature, why):
    function = tf.function(function, input_signature=[signature])
    with pytest.raises(ConversionError, match=why) as raised:
        conversion.convert(function)
    one_line(raised)


def test_scalars_constants_and_inputs_as_outputs():
    def function(x):
        return x, x, tf.constant(3.0), x * 2

    for shape in ((), (None, 3)):
        traced = tf.function(function, input_signature=[spec(*shape)])
        done = conversion.convert_with_report(traced)
        assert len(done.signature.outputs) == 4


def test_models_that_change_variables_are_refused():
    counter = tf.Variable([0.0])

    @tf.function(input_signature=[spec(None)])
    def function(x):
        counter.assign_add([1.0])
        return x + counter

    with pytest.raises(ConversionError, match="AssignAddVariableOp") as raised:
        conversion.convert(function)
    one_line(raised)


def test_a_model_that_rejects_random_inputs():
    table = tf.constant(np.eye(3, dtype=np.float32))

    @tf.function(input_signature=[spec(None, dtype=tf.int32)])
    def function(x):
        with tf.control_dependencies([tf.debugging.assert_greater(x, 1)]):
            return tf.gather(table, x)

    with pytest.raises(VerificationError, match="itself fails on the random inputs"):
        conversion.convert(function)


def test_explanations_without_structure():
    assert _errors.explain(RuntimeError("first.\nsecond")) == "first"
    assert _errors.explain(ValueError("")) == "no reason given"


# Noise


def test_conversion_is_silent(keras, capfd, caplog):
    model = digits(keras)
    capfd.readouterr()
    for mode in MODES:
        conversion.convert(model, quantization=mode, representative_dataset=IMAGES)
    conversion.convert(trained(), quantization="int8")
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_words_of_other_threads_pass(capfd):
    with _noise.contained():
        os.write(2, b"W0000 00:00:1795319192.474520    7586 x.cc:1] chatter\n")
        speaker = threading.Thread(target=os.write, args=(2, b"important\n"))
        speaker.start()
        speaker.join()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "important\nafter\n"


def test_an_error_inside_leaves_stderr_as_it_was(capfd):
    with pytest.raises(KeyError), _noise.contained():
        raise KeyError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_the_reason_of_a_crash_is_not_swallowed():
    path = pathlib.Path(importlib.util.find_spec(_noise.__name__).origin)
    code = f"""
import importlib.util, os
spec = importlib.util.spec_from_file_location("noise", {str(path)!r})
noise = importlib.util.module_from_spec(spec)
spec.loader.exec_module(noise)
with noise.contained():
    os.write(2, b"F0000 00:00:1.1 1 x.cc:1] Check failed\\n")
    os.abort()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert b"Check failed" in done.stderr
