"""cast_float16, cast_bfloat16 and the cut that says where to cast."""

import itertools

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from transforms_linear_samples import floats, made_up, model_of, ops, raw, run, v1

from tfopt.transforms import _checking, _ops
from tfopt.transforms._min_cut import Network
from tfopt.transforms.cast_bfloat16 import cast_bfloat16
from tfopt.transforms.cast_float16 import cast_float16

HALVES = {
    cast_float16: (np.float16, 5e-3),
    cast_bfloat16: (ml_dtypes.bfloat16, 5e-2),
}


def named(y):
    return tf.identity(y, name="y")


def cast(model, transform, *, error=None, **options):
    """Casts, checks promise, error and idempotence; returns the findings."""
    before = run(model)
    snapshot = _checking.snapshot(model)
    findings = transform(model, **options)
    assert not _checking.promise_faults(snapshot, model, transform.promise)
    _checking.clean(model)
    after = run(model)
    limit = HALVES[transform][1] if error is None else error
    for a, b in zip(before, after, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype == np.float32:
            assert np.max(np.abs(a - b)) <= limit * np.max(np.abs(a))
    assert not cast_pairs(model)
    written = model.to_graph_def().SerializeToString(deterministic=True)
    again = transform(model, **options)
    assert (again["cast"], again["casts_added"]) == (0, 0)
    _checking.clean(model)
    assert model.to_graph_def().SerializeToString(deterministic=True) == written
    return findings


def cast_pairs(model):
    """Returns Casts between float32 and half precision that go back and forth."""
    return [
        node.name
        for body in model.bodies
        for node in body
        if node.op == "Cast"
        and (source := body.producer(body.input(node, 0))) is not None
        and source.op == "Cast"
        and _ops.get(source, "SrcT") == _ops.get(node, "DstT")
        and _ops.get(source, "DstT") in (1, 14, 19)
    ]


def kinds(model, op):
    """Returns the types `T` of the nodes of an operation."""
    numbers = [_ops.get(n, "T") for body in model.bodies for n in body if n.op == op]
    return [tf.as_dtype(number).name for number in numbers]


def conv(x, seed=0, outputs=4):
    size = x.shape[-1]
    y = tf.nn.conv2d(x, floats(seed, 3, 3, size, outputs), 1, "SAME")
    return tf.nn.relu(tf.nn.bias_add(y, floats(seed + 1, outputs)))


@pytest.mark.parametrize("transform", HALVES)
def test_a_network(transform):
    def build(x):
        y = conv(conv(x), 2)
        y = tf.reduce_mean(tf.nn.max_pool2d(y, 2, 2, "SAME"), [1, 2])
        named(tf.nn.softmax(tf.linalg.matmul(y, floats(4, 4, 3)) * 0.1))

    model = model_of(build, (2, 8, 8, 3))
    before = run(model)
    findings = cast(model, transform)
    name = np.dtype(HALVES[transform][0]).name
    for op in ("Conv2D", "BiasAdd", "Relu", "MaxPool", "MatMul", "Mul"):
        assert set(kinds(model, op)) == {name}
    assert kinds(model, "Softmax") == kinds(model, "Mean") == ["float32"]
    # To and from half precision before and behind Mean, at both ends.
    assert findings["casts_added"] == 4
    assert ops(model, "Cast") == ["Cast"] * 4
    assert findings["left"] == {"Mean": 1, "Softmax": 1, "Identity": 1}
    weights = sum(np.prod(shape) * 4 for shape in [(3, 3, 3, 4), (3, 3, 4, 4)])
    saved = findings["bytes_before"] - findings["bytes_after"]
    assert saved > weights / 2
    assert not findings["skipped"]
    assert np.any(before[0] != run(model)[0])  # it does something


@pytest.mark.parametrize("transform", HALVES)
def test_the_numbers(transform):
    half = HALVES[transform][0]
    weights = floats(1, 16, 8)

    def build(x):
        raw.MatMul(a=x, b=weights, name="y")

    model = model_of(build, (5, 16))
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(
            v1.GraphDef.FromString(model.to_graph_def().SerializeToString()), name=""
        )
    (x,) = made_up(graph, model)
    cast(model, transform)
    exact = x.astype(half).astype("f8") @ weights.astype(half).astype("f8")
    (found,) = run(model)
    assert np.max(np.abs(found - exact)) <= 2 * np.finfo(np.float16).eps * np.max(
        np.abs(exact)
    ) * (1 if half == np.float16 else 8)
    # Each of the roundings is there.
    assert np.array_equal(found, found.astype(half).astype("f"))
    assert np.max(np.abs(found - x @ weights)) > 1e-5
    assert model.main.nodes["y"].op == "Cast"


def test_inputs_and_outputs_stay_float32():
    model = model_of(lambda x: raw.MatMul(a=x, b=floats(0, 4, 4), name="y"), (2, 4))
    findings = cast(model, cast_float16)
    assert findings["casts_added"] == 2
    assert _ops.get(model.main.nodes["y"], "DstT") == 1
    assert model.main.nodes["x0"].op == "Placeholder"


def test_nothing_to_gain():
    model = model_of(lambda x: named(tf.nn.relu(x + 1.0)), (2, 4))
    assert cast(model, cast_float16)["cast"] == 0
    assert cast(model, cast_float16, allow_op=["Relu"])["cast"] == 2  # with the sum


def test_casts_are_few():
    def build(x):
        y = tf.linalg.matmul(x, floats(0, 4, 4))
        y = tf.nn.relu(y + y)  # no cast between
        z = tf.linalg.matmul(y, floats(1, 4, 4))
        named(tf.exp(z * 0.1) + tf.exp(z * 0.2) + tf.exp(y))

    model = model_of(build, (2, 4))
    # The input; z, from where both products are float32; y.
    assert cast(model, cast_float16)["casts_added"] == 3
    assert set(kinds(model, "Exp")) == {"float32"}


def test_lists_of_operations():
    def build(x):
        named(tf.nn.softmax(tf.nn.relu(tf.linalg.matmul(x, floats(0, 4, 4)))))

    model = model_of(build, (2, 4))
    cast(model, cast_float16, allow_op=["Softmax"])
    assert kinds(model, "Softmax") == ["float16"]
    model = model_of(build, (2, 4))
    cast(model, cast_float16, deny_op=["Relu"])
    assert kinds(model, "Relu") == ["float32"]
    assert kinds(model, "MatMul") == ["float16"]


def test_globs_of_nodes():
    def build(x):
        y = raw.MatMul(a=x, b=floats(0, 4, 4), name="one/product")
        named(raw.MatMul(a=tf.exp(y), b=floats(1, 4, 4), name="two/product"))

    for options in ({"exclude": ["two/*"]}, {"include": ["one/*"]}):
        model = model_of(build, (2, 4))
        assert cast(model, cast_float16, **options)["cast"] == 1
        assert _ops.get(model.main.nodes["one/product"], "T") == 19
        assert _ops.get(model.main.nodes["two/product"], "T") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow_op": ["Sofmax"]}, "allow_op='Sofmax'"),
        ({"deny_op": ["nothing"]}, "deny_op='nothing'"),
        ({"allow_op": ["Exp"], "deny_op": ["Exp"]}, "'Exp'.* in both"),
        ({"exclude": ["none*"]}, r"exclude='none\*'"),
        ({"include": [""]}, "include="),
    ],
)
def test_wrong_options(options, message):
    model = model_of(named, (2, 4))
    with pytest.raises(ValueError, match=message):
        cast_float16(model, **options)


