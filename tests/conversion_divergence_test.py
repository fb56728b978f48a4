"""The first layer that diverges, where a file isn't what the model was trained for."""

import dataclasses

import numpy as np
import pytest
import quantize_aware_samples as samples
import tensorflow as tf

from tfopt import tflite_file
from tfopt.conversion import (
    _divergence,
    _freezing,
    _pipeline,
    _samples,
    _sources,
    _verification,
    convert,
)
from tfopt.methods.quantize_aware import QuantizeAware
from tfopt.types import VerificationError

pytestmark = pytest.mark.both_keras

IMAGES = np.random.default_rng(0).random((32, 14, 14, 1), np.float32)
REQUEST = _pipeline.Request(
    quantization="int8",
    representative_dataset=None,
    calibration_examples=32,
    inference_input_type="float32",
    inference_output_type="float32",
    keep_float=None,
    equalize=False,
    correct_bias=False,
    signature_key=None,
    strip_debug_info=False,
    allow_float_fallback=False,
    sparse=False,
    verify=True,
    min_sqnr=None,
)


@dataclasses.dataclass
class Trained:
    """A finalized model, what conversion makes of it, and its file."""

    model: object
    source: object
    frozen: object
    content: bytes

    @property
    def batches(self):
        return [{self.source.input_names[0]: IMAGES}]


@pytest.fixture(scope="module", params=["quickstart", "mobile", "nested"])
def trained(request):
    keras = tf.keras
    keras.utils.set_random_seed(0)
    method = QuantizeAware(representative_dataset=IMAGES)
    model = getattr(samples, request.param)(keras)
    final = method.finalize(method.prepare(model))
    source = _sources.open_source(final, None)
    frozen = _freezing.freeze(source.function)
    return Trained(final, source, frozen, samples.to_tflite(final))


def tampered(content, kind, change):
    """Returns a file in which `change` was applied to a tensor of the first `kind`."""
    model = tflite_file.unpack(content)
    operators = tflite_file.read(content).subgraphs[0].operators
    operator = next(op for op in operators if op.name == kind)
    change(model, model.subgraphs[0], operator)
    return tflite_file.pack(model, len(content))


def negate_weights(model, graph, operator):
    buffer = model.buffers[graph.tensors[operator.inputs[1]].buffer]
    codes = np.array(buffer.data, np.uint8).view(np.int8)
    buffer.data = (-codes).view(np.uint8)


def halve_output_range(model, graph, operator):
    quantization = graph.tensors[operator.outputs[0]].quantization
    quantization.scale = np.array(quantization.scale, np.float32) / 2


def divergence(trained, content):
    return _divergence.find(
        trained.frozen, content, trained.batches, trained.source.layers
    )


def test_every_rounded_tensor_is_found_and_agrees(trained):
    graph = tflite_file.read(trained.content).subgraphs[0]
    pairs = _divergence._pairs(trained.frozen, graph)
    rounded = [
        op
        for op in trained.frozen.graph.get_operations()
        if op.type == "FakeQuantWithMinMaxArgs"
    ]
    assert len(pairs) == len(rounded) > 2
    assert divergence(trained, trained.content) is None


@pytest.mark.parametrize("change", [negate_weights, halve_output_range])
def test_a_damaged_kernel_is_named(trained, change):
    content = tampered(trained.content, "CONV_2D", change)
    found = divergence(trained, content)
    assert found is not None
    assert found.operator == "CONV_2D"
    convolutions = [
        x.name for x in trained.model.layers if type(x).__name__ == "Conv2D"
    ]
    assert convolutions[0] in found.layers
    last = tampered(trained.content, "FULLY_CONNECTED", change)
    named = divergence(trained, last)
    assert named.operator == "FULLY_CONNECTED"  # and not what comes before


# Untrained, the probabilities of `mobile` are those of any weights.
@pytest.mark.parametrize("trained", ["quickstart", "nested"], indirect=True)
def test_verification_names_the_layer(trained):
    kept = _samples.representative(IMAGES, trained.source.specs, limit=32)
    verify = _pipeline.verify
    report = verify(trained.content, trained.frozen, trained.source, kept, REQUEST)
    assert report["examples"] == 32
    content = tampered(trained.content, "CONV_2D", negate_weights)
    message = r"first layer that diverges is '.*' \(CONV_2D of"
    with pytest.raises(VerificationError, match=message):
        verify(content, trained.frozen, trained.source, kept, REQUEST)
    nameless = tflite_file.rewrite(content, strip_debug_info=True)
    with pytest.raises(VerificationError, match="strip_debug_info"):
        verify(nameless, trained.frozen, trained.source, kept, REQUEST)


def compare(expected, actual, **options):
    @dataclasses.dataclass
    class Outputs:
        outputs = (dataclasses.make_dataclass("Info", ["name"])("y"),)

    return _verification.compare(
        [{"y": expected}],
        [{"y": actual}],
        signature=Outputs(),
        steps={"y": 0.01},
        quantization="int8",
        **{"min_sqnr": None, "is_trained": True, **options},
    )


def test_limits_of_trained_models():
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(400, 10)).astype(np.float32) * 3
    noise = 0.005 * rng.choice([-1, 1], expected.shape)
    assert compare(expected, expected + noise)["y"].mean_error < 0.01
    with pytest.raises(VerificationError, match=r"Received: 1\.2 steps"):
        compare(expected, expected + 2.4 * noise)
    # The same error passes where only a ratio is asked for, or nothing was trained.
    compare(expected, expected + 2.4 * noise, min_sqnr=20)
    compare(expected, expected + 2.4 * noise, is_trained=False)
    wrong = expected.copy()
    order = expected.argsort(-1)
    first, second = np.take_along_axis(expected, order[:, -2:], -1).T[::-1]
    rows = np.flatnonzero(first - second > 0.1)[:4]  # 1 % of the rows
    wrong[rows, order[rows, -2]] = first[rows] + 0.01
    with pytest.raises(VerificationError, match=r"99\.0%"):
        compare(expected, wrong, min_sqnr=None)
    # Classes within two steps may change places.
    tie = expected.copy()
    tie[rows, order[rows, -2]] = first[rows] + 0.005
    flipped = tie.copy()
    flipped[rows, order[rows, -2]] -= 0.015
    compare(tie, flipped)


def test_convert_checks_a_trained_model_by_itself(trained):
    assert convert(trained.model, quantization="int8") == convert(
        trained.model, quantization="int8", verify=False
    )
