"""Models and ways to run them, for the tests of freezing."""

import os
import pathlib

import numpy as np
import tensorflow as tf

from tfopt.savedmodel import protos

v1 = tf.compat.v1

X = np.arange(8, dtype=np.float32).reshape(2, 4)
X_SPEC = tf.TensorSpec([None, 4], tf.float32, "x")


def weights(seed, *shape, name=None):
    values = np.random.default_rng(seed).standard_normal(shape)
    return tf.Variable(values.astype(np.float32), name=name)


def serve(function):
    return tf.function(function, input_signature=[X_SPEC])


def save_model(folder):
    """Saves a model with a small, a larger and a written variable; returns its path."""
    module = tf.Module()
    module.small = weights(0, 4, 3, name="part/small")
    module.large = weights(1, 3, 50, name="part/large")
    module.count = tf.Variable(5.0, name="count")

    def counted(x):
        return {"y": x @ module.small, "n": module.count.assign_add(1.0)}

    def placed(x):
        with tf.device("/job:worker/replica:0/task:3/device:CPU:0"):
            return {"y": x @ module.small @ module.large}

    path = os.path.join(folder, "model")
    signatures = {"serving_default": serve(placed), "counted": serve(counted)}
    tf.saved_model.save(module, path, signatures=signatures)
    return path


def save_checkpoint(folder):
    """Saves a TF1 graph with its checkpoint; returns its outputs for `X`."""
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        x = v1.placeholder(tf.float32, [None, 4], "x")
        w = v1.get_variable("w", [4, 3], use_resource=False)
        y = tf.identity(tf.matmul(x, w), name="y")
        classes = tf.argmax(y, 1, name="classes")
        tf.shape(y, name="size")
        v1.train.AdamOptimizer().minimize(tf.reduce_sum(y))
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(folder / "model"))
        tf.io.write_graph(graph.as_graph_def(), str(folder), "graph.pb", as_text=False)
        tf.io.write_graph(graph.as_graph_def(), str(folder), "graph.pbtxt")
        return session.run({"y": y, "classes": classes}, {x: X})


def run_graph(path, details, key="serving_default", times=1):
    graph_def = v1.GraphDef.FromString(pathlib.Path(path).read_bytes())
    tensors = details["signatures"][key]
    with tf.Graph().as_default(), v1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        if details["init_op"]:
            session.run(details["init_op"], details["asset_feeds"])
        fetch = {name: names[0] for name, names in tensors["outputs"].items()}
        feed = {tensors["inputs"]["x"][0]: X}
        return [session.run(fetch, feed) for _ in range(times)][-1]


def run_loaded(path, key="serving_default", times=1):
    function = tf.saved_model.load(str(path)).signatures[key]
    return [function(x=tf.constant(X)) for _ in range(times)][-1]


def near(found, value):
    return np.allclose(found, value, rtol=1e-5, atol=1e-5)


def parse(path):
    return protos.message_class("GraphDef").FromString(path.read_bytes())
