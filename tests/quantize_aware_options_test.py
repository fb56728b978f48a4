"""Options of QuantizeAware: schemes, ways to follow ranges, phases of training."""

import json

import numpy as np
import pytest
import quantize_aware_samples as samples
import tensorflow as tf

from tfopt import _keras, tflite_file
from tfopt._keras import fake_quantize
from tfopt._keras.fake_quantize import _statistics
from tfopt.conversion import convert, convert_with_report
from tfopt.methods.cluster import Cluster
from tfopt.methods.prune import Prune
from tfopt.methods.quantize_aware import QuantizeAware

pytestmark = pytest.mark.both_keras

IMAGES = np.random.default_rng(0).random((64, 14, 14, 1), np.float32)
LABELS = np.random.default_rng(1).integers(0, 10, 64)


def trained(keras, method, build=samples.quickstart, *, epochs=1, others=(), **options):
    """Returns the prepared model after a few steps."""
    keras.utils.set_random_seed(0)
    prepared = samples.compiled(keras, method.prepare(build(keras)), **options)
    prepared.fit(
        IMAGES,
        LABELS,
        batch_size=16,
        epochs=epochs,
        verbose=0,
        callbacks=[method, *others],
    )
    return prepared


def layers_of(model, name):
    classes = fake_quantize.classes(_keras.module_of(model))
    return [x for x in model.layers if isinstance(x, getattr(classes, name))]