def test_operations_without_a_kernel_stay():
    def build(x):
        named(tf.math.erfinv(tf.nn.tanh(tf.linalg.matmul(x, floats(0, 4, 4)))))

    model = model_of(build, (4, 4))
    (skip,) = cast(model, cast_float16, error=0.05, allow_op=["Erfinv"])["skipped"]
    assert "no half kernel" in skip["reason"]


@pytest.mark.parametrize(
    ("number", "reason"), [(1e6, "too large"), (-3e38, "too large"), (1e-12, "zero")]
)
def test_constants_out_of_range_stay(number, reason):
    def build(x):
        y = tf.nn.sigmoid(tf.linalg.matmul(x, floats(0, 4, 4)))
        z = tf.maximum(y, number) if number < 0 else y * number
        named(tf.linalg.matmul(z / abs(number), floats(1, 4, 4)))

    model = model_of(build, (2, 4))
    findings = cast(model, cast_float16, error=1.0)
    assert len(findings["skipped"]) == 2
    assert all(reason in skip["reason"] for skip in findings["skipped"])
    assert set(kinds(model, "MatMul")) == {"float16"}
    assert np.all(np.isfinite(run(model)[0]))
    # bfloat16 has the range of float32.
    model = model_of(build, (2, 4))
    assert not cast(model, cast_bfloat16, error=1.0)["skipped"]


