"""fold_batch_norms: what is folded, exactly, and what stays."""

import numpy as np
import pytest
import tensorflow as tf
from transforms_linear_samples import (
    change,
    difference,
    floats,
    model_of,
    ops,
    raw,
    run,
    take,
    v1,
)

from tfopt.transforms._constants import source_of, value_of
from tfopt.transforms.fold_batch_norms import fold_batch_norms

FUSED = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")


def parameters(size):
    """Returns gamma, beta, mean and variance."""
    return (
        floats(1, size, low=0.5, high=2),
        floats(2, size),
        floats(3, size),
        floats(4, size, low=0.1, high=2),
    )


def fused(x, kind="FusedBatchNormV3", data_format="NHWC", training=False, **more):
    size = x.shape[data_format.index("C")]
    gamma, beta, mean, variance = parameters(size)
    outputs = getattr(raw, kind)(
        x=x,
        scale=gamma,
        offset=beta,
        mean=[] if training else mean,
        variance=[] if training else variance,
        is_training=training,
        epsilon=1e-3,
        data_format=data_format,
        **more,
    )
    return outputs[0]


def keras_like(x, axis=-1):
    shape = [1] * x.shape.rank
    shape[axis] = -1
    gamma, beta, mean, variance = (
        tf.constant(part.reshape(shape) if axis != -1 else part)
        for part in parameters(x.shape[axis])
    )
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)


def channel_axis(data_format):
    return data_format.index("C")


def conv2d(x, data_format, outputs=6, **more):
    size = x.shape[channel_axis(data_format)]
    return raw.Conv2D(
        **{"padding": "SAME", **more},
        input=x,
        filter=floats(0, 3, 2, size, outputs),
        strides=[1, 1, 1, 1],
        data_format=data_format,
    )


