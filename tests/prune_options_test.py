"""Prune's further options: per layer, strict, threshold, rewind, penalties, logs."""

import glob
import json

import numpy as np
import prune_samples as samples
import pytest
import tensorflow as tf
from prune_samples import STEPS

from tfopt import masks
from tfopt._keras import variables
from tfopt.methods import _penalty
from tfopt.methods.prune import Prune
from tfopt.schedules import ConstantSparsity, PolynomialDecay
from tfopt.types import TfoptError, VerificationError

pytestmark = pytest.mark.both_keras

NO_TRAINING = {"final_sparsity": 0.5, "schedule": "constant"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"structure": "4:2"}, "structure='4:2'"),
        ({"structure": "2:4", "final_sparsity": 0.8}, "sparsity=0.8"),
        ({"structure": "2:4", "per_layer": {"a": 0.5}}, "per_layer="),
        ({"structure": "2:4", "final_sparsity": None, "threshold": 0.1}, "threshold="),
        ({"block_pooling": "norm"}, "block_pooling='norm'"),
        ({"score": "size"}, "score='size'"),
        ({"score": "activation"}, "data=None"),
        ({"score": "movement", "data": [1]}, "data of type list"),
        ({"score": "gradient", "data": iter([1])}, "data of type list_iterator"),
        ({"min_density": 2}, "min_density=2"),
        ({"seed": -1}, "seed=-1"),
        ({"strict": "yes"}, "strict='yes'"),
        ({"per_layer": {"a": 1.5}}, "per_layer="),
        ({"per_layer": {}}, "per_layer="),
        ({"threshold": 0.1}, "final_sparsity=0.8"),
        ({"threshold": -1, "final_sparsity": None}, "threshold=-1"),
        (
            {"threshold": 0.1, "final_sparsity": None, "score": "random"},
            "score='random'",
        ),
        ({"rewind_step": -1}, "rewind_step=-1"),
        ({"sparsity_penalty": 0.1}, "sparsity_penalty=0.1"),
        ({"sparsity_penalty": {"kind": "l0", "strength": 1}}, "sparsity_penalty="),
        ({"sparsity_penalty": {"kind": "l1", "strength": 0}}, "sparsity_penalty="),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"Received: .*{message}"):
        Prune(**{"final_sparsity": 0.8, **arguments})


@pytest.mark.parametrize(
    "prune",
    [
        Prune(structure="2:4", score="gradient", strict=True, seed=3),
        Prune(final_sparsity=0.8, structure="16x1", block_pooling="max"),
        Prune(per_layer={"a*": 0.5, "b": 0.25}, end_step=9, min_density=0.1),
        Prune(threshold=0.1, begin_step=5, frequency=7),
        Prune(final_sparsity=0.5, rewind_step=3, log_dir="logs"),
        Prune(final_sparsity=0.5, sparsity_penalty={"kind": "l1", "strength": 1e-4}),
    ],
)
def test_config_round_trip(prune):
    config = json.loads(json.dumps(prune.get_config()))
    assert Prune.from_config(config).get_config() == prune.get_config()


def test_data_is_not_part_of_the_config():
    prune = Prune(final_sparsity=0.5, score="activation", data=[samples.data()[0]])
    config = prune.get_config()
    assert "data" not in config
    with pytest.raises(ValueError, match="data=None"):
        Prune.from_config(config)
    Prune.from_config({**config, "data": prune.data})


@pytest.mark.parametrize("scope", masks.SCOPES)
def test_sparsity_per_layer(keras, scope):
    schedule = PolynomialDecay(0.2, 0.8, 2, 9, frequency=3)
    model = samples.compiled(keras)
    prune = Prune(schedule=schedule, per_layer={"second": 0.5}, scope=scope)
    watcher = samples.watch(keras)
    samples.fit(model, [prune, watcher])
    lower = PolynomialDecay(0.2, 0.5, 2, 9, frequency=3)
    for step, zeros in watcher.seen:
        update = schedule.last_update(step)
        for name, ramp, size in (("first", schedule, 192), ("second", lower, 80)):
            sparsity = 0.0 if update is None else ramp(update)
            assert zeros[f"{name}/kernel"] == size - masks.num_kept(size, sparsity)
    prune.finalize(model)


def test_only_what_per_layer_names_is_pruned(keras):
    model = samples.compiled(keras)
    options = {"per_layer": {"second/kernel": 0.5, "*": 0.0}, "strict": True}
    prune = Prune(end_step=9, **options)
    samples.fit(model, [prune])
    assert samples.zeros(model) == {"first/kernel": 0, "second/kernel": 40}
    assert prune.report[0]["reason"] == "`per_layer` gives '*' 0"
    prune = Prune(per_layer={"second": 0.5}, schedule="constant")
    samples.fit(samples.compiled(keras, model), [prune])
    assert prune.report[0]["reason"] == "not in `per_layer`"
    with pytest.raises(ValueError, match="per_layer='third'"):
        samples.fit(model, [Prune(per_layer={"third": 0.5}, schedule="constant")])


