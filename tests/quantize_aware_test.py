import json
import logging

import numpy as np
import pytest
import quantize_aware_samples as samples
import tensorflow as tf

from tfopt import _keras, affine, tflite_file
from tfopt._keras import fake_quantize
from tfopt.conversion import convert
from tfopt.methods.prune import Prune
from tfopt.methods.quantize_aware import QuantizeAware
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras

NETWORKS = {
    "quickstart": samples.quickstart,
    "mobile": samples.mobile,
    "nested": samples.nested,
}


@pytest.fixture(scope="module")
def digits(testdata):
    return samples.digits(testdata, 3000)


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def trained(request, digits):
    """Name, float model, prepared and trained model, and the method."""
    keras = tf.keras
    keras.utils.set_random_seed(0)
    images, labels = digits
    model = samples.compiled(keras, NETWORKS[request.param](keras))
    model.fit(images, labels, batch_size=50, epochs=2, verbose=0)
    method = QuantizeAware()
    prepared = samples.compiled(keras, method.prepare(model))
    prepared.fit(
        images[:1000], labels[:1000], batch_size=50, verbose=0, callbacks=[method]
    )
    return request.param, model, prepared, method


def test_int8_file_agrees_with_the_fake_quantized_model(trained, digits):
    name, _, prepared, method = trained
    images, labels = digits
    content = convert(method.finalize(prepared), quantization="int8")
    assert tflite_file.float_operators(tflite_file.read(content)) == []
    agreement = samples.agreement(content, prepared, images)
    assert agreement.is_good, agreement
    accuracy = np.mean(samples.outputs(prepared, images).argmax(-1) == labels)
    assert accuracy > 0.7, f"{name} is too poorly trained to say anything"
    assert {entry["treatment"] for entry in method.report} <= {
        "int8",
        "fused",
        "same_scale",
        "identity",
    }


def test_agreement_notices_a_wrong_weight(trained, digits):
    """Negative control of the test above."""
    _, _, prepared, method = trained
    wrong = method.finalize(prepared)
    layer = [layer for layer in wrong.layers if layer.weights][-1]
    kernel, *rest = layer.get_weights()
    kernel[:, 3] = -kernel[:, 3]
    layer.set_weights([kernel, *rest])
    agreement = samples.agreement(samples.to_tflite(wrong), prepared, digits[0])
    assert not agreement.is_good, agreement


def test_finalized_model_computes_what_the_prepared_one_does(trained, digits):
    name, _, prepared, method = trained
    images = digits[0][:200]
    final = method.finalize(prepared)
    assert _keras.module_of(final) is _keras.module_of(prepared)
    cls = fake_quantize.classes(_keras.module_of(final))
    kinds = {type(layer) for layer in final.layers}
    assert not kinds & {cls.ActivationRange, *cls.weighted.values()}
    got, expected = (samples.outputs(m, images) for m in (final, prepared))
    # Averages of codes are often halves, which LiteRT and the prepared model round
    # away from zero, and the finalized model up.
    expected_difference = 0.02 if name == "mobile" else 1e-3
    assert np.abs(got - expected).mean() < expected_difference * expected.std()


def test_prediction_before_training_is_close_to_float(trained, digits):
    _, model, _, _ = trained
    images = digits[0][:500]
    expected = samples.outputs(model, images)
    spread = expected.std()
    for method in (
        QuantizeAware(),
        QuantizeAware(representative_dataset=images[:64]),
    ):
        got = samples.outputs(method.prepare(model), images)
        assert np.abs(got - expected).mean() < 0.05 * spread
        assert np.mean(got.argmax(-1) == expected.argmax(-1)) > 0.97


