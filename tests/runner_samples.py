"""Tiny `.tflite` models, one for each thing that a Runner has to cope with."""

import functools
import tempfile
import warnings

import numpy as np
import tensorflow as tf

WEIGHTS = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
TABLE = np.arange(30, dtype=np.float32).reshape(10, 3)


def spec(*shape, dtype=tf.float32, name="x"):
    return tf.TensorSpec(shape, dtype, name)


def convert(function, *specs, setting=lambda converter: None):
    concrete = tf.function(function).get_concrete_function(*specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    setting(converter)
    with warnings.catch_warnings():
        # About quantization without "statistics"; the samples have a data set.
        warnings.simplefilter("ignore", UserWarning)
        return converter.convert()


@functools.cache
def dense():
    """x [?, 8] -> x @ WEIGHTS."""
    return convert(lambda x: tf.matmul(x, WEIGHTS), spec(None, 8))


@functools.cache
def fixed():
    """The same for exactly 4 rows."""
    return convert(lambda x: tf.matmul(x, WEIGHTS), spec(4, 8))


@functools.cache
def baked():
    """The same, declared for any number of rows, but with 1 baked in."""
    return convert(lambda x: tf.matmul(tf.reshape(x, [1, 8]), WEIGHTS), spec(None, 8))


@functools.cache
def computed_shape():
    """The same with a shape that is computed in the graph, as Keras 3's Flatten."""

    def flatten_and_multiply(x):
        return tf.matmul(tf.reshape(x, [tf.shape(x)[0], 8]), WEIGHTS)

    return convert(flatten_and_multiply, spec(None, 2, 4))


@functools.cache
def mean():
    """x [?, 8] -> its mean: no row per row."""
    return convert(tf.reduce_mean, spec(None, 8))


@functools.cache
def centered():
    """x [?, 8] -> x - mean over rows: rows depend on each other."""
    return convert(lambda x: x - tf.reduce_mean(x, 0, keepdims=True), spec(None, 8))


@functools.cache
def positive():
    """x [?, 3] -> the rows that begin with a positive number."""
    return convert(lambda x: tf.boolean_mask(x, x[:, 0] > 0), spec(None, 3))


@functools.cache
def two_by_two():
    """b [?, 3], a [?, 3] -> b + 2 a, b * a."""
    return convert(
        lambda b, a: (b + 2 * a, b * a),
        spec(None, 3, name="b"),
        spec(None, 3, name="a"),
    )


@functools.cache
def above():
    """x [?, 3], limit [] -> x > limit, as float."""
    return convert(
        lambda x, limit: tf.cast(x > limit, tf.float32),
        spec(None, 3),
        spec(name="limit"),
    )


@functools.cache
def look_up():
    """index int32 [?] -> rows of TABLE; a large index fails."""
    return convert(
        lambda index: tf.gather(TABLE, index), spec(None, dtype=tf.int32, name="index")
    )


@functools.cache
def look_up_in():
    """table [?, 3], index int32 [?] -> rows of table."""
    return convert(
        lambda table, index: tf.gather(table, index),
        spec(None, 3, name="table"),
        spec(None, dtype=tf.int32, name="index"),
    )


@functools.cache
def words():
    """words string [?], index int32 [?] -> words by index."""
    return convert(
        lambda words, index: tf.gather(words, index),
        spec(None, dtype=tf.string, name="words"),
        spec(None, dtype=tf.int32, name="index"),
    )


@functools.cache
def image_filter():
    """x [?, ?, ?, 1] -> sums over 3 by 3 pixels."""
    kernel = np.ones((3, 3, 1, 1), np.float32)
    return convert(
        lambda x: tf.nn.conv2d(x, kernel, 1, "VALID"), spec(None, None, None, 1)
    )


@functools.cache
def integers(dtype):
    """x [?, 8] -> relu(x @ WEIGHTS) with inputs and outputs of an integer type."""
    data = np.random.default_rng(1).normal(size=(50, 4, 8)).astype(np.float32)

    def setting(converter):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([batch] for batch in data)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        io_type = tf.as_dtype(dtype)
        converter.inference_input_type = converter.inference_output_type = io_type

    return convert(
        lambda x: tf.nn.relu(tf.matmul(x, WEIGHTS)), spec(None, 8), setting=setting
    )


@functools.cache
def integers16():
    """The same with int16 inputs and outputs and int8 weights."""
    data = np.random.default_rng(1).normal(size=(50, 4, 8)).astype(np.float32)

    def setting(converter):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([batch] for batch in data)
        kernels = tf.lite.OpsSet
        converter.target_spec.supported_ops = [
            kernels.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
        converter.inference_input_type = converter.inference_output_type = tf.int16

    return convert(
        lambda x: tf.nn.relu(tf.matmul(x, WEIGHTS)), spec(None, 8), setting=setting
    )


@functools.cache
def remainder():
    """x int32 [?], y int32 [?] -> x % y; the smallest x and -1 crash the process."""
    integers = [spec(None, dtype=tf.int32, name=name) for name in "xy"]
    return convert(lambda x, y: x % y, *integers)


@functools.cache
def crashing():
    """A complete file that crashes the process that loads it."""
    from ai_edge_litert import schema_py_generated as schema

    content = convert(lambda x: tf.split(x, 2, 1), spec(1, 8))
    model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
    for operator in model.subgraphs[0].operators:
        operator.builtinOptions.numSplits = 0
    return pack(model)


@functools.cache
def endless():
    """x float32 [1] -> x, squared until it is below 0.5: that of 1 never is."""

    def square(x):
        return tf.while_loop(lambda x: x[0] >= 0.5, lambda x: (x * x,), (x,))

    return convert(square, spec(1))


def pack(model):
    """Returns the content of a model in form of objects."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@functools.cache
def determinant(kind):
    """A model with an operator that the interpreter lacks: "flex" or "custom"."""

    def setting(converter):
        converter.allow_custom_ops = kind == "custom"
        if kind == "flex":
            converter.target_spec.supported_ops = [
                tf.lite.OpsSet.TFLITE_BUILTINS,
                tf.lite.OpsSet.SELECT_TF_OPS,
            ]

    return convert(tf.linalg.det, spec(None, 3, 3), setting=setting)


class _Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.total = tf.Variable(tf.zeros([3]))

    @tf.function(input_signature=[spec(1, 3)])
    def add(self, x):
        self.total.assign_add(x[0])
        return {"total": self.total + 0.0}

    @tf.function(input_signature=[spec(None, 3)])
    def double(self, x):
        return {"doubled": 2 * x}

    @tf.function(input_signature=[spec(None, 3), spec(None, 3, name="y")])
    def subtract(self, x, y):
        return {"difference": x - y, "distance": tf.abs(x - y)}


def _from_signatures(**signatures):
    module = _Module()
    with tempfile.TemporaryDirectory() as folder:
        functions = {key: getattr(module, name) for key, name in signatures.items()}
        tf.saved_model.save(module, folder, signatures=functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.experimental_enable_resource_variables = True
        return converter.convert()


@functools.cache
def accumulator():
    """x [1, 3] -> the sum of all x so far."""
    return _from_signatures(serving_default="add")


@functools.cache
def two_signatures():
    """Signatures "double" (x) and "subtract" (x, y)."""
    return _from_signatures(double="double", subtract="subtract")
