"""keep_float, equalize and correct_bias: refined quantization after training."""

import inspect

import numpy as np
import ptq_samples as samples
import pytest
import tensorflow as tf
from conversion_samples import run, trained
from ptq_samples import IMAGES, network

from tfopt import conversion, tflite_file
from tfopt.conversion import (
    _bias_correction,
    _constants,
    _equalization,
    _lowering,
    _noise,
    _operators,
    _pipeline,
    _selective,
    _tensors,
)
from tfopt.types import ConversionError, VerificationError

pytestmark = pytest.mark.both_keras

INT8 = {"quantization": "int8", "representative_dataset": IMAGES}
_OPTIONS = _lowering.Options("int8", "float32", "float32", allow_float=False)


def types(content):
    """Type of the data that each operator makes, by kind."""
    graph = tflite_file.read(content).subgraphs[0]
    found = {}
    for operator in graph.operators:
        made = graph.tensors[operator.outputs[0]].type
        found.setdefault(operator.name, []).append(made)
    return found


@pytest.fixture(scope="module")
def model():
    return network(tf.keras)


@pytest.fixture(scope="module")
def floats(model):
    return samples.calibrated(model)


# Names


def test_operators_have_the_names_of_their_layers(floats):
    _, operators = floats
    assert [(x.kind, x.layer) for x in operators if x.kind != "RESHAPE"] == [
        ("CONV_2D", "stem"),
        ("DEPTHWISE_CONV_2D", "dw"),
        ("CONV_2D", "pw"),
        ("ADD", "add"),
        ("CONV_2D", "side"),
        ("ADD", "add_1"),
        ("MEAN", "pool"),
        *[("FULLY_CONNECTED", "twice")] * 2,
        ("FULLY_CONNECTED", "logits"),
    ]
    assert operators[0].parts[-1] == "bound" or "bound" in operators[0].parts
    macs = {x.layer: x.macs for x in operators}
    assert macs["stem"] == 8 * 8 * 8 * 9
    assert macs["dw"] == 6 * 6 * 8 * 9
    assert macs["logits"] == 8 * 4
    assert macs["add"] == 0


def test_names_of_nested_models(keras):
    inner = network(keras, name="inner")
    outer = keras.Sequential([keras.Input((10, 10, 1)), inner, keras.layers.ReLU()])
    _, operators = samples.calibrated(outer)
    assert operators[0].layer == "inner/stem"
    assert operators[-1].layer == "inner/logits"
    chosen = _operators.select(operators, "inner", argument="keep_float")
    assert len(chosen) == len(operators)


def test_functions_inside_a_layer_belong_to_it(keras):
    class Looped(keras.layers.Layer):
        def call(self, x):
            def step(i, y):
                return i + 1, tf.nn.relu(y) * 0.5

            inner = tf.function(lambda y: tf.cos(y))
            return inner(tf.while_loop(lambda i, y: i < 3, step, (0, x))[1])

    inputs = keras.Input((8,))
    x = Looped(name="looped")(keras.layers.Dense(8, name="first")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, name="last")(x))
    with _noise.contained():
        found = samples.writer(model, EYE[:, :8])
        options = _lowering.Options("none", "float32", "float32", allow_float=False)
        operators = found.operators(_lowering.lower(found._frozen, options))
    assert [(x.kind, x.layer) for x in operators] == [
        ("FULLY_CONNECTED", "first"),
        ("WHILE", "looped"),
        ("COS", "looped"),
        ("FULLY_CONNECTED", "last"),
    ]


def test_nodes_of_a_saved_model(keras, model, tmp_path):
    kernels = [tf.Variable(model.get_layer("pw").get_weights()[0]) for _ in range(2)]
    module = tf.Module()
    module.kernels = kernels
    stem = tf.constant(model.get_layer("stem").get_weights()[0])

    @tf.function(input_signature=[tf.TensorSpec([None, 10, 10, 1])])
    def call(image):
        x = tf.nn.relu(tf.nn.conv2d(image, stem, 1, "VALID", name="stem"))
        with tf.name_scope("head"):
            x = tf.nn.relu(tf.nn.conv2d(x, kernels[0], 1, "VALID"))
            return {"y": tf.nn.conv2d(x, kernels[1], 1, "VALID", name="last")}

    tf.saved_model.save(module, str(tmp_path), signatures=call)
    _, operators = samples.calibrated(str(tmp_path))
    assert [x.layer for x in operators] == ["stem", "head/Conv2D", "head/last"]
    for pattern, floats in (("stem", 1), ("head", 2), ("head/last", 1)):
        done = conversion.convert_with_report(str(tmp_path), **INT8, keep_float=pattern)
        assert len(done.report["kept_float"]["operators"]) == floats
        assert types(done.content)["CONV_2D"].count("FLOAT32") == floats