def test_saved_and_reloaded_model_is_bit_equal(trained, digits, tmp_path):
    _, _, prepared, method = trained
    images = digits[0][:100]
    prepared.save(tmp_path / "prepared.keras")
    load = _keras.module_of(prepared).models.load_model
    for reloaded in (
        load(tmp_path / "prepared.keras"),
        _keras.load(tmp_path / "prepared.keras"),
    ):
        assert np.array_equal(
            samples.outputs(prepared, images), samples.outputs(reloaded, images)
        )
        assert samples.ranges(reloaded) == samples.ranges(prepared)
    final = method.finalize(reloaded)
    final.save(tmp_path / "final.keras")
    assert np.array_equal(
        samples.outputs(final, images),
        samples.outputs(load(tmp_path / "final.keras"), images),
    )


def test_prepare_leaves_the_input_model_alone(keras, digits):
    model = samples.compiled(keras, samples.nested(keras))
    config, weights = json.dumps(model.get_config(), default=str), model.get_weights()
    method = QuantizeAware()
    prepared = samples.compiled(keras, method.prepare(model))
    prepared.fit(digits[0][:200], digits[1][:200], verbose=0, callbacks=[method])
    assert json.dumps(model.get_config(), default=str) == config
    for before, after in zip(weights, model.get_weights(), strict=True):
        assert np.array_equal(before, after)
    shared = {id(v) for v in model.variables} & {id(v) for v in prepared.variables}
    assert not shared
    assert prepared.count_params() == model.count_params() + 2 * len(
        samples.ranges(prepared)
    )


def test_names_of_layers_and_variables_stay(keras):
    model = samples.quickstart(keras)
    prepared = QuantizeAware().prepare(model)
    names = [layer.name for layer in prepared.layers]
    kept = [layer.name for layer in model.layers]
    assert [name for name in names if name in kept] == kept
    last_names = {
        layer.name: [v.name.split(":")[0].split("/")[-1] for v in layer.weights]
        for layer in prepared.layers
    }
    assert last_names["conv"] == last_names["logits"] == ["kernel", "bias"]
    assert prepared.get_layer("conv").kernel is prepared.get_layer("conv").weights[0]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_in_the_file_are_the_codes(keras, digits, bits, per_channel):
    model = samples.quickstart(keras)
    images = digits[0][:128]
    for name in ("conv", "logits"):
        kernel, bias = model.get_layer(name).get_weights()
        kernel[np.random.default_rng(0).random(kernel.shape) < 0.6] = 0
        kernel[..., 1] = 0  # a channel without any weight
        model.get_layer(name).set_weights([kernel, bias + 0.01])
    method = QuantizeAware(
        weight_bits=bits, per_channel=per_channel, representative_dataset=images
    )
    content = samples.to_tflite(method.finalize(method.prepare(model)))
    conv, logits = samples.kernels(content)
    for codes, name, order in (
        (conv, "conv", (1, 2, 3, 0)),
        (logits, "logits", (1, 0)),
    ):
        kernel = model.get_layer(name).get_weights()[0]
        axes = (-1,) if per_channel else ()
        assert np.array_equal(
            codes.transpose(order), samples.expected_codes(kernel, bits, axes)
        )
        assert not codes.transpose(order)[kernel == 0].any()
        assert len(np.unique(codes)) <= 2**bits - 1
        assert np.count_nonzero(codes) > 10


def test_depthwise_and_batch_norm_keep_zeros_and_few_codes(keras, digits):
    model = samples.mobile(keras)
    rng = np.random.default_rng(0)
    zeros = []
    for layer in model.layers:
        weights = layer.get_weights()
        if weights and weights[0].ndim > 1:
            weights[0][rng.random(weights[0].shape) < 0.5] = 0
            zeros.append(np.count_nonzero(weights[0] == 0))
        elif weights:
            weights = [rng.uniform(0.5, 2, w.shape).astype(w.dtype) for w in weights]
        layer.set_weights(weights)
    method = QuantizeAware(weight_bits=4, representative_dataset=digits[0][:64])
    codes = samples.kernels(samples.to_tflite(method.finalize(method.prepare(model))))
    found = sorted(np.count_nonzero(kernel == 0) for kernel in codes)
    # Small weights round to zero too, but no zero becomes something else.
    assert all(a >= b for a, b in zip(found, sorted(zeros), strict=True))
    assert max(len(np.unique(kernel)) for kernel in codes) <= 15


