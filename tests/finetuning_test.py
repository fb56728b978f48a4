"""Fine-tuning: results, the loss that is found, and going on after an interruption."""

import json
import logging
import os

import numpy as np
import pytest

import tfopt
from tfopt import finetuning
from tfopt.data import Data, Split
from tfopt.finetuning import _objective, command
from tfopt.methods._base import Method

pytestmark = pytest.mark.both_keras


def blobs(count=240, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, count)
    inputs = generator.normal(size=(count, 8)) + 3 * np.eye(8)[labels]
    return inputs.astype(np.float32), labels


DATA = Data(train=Split(blobs()), test=Split(blobs(seed=1)))


def network(keras, units=3, activation=None, seed=3, dropout=0):
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8,)),
            layers.Dense(16, activation="relu", name="hidden"),
            *([layers.Dropout(dropout), layers.Dropout(0.1)] if dropout else []),
            layers.Dense(units, activation=activation, name="logits"),
        ]
    )


class Interrupt(Method):
    """Stops the training as Ctrl-C does, once, when an epoch begins."""

    armed = False

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2 and type(self).armed:
            type(self).armed = False
            raise KeyboardInterrupt


def test_writes_and_measures_what_the_methods_made(keras, tmp_path):
    model = network(keras)
    weights = [weight.copy() for weight in model.get_weights()]
    result = tfopt.finetune(
        model,
        DATA,
        tmp_path / "out",
        methods=[tfopt.Prune(final_sparsity=0.5, frequency=1)],
        epochs=2,
        batch_size=40,
        learning_rate=0.02,
    )
    assert result.after["accuracy"] > result.before["accuracy"]
    assert result.sparsity["total"] == pytest.approx(0.5, abs=0.01)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["sparsity"]["hidden/kernel"] == 0.5
    assert report["methods"][0]["arguments"]["final_sparsity"] == 0.5
    assert sorted(os.listdir(tmp_path / "out")) == ["model.keras", "report.json"]
    assert tfopt.sparsity(tmp_path / "out" / "model.keras") == result.sparsity
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_converts_a_model_trained_for_int8(keras, tmp_path):
    methods = [
        tfopt.QuantizeAware(representative_dataset=blobs()[0]),
        tfopt.Prune(final_sparsity=0.5, frequency=1),
    ]
    result = tfopt.finetune(
        network(keras),
        DATA,
        tmp_path,
        methods=methods,
        epochs=2,
        learning_rate=0.02,
        quantization="int8",
    )
    assert result.after["tflite"]["accuracy"] == pytest.approx(
        result.after["accuracy"], abs=0.02
    )
    zeros = tfopt.sparsity(tmp_path / "model.tflite")["total"]
    assert zeros >= result.sparsity["total"] - 1e-6


def test_learns_from_teachers(keras, tmp_path):
    teacher = network(keras)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile(keras.optimizers.Adam(0.02), loss)
    teacher.fit(*blobs(), epochs=4, verbose=0)
    teacher.save(tmp_path / "teacher.keras")
    network(keras).save(tmp_path / "student.keras")
    train, test = blobs(), blobs(seed=1)
    np.savez(
        tmp_path / "data.npz",
        x_train=train[0],
        y_train=train[1],
        x_test=test[0],
        y_test=test[1],
    )
    found = command.finetune_model(
        model=str(tmp_path / "student.keras"),
        data=str(tmp_path / "data.npz"),
        output_dir=str(tmp_path / "out"),
        methods=["quantize_aware", "distill", "prune"],
        method_options={
            "distill": {"temperature": 2.0},
            "prune": {"final_sparsity": 0.5, "frequency": 1},
        },
        teacher=[str(tmp_path / "teacher.keras")],
        epochs=2,
        learning_rate=0.02,
    )
    assert found.after["accuracy"] > found.before["accuracy"]
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    logits = np.asarray(teacher(test[0]))
    accuracy = (logits.argmax(1) == test[1]).mean()
    assert written["teachers"][0]["accuracy"] == pytest.approx(accuracy)
    assert "teacher.keras" in written["teachers"][0]["teacher"]
    assert "teacher.keras" in str(found)
    assert "T = 2" in written["methods"][1]["report"]["loss"]
    assert written["sparsity"]["total"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"methods": ["distill"]}, "--methods=distill, --teacher="),
        ({"teacher": ["t.keras"]}, "--teacher=t.keras"),
        (
            {"methods": ["distill"], "teacher": ["t.keras"], "engine": "tfmot"},
            "no distillation.*--engine=tfmot",
        ),
    ],
)
def test_teachers_and_distillation_go_together(tmp_path, options, named):
    files = {"model": "m.keras", "data": "d.npz", "output_dir": str(tmp_path / "x")}
    with pytest.raises(tfopt.types.UsageError, match=named):
        command.finetune_model(**files, **options)


