"""Distill: its loss, what moves and what does not, and teachers of every kind."""

import importlib
import os

import distill_samples as samples
import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt import _keras, training
from tfopt._keras import variables
from tfopt.conversion import convert
from tfopt.methods.cluster import Cluster
from tfopt.methods.distill import Distill
from tfopt.methods.prune import Prune
from tfopt.methods.quantize_aware import QuantizeAware

pytestmark = pytest.mark.both_keras

T, WEIGHT = 3.0, 0.25


def other(keras):
    """The Keras that `keras` is not."""
    name = _keras.module_of(keras.layers.Dense(1)).__name__
    return importlib.import_module("tf_keras" if name == "keras" else "keras")


def expected_logs(student, teacher, loss="kl"):
    zs, zt = samples.outputs(student), samples.outputs(teacher)
    _, y = samples.data()
    own = samples.cross_entropy(zs, y).mean()
    if loss == "kl":
        distillation = samples.kl(zt, zs, T).mean()
    else:
        distillation = ((zt - zs) ** 2).mean()
    return {
        "student_loss": own,
        "distillation_loss": distillation,
        "loss": WEIGHT * own + (1 - WEIGHT) * distillation,
    }


def check_logs(logs, expected, tolerance=1e-5):
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=tolerance), name


@pytest.mark.parametrize(
    ("teacher_end", "student_end", "eager"),
    [
        (None, None, False),
        ("softmax", "softmax", False),
        ("softmax", None, True),
        (None, "softmax", True),
    ],
)
def test_loss_is_hintons(keras, teacher_end, student_end, eager):
    teacher = samples.net(keras, 24, teacher_end, seed=1)
    student = samples.net(keras, 8, student_end)
    samples.compiled(keras, student, run_eagerly=eager)
    distill = Distill(teacher, temperature=T, student_loss_weight=WEIGHT)
    logs = samples.fit(student, [distill])
    for model in (teacher, student):  # the same weights, without softmax
        model.layers[-1].activation = keras.activations.linear
    expected = expected_logs(student, teacher)
    check_logs(logs, expected)
    # The factor T² alone would show.
    assert abs(expected["distillation_loss"] / T**2 - logs["distillation_loss"]) > 0.1
    (row,) = distill.report["outputs"]
    forms = {None: "logits", "softmax": "probabilities (softmax)"}
    assert (row["student"], row["teachers"]) == (
        forms[student_end],
        [forms[teacher_end]],
    )
    assert row["task"].startswith("classes")


def test_mse_of_logits(keras):
    teacher, student = samples.net(keras, 24, seed=1), samples.net(keras, 8)
    options = {"student_loss_weight": WEIGHT, "distillation_loss": "mse"}
    logs = samples.fit(samples.compiled(keras, student), [Distill(teacher, **options)])
    check_logs(logs, expected_logs(student, teacher, "mse"))
    # Of a softmax, only differences of logits are known.
    ended = samples.net(keras, 24, "softmax", seed=1)
    logs = samples.fit(student, [Distill(ended, **options)])
    zs, zt = samples.outputs(student), samples.outputs(teacher)
    difference = (zt - zt.mean(1, keepdims=True)) - (zs - zs.mean(1, keepdims=True))
    assert logs["distillation_loss"] == pytest.approx((difference**2).mean(), rel=1e-4)


def test_a_step_follows_the_gradient_of_the_loss(keras):
    teacher = samples.noisy(keras)
    student = samples.compiled(keras, samples.net(keras, 8), rate=0.1)
    x, y = samples.data()
    x, y = x[:16], y[:16]
    targets = samples.softmax(samples.outputs(teacher, x) / T).astype(np.float32)
    with tf.GradientTape() as tape:
        logits = student(x, training=True)
        own = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        soft = tf.nn.softmax_cross_entropy_with_logits(targets, logits / T)
        loss = tf.reduce_mean(WEIGHT * own + (1 - WEIGHT) * T**2 * soft)
    watched = [
        getattr(v, "value", v) if not isinstance(v, tf.Variable) else v
        for v in student.trainable_variables
    ]
    before = student.get_weights()
    expected = [
        weight - 0.1 * gradient.numpy()
        for weight, gradient in zip(before, tape.gradient(loss, watched), strict=True)
    ]
    frozen = teacher.get_weights()
    samples.fit(
        student,
        [Distill(teacher, temperature=T, student_loss_weight=WEIGHT)],
        *(x, y),
    )
    for found, value, old in zip(student.get_weights(), expected, before, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-6)
        assert np.abs(value - old).max() > 1e-4
    # Neither weights nor batch statistics of the teacher move.
    for found, value in zip(teacher.get_weights(), frozen, strict=True):
        np.testing.assert_array_equal(found, value)
    assert all(variable.trainable for variable in teacher.trainable_variables)