# keep_float


def test_the_steps_make_the_converters_own_file(model):
    with _noise.contained():
        found = samples.writer(model)
        whole = _lowering.lower(found._frozen, _OPTIONS, found._calibration)
        steps = _lowering.quantize(found.calibrated, _OPTIONS)
        # But for the order of buffers and what the converter notes about itself.
        contents = [
            tflite_file.rewrite(content, strip_debug_info=True)
            for content in (whole, steps)
        ]
        assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("keep_float", "layers"),
    [
        ("dw", ["dw"]),
        (["tw*", "add"], ["add", "twice"]),
        ("ADD", ["add", "add_1"]),
        (["logits"], ["logits"]),
        ("bound", ["stem"]),
    ],
)
def test_listed_layers_stay_float_and_all_others_do_not(model, keep_float, layers):
    done = conversion.convert_with_report(model, **INT8, keep_float=keep_float)
    kept = done.report["kept_float"]
    assert kept["layers"] == layers
    assert done.report["float_operators"] == []
    graph = tflite_file.read(done.content).subgraphs[0]
    computing = [x for x in graph.operators if "QUANTIZE" not in x.name]
    _, operators = samples.calibrated(model)
    expected = [x.layer in layers for x in operators]
    assert [graph.tensors[x.outputs[0]].type == "FLOAT32" for x in computing] == (
        expected
    )
    assert 0 <= kept["macs_share"] < 1
    total = sum(x.constant_bytes for x in operators)
    share = sum(x.constant_bytes for x in operators if x.layer in layers) / total
    assert kept["bytes_share"] == pytest.approx(share)


def test_integer_inputs_and_outputs_without_debug_names(model):
    done = conversion.convert_with_report(
        model,
        **INT8,
        keep_float=["stem", "logits"],
        inference_input_type="int8",
        inference_output_type="int8",
        strip_debug_info=True,
    )
    assert done.signature.inputs[0].dtype == done.signature.outputs[0].dtype == np.int8
    assert types(done.content)["FULLY_CONNECTED"] == ["INT8", "INT8", "FLOAT32"]


def test_other_floats_are_still_refused(keras):
    inputs = keras.Input((8,), name="x")
    x = keras.layers.Dense(8, name="first")(inputs)
    x = keras.layers.Lambda(tf.sin, name="sine", output_shape=(8,))(x)
    x = keras.layers.Lambda(tf.math.erf, name="none", output_shape=(8,))(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="last")(x))
    data = {"quantization": "int8", "representative_dataset": np.eye(8)}
    with pytest.raises((VerificationError, ConversionError)):
        conversion.convert(model, **data, keep_float="first")


def test_a_pattern_that_matches_nothing(model):
    with pytest.raises(ValueError, match=r"'stem', 'dw'.*keep_float='nothing'"):
        conversion.convert(model, **INT8, keep_float=["dw", "nothing"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_float": "dw"}, "keep_float=.*quantization='none'"),
        ({"quantization": "int16x8", "keep_float": "dw"}, "keep_float="),
        ({"quantization": "dynamic", "equalize": True}, "equalize=True"),
        ({"correct_bias": True}, "correct_bias=True"),
        ({**INT8, "keep_float": 3}, "keep_float=3"),
    ],
)
def test_wrong_modes(model, options, message):
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        conversion.convert(model, **options)


def test_a_model_trained_for_int8_says_itself_what_is_float():
    with pytest.raises(ValueError, match=r"QuantizeAware\(exclude="):
        conversion.convert(trained(), quantization="int8", keep_float="MatMul")


@pytest.mark.parametrize("size", [64, 6])
def test_dynamic_leaves_layers_in_float(keras, size):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((40,), name="x"),
            layers.Dense(64, name="first"),
            layers.Dense(size, name="second", activation="relu"),
            layers.Dense(40, name="third"),
        ]
    )
    done = conversion.convert_with_report(
        model, quantization="dynamic", keep_float="first", representative_dataset=EYE
    )
    graph = tflite_file.read(done.content).subgraphs[0]
    weights = [graph.tensors[x.inputs[1]] for x in graph.operators]
    assert weights[0].type == "FLOAT32"
    assert np.array_equal(weights[0].values().T, model.layers[0].get_weights()[0])
    assert ("INT8" in {x.type for x in weights}) == (size == 64)
    plain = conversion.convert_with_report(
        model, quantization="dynamic", representative_dataset=EYE
    )
    ratios = [
        x.report["verification"]["outputs"]["third"]["sqnr_db"] or np.inf
        for x in (done, plain)
    ]
    assert ratios[0] > ratios[1]