def grouped(x, data_format):
    size = x.shape[channel_axis(data_format)]
    weights = floats(0, 3, 2, size // 2, 6)
    return raw.Conv2D(
        input=x,
        filter=weights,
        strides=[1, 1, 1, 1],
        padding="VALID",
        data_format=data_format,
    )


def depthwise(x, data_format):
    size = x.shape[channel_axis(data_format)]
    return raw.DepthwiseConv2dNative(
        input=x,
        filter=floats(0, 3, 3, size, 2),
        strides=[1, 1, 1, 1],
        padding="SAME",
        data_format=data_format,
    )


def transposed(x, data_format):
    size = x.shape[channel_axis(data_format)]
    sizes = [2, 10, 12, 5] if data_format == "NHWC" else [2, 5, 10, 12]
    return raw.Conv2DBackpropInput(
        input_sizes=sizes,
        filter=floats(0, 3, 3, 5, size),
        out_backprop=x,
        strides=[1, 2, 2, 1] if data_format == "NHWC" else [1, 1, 2, 2],
        padding="SAME",
        data_format=data_format,
    )


CONVOLUTIONS = [conv2d, grouped, depthwise, transposed]
SHAPES = {"NHWC": (2, 5, 6, 4), "NCHW": (2, 4, 5, 6)}


def named(y):
    return tf.identity(y, name="y")


@pytest.mark.parametrize("data_format", SHAPES)
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("kind", FUSED)
def test_fused_batch_norms_vanish(kind, convolution, data_format):
    def build(x):
        y = convolution(x, data_format)
        named(tf.nn.relu(fused(y, kind, data_format)))

    model = model_of(build, SHAPES[data_format])
    findings = change(model, fold_batch_norms)
    assert findings["batch_norms"] == findings["operations"] == 1
    assert not findings["skipped"]
    assert not ops(model, *FUSED)
    assert len(ops(model, "BiasAdd")) == 1


@pytest.mark.parametrize("data_format", SHAPES)
@pytest.mark.parametrize("convolution", CONVOLUTIONS)
def test_products_and_sums_vanish(convolution, data_format):
    axis = -1 if data_format == "NHWC" else 1

    def build(x):
        y = convolution(x, data_format)
        y = tf.nn.bias_add(y, floats(8, y.shape[axis]), data_format=data_format)
        named(tf.nn.relu6(keras_like(y, axis)))

    model = model_of(build, SHAPES[data_format])
    findings = change(model, fold_batch_norms)
    assert findings["folded"] == 3
    assert not ops(model, "Mul", "AddV2", "Sub", "Rsqrt")


@pytest.mark.parametrize("data_format", ["NDHWC", "NCDHW"])
@pytest.mark.parametrize("kind", ["conv", "transposed"])
@pytest.mark.parametrize("norm", ["fused", "product"])
def test_three_dimensional_convolutions(norm, kind, data_format):
    last = data_format == "NDHWC"

    def build(x):
        common = {"strides": [1] * 5, "padding": "SAME", "data_format": data_format}
        if kind == "conv":
            y = raw.Conv3D(input=x, filter=floats(0, 2, 3, 2, 4, 5), **common)
        else:
            y = raw.Conv3DBackpropInputV2(
                input_sizes=[1, 3, 4, 5, 5] if last else [1, 5, 3, 4, 5],
                filter=floats(0, 2, 3, 2, 5, 4),
                out_backprop=x,
                **common,
            )
        if norm == "fused":
            named(tf.nn.relu(fused(y, data_format=data_format)))
        else:
            named(tf.nn.relu(keras_like(y, -1 if last else 1)))

    model = model_of(build, (1, 3, 4, 5, 4) if last else (1, 4, 3, 4, 5))
    assert change(model, fold_batch_norms)["operations"] == 1
    assert not ops(model, *FUSED, "Mul", "AddV2")


def test_a_batch_norm_of_three_dimensions_behind_reshape():
    def build(x):
        y = raw.Conv3D(
            input=x, filter=floats(0, 1, 1, 1, 4, 5), strides=[1] * 5, padding="VALID"
        )
        y = fused(tf.reshape(y, [-1, 12, 5, 5]))
        named(tf.nn.relu(tf.reshape(y, [-1, 3, 4, 5, 5])))

    model = model_of(build, (2, 3, 4, 5, 4))
    assert change(model, fold_batch_norms)["batch_norms"] == 1
    assert ops(model, "Reshape", "BiasAdd") == ["BiasAdd", "Reshape", "Reshape"]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("op", ["MatMul", "BatchMatMul", "BatchMatMulV2"])
def test_matrix_products(op, flip):
    weights = floats(0, 6, 4) if flip else floats(0, 4, 6)

    def build(x):
        if op == "MatMul":
            y = raw.MatMul(a=x, b=weights, transpose_b=flip)
        else:
            stacked = np.stack([weights, -weights])
            y = getattr(raw, op)(x=x, y=stacked, adj_y=flip)
        named(keras_like(y))

    model = model_of(build, (5, 4) if op == "MatMul" else (2, 5, 4))
    assert change(model, fold_batch_norms)["folded"] == 2
    assert ops(model, "BiasAdd", "Mul", "AddV2") == ["BiasAdd"]


@pytest.mark.parametrize("data_format", ["NWC", "NCW"])
def test_one_dimensional_convolutions(data_format):
    def build(x):
        y = tf.nn.conv1d(x, floats(0, 3, 4, 6), 1, "SAME", data_format)
        named(keras_like(y, -1 if data_format == "NWC" else 1))

    model = model_of(build, (2, 9, 4) if data_format == "NWC" else (2, 4, 9))
    assert change(model, fold_batch_norms)["folded"] == 2
    assert not ops(model, "Mul", "AddV2")


def test_dense_layers_on_sequences():
    def build(x):
        y = tf.tensordot(x, tf.constant(floats(0, 4, 6)), 1)
        named(keras_like(tf.nn.bias_add(y, floats(5, 6))))

    model = model_of(build, (None, None, 4))
    assert change(model, fold_batch_norms)["folded"] == 3


def test_channels_that_were_transposed():
    def build(x):
        y = tf.transpose(conv2d(x, "NHWC"), [0, 3, 1, 2])
        y = fused(y, data_format="NCHW")
        named(tf.nn.relu(tf.transpose(y, [0, 2, 3, 1])))

    model = model_of(build, SHAPES["NHWC"])
    assert change(model, fold_batch_norms)["batch_norms"] == 1


def test_the_old_global_normalization():
    gamma, beta, mean, variance = parameters(6)

    def model(scaled):
        with tf.Graph().as_default() as graph:
            x = v1.placeholder(tf.float32, SHAPES["NHWC"], "x")
            conv2d(x, "NHWC")
            for name, part in zip("mvbg", (mean, variance, beta, gamma), strict=True):
                tf.constant(part, name=name)
        graph_def = graph.as_graph_def()
        # It is no longer in graphs of our time.
        graph_def.versions.producer = 8
        inputs = ["Conv2D", "m", "v", "b", "g"]
        node = graph_def.node.add(
            name="y", op="BatchNormWithGlobalNormalization", input=inputs
        )
        node.attr["T"].type = tf.float32.as_datatype_enum
        node.attr["variance_epsilon"].f = 1e-3
        node.attr["scale_after_normalization"].b = scaled
        return take(graph_def, ["x"], ["y"])

    results = []
    for scaled in (True, False):
        found = model(scaled)
        assert change(found, fold_batch_norms)["batch_norms"] == 1
        results += run(found)
    assert difference(results[:1], results[1:]) > 0.01


def test_the_numbers():
    model = model_of(lambda x: named(fused(conv2d(x, "NHWC"))), SHAPES["NHWC"])
    fold_batch_norms(model)
    model.remove_dead()
    (conv,) = (node for node in model.main if node.op == "Conv2D")
    (bias,) = (node for node in model.main if node.op == "BiasAdd")
    gamma, beta, mean, variance = (p.astype(np.float64) for p in parameters(6))
    scale = gamma / np.sqrt(variance + np.float32(1e-3))
    weights = floats(0, 3, 2, 4, 6) * scale
    body = model.main
    assert np.array_equal(value_of(body, body.input(conv, 1)), weights.astype("f"))
    shift = (beta - mean * scale).astype("f")
    assert np.array_equal(value_of(body, body.input(bias, 1)), shift)
    # The weights keep their node, as nothing else reads them.
    assert body.input(conv, 1).node == "Conv2D/filter"


@pytest.mark.parametrize(
    ("step", "nodes"),
    [
        (lambda y: y * 3.0 - 1.5, 2),
        (lambda y: 2.0 - y, 1),
        (lambda y: y / floats(3, 6, low=1, high=2), 1),
        (lambda y: floats(3, 1, 1, 6) * y, 1),
        (lambda y: (tf.identity(y) + 1.0) * floats(3, 6), 2),
        (lambda y: raw.Add(x=floats(3, 6), y=y) - floats(4, 6), 2),
    ],
)
def test_remnants(step, nodes):
    model = model_of(
        lambda x: named(tf.nn.relu(step(conv2d(x, "NHWC")))), SHAPES["NHWC"]
    )
    assert change(model, fold_batch_norms)["folded"] == nodes
    assert not ops(model, "Mul", "Sub", "RealDiv", "Add", "AddV2")


def test_nothing_is_left_of_a_scale_but_an_output_keeps_its_name():
    model = model_of(
        lambda x: tf.multiply(conv2d(x, "NHWC"), 2.0, name="y"), SHAPES["NHWC"]
    )
    assert change(model, fold_batch_norms)["folded"] == 1
    assert model.main.nodes["y"].op == "Identity"


def test_a_lone_bias_stays_as_it_is():
    model = model_of(lambda x: named(conv2d(x, "NHWC") + floats(3, 6)), SHAPES["NHWC"])
    assert change(model, fold_batch_norms)["folded"] == 0
    assert ops(model, "AddV2")


# What must stay.


def twice(x):
    y = conv2d(x, "NHWC")
    named(fused(y) + y)


def trained(x):
    named(fused(conv2d(x, "NHWC"), training=True))


def statistics_used(x):
    y = conv2d(x, "NHWC")
    gamma, beta, mean, variance = parameters(6)
    found = raw.FusedBatchNormV3(
        x=y, scale=gamma, offset=beta, mean=mean, variance=variance, is_training=False
    )
    named(found.y + found.batch_mean)


def fed_weights(x):
    weights = v1.placeholder_with_default(floats(0, 1, 1, 4, 6), [1, 1, 4, 6])
    named(fused(tf.nn.conv2d(x, weights, 1, "SAME")))


def no_convolution(x):
    named(fused(tf.nn.relu(x)))


def too_large(x):
    weights = floats(0, 1, 1, 4, 6) * np.float32(1e30)
    y = tf.nn.conv2d(tf.nn.tanh(x * 1e-15), weights, 1, "SAME")
    gamma, beta, mean, variance = parameters(6)
    gamma *= np.float32(1e10)
    found = raw.FusedBatchNormV3(
        x=y, scale=gamma, offset=beta, mean=mean, variance=variance, is_training=False
    )
    named(found.y)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (twice, "used elsewhere"),
        (trained, "training mode"),
        (statistics_used, "statistics are used"),
        (fed_weights, "weights are not constant"),
        (no_convolution, "follows no linear operation"),
        (too_large, "not be finite"),
    ],
)
def test_what_cannot_be_folded_stays_with_a_reason(build, reason):
    model = model_of(build, SHAPES["NHWC"])
    findings = change(model, fold_batch_norms)
    assert findings["batch_norms"] == 0
    assert len(ops(model, *FUSED)) == 1
    assert [reason in skip["reason"] for skip in findings["skipped"]] == [True]
    assert findings["skipped"][0]["node"].startswith("FusedBatchNorm")