def test_pruned_weights_stay_zero_in_training(keras, digits):
    model = samples.quickstart(keras)
    images, labels = digits[0][:400], digits[1][:400]
    methods = [QuantizeAware(), Prune(final_sparsity=0.7, begin_step=2, end_step=6)]
    prepared = samples.compiled(keras, methods[0].prepare(model))
    prepared.fit(images, labels, batch_size=20, verbose=0, callbacks=methods)
    kernels = [prepared.get_layer(x).get_weights()[0] for x in ("conv", "logits")]
    final = methods[0].finalize(methods[1].finalize(prepared))
    codes = samples.kernels(samples.to_tflite(final))
    for kernel, code in zip(kernels, codes, strict=True):
        assert np.mean(kernel == 0) == pytest.approx(0.7, abs=0.01)
        assert np.count_nonzero(code == 0) >= np.count_nonzero(kernel == 0)
        expected = samples.expected_codes(kernel, 8)
        assert np.count_nonzero(code == 0) == np.count_nonzero(expected == 0)


def test_fake_quantized_weights_match_numpy_and_pass_gradients(keras):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    kernel[0, 0] = 0
    for bits in (2, 4, 7, 8):
        for axes in ((), (-1,), (-2, -1)):
            variable = tf.Variable(kernel)
            with tf.GradientTape() as tape:
                got = fake_quantize.fake_quantize_weights(variable, bits, axes)
                total = tf.reduce_sum(got * kernel)
            expected = affine.fake_quantize_weights(
                kernel, bits=bits, channel_axes=axes
            )
            np.testing.assert_allclose(got, expected, rtol=1e-6)
            assert not got.numpy()[kernel == 0].any()
            np.testing.assert_array_equal(tape.gradient(total, variable), kernel)


def test_eight_bit_weights_match_tensorflows_fake_quant():
    kernel = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    peaks = np.abs(kernel).max(axis=0)
    expected = tf.quantization.fake_quant_with_min_max_vars_per_channel(
        kernel, -peaks, peaks, num_bits=8, narrow_range=True
    )
    got = fake_quantize.fake_quantize_weights(tf.constant(kernel), 8, (-1,))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert np.abs(got.numpy() - kernel).max() > 1e-4  # it does round


@pytest.mark.parametrize("bounds", [(-1.0, 2.0), (0.0, 6.0), (-0.3, 0.01)])
def test_activations_match_tensorflows_fake_quant(bounds):
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 3
    expected = tf.quantization.fake_quant_with_min_max_args(values, *bounds)
    got = affine.fake_quantize(values, minimum=bounds[0], maximum=bounds[1])
    np.testing.assert_allclose(got, expected, atol=1e-6)


def observer(keras, **options):
    layer = fake_quantize.classes(_keras.module_of(keras.layers.ReLU())).ActivationRange
    return layer(dtype="float32", **options)


def test_ranges_start_with_the_first_batch_and_follow(keras):
    layer = observer(keras, ema_decay=0.9)
    x = np.float32([[-1.0, 0.013, 3.0]])
    np.testing.assert_array_equal(layer(x), x)
    assert layer.bounds() == (0, 0)
    layer(x, training=True)
    assert layer.bounds() == (-1, 3)
    layer(2 * x, training=True)
    np.testing.assert_allclose(layer.bounds(), (-1.1, 3.3), rtol=1e-6)
    expected = affine.fake_quantize(x, minimum=-1.1, maximum=3.3)
    np.testing.assert_allclose(layer(x), expected, atol=1e-6)
    assert np.abs(layer(x) - x).max() > 1e-3