EYE = np.eye(40, dtype=np.float32)


def test_float16_leaves_layers_in_float32(keras):
    inputs = keras.Input((40,), name="x")
    shared = keras.layers.Dense(40, name="shared")
    other = keras.layers.Dense(64, name="other")
    small = keras.layers.Rescaling(1.0, offset=1e-10, name="small")
    power, log = (
        keras.layers.Lambda(f, name=f.__name__) for f in (tf.square, tf.math.log)
    )
    x = other(shared(shared(inputs)))
    model = keras.Model(inputs, log(small(power(x))))
    x = np.concatenate([EYE, np.zeros_like(EYE)])
    lost, kept = (
        conversion.convert_with_report(
            model,
            quantization="float16",
            representative_dataset=EYE,
            keep_float=names,
        )
        for names in (["other"], ["small", "shared"])
    )
    # 1e-10 is 0 in float16, where the logarithm of nothing is infinite.
    found = [next(iter(run(done.content, {"x": x}).values())) for done in (lost, kept)]
    assert np.isinf(found[0][40:]).all()
    assert np.isclose(found[1][40:], np.log(1e-10)).all()
    sizes = [done.report["constant_bytes"] for done in (lost, kept)]
    # The layer that is called twice has one kernel.
    assert sizes[0]["float32"] >= 4 * 40 * 64
    assert sizes[0]["float16"] < 2 * 40 * 41 + 200
    assert 4 * 40 * 40 <= sizes[1]["float32"] < 4 * 40 * 45
    assert sizes[1]["float16"] <= 2 * 40 * 64 + 200
    assert kept.report["kept_float"]["layers"] == ["shared", "small"]


def test_dynamic_depthwise_in_float_needs_no_warning(keras):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 128)),
            layers.DepthwiseConv2D(3, name="dw"),
            layers.Conv2D(16, 1, name="pw"),
        ]
    )
    reports = [
        conversion.convert_with_report(model, quantization="dynamic", **options).report
        for options in ({}, {"keep_float": "DEPTHWISE_CONV_2D"})
    ]
    assert any("keep_float" in note for note in reports[0]["notes"])
    assert not reports[1]["notes"]
    assert reports[1]["kept_float"]["layers"] == ["dw"]
    assert reports[1]["constant_bytes"]["int8"] == 128 * 16


def test_loops_cannot_stay_float_alone():
    loop = _operators.LayerOperator(0, "WHILE", "gru", ("gru",), ("x",), 0, 0)
    with pytest.raises(ConversionError, match=r"keep_float.*WHILE of 'gru'"):
        _selective.restore(b"", b"", [loop])


# Equalization


def predicted(model):
    return model(tf.constant(IMAGES)).numpy()


def interpreted(content):
    """Outputs of a file without signature."""
    return np.concatenate(
        [
            read(tflite_file.read(content).subgraphs[0].outputs[0])
            for read in _tensors.runs(content, [{"image": IMAGES}])
        ]
    )


def test_equalization_changes_no_output_of_the_float_model(keras):
    model = network(keras, spread=5)
    content, operators = samples.calibrated(model)
    equalized, report = _equalization.equalize(content, operators)
    expected = interpreted(content)
    assert np.allclose(expected, predicted(model), atol=1e-5)
    assert np.allclose(interpreted(equalized), expected, atol=1e-5)
    assert [pair[:2] for pair in report["pairs"]] == [["stem", "dw"], ["dw", "pw"]]
    assert report["pairs"][0][2] > 2
    assert "twice - twice" in report["skipped"]
    broken = _constants.Constants(equalized)
    broken.set(1, 1, broken.value(1, 1) * np.float32(1.01))
    assert not np.allclose(interpreted(broken.pack()), expected, atol=1e-5)


