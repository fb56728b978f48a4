"""inline_functions and sink_constants: order, effects, names; branches and loops."""

import numpy as np
import pytest
import tensorflow as tf
from transforms_structure_samples import (
    X,
    all_ops,
    apply,
    bodies,
    model_of,
    old_control_flow,
    ops,
    run,
    same,
    traced,
)

from tfopt.transforms.inline_functions import inline_functions
from tfopt.transforms.sink_constants import sink_constants

v1 = tf.compat.v1
CALLS = ("PartitionedCall", "StatefulPartitionedCall")


def function(call, **options):
    return tf.function(call, autograph=False, **options)


def inlined(model, count):
    """Inlines all calls, checks outputs and number; returns the findings."""
    expected = run(model)
    findings = apply(model, inline_functions)
    assert same(expected, run(model))
    assert findings["inlined"] == count
    return findings


# inline_functions.


def test_calls_are_inlined_at_any_depth():
    inner = function(lambda x, y: (x + y, x * y))
    outer = function(lambda x: inner(*inner(x, 2.0))[0] + inner(x, x)[1])
    model = traced(lambda x: tf.identity(outer(x) - outer(x + 1.0), name="out"))
    # Each function's calls are inlined once, before it is.
    assert inlined(model, 5) == {"inlined": 5, "skipped": []}
    assert not model.functions
    assert not set(all_ops(model)) & set(CALLS)


def test_names_stay_where_they_are_free():
    call = function(lambda x: tf.nn.relu(x, name="act"))

    def outer(x):
        return tf.identity(call(call(x)), name="out")

    model = traced(outer)
    names = [node.name for node in model.main if node.op in CALLS]
    inlined(model, 2)
    assert {"act", f"{names[1]}/act"} < set(model.main.nodes)


def test_a_name_that_is_taken_gets_a_number():
    call = function(lambda x: tf.nn.relu(x, name="act"))

    def outer(x):
        y = tf.add(x, 1.0, name="PartitionedCall/act")
        return tf.identity(call(y * tf.exp(x, name="act")), name="out")

    model = traced(outer)
    inlined(model, 1)
    assert {"PartitionedCall/act", "PartitionedCall/act_1"} < set(model.main.nodes)


@pytest.mark.parametrize("count", [1, 2])
def test_a_call_that_callers_fetch_stays_under_its_name(count):
    call = function(lambda x: [x * 2.0, x + 1.0][:count])
    model = traced(lambda x: call(x))
    (name,) = (node.name for node in model.main if node.op in CALLS)
    model = model_of(
        v1.GraphDef.FromString(model.to_graph_def().SerializeToString()),
        [f"{name}:{index}" for index in range(count)],
    )
    inlined(model, 1)
    assert model.main.nodes[name].op == ["Identity", "IdentityN"][count - 1]


def test_effects_happen_whichever_result_is_taken():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        counter = tf.raw_ops.VarHandleOp(
            dtype=tf.float32, shape=[], shared_name="n", name="counter"
        )
        with tf.control_dependencies(
            [tf.raw_ops.AssignVariableOp(resource=counter, value=0.0)]
        ):
            tf.no_op("init")

        @function
        def call(x):
            tf.raw_ops.AssignAddVariableOp(resource=counter, value=1.0)
            return tf.identity(x), x + 1.0

        first, _ = call(x)
        second = call(x)[1]
        with tf.control_dependencies([first, second]):
            tf.raw_ops.ReadVariableOp(resource=counter, dtype=tf.float32, name="count")
        tf.identity(first, name="out")
    model = model_of(graph, ["out", "count"], kept=["init"])
    results = [run(model, setup=["init"], session_runs=2)]
    apply(model, inline_functions)
    results.append(run(model, setup=["init"], session_runs=2))
    assert not set(all_ops(model)) & set(CALLS)
    assert same(*results)
    assert results[1][1] == 4.0
    assert not same(results[1], run(model, setup=["init"], session_runs=1))


def test_what_waits_for_a_call_waits_for_its_effects():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        handle = tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], shared_name="n")
        write = tf.raw_ops.AssignVariableOp(resource=handle, value=tf.reduce_sum(x))

        @function
        def call():
            tf.raw_ops.AssignAddVariableOp(resource=handle, value=10.0)

        with tf.control_dependencies([write]):
            called = call.get_concrete_function()
            called()
        (node,) = (op for op in graph.get_operations() if op.type in CALLS)
        with tf.control_dependencies([node]):
            value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.float32)
        tf.identity(value, name="out")
    model = model_of(graph, ["out"])
    inlined(model, 1)
    assert run(model)[0] == X.sum() + 10.0
    (read,) = (node for node in model.main if node.op == "ReadVariableOp")
    assert node.name not in model.main.controls(read)


