"""Graphs and ways to run them, for the tests of structural transforms and folding."""

import contextlib

import numpy as np
import tensorflow as tf

import tfopt
from tfopt.savedmodel import protos
from tfopt.transforms import _checking
from tfopt.transforms._graph import GraphModel

v1 = tf.compat.v1
X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5


def model_of(graph, outputs, inputs=("x",), kept=()):
    """Returns a tf.Graph, GraphDef or file as GraphModel."""
    if isinstance(graph, tf.Graph):
        data = graph.as_graph_def().SerializeToString()
    elif hasattr(graph, "read_bytes"):
        data = graph.read_bytes()
    else:
        data = graph.SerializeToString()
    message = protos.message_class("GraphDef").FromString(data)
    return GraphModel.from_graph_def(message, inputs=inputs, outputs=outputs, kept=kept)


def traced(function, *, outputs=None, shape=(None, 3)):
    """Returns the graph of a tf.function of one float input `x`, calls not inlined."""
    spec = tf.TensorSpec(shape, tf.float32, "x")
    graph = tf.function(function, input_signature=[spec]).get_concrete_function().graph
    names = [t.name for t in graph.outputs]
    return model_of(graph, outputs or names)


@contextlib.contextmanager
def old_control_flow():
    """Makes TensorFlow build TF1's Switch and Merge meanwhile."""
    v1.disable_control_flow_v2()
    try:
        yield
    finally:
        v1.enable_control_flow_v2()


def looping():
    """Returns a graph with a loop and a branch of TF1, which has constants inside."""
    with old_control_flow(), tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")

        def step(i, y):
            scale = tf.constant(2.0) + tf.constant(1.0)
            again = tf.constant(2.0) + tf.constant(1.0)
            return i + 1, tf.identity(y) * scale - again

        _, y = v1.while_loop(lambda i, y: i < 4, step, [tf.constant(0), x])
        z = v1.cond(
            tf.reduce_sum(x) > 0,
            lambda: tf.identity(y) + (tf.constant(1.0) + tf.constant(2.0)),
            lambda: tf.constant(1.0) + tf.constant(2.0),
        )
        tf.identity(z, name="out")
    return model_of(graph, ["out"])


def run(model, feeds=None, *, session_runs=1, setup=()):
    """Returns the outputs, computed without TensorFlow's optimizers.

    Args:
        model: A GraphModel.
        feeds: Input -> array; by default `X` for `x`.
        session_runs: How many times to run; the last outputs are returned.
        setup: Operations to run first.
    """
    config = v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = -1
    graph_def = v1.GraphDef.FromString(model.to_graph_def().SerializeToString())
    bodies = [graph_def.node, *(f.node_def for f in graph_def.library.function)]
    for node in (node for body in bodies for node in body):
        if "config_proto" in node.attr:
            node.attr["config_proto"].s = config.SerializeToString()
    feeds = {"x:0": X} if feeds is None else feeds
    with tf.Graph().as_default(), v1.Session(config=config) as session:
        tf.import_graph_def(graph_def, name="")
        for op in setup:
            session.run(op)
        for _ in range(session_runs):
            found = session.run(list(model.outputs), feeds)
    return found


def apply(model, transform, **options):
    """Applies a transform twice, cleaning up; the second time must change nothing.

    Returns:
        The findings of the first time.
    """
    findings = transform(model, **options)
    _clean(model)
    if transform.promise.is_idempotent:
        once = model.to_graph_def()
        transform(model, **options)
        _clean(model)
        assert model.to_graph_def() == once
    return findings


def _clean(model):
    _checking.clean(model)
    assert _checking.structure_faults(model) == []
    assert _checking.arity_faults(model) == []


def same(before, after):
    """Whether outputs are equal bit by bit."""
    return len(before) == len(after) and all(
        a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
        for a, b in zip(map(np.asarray, before), map(np.asarray, after), strict=True)
    )


def ops(model, body=""):
    """Returns the operations of a body, sorted."""
    return sorted(node.op for node in bodies(model)[body])


def bodies(model):
    return {body.name: body for body in model.bodies}


def all_ops(model):
    return sorted(node.op for body in model.bodies for node in body)


def frozen_basic_pitch(testdata, folder, *, inline):
    """Returns the basic-pitch model, frozen, with inputs for it."""
    path = folder / f"inline_{inline}.pb"
    source = str(testdata / "basic_pitch" / "saved_model")
    artifact = tfopt.freeze(source, path, inline_functions=inline)
    tensors = artifact.details["signatures"]["serving_default"]
    outputs = [name for names in tensors["outputs"].values() for name in names]
    (name,) = tensors["inputs"]["input_2"]
    sound = np.sin(np.arange(43844) / 7.0).astype(np.float32).reshape(1, -1, 1)
    return path, name, outputs, {name: sound}