def test_equalized_channels_have_equal_ranges(keras):
    content, operators = samples.calibrated(network(keras, spread=5))
    equalized, _ = _equalization.equalize(content, operators)
    weights = {
        x.layer: [
            _constants.Constants(file).value(x.index, 1)
            for file in (content, equalized)
        ]
        for x in operators[:3]
    }

    def ranges(layer, axes, which):
        return np.abs(weights[layer][which]).max(axes)

    # Filters are [out, height, width, in], depthwise ones [1, height, width, out].
    stem, dw, pw = (1, 2, 3), (0, 1, 2), (0, 1, 2)
    assert np.allclose(ranges("stem", stem, 1), ranges("dw", dw, 1), rtol=5e-3)
    assert np.allclose(ranges("dw", dw, 1), ranges("pw", pw, 1), rtol=5e-3)
    assert not np.allclose(ranges("dw", dw, 0), ranges("pw", pw, 0), rtol=0.5)
    # The product of all factors along the three layers is what it was.
    before, after = (
        ranges("stem", stem, i) * ranges("dw", dw, i) * ranges("pw", pw, i)
        for i in (0, 1)
    )
    assert np.allclose(before, after, rtol=1e-4)


def test_relu6_is_skipped_where_it_reaches_its_bound(keras):
    content, operators = samples.calibrated(network(keras, activation="relu6"))
    _, report = _equalization.equalize(content, operators)
    assert ["stem", "dw"] in [pair[:2] for pair in report["pairs"]]
    model = network(keras, activation="relu6")
    kernel, bias = model.get_layer("stem").get_weights()
    model.get_layer("stem").set_weights([kernel * 50, bias])
    content, operators = samples.calibrated(model)
    equalized, report = _equalization.equalize(content, operators)
    assert "reaches its bound" in report["skipped"]["stem - dw"]
    assert np.allclose(interpreted(equalized), interpreted(content), atol=1e-5)


def test_equalization_saves_a_fragile_model(keras):
    model = network(keras, spread=6)
    plain, refined = (
        conversion.convert_with_report(model, **INT8, min_sqnr=-99, equalize=on)
        for on in (False, True)
    )
    ratios = [
        x.report["verification"]["outputs"]["logits"]["sqnr_db"]
        for x in (plain, refined)
    ]
    assert ratios[1] > ratios[0] + 6
    assert plain.report["equalization"] is None


# Bias correction


def test_bias_correction_removes_the_mean_error(keras):
    model = network(keras)
    with _noise.contained():
        found = samples.writer(model)
        floats, batches = found.calibrated, found._calibration
        operators = found.operators(floats)
        content = _lowering.quantize(floats, _OPTIONS)
        # A systematic error, as rounding of few weights makes it.
        last = tflite_file.read(content).subgraphs[0].operators[-2]
        biased = _bias_correction._shifted(content, last, np.full(4, -0.5))
        corrected, report = _bias_correction.correct(floats, biased, operators, batches)
    wanted = interpreted(floats).mean(0)
    errors = [np.abs(interpreted(x).mean(0) - wanted) for x in (biased, corrected)]
    step = tflite_file.read(content).subgraphs[0].tensors[last.outputs[0]].scale[0]
    assert errors[0].min() > 0.4
    assert errors[1].max() < step
    assert set(report["layers"]) >= {"stem", "dw", "pw"}
    assert report["layers"]["logits"] > 0.05


@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"])
def test_linear_operators_as_they_are_computed(floats, kind):
    content, operators = floats
    graph = tflite_file.read(content).subgraphs[0]
    index = next(x.index for x in operators if x.kind == kind)
    operator = graph.operators[index]
    for read in _tensors.runs(content, [{"image": IMAGES}]):
        data, made = read(operator.inputs[0]), read(operator.outputs[0])
    rows = _bias_correction._rows(operator, graph.tensors, data)
    assert np.allclose(np.maximum(rows, 0), made.reshape(rows.shape), atol=1e-5)


def test_both_with_a_layer_in_float(model):
    done = conversion.convert_with_report(
        model, **INT8, equalize=True, correct_bias=True, keep_float="stem"
    )
    assert done.report["bias_correction"]["skipped"]["stem"] == "it stays float"
    assert "dw" in done.report["bias_correction"]["layers"]
    assert types(done.content)["CONV_2D"] == ["FLOAT32", "INT8", "INT8"]
    outputs = run(done.content, {"image": IMAGES})
    assert samples.sqnr(predicted(model), outputs["logits"]) > 20


# The two public functions


def test_one_set_of_options(model):
    fields = set(_pipeline.Request.__dataclass_fields__)
    given = set(inspect.signature(conversion.convert).parameters)
    assert fields == given - {"model", "safe_mode"}
    with pytest.raises(TypeError, match="quantisation"):
        conversion.convert_with_report(model, quantisation="int8")
