"""round_weights and prune_weights: the values they leave, and what compresses."""

import gzip

import numpy as np
import pytest
import tensorflow as tf
from transforms_linear_samples import difference, run, take
from transforms_weights_test import randoms

from tfopt.transforms import _constants
from tfopt.transforms._graph import Tensor
from tfopt.transforms.prune_weights import prune_weights
from tfopt.transforms.quantize_weights import quantize_weights
from tfopt.transforms.round_weights import on_grid, round_weights

v1 = tf.compat.v1
IDS = np.array([3, 0, 39])


def model_of(**weights):
    """A lookup in `table`, then a chain of products with the others."""

    def build(ids):
        x = tf.gather(tf.constant(weights["table"], name="table"), ids)
        for name, value in weights.items():
            if name != "table":
                x = tf.matmul(x, tf.constant(value, name=name))
        tf.nn.bias_add(x, tf.constant(randoms(x.shape[-1]), name="bias"), name="y")

    with tf.Graph().as_default() as graph:
        build(v1.placeholder(tf.int32, IDS.shape, "ids"))
    return take(graph.as_graph_def(), ["ids"], ["y"])


def value(model, name):
    return _constants.value_of(model.main, Tensor(name))


def again(model, transform, **options):
    once = model.to_graph_def()
    transform(model, **options)
    return model.to_graph_def() == once


# Rounding.


@pytest.mark.parametrize("num_steps", [2, 16, 256])
def test_round(num_steps):
    table, kernel = randoms(40, 48), randoms(48, 2000)
    kernel[:, ::3] = 0
    model = model_of(table=table, kernel=kernel)
    bias = value(model, "bias").copy()
    found = round_weights(model, num_steps=num_steps)
    assert found["rounded"] == 2
    np.testing.assert_array_equal(value(model, "bias"), bias)
    total = 0
    for name, old in (("table", table), ("kernel", kernel)):
        new = value(model, name)
        grid = np.linspace(old.min(), old.max(), num_steps, dtype=np.float64)
        nearest = np.abs(old[..., None] - grid).argmin(-1) if old.size < 5000 else None
        if nearest is not None:
            np.testing.assert_allclose(new, grid[nearest], rtol=0, atol=1e-6)
        assert len(np.unique(new)) <= num_steps + 1
        assert (new.min(), new.max()) == (old.min(), old.max())
        np.testing.assert_array_equal(new[old == 0], 0)
        error = np.abs(new - old).max()
        assert error <= (grid[1] - grid[0]) / 2 * 1.0001
        line = next(item for item in found["tensors"] if item["node"] == name)
        assert line["max_error"] == pytest.approx(error)
        total += len(gzip.compress(new.tobytes(), 4))
    assert found["gzip_after"] == pytest.approx(total, rel=0.001)
    assert found["gzip_after"] < 0.5 * found["gzip_before"]
    assert again(model, round_weights, num_steps=num_steps)


def test_grid_of_equal_values():
    flat = np.full((40, 40), 3.0, np.float32)
    assert on_grid(flat, 4) is flat


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_twice_changes_nothing(seed, dtype):
    values = randoms(50, 41, seed=seed, dtype=dtype) * 10.0 ** (seed - 2)
    once = on_grid(values, 37)
    assert not np.array_equal(once, values)
    np.testing.assert_array_equal(on_grid(once, 37), once)


# Pruning.


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_prune(sparsity):
    table, kernel = randoms(40, 48), randoms(48, 200)
    model = model_of(table=table, kernel=kernel)
    found = prune_weights(model, sparsity=sparsity)
    assert found["pruned"] == 2
    assert found["sparsity"] == pytest.approx(sparsity, abs=1e-3)
    assert found["gzip_after"] < found["gzip_before"]
    for name, old in (("table", table), ("kernel", kernel)):
        new = value(model, name)
        assert np.mean(new == 0) == pytest.approx(sparsity, abs=1e-3)
        assert np.abs(old[new == 0]).max() <= np.abs(old[new != 0]).min()
        np.testing.assert_array_equal(new[new != 0], old[new != 0])
    np.testing.assert_array_equal(value(model, "bias"), randoms(200))
    assert again(model, prune_weights, sparsity=sparsity)