def test_infinite_constants_are_no_reason():
    def build(x):
        y = tf.pad(tf.linalg.matmul(x, floats(0, 4, 4)), [[0, 0], [0, 1]], "CONSTANT")
        y = tf.where(y > 0, y, float("-inf"))
        named(tf.reduce_max(y))

    assert not cast(model_of(build, (2, 4)), cast_float16)["skipped"]


def test_constants_that_both_need():
    large, small = floats(0, 16, 16), floats(1, 4)

    def build(x):
        weights, bias = tf.constant(large, name="large"), tf.constant(small)
        y = tf.linalg.matmul(x, weights)[:, :4] + bias
        named(tf.exp(y) + tf.exp(bias) + tf.reduce_sum(tf.exp(weights)) * 1e-3)

    model = model_of(build, (2, 16))
    findings = cast(model, cast_float16)
    assert findings["constants"] == 1  # the small one, twice
    assert _ops.get(model.main.nodes["large"], "dtype") == 1
    assert model.main.nodes["large/float16"].op == "Cast"


def test_small_integers_become_half_precision_directly():
    def build(x):
        data = tf.cast(tf.cast(x * 10, tf.uint8), tf.float32)
        y = tf.linalg.matmul(data, floats(0, 4, 4) * 0.01)
        named(tf.cast(y * 10.0, tf.int32))

    model = model_of(build, (2, 4))
    findings = cast(model, cast_float16)
    assert findings["casts_added"] == 0
    types = {
        (_ops.get(n, "SrcT"), _ops.get(n, "DstT")) for n in model.main if n.op == "Cast"
    }
    assert types == {(1, 4), (4, 19), (19, 3)}


def test_casts_that_were_there_meet():
    def build(x):
        y = tf.linalg.matmul(x, floats(0, 4, 4))
        y = tf.cast(tf.cast(y, tf.float16), tf.float32)
        named(tf.linalg.matmul(y, floats(0, 4, 4)))

    model = model_of(build, (2, 4))
    assert cast(model, cast_float16)["casts_added"] == 2
    assert len(ops(model, "Cast")) == 2


def test_large_integers_stay_float32():
    def build(x):
        named(tf.linalg.matmul(tf.cast(tf.cast(x, tf.int32) * 70000, tf.float32), x))

    model = model_of(build, (4, 4))
    cast_float16(model)
    assert [_ops.get(n, "DstT") for n in model.main if _ops.get(n, "SrcT") == 3] == [1]


def test_batch_norms_keep_their_statistics():
    def build(x):
        found = raw.FusedBatchNormV3(
            x=conv(x),
            scale=floats(1, 4),
            offset=floats(2, 4),
            mean=floats(3, 4),
            variance=floats(4, 4, low=0.5, high=1),
            is_training=False,
        )
        named(conv(found.y, 3))

    model = model_of(build, (2, 8, 8, 3))
    cast(model, cast_float16)
    (node,) = (node for node in model.main if node.op == "FusedBatchNormV3")
    assert (_ops.get(node, "T"), _ops.get(node, "U")) == (19, 1)


