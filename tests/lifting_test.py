"""SavedModels and frozen graphs as Keras models."""

import collections

import lifting_samples as samples
import numpy as np
import pytest
import tensorflow as tf
import training_samples

import tfopt
from tfopt import _keras
from tfopt._keras.flatten import to_model
from tfopt.lifting import _assembling, _checking, _covering, _opening

pytestmark = pytest.mark.both_keras


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Function: name of a sample -> the model and its SavedModel."""
    made = {}

    def export(name):
        if name not in made:
            model = samples.randomized(samples.SAMPLES[name](tf.keras))
            folder = tmp_path_factory.mktemp(name) / "saved_model"
            made[name] = model, samples.export(model, folder)
        return made[name]

    return export


def kinds(model):
    return collections.Counter(type(layer).__name__ for layer in model.layers)


@pytest.mark.parametrize("name", samples.SAMPLES)
def test_a_lifted_model_computes_what_the_original_computes(exported, name):
    model, folder = exported(name)
    lifted = tfopt.lift(folder)
    arrays = samples.inputs_of(model)
    # Keras 3's SavedModels number the inputs that have no name in the model's order.
    names = lifted.input.keys() if isinstance(lifted.input, dict) else arrays
    given = dict(
        zip(sorted(names), [arrays[key] for key in sorted(arrays)], strict=True)
    )
    expected = samples.outputs_of(model, arrays)
    found = samples.outputs_of(lifted, given)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * np.abs(one).max())
        assert np.abs(one - other.mean()).max() > 1e-2  # other numbers would show
    assert _keras.module_of(lifted) is _keras.preferred()


def test_images_become_the_layers_that_they_were(exported):
    model, folder = exported("images")
    lifted = tfopt.lift(folder)
    found = kinds(lifted)
    assert "Operation" not in found
    for kind in ("Conv2D", "Conv2DTranspose", "DepthwiseConv2D", "PReLU", "Dense"):
        assert found[kind] == kinds(model)[kind], kind
    assert found["BatchNormalization"] == 3
    assert {"GlobalAveragePooling2D", "UpSampling2D", "Cropping2D"} <= set(found)
    assert len(lifted.trainable_variables) >= len(model.trainable_variables)


def test_sequences_become_the_layers_that_they_were(exported):
    _, folder = exported("sequences")
    found = kinds(tfopt.lift(folder))
    assert "Operation" not in found
    # The normalization of the inputs, and the one after the convolution.
    assert found["BatchNormalization"] == 2
    assert {"Conv1D", "MaxPooling1D", "AveragePooling1D", "Rescaling"} <= set(found)


def test_a_transformer_keeps_its_weights(exported):
    model, folder = exported("tokens")
    lifted = tfopt.lift(folder)
    found = kinds(lifted)
    assert found["LayerNormalization"] == 1
    assert found["Embedding"] == 1
    assert found["EinsumDense"] + found["Dense"] == 6
    # What no layer holds is a variable nevertheless.
    assert found["Weight"] == 1
    assert lifted.count_params() == model.count_params()
    assert len(lifted.trainable_variables) == len(model.trainable_variables)


def test_a_layer_that_is_called_twice_is_one(exported):
    model, folder = exported("pairs")
    lifted = tfopt.lift(folder)
    assert kinds(lifted)["Conv2D"] == 1
    assert lifted.count_params() == model.count_params()
    assert sorted(lifted.input) == ["left", "right"]
    assert list(lifted.output_names) == ["kind", "same"]


def test_names_are_those_of_the_graph(exported):
    _, folder = exported("images")
    names = {layer.name.removesuffix("_1") for layer in tfopt.lift(folder).layers}
    assert {"first", "first_bn", "depth", "slopes", "back", "gate", "out"} <= names


def test_normalizations_train_as_usual_and_constants_do_not(exported):
    _, folder = exported("images")
    lifted = tfopt.lift(folder)
    (norm,) = [x for x in lifted.layers if x.name.startswith("first_bn")]
    before = norm.get_weights()
    lifted.compile(tf.keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    x = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype("float32")
    lifted.fit(x, np.arange(8) % 4, verbose=0)
    for old, new in zip(before, norm.get_weights(), strict=True):
        assert not np.array_equal(old, new)
    _, folder = exported("sequences")
    norms = [
        layer
        for layer in tfopt.lift(folder).layers
        if type(layer).__name__ == "BatchNormalization"
    ]
    # What normalizes the inputs has no statistics of its own.
    assert [norm.trainable for norm in norms] == [False, True]


def test_a_lifted_model_is_saved_and_loaded(exported, tmp_path):
    model, folder = exported("tokens")
    lifted = tfopt.lift(folder)
    _keras.save(lifted, tmp_path / "model.keras")
    arrays = samples.inputs_of(model)
    (expected,) = samples.outputs_of(lifted, arrays)
    (found,) = samples.outputs_of(_keras.load(tmp_path / "model.keras"), arrays)
    np.testing.assert_array_equal(found, expected)


class TestTraining:
    def test_quantization_aware_training_ends_in_int8(self, exported, tmp_path):
        _, folder = exported("images")
        x = np.random.default_rng(0).normal(size=(32, 16, 16, 3)).astype("float32")
        methods = [tfopt.QuantizeAware(representative_dataset=x)]
        student = tfopt.prepare(folder, methods)
        student.compile("adam", "sparse_categorical_crossentropy")
        training_samples.built(student)
        student.fit(x, np.arange(32) % 4, verbose=0, callbacks=methods)
        final = tfopt.finalize(student, methods)
        done = tfopt.convert_with_report(final, quantization="int8")
        (output,) = done.report["verification"]["outputs"].values()
        assert done.report["float_operators"] == []
        assert output["argmax_equal"] >= 0.995
        original = tfopt.freeze(folder, tmp_path / "frozen.pb").signature
        assert done.signature.inputs == original.inputs
        assert [x.name for x in done.signature.outputs] == [
            x.name for x in original.outputs
        ]

    def test_the_result_is_exported_with_the_names_it_had(self, exported, tmp_path):
        _, folder = exported("pairs")
        methods = [tfopt.Prune(final_sparsity=0.5, begin_step=0, end_step=1)]
        student = tfopt.prepare(folder, methods)
        student.compile("sgd", {"same": "mse", "kind": "mse"})
        x = {name: np.ones((4, 8, 8, 3), np.float32) for name in ("left", "right")}
        y = {"same": np.ones((4, 1)), "kind": np.ones((4, 3))}
        student.fit(x, y, batch_size=2, epochs=2, verbose=0, callbacks=methods)
        final = tfopt.finalize(student, methods)
        assert tfopt.sparsity(final)["total"] == pytest.approx(0.5, abs=0.01)
        written = tfopt.freeze(final, tmp_path / "out", output_format="saved_model")
        original = tfopt.freeze(folder, tmp_path / "frozen.pb").signature
        assert written.signature.inputs == original.inputs
        assert written.signature.outputs == original.outputs

    def test_patterns_mean_the_names_of_the_graph(self, exported):
        _, folder = exported("images")
        x = np.ones((4, 16, 16, 3), np.float32)
        method = tfopt.QuantizeAware(representative_dataset=x, exclude="gate*")
        tfopt.prepare(folder, [method])
        treated = {row["name"].removesuffix("_1"): row for row in method.report}
        assert treated["gate"]["reason"] == "excluded"
        assert treated["first"]["treatment"] == "int8"

    def test_channels_are_removed(self, exported):
        _, folder = exported("pairs")
        lifted = tfopt.lift(folder)
        # It checks that both compute the same when the channels are zero.
        smaller = tfopt.remove_channels(lifted, sparsity=0.5)
        (conv,) = [x for x in smaller.layers if type(x).__name__ == "Conv2D"]
        assert conv.filters == 2

    def test_a_loaded_object_and_a_file_are_prepared(self, exported, tmp_path):
        _, folder = exported("pairs")
        loaded = tf.saved_model.load(folder)
        method = tfopt.Prune(final_sparsity=0.5)
        if not _keras.is_model(loaded):
            assert kinds(tfopt.prepare(loaded, [method]))["Conv2D"] == 1
        _keras.save(tfopt.lift(folder), tmp_path / "model.keras")
        again = tfopt.prepare(tmp_path / "model.keras", [method])
        assert kinds(again)["Conv2D"] == 1
        with pytest.raises(tfopt.TfoptError, match="Expected a Keras model"):
            tfopt.prepare(1, [method])

    def test_the_command_finetunes_a_saved_model(self, exported, tmp_path):
        from tfopt.finetuning import command

        _, folder = exported("sequences")
        generator = np.random.default_rng(0)
        arrays = {
            f"{part}_{split}": array.astype(kind)
            for split in ("train", "test")
            for part, kind, array in (
                ("x", "float32", generator.normal(size=(16, 24, 4))),
                ("y", "int64", generator.integers(0, 3, 16)),
            )
        }
        np.savez(tmp_path / "data.npz", **arrays)
        result = command.finetune_model(
            model=folder,
            data=str(tmp_path / "data.npz"),
            output_dir=str(tmp_path / "out"),
            methods=["prune"],
            method_options={"prune": {"final_sparsity": 0.5}},
            batch_size=4,
        )
        assert result.sparsity["total"] == pytest.approx(0.5, abs=0.01)


def test_a_difference_names_the_layer(exported):
    _, folder = exported("images")
    network = _opening.open_network(
        folder,
        signature_key=None,
        tags=None,
        inputs=(),
        outputs=(),
        input_shapes=None,
    )
    items = _covering.cover(network)
    assembled = _assembling.assemble(network, items, _keras.preferred(), "wrong")
    (wide,) = [x for x in assembled.graph.layers() if x.name.startswith("wide")]
    wide.weights[1] = wide.weights[1] + 0.01
    with pytest.raises(tfopt.VerificationError, match="of the layer 'wide"):
        _checking.check(network, assembled, to_model(assembled.graph), None)
