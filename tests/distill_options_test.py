"""Distill: outputs of every kind, features, several teachers, the cache, errors."""

import distill_samples as samples
import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt import _keras
from tfopt.conversion import convert
from tfopt.methods.distill import Distill, _teachers
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras


def trained(keras, student, teacher, loss="classes", x=None, y=None, fit=None, **given):
    """Returns the logs of an epoch in which nothing moves, and the method.

    Tracing takes most of the time of such small trainings, so they are eager, unless
    the teacher is a file.
    """
    eager = _keras.is_model(teacher) or isinstance(teacher, list)
    samples.compiled(keras, student, loss=loss, run_eagerly=eager)
    distill = Distill(teacher, **given)
    logs = samples.fit(student, [distill], x, y, **(fit or {}))
    return logs, distill


# What outputs predict.


@pytest.mark.parametrize(("units", "end"), [(1, None), (4, "sigmoid")])
def test_labels_that_are_independent(keras, units, end):
    x, _ = samples.data()
    y = np.random.default_rng(1).integers(0, 2, (len(x), units)).astype(np.float32)
    teacher = samples.net(keras, 24, "sigmoid", units, seed=1)
    student = samples.net(keras, 8, end, units)
    loss = keras.losses.BinaryCrossentropy(from_logits=end is None)
    logs, distill = trained(keras, student, teacher, loss, x, y, temperature=2.0)
    for model in (teacher, student):
        model.layers[-1].activation = keras.activations.linear
    zt, zs = samples.outputs(teacher), samples.outputs(student)
    expected = samples.label_kl(zt, zs, 2.0).mean()
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-4)
    assert logs["distillation_loss"] != pytest.approx(expected / units, rel=0.1) or (
        units == 1
    )
    (row,) = distill.report["outputs"]
    assert row["task"].startswith("labels")
    assert row["teachers"] == ["probabilities (sigmoid)"]


def test_regression(keras):
    x, _ = samples.data()
    teacher = samples.net(keras, 24, units=2, seed=1)
    student = samples.net(keras, 8, units=2)
    logs, distill = trained(keras, student, teacher, "mse", x, np.zeros([len(x), 2]))
    difference = samples.outputs(teacher) - samples.outputs(student)
    expected = (difference**2).mean()
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-5)
    assert distill.report["outputs"][0]["task"].startswith("regression (the loss")
    assert "of the outputs" in distill.report["loss"]


def test_what_is_found_out_may_be_told(keras):
    teacher, student = samples.net(keras, 24, seed=1), samples.net(keras, 8)
    zt, zs = samples.outputs(teacher), samples.outputs(student)
    logs, _ = trained(keras, student, teacher, task="labels", temperature=2.0)
    expected = samples.label_kl(zt, zs, 2.0).mean()
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-5)
    ended = samples.net(keras, 24, "softmax", seed=1)
    logs, _ = trained(keras, student, ended, teacher_outputs="logits", temperature=2.0)
    expected = samples.kl(samples.softmax(zt), zs, 2.0).mean()
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-5)


def test_without_labels(keras):
    x, _ = samples.data()
    teacher, student = samples.net(keras, 24, seed=1), samples.net(keras, 8)
    student.compile(keras.optimizers.SGD(0.1))
    distill = Distill(teacher, student_loss_weight=0.0)
    first = samples.fit(student, [distill], x)
    last = samples.fit(student, [distill], x, epochs=5)
    assert first["distillation_loss"] == pytest.approx(first["loss"])
    assert last["loss"] < 0.8 * first["loss"]


def test_weights_of_examples_and_classes(keras):
    x, y = samples.data()
    teacher, student = samples.net(keras, 24, seed=1), samples.net(keras, 8)
    each = samples.kl(samples.outputs(teacher), samples.outputs(student), 4.0)
    weights = np.random.default_rng(2).random(len(x)).astype(np.float32)
    logs, _ = trained(keras, student, teacher, fit={"sample_weight": weights})
    assert logs["distillation_loss"] == pytest.approx((each * weights).mean(), rel=1e-5)
    classes = {0: 3.0, 1: 1.0, 2: 0.5, 3: 0.0, 4: 1.0}
    logs, _ = trained(keras, student, teacher, fit={"class_weight": classes})
    weights = np.array([classes[label] for label in y])
    assert logs["distillation_loss"] == pytest.approx((each * weights).mean(), rel=1e-5)
    assert logs["distillation_loss"] != pytest.approx(each.mean(), rel=0.01)


