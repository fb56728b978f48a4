"""Distill beside what users do to training: own steps, precision, devices; errors."""

import distill_samples as samples
import numpy as np
import prune_distributed_test as distributed
import pytest
import tensorflow as tf

from tfopt.methods.distill import Distill
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras


def plain_logs(keras, **options):
    """What a student without any speciality logs."""
    student = samples.compiled(keras, samples.net(keras, 8))
    return samples.fit(student, [Distill(teacher_of(keras), **options)])


def teacher_of(keras):
    return samples.net(keras, 24, seed=1)


def subclass(keras, **methods):
    """Returns `samples.net(keras, 8)` with methods of the user's."""
    plain = samples.net(keras, 8)
    model = type("Own", (keras.Model,), methods)(plain.inputs, plain.outputs)
    model.last = plain.layers[-1]
    return model


def own_step(with_x):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            given = {"x": x} if with_x else {}
            predicted = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=predicted, **given)
        found = [getattr(v, "value", v) for v in self.trainable_variables]
        found = self.trainable_variables if callable(found[0]) else found
        gradients = tape.gradient(loss, found)
        self.optimizer.apply_gradients(
            zip(gradients, self.trainable_variables, strict=True)
        )
        return {"mine": loss}

    return train_step


def past_compute_loss(self, data):
    x, _ = data
    return {"mine": tf.reduce_mean(self(x, training=True))}


def own_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **more):
    return 7.0 + 0.0 * tf.reduce_sum(y_pred)


def test_a_train_step_of_the_users(keras):
    model = subclass(keras, train_step=own_step(with_x=True))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    samples.compiled(keras, model, loss=loss)
    logs = samples.fit(model, [Distill(teacher_of(keras))])
    expected = plain_logs(keras)
    assert logs.pop("mine") > 0
    for name in ("student_loss", "distillation_loss"):
        assert logs[name] == pytest.approx(expected[name], rel=1e-5)
    assert "loss" not in logs


@pytest.mark.parametrize(
    ("step", "named"),
    [
        (past_compute_loss, "past `compute_loss`.*Own.train_step"),
        (own_step(with_x=False), "what the student saw.*x=x.*Own.train_step"),
    ],
)
def test_a_train_step_without_a_place_for_the_teacher(keras, step, named):
    model = subclass(keras, train_step=step)
    samples.compiled(keras, model, loss="mse", run_eagerly=True)
    x, y = samples.data()
    with pytest.raises(TfoptError, match=named):
        samples.fit(model, [Distill(teacher_of(keras))], x, np.eye(5)[y])


def test_a_loss_of_the_users(keras):
    model = subclass(keras, compute_loss=own_loss)
    samples.compiled(keras, model, loss=None)
    logs = samples.fit(model, [Distill(teacher_of(keras), student_loss_weight=0.5)])
    expected = plain_logs(keras)["distillation_loss"]
    assert logs["student_loss"] == pytest.approx(7.0)
    assert logs["loss"] == pytest.approx(3.5 + expected / 2, rel=1e-5)


def test_penalties_keep_their_strength(keras):
    student = samples.net(keras, 8)
    plain = plain_logs(keras)
    layer = student.layers[-1]
    layer.kernel_regularizer = keras.regularizers.L2(0.1)
    student = keras.models.clone_model(student)
    student.set_weights(samples.net(keras, 8).get_weights())
    samples.compiled(keras, student)
    logs = samples.fit(student, [Distill(teacher_of(keras))])
    penalty = 0.1 * (student.layers[-1].get_weights()[0] ** 2).sum()
    assert logs["loss"] == pytest.approx(plain["loss"] + penalty, rel=1e-5)
    assert penalty > 0.05


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision(keras, policy):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    student = keras.Sequential(
        [
            layers.Input((12,)),
            layers.Dense(8, activation="relu", dtype=policy),
            layers.Dense(5, activation="softmax", dtype=policy, name="out"),
        ]
    )
    optimizer = keras.optimizers.SGD(0.01)
    if policy == "mixed_float16":
        wrapper = (
            keras.optimizers.LossScaleOptimizer
            if _is_keras3(keras)
            else keras.mixed_precision.LossScaleOptimizer
        )
        optimizer = wrapper(optimizer)
    student.compile(optimizer, "sparse_categorical_crossentropy")
    before = student.get_weights()[0]
    logs = samples.fit(student, [Distill(teacher_of(keras))], epochs=2)
    assert logs["distillation_loss"] == pytest.approx(
        plain_logs(keras)["distillation_loss"], rel=0.2
    )
    assert np.abs(student.get_weights()[0] - before).max() > 1e-5


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"steps_per_execution": 2}])
def test_compiled_and_in_one_call(keras, options):
    student = samples.compiled(keras, samples.net(keras, 8), **options)
    logs = samples.fit(student, [Distill(teacher_of(keras))])
    expected = plain_logs(keras)
    assert logs == pytest.approx(expected, rel=1e-4)
    if "jit_compile" in options:
        with pytest.raises(TfoptError, match=r"XLA.*jit_compile=False"):
            samples.fit(student, [Distill(teacher_of(keras), cache=True)])


