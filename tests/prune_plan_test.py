"""Prune within a training: plans that don't fit, resuming, aborting, verifying."""

import json
import logging

import numpy as np
import prune_samples as samples
import pytest
from prune_samples import STEPS

from tfopt._keras import variables
from tfopt.methods.prune import Prune
from tfopt.schedules import ConstantSparsity, PolynomialDecay
from tfopt.types import TfoptError, VerificationError

pytestmark = pytest.mark.both_keras


def ramp(begin_step, end_step, **options):
    return Prune(
        final_sparsity=0.8, begin_step=begin_step, end_step=end_step, **options
    )


def stop_after(keras, batches):
    """A callback that aborts a fit after some batches."""

    class Stop(keras.callbacks.Callback):
        left = batches

        def on_train_batch_end(self, batch, logs=None):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    return Stop()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"final_sparsity": None}, "final_sparsity=None"),
        ({"final_sparsity": 80}, "final_sparsity=80"),
        ({"initial_sparsity": 0.9}, "initial_sparsity=0.9, final_sparsity=0.8"),
        ({"begin_step": -1}, "begin_step=-1"),
        ({"begin_step": 7, "end_step": 7}, "begin_step=7, end_step=7"),
        ({"frequency": 0}, "frequency=0"),
        ({"power": -1}, "power=-1"),
        ({"schedule": "linear"}, "schedule='linear'"),
        ({"schedule": {"class_name": "Linear"}}, "Linear"),
        ({"schedule": ConstantSparsity(0.5)}, "final_sparsity=0.8"),
        ({"schedule": "constant", "initial_sparsity": 0.1}, "initial_sparsity=0.1"),
        ({"schedule": "constant", "power": 1}, "power=1"),
        ({"scope": "layer"}, "scope='layer'"),
        ({"include": 3}, "include=3"),
        ({"exclude": ["dense", ""]}, "exclude="),
        ({"keep_existing_zeros": 1}, "keep_existing_zeros=1"),
        (
            {"final_sparsity": None, "keep_existing_zeros": True, "end_step": 9},
            "end_step=9",
        ),
    ],
)
def test_wrong_arguments(arguments, message):
    Prune(final_sparsity=0.8)
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        Prune(**{"final_sparsity": 0.8, **arguments})


@pytest.mark.parametrize(
    "prune",
    [
        Prune(final_sparsity=0.8, initial_sparsity=0.1, end_step=9, power=2),
        Prune(final_sparsity=0.8, schedule="constant", scope="global"),
        Prune(schedule=PolynomialDecay(0.1, 0.5, 3, 9), include=["a*"], exclude="b"),
        Prune(keep_existing_zeros=True),
    ],
)
def test_config_round_trip(prune):
    config = json.loads(json.dumps(prune.get_config()))
    copy = Prune.from_config(config)
    assert copy.get_config() == prune.get_config()
    assert copy.schedule == prune.schedule


def test_schedule_after_the_training_raises(keras):
    model = samples.compiled(keras)
    with pytest.raises(ValueError, match=r"begin_step=13, .* from step 0 to 12"):
        samples.fit(model, [ramp(13, 20)])
    assert all(v.constraint is None for v in model.trainable_weights)


def test_schedule_that_ends_after_the_training_warns(keras, caplog):
    model = samples.compiled(keras)
    prune = ramp(0, 24, frequency=12)
    reached = PolynomialDecay(0, 0.8, 0, 24)(12)
    with (
        pytest.warns(UserWarning, match=f"will be {reached:.4f} and not 0.8.*24;"),
        caplog.at_level(logging.WARNING, "tfopt"),
    ):
        samples.fit(model, [prune])
    assert samples.zeros(model) == samples.expected_zeros(model, reached)
    assert "ended at step 12 and the schedule at step 24" in caplog.text
    with pytest.raises(VerificationError, match="at least 154 zeros in 192 weights"):
        prune.finalize(model)


