"""Clusters beside pruning and int8: each keeps its promise, in any order."""

import cluster_samples as samples
import numpy as np
import prune_samples
import pytest

from tfopt import _keras, tflite_file, training
from tfopt._keras import variables
from tfopt.conversion import convert
from tfopt.methods.cluster import Cluster, cluster_once
from tfopt.methods.prune import Prune
from tfopt.methods.quantize_aware import QuantizeAware

pytestmark = pytest.mark.both_keras

STEPS = 18  # of samples.fit_images


def in_order(methods, order):
    return [methods[index] for index in order]


@pytest.mark.parametrize(("order", "begin_step"), [((0, 1), 9), ((1, 0), 0)])
def test_with_pruning(keras, order, begin_step):
    model = samples.compiled(keras)
    few, sparse = samples.watch(keras), prune_samples.watch(keras)
    prune = Prune(final_sparsity=0.75, end_step=8, frequency=1)
    cluster = Cluster(num_clusters=5, begin_step=begin_step)
    methods = in_order([prune, cluster], order)
    samples.fit(model, [few, sparse, *methods])
    assert max(few.seen[max(begin_step - 1, 0) :]) <= 5
    expected = prune_samples.expected_zeros(model, 0.75)
    for _, zeros in sparse.seen[8:]:
        # Weights near zero may join its cluster, but none leaves the mask.
        assert all(zeros[name] >= count for name, count in expected.items())
    assert all(variable.constraint is None for variable in model.trainable_weights)
    training.finalize(model, methods)
    # What pruning has masked is what it would have masked alone.
    assert all(
        not weight.variable.numpy()[~prune.masks[weight.name]].any()
        for weight in variables.kernels(model)
    )


def test_zeros_of_a_pruned_model_survive(keras):
    model = samples.compiled(keras)
    samples.fit(model, [Prune(final_sparsity=0.75, schedule="constant")])
    zeros = {w.name: w.variable.numpy() == 0 for w in variables.kernels(model)}
    cluster = Cluster(num_clusters=5)
    samples.fit(model, [cluster])
    for weight in variables.kernels(cluster.finalize(model)):
        assert not weight.variable.numpy()[zeros[weight.name]].any()


@pytest.mark.parametrize(
    ("normalized", "order"), [(True, (0, 1)), (False, (1, 0))], ids=str
)
def test_through_int8(keras, normalized, order):
    cluster = Cluster(num_clusters=7)
    methods = in_order([QuantizeAware(), cluster], order)
    model = training.prepare(samples.images(keras, normalized), methods)
    samples.fit_images(keras, model, methods)
    assert [row["distinct"] <= 7 for row in cluster.report if row["clustered"]] == [
        *(True, True, True)
    ]
    final = training.finalize(model, methods)
    kernels = samples.codes(final)
    assert [len(np.unique(kernel)) <= 7 for kernel in kernels] == [True] * 3
    # Every channel uses the whole range, with a scale of its own.
    assert all(np.abs(kernel).max() == 127 for kernel in kernels[0])
    assert len(np.unique(final.get_layer("head").get_weights()[0])) > 7


def test_the_file_has_many_codes_without_clusters(keras):
    methods = [QuantizeAware()]
    model = training.prepare(samples.images(keras), methods)
    samples.fit_images(keras, model, methods)
    assert samples.most_codes(training.finalize(model, methods)) > 50


@pytest.mark.parametrize(("order", "weight_bits"), [((0, 1, 2), 8), ((2, 1, 0), 4)])
def test_all_three(keras, order, weight_bits):
    prune = Prune(final_sparsity=0.6, end_step=9)
    quantize = QuantizeAware(weight_bits=weight_bits)  # a coarser grid beside clusters
    cluster = Cluster(num_clusters=6, begin_step=9)
    methods = in_order([quantize, prune, cluster], order)
    model = training.prepare(samples.images(keras), methods)
    samples.fit_images(keras, model, methods)
    final = training.finalize(model, methods)
    for kernel in samples.codes(final):
        assert len(np.unique(kernel)) <= 6
        assert np.mean(kernel == 0) > 0.59


def test_one_scale_per_weight(keras):
    methods = [QuantizeAware(per_channel=False), Cluster(num_clusters=6)]
    model = training.prepare(samples.images(keras, normalized=False), methods)
    samples.fit_images(keras, model, methods)
    final = training.finalize(model, methods)
    assert max(samples.distinct(final).values()) <= 6
    assert samples.most_codes(final) <= 6


def test_prepared_saved_and_resumed(keras, tmp_path):
    methods = [QuantizeAware(), Cluster(num_clusters=6)]
    model = training.prepare(samples.images(keras), methods)
    samples.fit_images(keras, model, methods, epochs=1)
    _keras.save(model, tmp_path / "model.keras")
    loaded = _keras.load(tmp_path / "model.keras")
    again = [QuantizeAware(), Cluster(num_clusters=6)]
    again[1].finalize(loaded)  # without having trained
    first = loaded.get_layer("head").get_weights()[0]
    samples.fit_images(keras, loaded, again, epochs=1)
    assert np.abs(loaded.get_layer("head").get_weights()[0] - first).max() > 1e-4
    assert samples.most_codes(training.finalize(loaded, again)) <= 6


def test_channel_scales_without_training(keras):
    """Clusters for a file that the converter will quantize by itself."""
    model = samples.images(keras, normalized=False)
    head = model.get_layer("head")
    head.kernel.assign(head.kernel.numpy() * [1, 2, 3, 5, 8])
    x, _ = samples.image_data()
    found = []
    for channel_scales in (True, False):
        small = cluster_once(model, 7, channel_scales=channel_scales)
        content = convert(
            small, quantization="int8", representative_dataset=x, verify=False
        )
        (dense,) = (
            tensor.codes()
            for tensor in tflite_file.read(content).subgraphs[0].tensors
            if tensor.is_constant and tensor.shape == (5, 96)
        )
        found.append(len(np.unique(dense)))
    assert found[0] <= 7 < found[1]