@pytest.mark.parametrize(
    "step",
    [
        lambda y: y * floats(3, 5, 6, 1),  # other axes
        lambda y: y * floats(3, 5, 1, 6),
        lambda y: y * floats(3, 2, 1, 1, 1, 6),  # one axis more
        lambda y: y / [1.0, 2.0, 0.0, 4.0, 5.0, 6.0],
        lambda y: 3.0 / y,
        lambda y: y * y,
        lambda y: y * tf.reduce_mean(y),
    ],
)
def test_products_that_do_not_fit_stay(step):
    def build(x):
        with np.errstate(divide="ignore"):
            y = tf.where(tf.math.is_finite(step(conv2d(x, "NHWC"))), 1.0, 0.0)
        named(y)

    model = model_of(build, (2, 5, 6, 4))
    assert change(model, fold_batch_norms)["folded"] == 0


def test_a_single_channel_that_is_broadcast_stays():
    def build(x):
        y = tf.nn.conv2d(x, floats(0, 1, 1, 4, 1), 1, "SAME")
        named(y * floats(3, 6))

    assert change(model_of(build, (2, 5, 6, 4)), fold_batch_norms)["folded"] == 0


def test_half_precision_stays():
    def build(x):
        weights = floats(0, 1, 1, 4, 6).astype(np.float16)
        named(fused(tf.nn.conv2d(x, weights, 1, "SAME")))

    model = model_of(build, (2, 5, 6, 4), dtype=tf.float16)
    (skip,) = change(model, fold_batch_norms)["skipped"]
    assert "float32" in skip["reason"]


