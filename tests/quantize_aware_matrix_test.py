"""QuantizeAware on a matrix of small networks: trained, converted, compared."""

import json

import numpy as np
import pytest
import quantize_aware_networks as networks
import tensorflow as tf

from tfopt import runner, tflite_file
from tfopt.conversion import convert
from tfopt.methods.quantize_aware import QuantizeAware

pytestmark = [pytest.mark.both_keras, pytest.mark.slow]

EXAMPLES = 1024


def trained(keras, network, model):
    """The prepared model after one short epoch, and the method."""
    method = QuantizeAware(exclude=network.exclude)
    prepared = method.prepare(model)
    optimizer = keras.optimizers.Adam(1e-3)
    # Without tracing: these are few steps.
    prepared.compile(optimizer, "mse", run_eagerly=True)
    inputs = network.data(32)
    targets = prepared(inputs, training=False)
    noise = np.random.default_rng(3)
    targets = [
        np.asarray(y) + noise.normal(size=y.shape) * 0.1
        for y in tf.nest.flatten(targets)
    ]
    targets = targets if len(targets) > 1 else targets[0]
    prepared.fit(inputs, targets, batch_size=16, verbose=0, callbacks=[method])
    return prepared, method


def outputs_and_steps(content, inputs):
    """What a file computes, and the int8 step of each output, in order."""
    file = tflite_file.read(content)
    subgraph = file.subgraphs[0]
    made_by = {op.outputs[0]: op for op in subgraph.operators}
    steps = []
    for index in subgraph.outputs:
        operator = made_by[index]
        if operator.name != "DEQUANTIZE":
            steps.append(None)  # a float operator is the last
            continue
        steps.append(float(subgraph.tensors[operator.inputs[0]].scale[0]))
    with runner.Runner(content, num_workers=1) as run:
        got = run.run(inputs)
    return got, steps


@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_trains_converts_and_agrees(keras, name):
    network = networks.NETWORKS[name]
    if network.keras3 and not hasattr(keras, "ops"):
        pytest.skip("tf_keras has no such activation")
    model = network.model(keras)
    config, weights = json.dumps(model.get_config(), default=str), model.get_weights()
    prepared, method = trained(keras, network, model)
    assert json.dumps(model.get_config(), default=str) == config
    assert all(map(np.array_equal, model.get_weights(), weights))

    floats = {e["kind"] for e in method.report if e["treatment"] == "float"}
    assert floats <= network.floats
    assert bool(floats) == bool(network.floats)
    assert all(e["reason"] for e in method.report if e["treatment"] == "float")
    final = method.finalize(prepared)
    content = convert(
        final, quantization="int8", verify=False, allow_float_fallback=bool(floats)
    )
    left = tflite_file.float_operators(tflite_file.read(content))
    assert bool(left) == bool(floats), left

    inputs = network.data(EXAMPLES)
    expected = tf.nest.flatten(prepared(inputs, training=False))
    assert agrees(content, inputs, expected)


def agrees(content, inputs, expected):
    """Whether a file has the outputs of a prepared model, within the promises."""
    if isinstance(inputs, list):
        inputs = {f"in{number}": value for number, value in enumerate(inputs)}
    got, steps = outputs_and_steps(content, inputs)
    values = list(got.values()) if isinstance(got, dict) else [got]
    by_shape = {np.shape(y): (y, s) for y, s in zip(values, steps, strict=True)}
    verdicts = []
    for wanted in map(np.asarray, expected):
        value, step = by_shape[wanted.shape]
        error = np.abs(value - wanted).mean() / (step or np.ptp(wanted) / 255)
        same = np.mean(value.argmax(-1) == wanted.argmax(-1))
        verdicts.append(error <= 1 and same >= 0.995)
    return all(verdicts)


def test_agreement_notices_a_wrong_weight(keras):
    """Negative control of the test above."""
    network = networks.NETWORKS["siamese"]
    prepared, method = trained(keras, network, network.model(keras))
    inputs = network.data(EXAMPLES)
    expected = tf.nest.flatten(prepared(inputs, training=False))
    final = method.finalize(prepared)
    layer = [layer for layer in final.layers if layer.weights][-1]
    kernel, *rest = layer.get_weights()
    kernel[..., 1] = -kernel[..., 1]
    layer.set_weights([kernel, *rest])
    content = convert(final, quantization="int8", verify=False)
    assert not agrees(content, inputs, expected)
