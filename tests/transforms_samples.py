"""Graphs that every transform is tried on, and random ones."""

import contextlib

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st
from transforms_structure_samples import looping, model_of, traced

import tfopt
from tfopt.savedmodel import protos
from tfopt.transforms import _checking, _registry
from tfopt.transforms._graph import GraphModel

v1 = tf.compat.v1

# Options for transforms that cannot do without, chosen so that there is work to do.
OPTIONS = {
    "remove_attribute": {"attribute_name": "_class"},
    "remove_nodes": {"op": ("Identity", "StopGradient")},
    "rename_attribute": {"old_attribute_name": "_old", "new_attribute_name": "_new"},
    "rename_node": {"old_node_name": "w", "new_node_name": "weights"},
    "rename_op": {"old_op_name": "BatchMatMulV2", "new_op_name": "BatchMatMul"},
    "set_device": {"device": "/device:CPU:0"},
}


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def flat():
    """A network with whatever transforms look for."""
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        image = tf.reshape(tf.tile(x, [1, 12]), [-1, 6, 6, 1])
        image = tf.pad(image, [[0, 0], [1, 1], [1, 1], [0, 0]])
        y = tf.nn.conv2d(image, tf.constant(normal(0, 3, 3, 1, 8)), 1, "VALID")
        scale, shift, mean = (normal(seed, 8) for seed in (1, 2, 3))
        variance = np.square(normal(4, 8)) + 0.5
        y = v1.nn.fused_batch_norm(y, scale, shift, mean, variance, is_training=False)
        y = tf.identity(tf.nn.relu(y[0]))
        y = tf.nn.atrous_conv2d(y, normal(5, 3, 3, 8, 8), 2, "SAME")
        y = tf.stop_gradient(tf.reduce_mean(y, [1, 2]))
        y = tf.matmul(y, tf.constant(normal(6, 8, 160), name="w")) * 2.0 + 1.0
        table = tf.constant(normal(7, 200, 8), name="table")
        rows = tf.gather(table, tf.cast(tf.abs(x), tf.int32))
        rows = tf.reduce_sum(rows, 1) + tf.identity(tf.constant(1.0) + tf.constant(2.0))
        again = tf.reduce_sum(tf.gather(table, tf.cast(tf.abs(x), tf.int32)), 1)
        with tf.control_dependencies([again, v1.debugging.assert_none_equal(x, 99.0)]):
            joined = tf.concat([tf.tanh(y), rows, again], 1)
        with tf.device("/device:CPU:0"):
            tf.identity(joined, name="out")
            tf.argmax(joined, 1, name="class")
    return model_of(graph, ["out", "class"])


def functions():
    """Calls in calls, of functions that get their weights as arguments."""
    weights = tf.constant(normal(0, 3, 40))

    @tf.function(autograph=False)
    def inner(x, w):
        return tf.identity(tf.nn.relu(tf.matmul(x, w) * 0.5 + 1.0)), tf.identity(x)

    @tf.function(autograph=False)
    def outer(x, w):
        first, second = inner(x, w)
        return first + inner(tf.identity(second) * 2.0, w)[0]

    return traced(lambda x: tf.identity(outer(x, weights) + outer(x + 1.0, weights)))


def control():
    """If, While and Case whose functions use weights from outside."""
    square, other = tf.constant(normal(0, 3, 3)), tf.constant(normal(1, 3, 3))

    def step(i, y):
        return i + 1, tf.tanh(tf.matmul(y, square)) + tf.identity(y)

    def call(x):
        _, y = tf.while_loop(lambda i, y: i < 3, step, [tf.constant(0), x])
        y = tf.cond(
            tf.reduce_sum(x) > 0.0,
            lambda: tf.matmul(y, other) + 1.0,
            lambda: tf.matmul(y, square) * 3.0,
        )
        index = tf.cast(tf.reduce_sum(tf.abs(x)), tf.int32) % 3
        cases = [
            lambda: tf.matmul(y, other),
            lambda: tf.identity(y),
            lambda: y * 2.0 + 1.0,
        ]
        return tf.switch_case(index, cases)

    return traced(call)


SAMPLES = {"flat": flat, "functions": functions, "control": control, "tf1": looping}
# A loop and branches of TF1 with constants inside come with `looping`.


def custom():
    """A graph with an operation that TensorFlow doesn't know, in a function as well."""
    message = protos.message_class("GraphDef")()
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [2, 3], "x")
        y = tf.identity(tf.matmul(x, tf.constant(normal(0, 3, 400), name="w")), "y")
        tf.identity(tf.nn.relu(y), "out")
    message.ParseFromString(graph.as_graph_def().SerializeToString())
    node = message.node.add(name="custom", op="NobodyKnowsThis", input=["y", "^w"])
    node.attr["mode"].s = b"fast"
    (out,) = (node for node in message.node if node.name == "out")
    out.input[0] = "custom:1"
    return GraphModel.from_graph_def(message, inputs=["x"], outputs=["out"])