def test_only_training_steps_have_the_teacher(keras, tmp_path):
    teacher = samples.net(keras, 500, seed=1)
    student = samples.compiled(keras, samples.net(keras, 8), metrics=["accuracy"])
    x, y = samples.data()
    before = student.evaluate(x, y, verbose=0, return_dict=True)
    variables_before = [id(v) for v in student.variables]
    seen = {}

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen["variables"] = [id(v) for v in student.variables]
            student.save(tmp_path / "whole.keras")
            student.save_weights(tmp_path / "student.weights.h5")
            seen["evaluated"] = student.evaluate(x, y, verbose=0, return_dict=True)

    logs = samples.fit(student, [Distill(teacher), Look()], validation_data=(x, y))
    assert logs["val_loss"] == pytest.approx(before["loss"], rel=1e-5)
    assert seen["evaluated"] == pytest.approx(before, rel=1e-5)
    assert logs["loss"] != pytest.approx(before["loss"], rel=0.01)
    assert logs["accuracy"] == pytest.approx(before["accuracy"])
    assert not [name for name in logs if name.startswith("val_dist")]
    assert seen["variables"] == variables_before
    # The teacher alone would take 34 kB.
    assert os.path.getsize(tmp_path / "whole.keras") < 30_000
    assert os.path.getsize(tmp_path / "student.weights.h5") < 30_000
    loaded = keras.models.load_model(tmp_path / "whole.keras")
    np.testing.assert_array_equal(samples.outputs(loaded), samples.outputs(student))
    # Afterwards the model is as it was: its next training has no teacher.
    assert not {"train_step", "compute_loss"} & set(vars(student))
    assert set(samples.fit(student, [])) == {"loss", "accuracy"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One teacher in every format, of both Keras versions; and its logits."""
    keras = tf.keras
    folder = tmp_path_factory.mktemp("teachers")
    teacher = samples.net(keras, 24, seed=1)
    strange = samples.net(other(keras), 24)
    strange.set_weights(teacher.get_weights())
    teacher.save(folder / "own.keras")
    strange.save(folder / "other.keras")
    strange.save(folder / "other.h5")
    teacher.export(folder / "saved_model")
    (folder / "teacher.tflite").write_bytes(convert(teacher))
    return folder, teacher, strange


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")
@pytest.mark.parametrize(
    "kind",
    ["own.keras", "other.keras", "other.h5", "other", "saved_model", "teacher.tflite"],
)
def test_teachers_of_every_kind_say_the_same(keras, files, kind):
    folder, teacher, strange = files
    student = samples.compiled(keras, samples.net(keras, 8), run_eagerly=kind[0] == "t")
    given = strange if kind == "other" else folder / kind
    distill = Distill(given, temperature=T, student_loss_weight=WEIGHT)
    logs = samples.fit(student, [distill], epochs=2)
    check_logs(logs, expected_logs(student, teacher))
    assert distill.report["outputs"][0]["teachers"] == ["logits"]
    assert kind.split(".")[-1] in distill.report["teachers"][0] or kind == "other"


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_probabilities_of_files_are_told_from_logits(keras, tmp_path, quantization):
    teacher = samples.net(keras, 24, "softmax", seed=1)
    x, _ = samples.data()
    options = {} if quantization == "none" else {"representative_dataset": x}
    path = tmp_path / "teacher.tflite"
    path.write_bytes(convert(teacher, quantization=quantization, **options))
    student = samples.compiled(keras, samples.net(keras, 8))
    distill = Distill(path, temperature=T, student_loss_weight=WEIGHT)
    logs = samples.fit(student, [distill])
    assert distill.report["outputs"][0]["teachers"] == ["probabilities (softmax)"]
    teacher.layers[-1].activation = keras.activations.linear
    check_logs(
        logs,
        expected_logs(student, teacher),
        1e-5 if quantization == "none" else 0.05,
    )


def composed(keras, methods, epochs=2):
    """Returns the finalized student, and the logs, of a training with methods."""
    keras.utils.set_random_seed(5)
    student = training.prepare(samples.net(keras, 16, seed=4), methods)
    samples.compiled(
        keras,
        student,
        rate=0.05,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    logs = samples.fit(student, methods, epochs=epochs)
    return training.finalize(student, methods), logs


ORDERS = {
    "prune": [(0, 1, 2), (1, 2, 0), (2, 0, 1)],
    "cluster": [(0, 1, 2), (1, 2, 0)],
}


@pytest.mark.parametrize("second", ["prune", "cluster"])
def test_every_order_of_methods_is_the_same_training(keras, second):
    teacher = samples.net(keras, 24, "softmax", seed=1)
    x, _ = samples.data()
    found = []
    for order in ORDERS[second]:
        methods = [
            QuantizeAware(representative_dataset=x),
            Distill(teacher),
            Prune(final_sparsity=0.5, end_step=4, frequency=1)
            if second == "prune"
            else Cluster(num_clusters=6, channel_scales=True),
        ]
        final, logs = composed(keras, [methods[index] for index in order])
        assert logs["distillation_loss"] > 0
        found.append(final.get_weights())
        if second == "prune":
            assert tfopt.sparsity(final)["total"] == pytest.approx(0.5, abs=0.01)
    for each in found[1:]:
        for a, b in zip(each, found[0], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    # The teacher makes the difference that the orders don't.
    if second == "cluster":
        alone, _ = composed(keras, [methods[0], methods[2]])
        assert np.abs(alone.get_weights()[0] - found[0][0]).max() > 1e-3


def test_a_softmax_that_is_rounded_in_training(keras):
    """The student learns by the logits before it, which are not rounded away."""
    x, _ = samples.data()
    student = samples.net(keras, 8, "softmax")
    kernel, bias = student.layers[-1].get_weights()
    student.layers[-1].set_weights([20 * kernel, bias])  # most of it is 0 in int8
    methods = [QuantizeAware(representative_dataset=x), Distill(samples.net(keras, 24))]
    prepared = samples.compiled(
        keras,
        training.prepare(student, methods),
        loss="sparse_categorical_crossentropy",
    )
    logs = samples.fit(prepared, methods)
    student.layers[-1].activation = keras.activations.linear
    teacher = samples.outputs(methods[1].teacher)
    expected = samples.kl(teacher, samples.outputs(student), 4.0).mean()
    assert logs["distillation_loss"] == pytest.approx(expected, rel=0.05)
    (row,) = methods[1].report["outputs"]
    assert row["student"] == "probabilities (softmax)"


def test_the_given_model_is_not_touched(keras):
    model, teacher = samples.net(keras, 8), samples.net(keras, 24, seed=1)
    before = model.get_weights()
    methods = [Distill(model)]  # itself, as it was, is a teacher too
    student = samples.compiled(keras, training.prepare(model, methods), rate=0.1)
    samples.fit(student, methods)
    final = training.finalize(student, methods)
    assert final is student
    assert final.optimizer is student.optimizer
    assert variables.iterations(final) == samples.STEPS
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    samples.compiled(keras, teacher)
    with pytest.raises(tfopt.TfoptError, match="shares weights"):
        samples.fit(teacher, [Distill(teacher)])


def test_a_backup_resumes_what_was_interrupted(keras, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def run(callbacks):
        student = samples.compiled(keras, samples.net(keras, 8), rate=0.1)
        distill = Distill(samples.net(keras, 24, seed=1))
        samples.fit(student, [distill, *callbacks], epochs=2)
        return student.get_weights()

    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))

    whole = run([])
    with pytest.raises(KeyboardInterrupt):
        run([backup(), Stop()])
    for a, b in zip(run([backup()]), whole, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_an_instance_serves_again(keras):
    distill = Distill(samples.net(keras, 24, seed=1), temperature=T)
    found = []
    for _ in range(2):
        student = samples.compiled(keras, samples.net(keras, 8), rate=0.1)
        samples.fit(student, [distill])
        samples.fit(student, [distill])
        found.append(student.get_weights())
    whole = samples.compiled(keras, samples.net(keras, 8), rate=0.1)
    samples.fit(whole, [distill], epochs=2)  # what two trainings are in all
    found.append(whole.get_weights())
    for each in found[1:]:
        for a, b in zip(each, found[0], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_an_aborted_fit_leaves_nothing_behind(keras):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    student = samples.compiled(keras, samples.net(keras, 8))
    distill = Distill(samples.net(keras, 24, seed=1))
    with pytest.raises(KeyboardInterrupt):
        samples.fit(student, [distill, Stop()])
    x, y = samples.data()
    own = samples.cross_entropy(samples.outputs(student), y).mean()
    assert student.evaluate(x, y, verbose=0) == pytest.approx(own, rel=1e-5)
    assert distill.finalize(student) is student
    assert set(samples.fit(student, [])) == {"loss"}
