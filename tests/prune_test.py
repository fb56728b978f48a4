"""Prune: exactly as sparse as the schedule says, at every moment, in every model."""

import numpy as np
import prune_samples as samples
import pytest
from prune_samples import STEPS

from tfopt import masks
from tfopt._keras import variables
from tfopt.methods.prune import Prune
from tfopt.schedules import ConstantSparsity, PolynomialDecay

pytestmark = pytest.mark.both_keras

# 12 training steps: begins off 0, ends off the grid and before the last step.
RAMP = PolynomialDecay(0.2, 0.8, begin_step=2, end_step=9, frequency=3)


def seen_by_both_sides(keras, model, prune, **options):
    """Fits with a watcher before and one after Prune; they must see the same."""
    before, after = samples.watch(keras), samples.watch(keras)
    samples.fit(model, [before, prune, after], **options)
    assert before.seen == after.seen
    return before.seen


@pytest.mark.parametrize("fitted_before", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"jit_compile": True},
        {"steps_per_execution": 4},
        {"run_eagerly": True},
    ],
    ids=str,
)
def test_exact_after_every_batch(keras, options, fitted_before):
    model = samples.compiled(keras, **options)
    schedule = RAMP
    if fitted_before:  # traces the training step without masks; counts steps
        samples.fit(model, epochs=1)
        schedule = PolynomialDecay(0.2, 0.8, STEPS + 2, STEPS + 9, frequency=3)
    seen = seen_by_both_sides(keras, model, Prune(schedule=schedule))
    assert samples.is_exact(seen, model, schedule)
    assert samples.zeros(model) == samples.expected_zeros(model, 0.8)


def test_the_watcher_notices_dense_weights(keras):
    model, watcher = samples.compiled(keras), samples.watch(keras)
    samples.fit(model, [watcher])
    assert not samples.is_exact(watcher.seen, model, RAMP)


def test_without_a_new_trace_weights_would_escape(keras, monkeypatch):
    model = samples.compiled(keras)
    samples.fit(model, epochs=1)
    monkeypatch.setattr(variables, "retrace", lambda model: None)
    with pytest.warns(UserWarning, match="written past the optimizer in epoch 0"):
        samples.fit(model, [Prune(final_sparsity=0.5, schedule="constant")], epochs=1)


def optimizers(keras):
    make = keras.optimizers
    found = {
        "sgd": lambda: make.SGD(0.1, momentum=0.9),
        "adamw": lambda: make.AdamW(0.01, weight_decay=0.1, clipnorm=1.0),
        "rmsprop": lambda: make.RMSprop(centered=True),
        "ema": lambda: make.Adam(0.01, use_ema=True, ema_momentum=0.5),
        "ema_overwrite": lambda: make.Adam(
            0.01, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=4
        ),
        "loss_scale": lambda: keras.mixed_precision.LossScaleOptimizer(make.Adam()),
    }
    if hasattr(make, "Muon"):  # Keras 3
        found["accumulation"] = lambda: make.Adam(gradient_accumulation_steps=3)
        # Keras 3.12's Muon fails on TensorFlow variables, with or without Prune.
        if not keras.__version__.startswith("3.12."):
            found["muon"] = lambda: make.Muon(0.01)
    else:
        found["legacy"] = lambda: make.legacy.Adam()
    return found


@pytest.mark.parametrize(
    "name",
    [
        *("sgd", "adamw", "rmsprop", "ema", "ema_overwrite", "loss_scale"),
        *("accumulation", "muon", "legacy"),
    ],
)
def test_optimizers(keras, name):
    if name not in optimizers(keras):
        pytest.skip(f"this Keras has no {name}")
    model = samples.compiled(keras, optimizer=optimizers(keras)[name]())
    # Accumulating the gradients of three batches, a step takes three of them.
    epochs = 6 if name == "accumulation" else 2
    seen = seen_by_both_sides(keras, model, Prune(schedule=RAMP), epochs=epochs)
    assert samples.is_exact(seen, model, RAMP)
    assert samples.zeros(model) == samples.expected_zeros(model, 0.8)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_low_precision(keras, policy):
    # In 16 bits a weight may become zero by itself; not with this seed.
    keras.utils.set_random_seed(1)
    model = samples.compiled(keras, samples.dense(keras, dtype=policy))
    seen = seen_by_both_sides(keras, model, Prune(schedule=RAMP))
    assert samples.is_exact(seen, model, RAMP)


