"""prune_once and sensitivity: pruning without training."""

import numpy as np
import prune_samples as samples
import pytest

from tfopt import masks
from tfopt._keras import variables
from tfopt.methods.prune import Prune
from tfopt.pruning import Sensitivity, prune_once, sensitivity
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras


def test_a_copy_is_pruned_by_magnitude(keras):
    model = samples.dense(keras)
    before = model.get_weights()
    pruned = prune_once(model, 0.8)
    assert samples.zeros(pruned) == samples.expected_zeros(model, 0.8)
    for weight, other in zip(before, model.get_weights(), strict=True):
        assert np.array_equal(weight, other)
    (expected,) = masks.compute([np.abs(before[0])], 0.8)
    assert np.array_equal(pruned.get_weights()[0], before[0] * expected)
    Prune(final_sparsity=0.8).finalize(pruned)
    same = prune_once(model, 0.8, in_place=True)
    assert same is model
    assert np.array_equal(model.get_weights()[0], pruned.get_weights()[0])


@pytest.mark.parametrize(
    ("options", "zeros"),
    [
        ({"sparsity": 0.9, "scope": "global"}, (None, None)),
        ({"structure": "2:4"}, (96, 40)),
        ({"sparsity": 0.5, "structure": "4x1"}, (96, 40)),
        ({"sparsity": 0.5, "structure": "channel"}, (96, 0)),
        ({"sparsity": 0.5, "exclude": "first"}, (0, 40)),
        ({"per_layer": {"first": 0.25}}, (48, 0)),
        ({"sparsity": 0.5, "per_layer": {"first": 0.25}}, (48, 40)),
        ({"sparsity": 0.5, "score": "random", "seed": 3}, (96, 40)),
    ],
    ids=str,
)
def test_options(keras, options, zeros):
    pruned = prune_once(samples.dense(keras), **options)
    found = tuple(samples.zeros(pruned).values())
    if zeros[0] is None:
        assert sum(found) == 272 - masks.num_kept(272, 0.9)
    else:
        assert found == zeros
    if options.get("structure") == "channel":
        alive = pruned.get_layer("first").kernel.numpy().any(axis=0)
        assert np.count_nonzero(alive) == 8


def test_scores_on_data(keras):
    x, y = samples.data()
    x = x * np.linspace(0.1, 3, 12, dtype=np.float32)
    model = samples.compiled(keras)
    kernel = np.abs(model.get_layer("first").kernel.numpy())
    by_input = prune_once(model, 0.5, score="activation", data=[x[:16], x[16:32]])
    score = kernel * np.sqrt(np.mean(x[:32] ** 2, axis=0))[:, None]
    kept = by_input.get_weights()[0] != 0
    assert np.array_equal(kept, masks.compute([score], 0.5)[0])
    by_loss = prune_once(model, 0.5, score="gradient", data=[(x, y)])
    assert samples.zeros(by_loss) == samples.expected_zeros(model, 0.5)
    assert not np.array_equal(by_loss.get_weights()[0] != 0, kept)
    with pytest.raises(TfoptError, match="compiled model"):
        prune_once(samples.dense(keras), 0.5, score="gradient", data=[(x, y)])
    with pytest.raises(TfoptError, match="type ndarray"):
        prune_once(model, 0.5, score="gradient", data=[x])
    with pytest.raises(TfoptError, match="0 batches"):
        prune_once(model, 0.5, score="gradient", data=[])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "sparsity=None"),
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"sparsity": 0.8, "structure": "2:4"}, "sparsity=0.8"),
        ({"sparsity": 0.5, "scope": "all"}, "scope='all'"),
        ({"sparsity": 0.5, "score": "movement"}, "score='movement'"),
        ({"sparsity": 0.5, "score": "gradient"}, "data=None"),
        ({"sparsity": 0.5, "include": "third"}, "include='third'"),
        ({"sparsity": 0.5, "block_pooling": "sum"}, "block_pooling='sum'"),
    ],
)
def test_wrong_arguments(keras, arguments, message):
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        prune_once(samples.dense(keras), **arguments)


def quadratic(model):
    """A metric that is known: what pruning takes from the sum of squares."""
    first, second = (w.variable.numpy() for w in variables.kernels(model))
    return float(np.square(first).sum() + 5 * np.square(second).sum())


@pytest.fixture(scope="module")
def measured():
    import tensorflow as tf

    tf.keras.utils.set_random_seed(0)
    model = samples.dense(tf.keras)
    return model, sensitivity(
        model, None, metric=quadratic, sparsities=(0.25, 0.5, 0.75, 0.95)
    )