def test_schedule_before_the_training_raises(keras):
    model = samples.compiled(keras)
    samples.fit(model)
    with pytest.raises(ValueError, match=r"end_step=9; training from step 12 to 24"):
        samples.fit(model, [ramp(0, 9)])


def test_jump_into_a_running_schedule_warns(keras):
    model = samples.compiled(keras)
    samples.fit(model, epochs=1)
    with pytest.warns(UserWarning, match=r"began before the training: \d+ weights"):
        samples.fit(model, [ramp(0, 12)], epochs=1)
    assert samples.zeros(model) == samples.expected_zeros(model, 0.8)


def test_weights_that_may_grow_back_warn(keras):
    model = samples.compiled(keras)
    samples.fit(model, [ramp(0, 6)])
    samples.compiled(keras, model)  # steps count from 0 again
    with pytest.warns(UserWarning, match=r"218 of 272 weights are zero beyond"):
        samples.fit(model, [ramp(0, 6)])


def test_default_end_leaves_a_quarter_and_starts_where_the_optimizer_is(keras):
    model = samples.compiled(keras)
    samples.fit(model)
    watcher = samples.watch(keras)
    samples.fit(model, [Prune(final_sparsity=0.8), watcher])
    expected = PolynomialDecay(0, 0.8, 12, 12 + 9, frequency=1)
    assert samples.is_exact(watcher.seen, model, expected)


def test_default_end_in_later_epochs_of_a_dense_model(keras):
    model = samples.compiled(keras)
    samples.fit(model, epochs=2)
    watcher = samples.watch(keras)
    prune = Prune(final_sparsity=0.8)
    samples.fit(model, [prune, watcher], epochs=4, initial_epoch=2)
    expected = PolynomialDecay(0, 0.8, 12, 12 + 9, frequency=1)
    assert samples.is_exact(watcher.seen, model, expected)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras 3's only way
def test_unknown_number_of_steps(keras):
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices(samples.data()).batch(8)
    batches = batches.filter(lambda x, y: True)  # now nobody knows how many
    model = samples.compiled(keras)
    with pytest.raises(ValueError, match=r"Received: end_step=None"):
        model.fit(batches, callbacks=[Prune(final_sparsity=0.8)], shuffle=False)
    prune = ramp(0, 5)
    model.fit(batches, callbacks=[prune], shuffle=False, verbose=0)
    prune.finalize(model)


@pytest.mark.parametrize("prune", [ramp(2, 21, frequency=4), Prune(final_sparsity=0.8)])
def test_a_second_fit_continues(keras, prune):
    model = samples.compiled(keras)
    watcher = samples.watch(keras)
    if prune.end_step:
        with pytest.warns(UserWarning, match="ends after"):
            samples.fit(model, [prune, watcher])
        schedule = PolynomialDecay(0, 0.8, 2, 21, frequency=4)
    else:
        samples.fit(model, [prune, watcher])
        schedule = PolynomialDecay(0, 0.8, 0, 9, frequency=1)
    samples.fit(model, [prune, watcher])
    assert watcher.seen[-1][0] == 24
    assert samples.is_exact(watcher.seen, model, schedule)


def test_one_instance_prunes_two_models(keras):
    prune = Prune(final_sparsity=0.8)
    for _ in range(2):
        model = samples.compiled(keras)
        samples.fit(model, [prune])
        assert samples.zeros(model) == samples.expected_zeros(model, 0.8)
        assert [row["sparsity"] for row in prune.report if row["pruned"]] == [
            *(154 / 192, 64 / 80)
        ]