def test_calls_in_branches_of_tf1_run_only_there():
    call = function(lambda x: tf.constant(3.0) + tf.constant(4.0) + 0.0 * x[0, 0])
    counted = function(lambda x: (x, tf.raw_ops.Assert(condition=False, data=[x]))[0])
    with old_control_flow(), tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        y = v1.cond(
            tf.reduce_sum(x) > 1e3,
            lambda: tf.reduce_sum(counted(x)),
            lambda: call(x),
        )
        _, z = v1.while_loop(
            lambda i, z: i < 3,
            lambda i, z: (i + 1, z + call(x) * z),
            [tf.constant(0), y],
        )
        tf.identity(z, name="out")
    model = model_of(graph, ["out"])
    # The assertion of the other branch would fail if it ran.
    assert "Switch" in all_ops(model)
    inlined(model, 3)
    assert not model.functions


def test_loops_in_a_function_called_twice_stay_apart():
    from tensorflow.python.framework import function as defun

    with old_control_flow(), tf.Graph().as_default() as graph:

        @defun.Defun(tf.float32)
        def call(x):
            step = [lambda i, y: i < 2, lambda i, y: (i + 1, y * 2.0)]
            return v1.while_loop(*step, [tf.constant(0), x])[1]

        x = v1.placeholder(tf.float32, [2, 3], "x")
        tf.add(call(x), call(x + 1.0), name="out")
    model = model_of(graph, ["out"])
    inlined(model, 2)
    frames = {node.attr["frame_name"].s for node in model.main if node.op == "Enter"}
    assert len(frames) == 2


def test_calls_in_branches_and_loops_are_inlined_there():
    inner = function(lambda x: tf.nn.relu(x) + 1.0)

    def call(x):
        x = tf.cond(x[0, 0] > 0.0, lambda: inner(x), lambda: inner(x) * 2.0)
        return tf.while_loop(lambda y: y[0, 0] < 9.0, lambda y: [inner(y)], [x])[0]

    model = traced(call)
    inlined(model, 3)
    assert not set(all_ops(model)) & set(CALLS)
    assert {"StatelessIf", "StatelessWhile"} <= set(ops(model))


def test_polymorphic_functions_get_their_types():
    from tensorflow.python.framework import function as defun

    @defun.Defun(tf.float32)
    def double(x):
        return x + x

    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        tf.identity(double(x), name="out")
    graph_def = graph.as_graph_def()
    (definition,) = graph_def.library.function
    definition.signature.attr.add(name="Kind", type="type")
    argument = definition.signature.input_arg[0]
    argument.ClearField("type")
    argument.type_attr = "Kind"
    result = definition.signature.output_arg[0]
    result.ClearField("type")
    result.type_attr = "Kind"
    for node in definition.node_def:
        if "T" in node.attr:
            node.attr["T"].placeholder = "Kind"
    for node in graph_def.node:
        if node.op == definition.signature.name:
            node.attr["Kind"].type = tf.float32.as_datatype_enum
    # TensorFlow's Python cannot load such a function, to compare outputs.
    model = model_of(graph_def, ["out"])
    assert apply(model, inline_functions)["inlined"] == 1
    (add,) = (node for node in model.main if node.op.startswith("Add"))
    assert add.attr["T"].WhichOneof("value") == "type"


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [("_noinline", "asks"), ("_XlaMustCompile", "XLA"), ("_implements", "converter")],
)
def test_functions_that_ask_for_it_stay(attribute, reason):
    call = function(lambda x: tf.nn.relu(x))
    model = traced(lambda x: tf.identity(call(x), name="out"))
    (body,) = model.functions.values()
    if attribute == "_implements":
        body.function.attr[attribute].s = b"my.op"
    else:
        body.function.attr[attribute].b = True
    findings = apply(model, inline_functions)
    assert findings["inlined"] == 0
    assert reason in findings["skipped"][0]["reason"]


def test_functions_that_call_themselves_stay():
    call = function(lambda x: tf.nn.relu(x))
    model = traced(lambda x: tf.identity(call(x), name="out"))
    ((name, body),) = model.functions.items()
    (relu,) = (node for node in body if node.op == "Relu")
    relu.op = name
    findings = apply(model, inline_functions)
    assert findings["inlined"] == 0
    assert "itself" in findings["skipped"][0]["reason"]


def test_functions_with_nameless_resources_stay():
    call = function(lambda x: x + 1.0)
    model = traced(lambda x: tf.identity(call(x), name="out"))
    (body,) = model.functions.values()
    node = body.add("VarHandleOp", "state")
    node.attr["shared_name"].s = b""
    findings = apply(model, inline_functions)
    assert "resource without a name" in findings["skipped"][0]["reason"]


# sink_constants.


def sunk(model, count):
    """Sinks constants, checks outputs and number; returns the findings."""
    expected = run(model)
    findings = apply(model, sink_constants)
    assert same(expected, run(model))
    assert findings["sunk"] == count
    return findings


def weights(seed, *shape):
    """A constant of the graph that is being built."""
    values = np.random.default_rng(seed).standard_normal(shape)
    return tf.constant(values.astype(np.float32))


def rounds(step, *start):
    """A loop of three rounds, which counts."""
    return tf.while_loop(
        lambda i, *_: i < 3,
        lambda i, *state: (i + 1, *step(*state)),
        [tf.constant(0), *start],
    )