def test_double_precision_is_folded():
    def build(x):
        weights = floats(0, 1, 1, 4, 6).astype(np.float64)
        y = tf.nn.conv2d(x, weights, 1, "SAME")
        named(y * floats(1, 6).astype(np.float64) + floats(2, 6).astype(np.float64))

    model = model_of(build, (2, 5, 6, 4), dtype=tf.float64)
    before = run(model)
    assert fold_batch_norms(model)["folded"] == 2
    assert difference(before, run(model)) < 1e-14


def test_weights_that_others_read_are_copied():
    def build(x):
        weights = tf.constant(floats(0, 1, 1, 4, 4))
        y = fused(tf.nn.conv2d(x, weights, 1, "SAME"))
        named(tf.nn.conv2d(tf.nn.relu(y), weights, 1, "SAME"))

    model = model_of(build, (2, 5, 6, 4))
    assert change(model, fold_batch_norms)["copied"] == 1
    consts = [n for n in model.main if n.op == "Const" and n.name.startswith("Conv2D")]
    assert len(consts) == 1  # and the one that is now the second's alone


def test_an_output_in_the_middle_stays():
    def build(x):
        y = tf.multiply(conv2d(x, "NHWC"), floats(1, 6), name="middle")
        tf.add(y, floats(2, 6), name="y")

    model = model_of(build, (2, 5, 6, 4), outputs=("y", "middle"))
    assert change(model, fold_batch_norms)["folded"] == 1
    assert model.main.nodes["middle"].op == "Identity"
    assert model.main.nodes["y"].op == "AddV2"


# Before the linear operation.


