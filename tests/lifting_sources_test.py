"""What else can be lifted, and what cannot."""

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt.lifting import _sizes

v1 = tf.compat.v1


def function_of(*specs):
    """Makes a ConcreteFunction of a function of inputs `x`, `y`."""
    named = [tf.TensorSpec(*spec, name=name) for spec, name in zip(specs, "xy")]  # noqa: B905

    def decorate(function):
        return tf.function(function, input_signature=named).get_concrete_function()

    return decorate


def lifted_kinds(source, **options):
    model = tfopt.lift(source, **options)
    return [type(layer).__name__ for layer in model.layers[1:]]


IMAGES = ([None, 8, 8, 4], tf.float32)
RANDOM = np.random.default_rng(0)
KERNEL = RANDOM.normal(size=(3, 3, 4, 6)).astype("float32")
VECTOR = RANDOM.uniform(1, 2, 6).astype("float32")


@pytest.fixture(scope="module")
def graph_def():
    """A frozen graph of TF1's time: dilation by SpaceToBatchND, a folded norm."""
    graph = tf.Graph()
    with graph.as_default():
        image = v1.placeholder(tf.float32, [None, 8, 8, 4], name="image")
        wide = tf.nn.space_to_batch(image, [2, 2], [[2, 2], [2, 2]])
        wide = tf.nn.conv2d(wide, KERNEL, 1, "VALID", name="net/wide/conv")
        wide = tf.batch_to_space(wide, [2, 2], [[0, 0], [0, 0]])
        norm = tf.add(wide * VECTOR, VECTOR, name="net/wide/norm")
        probabilities = tf.nn.softmax(
            tf.reduce_mean(tf.nn.relu(norm), [1, 2]), name="net/probabilities"
        )
    assert probabilities.name == "net/probabilities:0"
    return graph.as_graph_def()


NAMES = {"inputs": ["image"], "outputs": ["net/probabilities"]}
KINDS = ["Conv2D", "ReLU", "GlobalAveragePooling2D", "Softmax"]


@pytest.mark.parametrize("form", ["message", "bytes", "pb", "pbtxt"])
def test_a_frozen_graph_is_lifted(graph_def, form, tmp_path):
    source = {"message": graph_def, "bytes": graph_def.SerializeToString()}.get(form)
    if source is None:
        source = tmp_path / f"graph.{form}"
        tf.io.write_graph(graph_def, str(tmp_path), source.name, form == "pbtxt")
    model = tfopt.lift(source, **NAMES)
    assert [type(layer).__name__ for layer in model.layers[1:]] == KINDS
    conv = model.layers[1]
    # The norm is in the kernel, which the name tells.
    assert conv.dilation_rate == (2, 2)
    assert conv.padding == "same"
    np.testing.assert_allclose(conv.get_weights()[0], KERNEL * VECTOR, rtol=1e-6)
    np.testing.assert_array_equal(conv.get_weights()[1], VECTOR)
    assert len(model.trainable_variables) == 2


def test_a_saved_model_of_tf1_is_lifted(tmp_path):
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 5], name="x")
        kernel = v1.get_variable("dense/kernel", [5, 3], use_resource=False)
        bias = v1.get_variable("dense/bias", [3], use_resource=True)
        y = tf.nn.relu(tf.nn.bias_add(tf.matmul(x, kernel), bias), name="y")
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "m"), {"x": x}, {"y": y})
        given = np.ones((2, 5), np.float32)
        expected = session.run(y, {x: given})
    model = tfopt.lift(tmp_path / "m")
    assert [type(layer).__name__ for layer in model.layers[1:]] == ["Dense", "ReLU"]
    np.testing.assert_allclose(model(given), expected, atol=1e-6)
    assert len(model.trainable_variables) == 2


def test_what_was_a_constant_is_not_trained():
    variable = tf.Variable(KERNEL)

    @function_of(IMAGES)
    def both(x):
        return tf.nn.conv2d(
            tf.nn.conv2d(x, KERNEL[..., :4], 1, "SAME"), variable, 1, "SAME"
        )

    first, second = tfopt.lift(both).layers[1:]
    assert not first.trainable_variables
    assert len(second.trainable_variables) == 1


def test_a_tensor_inside_of_a_layer_that_something_else_needs():
    @function_of(IMAGES)
    def tapped(x):
        before = tf.nn.conv2d(x, KERNEL, 1, "SAME")
        return {"end": tf.nn.relu(tf.nn.bias_add(before, VECTOR)), "tap": before + 1}

    kinds = lifted_kinds(tapped)
    assert kinds.count("Conv2D") == 1


