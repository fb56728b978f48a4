"""TF1 graphs: reference, resource and partitioned variables, TF1's control flow."""

import functools
import os

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1

MODELS = {}
RANDOM = np.random.default_rng(1)
X = RANDOM.standard_normal((3, 4)).astype(np.float32)
IDS = np.array([3, 0, 2], np.int32)


def initial(*shape):
    return v1.constant_initializer(RANDOM.standard_normal(shape))


def model(kept=(), resources=True, control_flow_v2=False):
    """Registers a function that builds a graph and returns its inputs and outputs."""

    def register(build):
        @functools.wraps(build)
        def save(path):
            switch = (
                v1.enable_control_flow_v2
                if control_flow_v2
                else (v1.disable_control_flow_v2)
            )
            switch()
            with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
                with v1.variable_scope("", use_resource=resources):
                    inputs, outputs, options = build()
                session.run(v1.global_variables_initializer())
                session.run(v1.tables_initializer())
                signature = v1.saved_model.predict_signature_def(
                    {name: tensor for name, (tensor, _) in inputs.items()}, outputs
                )
                builder = v1.saved_model.Builder(path)
                builder.add_meta_graph_and_variables(
                    session, ["serve"], {"serving_default": signature}, **options
                )
                builder.save()
            arrays = {name: array for name, (_, array) in inputs.items()}
            return {"kept": list(kept), "inputs": {"serving_default": arrays}}

        MODELS[build.__name__] = save
        return build

    return register


def x_input():
    return v1.placeholder(tf.float32, [None, 4], "x")


def ids_input():
    return v1.placeholder(tf.int32, [None], "ids")


def dense():
    x = x_input()
    w = v1.get_variable("w", [4, 3], initializer=initial(4, 3))
    b = v1.get_variable("b", [3], initializer=initial(3))
    return {"x": (x, X)}, {"y": tf.nn.relu(tf.matmul(x, w) + b)}, {}


@model(resources=False)
def reference_variables():
    return dense()


@model()
def resource_variables():
    return dense()


@model()
def with_training_ops():
    inputs, outputs, options = dense()
    v1.train.AdamOptimizer(0.1).minimize(tf.reduce_sum(outputs["y"]))
    return inputs, outputs, options


def partitioned(axis):
    x = x_input()
    w = v1.get_variable(
        "w",
        [4, 6],
        initializer=v1.random_normal_initializer(seed=3),
        partitioner=v1.fixed_size_partitioner(3 if axis else 2, axis=axis),
    )
    return {"x": (x, X)}, {"y": tf.matmul(x, tf.convert_to_tensor(w))}, {}


@model(resources=False)
def partitioned_rows_reference():
    return partitioned(0)


@model()
def partitioned_rows():
    return partitioned(0)


@model()
def partitioned_columns():
    return partitioned(1)


@model()
def partitioned_embedding():
    ids = ids_input()
    table = v1.get_variable(
        "table",
        [5, 4],
        initializer=v1.random_normal_initializer(seed=3),
        partitioner=v1.fixed_size_partitioner(3),
    )
    y = v1.nn.embedding_lookup(table, ids, partition_strategy="div")
    return {"ids": (ids, IDS)}, {"y": y}, {}


def loop():
    ids = ids_input()
    table = v1.get_variable("table", [5, 4], initializer=initial(5, 4))
    total = v1.while_loop(
        lambda step, _: step < 3,
        lambda step, total: (step + 1, total + tf.gather(table, ids[step])),
        (0, tf.zeros([4])),
    )[1]
    return {"ids": (ids, IDS)}, {"y": total}, {}


@model()
def loop_with_embedding():
    return loop()


@model(resources=False)
def loop_with_reference_embedding():
    return loop()


@model(control_flow_v2=True)
def functional_loop_with_embedding():
    return loop()


def branches():
    x = x_input()
    flag = v1.placeholder_with_default(True, [], "flag")
    first = v1.get_variable("first", [4, 3], initializer=initial(4, 3))
    second = v1.get_variable("second", [4, 3], initializer=initial(4, 3))
    y = v1.cond(flag, lambda: tf.matmul(x, first), lambda: tf.matmul(x, second))
    return {"x": (x, X)}, {"y": y}, {}


@model()
def cond():
    return branches()


@model(resources=False)
def cond_with_references():
    return branches()


@model(kept=["AssignSubVariableOp"])
def batch_norm_with_training_switch():
    x = x_input()
    training = v1.placeholder_with_default(False, [], "training")
    mean = v1.get_variable("mean", [4], initializer=initial(4), trainable=False)
    w = v1.get_variable("w", [4, 4], initializer=initial(4, 4))

    def update():
        with tf.control_dependencies([v1.assign_sub(mean, tf.reduce_mean(x, 0))]):
            return tf.identity(x)

    y = tf.matmul(v1.cond(training, update, lambda: x - mean), w)
    return {"x": (x, X)}, {"y": y}, {}