@pytest.mark.parametrize("convolution", CONVOLUTIONS)
@pytest.mark.parametrize("data_format", SHAPES)
def test_scales_before(convolution, data_format):
    factors = floats(3, 4) if data_format == "NHWC" else floats(3, 4, 1, 1)
    model = model_of(
        lambda x: named(convolution(x * factors * 2.0, data_format)),
        SHAPES[data_format],
    )
    assert change(model, fold_batch_norms)["folded"] == 2


def preprocessed(x):
    return (x - floats(3, 4)) / floats(4, 4, low=1, high=2)


@pytest.mark.parametrize(
    ("convolution", "folded"),
    [
        (lambda x: conv2d(x, "NHWC", padding="VALID"), 2),
        (lambda x: grouped(x, "NHWC"), 2),
        (lambda x: tf.nn.conv2d(x, floats(0, 1, 1, 4, 6), 2, "SAME"), 2),
        (
            lambda x: tf.nn.depthwise_conv2d(
                x, floats(0, 2, 2, 4, 2), [1] * 4, "VALID"
            ),
            2,
        ),
        (lambda x: conv2d(x, "NHWC"), 1),  # zeros beside the data are not shifted
        (lambda x: transposed(x, "NHWC"), 1),
    ],
)
@pytest.mark.parametrize("biased", [False, True])
def test_shifts_before_where_no_zeros_are_beside(convolution, folded, biased):
    def build(x):
        y = convolution(preprocessed(x))
        named(tf.nn.bias_add(y, floats(5, y.shape[-1])) if biased else y)

    model = model_of(build, SHAPES["NHWC"])
    assert change(model, fold_batch_norms)["folded"] == folded + biased
    assert len(ops(model, "BiasAdd")) == (biased or folded == 2)
    assert len(ops(model, "Sub")) == (folded == 1)


def test_matrix_products_take_what_is_before():
    model = model_of(lambda x: named(preprocessed(x) @ floats(0, 4, 6)), (5, 4))
    assert change(model, fold_batch_norms)["folded"] == 2
    assert ops(model, "BiasAdd", "MatMul") == ["BiasAdd", "MatMul"]


def test_a_batch_norm_before():
    model = model_of(
        lambda x: named(conv2d(fused(x), "NHWC", padding="VALID")), SHAPES["NHWC"]
    )
    assert change(model, fold_batch_norms)["batch_norms"] == 1


def test_large_shifts_before_stay():
    shift = np.float32(4e4)

    def build(x):
        named(tf.linalg.matmul(x * 1.0 - shift, floats(0, 4, 6)))

    model = model_of(build, (5, 4))
    findings = change(model, fold_batch_norms)
    assert findings["folded"] == 0
    assert "rounding" in findings["skipped"][0]["reason"]


def test_what_broadcasts_before_stays():
    model = model_of(lambda x: named((x * floats(3, 4)) @ floats(0, 4, 6)), (5, 1))
    assert change(model, fold_batch_norms)["folded"] == 0


def test_what_is_between_two_goes_to_the_first():
    def build(x):
        y = conv2d(x, "NHWC") * 2.0
        named(conv2d(y, "NHWC"))

    model = model_of(build, SHAPES["NHWC"])
    weights = floats(0, 3, 2, 4, 6) * 2
    assert change(model, fold_batch_norms)["operations"] == 1
    body = model.main
    first = body.nodes["Conv2D"]
    assert np.array_equal(value_of(body, body.input(first, 1)), weights)


# Batch normalization that cannot be folded.


@pytest.mark.parametrize("data_format", ["NHWC", "NCHW", "NDHWC", "NCDHW"])
def test_the_rest_becomes_product_and_sum_on_demand(data_format):
    shape = (2, 4, 4, 4) if len(data_format) == 4 else (2, 4, 4, 4, 4)
    model = model_of(
        lambda x: named(fused(tf.nn.relu(x), data_format=data_format)), shape
    )
    findings = change(model, fold_batch_norms, convert_rest=True)
    assert findings["converted"] == 1
    assert not findings["skipped"]
    assert ops(model, "AddV2", "Mul") == ["AddV2", "Mul"]


# Functions, loops, branches.


