"""Graphs with linear operations, and a way to run them, for tests of transforms."""

import numpy as np
import pytest
import tensorflow as tf

from tfopt.savedmodel import protos
from tfopt.transforms._graph import GraphModel

v1 = tf.compat.v1
raw = tf.raw_ops


def model_of(build, *shapes, dtype=tf.float32, outputs=("y",)):
    """Returns the graph that `build(x, ...)` makes, its output named "y"."""
    with tf.Graph().as_default() as graph:
        inputs = [
            v1.placeholder(dtype, shape, f"x{i}") for i, shape in enumerate(shapes)
        ]
        build(*inputs)
    return take(graph.as_graph_def(), [f"x{i}" for i in range(len(shapes))], outputs)


def take(graph_def, inputs, outputs):
    """Returns a GraphModel of TensorFlow's GraphDef."""
    data = graph_def.SerializeToString()
    message = protos.message_class("GraphDef").FromString(data)
    return GraphModel.from_graph_def(message, inputs=inputs, outputs=outputs)


def run(model, *values):
    """Runs a graph, all optimizers off, on values or arrays made up for its inputs."""
    config = v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    config.graph_options.optimizer_options.opt_level = -1
    graph_def = v1.GraphDef.FromString(model.to_graph_def().SerializeToString())
    for function in graph_def.library.function:
        for node in function.node_def:
            if "config_proto" in node.attr:
                node.attr["config_proto"].s = config.SerializeToString()
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        feeds = dict(zip(model.inputs, values or made_up(graph, model), strict=True))
        with v1.Session(graph=graph, config=config) as session:
            try:
                return session.run(list(model.outputs), feeds)
            except tf.errors.OpError as error:
                if "NHWC" in error.message or "NDHWC" in error.message:
                    pytest.skip("TensorFlow's CPU kernels without oneDNN: NHWC only")
                raise


def made_up(graph, model):
    """Returns random arrays, the same for the same graph."""
    random = np.random.default_rng(7)
    tensors = [graph.get_tensor_by_name(name) for name in model.inputs]
    return [
        random.standard_normal([2 if n is None else n for n in t.shape]).astype(
            t.dtype.as_numpy_dtype
        )
        for t in tensors
    ]


def difference(before, after):
    """Returns the largest difference of any output, as a part of its magnitude."""
    for a, b in zip(before, after, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
    return max(
        float(np.max(np.abs(a - b), initial=0) / (np.max(np.abs(a), initial=0) or 1))
        for a, b in zip(before, after, strict=True)
    )


def change(model, transform, **options):
    """Applies a transform and checks its promise; returns its findings.

    Checks also that applying it again changes nothing.
    """
    before = run(model)
    findings = transform(model, **options)
    model.remove_dead()
    tolerance = transform.promise.tolerance
    assert difference(before, run(model)) <= min(tolerance, 2e-5)
    written = model.to_graph_def().SerializeToString(deterministic=True)
    transform(model, **options)
    model.remove_dead()
    assert model.to_graph_def().SerializeToString(deterministic=True) == written
    return findings


def ops(model, *names):
    """Returns the operations of a graph's nodes, sorted; only those named if any."""
    found = sorted(node.op for body in model.bodies for node in body)
    return [op for op in found if op in names or not names]


def floats(seed, *shape, low=-1.0, high=1.0):
    """Returns random float32."""
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)