def body_of(model, op, attribute):
    """Returns the function that a node of an operation calls."""
    (node,) = (n for body in model.bodies for n in body if n.op == op)
    return bodies(model)[node.attr[attribute].func.name]


def test_both_branches_get_small_constants():
    def call(x):
        small = weights(0, 3)
        return tf.cond(x[0, 0] > 0.0, lambda: x + small, lambda: x * small)

    model = traced(call)
    (branch,) = (node for node in model.main if node.op == "StatelessIf")
    before = len(branch.input)
    # An argument of each of two functions.
    sunk(model, 2)
    assert len(branch.input) == before - 1 == 1 + len(branch.attr["Tin"].list.type)
    for side in ("then_branch", "else_branch"):
        assert "Const" in ops(model, body_of(model, "StatelessIf", side).name)


def test_large_constants_are_not_stored_twice():
    def call(x):
        large, own = weights(0, 3, 200), weights(1, 3, 200)
        return tf.cond(
            x[0, 0] > 0.0,
            lambda: tf.matmul(x, large),
            lambda: tf.matmul(x, large) + tf.matmul(x, own),
        )

    model = traced(call)
    findings = sunk(model, 2)
    (skipped,) = findings["skipped"]
    assert "more than once" in skipped["reason"]
    assert model.main.nodes[skipped["node"]].op == "Const"
    assert len(body_of(model, "StatelessIf", "then_branch").arguments) == 2
    assert "Const" in ops(model, body_of(model, "StatelessIf", "else_branch").name)


def test_large_constants_that_the_caller_needs_as_well_stay():
    def call(x):
        large = weights(0, 3, 200)
        y = tf.cond(x[0, 0] > 0.0, lambda: tf.matmul(x, large), lambda: x[:, :1])
        return y + tf.matmul(x, large)

    assert sunk(traced(call), 0)["skipped"]


def test_a_loop_gets_what_no_round_changes():
    def call(x):
        kernel, given = weights(0, 3, 3), weights(1, 3, 3)

        def step(y, w):
            return tf.tanh(tf.matmul(y, w) + tf.matmul(y, kernel)), w

        i, y, w = rounds(step, x, given)
        return tf.matmul(y, w) + tf.cast(i, tf.float32)

    model = traced(call)
    expected = run(model)
    assert apply(model, sink_constants)["sunk"]
    assert same(expected, run(model))
    (loop,) = (node for node in model.main if node.op == "StatelessWhile")
    # What is left: TensorFlow's counter, ours, and y.
    assert len(loop.input) == len(loop.attr["T"].list.type) == 3
    for side in ("cond", "body"):
        body = body_of(model, "StatelessWhile", side)
        assert len(body.arguments) == 3
    assert len(body.returns) == 3
    products = [node for node in body if node.op == "MatMul"]
    assert len(products) == 2
    for node in products:
        assert body.producer(body.input(node, 1)).op == "Const"


def test_what_a_round_changes_stays():
    model = traced(lambda x: rounds(lambda y, w: (y + w, w * 2.0), x, weights(0, 3))[1])
    expected = run(model)
    apply(model, sink_constants)
    assert same(expected, run(model))
    (loop,) = (node for node in model.main if node.op == "StatelessWhile")
    assert len(loop.input) == 4


def test_a_loop_whose_results_are_fetched_by_number_stays():
    model = traced(lambda x: rounds(lambda y, w: (y + w, w), x, weights(0, 3)))
    (loop,) = (node.name for node in model.main if node.op == "StatelessWhile")
    data = model.to_graph_def().SerializeToString()
    model = model_of(v1.GraphDef.FromString(data), [f"{loop}:3"])
    sunk(model, 0)


def test_calls_with_different_constants_keep_the_argument():
    call = function(lambda x, w: tf.matmul(x, w))
    model = traced(lambda x: call(x, weights(0, 3, 3)) + call(x, weights(1, 3, 3)))
    sunk(model, 0)


def test_calls_with_equal_constants_share_one():
    call = function(lambda x, w: tf.matmul(x, w))
    model = traced(lambda x: call(x, weights(0, 3, 300)) + call(x, weights(0, 3, 300)))
    sunk(model, 1)
    assert len(model.main) < 8
    assert ops(model, next(iter(model.functions))).count("Const") == 1


def test_constants_sink_through_several_functions():
    inner = function(lambda x, w: tf.matmul(x, w))
    outer = function(lambda x, w: tf.nn.relu(inner(x, w)))
    model = traced(lambda x: tf.identity(outer(x, weights(0, 3, 300)), name="out"))
    sunk(model, 2)
    assert "Const" not in ops(model)


def test_functions_of_datasets_keep_their_arguments():
    def call(x):
        kernel = weights(0, 3)
        rows = tf.data.Dataset.from_tensor_slices(X).map(lambda row: row * kernel)
        return x + rows.reduce(tf.zeros([3]), lambda total, row: total + row)

    model = traced(call)
    sunk(model, 0)
