"""`fold_constants`."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
import transforms_structure_samples as samples
from transforms_structure_samples import X, apply, model_of, run, same, v1

from tfopt.transforms import _constants
from tfopt.transforms.fold_constants import fold_constants
from tfopt.types import TfoptError

GROWS = "in place of"


@pytest.fixture
def build():
    """Makes a model of a function from placeholder to output, in a TF1 graph."""

    def make(function, **options):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [None, 3], "x")
            tf.identity(function(x), name="out")
        return model_of(graph, ["out"], **options)

    return make


def value(model, name):
    node = model.main.nodes[name]
    assert node.op == "Const"
    return _constants.to_array(node.attr["value"].tensor)


def test_expressions_become_constants(build):
    w = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)

    def function(x):
        scale = tf.math.rsqrt(tf.constant(w) ** 2 + 1e-3, name="scale")
        return tf.matmul(x, tf.multiply(tf.constant(w), scale, name="weights"))

    model = build(function)
    before = run(model)
    findings = apply(model, fold_constants)
    assert findings == {"folded": 1, "passed": 0, "skipped": []}
    assert samples.ops(model) == ["Const", "Identity", "MatMul", "Placeholder"]
    expected = w / np.sqrt(w.astype(np.float64) ** 2 + 1e-3)
    np.testing.assert_allclose(value(model, "weights"), expected, rtol=1e-6)
    assert same(before, run(model))
    # Negative control: the comparison sees the last bit.
    tensor = model.main.nodes["weights"].attr["value"].tensor
    tensor.CopyFrom(_constants.to_proto(np.nextafter(value(model, "weights"), 9)))
    assert not same(before, run(model))


def test_several_outputs(build):
    def function(x):
        parts = tf.split(tf.range(12.0) ** 2, 4, name="parts")
        return x + parts[1] * parts[3]

    def fewer(x):
        return x + tf.split(tf.range(12.0) ** 2, 4, name="parts")[2]

    for one in (function, fewer):
        model = build(one)
        before = run(model)
        apply(model, fold_constants)
        assert samples.ops(model) == ["AddV2", "Const", "Identity", "Placeholder"]
        assert same(before, run(model))
    assert "parts/2" in model.main.nodes


@pytest.mark.parametrize(
    "values",
    [
        np.array([b"a", b"", b"word"], object),
        np.array([1.5, -2, 3], ml_dtypes.bfloat16),
        np.array([1.5, -2, 3], np.float16),
        np.array([1 + 2j, 3, 4], np.complex64),
        np.array([2**40, -1, 0], np.int64),
        np.array([True, False, True]),
    ],
    ids=lambda array: array.dtype.name,
)
def test_types(values):
    with tf.Graph().as_default() as graph:
        tf.reverse(tf.constant(values), [0], name="out")
    model = model_of(graph, ["out"], inputs=[])
    assert apply(model, fold_constants)["folded"] == 1
    assert value(model, "out").tolist() == values[::-1].tolist()
    assert np.asarray(run(model, {})[0]).tolist() == values[::-1].tolist()


@pytest.mark.parametrize("size", [4, 9000])
def test_quantized_types(size):
    # Also when fed, as large ones are.
    with tf.Graph().as_default() as graph:
        codes = tf.constant(np.arange(size) % 100, tf.quint8)
        tf.bitcast(tf.reshape(codes, [2, -1]), tf.uint8, name="out")
    model = model_of(graph, ["out"], inputs=[])
    assert apply(model, fold_constants)["folded"] == 1
    expected = (np.arange(size) % 100).reshape(2, -1)
    np.testing.assert_array_equal(run(model, {})[0], expected)


def test_inputs_are_not_constants():
    with tf.Graph().as_default() as graph:
        fed = tf.constant(1.0, name="x")
        default = v1.placeholder_with_default(2.0, [], name="default")
        tf.add(fed + 1.0, default, name="out")
    model = model_of(graph, ["out"], inputs=["x", "default"])
    assert apply(model, fold_constants)["folded"] == 0
    assert run(model, {"x:0": 5.0, "default:0": 7.0}) == [13.0]


def test_outputs_keep_their_names():
    with tf.Graph().as_default() as graph:
        y = tf.constant(2.0) * tf.constant(3.0)
        tf.identity(y, name="same")
        tf.negative(y, name="negative")
        tf.split(tf.constant([1.0, 2.0]), 2, name="parts")
    outputs = ["same", "negative", "parts:1"]
    model = model_of(graph, outputs, inputs=[])
    before = run(model, {})
    apply(model, fold_constants)
    assert samples.ops(model) == ["Const"] * 4 + ["Identity", "Split"]
    assert same(before, run(model, {}))


def test_randomness_state_and_quantization_stay(build):
    def function(x):
        a = tf.random.normal([3], seed=1)
        b = tf.random.stateless_normal([3], seed=[1, 2])
        c = tf.quantization.fake_quant_with_min_max_args(tf.constant([0.1, 0.2, 0.3]))
        d = tf.raw_ops.ReadFile(filename=tf.constant("/etc/hostname"))
        e = tf.raw_ops.Placeholder(dtype=tf.float32, shape=[3])
        return x + a + b + c + e + tf.cast(tf.strings.length(d), tf.float32)

    model = build(function)
    before = samples.ops(model)
    fold_constants(model)
    for op in ("RandomStandardNormal", "FakeQuantWithMinMaxArgs", "ReadFile"):
        assert op in before
        assert op in samples.ops(model)
    assert any(op.startswith("StatelessRandom") for op in samples.ops(model))


def test_control_inputs_are_kept():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        count = v1.Variable(0.0, use_resource=True, trainable=False)
        with tf.control_dependencies([count.assign_add(1.0, read_value=False)]):
            c = tf.constant(2.0)
        y = tf.add(c, tf.constant(3.0), name="y")
        with tf.control_dependencies([y]):
            tf.add(x, count.read_value() + y, name="out")
        init = v1.global_variables_initializer().name
    model = model_of(graph, ["out"], kept=[init])
    before = run(model, session_runs=3, setup=[init])
    apply(model, fold_constants)
    assert value(model, "y") == 5.0
    assert model.main.controls(model.main.nodes["y"])
    assert same(before, run(model, session_runs=3, setup=[init]))
    np.testing.assert_array_equal(before[0], X + 3 + 5)


def test_constants_handed_on():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        w = tf.constant(np.eye(3), tf.float32)
        handed_on = tf.stop_gradient(tf.identity(w))
        tf.matmul(tf.matmul(x, handed_on), handed_on, name="out")
    model = model_of(graph, ["out"])
    findings = apply(model, fold_constants)
    assert findings == {"folded": 0, "passed": 1, "skipped": []}
    assert samples.ops(model) == ["Const", "MatMul", "MatMul", "Placeholder"]
    assert same(run(model), [X])


class TestSizes:
    def test_huge_values_are_never_computed(self, build):
        def function(x):
            huge = tf.fill([10**6, 10**6], 1.0)
            count = tf.reduce_sum(tf.range(10**12)) // 10**12
            return x + huge[0, 0] + tf.cast(count, tf.float32)

        model = build(function)
        findings = fold_constants(model)
        assert {"Fill", "Range"} <= set(samples.ops(model))
        assert [one for one in findings["skipped"] if "would take" in one["reason"]]

    def test_results_that_grow(self, build):
        def function(x):
            return x + tf.reduce_sum(x) * tf.tile(tf.constant([[1.0, 2, 3]]), [2, 1])

        for limit, op in ((24, "Const"), (23, "Tile")):
            model = build(function)
            findings = apply(model, fold_constants, maximum_size=limit)
            assert ("Tile" in samples.ops(model)) == (op == "Tile")
            assert bool(findings["skipped"]) == (op == "Tile")

    def test_results_in_place_of_as_much(self, build):
        w = np.random.default_rng(0).standard_normal((3, 300)).astype(np.float32)

        def alone(x):
            weights = tf.constant(w)
            parts = tf.split(tf.transpose(weights) * 2.0, 2)
            return tf.matmul(x, tf.transpose(parts[0])) * parts[1][0, 0]

        def tied(x):
            weights = tf.constant(w)
            return tf.matmul(tf.matmul(x, weights), tf.transpose(weights))

        model = build(alone)
        before = run(model)
        apply(model, fold_constants, maximum_size=8)
        assert "Transpose" not in samples.ops(model)
        assert same(before, run(model))
        model = build(tied)
        size = model.to_graph_def().ByteSize()
        (skipped,) = apply(model, fold_constants, maximum_size=8)["skipped"]
        assert GROWS in skipped["reason"]
        assert "Transpose" in samples.ops(model)
        assert model.to_graph_def().ByteSize() <= size

    def test_weights_stored_narrow_stay_narrow(self, build):
        codes = np.arange(-30, 30, dtype=np.int8).reshape(3, 20)

        def function(x):
            w = tf.cast(tf.constant(codes), tf.float32) * tf.constant(0.5)
            half = tf.cast(tf.constant(codes[:, :6].astype(np.float16)), tf.float32)
            return tf.concat([tf.matmul(x, w), tf.matmul(x, half)], 1)

        model = build(function)
        before = run(model)
        findings = apply(model, fold_constants)
        assert samples.ops(model).count("Cast") == 2
        assert findings["folded"] == 0
        assert all(GROWS in one["reason"] for one in findings["skipped"])
        assert same(before, run(model))

    def test_few_narrow_numbers_are_no_weights(self, build):
        model = build(lambda x: x * tf.cast(tf.constant([1, 2, 3], tf.int8), x.dtype))
        assert apply(model, fold_constants)["folded"] == 1

    def test_a_negative_size(self, build):
        with pytest.raises(ValueError, match="maximum_size=-1"):
            fold_constants(build(tf.abs), maximum_size=-1)


def test_sizes_that_only_evaluation_tells(build):
    def function(x):
        index = tf.where(tf.constant([True, False, True]))
        unique = tf.unique(tf.constant([1, 1, 5]))[0] + 1
        return (
            x[:, :2]
            + tf.cast(tf.reshape(index, [-1]), tf.float32)
            + tf.cast(tf.size(tf.range(2) + 1), tf.float32)
            * tf.cast(unique[1], tf.float32)
        )

    model = build(function)
    before = run(model)
    apply(model, fold_constants)
    assert same(before, run(model))


class TestErrors:
    @staticmethod
    def failing(x):
        broken = tf.raw_ops.Div(x=tf.constant([1]), y=tf.constant([0]), name="broken")
        fine = tf.constant(2.0) * tf.constant(3.0)
        y = tf.cast(broken, tf.float32)
        # Never computed unless asked for.
        return tf.raw_ops.Merge(
            inputs=[
                tf.raw_ops.Switch(data=x * fine, pred=tf.constant(True))[1],
                tf.raw_ops.Switch(data=x * y, pred=tf.constant(False))[1],
            ]
        ).output

    def test_an_expression_that_fails(self, build):
        with pytest.raises(TfoptError, match=r"ignore_errors=true.*'broken'"):
            fold_constants(build(self.failing))

    def test_it_can_be_left(self, build):
        model = build(self.failing)
        findings = apply(model, fold_constants, ignore_errors=True)
        assert model.main.nodes["broken"].op == "Div"
        assert findings["skipped"][0]["node"] == "broken"
        assert findings["folded"] == 1

    def test_shapes_that_do_not_fit(self, build):
        model = build(
            lambda x: x + tf.matmul(tf.ones([3, 3]), tf.ones([3, 3]), name="w")
        )
        node = model.main.nodes["w"]
        node.input[1] = model.main.add(
            "Const", "two", value=_two(), dtype=_float()
        ).name
        model.main.changed()
        with pytest.raises(TfoptError, match="'w'"):
            fold_constants(model)

    def test_operations_without_kernel(self, build):
        model = build(lambda x: x * tf.abs(tf.constant(2.0) * tf.constant(1.0), "y"))
        node = model.main.nodes["y"]
        node.op = "TPUReplicatedOutput"
        node.attr["num_replicas"].i = 1
        findings = apply(model, fold_constants)
        assert "TPUReplicatedOutput" in samples.ops(model)
        assert any("OpKernel" in one["reason"] for one in findings["skipped"])
        assert findings["folded"] == 1

    def test_operations_of_the_past(self, build):
        model = build(lambda x: x * tf.abs(tf.constant(2.0) * tf.constant(1.0), "y"))
        node = model.main.nodes["y"]
        node.op = "BatchFFT"
        node.attr.clear()
        with pytest.raises(TfoptError, match="BatchFFT is not available"):
            fold_constants(model)
        findings = apply(model, fold_constants, ignore_errors=True)
        assert findings["folded"] == 1
        assert findings["skipped"][0]["node"] == "y"

    def test_unknown_operations(self, build):
        model = build(lambda x: x * tf.abs(tf.constant(2.0) * tf.constant(1.0), "y"))
        model.main.nodes["y"].op = "NobodysOp"
        assert apply(model, fold_constants)["folded"] == 1
        assert "NobodysOp" in samples.ops(model)


def _two():
    return _constants.to_proto(np.ones((2, 2), np.float32))


def _float():
    return np.dtype(np.float32)


class TestShapes:
    @staticmethod
    def model(shape, outputs=("out",), inputs=("x",)):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, shape, "x")
            y = tf.nn.relu(x[:, ::2], name="y")
            flat = tf.reshape(y, [tf.raw_ops.Shape(input=y)[0], -1], name="out")
            tf.add(
                tf.raw_ops.Size(input=y, out_type=tf.int64),
                tf.cast(tf.raw_ops.Rank(input=flat), tf.int64),
                name="sum",
            )
        return model_of(graph, outputs, inputs=inputs)

    def test_known_ones_are_constants(self):
        model = self.model([2, 3], ["out", "sum"])
        before = run(model)
        apply(model, fold_constants)
        assert "Shape" not in samples.ops(model)
        assert value(model, "sum") == 4 + 2
        assert same(before, run(model))

    def test_free_ones_are_not(self):
        model = self.model([None, 3], ["out", "sum"])
        before = samples.ops(model).count("Shape")
        apply(model, fold_constants)
        assert samples.ops(model).count("Shape") == before == 1
        for rows in (1, 4):
            found = run(model, {"x:0": np.ones((rows, 3), np.float32)})
            assert found[0].shape == (rows, 2)
            assert found[1] == 2 * rows + 2

    def test_fed_ones_are_not(self):
        # The shape that is known is that of what is replaced.
        model = self.model([2, 3], inputs=["y"])
        apply(model, fold_constants)
        assert "Shape" in samples.ops(model)

    def test_tf1s_control_flow(self):
        with samples.old_control_flow(), tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, [2, 3], "x")
            y = v1.cond(
                tf.reduce_sum(x) > 0,
                lambda: tf.raw_ops.Size(input=x),
                lambda: tf.raw_ops.Rank(input=x),
            )
            tf.identity(y, name="out")
        model = model_of(graph, ["out"])
        apply(model, fold_constants)
        assert run(model) == [2]
        assert run(model, {"x:0": X + 9}) == [6]


def test_functions_branches_and_loops():
    def function(x):
        def step(i, y):
            return i + tf.constant(2) - tf.constant(1), y * (tf.constant(2.0) * 1.5)

        _, y = tf.while_loop(lambda i, y: i < tf.constant(1) + 2, step, (0, x))
        return tf.cond(
            tf.reduce_sum(x) > 0,
            lambda: y + tf.split(tf.constant([1.0, 2.0]) * 3.0, 2)[1],
            lambda: tf.exp(tf.constant(1.0)) * y,
        )

    model = samples.traced(function)
    before = [run(model), run(model, {"x:0": X + 9})]
    findings = apply(model, fold_constants)
    assert findings["folded"] >= 4
    assert not {"Exp", "Split"} & set(samples.all_ops(model))
    assert same(before[0], run(model))
    assert same(before[1], run(model, {"x:0": X + 9}))


def test_values_that_functions_return():
    @tf.function
    def constant():
        return tf.constant(2.0) * 3.0, tf.identity(tf.constant(1.0))

    def function(x):
        six, one = constant()
        return x * six + one

    model = samples.traced(function)
    apply(model, fold_constants)
    (body,) = model.functions.values()
    assert samples.ops(model, body.name) == ["Const", "Const"]
    assert same(run(model), [X * 6 + 1])


def test_branches_and_loops_of_tf1():
    model = samples.looping()
    before = [run(model), run(model, {"x:0": X + 9})]
    findings = apply(model, fold_constants)
    assert findings["folded"] >= 4
    # They must run as often, and only where, the expressions did.
    folded = [n for n in model.main if n.op == "Const" and model.main.controls(n)]
    assert len(folded) >= 4
    assert same(before[0], run(model))
    assert same(before[1], run(model, {"x:0": X + 9}))
    # Negative control: without control inputs, constants aren't in the loop.
    for node in folded:
        model.main.set_inputs(node, [], ())
    with pytest.raises(tf.errors.OpError):
        run(model)


def test_output_shapes_are_dropped(build):
    model = build(lambda x: tf.abs(x, name="y"))
    wrong = model.main.nodes["y"].attr["_output_shapes"].list.shape.add()
    wrong.dim.add(size=77)
    fold_constants(model, clear_output_shapes=False)
    assert "_output_shapes" in model.main.nodes["y"].attr
    fold_constants(model)
    assert "_output_shapes" not in model.main.nodes["y"].attr
