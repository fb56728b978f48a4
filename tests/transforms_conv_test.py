"""fuse_pad_and_conv and flatten_atrous_conv."""

import numpy as np
import pytest
import tensorflow as tf
from transforms_linear_samples import (
    change,
    floats,
    made_up,
    model_of,
    ops,
    raw,
    run,
    v1,
)

from tfopt.transforms import _ops
from tfopt.transforms.flatten_atrous_conv import flatten_atrous_conv
from tfopt.transforms.fuse_pad_and_conv import fuse_pad_and_conv

SHAPES = {"NHWC": (2, 7, 8, 4), "NCHW": (2, 4, 7, 8)}


def named(y):
    return tf.identity(y, name="y")


def conv(x, data_format="NHWC", kind="Conv2D", stride=1, padding="VALID", **more):
    size = x.shape[data_format.index("C")]
    strides = [stride if letter in "HW" else 1 for letter in data_format]
    return getattr(raw, kind)(
        input=x,
        filter=floats(0, 3, 2, size, 2),
        strides=strides,
        padding=padding,
        data_format=data_format,
        **more,
    )


def paddings(data_format, *, batch=0, channels=0):
    sizes = {"N": (batch, 0), "H": (1, 2), "W": (0, 3), "C": (0, channels)}
    return [sizes[letter] for letter in data_format]


# fuse_pad_and_conv


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("data_format", SHAPES)
def test_padding_becomes_explicit(data_format, stride, version):
    def build(x):
        pads = paddings(data_format)
        if version == 1:
            x = raw.Pad(input=x, paddings=pads)
        else:
            x = raw.PadV2(input=x, paddings=pads, constant_values=0.0)
        named(conv(x, data_format, "Conv2D", stride))

    model = model_of(build, SHAPES[data_format])
    assert change(model, fuse_pad_and_conv) == {"fused": 1, "skipped": []}
    assert not ops(model, "Pad", "PadV2")


def test_paddings_add_up():
    def build(x):
        x = tf.pad(tf.pad(x, paddings("NHWC")), paddings("NHWC"))
        explicit = [0, 0, 1, 0, 0, 1, 0, 0]
        named(conv(x, padding="EXPLICIT", explicit_paddings=explicit))

    model = model_of(build, SHAPES["NHWC"])
    assert change(model, fuse_pad_and_conv)["fused"] == 2
    (node,) = (node for node in model.main if node.op == "Conv2D")
    assert _ops.get(node, "explicit_paddings") == [0, 0, 3, 4, 0, 7, 0, 0]


def test_one_padding_for_several_convolutions():
    def build(x):
        x = tf.pad(x, paddings("NHWC"))
        named(conv(x) + conv(x))

    assert change(model_of(build, SHAPES["NHWC"]), fuse_pad_and_conv)["fused"] == 1


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda x: conv(tf.pad(x, paddings("NHWC"), constant_values=1.0)), "zeros"),
        (lambda x: conv(tf.pad(x, paddings("NHWC", batch=1))), "batch"),
        (lambda x: conv(tf.pad(x, paddings("NHWC")), padding="SAME"), "by the size"),
        (
            lambda x: (lambda p: conv(p) + tf.reduce_sum(p))(
                tf.pad(x, paddings("NHWC"))
            ),
            "used elsewhere",
        ),
    ],
)
def test_other_paddings_stay(build, reason):
    model = model_of(lambda x: named(build(x)), SHAPES["NHWC"])
    findings = change(model, fuse_pad_and_conv)
    assert findings["fused"] == 0
    assert reason in findings["skipped"][0]["reason"]


def test_padding_of_channels_stays():
    model = model_of(
        lambda x: named(conv(tf.pad(x, paddings("NHWC", channels=1)))), SHAPES["NHWC"]
    )
    # TensorFlow's own fusion with oneDNN forgets the channels: this graph fails there.
    (skip,) = fuse_pad_and_conv(model)["skipped"]
    assert "channels" in skip["reason"]


def test_paddings_that_are_computed_stay():
    def build(x):
        pads = tf.cast(tf.reshape(x[0, :4, :2, 0], [4, 2]), tf.int32) * 0
        named(tf.nn.conv2d(tf.pad(x, pads), floats(0, 3, 2, 4, 2), 1, "VALID"))

    (skip,) = change(model_of(build, SHAPES["NHWC"]), fuse_pad_and_conv)["skipped"]
    assert "not constants" in skip["reason"]