def test_a_subclassed_student(keras):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = samples.net(keras, 8)

        def call(self, inputs):
            return self.inner(inputs)

    student = Own()
    student(samples.data()[0])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    samples.compiled(keras, student, loss=loss)
    distill = Distill(
        samples.net(keras, 8, seed=1), features={"hidden": "hidden"}
    )  # found by its name, wherever it is
    logs = samples.fit(student, [distill])
    assert logs["feature_loss"] > 0
    assert distill.report["features"][0]["student"].endswith("/hidden")


def test_inputs_and_outputs_must_fit(keras):
    student = samples.compiled(keras, samples.net(keras, 8))
    wide = samples.net(keras, 24, units=7)
    with pytest.raises(TfoptError, match=r"another shape.*\(None, 5\).*\(None, 7\)"):
        samples.fit(student, [Distill(wide)])
    with pytest.raises(TfoptError, match=r"nowhere\.keras"):
        samples.fit(student, [Distill("nowhere.keras")])
    with pytest.raises(TfoptError, match="no weights yet"):
        samples.fit(student, [Distill(keras.Sequential([keras.layers.Dense(5)]))])
    assert set(samples.fit(student, [])) == {"loss"}


@pytest.mark.parametrize(
    "options",
    [
        {"teacher": 3},
        {"teacher": []},
        {"temperature": 0.0},
        {"temperature": float("inf")},
        {"student_loss_weight": 1.5},
        {"distillation_loss": "kld"},
        {"features": {}, "teacher": ["a.keras"] * 2},
        {"features": {"a": 1}},
        {"features": {"a": "b"}, "teacher": "a.tflite"},
        {"feature_loss_weight": -1},
        {"teacher_weights": [1, 2]},
        {"teacher_weights": [0]},
        {"output_weights": [-1.0]},
        {"output_weights": [1.0], "distillation_loss": max},
        {"task": "class"},
        {"teacher_outputs": "softmax"},
        {"student_outputs": "softmax"},
        {"cache": 1},
    ],
)
def test_bad_arguments_name_themselves(options):
    name = next(iter(options))
    if options == {"features": {"a": "b"}, "teacher": "a.tflite"}:
        name = "teacher"
    with pytest.raises(ValueError, match=rf"Received: {name}="):
        Distill(**{"teacher": "teacher.keras", **options})


def test_arguments_come_back(keras):
    given = {"teacher": teacher_of(keras), "temperature": 2.0, "cache": True}
    again = Distill.from_config(Distill(**given).get_config())
    assert {name: getattr(again, name) for name in given} == given


def _is_keras3(keras):
    return keras.Model.__module__.startswith("keras.")


MIRRORED = """
import json
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
import distill_samples as samples
from tfopt.methods.distill import Distill

keras = tf.keras
found = {}
# A second MirroredStrategy would get the first one's collective keys.
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for name in ("one", "two", "cached"):
    strategy = tf.distribute.OneDeviceStrategy("CPU:0") if name == "one" else two
    teacher = samples.net(keras, 24, seed=1)
    with strategy.scope():
        model = samples.compiled(keras, samples.net(keras, 8), rate=0.1)
    features = {"hidden": "hidden"} if name != "cached" else None
    distill = Distill(teacher, features=features, cache=name == "cached")
    logs = samples.fit(model, [distill], epochs=2)
    found[name] = [logs, [w.tolist() for w in model.get_weights()]]
print("RESULT" + json.dumps(found))
"""


@pytest.mark.slow
def test_two_devices_train_as_one():
    found = distributed.result(distributed.start(MIRRORED))
    for name, value in found["one"][0].items():
        assert found["two"][0][name] == pytest.approx(value, rel=1e-4), name
    for a, b in zip(found["one"][1], found["two"][1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert found["cached"][0]["distillation_loss"] > 0
