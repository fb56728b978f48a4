"""Light checkpoints of Keras models, against TensorFlow's own reader."""

import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from tfopt.checkpoint import slim_checkpoint, writing
from tfopt.checkpoint.callback import STATE_FILE, LightCheckpoint
from tfopt.checkpoint.recalibration import recalibrate_batch_norm
from tfopt.checkpoint.restoring import restore_slim_checkpoint
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras

ROOT = pathlib.Path(__file__).parent.parent
RNG = np.random.default_rng(0)
# Far from mean 0 and variance 1, so that statistics matter.
IMAGES = (RNG.normal(size=[256, 8, 8, 1]) * 3 + 50).astype(np.float32)
LABELS = np.arange(256) % 2
IMAGES[LABELS == 1, :4] += 3


def make_model(keras, *, units=2, width=16):
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(width, 3, activation="relu"),
            layers.BatchNormalization(momentum=0.8),
            layers.Dropout(0.1),
            layers.Flatten(),
            layers.Dense(width),
            layers.BatchNormalization(momentum=0.8),
            layers.Dense(units),
        ]
    )


def compile_model(keras, model, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], **options)
    return model


@pytest.fixture(scope="module")
def trained():
    keras = tf.keras
    keras.utils.set_random_seed(0)
    model = compile_model(keras, make_model(keras))
    model.fit(IMAGES, LABELS, epochs=12, verbose=0)
    return model


@pytest.fixture(scope="module")
def full(trained, tmp_path_factory):
    """Prefix of a full checkpoint by TensorFlow."""
    prefix = tmp_path_factory.mktemp("full") / "ckpt"
    saver = tf.train.Checkpoint(model=trained, optimizer=trained.optimizer)
    return saver.save(str(prefix))


def accuracy(model):
    return float((np.argmax(model(IMAGES).numpy(), -1) == LABELS).mean())


def size(prefix):
    return sum(os.path.getsize(path) for path in writing.files(str(prefix)))