def test_steps_that_loss_scaling_skips_do_not_hide_the_end(keras):
    scaled = keras.mixed_precision.LossScaleOptimizer(
        keras.optimizers.Adam(), initial_scale=2.0**40
    )
    model = samples.dense(keras, dtype="mixed_float16")
    model = samples.compiled(keras, model, optimizer=scaled)
    prune = Prune(schedule=PolynomialDecay(0.0, 0.8, 0, 2 * STEPS))
    samples.fit(model, [prune])
    prune.finalize(model)


@pytest.mark.parametrize("steps_per_execution", [1, 4, 5])
@pytest.mark.parametrize("end_step", [7, 2 * STEPS])
def test_final_sparsity_off_the_grid_and_at_the_last_step(
    keras, end_step, steps_per_execution
):
    model = samples.compiled(keras, steps_per_execution=steps_per_execution)
    prune = Prune(final_sparsity=0.75, end_step=end_step, frequency=100)
    seen = seen_by_both_sides(keras, model, prune)
    assert samples.is_exact(seen, model, PolynomialDecay(0, 0.75, 0, end_step))
    assert prune.finalize(model) is model
    assert seen[-1][1] == samples.expected_zeros(model, 0.75)


def test_constant_schedule(keras):
    model = samples.compiled(keras)
    prune = Prune(final_sparsity=0.6, schedule="constant", begin_step=5)
    seen = seen_by_both_sides(keras, model, prune)
    assert samples.is_exact(seen, model, ConstantSparsity(0.6, 5))


def test_global_scope(keras):
    model = samples.compiled(keras)
    model.get_layer("second").kernel.assign(model.get_layer("second").kernel * 1e-3)
    samples.fit(model, [Prune(final_sparsity=0.9, schedule="constant", scope="global")])
    zeros, sizes = samples.zeros(model), [12 * 16, 16 * 5]
    assert sum(zeros.values()) == sum(sizes) - masks.num_kept(sum(sizes), 0.9)
    # The weights of the second layer are tiny, but it does not die.
    assert zeros["second/kernel"] == 80 - 1
    assert zeros["first/kernel"] < 192 - masks.num_kept(192, 0.9)


def test_no_negative_zero_is_left(keras):
    model = samples.compiled(keras)
    samples.fit(model, [Prune(schedule=RAMP)])
    kernel = model.get_layer("first").kernel.numpy()
    assert not np.signbit(kernel[kernel == 0]).any()
    assert np.signbit(kernel).any()


def sequence_model(keras):
    layers = keras.layers
    tokens = keras.Input((12,))
    table = layers.Embedding(5, 8, name="table")
    x = table(layers.Lambda(lambda t: keras.activations.relu(t) * 0)(tokens))
    x = x + layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both")(x)
    x = layers.TimeDistributed(layers.Dense(6), name="each")(x)
    x = layers.GRU(5, name="gru")(x)
    return keras.Model(tokens, layers.Dense(5, name="head")(x))


