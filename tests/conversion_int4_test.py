"""Weights of 4 bits after training, by the optional quantizer of Google."""

import importlib.util

import pytest
from conversion_samples import INPUTS, NETWORKS, one_line, predict, residual, run, sqnr

from tfopt import conversion, tflite_file
from tfopt.types import ConversionError

pytestmark = [
    pytest.mark.both_keras,
    pytest.mark.skipif(
        importlib.util.find_spec("litert_quantizer") is None,
        reason="needs the extra [litert-quantizer]",
    ),
]


def weight_types(content):
    """Kind of operator -> types of its weights."""
    graph = tflite_file.read(content).subgraphs[0]
    return {
        operator.name: graph.tensors[operator.inputs[1]].type
        for operator in graph.operators
        if operator.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_4_bits(keras, name):
    model, inputs = NETWORKS[name](keras), INPUTS[name]
    done = conversion.convert_with_report(
        model, quantization="int4", representative_dataset=inputs
    )
    assert "int4" in done.report["constant_bytes"]
    expected, found = predict(model, inputs), run(done.content, inputs)
    for output, value in expected.items():
        assert sqnr(value, found[output]) > 6
    wide = conversion.convert(model, quantization="dynamic")
    for output, value in run(wide, inputs).items():
        assert sqnr(expected[output], value) > sqnr(expected[output], found[output])
    again = conversion.convert(
        model, quantization="int4", representative_dataset=inputs
    )
    assert again == done.content


def test_mixed_precision(keras):
    done = conversion.convert_with_report(
        residual(keras),
        quantization="int4",
        keep_float="DEPTHWISE_CONV_2D",
        keep_int8="probs",
        representative_dataset=INPUTS["residual"],
    )
    types = weight_types(done.content)
    assert types["DEPTHWISE_CONV_2D"] == "FLOAT32"
    assert types["FULLY_CONNECTED"] == "INT8"
    assert types["CONV_2D"] == "INT4"
    assert "probs" in str(done.report["kept_int8"]["layers"])
    with pytest.raises(ValueError, match=r"keep_int8.*matches no layer"):
        conversion.convert(residual(keras), quantization="int4", keep_int8="nothing")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"quantization": "int4", "sparse": True}, "sparse"),
        ({"quantization": "int8", "keep_int8": "probs"}, "keep_int8"),
        ({"quantization": "int4", "equalize": True}, "equalize"),
        ({"quantization": "int4", "inference_input_type": "int8"}, "input_type"),
    ],
)
def test_what_does_not_go_together(keras, options, why):
    with pytest.raises(ValueError, match=why) as raised:
        conversion.convert(residual(keras), **options)
    one_line(raised)


def test_without_the_quantizer(keras, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConversionError, match=r"tfopt\[litert-quantizer\]") as raised:
        conversion.convert(residual(keras), quantization="int4")
    one_line(raised)
