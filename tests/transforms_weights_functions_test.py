"""quantize_weights: function bodies, calls, branches and loops; what is left alone."""

import numpy as np
import pytest
import tensorflow as tf
from transforms_linear_samples import difference, run, take
from transforms_weights_test import assert_below, randoms, rounded

from tfopt.transforms.quantize_weights import quantize_weights

v1 = tf.compat.v1
IDS = np.array([3, 0, 39])


def model_of(build, *, outputs=("y",), kept=()):
    """The graph that `build(ids)` makes, with functions as they are."""
    with tf.Graph().as_default() as graph:
        build(v1.placeholder(tf.int32, IDS.shape, "ids"))
    return take(graph.as_graph_def(), ["ids"], outputs)


def called(w):
    """The table is an argument of two functions, one within the other."""

    @tf.function(autograph=False)
    def inner(table, ids):
        return tf.gather(tf.identity(table), ids)

    @tf.function(autograph=False)
    def outer(table, ids):
        return inner(table, ids) + 1.0

    return lambda ids: tf.identity(outer(tf.constant(w, name="w"), ids), "y")


def inside(w):
    """The table is a constant of the function."""

    @tf.function(autograph=False)
    def outer(ids):
        return tf.gather(tf.constant(w, name="w"), ids)

    return lambda ids: tf.identity(outer(ids), "y")


def both(w):
    """Looked up outside and inside, and used whole inside."""

    @tf.function(autograph=False)
    def outer(table, ids):
        return tf.matmul(tf.gather(table, ids), tf.identity(table), transpose_b=True)

    def build(ids):
        table = tf.constant(w, name="w")
        tf.add(outer(table, ids), tf.reduce_sum(tf.gather(table, ids)), "y")

    return build


