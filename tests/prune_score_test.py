"""Prune's scores against NumPy, under every way of running a training step."""

import itertools

import numpy as np
import prune_samples as samples
import pytest
import tensorflow as tf
from prune_samples import STEPS

from tfopt import masks
from tfopt._keras import activations, gradients, variables
from tfopt.methods import _scores
from tfopt.methods.prune import Prune
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras


def products(model, x, y):
    """w * dL/dw of one batch by kernel name, with gradients in NumPy."""
    found = {}
    for weight in variables.kernels(model):
        start = weight.variable.numpy()
        found[weight.name] = start * gradient_of(model, x, y, weight)
    return found


def gradient_of(model, x, y, weight):
    """The gradient of the softmax cross-entropy of the two dense layers, by hand."""
    first, bias, second, last = (v.astype(np.float64) for v in model.get_weights())
    hidden = np.maximum(x @ first + bias, 0)
    logits = hidden @ second + last
    odds = np.exp(logits - logits.max(1, keepdims=True))
    odds /= odds.sum(1, keepdims=True)
    odds[np.arange(len(y)), y] -= 1
    odds /= len(y)
    if weight.name == "second/kernel":
        return hidden.T @ odds
    return x.T @ ((odds @ second.T) * (hidden > 0))


def frozen(keras, **options):
    """A model that training does not change, so that gradients are known."""
    return samples.compiled(keras, optimizer=keras.optimizers.SGD(0.0), **options)


def batches():
    x, y = samples.data()
    for start in range(0, len(x), samples.BATCH):
        yield x[start : start + samples.BATCH], y[start : start + samples.BATCH]


WAYS = [
    {},
    {"jit_compile": True},
    {"run_eagerly": True},
    {"steps_per_execution": 2},
]


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("score", ["gradient", "movement"])
def test_observed_scores_are_numpys(keras, score, options):
    model = frozen(keras, **options)
    found = [products(model, x, y) for x, y in batches()]
    prune = Prune(
        final_sparsity=0.5, schedule="constant", begin_step=4, frequency=99, score=score
    )
    samples.fit(model, [prune], epochs=1)
    # With steps_per_execution=2 the masks of step 4 are made before steps 3 and 4.
    seen = 3 if not options.get("steps_per_execution") else 2
    for name, mask in prune.masks.items():
        rows = np.stack([one[name] for one in found[:seen]])
        expected = np.abs(rows).mean(0) if score == "gradient" else -rows.sum(0)
        assert np.array_equal(mask, masks.compute([expected], 0.5)[0]), name
        # One batch more would be noticed.
        more = np.stack([one[name] for one in found])
        other = np.abs(more).mean(0) if score == "gradient" else -more.sum(0)
        assert not np.array_equal(mask, masks.compute([other], 0.5)[0]), name


@pytest.mark.parametrize("score", ["gradient", "movement"])
def test_the_training_is_what_it_was(keras, score):
    """Observing changes no gradient, and nothing of it is left."""
    weights = samples.dense(keras).get_weights()
    prune = Prune(
        final_sparsity=0.5, schedule="constant", score=score, begin_step=2 * STEPS
    )
    results = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                results.append(self.model.get_weights())

    for callbacks in ([Look()], [prune, Look()]):
        model = samples.compiled(keras)
        model.set_weights(weights)
        samples.fit(model, callbacks)
        assert not {"apply", "apply_gradients"} & set(vars(model.optimizer))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


def test_gradient_averages_start_anew_with_each_mask(keras):
    model = frozen(keras)
    found = [products(model, x, y) for x, y in batches()]
    scorer = _scores.Scorer(
        "gradient", model, variables.kernels(model), data=None, seed=0
    )
    scorer.install()
    model.make_train_function(force=True)
    values = {w.name: w.variable.numpy() for w in variables.kernels(model)}
    for first, last in ((0, 2), (2, 5)):
        for x, y in list(batches())[first:last]:
            model.fit(x, y, batch_size=samples.BATCH, verbose=0)
        expected = np.mean(
            [np.abs(one["first/kernel"]) for one in found[first:last]], 0
        )
        scores = scorer.compute(values)
        np.testing.assert_allclose(scores["first/kernel"], expected, atol=1e-7)
    again = scorer.compute(values)  # nothing new: the last ones
    np.testing.assert_array_equal(again["first/kernel"], scores["first/kernel"])
    scorer.remove()