def test_global_scope():
    table, kernel = randoms(40, 48), 10 * randoms(48, 200)
    model = model_of(table=table, kernel=kernel)
    found = prune_weights(model, sparsity=0.6, scope="global")
    assert found["sparsity"] == pytest.approx(0.6, abs=1e-3)
    shares = {item["node"]: item["sparsity"] for item in found["tensors"]}
    assert shares["table"] > 0.75 > 0.6 > shares["kernel"]
    assert again(model, prune_weights, sparsity=0.6, scope="global")


@pytest.mark.parametrize("transpose", [False, True])
def test_structures(transpose):
    kernel = randoms(48, 40)
    stored = kernel.T.copy() if transpose else kernel

    def build(x):
        w = tf.constant(stored, name="kernel")
        tf.matmul(x, w, transpose_b=transpose, name="y")

    def pruned(structure, sparsity=0.5):
        with tf.Graph().as_default() as graph:
            build(v1.placeholder(tf.float32, [3, 48], "x"))
        model = take(graph.as_graph_def(), ["x"], ["y"])
        prune_weights(model, structure=structure, sparsity=sparsity)
        new = value(model, "kernel")
        assert again(model, prune_weights, structure=structure, sparsity=sparsity)
        return new.T if transpose else new

    zeros = pruned("2:4").reshape(12, 4, 40) == 0
    assert (zeros.sum(1) == 2).all()
    zeros = pruned("4x1").reshape(12, 4, 40) == 0
    assert set(zeros.sum(1).ravel()) == {0, 4}
    zeros = pruned("channel", 0.25) == 0
    assert (zeros.all(0) == zeros.any(0)).all()
    np.testing.assert_array_equal(
        np.sort(np.flatnonzero(zeros.all(0))),
        np.sort(np.argsort(np.abs(kernel).mean(0))[:10]),
    )


def test_structures_leave_tables_alone():
    model = model_of(table=randoms(40, 48), kernel=randoms(48, 200))
    found = prune_weights(model, structure="2:4")
    assert [item["node"] for item in found["tensors"]] == ["kernel"]
    reasons = {item["node"]: item["reason"] for item in found["skipped"]}
    assert reasons["table"] == "has no inputs and outputs for '2:4'"


def test_pruned_then_rounded_then_quantized():
    """Zeros last through all of it."""
    table, kernel = randoms(40, 80), randoms(80, 200)
    model = model_of(table=table, kernel=kernel)
    prune_weights(model, sparsity=0.7)
    zeros = {name: value(model, name) == 0 for name in ("table", "kernel")}
    round_weights(model)
    reference = run(model, IDS)
    quantize_weights(model)
    for name, mask in zeros.items():
        assert not value(model, f"{name}/codes")[mask].any()
    assert difference(reference, run(model, IDS)) < 0.02


@pytest.mark.parametrize(
    ("transform", "options", "message"),
    [
        (round_weights, {"num_steps": 1}, "num_steps=1"),
        (round_weights, {"num_steps": 2.5}, "num_steps=2.5"),
        (round_weights, {"minimum_size": -3}, "minimum_size=-3"),
        (round_weights, {"include": "w*"}, "include='w\\*'"),
        (prune_weights, {"sparsity": 1.0}, "sparsity=1.0"),
        (prune_weights, {"scope": "layer"}, "scope='layer'"),
        (prune_weights, {"structure": "3"}, "structure='3'"),
        (prune_weights, {"exclude": ["w"]}, "exclude='w'"),
    ],
)
def test_wrong_options(transform, options, message):
    model = model_of(table=randoms(40, 48))
    with pytest.raises(ValueError, match=message):
        transform(model, **options)


@pytest.mark.parametrize("transform", [round_weights, prune_weights])
def test_nan_and_excluded(transform):
    kernel = randoms(48, 200)
    kernel[0, 0] = np.nan
    model = model_of(table=randoms(40, 48), kernel=kernel)
    before = model.to_graph_def()
    found = transform(model, exclude="table")
    reasons = {item["node"]: item["reason"] for item in found["skipped"]}
    assert reasons["table"] == "excluded"
    assert "NaN" in reasons["kernel"]
    assert model.to_graph_def() == before
    found = transform(model, include=["bias"], minimum_size=1)
    assert [item["node"] for item in found["tensors"]] == ["bias"]
