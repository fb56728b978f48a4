"""`merge_duplicate_nodes`."""

import numpy as np
import tensorflow as tf
import transforms_structure_samples as samples
from transforms_structure_samples import X, apply, model_of, run, same, v1

from tfopt.transforms.merge_duplicate_nodes import merge_duplicate_nodes


def test_equal_expressions_become_one():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        parts = []
        for _ in range(4):
            w = tf.constant(np.eye(3), tf.float32) * tf.constant(2.0)
            parts.append(tf.nn.relu(tf.matmul(x, w)))
        tf.add_n(parts, name="out")
    model = model_of(graph, ["out"])
    before = run(model)
    findings = apply(model, merge_duplicate_nodes)
    # Two constants, a product, a matrix product and a Relu, three times too often.
    assert findings["merged"] == 15
    assert findings["constants"] == 6
    assert findings["bytes"] > 3 * (36 + 4)
    assert samples.ops(model).count("Relu") == 1
    assert same(before, run(model))


def test_constants_by_their_bits():
    values = [
        *(np.float32(0.0), np.float32(-0.0), np.float32(np.nan), np.float32(np.nan)),
        *(np.zeros(1, np.float32), np.int32(0), np.zeros(64, np.float32)),
        *(b"a", b"a", b"b"),
    ]
    with tf.Graph().as_default() as graph:
        for index, value in enumerate(values):
            tf.identity(tf.constant(value), name=f"out{index}")
    names = [f"out{index}" for index in range(len(values))]
    model = model_of(graph, names, inputs=[])
    short = next(n for n in model.main if n.op == "Const" and _size(n) == 64)
    # The same value, listed as one element that is repeated.
    clone = type(short)()
    clone.CopyFrom(short)
    clone.name = "short"
    tensor = clone.attr["value"].tensor
    tensor.ClearField("tensor_content")
    tensor.ClearField("float_val")
    tensor.float_val.append(0.0)
    model.main.insert(clone)
    model.main.nodes["out0"].input[0] = "short"
    model.main.nodes["out0"].attr["T"].type = 1
    model.main.changed()
    before = run(model, {})
    findings = apply(model, merge_duplicate_nodes)
    assert findings["constants"] == findings["merged"] == 3
    after = run(model, {})
    assert [np.asarray(a).tobytes() for a in after[:7]] == [
        np.asarray(b).tobytes() for b in before[:7]
    ]
    assert after[7:] == before[7:] == [b"a", b"a", b"b"]


def _size(node):
    return int(np.prod([d.size for d in node.attr["value"].tensor.tensor_shape.dim]))


def test_what_differs_from_run_to_run_stays():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        other = v1.placeholder(tf.float32, [None, 3], "other")
        noise = tf.random.normal([3], seed=1) - tf.random.normal([3], seed=1)
        tf.add(x - other, noise, name="out")
    model = model_of(graph, ["out"], inputs=["x", "other"])
    apply(model, merge_duplicate_nodes)
    ops = samples.ops(model)
    assert ops.count("RandomStandardNormal") == 2
    assert ops.count("Placeholder") == 2


def test_attributes_devices_and_inputs_tell_nodes_apart():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        a = tf.reduce_sum(x, 1, keepdims=True) + tf.reduce_sum(x, 0, keepdims=True)
        b = tf.reduce_sum(x, 1) + tf.reduce_sum(x, 0)[:2]
        with tf.device("/cpu:0"):
            c = tf.reduce_sum(x, 1)
        tf.add(a, (b + c)[:, None], name="out")
    model = model_of(graph, ["out"])
    before = run(model)
    apply(model, merge_duplicate_nodes)
    assert samples.ops(model).count("Sum") == 5
    assert same(before, run(model))


def test_inputs_and_outputs_keep_their_names():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        fed = tf.constant(1.0, name="fed")
        y = x * fed * tf.constant(1.0)
        tf.exp(tf.exp(y), name="a")
        tf.exp(tf.exp(y), name="b")
    model = model_of(graph, ["a", "b"], inputs=["x", "fed"])
    feeds = {"x:0": X, "fed:0": np.float32(0.25)}
    before = run(model, feeds)
    assert apply(model, merge_duplicate_nodes)["merged"] == 1
    assert {"a", "b", "fed"} <= set(model.main.nodes)
    assert same(before, run(model, feeds))


def test_waiting_for_the_same_is_needed():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        count = v1.Variable(0.0, use_resource=True, trainable=False)
        before = count.read_value()
        with tf.control_dependencies([before]):
            added = count.assign_add(1.0, read_value=False)
        with tf.control_dependencies([added]):
            after = count.read_value() + tf.constant(1.0)
            again = count.read_value() + tf.constant(1.0)
        tf.add(x, before + 10 * after + again, name="out")
        init = v1.global_variables_initializer().name
    model = model_of(graph, ["out"], kept=[init])
    expected = run(model, session_runs=3, setup=[init])
    # The two constants that wait for the addition; reading is never merged.
    assert apply(model, merge_duplicate_nodes)["merged"] >= 1
    assert same(expected, run(model, session_runs=3, setup=[init]))
    np.testing.assert_array_equal(expected[0], X + 2 + 10 * 4 + 4)


def test_calls_of_functions_that_only_compute():
    @tf.function
    def pure(y):
        return tf.exp(y) + 1.0

    @tf.function
    def noisy(y):
        return y + tf.random.normal([], seed=1)

    def function(x):
        return pure(x) - pure(x) + noisy(x) - noisy(x)

    model = samples.traced(function)
    calls = [node.op for node in model.main if "PartitionedCall" in node.op]
    assert len(calls) == 4
    apply(model, merge_duplicate_nodes)
    calls = [node.op for node in model.main if "PartitionedCall" in node.op]
    assert sorted(calls) == ["PartitionedCall", *["StatefulPartitionedCall"] * 2]


def test_function_bodies():
    def function(x):
        def step(i, y):
            return i + 1, tf.exp(y) - tf.exp(y) + y * 0.5

        _, y = tf.while_loop(lambda i, y: i < 3, step, (0, x))
        return tf.cond(tf.reduce_sum(x) > 0, lambda: tf.abs(y) + tf.abs(y), lambda: y)

    model = samples.traced(function)
    before = [run(model), run(model, {"x:0": X + 9})]
    assert apply(model, merge_duplicate_nodes)["merged"] >= 2
    assert samples.all_ops(model).count("Exp") == 1
    assert samples.all_ops(model).count("Abs") == 1
    assert same(before[0], run(model))
    assert same(before[1], run(model, {"x:0": X + 9}))


def test_frames_of_tf1_stay_apart():
    model = samples.looping()
    before = [run(model), run(model, {"x:0": X + 9})]
    # In the loop: 2 + 1 is computed twice.
    assert apply(model, merge_duplicate_nodes)["merged"] >= 2
    assert same(before[0], run(model))
    assert same(before[1], run(model, {"x:0": X + 9}))


def test_many_nodes():
    # A chain of pairs: each pair is one only once that before it is.
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        a = b = x
        for _ in range(1500):
            a, b = tf.add(a, b), tf.add(a, b)
        tf.subtract(a, b, name="out")
    model = model_of(graph, ["out"])
    assert merge_duplicate_nodes(model)["merged"] == 1500
    assert len(model.main) == 1502