def test_peak_ranges_widen_at_once_and_minmax_never_shrinks(keras):
    x = np.float32([[-1.0, 3.0]])
    for how, after in (("peak", (-1.9, 5.7)), ("minmax", (-2, 6))):
        layer = observer(keras, range_tracking=how, ema_decay=0.9)
        layer(x, training=True)
        layer(2 * x, training=True)
        np.testing.assert_allclose(layer.bounds(), (-2, 6), rtol=1e-6)
        layer(x, training=True)
        np.testing.assert_allclose(layer.bounds(), after, rtol=1e-6)


def test_ranges_wait_while_activations_are_zero(keras):
    layer = observer(keras)
    zeros, x = np.zeros((2, 3), np.float32), np.float32([[0.5, 1.0, 0.2]])
    np.testing.assert_array_equal(layer(zeros, training=True), zeros)
    np.testing.assert_array_equal(layer(x), x)
    layer(x, training=True)
    assert layer.bounds() == (0, 1)


def test_frozen_ranges_do_not_move(keras):
    layer = observer(keras)
    layer(np.float32([[1.0]]), training=True)
    layer.trainable = False
    layer(np.float32([[5.0]]), training=True)
    assert layer.bounds() == (0, 1)


@pytest.mark.parametrize(
    "options",
    [{"jit_compile": True}, {"steps_per_execution": 3}, {"run_eagerly": True}],
    ids=str,
)
def test_ways_to_train(keras, digits, options):
    images, labels = digits[0][:96], digits[1][:96]
    prepared = QuantizeAware().prepare(samples.quickstart(keras))
    samples.compiled(keras, prepared, **options)
    before = prepared.get_weights()
    prepared.fit(images, labels, batch_size=16, verbose=0)
    assert all(low < high for low, high in samples.ranges(prepared))
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(before, prepared.get_weights(), strict=True)
    ]
    assert sum(moved) >= 4 + len(samples.ranges(prepared))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(keras, digits, policy):
    images, labels = digits
    keras.mixed_precision.set_global_policy(policy)
    try:
        method = QuantizeAware()
        prepared = samples.compiled(keras, method.prepare(samples.quickstart(keras)))
        prepared.fit(images, labels, batch_size=50, epochs=2, verbose=0)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    final = method.finalize(prepared)
    assert {layer.compute_dtype for layer in final.layers if layer.weights} == {
        "float32"
    }
    content = samples.to_tflite(final)
    assert tflite_file.float_operators(tflite_file.read(content)) == []
    assert samples.agreement(content, final, images[:500]).is_good


def test_placement_follows_what_litert_fuses(keras):
    method = QuantizeAware(representative_dataset=np.ones((2, 14, 14, 1), np.float32))
    model = samples.mobile(keras)
    content = samples.to_tflite(method.finalize(method.prepare(model)))
    assert [name for name in samples.operators(content) if name != "PAD"] == [
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "ADD",
        "AVERAGE_POOL_2D",
        "CONV_2D",
        "CONV_2D",
        "CONCATENATION",
        "MEAN",
        "FULLY_CONNECTED",
        "SOFTMAX",
    ]


def test_concatenate_keeps_its_order(keras):
    first, second = keras.Input((3,), name="first"), keras.Input((2,), name="second")
    # The second input is declared and used first.
    b = keras.layers.Dense(4, name="b")(second)
    a = keras.layers.Dense(7, name="a")(first)
    model = keras.Model([first, second], keras.layers.Concatenate()([a, b]))
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(16, n)).astype(np.float32) for n in (3, 2)]
    method = QuantizeAware(representative_dataset=[tuple(inputs)])
    expected = samples.outputs(model, inputs)
    for rewritten in (prepared := method.prepare(model), method.finalize(prepared)):
        got = samples.outputs(rewritten, inputs)
        assert got.shape == (16, 11)
        assert np.abs(got - expected).max() < 0.1 * expected.std()