def test_padding_in_functions():
    inner = tf.function(lambda x: conv(tf.pad(x, paddings("NHWC"))))
    model = model_of(lambda x: named(inner(x)), SHAPES["NHWC"])
    assert change(model, fuse_pad_and_conv)["fused"] == 1


def test_an_output_that_pads_stays():
    def build(x):
        padded = raw.Pad(input=x, paddings=paddings("NHWC"), name="padded")
        named(conv(padded))

    model = model_of(build, SHAPES["NHWC"], outputs=("y", "padded"))
    assert change(model, fuse_pad_and_conv)["fused"] == 0


# flatten_atrous_conv


def atrous(x, block, pads, crops, between=None, kind="Conv2D", data_format="NHWC"):
    x = raw.SpaceToBatchND(input=x, block_shape=block, paddings=pads)
    y = conv(x, data_format, kind)
    y = between(y) if between else y
    return raw.BatchToSpaceND(input=y, block_shape=block, crops=crops)


@pytest.mark.parametrize(
    ("pads", "crops", "padding"),
    [
        ([[0, 1], [0, 1]], [[0, 1], [0, 1]], b"VALID"),
        ([[2, 3], [1, 2]], [[0, 1], [0, 1]], b"SAME"),
        ([[2, 3], [3, 4]], [[1, 1], [0, 2]], b"EXPLICIT"),
    ],
)
@pytest.mark.parametrize("kind", ["Conv2D", "DepthwiseConv2dNative"])
def test_blocks_become_dilations(kind, pads, crops, padding):
    if kind != "Conv2D" and padding == b"EXPLICIT":
        pytest.skip("TensorFlow's optimizer crashes on it; see below")
    model = model_of(
        lambda x: named(atrous(x, [2, 2], pads, crops, kind=kind)), (2, 13, 15, 4)
    )
    findings = change(model, flatten_atrous_conv, depthwise=True)
    assert findings == {"flattened": 1, "skipped": []}
    (node,) = (node for node in model.main if node.op == kind)
    assert _ops.get(node, "dilations") == [1, 2, 2, 1]
    assert _ops.get(node, "padding") == padding


def test_blocks_of_several_sizes_with_channels_first():
    def build(x):
        pads = [[0, 0], [0, 1], [0, 0]]
        named(atrous(x, [1, 2, 3], pads, pads, data_format="NCHW"))

    model = model_of(build, (2, 4, 13, 15))
    assert change(model, flatten_atrous_conv)["flattened"] == 1
    (node,) = (node for node in model.main if node.op == "Conv2D")
    assert _ops.get(node, "dilations") == [1, 1, 2, 3]


def test_bias_and_activation_between():
    def between(y):
        return tf.nn.relu(tf.nn.bias_add(y, floats(1, 2))) * floats(2, 2) + 1.0

    none = [[0, 0], [0, 0]]
    model = model_of(
        lambda x: named(atrous(x, [2, 2], none, none, between)), (2, 12, 14, 4)
    )
    assert change(model, flatten_atrous_conv)["flattened"] == 1


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_layers_of_keras(padding):
    keras = tf.keras
    conv1 = keras.layers.Conv1D(4, 3, dilation_rate=2, padding=padding)
    conv2 = keras.layers.Conv2D(5, 3, dilation_rate=3, padding=padding)
    conv1.build((2, 16, 3))
    conv2.build((2, 16, 17, 3))
    values = {layer: layer.get_weights() for layer in (conv1, conv2)}

    def build(x, z):
        for layer in (conv1, conv2):
            kernel, bias = values[layer]
            data = x if layer is conv1 else z
            rate = layer.dilation_rate
            y = tf.nn.convolution(data, kernel, 1, padding.upper(), dilations=rate)
            tf.identity(tf.nn.bias_add(y, bias), name=f"y{kernel.ndim}")

    model = model_of(build, (2, 16, 3), (2, 16, 17, 3), outputs=("y3", "y4"))
    assert ops(model, "SpaceToBatchND") == ["SpaceToBatchND"] * 2
    assert change(model, flatten_atrous_conv)["flattened"] == 2