def test_explicit_padding_and_sizes_that_the_graph_computes():
    @function_of(IMAGES)
    def padded(x):
        y = tf.nn.conv2d(x, KERNEL, 2, [[0, 0], [1, 2], [0, 1], [0, 0]])
        shape = tf.shape(y)
        return tf.reshape(y, [shape[0], shape[1] * shape[2], shape[3]])

    assert lifted_kinds(padded) == ["ZeroPadding2D", "Conv2D", "Reshape"]


def test_operations_without_a_layer_stay_what_they_are():
    @function_of(IMAGES)
    def odd(x):
        parts = tf.split(tf.math.sin(x), 2, axis=3)
        best = tf.cast(tf.argmax(parts[0], axis=3), tf.float32)
        return tf.stack([best, tf.reduce_sum(parts[1], 3)], axis=-1)

    model = tfopt.lift(odd)
    functions = [getattr(layer, "function", "") for layer in model.layers[1:]]
    assert {"raw_ops.Sin", "raw_ops.ArgMax", "raw_ops.Pack"} <= set(functions)


def test_shapes_that_the_graph_does_not_tell():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, None, name="x")
        tf.nn.relu(tf.nn.conv2d(x, KERNEL, 1, "SAME"), name="y")
    options = {"inputs": ["x"], "outputs": ["y"]}
    with pytest.raises(tfopt.TfoptError, match="`input_shapes`"):
        tfopt.lift(graph, **options)
    model = tfopt.lift(graph, **options, input_shapes={"x": [None, 8, 8, 4]})
    assert model.output_shape == (None, 8, 8, 6)


def loop(x):
    return tf.while_loop(lambda y: tf.reduce_sum(y) < 9.0, lambda y: (y + 1,), (x,))


def channels_first(x):
    return tf.nn.max_pool2d(x, 2, 2, "VALID", data_format="NCHW")


def text(x):
    return tf.strings.length(tf.strings.as_string(x))


REFUSED = {
    "loop": (loop, r"branches, loops .* StatelessWhile"),
    "channels_first": (channels_first, "NCHW.* MaxPool|MaxPool .* with NCHW"),
    "text": (text, "text is not lifted.* AsString"),
    "random": (lambda x: x + tf.random.normal([4]), "is random.* RandomStandardNormal"),
    "constant": (lambda x: tf.constant([1.0]), "isn't computed from the inputs"),
    "unknown": (lambda x: tf.linalg.svd(x)[0], "cannot be one of a Keras model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_lifted_is_named(name):
    function, message = REFUSED[name]
    with pytest.raises(tfopt.TfoptError, match=message):
        tfopt.lift(function_of(IMAGES)(function))


def test_a_table_is_refused():
    class Words(tf.Module):
        def __init__(self):
            self.table = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer([1, 2], [3, 4]), -1
            )

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.int32)])
        def __call__(self, ids):
            return self.table.lookup(ids)

    with pytest.raises(tfopt.TfoptError, match=r"table.* HashTableV2"):
        tfopt.lift(Words())


def test_arguments_that_do_not_fit(graph_def, tmp_path):
    with pytest.raises(ValueError, match="outputs are"):
        tfopt.lift(graph_def)
    with pytest.raises(ValueError, match="There are no such inputs"):
        tfopt.lift(graph_def, **NAMES, input_shapes={"picture": [1, 8, 8, 4]})
    with pytest.raises(tfopt.TfoptError, match="no such tensor"):
        tfopt.lift(graph_def, inputs=["image"], outputs=["nothing"])
    with pytest.raises(tfopt.TfoptError, match="undamaged GraphDef"):
        tfopt.lift(b"no graph", **NAMES)
    with pytest.raises(ValueError, match="`verify_data` misses inputs"):
        tfopt.lift(graph_def, **NAMES, verify_data={})
    with pytest.raises(tfopt.TfoptError, match=r"tfopt\.lift"):
        tfopt.prepare(tmp_path / "graph.pb", [tfopt.Prune(final_sparsity=0.5)])
    with pytest.raises(ValueError, match="named inputs and outputs already"):
        tfopt.lift(function_of(IMAGES)(lambda x: x + 1), **NAMES)


def test_sizes_are_read_as_far_as_they_are_known():
    with tf.Graph().as_default():
        x = v1.placeholder(tf.float32, [None, 3, 4, 5])
        shape = tf.shape(x)
        product = tf.reduce_prod(shape[1:3])
        parts = tf.stack([shape[0], product, tf.maximum(shape[3], 2) - 1])
        assert _sizes.sizes(parts).tolist() == [None, 12, 4]
        assert _sizes.known(parts) is None
        assert _sizes.known(tf.gather(shape, [1, 3])).tolist() == [3, 5]
        assert _sizes.known(tf.concat([shape[1:2], [7]], 0)).tolist() == [3, 7]
        assert _sizes.sizes(tf.reduce_prod(shape)).tolist() is None
        assert _sizes.sizes(tf.cast(x, tf.int32)) is None