def odd_model(keras):
    class Table(keras.layers.Layer):
        def build(self, shape):
            self.table = self.add_weight(name="table", shape=(12, 16))
            super().build(shape)

        def call(self, x):
            return x @ self.table

    return keras.Sequential(
        [keras.layers.Input((12,)), Table(name="own"), keras.layers.Dense(5, name="d")]
    )


def test_strict_names_what_is_skipped(keras):
    options = {"final_sparsity": 0.5, "schedule": "constant", "strict": True}
    model = samples.compiled(keras, odd_model(keras))
    with pytest.raises(ValueError, match=r"skipped={'own/table': 'not a kernel'}"):
        samples.fit(model, [Prune(**options)])
    with pytest.raises(ValueError, match="own/table"):
        samples.fit(model, [Prune(include="*", **options)])
    samples.fit(model, [Prune(exclude="own", **options)], epochs=1)
    named = Prune(include=["own/table", "d"], **options)
    samples.fit(model, [named], epochs=1)
    assert [row["name"] for row in named.report if row["pruned"]] == [
        *("own/table", "d/kernel")
    ]
    by_layer = Prune(per_layer={"own/table": 0.75}, **options)
    samples.fit(samples.compiled(keras, odd_model(keras)), [by_layer], epochs=1)
    assert by_layer.report[0]["sparsity"] == 0.75
    frozen = samples.dense(keras)
    frozen.get_layer("second").trainable = False
    with pytest.raises(ValueError, match="'second/kernel': 'not trainable'"):
        samples.fit(samples.compiled(keras, frozen), [Prune(**options)])


def test_skipped_matrices_are_said(keras, caplog):
    model = samples.compiled(keras, odd_model(keras))
    with caplog.at_level("WARNING", "tfopt"):
        samples.fit(model, [Prune(**NO_TRAINING)], epochs=1)
    assert "Not pruning own/table: not a kernel." in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", "tfopt"):
        samples.fit(model, [Prune(exclude="own", **NO_TRAINING)], epochs=1)
    assert not caplog.text


def test_threshold(keras):
    model = samples.compiled(keras, optimizer=keras.optimizers.SGD(0.0))
    start = model.get_layer("first").kernel.numpy()
    prune = Prune(threshold=0.2, begin_step=2, end_step=9, frequency=3)
    with pytest.raises(VerificationError, match="kept no zeros yet"):
        prune.finalize(model)
    samples.fit(model, [prune])
    kernel = model.get_layer("first").kernel.numpy()
    assert np.array_equal(kernel != 0, np.abs(start) >= 0.2)
    assert prune.finalize(model) is model
    kernel[kernel == 0] = 1.0
    model.get_layer("first").kernel.assign(kernel)
    with pytest.raises(VerificationError, match="less sparse"):
        prune.finalize(model)


def test_a_threshold_never_empties_a_tensor_and_goes_on_to_the_end(keras):
    model = samples.compiled(keras)
    samples.fit(model, [Prune(threshold=100.0, frequency=5)])
    assert samples.zeros(model) == {"first/kernel": 191, "second/kernel": 79}
    model = samples.compiled(keras, optimizer=keras.optimizers.Adam(0.05))
    watcher = samples.watch(keras)
    samples.fit(model, [Prune(threshold=0.1, frequency=2), watcher])
    counts = [zeros["first/kernel"] for _, zeros in watcher.seen]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0] > 0


@pytest.mark.parametrize("step", [0, 4])
def test_rewind_gives_early_weights_under_the_final_masks(keras, step):
    model = samples.compiled(keras)
    weights = [model.get_weights()]

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            weights.append(self.model.get_weights())

    prune = Prune(final_sparsity=0.8, begin_step=5, end_step=9, rewind_step=step)
    samples.fit(model, [prune, Look()])
    early = weights[step]
    names = [weight.name for weight in variables.weights(model)]
    for name, value, now in zip(names, early, model.get_weights(), strict=True):
        mask = prune.masks.get(name, np.ones(value.shape, bool))
        assert np.array_equal(now, value * mask), name
    assert not np.array_equal(early[0], weights[-1][0])
    prune.finalize(model)
    ticket = Prune(keep_existing_zeros=True)
    samples.fit(samples.compiled(keras, model), [ticket])
    assert samples.zeros(model) == samples.expected_zeros(model, 0.8)


def test_rewind_to_a_step_that_is_not_seen(keras):
    model = samples.compiled(keras, steps_per_execution=4)
    with pytest.raises(TfoptError, match="rewind_step=3, at step 4"):
        samples.fit(model, [Prune(rewind_step=3, **NO_TRAINING)])
    model = samples.compiled(keras)
    with pytest.raises(TfoptError, match=r"rewind_step=99, training ended at step 6"):
        samples.fit(model, [Prune(rewind_step=99, **NO_TRAINING)], epochs=1)
    assert all(v.constraint is None for v in model.trainable_weights)