def image_model(keras):
    layers = keras.layers
    inputs = keras.Input((12,))
    block = keras.Sequential(
        [
            layers.Input((3, 4, 4)),
            layers.Conv2D(4, 2, padding="same", name="conv"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(2, padding="same", name="depthwise"),
            layers.SeparableConv2D(6, 2, padding="same", name="separable"),
            layers.Conv2DTranspose(4, 2, padding="same", name="transposed"),
        ],
        name="block",
    )
    shared = layers.Dense(6, name="shared")
    x = layers.Flatten()(block(layers.Reshape((3, 4, 1))(inputs) * np.ones(4, "f")))
    x = shared(layers.Dense(6, name="middle")(x)) + shared(layers.Dense(6)(x))
    return keras.Model(inputs, layers.Dense(5, name="head")(x))


def subclassed_model(keras):
    class Block(keras.layers.Layer):
        def __init__(self, units, **options):
            super().__init__(**options)
            self.inner = [keras.layers.Dense(units), keras.layers.Dense(units)]

        def build(self, shape):
            self.w = self.add_weight(name="w", shape=(shape[-1], shape[-1]))
            self.scale = self.add_weight(name="scale", shape=(shape[-1],))
            super().build(shape)

        def call(self, x):
            x = keras.activations.relu(x @ self.w * self.scale)
            for layer in self.inner:
                x = layer(x)
            return x

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = {"a": Block(7), "b": Block(5)}
            self.seen = keras.metrics.Mean()

        def call(self, x):
            return self.blocks["b"](self.blocks["a"](x))

    model = Net()
    model(np.zeros((1, 12), np.float32))
    return model


@pytest.mark.parametrize(
    ("build", "kernels"),
    [(sequence_model, 13), (image_model, 9), (subclassed_model, 6)],
)
def test_kinds_of_models(keras, build, kernels):
    model = samples.compiled(keras, build(keras))
    prune = Prune(schedule=RAMP)
    seen = seen_by_both_sides(keras, model, prune)
    assert samples.is_exact(seen, model, RAMP)
    pruned = [row["name"] for row in prune.report if row["pruned"]]
    assert len(pruned) == kernels == len(samples.zeros(model))
    prune.finalize(model)


def test_own_constraint_is_kept_and_restored(keras):
    constraint = keras.constraints.MaxNorm(0.5)
    model = samples.dense(keras, kernel_constraint=constraint)
    model = samples.compiled(keras, model, optimizer=keras.optimizers.SGD(0.5))
    kernel = model.get_layer("first").kernel
    samples.fit(model, [Prune(schedule=RAMP)])
    assert kernel.constraint is constraint
    assert np.linalg.norm(kernel.numpy(), axis=0).max() < 0.5 + 1e-5
    assert samples.zeros(model) == samples.expected_zeros(model, 0.8)
    assert model.get_layer("second").bias.constraint is None


def test_after_training_nothing_is_left(keras):
    model = samples.compiled(keras)
    samples.fit(model, [Prune(schedule=RAMP)])
    assert all(v.constraint is None for v in model.trainable_weights)
    assert not any(v.trainable is False for v in model.weights)
    # A later fit without Prune trains all weights, with a step traced anew.
    samples.fit(model, epochs=1)
    assert not any(samples.zeros(model).values())


def test_checkpoints_in_the_middle_of_training_are_sparse(keras, tmp_path):
    model = samples.compiled(keras)
    path = str(tmp_path / "{epoch}.weights.h5")
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    whole = keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras"))
    samples.fit(model, [checkpoint, whole, Prune(schedule=RAMP)])
    for epoch, sparsity in ((1, RAMP(5)), (2, 0.8)):
        copy = samples.dense(keras)
        copy.load_weights(tmp_path / f"{epoch}.weights.h5")
        assert samples.zeros(copy) == samples.expected_zeros(copy, sparsity)
        loaded = keras.models.load_model(tmp_path / f"{epoch}.keras")
        assert samples.zeros(loaded) == samples.expected_zeros(copy, sparsity)


def test_training_goes_on_under_the_masks(keras):
    model = samples.compiled(keras, optimizer=keras.optimizers.Adam(0.02))
    first = samples.fit(model, epochs=1).history["loss"][0]
    prune = Prune(final_sparsity=0.5, schedule="constant")
    last = samples.fit(model, [prune], epochs=40).history["loss"][-1]
    assert last < first / 2
    prune.finalize(model)


def test_masks_are_those_of_the_largest_weights(keras):
    model = samples.compiled(keras, optimizer=keras.optimizers.SGD(0.0))
    kernel = model.get_layer("first").kernel
    start = np.abs(kernel.numpy())
    prune = Prune(final_sparsity=0.5, schedule="constant")
    samples.fit(model, [prune])
    (expected,) = masks.compute([start], 0.5)
    assert np.array_equal(prune.masks["first/kernel"], expected)
    assert np.array_equal(kernel.numpy() != 0, expected)


def test_quantization_aware_model(keras):
    from tfopt.methods.quantize_aware import QuantizeAware

    model = samples.dense(keras)
    methods = [QuantizeAware(), Prune(schedule=RAMP)]
    for method in methods:
        model = method.prepare(model)
    samples.compiled(keras, model)
    before = samples.watch(keras)
    samples.fit(model, [before, *methods])
    assert samples.is_exact(before.seen, model, RAMP)
    for method in reversed(methods):
        model = method.finalize(model)
    # Rounding to eight bits may add zeros, never take one.
    zeros, expected = samples.zeros(model), samples.expected_zeros(model, 0.8)
    assert all(zeros[name] >= count for name, count in expected.items())