def empty():
    message = protos.message_class("GraphDef")()
    return GraphModel.from_graph_def(message, inputs=[], outputs=[])


def quick(source, output, transforms="remove_nodes(op=Identity)", **options):
    return tfopt.transform_graph(
        source, output, transforms, **{"verify": "structure", **options}
    )


def copy_of(model):
    """Returns the same graph, to be changed on its own."""
    kept = [name for name in model.main.kept if name in model.main.nodes]
    return GraphModel.from_graph_def(
        model.to_graph_def(), inputs=model.inputs, outputs=model.outputs, kept=kept
    )


def options_for(name, model):
    """Returns options with which a transform can be applied to a graph."""
    options = dict(OPTIONS.get(name, {}))
    if name == "rename_node" and options["old_node_name"] not in model.main.nodes:
        free = [node for node in model.main.nodes if not model.main.is_kept(node)]
        options["old_node_name"] = free[0] if free else "w"
    return options


def checked(name, model, options=None):
    """Applies a transform as the framework does, and returns its findings."""
    transform = _registry.get(name)
    before = _checking.snapshot(model)
    options = options_for(name, model) if options is None else options
    findings = transform.function(model, **options)
    faults = _checking.promise_faults(before, model, transform.promise)
    _checking.clean(model)
    faults += _checking.structure_faults(model) + _checking.arity_faults(model)
    assert not faults, f"{name}: {faults}"
    return findings


def keeps_outputs(promise, before, after):
    """Whether outputs keep a promise."""
    for old, new in zip(map(np.asarray, before), map(np.asarray, after), strict=True):
        if old.dtype != new.dtype or old.shape != new.shape:
            return False
        if promise.outputs == "equal" and not np.array_equal(old, new, equal_nan=True):
            return False
        if promise.outputs == "close" and old.dtype.kind == "f":
            scale = np.abs(old[np.isfinite(old)]).max(initial=0.0)
            limit = promise.tolerance * scale
            if not np.allclose(old, new, rtol=0.0, atol=limit, equal_nan=True):
                return False
    return True


# Random graphs: a list of steps, each on tensors that are there already.
_UNARY = {
    "identity": tf.identity,
    "relu": tf.nn.relu,
    "neg": tf.negative,
    "tanh": tf.tanh,
    "stop": tf.stop_gradient,
    "reverse": lambda x: tf.reverse(x, [0]),
}
_BINARY = {"add": tf.add, "sub": tf.subtract, "mul": tf.multiply, "max": tf.maximum}
_WITH_WEIGHTS = {
    "matmul": lambda x, seed: tf.matmul(x, tf.constant(normal(seed, 3, 3))),
    "scale": lambda x, seed: x * tf.constant(normal(seed, 3)),
    "shift": lambda x, seed: tf.nn.bias_add(x, tf.constant(normal(seed, 3))),
    "constant": lambda x, seed: tf.constant(normal(seed, 1, 3)),
    "call": lambda x, seed: _called(x, tf.constant(normal(seed, 3, 3))),
    "branch": lambda x, seed: tf.cond(
        tf.reduce_sum(x) > 0.0,
        lambda: tf.matmul(x, tf.constant(normal(seed, 3, 3))),
        lambda: tf.identity(x) + 1.0,
    ),
}
# Few seeds, so that equal nodes are frequent.
_STEP = st.one_of(
    st.tuples(st.sampled_from(sorted(_UNARY)), st.integers(0, 99), st.just(0)),
    st.tuples(st.sampled_from(sorted(_BINARY)), st.integers(0, 99), st.integers(0, 99)),
    st.tuples(
        st.sampled_from(sorted(_WITH_WEIGHTS)), st.integers(0, 99), st.integers(0, 2)
    ),
)
RANDOM_STEPS = st.lists(_STEP, min_size=1, max_size=12)


@tf.function(autograph=False)
def _called(x, w):
    return tf.nn.relu(tf.identity(tf.matmul(x, w)) + 1.0)


def build(steps):
    """Returns the graph of a list of `RANDOM_STEPS`; its outputs are the last two."""

    def call(x):
        made = [x]
        for name, first, second in steps:
            source = made[first % len(made)]
            if name in _UNARY:
                made.append(_UNARY[name](source))
            elif name in _BINARY:
                made.append(_BINARY[name](source, made[second % len(made)]))
            else:
                with contextlib.suppress(ValueError):
                    made.append(_WITH_WEIGHTS[name](source, second))
        return [tf.identity(one) for one in made[-2:]]

    return traced(call)
