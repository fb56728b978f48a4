import numpy as np
import pytest

from tfopt import training
from tfopt.methods._base import Method
from tfopt.methods.prune import Prune
from tfopt.methods.quantize_aware import QuantizeAware
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras


def dense(keras):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])


class Recorder(Method):
    """Notes which hook was called when, in a list that all recorders share."""

    def __init__(self, *, name, calls):
        super().__init__()
        self.name = name
        self.calls = calls

    def prepare(self, model):
        self.calls.append(("prepare", self.name))
        return model

    def finalize(self, model):
        self.calls.append(("finalize", self.name))
        return model


class Failing(Method):
    def __init__(self, *, error):
        super().__init__()
        self.error = error

    def prepare(self, model):
        if isinstance(self.error, Exception):
            raise self.error
        return self.error

    finalize = prepare


def test_prepare_goes_left_to_right_and_finalize_back(keras):
    calls = []
    methods = [Recorder(name=name, calls=calls) for name in "abc"]
    prepared = training.prepare(dense(keras), methods)
    training.finalize(prepared, methods)
    assert calls == [
        *(("prepare", name) for name in "abc"),
        *(("finalize", name) for name in "cba"),
    ]


@pytest.mark.parametrize(
    "methods", [[], [QuantizeAware()], [Prune(final_sparsity=0.5)]]
)
def test_the_given_model_is_copied(keras, methods):
    model = dense(keras)
    prepared = training.prepare(model, methods)
    assert not {id(v) for v in model.variables} & {id(v) for v in prepared.variables}
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    kernel = model.get_layer("dense").get_weights()[0]
    np.testing.assert_array_equal(prepared.get_layer("dense").get_weights()[0], kernel)
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(prepared.predict(x, verbose=0), expected, atol=0.05)
    prepared.get_layer("dense").set_weights([0 * kernel, np.ones(3)])
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)


def test_methods_combine_in_one_fit_in_either_order(keras):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 4)).astype(np.float32), rng.integers(0, 3, 64)
    for order in (1, -1):
        methods = [
            QuantizeAware(weight_bits=4),
            Prune(final_sparsity=0.5, begin_step=0, end_step=3),
        ][::order]
        student = training.prepare(dense(keras), methods)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        student.compile("adam", loss)
        student.fit(x, y, batch_size=8, verbose=0, callbacks=methods)
        student = training.finalize(student, methods)
        kernel = student.get_layer("dense").get_weights()[0]
        assert np.count_nonzero(kernel == 0) >= 6
        largest = np.abs(kernel).max(axis=0)
        steps = kernel / np.where(largest, largest, 1)  # a channel may be empty
        assert len(np.unique(np.round(steps, 5))) <= 15


def test_errors_name_the_method(keras):
    model = dense(keras)
    with pytest.raises(TfoptError, match=r"QuantizeAware\.finalize: .*not prepared"):
        training.finalize(model, [QuantizeAware()])
    with pytest.raises(ValueError, match=r"QuantizeAware\.prepare: .*nowhere"):
        training.prepare(model, [QuantizeAware(exclude="nowhere")])
    with pytest.raises(TfoptError, match=r"Failing\.prepare: broken"):
        training.prepare(model, [Failing(error=TfoptError("broken"))])
    with pytest.raises(TfoptError, match=r"Failing\.finalize must return a model"):
        training.finalize(model, [Failing(error="no model")])
    # Whatever else goes wrong inside a method is not ours to rephrase.
    with pytest.raises(KeyError):
        training.prepare(model, [Failing(error=KeyError("bug"))])


@pytest.mark.parametrize("call", [training.prepare, training.finalize])
def test_bad_methods(keras, call):
    model, method = dense(keras), QuantizeAware()
    for methods in (method, None, [keras.callbacks.Callback()], [QuantizeAware]):
        with pytest.raises(ValueError, match="methods="):
            call(model, methods)
    with pytest.raises(ValueError, match="listed twice"):
        call(model, [method, method])
    with pytest.raises(TfoptError, match="Expected a Keras model"):
        call(3, [method])
