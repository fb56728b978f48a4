import json

import numpy as np
import pytest

from tfopt import _keras
from tfopt._keras.flatten import flatten, to_model
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras

RNG = np.random.default_rng(0)


def inputs(*shapes):
    return [RNG.normal(size=(5, *shape)).astype(np.float32) for shape in shapes]


def rebuilt(model):
    """The flat model, after checking that it is one, with variables of its own."""
    config = json.dumps(model.get_config(), default=str)
    flat = to_model(flatten(model))
    assert json.dumps(model.get_config(), default=str) == config
    assert not any(_keras.is_model(layer) for layer in flat.layers)
    assert not {id(v) for v in flat.variables} & {id(v) for v in model.variables}
    assert flat.count_params() == model.count_params()
    assert flat.name == model.name
    return flat


def assert_same(model, flat, data, **options):
    expected, got = model(data, **options), flat(data, **options)
    if isinstance(expected, dict):
        assert list(expected) == list(got)
        expected, got = list(expected.values()), list(got.values())
    elif not isinstance(expected, (list, tuple)):
        expected, got = [expected], [got]
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-6)
        assert np.std(one) > 0


def dense(keras, units, name=None, **options):
    return keras.layers.Dense(units, name=name, **options)


def test_sequential(keras):
    model = keras.Sequential([keras.Input((4,)), dense(keras, 3, "a"), dense(keras, 2)])
    flat = rebuilt(model)
    assert_same(model, flat, *inputs((4,)))
    assert [layer.name for layer in flat.layers[1:]] == [x.name for x in model.layers]
    names = [getattr(v, "path", v.name) for v in flat.get_layer("a").variables]
    assert [name.split(":")[0] for name in names] == ["a/kernel", "a/bias"]


def test_sequential_that_was_built_by_calling_it(keras):
    model = keras.Sequential([dense(keras, 3), dense(keras, 2)])
    (data,) = inputs((4,))
    model(data)
    assert_same(model, rebuilt(model), data)


def test_nested_models_with_equal_names_and_a_shared_one(keras):
    def block(name):
        return keras.Sequential(
            [keras.Input((4,)), dense(keras, 4, "same"), dense(keras, 4, "last")],
            name=name,
        )

    deep = keras.Sequential([keras.Input((4,)), block("inner")], name="outer")
    twice = block("twice")
    x = keras.Input((4,))
    model = keras.Model(x, dense(keras, 2)(twice(deep(twice(x)))))
    flat = rebuilt(model)
    assert_same(model, flat, *inputs((4,)))
    paths = [call.layer.path for call in flatten(model).calls]
    assert paths[:4] == [
        "twice/same",
        "twice/last",
        "outer/inner/same",
        "outer/inner/last",
    ]
    assert paths[4:6] == paths[:2]
    names = [layer.name for layer in flat.layers]
    assert len(set(names)) == len(names)
    assert "outer_inner_same" in names


def test_structures_of_inputs_and_outputs(keras):
    made = {name: keras.Input((3,), name=name) for name in ("zebra", "ant")}
    a, z = dense(keras, 2, "a")(made["ant"]), dense(keras, 4, "z")(made["zebra"])
    first, second = inputs((3,), (3,))
    by_name = {"zebra": first, "ant": second}
    as_dict = keras.Model(made, {"y": z, "x": a})
    assert_same(as_dict, rebuilt(as_dict), by_name)
    listed = keras.Model([made["zebra"], made["ant"]], [z, a, z])
    flat = rebuilt(listed)
    assert_same(listed, flat, [first, second])
    assert list(flat.output_names) == list(listed.output_names)
    # A nested model takes its inputs in its own order.
    outer = {name: keras.Input((3,), name=name) for name in ("zebra", "ant")}
    model = keras.Model(outer, listed([outer["zebra"], outer["ant"]]))
    assert_same(model, rebuilt(model), by_name)


def test_frozen_nested_model_stays_in_inference_mode(keras):
    base = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization()], name="base"
    )
    base.trainable = False
    x = keras.Input((4,))
    model = keras.Model(x, dense(keras, 2)(base(x, training=False)))
    flat = rebuilt(model)
    assert len(flat.trainable_variables) == len(model.trainable_variables) == 2
    assert_same(model, flat, *inputs((4,)), training=True)


def test_dropout_still_drops_in_training_only(keras):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dropout(0.5)])
    flat = rebuilt(model)
    data = np.ones((1, 64), np.float32)
    assert np.count_nonzero(flat(data)) == 64
    assert 10 < np.count_nonzero(flat(data, training=True)) < 54


def test_operators_between_layers(keras):
    x = keras.Input((4,))
    model = keras.Model(x, dense(keras, 3)(x * 2.0 + 1.0))
    assert_same(model, rebuilt(model), *inputs((4,)))


def test_model_that_starts_inside_another(keras):
    x = keras.Input((4,))
    middle = dense(keras, 3)(x)
    model = keras.Model(middle, dense(keras, 2)(middle))
    assert_same(model, rebuilt(model), *inputs((3,)))


def test_fixed_batch_and_integer_inputs(keras):
    x = keras.Input((3,), batch_size=5, dtype="int32", name="ids")
    embedded = keras.layers.Embedding(7, 4)(x)
    model = keras.Model(x, dense(keras, 2)(keras.layers.Flatten()(embedded)))
    flat = rebuilt(model)
    assert tuple(flat.inputs[0].shape) == (5, 3)
    assert_same(model, flat, RNG.integers(0, 7, (5, 3)).astype(np.int32))


def test_training_step_of_the_users_class_is_kept(keras):
    class Twice(keras.Model):
        def train_step(self, data):
            super().train_step(data)
            return super().train_step(data)

    x = keras.Input((4,))
    model = Twice(x, dense(keras, 1)(x))
    flat = rebuilt(model)
    assert type(flat) is Twice
    flat.compile("sgd", "mse")
    flat.fit(*inputs((4,)), *inputs((1,)), verbose=0)
    assert int(np.asarray(flat.optimizer.iterations)) == 2

    class Fixed(Twice):
        def __init__(self):
            x = keras.Input((4,))
            super().__init__(x, dense(keras, 1)(x))

    flat = rebuilt(Fixed())
    flat.compile("sgd", "mse")
    flat.fit(*inputs((4,)), *inputs((1,)), verbose=0)
    assert int(np.asarray(flat.optimizer.iterations)) == 2


def test_layer_keeps_what_makes_it_special(keras):
    x = keras.Input((4,))
    options = {"kernel_constraint": "non_neg", "kernel_regularizer": "l2"}
    layer = dense(keras, 2, "special", **options)
    layer.trainable = False
    copy = rebuilt(keras.Model(x, layer(x))).get_layer("special")
    assert not copy.trainable
    assert type(copy.kernel_constraint).__name__ == "NonNeg"
    assert type(copy.kernel_regularizer).__name__ == "L2"


def test_refusals(keras):
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs if float(inputs[0, 0]) > 0 else -inputs

    class NoConfig(keras.layers.Layer):
        def __init__(self, factor):
            super().__init__(name="no_config")
            self.factor = factor

        def call(self, inputs, training=None):
            return inputs * self.factor

    subclassed = Subclassed()
    subclassed(np.ones((1, 2)))
    x = keras.Input((4,))
    for model, message in (
        (subclassed, "subclassed"),
        (keras.Sequential([dense(keras, 2)]), "no weights yet"),
        ("model", "Expected a Keras model"),
        (keras.Model(x, NoConfig(2.0)(x)), "no_config"),
    ):
        with pytest.raises(TfoptError, match=message):
            to_model(flatten(model))