def test_gradient_on_data_at_initialisation(keras):
    """As SNIP does: masks before the first step, from some batches."""
    model = samples.compiled(keras)
    data = list(batches())[:3]
    found = [products(model, x, y)["first/kernel"] for x, y in data]
    prune = Prune(final_sparsity=0.8, schedule="constant", score="gradient", data=data)
    watcher = samples.watch(keras)
    samples.fit(model, [prune, watcher], epochs=1)
    (expected,) = masks.compute([np.abs(found).mean(0)], 0.8)
    assert np.array_equal(prune.masks["first/kernel"], expected)
    assert all(zeros["first/kernel"] == 154 for _, zeros in watcher.seen)


def test_activation_is_magnitude_times_input_norm(keras):
    model = frozen(keras)
    x, y = samples.data()
    x = x * np.linspace(0.1, 3, 12, dtype=np.float32)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    hidden = np.maximum(x @ model.get_layer("first").kernel.numpy(), 0)
    prune = Prune(
        final_sparsity=0.5, schedule="constant", score="activation", data=data
    )
    values = {w.name: np.abs(w.variable.numpy()) for w in variables.kernels(model)}
    samples.fit(model, [prune], epochs=1)
    for name, inputs in (("first/kernel", x), ("second/kernel", hidden)):
        score = values[name] * np.sqrt(np.mean(inputs**2, axis=0))[:, None]
        assert np.array_equal(prune.masks[name], masks.compute([score], 0.5)[0]), name
        assert not np.array_equal(
            prune.masks[name], masks.compute([values[name]], 0.5)[0]
        )
    assert "call" not in vars(model.get_layer("first"))


def test_input_norms_of_layers(keras):
    layers = keras.layers
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 5, 5, 4)).astype(np.float32)
    inputs = keras.Input((5, 5, 4))
    x = layers.Conv2D(6, 3, groups=2, name="grouped")(inputs)
    y = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(inputs)
    z = layers.Conv2DTranspose(3, 3, name="transposed")(inputs)
    e = layers.EinsumDense("abcd,de->abce", (None, None, 3), name="einsum")(inputs)
    c = layers.EinsumDense("abcd,cde->abe", (None, 3), name="contract")(inputs)
    model = keras.Model(inputs, [x, y, z, e, c])
    norms = activations.input_norms(model, variables.kernels(model), [image])
    rms = np.sqrt(np.mean(image.astype(np.float64) ** 2, axis=(0, 1, 2)))
    by_name = {name.split("/")[0]: value for name, value in norms.items()}
    close = np.testing.assert_allclose
    close(by_name["grouped"][0, :, 0], rms[:2])
    close(by_name["grouped"][0, :, 5], rms[2:])
    close(by_name["depthwise"][0, 0], np.repeat(rms, 2))
    close(by_name["transposed"][0, :, 0], rms)
    close(by_name["einsum"][0, :, 0], rms)
    inner = np.sqrt(np.mean(image.astype(np.float64) ** 2, axis=(0, 1)))
    close(by_name["contract"][0, :, 0], inner.ravel())


def test_attention_and_embedding_have_input_norms(keras):
    layers = keras.layers
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(4, 8, name="table")(tokens)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    model = keras.Model(tokens, x)
    batch = np.array([[0, 0, 0, 1, 1, 2]])
    weights = variables.kernels(model)
    norms = activations.input_norms(model, weights, [batch])
    expected = np.sqrt([3 / 6, 2 / 6, 1 / 6, 0])
    np.testing.assert_allclose(norms["table/embeddings"][0, :, 0], expected)
    table = model.get_layer("table").embeddings.numpy()[batch[0]]
    rms = np.sqrt(np.mean(table.astype(np.float64) ** 2, axis=0))
    query = next(name for name in norms if "query" in name)
    np.testing.assert_allclose(norms[query][0, :, 0], rms, rtol=1e-6)
    assert len(norms) == len(weights) == 5