def tagger(keras, units, seed):
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((6,), dtype="int32"),
            layers.Embedding(9, units, mask_zero=True),
            layers.Dense(3),
        ]
    )


def test_masked_positions_do_not_count(keras):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 9, (48, 6)).astype(np.int32)
    x[16:] = np.roll(x[:16], 1, 0).tolist() * 2  # as many masked in each batch
    y = rng.integers(0, 3, (48, 6))
    teacher, student = tagger(keras, 8, 1), tagger(keras, 4, 0)
    logs, _ = trained(keras, student, teacher, x=x, y=y, temperature=1.0)
    each = samples.kl(samples.outputs(teacher, x), samples.outputs(student, x), 1.0)
    assert logs["distillation_loss"] == pytest.approx(each[x > 0].mean(), rel=1e-3)
    assert logs["distillation_loss"] != pytest.approx(each.mean(), rel=0.005)


def forked(keras, hidden, kind, seed):
    """Two inputs; outputs `kind` (5 classes) and `size` (a number)."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    inputs = {name: layers.Input((6,), name=name) for name in ("left", "right")}
    both = layers.Concatenate()(list(inputs.values()))
    middle = layers.Dense(hidden, activation="relu", name="middle")(both)
    outputs = {
        "kind": layers.Dense(5, name="kind")(middle),
        "size": layers.Dense(1, name="size")(middle),
    }
    return keras.Model(inputs, outputs if kind == "dict" else list(outputs.values()))


def forked_data(kind):
    x, y = samples.data()
    labels = {"kind": y, "size": x[:, :1]}
    inputs = {"left": x[:, :6], "right": x[:, 6:]}
    return inputs, labels if kind == "dict" else list(labels.values())


@pytest.mark.parametrize(
    ("kind", "form"),
    [("dict", "keras"), ("dict", "tflite"), ("list", "saved_model"), ("list", "keras")],
)
def test_several_outputs(keras, tmp_path, kind, form):
    x, y = forked_data(kind)
    teacher, student = forked(keras, 12, kind, 1), forked(keras, 6, kind, 0)
    losses = {
        "kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "size": "mse",
    }
    given = teacher
    if form == "saved_model":
        given = tmp_path / form
        teacher.export(given)
    elif form == "tflite":
        given = tmp_path / "teacher.tflite"
        given.write_bytes(convert(teacher))
    weights = {"kind": 1.0, "size": 0.5} if kind == "dict" else [1.0, 0.5]
    logs, distill = trained(
        keras,
        student,
        given,
        losses if kind == "dict" else list(losses.values()),
        x=x,
        y=y,
        output_weights=weights,
    )
    zt, zs = (
        [np.asarray(z, np.float64) for z in tf.nest.flatten(model(x))]
        for model in (teacher, student)
    )
    classes = samples.kl(zt[0], zs[0], 4.0).mean()
    sizes = ((zt[1] - zs[1]) ** 2).mean()
    assert logs["distillation_loss"] == pytest.approx(classes + sizes / 2, rel=1e-5)
    tasks = [row["task"].split()[0] for row in distill.report["outputs"]]
    assert tasks == ["classes", "regression"]
    if form == "keras" and kind == "dict":
        options = {"x": x, "y": y, "output_weights": {"kind": 2.0}}
        logs, _ = trained(keras, student, given, losses, **options)
        assert logs["distillation_loss"] == pytest.approx(2 * classes, rel=1e-5)
        options["output_weights"] = {"kinds": 1.0}
        with pytest.raises(ValueError, match=r"\['kind', 'size'\].*kinds"):
            trained(keras, student, given, losses, **options)


def test_several_teachers_are_averaged(keras):
    teachers = [
        samples.net(keras, 24, end, seed=seed)
        for seed, end in [(1, None), (2, "softmax")]
    ]
    student = samples.net(keras, 8)
    logs, distill = trained(
        keras, student, teachers, teacher_weights=[3, 1], temperature=2.0
    )
    teachers[1].layers[-1].activation = keras.activations.linear
    zs = samples.outputs(student)
    p = [samples.softmax(samples.outputs(each) / 2) for each in teachers]
    mean, q = 0.75 * p[0] + 0.25 * p[1], samples.softmax(zs / 2)
    expected = 4 * (mean * np.log(mean / q)).sum(1).mean()
    assert logs["distillation_loss"] == pytest.approx(expected, rel=1e-5)
    equal = 0.5 * p[0] + 0.5 * p[1]
    assert 4 * (equal * np.log(equal / q)).sum(1).mean() != pytest.approx(expected)
    assert len(distill.report["teachers"]) == 2


def test_a_loss_of_the_users(keras):
    teacher, student = samples.net(keras, 24, seed=1), samples.net(keras, 8)

    def absolute(teacher_outputs, student_outputs):
        return tf.reduce_sum(tf.abs(teacher_outputs - student_outputs), -1)

    weights = np.linspace(0, 1, len(samples.data()[0])).astype(np.float32)
    fit = {"sample_weight": weights}
    logs, _ = trained(keras, student, teacher, fit=fit, distillation_loss=absolute)
    each = np.abs(samples.outputs(teacher) - samples.outputs(student)).sum(1)
    assert logs["distillation_loss"] == pytest.approx((each * weights).mean(), rel=1e-5)
    with pytest.raises(TfoptError, match="scalar"):
        trained(
            keras,
            student,
            teacher,
            fit=fit,
            distillation_loss=lambda a, b: tf.reduce_mean(absolute(a, b)),
        )


# Features.


def convolutional(keras, channels, nested, seed):
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    block = [
        layers.Input((4, 3, 1)),
        layers.Conv2D(channels, 2, activation="relu", name="conv"),
    ]
    middle = [keras.Sequential(block, name="body")] if nested else block[1:]
    return keras.Sequential(
        [
            layers.Input((12,)),
            layers.Reshape((4, 3, 1)),
            *middle,
            layers.Flatten(name="flat"),
            layers.Dense(5),
        ]
    )


@pytest.mark.parametrize("eager", [False, True])
def test_features_of_equal_width_are_compared_as_they_are(keras, eager):
    teacher = convolutional(keras, 6, True, 1)
    student = convolutional(keras, 6, False, 0)
    samples.compiled(keras, student, run_eagerly=eager)
    distill = Distill(teacher, features={"conv": "body/conv"}, feature_loss_weight=0.5)
    logs = samples.fit(student, [distill])
    x = samples.data()[0].reshape(-1, 4, 3, 1)
    own = np.asarray(student.get_layer("conv")(x))
    other = np.asarray(teacher.get_layer("body")(x))
    expected = ((own - other) ** 2).mean()
    assert logs["feature_loss"] == pytest.approx(expected, rel=1e-5)
    total = 0.1 * logs["student_loss"] + 0.9 * logs["distillation_loss"]
    assert logs["loss"] == pytest.approx(total + 0.5 * expected, rel=1e-5)
    assert distill.report["features"] == [
        {
            "student": "conv",
            "teacher": "body/conv",
            "shapes": ["(None, 3, 2, 6)"] * 2,
            "projection": None,
        }
    ]
    for model in (teacher, student):
        assert not any("call" in vars(layer) for layer in model.layers)


def test_a_projection_is_trained_and_thrown_away(keras):
    teacher = convolutional(keras, 6, True, 1)
    student = convolutional(keras, 3, True, 0)
    names = [v.name for v in student.variables]
    samples.compiled(keras, student, rate=0.05)
    distill = Distill(teacher, features={"body/conv": "body/conv"})
    frozen = teacher.get_weights()
    before = samples.fit(student, [distill])["feature_loss"]
    after = samples.fit(student, [distill], epochs=10)["feature_loss"]
    assert after < 0.97 * before
    assert distill.report["features"][0]["projection"] == "1x1 convolution"
    assert [v.name for v in student.variables] == names
    for a, b in zip(frozen, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # Not only the student moves: with it at rest, the map alone learns.
    samples.compiled(keras, student)
    first = samples.fit(student, [distill])["feature_loss"]
    assert samples.fit(student, [distill], epochs=20)["feature_loss"] < 0.99 * first


def test_features_of_a_rewritten_model(keras):
    teacher = convolutional(keras, 6, True, 1)
    x, _ = samples.data()
    quantize = tfopt.QuantizeAware(representative_dataset=x)
    distill = Distill(teacher, features={"body/conv": "body/conv"})
    student = tfopt.prepare(convolutional(keras, 3, True, 0), [distill, quantize])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    samples.compiled(keras, student, loss=loss)
    assert samples.fit(student, [distill, quantize])["feature_loss"] > 0
    assert distill.report["features"][0]["student"] == "conv"


@pytest.mark.parametrize(
    ("features", "named"),
    [
        ({"con": "body/conv"}, "student has no such layer.*'conv'.*'con'"),
        ({"conv": "bod"}, "teacher has no such layer.*'body/conv'.*'bod'"),
        ({"flat": "body/conv"}, "last axis only.*flat"),
    ],
)
def test_bad_features(keras, features, named):
    teacher = convolutional(keras, 6, True, 1)
    student = convolutional(keras, 3, False, 0)
    samples.compiled(keras, student)
    with pytest.raises(TfoptError, match=named):
        samples.fit(student, [Distill(teacher, features=features)])
    for layer in [*student.layers, *teacher.layers]:
        assert "call" not in vars(layer)


# The cache.


class Counted:
    """Counts the rows that a `.tflite` teacher is asked about."""

    def __init__(self, monkeypatch):
        self.rows = 0
        own = _teachers.TfliteTeacher._run

        def run(teacher, *arrays):
            self.rows += len(arrays[0])
            return own(teacher, *arrays)

        monkeypatch.setattr(_teachers.TfliteTeacher, "_run", run)


def test_a_cached_teacher_is_asked_once(keras, tmp_path, monkeypatch):
    path = tmp_path / "teacher.tflite"
    path.write_bytes(convert(samples.net(keras, 24, seed=1)))
    found = {}
    for cache in (False, True):
        counted = Counted(monkeypatch)
        student = samples.compiled(keras, samples.net(keras, 8), rate=0.1)
        distill = Distill(path, cache=cache)
        x, y = samples.data()
        rng = np.random.default_rng(3)
        for _ in range(2):  # in another order each time
            order = rng.permutation(len(x))
            samples.fit(student, [distill], x[order], y[order])
        found[cache] = (counted.rows, student.get_weights())
    tried = 3 * 16  # random rows, by which logits are told from probabilities
    assert found[True][0] == tried + len(x)
    assert found[False][0] == tried + 2 * len(x)
    for a, b in zip(found[True][1], found[False][1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert distill.report["cache"] == {"examples": 48, "bytes": 48 * 6 * 4}


def test_a_cache_keeps_features_and_all_teachers(keras):
    teacher, student = (
        convolutional(keras, 6, True, 1),
        convolutional(keras, 6, True, 0),
    )
    options = {"features": {"body/conv": "body/conv"}}
    plain, _ = trained(keras, student, teacher, **options)
    fit = {"epochs": 2}
    cached, _ = trained(keras, student, teacher, cache=True, fit=fit, **options)
    assert cached == pytest.approx(plain, rel=1e-5)
    several = [samples.net(keras, 24, seed=seed) for seed in (1, 2)]
    plain, _ = trained(keras, samples.net(keras, 8), several)
    cached, _ = trained(keras, samples.net(keras, 8), several, cache=True, fit=fit)
    assert cached == pytest.approx(plain, rel=1e-5)


def test_augmented_examples_are_not_taken_for_others(keras):
    x, y = samples.data()
    generator = tf.random.Generator.from_seed(1)

    def augment(inputs, labels):
        return inputs + generator.normal(tf.shape(inputs)), labels

    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(16).map(augment)
    student = samples.compiled(keras, samples.net(keras, 8))
    distill = Distill(samples.net(keras, 24, seed=1), cache=True)
    with pytest.warns(UserWarning, match=r"differ from epoch to epoch.*cache=False"):
        student.fit(batches, epochs=3, verbose=0, shuffle=False, callbacks=[distill])
    assert distill.report["cache"]["examples"] == 2 * len(x)