def test_sensitivity_is_the_metric_of_each_layer_pruned_alone(measured):
    model, found = measured
    assert found.metric == "quadratic"
    assert found.higher_is_better
    assert found.baseline == quadratic(model)
    assert found.sizes == {"first/kernel": 192, "second/kernel": 80}
    for name, row in found.values.items():
        for sparsity, value in zip(found.sparsities, row, strict=True):
            pruned = prune_once(model, per_layer={name: sparsity})
            assert value == pytest.approx(quadratic(pruned), rel=1e-6)
    assert samples.zeros(model) == {"first/kernel": 0, "second/kernel": 0}


def test_solve_is_the_best_division(measured):
    _, found = measured
    for total in (0.0, 0.3, 0.6, 0.9):
        per_layer = found.solve(total)
        zeros = sum(per_layer[name] * size for name, size in found.sizes.items())
        assert zeros == pytest.approx(total * 272, abs=1e-6)
        chosen = cost(found, per_layer)
        for first in np.linspace(0, 0.95, 400):
            second = (total * 272 - 192 * first) / 80
            if 0 <= second <= 0.95:
                other = {"first/kernel": first, "second/kernel": second}
                assert chosen <= cost(found, other) + 1e-6
    assert found.solve(0.6)["second/kernel"] < 0.6 < found.solve(0.6)["first/kernel"]
    with pytest.raises(ValueError, match=r"total_sparsity=0\.97"):
        found.solve(0.97)


def cost(found, per_layer):
    """The sum of the measured curves, straight between points; they are convex."""
    grid = (0.0, *found.sparsities)
    losses = [
        np.interp(per_layer[name], grid, [0, *(found.baseline - v for v in row)])
        for name, row in found.values.items()
    ]
    return sum(losses)


def test_bends_of_a_curve_are_bridged():
    found = Sensitivity("loss", False, 1.0, (0.5, 0.9), {"a": 10}, {"a": (3.0, 1.5)})
    assert found.solve(0.9) == {"a": 0.9}
    better = Sensitivity(
        "loss", False, 1.0, (0.5, 0.9), {"a": 10, "b": 10}, {"a": (3, 1), "b": (1, 2)}
    )
    # A noisy gain is no gain: costs never fall.
    assert better.solve(0.25) == {"a": 0.0, "b": 0.5}


def test_saved_and_loaded(measured, tmp_path):
    _, found = measured
    found.save(tmp_path / "sensitivity.json")
    loaded = Sensitivity.load(tmp_path / "sensitivity.json")
    assert loaded == found
    assert loaded.solve(0.5) == found.solve(0.5)
    text = str(loaded)
    assert "first/kernel" in text
    assert "0.95" in text
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json"):
        Sensitivity.load(tmp_path / "other.json")


@pytest.mark.parametrize("structure", ["unstructured", "channel"])
def test_sensitivity_of_a_compiled_metric(keras, structure):
    model = samples.dense(keras)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    data = samples.data()
    before = model.get_weights()
    options = {"sparsities": (0.5, 0.9), "structure": structure}
    found = sensitivity(model, data, metric="accuracy", **options)
    assert found.higher_is_better
    assert not sensitivity(model, data, **options).higher_is_better
    names = ["first/kernel"] + ["second/kernel"] * (structure == "unstructured")
    assert list(found.values) == names
    for weight, other in zip(before, model.get_weights(), strict=True):
        assert np.array_equal(weight, other)
    pruned = prune_once(model, structure=structure, per_layer=found.solve(0.45))
    zeros = sum(samples.zeros(pruned).values())
    assert zeros == pytest.approx(0.45 * sum(found.sizes.values()), abs=12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsities": ()}, "sparsities="),
        ({"sparsities": (0.5, 0.5)}, "sparsities="),
        ({"sparsities": (0.0, 0.5)}, "sparsities="),
        ({"sparsities": "half"}, "sparsities="),
        ({"score": "gradient"}, "score='gradient'"),
        ({"structure": "2:4"}, "structure='2:4'"),
        ({"metric": lambda model: float("nan")}, "=nan"),
        ({"metric": "f1"}, "metric='f1'"),
    ],
)
def test_wrong_arguments_of_sensitivity(keras, options, message):
    model = samples.compiled(keras)
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        sensitivity(model, samples.data(), **options)