def loop(w):
    def build(ids):
        table = tf.constant(w, name="w")
        total = tf.while_loop(
            lambda i, _: i < 3,
            lambda i, total: (i + 1, total + tf.gather(table, ids // (i + 1))),
            (0, tf.zeros([3, w.shape[1]])),
        )[1]
        tf.identity(total, "y")

    return build


def loop_in_function(w):
    @tf.function(autograph=False)
    def outer(table, ids):
        return tf.while_loop(
            lambda i, *_: i < 3,
            lambda i, t, total: (i + 1, tf.identity(t), total + tf.gather(t, ids // 2)),
            (0, table, tf.zeros([3, w.shape[1]])),
        )[2]

    return lambda ids: tf.identity(outer(tf.constant(w, name="w"), ids), "y")


def after_loop(w):
    """The loop hands the table on, and it is looked up once more."""

    def build(ids):
        _, table, total = tf.while_loop(
            lambda i, *_: i < 3,
            lambda i, table, total: (i + 1, table, total + tf.gather(table, ids)),
            (0, tf.constant(w, name="w"), tf.zeros([3, w.shape[1]])),
        )
        tf.add(total, tf.gather(table, ids[::-1]), "y")

    return build


def branches(w):
    def build(ids):
        table = tf.constant(w, name="w")
        found = tf.cond(
            ids[0] > 0,
            lambda: tf.gather(table, ids),
            lambda: tf.gather(table, ids[::-1]) * 2,
        )
        tf.identity(found, "y")

    return build


def switch(w):
    def build(ids):
        table = tf.constant(w, name="w")
        cases = [lambda k=k: tf.gather(table, ids) * k for k in (1.0, 2.0, 3.0)]
        tf.identity(tf.switch_case(ids[0] % 3, cases), "y")

    return build


FUNCTIONS = [called, inside, both, loop, loop_in_function, branches, switch]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("width", [80, 33])
@pytest.mark.parametrize("build", FUNCTIONS)
def test_tables_in_functions(build, width, bits):
    table = randoms(40, width) if width > 64 else randoms(300, width)
    axes = (0,) if width > 64 else (1,)
    before, oracle = (
        model_of(build(table)),
        model_of(build(rounded(table, axes, bits=bits))),
    )
    original, expected = run(before, IDS), run(oracle, IDS)
    found = quantize_weights(before, bits=bits)
    assert found["quantized"] == 1
    assert found["lookups"] == {both: 2, branches: 2, switch: 3}.get(build, 1)
    before.remove_dead()
    assert_below(before)
    if build is not both:
        assert_rows_only(before)
    result = run(before, IDS)
    assert difference(expected, result) <= 1e-5
    assert difference(original, result) > 1e-4
    once = before.to_graph_def()
    assert quantize_weights(before, bits=bits)["quantized"] == 0
    assert before.to_graph_def() == once


def assert_rows_only(model):
    """What becomes floats, in whatever function, is what lookups found."""
    for body in model.bodies:
        for node in body:
            if node.op in ("Cast", "LeftShift"):
                assert body.producer(body.input(node, 0)) is not None


def test_table_handed_out_of_a_loop():
    table = randoms(40, 80)
    before = model_of(after_loop(table))
    oracle = model_of(after_loop(rounded(table, (0,))))
    assert quantize_weights(before)["lookups"] == 1
    assert difference(run(oracle, IDS), run(before, IDS)) <= 1e-5


def test_product_in_function():
    """Weights that no lookup takes stay floats as arguments."""

    @tf.function(autograph=False)
    def outer(x, kernel):
        return x @ tf.identity(kernel)

    def product(w):
        return lambda ids: tf.identity(
            outer(tf.one_hot(ids, 40), tf.constant(w, name="w")), "y"
        )

    weights = randoms(40, 48)
    before = model_of(product(weights))
    oracle = model_of(product(rounded(weights, (1,))))
    found = quantize_weights(before)
    assert found["tensors"][0]["used_by"] == ["MatMul"]
    assert found["tensors"][0]["scales"] == 48
    assert difference(run(oracle, IDS), run(before, IDS)) <= 1e-5


def test_function_with_several_callers():
    """Which table it is differs from call to call, so it must stay floats."""
    tables = randoms(40, 80), randoms(40, 80, seed=1)

    @tf.function(autograph=False)
    def find(table, ids):
        return tf.gather(table, ids)

    def build(first, second):
        def graph(ids):
            one, two = find(tf.constant(first), ids), find(tf.constant(second), ids)
            tf.add(one, two, "y")

        return graph

    before = model_of(build(*tables))
    found = quantize_weights(before)
    assert found["quantized"] == 2
    assert found["lookups"] == 0
    expected = [rounded(table, (0,)) for table in tables]
    assert difference([sum(t[IDS] for t in expected)], run(before, IDS)) <= 1e-5


def test_loop_that_changes_the_table():
    """As `called`, but every round has another table."""

    def build(ids):
        _, _, total = tf.while_loop(
            lambda i, *_: i < 3,
            lambda i, w, total: (i + 1, w * 2.0, total + tf.gather(w, ids)),
            (0, tf.constant(randoms(40, 80), name="w"), tf.zeros([3, 80])),
        )
        tf.identity(total, "y")

    before = model_of(build)
    original = run(before, IDS)
    assert quantize_weights(before)["lookups"] == 0
    assert difference(original, run(before, IDS)) < 0.01


# What is left alone.


def findings(build, **options):
    model = model_of(build)
    before = model.to_graph_def()
    found = quantize_weights(model, **options)
    reasons = {item["node"]: item["reason"] for item in found["skipped"]}
    if not found["quantized"]:
        assert model.to_graph_def() == before
    return found, reasons


def plain(**constants):
    def build(ids):
        x = tf.one_hot(ids, 40)
        total = 0.0
        for name, value in constants.items():
            product = x @ tf.constant(value, name=name)
            total += tf.reduce_sum(product)
        tf.identity(total, "y")

    return build


def test_small_constants():
    small, _ = findings(plain(w=randoms(40, 25)))
    assert small["quantized"] == 0
    found, _ = findings(plain(w=randoms(40, 25)), minimum_size=1000)
    assert found["quantized"] == 1
    assert small["below_minimum_size"] == found["below_minimum_size"] + 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_constants_that_are_not_finite(bad):
    weights = randoms(40, 40)
    weights[3, 3] = bad
    _, reasons = findings(plain(w=weights))
    assert "infinite or NaN" in reasons["w"]


def test_overflow_of_float16():
    weights = randoms(40, 40)
    weights[3, 3] = 1e5
    _, reasons = findings(plain(w=weights), bits="float16")
    assert "too large for float16" in reasons["w"]
    found, _ = findings(plain(w=weights), bits="bfloat16")
    assert found["quantized"] == 1


def test_what_is_no_weight():
    def build(ids):
        x = tf.one_hot(ids, 1600)
        x = tf.nn.bias_add(x, tf.constant(randoms(1600), name="bias"))
        x = tf.reshape(x, [3, 40, 40]) + tf.constant(randoms(40, 40), name="boxes")
        tf.gather(tf.constant(randoms(2000), name="idf"), ids, name="idf_of")
        tf.constant(np.zeros((40, 40)), tf.bfloat16, name="half")
        tf.identity(tf.reduce_sum(x), "y")

    found, reasons = findings(build)
    assert found["quantized"] == 0
    assert reasons["bias"].startswith("a vector")
    assert "BiasAdd" in reasons["bias"]
    assert reasons["boxes"].startswith("not a weight")
    assert "AddV2" in reasons["boxes"]
    assert reasons["idf"].startswith("a vector")
    assert reasons["half"] == "has 16 bits already (bfloat16)"
    # Named, they are taken all the same.
    found, reasons = findings(build, include=["boxes", "b*s"])
    assert sorted(item["node"] for item in found["tensors"]) == ["bias", "boxes"]
    assert reasons["idf"] == "not included"


def test_include_and_exclude():
    build = plain(one=randoms(40, 40), two=randoms(40, 48))
    found, reasons = findings(build, exclude="o*")
    assert [item["node"] for item in found["tensors"]] == ["two"]
    assert reasons == {"one": "excluded"}
    found, reasons = findings(build, include=["one"])
    assert [item["node"] for item in found["tensors"]] == ["one"]
    assert reasons == {"two": "not included"}


def test_constants_of_equal_elements_are_small_already():
    def build(ids):
        w = tf.constant(0.5, shape=[40, 400], name="w")
        tf.matmul(tf.one_hot(ids, 40), w, name="y")

    _, reasons = findings(build)
    assert reasons["w"] == "would not become smaller"


def test_weights_of_zeros():
    weights = randoms(40, 40)
    weights[:, 5:] = 0
    model, oracle = (model_of(plain(w=w)) for w in (weights, rounded(weights, (1,))))
    assert quantize_weights(model)["quantized"] == 1
    assert difference(run(oracle, IDS), run(model, IDS)) <= 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 2}, "bits=2"),
        ({"bits": 8.0}, "bits=8.0"),
        ({"bits": "int8"}, "bits='int8'"),
        ({"minimum_size": -1}, "minimum_size=-1"),
        ({"minimum_size": True}, "minimum_size=True"),
        ({"group_size": 4}, "group_size=4"),
        ({"include": [3]}, r"include=\[3\]"),
        ({"exclude": ["nothing*"]}, "exclude='nothing\\*', which matches no node"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        findings(plain(w=randoms(40, 40)), **options)


def test_large_weights_are_computed_at_each_run():
    big = np.zeros((40, 70_000), np.float32) + randoms(40, 1)
    found, _ = findings(plain(w=big, v=randoms(40, 40)))
    assert found["computed_at_each_run"] == ["w"]
    # Tables are not: only their rows are computed.
    found, _ = findings(
        lambda ids: tf.gather(tf.constant(big, name="w"), ids, name="y")
    )
    assert found["computed_at_each_run"] == []