NONE = [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            lambda x: atrous(x, [2, 2], NONE, NONE, lambda y: tf.cumsum(y, 1)),
            "stands between",
        ),
        (
            lambda x: atrous(x, [2, 2], NONE, NONE, lambda y: tf.concat([y, y], 3)),
            "elsewhere",
        ),
        (
            lambda x: atrous(x, [2, 2], NONE, NONE, kind="DepthwiseConv2dNative"),
            "depthwise=true",
        ),
        (lambda x: atrous(x, [2, 2], NONE, [[1, 1], [0, 0]]), "crops more"),
        (
            lambda x: atrous(
                *(x, [2, 2], [[2, 2], [0, 0]], NONE), kind="DepthwiseConv2dNative"
            ),
            "explicitly",
        ),
        (
            lambda x: tf.batch_to_space(
                conv(tf.space_to_batch(x, [2, 2], NONE)), [4, 1], NONE
            ),
            "other blocks",
        ),
        (
            lambda x: tf.batch_to_space(
                conv(tf.space_to_batch(x, [2, 2], NONE), stride=2), [2, 2], NONE
            ),
            "strides",
        ),
        (
            lambda x: tf.batch_to_space(
                conv(tf.space_to_batch(x, [2, 2], NONE), padding="SAME"), [2, 2], NONE
            ),
            "pads",
        ),
        (lambda x: tf.space_to_batch(x, [2, 2], NONE), "no convolution"),
        (
            lambda x: atrous(x, [2, 2], tf.cast(x[0, :2, :2, 0], tf.int32) * 0, NONE),
            "not constant",
        ),
    ],
)
def test_other_shuffles_stay(build, reason):
    model = model_of(lambda x: named(tf.nn.relu(build(x))), (2, 12, 12, 4))
    depthwise = reason == "explicitly"
    findings = change(model, flatten_atrous_conv, depthwise=depthwise)
    assert findings["flattened"] == 0
    assert reason in findings["skipped"][0]["reason"]


def test_an_output_keeps_its_name():
    def build(x):
        shuffled = raw.SpaceToBatchND(input=x, block_shape=[2, 2], paddings=NONE)
        y = conv(shuffled)
        raw.BatchToSpaceND(input=y, block_shape=[2, 2], crops=NONE, name="y")

    model = model_of(build, (2, 12, 12, 4))
    assert change(model, flatten_atrous_conv)["flattened"] == 1
    assert model.main.nodes["y"].op == "Identity"


def test_dilated_convolutions_in_functions():
    inner = tf.function(lambda x: tf.nn.relu(atrous(x, [2, 2], NONE, NONE)))
    model = model_of(lambda x: named(inner(x)), (2, 12, 12, 4))
    assert change(model, flatten_atrous_conv)["flattened"] == 1


def test_double_precision():
    def build(x):
        weights = floats(0, 3, 3, 4, 2).astype(np.float64)
        padded = tf.pad(x, paddings("NHWC"))
        named(tf.nn.conv2d(padded, weights, 1, "VALID"))

    model = model_of(build, (2, 12, 12, 4), dtype=tf.float64)
    assert change(model, fuse_pad_and_conv)["fused"] == 1


def test_depthwise_convolutions_keep_their_padding():
    def build(x):
        named(conv(tf.pad(x, paddings("NHWC")), kind="DepthwiseConv2dNative"))

    (skip,) = change(model_of(build, SHAPES["NHWC"]), fuse_pad_and_conv)["skipped"]
    assert "depthwise" in skip["reason"]


def test_grappler_takes_explicit_padding():
    def build(x):
        y = conv(tf.pad(x, paddings("NHWC")))
        named(tf.nn.relu6(tf.nn.bias_add(y, floats(1, 2))))

    model = model_of(build, SHAPES["NHWC"])
    (before,) = run(model)
    fuse_pad_and_conv(model)
    graph_def = v1.GraphDef.FromString(model.to_graph_def().SerializeToString())
    with tf.Graph().as_default() as graph, v1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        after = session.run("y:0", {"x0:0": made_up(graph, model)[0]})
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
