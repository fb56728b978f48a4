"""k-means in one dimension, against trying everything."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tfopt.methods import _centroids


def cost(values, centroids):
    return np.min((values[:, None] - centroids) ** 2, axis=1).sum()


def best_cost(values, count):
    """Of all ways to cut the sorted values into intervals."""
    values = np.sort(values)
    return min(
        sum(((part - part.mean()) ** 2).sum() for part in np.split(values, cuts))
        for cuts in itertools.combinations(range(1, len(values)), count - 1)
    )


@pytest.mark.parametrize("initialization", _centroids.INITIALIZATIONS)
def test_near_the_best_of_all_partitions(initialization):
    # One start finds a local optimum, some starts the global one.
    for seed in range(5):
        values = np.random.default_rng(seed).normal(size=14)
        found = [
            _centroids.find(values, 3, initialization=initialization, seed=start)
            for start in range(10)
        ]
        best = best_cost(values, 3)
        costs = [cost(values, centroids) for centroids in found]
        assert min(costs) >= best * (1 - 1e-9)
        assert min(costs) < best * 1.2
        assert cost(values, np.linspace(-1, 1, 3)) > best * 1.2  # negative control


@pytest.mark.parametrize("initialization", _centroids.INITIALIZATIONS)
def test_a_fixed_point_of_lloyds_algorithm(initialization):
    values = np.random.default_rng(0).laplace(size=2000)
    pinned = (-1.0, 0.0, 4.0)
    centroids = _centroids.find(
        values, 9, initialization=initialization, pinned=pinned, seed=3
    )
    assert np.all(np.diff(centroids) > 0)
    assert set(pinned) <= set(centroids)
    nearest = np.abs(values[:, None] - centroids).argmin(axis=1)
    for index, centroid in enumerate(centroids):
        if centroid not in pinned and (nearest == index).any():
            assert values[nearest == index].mean() == pytest.approx(centroid)


def test_few_different_values_are_the_centroids():
    assert _centroids.find([3.0, 1, 3, 2], 3).tolist() == [1, 2, 3]
    assert _centroids.find([3.0, 1], 4, pinned=[0.0]).tolist() == [0, 1, 3, 3]
    assert _centroids.find([0.0, 0.0], 3, pinned=[-1.0, 0.0]).tolist() == [-1, 0, 0]


def test_seeds_draw_differently_and_repeatably():
    values = np.random.default_rng(0).normal(size=300)
    first, again, other = (_centroids.find(values, 20, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


TFMOT = """
import json, sys
import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras as keras

cluster = tfmot.clustering.keras
start = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
found = []
for name in json.loads(sys.argv[1]):
    layers = [keras.Input((64,)), keras.layers.Dense(32, use_bias=False)]
    model = keras.Sequential(layers)
    model.set_weights([start])
    model = cluster.cluster_weights(
        model, number_of_clusters=16,
        cluster_centroids_init=cluster.CentroidInitialization[name])
    found.append(cluster.strip_clustering(model).get_weights()[0].tolist())
print(json.dumps(found))
"""


@pytest.mark.slow
def test_never_worse_than_tfmot():
    """TFMOT leaves its first centroids to the training; k-means goes on from them."""
    names = ["KMEANS_PLUS_PLUS", "LINEAR", "DENSITY_BASED", "RANDOM"]
    done = subprocess.run(
        [sys.executable, "-c", TFMOT, json.dumps(names)],
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    start = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    theirs = json.loads(done.stdout.splitlines()[-1])
    for initialization, kernel in zip(_centroids.INITIALIZATIONS, theirs, strict=True):
        assert len(np.unique(kernel)) <= 16
        mine = _centroids.find(start, 16, initialization=initialization)
        assert cost(start.ravel(), mine) <= ((np.array(kernel) - start) ** 2).sum()