def test_bodies_of_functions():
    @tf.function
    def inner(x):
        return tf.nn.relu(fused(conv2d(x, "NHWC"))) + keras_like(conv2d(x, "NHWC"))

    def build(x):
        branch = tf.function(lambda: fused(conv2d(x, "NHWC")))
        y = tf.cond(tf.reduce_sum(x) > 100.0, lambda: conv2d(x, "NHWC"), branch)
        named(inner(x) + y)

    model = model_of(build, SHAPES["NHWC"])
    findings = change(model, fold_batch_norms)
    assert findings["batch_norms"] == 2
    assert findings["folded"] == 4
    assert not ops(model, *FUSED)


def test_weights_that_functions_receive_are_not_constant():
    @tf.function
    def inner(x, weights):
        return fused(tf.nn.conv2d(x, weights, 1, "SAME"))

    model = model_of(
        lambda x: named(inner(x, tf.constant(floats(0, 1, 1, 4, 6)))), SHAPES["NHWC"]
    )
    (skip,) = change(model, fold_batch_norms)["skipped"]
    assert "weights are not constant" in skip["reason"]


def test_old_loops():
    v1.disable_control_flow_v2()
    try:

        def build(x):
            def step(i, y):
                return i + 1, tf.nn.tanh(keras_like(conv2d(y, "NHWC", outputs=4)))

            y = v1.while_loop(lambda i, _: i < 3, step, [0, x])[1]
            named(
                v1.cond(
                    tf.reduce_sum(x) > 1e3,
                    lambda: y,
                    lambda: fused(conv2d(y, "NHWC")[..., :4] * 2.0) * 1.0,
                )
            )

        model = model_of(build, SHAPES["NHWC"])
    finally:
        v1.enable_control_flow_v2()
    assert {"Enter", "NextIteration", "Switch"} <= set(ops(model))
    assert change(model, fold_batch_norms)["folded"] == 2


def test_controls_stay():
    def build(x):
        y, factors = conv2d(x, "NHWC"), tf.constant(floats(1, 6))
        with tf.control_dependencies([tf.no_op(name="first")]):
            y = y * factors
        z = y + floats(2, 6)
        with tf.control_dependencies([y]):
            other = tf.constant(1.0)
        named(z * other)

    model = model_of(build, SHAPES["NHWC"])
    assert change(model, fold_batch_norms)["folded"] == 2
    waiting = [node for node in model.main if "^first" in node.input]
    assert [node.op for node in waiting] == ["BiasAdd"]


def test_constants_that_wait_for_the_convolution_are_left():
    def build(x):
        y = conv2d(x, "NHWC")
        with tf.control_dependencies([tf.nn.relu(y)]):
            late = tf.constant(floats(1, 6))
        named(y * late)

    assert change(model_of(build, SHAPES["NHWC"]), fold_batch_norms)["folded"] == 0


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    """A frozen MobileNetV2 up to its logits; random weights, filled statistics."""
    import tfopt

    keras = tf.keras
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2((64, 64, 3), alpha=0.35, weights=None)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = parameters(layer.gamma.shape[0])
            layer.set_weights([gamma, beta, mean, variance])
            layer.momentum = 0.0
    model(floats(5, 8, 64, 64, 3), training=True)  # The statistics of these data.
    path = tmp_path_factory.mktemp("mobilenet") / "frozen.pb"
    details = tfopt.freeze(model, path, inline_functions=True).details
    tensors = details["signatures"]["serving_default"]
    (inputs,) = tensors["inputs"].values()
    graph_def = v1.GraphDef.FromString(path.read_bytes())
    logits = [
        n.name for n in graph_def.node if n.name.endswith("predictions_1/BiasAdd")
    ]
    return take(graph_def, inputs, logits)


@pytest.mark.slow
def test_mobilenet(mobilenet):
    before = run(mobilenet)
    findings = change(mobilenet, fold_batch_norms)
    assert findings["operations"] == 52
    assert not findings["skipped"]
    assert not ops(mobilenet, *FUSED, "Mul", "Sub", "Rsqrt")
    assert len(ops(mobilenet, "AddV2")) == 10  # residual connections
    assert difference(before, run(mobilenet)) < 2e-5
    # The comparison is sharp: a thousandth more in one layer shows.
    body = mobilenet.main
    node = next(n for n in body if n.op == "Conv2D")
    source = source_of(body, body.input(node, 1))
    values = value_of(body, body.input(node, 1)) * np.float32(1.001)
    source.attr["value"].tensor.tensor_content = values.tobytes()
    assert difference(before, run(mobilenet)) > fold_batch_norms.promise.tolerance