@model(kept=["AssignAdd"], resources=False)
def reference_counter():
    x = x_input()
    count = v1.get_variable("count", [], initializer=v1.constant_initializer(5.0))
    w = v1.get_variable("w", [4, 3], initializer=initial(4, 3))
    return {"x": (x, X)}, {"y": tf.matmul(x, w), "n": v1.assign_add(count, 1.0)}, {}


@model(kept=["AssignVariableOp"])
def local_variable_set_by_main_op():
    x = x_input()
    local = v1.get_local_variable("local", [4], initializer=initial(4))
    w = v1.get_variable("w", [4, 3], initializer=initial(4, 3))
    y = tf.matmul(x + local, w)
    return {"x": (x, X)}, {"y": y}, {"main_op": v1.local_variables_initializer()}


@model()
def main_op_touches_only_optimizer_state():
    inputs, outputs, options = dense()
    optimizer = v1.train.AdamOptimizer(0.1)
    optimizer.minimize(tf.reduce_sum(outputs["y"]))
    options["main_op"] = v1.variables_initializer(optimizer.variables())
    return inputs, outputs, options


@model()
def vocabulary_table():
    path = os.path.abspath("words.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.write("one\ntwo\nthree\n")
    words = v1.placeholder(tf.string, [None], "words")
    # An asset is a tensor in this collection; the table is initialised from it.
    asset = tf.constant(path, tf.string)
    v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, asset)
    table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            asset,
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        -1,
    )
    embedding = v1.get_variable("embedding", [4, 2], initializer=initial(4, 2))
    y = tf.gather(embedding, table.lookup(words) + 1)
    given = np.array([b"two", b"none", b"one"], object)
    options = {
        "main_op": v1.tables_initializer(),
        "assets_collection": v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
    }
    return {"words": (words, given)}, {"y": y}, options


@model(resources=False)
def dynamic_rnn():
    x = v1.placeholder(tf.float32, [None, 5, 4], "x")
    kernel = v1.get_variable("kernel", [7, 3], initializer=initial(7, 3))

    def step(state, row):
        return tf.tanh(tf.matmul(tf.concat([row, state], 1), kernel))

    rows = tf.transpose(x, [1, 0, 2])
    y = tf.scan(step, rows, initializer=tf.zeros([tf.shape(x)[0], 3]))
    array = RANDOM.standard_normal((2, 5, 4)).astype(np.float32)
    return {"x": (x, array)}, {"y": y[-1]}, {}


@model()
def function_by_name():
    from tensorflow.python.framework import function

    @function.Defun(tf.float32, tf.float32)
    def scaled(x, w):
        return tf.matmul(x, w) * 2.0

    x = x_input()
    w = v1.get_variable("w", [4, 3], initializer=initial(4, 3))
    return {"x": (x, X)}, {"y": scaled(x, w.read_value())}, {}


def several_tags(path):
    builder = v1.saved_model.Builder(path)
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        inputs, outputs, _ = dense()
        v1.train.AdamOptimizer(0.1).minimize(tf.reduce_sum(outputs["y"]))
        session.run(v1.global_variables_initializer())
        tensors = {name: tensor for name, (tensor, _) in inputs.items()}
        signature = v1.saved_model.predict_signature_def(tensors, outputs)
        builder.add_meta_graph_and_variables(session, ["train"], {"train": signature})
    with tf.Graph().as_default(), v1.Session():
        inputs, outputs, _ = dense()
        tensors = {name: tensor for name, (tensor, _) in inputs.items()}
        signature = v1.saved_model.predict_signature_def(tensors, outputs)
        builder.add_meta_graph(["serve", "gpu"], {"serving_default": signature})
    builder.save()
    return {"tags": ["gpu", "serve"], "inputs": {"serving_default": {"x": X}}}


def checkpoint(path):
    """A MetaGraph with a checkpoint, outside of any SavedModel."""
    os.mkdir(path)
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        inputs, outputs, _ = dense()
        y = tf.identity(outputs["y"], name="result")
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, os.path.join(path, "model.ckpt"))
        tf.io.write_graph(graph.as_graph_def(), path, "graph.pbtxt")
        value = session.run(y, {inputs["x"][0]: X})
    return {
        "source": "model/model.ckpt.meta",
        "checkpoint": "model/model.ckpt",
        "output_node_names": ["result"],
        "inputs": {"serving_default": {"x": X}},
        "outputs": {"serving_default": {"result": [value] * 3}},
    }


MODELS["several_tags"] = several_tags
MODELS["checkpoint"] = checkpoint
