import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from conversion_samples import (
    IMAGES,
    INPUTS,
    MODES,
    NETWORKS,
    SQNR,
    digits,
    one_line,
    predict,
    residual,
    run,
    spec,
    sqnr,
    trained,
    two_by_two,
)

from tfopt import artifacts, conversion, tflite_file
from tfopt.conversion import _noise

pytestmark = pytest.mark.both_keras


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
        ({"quantization": "int3"}, "quantization='int3'"),
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