def odd(keras):
    """Kernels with odd numbers of weights in a row."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((14, 14, 1)),
            layers.Conv2D(7, 3, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.MaxPooling2D(2, name="pool"),
            layers.Flatten(),
            layers.Dense(33, activation="relu", name="dense"),
            layers.Dense(10, name="logits"),
        ]
    )


# --- schemes


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_alone_come_back_as_the_codes(keras, bits):
    method = QuantizeAware(scheme="int8_weights", weight_bits=bits)
    prepared = trained(keras, method, odd)
    assert not layers_of(prepared, "ActivationRange")
    treatments = {e["name"]: e["treatment"] for e in method.report}
    assert treatments["dense"] == "int8_weights"
    assert treatments["pool"] == "float"
    kernel = prepared.get_layer("dense").get_weights()[0]
    final = method.finalize(prepared)
    for model in (prepared, final):  # one computes what the other does
        out = samples.outputs(model, IMAGES)
        np.testing.assert_allclose(
            out, samples.outputs(final, IMAGES), rtol=1e-4, atol=1e-5
        )
    content = convert(final, quantization="dynamic", representative_dataset=IMAGES)
    graph = tflite_file.read(content).subgraphs[0]
    (codes,) = (
        graph.tensors[op.inputs[1]].codes()
        for op in graph.operators
        if op.name == "FULLY_CONNECTED"
        and graph.tensors[op.inputs[1]].shape == (33, 175)
    )
    assert np.array_equal(codes.T, samples.expected_codes(kernel, bits))


def test_int16_activations(keras):
    method = QuantizeAware(scheme="int16x8", representative_dataset=IMAGES)
    prepared = trained(keras, method)
    assert {e["treatment"] for e in method.report} == {
        "int16x8",
        "fused",
        "same_scale",
    }
    final = method.finalize(prepared)
    result = convert_with_report(
        final,
        quantization="int16x8",
        representative_dataset=IMAGES,
        inference_input_type="int16",
        inference_output_type="int16",
    )
    (output,) = result.report["verification"]["outputs"].values()
    assert output["sqnr_db"] > 60
    assert result.signature.inputs[0].dtype == np.int16
    graph = tflite_file.read(result.content).subgraphs[0]
    kinds = {graph.tensors[op.outputs[0]].type for op in graph.operators}
    assert kinds == {"INT16"}
    for codes, name in zip(
        samples.kernels(result.content), ("conv", "logits"), strict=True
    ):
        kernel = prepared.get_layer(name).get_weights()[0]
        found = codes.transpose(1, 2, 3, 0) if codes.ndim == 4 else codes.T
        assert np.array_equal(found, samples.expected_codes(kernel, 8))


def test_int16_rounding_is_symmetric_and_fine(keras):
    classes = fake_quantize.classes(_keras.module_of(keras.layers.ReLU()))
    layer = classes.ActivationRange(bits=16, dtype="float32")
    x = np.float32([[-1.0, 0.0, 0.1234567, 3.0]])
    got = np.array(layer(x, training=True))
    scale = 6 / 32767
    np.testing.assert_allclose(got, np.rint(x / scale) * scale, atol=1e-7)
    assert np.abs(got - x).max() > 1e-6
    fixed = classes.FixedActivationRange(
        minimum=-1.0, maximum=6.0, bits=16, dtype="float32"
    )
    np.testing.assert_allclose(fixed(x), got, atol=1e-7)


@pytest.mark.parametrize("build", [odd, samples.mobile], ids=["odd", "mobile"])
def test_packed_weights_are_int4_and_agree(keras, build):
    method = QuantizeAware(weight_bits=4, packed=True)
    prepared = trained(keras, method, build)
    final = method.finalize(prepared)
    content = convert(final, quantization="int8", representative_dataset=IMAGES)
    codes = samples.kernels(content)
    assert all(np.abs(kernel).max() == 7 for kernel in codes)
    graph = tflite_file.read(content).subgraphs[0]
    kinds = [
        graph.tensors[op.inputs[1]].type
        for op in graph.operators
        if op.name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    ]
    assert set(kinds) == {"INT4"}
    assert samples.agreement(content, final, IMAGES).mean_error_steps < 1
    loose = QuantizeAware(weight_bits=4)
    unpacked = convert(
        loose.finalize(trained(keras, loose, build)),
        quantization="int8",
        representative_dataset=IMAGES,
    )
    saved = sum(kernel.size for kernel in codes) // 2
    assert len(content) < len(unpacked) - 0.8 * saved
    assert "INT4" not in {
        t.type for t in tflite_file.read(unpacked).subgraphs[0].tensors
    }


def test_a_model_converts_only_in_its_mode(keras):
    for options, wrong, right in (
        ({"scheme": "int8_weights"}, ("none", "float16", "int16x8"), "dynamic"),
        ({"activation_bits": 16}, ("none", "dynamic", "int8"), "int16x8"),
        ({"weight_bits": 4, "packed": True}, ("none", "dynamic"), "int8"),
        ({}, ("none", "float16", "int16x8"), "int8"),
    ):
        method = QuantizeAware(representative_dataset=IMAGES, **options)
        final = method.finalize(method.prepare(samples.quickstart(keras)))
        for mode in wrong:
            with pytest.raises(ValueError, match=f"Use quantization='{right}'"):
                convert(final, quantization=mode, representative_dataset=IMAGES)


@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "int4"},
        {"scheme": "int8_weights", "activation_bits": 16},
        {"scheme": "int8_weights", "delay_steps": 3},
        {"scheme": "int16x8", "per_channel": False},
        {"scheme": "int16x8", "range_tracking": "mse"},
        {"packed": True},
        {"packed": True, "weight_bits": 4, "scheme": "int8_weights"},
        {"packed": True, "weight_bits": 4, "per_channel": False},
        {"percentile": 30},
        {"freeze_ranges_after": 0},
        {"freeze_batch_norm_after": 1.5},
        {"calibration_batches": 0},
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(options):
    with pytest.raises(ValueError, match="Received: ") as error:
        QuantizeAware(**options)
    assert any(name in str(error.value) for name in options)


def test_keep_float_is_exclude_and_takes_classes(keras):
    reports = []
    for options in (
        {"exclude": "logits"},
        {"keep_float": "logits"},
        {"keep_float": "Dense"},
        {"keep_float": "De*"},
        {"exclude": "logits", "keep_float": ["Dense"]},
    ):
        method = QuantizeAware(**options)
        method.prepare(samples.quickstart(keras))
        reports.append([e["path"] for e in method.report if e["treatment"] == "float"])
    assert all(report == ["logits"] for report in reports)
    with pytest.raises(ValueError, match="'GRU' matches nothing"):
        QuantizeAware(keep_float="GRU").prepare(samples.quickstart(keras))


# --- ranges


def followed(keras, x, **options):
    layer = fake_quantize.classes(_keras.module_of(keras.layers.ReLU())).ActivationRange
    layer = layer(dtype="float32", **options)
    layer(x, training=True)
    return layer


def test_percentiles_match_numpy(keras):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 1000)).astype(np.float32)
    x[0, :3] = [60, -50, 40]
    for percentile in (90, 99, 99.9):
        low, high = followed(
            keras, x, range_tracking="percentile", percentile=percentile
        ).bounds()
        wanted = np.percentile(x, [100 - percentile, percentile])
        bin_width = 110 / 2048
        np.testing.assert_allclose((low, high), wanted, atol=2 * bin_width)
    assert followed(keras, x).bounds()[1] == 60
    # Where hardly anything is not zero, what there is must not be cut off.
    sparse = np.zeros((1, 10000), np.float32)
    sparse[0, 0] = 5
    assert followed(keras, sparse, range_tracking="percentile").bounds() == (0, 5)


def test_large_tensors_are_sampled_evenly(keras):
    x = np.random.default_rng(0).normal(size=(64, 16, 256)).astype(np.float32)
    x[..., 3] += 8  # one channel of many
    low, high = followed(keras, x, range_tracking="percentile", percentile=99).bounds()
    np.testing.assert_allclose((low, high), np.percentile(x, [1, 99]), atol=0.1)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_least_error_is_the_best_threshold(nonnegative):
    rng = np.random.default_rng(0)
    x = rng.laplace(size=(4, 5000)).astype(np.float32)
    x = np.maximum(x, 0) if nonnegative else x
    levels = 15
    low, high = map(float, _statistics.least_error(x, nonnegative, levels))

    def error(low, high):
        got = tf.quantization.fake_quant_with_min_max_vars(x, low, high, num_bits=4)
        return np.mean((np.array(got) - x) ** 2)

    peak = np.abs(x).max()
    best = min(
        error(max(x.min(), -t), min(x.max(), t)) for t in np.linspace(0.1, 1, 91) * peak
    )
    assert error(low, high) < 1.05 * best
    assert error(x.min(), x.max()) > 2 * best  # the widest range is far worse


def test_moving_averages_of_all_kinds(keras):
    x = np.float32(np.linspace(-1, 3, 4001))[np.newaxis]
    for how in ("percentile", "mse"):
        layer = followed(keras, x, range_tracking=how, ema_decay=0.9)
        before = np.array(layer.bounds())
        layer(2 * x, training=True)
        np.testing.assert_allclose(layer.bounds(), 1.1 * before, rtol=0.02)


@pytest.mark.parametrize("how", ["ema", "minmax", "percentile", "mse"])
def test_ways_to_follow_end_in_a_good_file(keras, how):
    method = QuantizeAware(range_tracking=how)
    prepared = trained(keras, method)
    assert all(low < high for low, high in samples.ranges(prepared))
    content = convert(
        method.finalize(prepared), quantization="int8", representative_dataset=IMAGES
    )
    assert samples.agreement(content, prepared, IMAGES).is_good
    calibrated = QuantizeAware(range_tracking=how, representative_dataset=IMAGES)
    ranges = samples.ranges(calibrated.prepare(samples.quickstart(keras)))
    assert all(low < high for low, high in ranges)


def test_ranges_follow_under_jit(keras):
    for how in ("percentile", "mse"):
        method = QuantizeAware(range_tracking=how)
        prepared = trained(keras, method, jit_compile=True)
        assert all(low < high for low, high in samples.ranges(prepared))


def test_the_first_step_already_rounds_within_the_first_batch(keras):
    model = samples.quickstart(keras)
    prepared = QuantizeAware().prepare(model)
    x = tf.constant(IMAGES[:16])
    expected = np.array(prepared(x))
    floats = np.array(model(x))  # without a range, only weights are rounded
    np.testing.assert_allclose(expected, floats, atol=0.05 * floats.std())
    first = np.array(prepared(x, training=True))
    assert 0 < np.abs(first - expected).max() < 0.05 * expected.std()


# --- phases


def test_delayed_rounding_trains_like_floats_at_first(keras):
    method = QuantizeAware(delay_steps=6)
    prepared = trained(keras, method)  # 4 steps
    ranges = layers_of(prepared, "ActivationRange")
    assert all(layer.observing for layer in ranges)
    assert all(low < high for low, high in samples.ranges(prepared))
    # Only weights are rounded.
    plain = method.finalize(prepared)
    assert not np.array_equal(
        samples.outputs(prepared, IMAGES), samples.outputs(plain, IMAGES)
    )
    prepared.fit(IMAGES, LABELS, batch_size=16, verbose=0, callbacks=[method])
    assert not any(layer.observing for layer in ranges)
    final = samples.outputs(method.finalize(prepared), IMAGES)
    np.testing.assert_allclose(
        samples.outputs(prepared, IMAGES), final, atol=0.02 * final.std()
    )


def test_frozen_ranges_and_batch_norm(keras):
    method = QuantizeAware(freeze_ranges_after=3, freeze_batch_norm_after=2)
    prepared = trained(keras, method, odd)  # 4 steps
    norm = prepared.get_layer("norm")
    assert norm.statistics_frozen
    before = samples.ranges(prepared), [w.copy() for w in norm.get_weights()]
    prepared.fit(4 * IMAGES, LABELS, batch_size=16, verbose=0, callbacks=[method])
    assert samples.ranges(prepared) == before[0]
    gamma, beta, mean, variance = (
        np.array_equal(a, b) for a, b in zip(before[1], norm.get_weights(), strict=True)
    )
    assert [gamma, beta, mean, variance] == [False, False, True, True]
    final = method.finalize(prepared)
    assert type(final.get_layer("norm")) is keras.layers.BatchNormalization
    convert(final, quantization="int8", representative_dataset=IMAGES)


def test_batch_norm_frozen_from_the_start(keras):
    method = QuantizeAware(freeze_batch_norm_after=0)
    prepared = samples.compiled(keras, method.prepare(odd(keras)))
    before = [w.copy() for w in prepared.get_layer("norm").get_weights()]
    prepared.fit(4 * IMAGES, LABELS, batch_size=16, verbose=0, callbacks=[method])
    after = prepared.get_layer("norm").get_weights()
    equal = [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert equal == [False, False, True, True]


def test_calibration_takes_so_many_batches(keras):
    taken = []

    def batches():
        for number in range(5):
            taken.append(number)
            yield IMAGES[:2] * (number + 1)

    few = QuantizeAware(representative_dataset=batches, calibration_batches=3)
    ranges = samples.ranges(few.prepare(odd(keras)))
    assert taken == [0, 1, 2]
    more = QuantizeAware(representative_dataset=batches).prepare(odd(keras))
    assert samples.ranges(more) != ranges


def test_batch_norm_is_not_frozen_before_its_step(keras):
    """Negative control of the test above."""
    method = QuantizeAware(freeze_ranges_after=30, freeze_batch_norm_after=20)
    prepared = trained(keras, method, odd)
    norm = prepared.get_layer("norm")
    before = samples.ranges(prepared), norm.get_weights()[2].copy()
    prepared.fit(4 * IMAGES, LABELS, batch_size=16, verbose=0, callbacks=[method])
    assert samples.ranges(prepared) != before[0]
    assert not np.array_equal(before[1], norm.get_weights()[2])


def test_training_that_resumes_gives_the_same_run(keras, tmp_path):
    options = {
        "delay_steps": 3,
        "freeze_batch_norm_after": 5,
        "freeze_ranges_after": 6,
        "range_tracking": "percentile",
    }

    def fit(model, method, epochs):
        model.fit(
            IMAGES,
            LABELS,
            batch_size=16,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=[method],
        )

    method = QuantizeAware(**options)
    keras.utils.set_random_seed(0)
    prepared = samples.compiled(keras, method.prepare(odd(keras)))
    fit(prepared, method, 1)
    prepared.save(tmp_path / "half.keras")
    load = _keras.module_of(prepared).models.load_model  # with the optimizer's state
    resumed = load(tmp_path / "half.keras")
    fit(prepared, method, 1)
    fit(resumed, QuantizeAware(**options), 1)
    for a, b in zip(prepared.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert resumed.get_layer("norm").statistics_frozen
    one, other = (
        samples.outputs(method.finalize(x), IMAGES) for x in (prepared, resumed)
    )
    np.testing.assert_allclose(one, other, atol=1e-2 * other.std())


def test_saved_models_and_checkpoints_of_prepared_models(keras, tmp_path):
    method = QuantizeAware()
    prepared = trained(keras, method)
    expected = samples.outputs(prepared, IMAGES)
    prepared.save_weights(tmp_path / "some.weights.h5")
    other = QuantizeAware().prepare(samples.quickstart(keras))
    other.load_weights(tmp_path / "some.weights.h5")
    np.testing.assert_array_equal(samples.outputs(other, IMAGES), expected)
    if _keras.is_keras3(prepared):
        prepared.export(tmp_path / "saved", verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / "saved"))
        np.testing.assert_allclose(loaded.serve(IMAGES), expected, atol=1e-5)
    else:
        prepared.save(tmp_path / "saved", save_format="tf")
        reloaded = _keras.module_of(prepared).models.load_model(tmp_path / "saved")
        np.testing.assert_array_equal(samples.outputs(reloaded, IMAGES), expected)


# --- together with other methods


@pytest.mark.parametrize(
    "options", [{}, {"weight_bits": 4}, {"weight_bits": 4, "packed": True}], ids=str
)
@pytest.mark.parametrize("first", ["prune", "quantize"])
def test_n_to_m_zeros_are_those_of_the_masks(keras, options, first):
    prune = Prune(structure="2:4", end_step=3)
    quantize = QuantizeAware(**options)
    methods = [prune, quantize] if first == "prune" else [quantize, prune]
    keras.utils.set_random_seed(0)
    model = samples.quickstart(keras)
    for method in methods:
        model = method.prepare(model)
    samples.compiled(keras, model)
    model.fit(IMAGES, LABELS, batch_size=8, verbose=0, callbacks=methods)
    kernel = model.get_layer("logits").get_weights()[0]
    assert np.mean(kernel == 0) == pytest.approx(0.5, abs=0.01)
    for method in reversed(methods):
        model = method.finalize(model)
    content = convert(model, quantization="int8", representative_dataset=IMAGES)
    codes = samples.kernels(content)[1].T
    assert not codes[kernel == 0].any()
    bits = options.get("weight_bits", 8)
    expected = samples.expected_codes(kernel, bits)
    assert np.count_nonzero(codes == 0) == np.count_nonzero(expected == 0)


@pytest.mark.parametrize("options", [{}, {"weight_bits": 4, "packed": True}], ids=str)
def test_clusters_stay_few_values(keras, options):
    cluster, quantize = Cluster(num_clusters=8), QuantizeAware(**options)
    keras.utils.set_random_seed(0)
    model = quantize.prepare(cluster.prepare(samples.quickstart(keras)))
    samples.compiled(keras, model)
    model.fit(IMAGES, LABELS, verbose=0, callbacks=[cluster, quantize])
    final = cluster.finalize(quantize.finalize(model))
    content = convert(final, quantization="int8", representative_dataset=IMAGES)
    weights = final.get_layer("logits").get_weights()[0]
    for channel in samples.kernels(content)[1]:
        assert len(np.unique(channel)) <= 8
    assert len(np.unique(weights)) <= 8 * weights.shape[-1]


def test_configuration_of_all_options_round_trips():
    options = {
        "packed": True,
        "weight_bits": 4,
        "range_tracking": "percentile",
        "percentile": 99.5,
        "delay_steps": 5,
        "freeze_batch_norm_after": 7,
        "freeze_ranges_after": 9,
        "keep_float": "Dense",
    }
    config = QuantizeAware(**options).get_config()
    assert (
        QuantizeAware.from_config(json.loads(json.dumps(config))).get_config() == config
    )
    assert options.items() <= config.items()