def test_inputs_and_outputs_keep_structure_order_and_names(keras):
    layers = keras.layers
    inputs = {name: keras.Input((3,), name=name) for name in ("zebra", "ant")}
    shared = layers.Dense(4, activation="relu", name="shared")
    z, a = shared(inputs["zebra"]), shared(inputs["ant"])
    outputs = {
        "last": layers.Dense(2)(z),
        "early": layers.Dense(1)(layers.Add()([z, a])),
    }
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(0)
    data = {name: rng.normal(size=(8, 3)).astype(np.float32) for name in inputs}
    method = QuantizeAware(representative_dataset=lambda: [data])
    prepared = method.prepare(model)
    assert len(prepared.get_layer("shared").weights) == 2
    expected = samples.outputs(model, data)
    got = samples.outputs(prepared, data)
    assert {k: v.shape for k, v in got.items()} == {"last": (8, 2), "early": (8, 1)}
    for name, value in expected.items():
        assert np.abs(got[name] - value).max() < 0.2 * value.std()
    listed = keras.Model(list(inputs.values()), [outputs["early"], outputs["last"]])
    prepared = method.prepare(listed)
    assert list(prepared.output_names) == list(listed.output_names)
    loss = dict.fromkeys(listed.output_names, "mse")
    prepared.compile("sgd", loss=loss)
    prepared.fit(list(data.values()), [expected["early"], expected["last"]], verbose=0)


def test_unknown_layers_stay_float_and_are_listed(keras, caplog):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(3, 3, name="first"),
            layers.ReLU(threshold=0.1, name="first_relu"),
            layers.UnitNormalization(axis=1, name="unit"),
            layers.Conv2D(3, 3, name="second"),
            layers.Flatten(),
        ]
    )
    data = np.random.default_rng(0).random((8, 6, 6, 2), np.float32)
    method = QuantizeAware(representative_dataset=data)
    with caplog.at_level(logging.WARNING, logger="tfopt"):
        prepared = method.prepare(model)
    floats = {
        e["name"]: e["reason"] for e in method.report if e["treatment"] == "float"
    }
    assert set(floats) == {"first_relu", "unit"}
    assert "last axis" in floats["unit"]
    assert "threshold" in floats["first_relu"]
    assert "unit" in caplog.text
    json.dumps(method.report)
    content = convert_with_fallback(method.finalize(prepared))
    names = samples.operators(content)
    assert names.count("CONV_2D") == 2
    assert "RSQRT" in names
    strict = QuantizeAware(strict=True)
    with pytest.raises(TfoptError, match=r"strict.*unit"):
        strict.prepare(model)
    QuantizeAware(strict=True, exclude=["unit", "first*"]).prepare(model)


def convert_with_fallback(model):
    return convert(model, quantization="int8", allow_float_fallback=True, verify=False)


@pytest.mark.parametrize(
    ("options", "floats"),
    [
        ({"exclude": "conv"}, {"conv"}),
        ({"exclude": ["middle", "logits"]}, {"middle", "logits"}),
        ({"include": "middle"}, {"conv", "logits"}),
        ({"include": "[cm]*"}, {"logits"}),
    ],
    # Sets have no order that all processes of a run share.
    ids=["one", "two", "all but one", "a pattern"],
)
def test_excluded_layers_are_float_in_the_file(keras, options, floats):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(3, 3, activation="relu", name="conv"),
            layers.Conv2D(4, 3, activation="relu", name="middle"),
            layers.Flatten(),
            layers.Dense(5, name="logits"),
        ]
    )
    data = np.random.default_rng(0).random((8, 8, 8, 2), np.float32)
    method = QuantizeAware(representative_dataset=data, **options)
    final = method.finalize(method.prepare(model))
    kinds = {"conv": (3, 2), "middle": (4, 3), "logits": (5, 64)}
    subgraph = tflite_file.read(convert_with_fallback(final)).subgraphs[0]
    types = {}
    for operator in subgraph.operators:
        if operator.name in ("CONV_2D", "FULLY_CONNECTED"):
            kernel = subgraph.tensors[operator.inputs[1]]
            shape = (kernel.shape[0], kernel.shape[-1])
            name = next(key for key, value in kinds.items() if value == shape)
            types[name] = kernel.type
    assert types == {name: "FLOAT32" if name in floats else "INT8" for name in kinds}
    np.testing.assert_allclose(
        samples.outputs(final, data), samples.outputs(model, data), atol=0.05
    )