def values(prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    keys = sorted(reader.get_variable_to_dtype_map())
    return {key: np.asarray(reader.get_tensor(key)) for key in keys}


def weights_of(model):
    return [variable.numpy() for variable in model.weights]


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("made_from", ["checkpoint", "model"])
@pytest.mark.parametrize(
    ("dtype", "ratio"), [("float32", 3), ("float16", 6), ("bfloat16", 6)]
)
def test_size_and_restored_model(keras, tmp_path, dtype, ratio, made_from):
    """A model large enough that names and graph don't count."""
    model = make_model(keras, width=128)
    compile_model(keras, model, run_eagerly=True)  # for a single step
    model.fit(IMAGES[:32], LABELS[:32], verbose=0)
    full = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(
        str(tmp_path / "full")
    )
    source = full if made_from == "checkpoint" else model
    light = tmp_path / "light"
    artifact = slim_checkpoint(source, light, dtype=dtype)
    assert artifact.size_bytes == size(light)
    # The remaining hundredth is names and the description.
    assert size(full) / size(light) > ratio * 0.99
    fresh = make_model(keras, width=128)
    assert restore_slim_checkpoint(fresh, light) == []
    tolerance = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
    for one, other in zip(weights_of(model), weights_of(fresh), strict=True):
        np.testing.assert_allclose(other, one, rtol=tolerance, atol=6e-8)
    if dtype != "float32":
        assert (fresh.weights[0].numpy() != model.weights[0].numpy()).any()


def test_tensorflow_reads_it(keras, trained, full, tmp_path):
    light = str(tmp_path / "light")
    details = slim_checkpoint(full, light).details
    assert set(details["dropped"]) == {"optimizer", "save counter"}
    ours, theirs = values(light), values(full)
    extra = {"_TFOPT_SLIM_CHECKPOINT", "_CHECKPOINTABLE_OBJECT_GRAPH"}
    assert set(ours) - set(theirs) == {"_TFOPT_SLIM_CHECKPOINT"}
    assert len(ours) == len(trained.weights) + 2
    for key in set(ours) - extra:
        np.testing.assert_array_equal(ours[key], theirs[key])
    fresh = make_model(keras)
    reading = tf.train.Checkpoint(model=fresh).read(light)
    reading.assert_existing_objects_matched().expect_partial()
    assert_same(weights_of(trained), weights_of(fresh))


def test_tensorflow_restores_a_slim_checkpoint_of_a_model(keras, trained, tmp_path):
    slim_checkpoint(trained, tmp_path / "light")
    fresh = make_model(keras)
    reading = tf.train.Checkpoint(fresh).read(str(tmp_path / "light"))
    reading.assert_existing_objects_matched().expect_partial()
    assert_same(weights_of(trained), weights_of(fresh))


def test_names_of_layers_do_not_matter(keras, trained, full, tmp_path):
    slim_checkpoint(full, tmp_path / "a")
    slim_checkpoint(trained, tmp_path / "b")
    for name in "ab":
        other = make_model(keras)
        # Control: the counters do differ, so names would not have matched.
        assert other.layers[0].name != trained.layers[0].name
        restore_slim_checkpoint(other, tmp_path / name)
        assert_same(weights_of(trained), weights_of(other))
        assert accuracy(other) == accuracy(trained)


def test_trainables_alone_lose_accuracy_and_recalibration_repairs_it(
    keras, trained, tmp_path
):
    assert accuracy(trained) > 0.95
    artifact = slim_checkpoint(trained, tmp_path / "light", keep="trainable")
    assert "recalibrate_batch_norm" in artifact.details["warnings"][0]
    fresh = make_model(keras)
    untouched = restore_slim_checkpoint(fresh, tmp_path / "light")
    assert len(untouched) == 4
    assert all("moving" in name for name in untouched)
    assert accuracy(fresh) < 0.8
    names = recalibrate_batch_norm(fresh, IMAGES, batch_size=128)
    assert len(names) == 2
    assert accuracy(fresh) > 0.95


def test_recalibration_is_the_mean_over_batches(keras):
    layers = keras.layers
    model = keras.Sequential([layers.Input((3,)), layers.BatchNormalization()])
    model.layers[-1].trainable = False
    x = (RNG.normal(size=[80, 3]) * [1, 2, 3] + 7).astype(np.float32)
    batches = tf.data.Dataset.from_tensor_slices((x, x)).batch(32)
    recalibrate_batch_norm(model, batches)
    layer = model.layers[-1]
    parts = [x[:32], x[32:64], x[64:]]
    variance = sum(part.var(0) * len(part) for part in parts) / len(x)
    np.testing.assert_allclose(layer.moving_mean.numpy(), x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance.numpy(), variance, rtol=1e-4)
    assert not layer.trainable
    assert layer.momentum == 0.99
    assert "call" not in vars(layer)


def test_recalibration_refuses_and_rolls_back(keras, trained):
    plain = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(TfoptError, match="no BatchNorm layer"):
        recalibrate_batch_norm(plain, np.zeros([4, 3], np.float32))
    before = weights_of(trained)
    with pytest.raises(TfoptError, match="infinite or NaN"):
        recalibrate_batch_norm(trained, np.full([4, 8, 8, 1], np.nan, np.float32))
    with pytest.raises(ValueError, match="no data"):
        recalibrate_batch_norm(trained, [])
    assert_same(before, weights_of(trained))


def test_errors_list_what_differs_and_change_nothing(keras, trained, full, tmp_path):
    slim_checkpoint(full, tmp_path / "a")
    slim_checkpoint(trained, tmp_path / "b")
    other_width = make_model(keras, units=3)
    layers = keras.layers
    other_depth = keras.Sequential([layers.Input((8, 8, 1)), layers.Conv2D(16, 3)])
    deeper = keras.Sequential([*make_model(keras).layers, layers.Dense(2)])
    deeper.build((None, 8, 8, 1))
    for name in "ab":
        for model in (other_width, other_depth, deeper):
            before = weights_of(model)
            with pytest.raises(TfoptError) as error:
                restore_slim_checkpoint(model, tmp_path / name)
            assert "\n" not in str(error.value)
            words = {other_width: "of another shape or name: ", deeper: "missing in"}
            if name == "a" or model is other_width:
                assert words.get(model, "unexpected: ") in str(error.value)
            assert_same(before, weights_of(model))


def test_a_full_checkpoint_is_no_slim_one(keras, full):
    with pytest.raises(TfoptError, match="Not a slim checkpoint"):
        restore_slim_checkpoint(make_model(keras), full)


def test_keep_trainable_of_a_checkpoint_needs_to_know(keras, trained, full, tmp_path):
    light = tmp_path / "light"
    artifact = slim_checkpoint(full, light, keep="trainable", model=trained)
    assert artifact.details["tensors"] == len(trained.trainable_weights)
    restored = make_model(keras)
    assert len(restore_slim_checkpoint(restored, light)) == 4
    trained.save(tmp_path / "model.keras")
    by_file = slim_checkpoint(
        full, tmp_path / "c", keep="trainable", model=str(tmp_path / "model.keras")
    )
    assert by_file.details["tensors"] == artifact.details["tensors"]
    with pytest.raises(TfoptError, match="trainable weights only"):
        slim_checkpoint(light, tmp_path / "d")
    plain = make_model(keras)
    prefix = tf.train.Checkpoint(plain).write(str(tmp_path / "plain"))
    with pytest.raises(TfoptError, match="doesn't say which"):
        slim_checkpoint(prefix, tmp_path / "e", keep="trainable")
    assert not writing.files(str(tmp_path / "e"))


def test_float16_overflow_falls_back(keras, tmp_path):
    model = make_model(keras)
    layer = model.layers[1]
    layer.moving_variance.assign(np.full(16, 1e6, np.float32))
    layer.moving_mean.assign(np.full(16, 1e-9, np.float32))
    artifact = slim_checkpoint(model, tmp_path / "light", dtype="float16")
    in_full = artifact.details["kept_in_full"]
    assert sorted(name.split("/")[-1] for name in in_full) == [
        "moving_mean",
        "moving_variance",
    ]
    assert len(artifact.details["warnings"]) == 2
    stored = values(tmp_path / "light").values()
    floats = sorted(v.dtype.name for v in stored if v.dtype.kind not in "SO")
    assert floats == ["float16"] * 12 + ["float32"] * 2
    fresh = make_model(keras)
    restore_slim_checkpoint(fresh, tmp_path / "light")
    np.testing.assert_array_equal(fresh.layers[1].moving_variance.numpy(), 1e6)
    # bfloat16 has the range of float32: nothing falls back.
    wide = slim_checkpoint(model, tmp_path / "wide", dtype="bfloat16")
    assert not wide.details["kept_in_full"]


class Block(tf.keras.layers.Layer):
    """Layers in a list and a dict: TensorFlow sees those of Keras 3 by no path."""

    def __init__(self):
        super().__init__()
        self.parts = [tf.keras.layers.Dense(3), tf.keras.layers.Dense(3)]
        self.more = {"last": tf.keras.layers.Dense(2)}

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return self.more["last"](x)


def make_listed(keras):
    inputs = keras.Input((4,))
    return keras.Model(inputs, Block()(inputs))


@pytest.mark.parametrize("made_from", ["checkpoint", "model"])
def test_layers_in_lists(keras, tmp_path, made_from):
    model = make_listed(keras)
    model.compile("adam", "mse", run_eagerly=True)
    model.fit(np.ones([8, 4]), np.ones([8, 2]), verbose=0)
    source = model
    if made_from == "checkpoint":
        source = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(
            str(tmp_path / "full")
        )
    slim_checkpoint(source, tmp_path / "light")
    fresh = make_listed(keras)
    restore_slim_checkpoint(fresh, tmp_path / "light")
    assert_same(weights_of(model), weights_of(fresh))


def test_one_of_several_models(keras, tmp_path):
    first, second = make_model(keras), make_model(keras)
    saver = tf.train.Checkpoint(first=first, second=second)
    slim_checkpoint(saver.write(str(tmp_path / "full")), tmp_path / "light")
    fresh = make_model(keras)
    with pytest.raises(TfoptError, match="several parts"):
        restore_slim_checkpoint(fresh, tmp_path / "light")
    with pytest.raises(TfoptError, match=r"\['first', 'second'\]"):
        restore_slim_checkpoint(fresh, tmp_path / "light", part="third")
    for part, model in (("second", second), ("first", first)):
        restore_slim_checkpoint(fresh, tmp_path / "light", part=part)
        assert_same(weights_of(model), weights_of(fresh))


def optimizers(keras):
    """Returns one of each kind that stores its state in a way of its own."""
    inner = keras.optimizers
    found = {"ema": inner.Adam(use_ema=True), "momentum": inner.SGD(momentum=0.9)}
    if is_legacy(keras):
        scaled = keras.mixed_precision.LossScaleOptimizer
        found["legacy"] = inner.legacy.Adam()
        found["legacy scaled"] = scaled(inner.legacy.Ftrl())
    else:
        scaled = inner.LossScaleOptimizer
    return {**found, "scaled": scaled(inner.Adam())}


def is_legacy(keras):
    return keras.Model.__module__.startswith("tf_keras")


class Subclassed(tf.keras.Model):
    """With metrics and random layers of its own."""

    def __init__(self):
        super().__init__()
        self.first = tf.keras.layers.Dense(3)
        self.drop = tf.keras.layers.Dropout(0.5, seed=1)
        self.norm = tf.keras.layers.BatchNormalization()
        self.tracker = tf.keras.metrics.Mean()
        self.area = tf.keras.metrics.AUC()

    def build(self, shape):
        self.first.build(shape)
        self.norm.build((*shape[:-1], 3))
        super().build(shape)

    def call(self, x, training=None):
        return self.norm(self.drop(self.first(x), training=training))


@pytest.mark.parametrize("alone", [True, False])
def test_all_state_of_optimizers_metrics_and_seeds_is_dropped(keras, tmp_path, alone):
    for name, optimizer in optimizers(keras).items():
        model = Subclassed()
        model(np.zeros([2, 4], np.float32))
        model.compile(optimizer, "mse", metrics=["mae"], run_eagerly=True)
        model.fit(np.ones([8, 4]), np.ones([8, 3]), verbose=0)
        saver = tf.train.Checkpoint(model, optimizer=model.optimizer)
        saver = tf.train.Checkpoint(model) if alone else saver
        full = saver.write(str(tmp_path / "full"))
        artifact = slim_checkpoint(full, tmp_path / "light")
        assert artifact.details["tensors"] == 6, (name, values(tmp_path / "light"))
        assert artifact.details["dropped"]["optimizer"] >= 2
        fresh = Subclassed()
        fresh(np.zeros([2, 4], np.float32))
        restore_slim_checkpoint(fresh, tmp_path / "light")
        kept = [model.first, model.norm], [fresh.first, fresh.norm]
        for one, other in zip(*kept, strict=True):
            assert_same(weights_of(one), weights_of(other))


def test_an_optimizer_of_keras_3_knows_what_is_trainable(
    keras, trained, full, tmp_path
):
    if is_legacy(keras):
        with pytest.raises(TfoptError, match="doesn't say which"):
            slim_checkpoint(full, tmp_path / "light", keep="trainable")
        return
    artifact = slim_checkpoint(full, tmp_path / "light", keep="trainable")
    assert artifact.details["tensors"] == len(trained.trainable_weights)


def fit(model, callback, epochs, **options):
    model.fit(
        IMAGES[:64],
        LABELS[:64],
        epochs=epochs,
        batch_size=16,
        verbose=0,
        callbacks=[callback],
        **options,
    )


def numbers(folder):
    names = [path.stem for path in pathlib.Path(folder).glob("ckpt-*.index")]
    return sorted(int(name.split("-")[1]) for name in names)


def test_callback_last_best_retention_and_resuming(keras, tmp_path):
    model = compile_model(keras, make_model(keras))
    light = LightCheckpoint(tmp_path, monitor="loss", mode="max", max_to_keep=2)
    assert (light.latest, light.best) == (None, None)
    fit(model, light, 4)
    assert light.latest == str(tmp_path / "ckpt-4")
    assert tf.train.latest_checkpoint(str(tmp_path)) == light.latest
    # The loss falls, so by "max" the first one is the best, and stays.
    assert light.best == str(tmp_path / "ckpt-1")
    assert numbers(tmp_path) == [1, 3, 4]
    fresh = make_model(keras)
    restore_slim_checkpoint(fresh, tmp_path)
    assert_same(weights_of(model), weights_of(fresh))
    again = LightCheckpoint(tmp_path, monitor="loss", mode="max", max_to_keep=2)
    fit(model, again, 2)
    assert again.best == light.best
    assert numbers(tmp_path) == [1, 5, 6]
    state = json.loads((tmp_path / STATE_FILE).read_text())
    assert [entry["step"] for entry in state["checkpoints"]] == [20, 24]
    other = LightCheckpoint(tmp_path, monitor="accuracy")
    with pytest.raises(ValueError, match="compared by something else"):
        fit(model, other, 1)


def test_callback_save_best_only(keras, tmp_path):
    model = compile_model(keras, make_model(keras))
    light = LightCheckpoint(
        tmp_path,
        monitor="val_loss",
        save_best_only=True,
        max_to_keep=1,
        dtype="float16",
    )
    light.set_model(model)
    light.on_train_begin()
    saved = []
    for epoch, loss in enumerate([3.0, 2.0, float("nan"), 2.5, 1.0]):
        light.on_epoch_begin(epoch)
        light.on_train_batch_end(0)
        light.on_epoch_end(epoch, {"val_loss": loss})
        saved.append(numbers(tmp_path))
    light.on_train_end()
    assert saved == [[1], [2], [2], [2], [3]]
    assert light.best == light.latest == str(tmp_path / "ckpt-3")


def test_callback_every_steps_and_a_last_one(keras, tmp_path):
    model = compile_model(keras, make_model(keras))
    light = LightCheckpoint(tmp_path, every_steps=3, max_to_keep=None)
    fit(model, light, 2)  # 8 steps
    state = json.loads((tmp_path / STATE_FILE).read_text())
    assert [entry["step"] for entry in state["checkpoints"]] == [3, 6, 8]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_epochs": 0}, "every_epochs"),
        ({"every_epochs": 1, "every_steps": 1}, "either"),
        ({"save_best_only": True}, "monitor"),
        ({"monitor": "novelty"}, "mode"),
        ({"monitor": "loss", "mode": "up"}, "mode"),
        ({"max_to_keep": 0}, "max_to_keep"),
        ({"keep": "all"}, "keep"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_callback_refuses(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        LightCheckpoint(tmp_path, **options)


def test_callback_without_the_monitored_value_or_state(keras, tmp_path):
    model = compile_model(keras, make_model(keras))
    with pytest.raises(ValueError, match="'loss'"):
        fit(model, LightCheckpoint(tmp_path, monitor="val_loss"), 1)
    fit(model, LightCheckpoint(tmp_path), 2)
    (tmp_path / STATE_FILE).unlink()
    fit(model, LightCheckpoint(tmp_path), 1)
    assert numbers(tmp_path) == [1, 2, 3]
    (tmp_path / STATE_FILE).write_text("{")
    with pytest.raises(TfoptError, match="Cannot read the state"):
        LightCheckpoint(tmp_path)