def penalties(model, kind, word):
    found = []
    for weight in variables.kernels(model):
        value = weight.variable.numpy()[None]
        if kind == "l1":
            found.append(np.abs(value).sum())
        else:
            block = "channel" if word == "unstructured" else word
            units = masks.Structure.parse(block).split(value, fill=0.0)
            valid = masks.Structure.parse(block).split(np.ones_like(value), fill=0.0)
            norms = np.linalg.norm(units, axis=1)
            found.append(np.sum(np.sqrt(valid.sum(1)) * norms))
    return sum(found)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("l1", "unstructured"),
        ("group_lasso", "unstructured"),
        ("group_lasso", "channel"),
        ("group_lasso", "5x3"),
    ],
)
def test_penalty_is_numpys_and_part_of_the_loss(keras, kind, word):
    model = samples.compiled(keras, optimizer=keras.optimizers.SGD(0.0))
    plain = samples.fit(model, epochs=1).history["loss"][0]
    undo = _penalty.install(
        {"kind": kind, "strength": 0.01},
        variables.kernels(model),
        masks.Structure.parse(word),
    )
    model.make_train_function(force=True)
    loss = samples.fit(model, epochs=1).history["loss"][0]
    expected = 0.01 * penalties(model, kind, word)
    np.testing.assert_allclose(loss - plain, expected, rtol=1e-4)
    for each in undo:
        each()
    model.make_train_function(force=True)
    again = samples.fit(model, epochs=1).history["loss"][0]
    np.testing.assert_allclose(again, plain, rtol=1e-5)


def test_penalty_shrinks_weights_and_goes_with_the_own_regularizer(keras):
    sums = []
    weights = samples.dense(keras).get_weights()
    for strength in (None, 0.05):
        model = samples.dense(keras, kernel_regularizer=keras.regularizers.L2(1e-3))
        model.set_weights(weights)
        penalty = strength and {"kind": "l1", "strength": strength}
        prune = Prune(final_sparsity=0.5, end_step=9, sparsity_penalty=penalty)
        samples.compiled(keras, model, optimizer=keras.optimizers.Adam(0.02))
        history = samples.fit(model, [prune], epochs=3)
        sums.append(np.abs(model.get_layer("first").kernel.numpy()).sum())
        assert np.isfinite(history.history["loss"]).all()
        prune.finalize(model)
        assert len(model.losses) == 2  # the layers' own
    assert sums[1] < 0.8 * sums[0]


def test_log_for_tensorboard(keras, tmp_path):
    from tensorflow.core.util import event_pb2

    model = samples.compiled(keras)
    prune = Prune(final_sparsity=0.5, end_step=6, log_dir=str(tmp_path / "logs"))
    samples.fit(model, [prune])
    (path,) = glob.glob(str(tmp_path / "logs" / "events*"))
    seen = {}
    for record in tf.data.TFRecordDataset(path):
        event = event_pb2.Event.FromString(record.numpy())
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            seen[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
    assert {step for _, step in seen} == {STEPS, 2 * STEPS}
    assert seen["sparsity/first/kernel", STEPS] == 0.5
    assert seen["sparsity/total", 2 * STEPS] == 0.5


def test_min_density(keras):
    model = samples.compiled(keras)
    kernel = model.get_layer("second").kernel
    kernel.assign(kernel * 1e-6)
    options = {"scope": "global", "schedule": "constant", "min_density": 0.1}
    samples.fit(model, [Prune(final_sparsity=0.85, **options)], epochs=1)
    zeros = samples.zeros(model)
    assert zeros["second/kernel"] == 80 - 8
    assert sum(zeros.values()) == 272 - masks.num_kept(272, 0.85)


def test_constant_schedule_object_says_the_sparsity_of_a_structure(keras):
    model = samples.compiled(keras)
    prune = Prune(schedule=ConstantSparsity(0.5), structure="2:4")
    samples.fit(model, [prune], epochs=1)
    prune.finalize(model)
    with pytest.raises(ValueError, match=r"sparsity=0\.8"):
        Prune(schedule=ConstantSparsity(0.8), structure="2:4")


@pytest.mark.parametrize("score", ["gradient", "activation"])
def test_restored_backup_gives_the_masks_of_an_uninterrupted_run(
    keras, score, tmp_path
):
    """With `data`, scores depend on nothing but the weights."""
    initial = samples.dense(keras).get_weights()
    x, y = samples.data()

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def run(*callbacks):
        model = samples.compiled(keras)
        model.set_weights(initial)
        prune = Prune(
            final_sparsity=0.8, end_step=10, score=score, data=[(x[:16], y[:16])]
        )
        samples.fit(model, [*callbacks, prune])
        return prune.masks

    expected = run()

    def backup():
        return keras.callbacks.BackupAndRestore(
            str(tmp_path / "backup"), delete_checkpoint=False
        )

    with pytest.raises(KeyboardInterrupt):
        run(backup(), Stop())
    restored = run(backup())
    for name, mask in expected.items():
        assert np.array_equal(mask, restored[name])