@pytest.mark.parametrize("methods", ["plain", "prune", "dropout"])
def test_goes_on_as_if_it_had_not_been_interrupted(keras, tmp_path, caplog, methods):
    def run(folder, **changed):
        chosen = [Interrupt()]
        if methods == "prune":
            chosen.append(tfopt.Prune(final_sparsity=0.7, end_step=20, frequency=3))
        options = {"epochs": 4, "batch_size": 40, "learning_rate": 0.02, **changed}
        # Without seeds of their own: two trainings of one process agree all the same.
        model = network(keras, dropout=0.3 if methods == "dropout" else 0)
        return tfopt.finetune(model, DATA, folder, methods=chosen, **options)

    whole = run(tmp_path / "whole")
    Interrupt.armed = True
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts")
    assert "interrupted after 2 of 4 epochs" in caplog.text
    assert os.listdir(tmp_path / "parts") == [".training"]
    resumed = run(tmp_path / "parts")
    assert "continued after epoch 2" in resumed.notes
    for a, b in zip(
        whole.model.get_weights(), resumed.model.get_weights(), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # The comparison tells trainings apart: other orders give other weights.
    other = run(tmp_path / "other", seed=5).model.get_weights()[0]
    assert np.abs(other - whole.model.get_weights()[0]).max() > 1e-4


def test_a_teacher_is_known_by_its_weights(keras):
    first, again, other = (
        finetuning._described_arguments(tfopt.Distill(network(keras, seed=seed)))
        for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_takes_no_state_of_another_training(keras, tmp_path, caplog):
    Interrupt.armed = True
    options = {"methods": [Interrupt()], "epochs": 3, "batch_size": 60}
    with pytest.raises(KeyboardInterrupt):
        tfopt.finetune(network(keras), DATA, tmp_path, **options)
    with caplog.at_level(logging.WARNING):
        result = tfopt.finetune(
            network(keras), DATA, tmp_path, learning_rate=0.1, **options
        )
    assert "other settings" in caplog.text
    assert not any("continued" in note for note in result.notes)


@pytest.mark.parametrize(
    ("units", "activation", "labels", "loss", "metrics"),
    [
        (3, None, np.arange(6) % 3, "SparseCategoricalCrossentropy", ("accuracy",)),
        (3, "softmax", np.arange(6) % 3, "SparseCategorical", ("accuracy",)),
        (3, "softmax", np.eye(3)[np.arange(6) % 3], "Categorical", ("accuracy",)),
        (1, "sigmoid", np.arange(6) % 2, "BinaryCrossentropy", ("accuracy",)),
        (1, None, np.linspace(0, 2, 6), "mse", ("mae",)),
        (3, None, np.random.default_rng(0).normal(size=(6, 3)), "mse", ("mae",)),
    ],
)
def test_finds_the_loss(keras, units, activation, labels, loss, metrics):
    model = network(keras, units, activation)
    found = _objective.find(model, labels, loss=None, metrics=None)
    name = found.loss if isinstance(found.loss, str) else type(found.loss).__name__
    assert loss in name
    assert found.metrics == metrics
    if activation is None and "Cross" in loss:
        assert found.loss.get_config()["from_logits"]
    if activation is not None:
        assert not found.loss.get_config()["from_logits"]


def test_several_outputs_need_a_loss(keras):
    inputs = keras.layers.Input((8,))
    model = keras.Model(inputs, [keras.layers.Dense(1)(inputs) for _ in range(2)])
    with pytest.raises(tfopt.TfoptError, match="several outputs"):
        _objective.find(model, {"a": np.zeros(3)}, loss=None, metrics=None)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0.5}, "batch_size=0.5"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"optimizer": "addam"}, "optimizer='addam'"),
        ({"loss": "mean_scored"}, "loss='mean_scored'"),
    ],
)
def test_bad_arguments_are_named(keras, tmp_path, options, named):
    with pytest.raises((ValueError, tfopt.TfoptError), match=named.replace("'", ".")):
        tfopt.finetune(network(keras), DATA, tmp_path / "x", methods=[], **options)
    assert not (tmp_path / "x").exists()