@pytest.mark.parametrize("transform", HALVES)
def test_functions_branches_and_loops(transform):
    @tf.function
    def inner(x, factor):
        return conv(x) * factor, factor

    def build(x):
        y, factor = inner(x, 0.5)
        y = tf.cond(tf.reduce_sum(x) > 0, lambda: conv(y, 2), lambda: y * factor)
        step = lambda i, y: (i + 1, tf.nn.tanh(conv(y, 4)))  # noqa: E731
        named(tf.while_loop(lambda i, _: i < 2, step, [0, y])[1])

    model = model_of(build, (2, 8, 8, 3))
    findings = cast(model, transform)
    assert len(kinds(model, "Conv2D")) == 3
    assert "float32" not in kinds(model, "Conv2D")
    for body in model.functions.values():
        signature = body.function.signature
        types = {arg.type for arg in (*signature.input_arg, *signature.output_arg)}
        assert not types & {14, 19}
    assert findings["cast"] >= 9


def test_old_loops():
    v1.disable_control_flow_v2()
    try:

        def build(x):
            def step(i, y):
                return i + 1, tf.nn.tanh(conv(y, outputs=3))

            y = v1.while_loop(lambda i, _: i < 3, step, [0, x])[1]
            named(v1.cond(tf.reduce_sum(y) > 0, lambda: conv(y), lambda: conv(y, 3)))

        model = model_of(build, (2, 6, 6, 3))
    finally:
        v1.enable_control_flow_v2()
    assert {"Enter", "Switch"} <= set(ops(model))
    cast(model, cast_float16)
    assert set(kinds(model, "Conv2D")) == {"float16"}


def test_weights_that_functions_receive_are_cast_inside():
    @tf.function
    def inner(x, weights):
        return tf.linalg.matmul(x, weights)

    model = model_of(lambda x: named(inner(x, tf.constant(floats(0, 4, 4)))), (2, 4))
    findings = cast(model, cast_bfloat16)
    assert findings["constants"] == 0
    assert findings["casts_added"] == 3


def test_several_outputs_and_shapes():
    def build(x):
        y = tf.linalg.matmul(x, floats(0, 4, 4))
        a, b = tf.split(y, 2, axis=1)
        z = tf.reshape(a * 1.5, tf.shape(b)) + b
        named(tf.linalg.matmul(z, floats(1, 2, 3)))
        tf.nn.top_k(y, 2, name="top")

    model = model_of(build, (2, 4), outputs=("y", "top:0", "top:1"))
    findings = cast(model, cast_float16)
    assert kinds(model, "Split") == ["float16"]
    assert kinds(model, "TopKV2") == ["float32"]  # its output keeps name and type
    assert findings["casts_added"] == 3


# The cut.


def cheapest(edges, vertices):
    """Returns the cost of the cheapest cut, by trying all."""
    inner = [v for v in vertices if v not in ("s", "t")]
    costs = []
    for chosen in itertools.product([False, True], repeat=len(inner)):
        side = {"s", *(v for v, is_in in zip(inner, chosen, strict=True) if is_in)}
        costs.append(sum(c for a, b, c in edges if a in side and b not in side))
    return min(costs)


@pytest.mark.parametrize("seed", range(20))
def test_the_cut_is_the_cheapest(seed):
    random = np.random.default_rng(seed)
    vertices = ["s", "t", *"abcdef"]
    edges = [
        (*random.choice(vertices, 2, replace=False).tolist(), int(cost))
        for cost in random.integers(1, 4, 16)
    ]
    network = Network()
    for vertex in vertices:
        network.add(vertex, vertex, 0)
    for edge in edges:
        network.add(*edge)
    side = network.source_side("s", "t")
    assert "s" in side
    assert "t" not in side
    cost = sum(c for a, b, c in edges if a in side and b not in side)
    assert cost == cheapest(edges, vertices)
