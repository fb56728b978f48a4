import contextlib
import io

import numpy as np
import pytest
import tensorflow as tf
from conversion_samples import (
    INPUTS,
    RNG,
    SQNR,
    one_line,
    predict,
    residual,
    run,
    spec,
    sqnr,
)

from tfopt import conversion
from tfopt.conversion import _errors
from tfopt.types import ConversionError, TfoptError, VerificationError

pytestmark = pytest.mark.both_keras


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


# What cannot be converted


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


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_recurrent_layers(keras, kind):
    """A free batch size is what the converter cannot take; of int8, any loop."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = layers.Input((5, 3), name="x")
    layer = getattr(layers, kind)(4, name="steps")
    if kind == "GRU":
        layer = layers.Bidirectional(layer)
    model = keras.Model(inputs, layer(inputs))
    x = RNG.normal(size=(16, 5, 3)).astype(np.float32)
    expected = np.array(model(x))
    done = conversion.convert_with_report(model)
    assert done.signature.inputs[0].shape == (1, 5, 3)
    assert "batch size is fixed at 1" in done.report["notes"][0]
    (found,) = run(done.content, {"x": x[:1]}).values()
    np.testing.assert_allclose(found, expected[:1], atol=1e-5)
    # A generator can be read once only.
    done = conversion.convert_with_report(
        model,
        quantization="int8",
        representative_dataset=(row for row in x),
        allow_float_fallback=True,  # a Split stays float in some, by chance
    )
    assert done.signature.inputs[0].shape == (None, 5, 3)
    assert "unrolled" in done.report["notes"][0]
    assert "WHILE" not in done.report["operators"]
    (found,) = run(done.content, {"x": x}).values()
    assert sqnr(expected, found) > 15
    forward = getattr(layer, "forward_layer", layer)
    assert forward.unroll is False


def test_recurrent_layers_that_cannot_be_unrolled(keras):
    layers = keras.layers
    inputs = layers.Input((None, 3), name="x")
    model = keras.Model(inputs, layers.LSTM(4)(inputs))
    with pytest.raises(ConversionError, match=r"cannot calibrate loops.*unroll=True"):
        conversion.convert(
            model, quantization="int8", representative_dataset=np.ones((4, 5, 3))
        )
    done = conversion.convert_with_report(
        model, quantization="float16", input_shapes={"x": [2, 7, 3]}
    )
    assert done.signature.inputs[0].shape == (2, 7, 3)
    assert not any("batch" in note for note in done.report["notes"])


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