@pytest.mark.parametrize("prune", [ramp(2, 10, frequency=3), Prune(final_sparsity=0.8)])
def test_restored_backup_gives_the_masks_of_an_uninterrupted_run(
    keras, prune, tmp_path
):
    initial = samples.dense(keras).get_weights()

    def run(*callbacks):
        model = samples.compiled(keras)
        model.set_weights(initial)
        copy = Prune.from_config(prune.get_config())
        samples.fit(model, [copy, *callbacks])
        return copy.masks, model.get_weights()

    masks, weights = run()

    def backup():
        # Listed after Prune: what it restores must count all the same.
        return keras.callbacks.BackupAndRestore(
            str(tmp_path / "backup"), delete_checkpoint=False
        )

    with pytest.raises(KeyboardInterrupt):
        run(backup(), stop_after(keras, STEPS + 2))
    restored, same_weights = run(backup())
    for name, mask in masks.items():
        assert np.array_equal(mask, restored[name])
    for expected, found in zip(weights, same_weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_aborted_fit(keras, caplog):
    model, prune = samples.compiled(keras), ramp(0, 9)
    with pytest.raises(KeyboardInterrupt):
        samples.fit(model, [prune, stop_after(keras, 9)])
    assert prune.finalize(model) is model  # step 9 was reached; tidies up
    assert all(v.constraint is None for v in model.trainable_weights)
    with pytest.raises(KeyboardInterrupt):
        samples.fit(model, [prune, stop_after(keras, 3)])
    samples.fit(model, [prune], epochs=1)  # the same instance
    with pytest.raises(KeyboardInterrupt):
        samples.fit(model, [prune, stop_after(keras, 3)])
    other = ramp(0, 9)
    samples.fit(model, [other], epochs=1)  # another one
    assert "an aborted fit left" in caplog.text
    assert all(v.constraint is None for v in model.trainable_weights)
    assert samples.zeros(model) == samples.expected_zeros(model, 0.8)


def test_two_instances_divide_the_weights(keras):
    model = samples.compiled(keras)
    first = ramp(0, 9, include="first")
    second = Prune(final_sparsity=0.5, schedule="constant", exclude="first")
    samples.fit(model, [first, second])
    assert samples.zeros(model) == {"first/kernel": 154, "second/kernel": 40}
    second.finalize(first.finalize(model))


def test_two_instances_for_one_weight_raise(keras):
    model = samples.compiled(keras)
    with pytest.raises(TfoptError, match="Received: weight='first/kernel'"):
        samples.fit(model, [ramp(0, 9), ramp(0, 9, include="first")])


def test_include_and_exclude(keras):
    model = samples.compiled(keras)
    samples.fit(model, [ramp(0, 9, include="*/kernel", exclude=["sec*", "*/bias"])])
    assert samples.zeros(model) == {"first/kernel": 154, "second/kernel": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": "third"}, r"first/kernel.*Received: include='third'"),
        ({"exclude": ["first", "third"]}, r"Received: exclude='third'"),
        ({"exclude": "*"}, r"`exclude` has '\*'"),
        ({"include": ["first", "second"]}, "not trainable.*include='second'"),
    ],
)
def test_wrong_patterns(keras, arguments, message):
    model = samples.dense(keras)
    model.get_layer("second").trainable = False
    model = samples.compiled(keras, model)
    with pytest.raises(ValueError, match=message):
        samples.fit(model, [ramp(0, 9, **arguments)])


def test_report_says_why(keras, caplog):
    model = samples.dense(keras)
    model.get_layer("second").trainable = False
    model = samples.compiled(keras, model)
    prune = ramp(0, 9)
    with caplog.at_level(logging.INFO, "tfopt"):
        samples.fit(model, [prune])
    assert prune.report[0] == {
        "name": "first/kernel",
        "shape": (12, 16),
        "size": 192,
        "pruned": True,
        "reason": "",
        "sparsity": 154 / 192,
    }
    reasons = {row["name"]: row["reason"] for row in prune.report[1:]}
    assert reasons == {
        "first/bias": "not a kernel",
        "second/kernel": "not trainable",
        "second/bias": "not a kernel",
    }
    assert "second/kernel" in caplog.text
    assert samples.zeros(model)["second/kernel"] == 0


def half_zero(model):
    for weight in variables.kernels(model):
        value = weight.variable.numpy()
        weight.variable.assign(value * (np.abs(value) > np.median(np.abs(value))))
    return samples.zeros(model)


