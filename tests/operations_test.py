"""TensorFlow functions as layers that survive saving, and their kinds."""

import numpy as np
import pytest
import tensorflow as tf

from tfopt import _keras
from tfopt._keras import operations
from tfopt._keras.flatten import flatten, to_model
from tfopt.types import TfoptError

pytestmark = pytest.mark.both_keras


def model_of(keras, function, args, kwargs, tensors):
    """A model that is one operation on its inputs."""
    config, given = operations.operation_config(
        function, args, kwargs, lambda thing: any(thing is x for x in tensors)
    )
    layer = operations.classes(_keras.preferred()).Operation(**config, name="op")
    outputs = layer(given if len(given) > 1 else given[0])
    return keras.Model(tensors if len(tensors) > 1 else tensors[0], outputs)


def rng():
    return np.random.default_rng(0)


def test_a_raw_operation_survives_files(keras, tmp_path):
    x = keras.Input((6,))
    table = rng().normal(size=(6, 4)).astype(np.float32)
    model = model_of(
        keras, "raw_ops.MatMul", (), {"a": x, "b": table, "transpose_a": False}, [x]
    )
    data = rng().normal(size=(3, 6)).astype(np.float32)
    np.testing.assert_allclose(model(data), data @ table, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(data), model(data))
    tf.saved_model.save(model, str(tmp_path / "saved"))
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    (got,) = saved.signatures["serving_default"](tf.constant(data)).values()
    np.testing.assert_allclose(got, model(data), rtol=1e-6)
    np.testing.assert_array_equal(to_model(flatten(model))(data), model(data))


def test_arguments_of_every_sort_come_back(keras):
    x, y = keras.Input((4, 3)), keras.Input((4, 3))
    data = rng().normal(size=(2, 2, 4, 3)).astype(np.float32)
    cases = (
        ("__operators__.getitem", (x, (..., slice(1, None, 2), None)), {}),
        ("concat", ([x, y, x], -1), {}),
        ("cast", (x, tf.float64), {}),
        ("raw_ops.Cast", (), {"x": x, "DstT": tf.int32}),
        ("ensure_shape", (x, tf.TensorShape([None, 4, 3])), {}),
        ("math.add", (x, np.float64(1.5).astype(np.float32)), {}),
        ("raw_ops.Split", (), {"axis": 1, "value": x, "num_split": 2}),
        ("gather", (x, np.array([2, 0])), {"axis": 1}),
    )
    for function, args, kwargs in cases:
        tensors = [x, y] if function == "concat" else [x]
        model = model_of(keras, function, args, kwargs, tensors)
        copy = keras.Model.from_config(model.get_config())

        def real(thing):
            if isinstance(thing, list):
                return [real(each) for each in thing]
            if thing is x or thing is y:
                return tf.constant(data[0] if thing is x else data[1])
            return thing

        target = tf
        for part in function.split("."):
            target = getattr(target, part)
        expected = target(*map(real, args), **{k: real(v) for k, v in kwargs.items()})
        got = copy(list(data[: len(tensors)]) if len(tensors) > 1 else data[0])
        for one, other in zip(
            tf.nest.flatten(expected), tf.nest.flatten(got), strict=True
        ):
            np.testing.assert_array_equal(one, other, err_msg=function)


def test_a_variable_without_a_layer(keras, tmp_path):
    classes = operations.classes(_keras.preferred())
    x = keras.Input((3,))
    weight = classes.Weight(shape=(3,), weight_name="scale", name="scale")
    config, given = operations.operation_config(
        "math.multiply", (x, weight(x)), {}, lambda thing: hasattr(thing, "dtype")
    )
    model = keras.Model(x, classes.Operation(**config)(given))
    weight.set_weights([np.array([1.0, 2.0, 3.0], np.float32)])
    data = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(model(data), [[1, 2, 3]] * 2)
    model.compile("sgd", "mse")
    model.fit(data, np.zeros((2, 3)), verbose=0)
    assert np.all(weight.get_weights()[0] < [1, 2, 3])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(data), model(data))


def test_only_harmless_functions_load(keras):
    cls = operations.classes(_keras.preferred()).Operation
    for name in (
        "io.read_file",
        "raw_ops.ReadFile",
        "raw_ops.PyFuncStateless",
        "py_function",
        "load_op_library",
        "nn.relu.__globals__",
        "compat.v1.py_func",
        "numpy_function",
        "",
    ):
        with pytest.raises(TfoptError, match="function"):
            cls(function=name)
    # A saved file goes the same way.
    layer = cls(function="nn.relu", arguments=[{"tensor": 0}])
    config = {**layer.get_config(), "function": "io.write_file"}
    with pytest.raises((TfoptError, TypeError), match=r"io\.write_file"):
        cls.from_config(config)


def test_what_has_no_plain_form_is_refused(keras):
    x = keras.Input((3,))
    for thing in (object(), np.array(["text"])):
        with pytest.raises(TfoptError, match="cannot be saved"):
            operations.operation_config("math.add", (x, thing), {}, lambda t: t is x)
    layer = operations.classes(_keras.preferred()).Operation(
        function="math.add", arguments=[{"tensor": 0}, {"tensor": 1}]
    )
    with pytest.raises(TfoptError, match="2"):
        layer(tf.ones(3))


def test_all_functions_that_may_be_named_exist_or_are_old():
    missing = [
        name
        for name in operations.allowed()
        if not name.startswith("compat.v1.") and operations.find(name) is None
    ]
    assert not missing


def test_kinds_are_the_same_however_it_was_written(keras):
    def kinds(function):
        class Own(keras.layers.Layer):
            def call(self, inputs):
                return function(inputs)

        x = keras.Input((4, 2))
        graph = flatten(keras.Model(x, Own()(x)))
        return [operations.canonical_kind(call.layer) for call in graph.calls]

    cases = {
        "relu": [tf.nn.relu, lambda x: tf.raw_ops.Relu(features=x)],
        "mul": [lambda x: x * 2.0, lambda x: tf.multiply(x, 2.0)],
        "mean": [lambda x: tf.reduce_mean(x, 1)],
        "transpose": [lambda x: tf.transpose(x, [0, 2, 1])],
        "slice": [lambda x: x[:, 1:], lambda x: tf.slice(x, [0, 1, 0], [1, 2, 1])],
        "concat": [lambda x: tf.concat([x, x], 1)],
        "softmax": [tf.nn.softmax],
        "silu": [tf.nn.silu, tf.nn.swish],
        "cumsum": [tf.cumsum],
    }
    if hasattr(keras, "ops"):
        cases["relu"].append(keras.ops.relu)
        cases["mean"].append(lambda x: keras.ops.mean(x, axis=1))
        cases["transpose"].append(lambda x: keras.ops.transpose(x, (0, 2, 1)))
        cases["concat"].append(lambda x: keras.ops.concatenate([x, x], 1))
    for kind, functions in cases.items():
        for function in functions:
            assert kinds(function) == [kind]
    dense = flatten(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    assert operations.canonical_kind(dense.calls[0].layer) is None