def test_one_instance_prepares_two_models(keras, digits):
    images, labels = digits[0][:64], digits[1][:64]
    method = QuantizeAware()
    finals = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        prepared = method.prepare(samples.quickstart(keras))
        samples.compiled(keras, prepared)
        prepared.fit(images, labels, verbose=0, shuffle=False, callbacks=[method])
        finals.append(method.finalize(prepared))
    for one, other in zip(*(final.get_weights() for final in finals), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_config_round_trip():
    method = QuantizeAware(
        weight_bits=4,
        per_channel=False,
        range_tracking="minmax",
        ema_decay=0.5,
        include=["a*"],
        exclude="b",
        representative_dataset=[1],
        calibration_examples=7,
        strict=True,
    )
    config = method.get_config()
    assert QuantizeAware.from_config(config).get_config() == config
    assert config["weight_bits"] == 4


@pytest.mark.parametrize(
    "options",
    [
        {"weight_bits": 1},
        {"weight_bits": 9},
        {"activation_bits": 4},
        {"range_tracking": "median"},
        {"ema_decay": 1.0},
        {"calibration_examples": 0},
    ],
    ids=str,
)
def test_bad_arguments_name_themselves(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"Received: {name}="):
        QuantizeAware(**options)


def test_refusals(keras, digits):
    model = samples.quickstart(keras)
    method = QuantizeAware()
    prepared = method.prepare(model)
    with pytest.raises(TfoptError, match="No activation has a range yet"):
        method.finalize(prepared)
    with pytest.raises(TfoptError, match="not prepared"):
        method.finalize(model)
    with pytest.raises(TfoptError, match="already"):
        method.prepare(prepared)
    with pytest.raises(ValueError, match="'nowhere' matches nothing"):
        QuantizeAware(exclude=["nowhere"]).prepare(model)
    with pytest.raises(TfoptError, match="per_channel=True"):
        QuantizeAware(per_channel=False).prepare(samples.mobile(keras))
    with pytest.raises(TfoptError, match="Nothing in the model"):
        QuantizeAware(exclude="*").prepare(model)
    with pytest.raises(TfoptError, match="not prepared"):
        samples.compiled(keras, model).fit(
            digits[0][:8], digits[1][:8], verbose=0, callbacks=[method]
        )


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "at least one example"),
        ([(np.ones((4, 14, 14, 1)), np.ones(4))], "labels don't belong"),
        ([np.ones((4, 7, 7, 1))], r"\(4, 7, 7, 1\)"),
    ],
)
def test_bad_representative_datasets(keras, dataset, message):
    method = QuantizeAware(representative_dataset=dataset)
    with pytest.raises(ValueError, match=message):
        method.prepare(samples.quickstart(keras))


def test_representative_datasets_of_all_forms_and_endless_ones(keras, digits):
    images = digits[0][:40]
    model = samples.quickstart(keras)

    def endless():
        while True:
            yield images[:20]
            yield images[20:]

    forms = [images, list(images), [images], lambda: [(images,)], endless]
    forms.append(tf.constant(images))
    found = [
        samples.ranges(
            QuantizeAware(representative_dataset=form, calibration_examples=40).prepare(
                model
            )
        )
        for form in forms
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5)