def test_keep_existing_zeros_alone(keras):
    model = samples.compiled(keras)
    zeros = half_zero(model)
    kernel = model.get_layer("first").kernel
    start = kernel.numpy()
    prune, watcher = Prune(keep_existing_zeros=True), samples.watch(keras)
    with pytest.raises(VerificationError, match="kept no zeros yet"):
        prune.finalize(model)
    samples.fit(model, [watcher, prune])
    assert all(found == zeros for _, found in watcher.seen)
    assert np.array_equal(kernel.numpy() == 0, start == 0)
    assert not np.allclose(kernel.numpy(), start)
    assert prune.finalize(model) is model
    samples.fit(model, epochs=1)
    with pytest.raises(VerificationError, match="found 0"):
        prune.finalize(model)


def test_keep_existing_zeros_with_a_schedule(keras):
    model = samples.compiled(keras)
    half_zero(model)
    start = model.get_layer("first").kernel.numpy()
    watcher = samples.watch(keras)
    samples.fit(model, [ramp(4, 9, keep_existing_zeros=True), watcher])
    counts = [found["first/kernel"] for _, found in watcher.seen]
    assert counts == sorted(counts)
    assert counts[0] == 96
    assert counts[-1] == 154
    kernel = model.get_layer("first").kernel.numpy()
    assert not kernel[start == 0].any()


def test_restored_best_weights_are_masked_with_a_warning(keras):
    model = samples.compiled(keras)
    dense = model.get_weights()

    class Restore(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                self.model.set_weights(dense)

    prune = ramp(0, 9)
    with pytest.warns(UserWarning, match=r"first/kernel.*in epoch 1"):
        samples.fit(model, [Restore(), prune])
    prune.finalize(model)


def test_finalize_counts(keras):
    model = samples.compiled(keras)
    prune = ramp(0, 9)
    samples.fit(model, [prune])
    prune.finalize(model)
    kernel = model.get_layer("second").kernel
    value = kernel.numpy()
    value.flat[np.flatnonzero(value == 0)[0]] = 1e-3
    kernel.assign(value)
    with pytest.raises(VerificationError, match=r"found 63.*second/kernel"):
        prune.finalize(model)


def test_diverged_training_says_so(keras):
    model = samples.compiled(keras)
    model.get_layer("first").kernel.assign(np.full((12, 16), np.nan))
    with pytest.raises(TfoptError, match=r"weights=\['first/kernel'\]"):
        samples.fit(model, [ramp(0, 9)])


def test_model_without_weights_says_so(keras):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = keras.layers.Dense(5)

        def call(self, x):
            return self.layer(x)

    model, prune = samples.compiled(keras, Net()), ramp(0, 9)
    with pytest.raises(TfoptError, match="no weights yet"):
        samples.fit(model, [prune])
    model(samples.data()[0])
    samples.fit(model, [prune])
    prune.finalize(model)


def test_masks_need_an_epoch(keras):
    prune = ramp(0, 9)
    prune.set_model(samples.compiled(keras))
    with pytest.raises(TfoptError, match="CallbackList"):
        prune.on_train_batch_begin(0)


def test_training_loop_of_the_users_own(keras):
    import tensorflow as tf

    model = samples.compiled(keras)
    optimizer, loss = model.optimizer, model.loss
    x, y = samples.data()
    prune = ramp(0, 9)
    callbacks = keras.callbacks.CallbackList(
        [prune], model=model, epochs=2, steps=STEPS
    )

    @tf.function
    def train_step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply_gradients(
            zip(gradients, model.trainable_variables, strict=True)
        )

    callbacks.on_train_begin()
    for epoch in range(2):
        callbacks.on_epoch_begin(epoch)
        for batch in range(STEPS):
            callbacks.on_train_batch_begin(batch)
            train_step(x[batch * 8 : batch * 8 + 8], y[batch * 8 : batch * 8 + 8])
        callbacks.on_epoch_end(epoch)
    callbacks.on_train_end()
    assert samples.zeros(model) == samples.expected_zeros(model, 0.8)
    prune.finalize(model)