def test_random_is_the_same_again_and_another_with_another_seed(keras):
    found = []
    for seed in (0, 0, 1):
        model = samples.compiled(keras)
        prune = Prune(final_sparsity=0.5, end_step=9, score="random", seed=seed)
        watcher = samples.watch(keras)
        samples.fit(model, [prune, watcher])
        counts = [zeros["first/kernel"] for _, zeros in watcher.seen]
        assert counts == sorted(counts)
        found.append(prune.masks["first/kernel"])
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize("score", ["gradient", "movement", "random"])
def test_what_is_pruned_stays_pruned(keras, score):
    model = samples.compiled(keras)
    prune = Prune(
        final_sparsity=0.8, end_step=10, begin_step=1, frequency=1, score=score
    )
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(model.get_layer("first").kernel.numpy() == 0)

    samples.fit(model, [prune, Look()])
    for before, after in itertools.pairwise(seen):
        assert not (before & ~after).any()
    assert np.count_nonzero(seen[-1]) == 154


def test_embedding_gradients_are_made_dense(keras):
    slices = tf.IndexedSlices(
        tf.constant([[1.0, 2], [10, 20], [100, 200]]),
        tf.constant([2, 0, 2]),
        tf.constant([4, 2]),
    )
    dense = gradients.dense(slices).numpy().tolist()
    assert dense == [[10, 20], [0, 0], [101, 202], [0, 0]]


def test_scores_that_are_not_there_yet(keras):
    prune = Prune(final_sparsity=0.5, schedule="constant", score="movement")
    with pytest.raises(TfoptError, match="No gradient was seen"):
        samples.fit(samples.compiled(keras), [prune])


def test_a_default_ramp_waits_for_the_first_gradients(keras):
    model = samples.compiled(keras, steps_per_execution=2)
    prune = Prune(final_sparsity=0.8, score="gradient")
    samples.fit(model, [prune])
    prune.finalize(model)


def test_a_weight_without_gradient_is_named(keras):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.used = keras.layers.Dense(5, name="used")
            self.idle = keras.layers.Dense(5, name="idle")

        def call(self, x):
            self.idle(x)
            return self.used(x)

    model = Net()
    model(samples.data()[0])
    samples.compiled(keras, model)
    prune = Prune(final_sparsity=0.5, begin_step=1, end_step=3, score="gradient")
    with pytest.raises(TfoptError, match="weight='idle/kernel'"):
        samples.fit(model, [prune])


def test_activation_refuses_recurrent_cells(keras):
    inputs = keras.Input((12,))
    x = keras.layers.GRU(4, name="gru")(keras.layers.Reshape((4, 3))(inputs))
    model = samples.compiled(keras, keras.Model(inputs, keras.layers.Dense(5)(x)))
    options = {"schedule": "constant", "score": "activation"}
    prune = Prune(final_sparsity=0.5, data=[samples.data()], **options)
    with pytest.raises(TfoptError, match=r"weight='gru/.*kernel' of GRUCell"):
        samples.fit(model, [prune])


@pytest.mark.parametrize("score", ["gradient", "movement"])
def test_going_on_in_the_middle_of_a_schedule(keras, score, caplog):
    """Zeros stay until there is a score again, and that is said."""
    model = samples.compiled(keras)
    options = {"begin_step": 1, "end_step": 10, "frequency": 3, "score": score}
    with pytest.warns(UserWarning, match="ends after the training"):
        samples.fit(model, [Prune(final_sparsity=0.8, **options)], epochs=1)
    assert "goes on" not in caplog.text
    first = samples.zeros(model)["first/kernel"]
    prune, watcher = Prune(final_sparsity=0.8, **options), samples.watch(keras)
    with caplog.at_level("WARNING", "tfopt"):
        samples.fit(model, [prune, watcher], epochs=2, initial_epoch=1)
    assert "goes on at step 6" in caplog.text
    counts = [zeros["first/kernel"] for _, zeros in watcher.seen]
    assert counts == sorted(counts)
    assert counts[0] == first > 0
    prune.finalize(model)
    caplog.clear()
    with caplog.at_level("WARNING", "tfopt"):  # masks are final
        samples.fit(model, [Prune(final_sparsity=0.8, **options)], epochs=1)
    assert not caplog.text
    assert samples.zeros(model) == samples.expected_zeros(model, 0.8)
