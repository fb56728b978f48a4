"""Small networks, one for each way in which layers meet: all int8, and exact."""

import numpy as np
import pytest

from tfopt import runner, tflite_file
from tfopt.conversion import convert
from tfopt.methods.quantize_aware import QuantizeAware

pytestmark = pytest.mark.both_keras

IMAGE, VECTOR, SERIES, VOLUME = (8, 8, 4), (8,), (12, 4), (6, 6, 6, 2)

# Name -> shape of the input, function of layers and input, operators in the file.
NETWORKS = {
    "dense_on_sequences": (
        (5, 8),
        lambda k, x: k.Dense(4)(k.Dense(6, activation="relu")(x)),
        ["FULLY_CONNECTED"] * 2,
    ),
    "dense_and_batch_norm": (
        VECTOR,
        lambda k, x: k.ReLU()(k.BatchNormalization()(k.Dense(6)(x))),
        ["FULLY_CONNECTED"],
    ),
    "dilated": (
        (12, 12, 4),
        lambda k, x: k.DepthwiseConv2D(3, dilation_rate=2, padding="same")(
            k.Conv2D(4, 3, dilation_rate=2, padding="same")(x)
        ),
        ["CONV_2D", "DEPTHWISE_CONV_2D"],
    ),
    "grouped": (IMAGE, lambda k, x: k.Conv2D(8, 3, groups=2)(x), ["CONV_2D"]),
    "depth_multiplier": (
        IMAGE,
        lambda k, x: k.BatchNormalization()(
            k.DepthwiseConv2D(3, depth_multiplier=2)(x)
        ),
        ["DEPTHWISE_CONV_2D"],
    ),
    "dropout_between_conv_and_batch_norm": (
        IMAGE,
        lambda k, x: k.ReLU()(
            k.BatchNormalization()(k.Dropout(0.2)(k.Conv2D(4, 3)(x)))
        ),
        ["CONV_2D"],
    ),
    "add_of_three": (
        IMAGE,
        lambda k, x: k.ReLU()(k.Add()([k.Conv2D(4, 1)(x) for _ in range(3)])),
        [*["CONV_2D"] * 3, "ADD", "ADD"],
    ),
    "add_with_broadcasting": (
        IMAGE,
        lambda k, x: k.Add()(
            [x, k.Dense(4)(k.GlobalAveragePooling2D(keepdims=True)(x))]
        ),
        ["MEAN", "FULLY_CONNECTED", "ADD"],
    ),
    "concatenate_with_the_input": (
        IMAGE,
        lambda k, x: k.Conv2D(3, 1)(
            k.Concatenate()([x, k.Conv2D(2, 3, padding="same")(x)])
        ),
        ["CONV_2D", "CONCATENATION", "CONV_2D"],
    ),
    "dense_block": (
        IMAGE,
        lambda k, x: dense_block(k, k.Conv2D(3, 1, activation="relu")(x)),
        [*["CONV_2D"] * 2, "CONCATENATION", "CONV_2D", "CONCATENATION", "CONV_2D"],
    ),
    "squashed": (
        VECTOR,
        lambda k, x: k.Dense(3, activation="sigmoid")(k.Dense(6, activation="tanh")(x)),
        ["FULLY_CONNECTED", "TANH", "FULLY_CONNECTED", "LOGISTIC"],
    ),
    "softmax_over_channels": (
        IMAGE,
        lambda k, x: k.Softmax()(k.Conv2D(5, 1)(x)),
        ["CONV_2D", "SOFTMAX"],
    ),
    "relu_first": (
        VECTOR,
        lambda k, x: k.Dense(4)(k.ReLU()(x)),
        ["RELU", "FULLY_CONNECTED"],
    ),
    "pooling_first_and_last": (
        IMAGE,
        lambda k, x: k.MaxPooling2D()(k.Conv2D(3, 1)(k.AveragePooling2D(2)(x))),
        ["AVERAGE_POOL_2D", "CONV_2D", "MAX_POOL_2D"],
    ),
    "alone_batch_norm": (
        VECTOR,
        lambda k, x: k.ReLU()(k.BatchNormalization()(x)),
        ["DEPTHWISE_CONV_2D"],
    ),
    "clipped": (
        IMAGE,
        lambda k, x: k.ReLU(max_value=0.5)(k.Conv2D(4, 1)(x)),
        ["CONV_2D"],
    ),
    "clipped_in_a_concatenation": (
        IMAGE,
        lambda k, x: k.Concatenate()([x, k.ReLU(max_value=0.5)(k.Conv2D(4, 1)(x))]),
        ["CONV_2D", "MINIMUM", "CONCATENATION"],
    ),
    "convolution_of_a_volume": (
        VOLUME,
        lambda k, x: k.ReLU()(
            k.BatchNormalization()(k.Conv3D(4, (2, 3, 3), padding="same")(x))
        ),
        ["PAD", "STRIDED_SLICE", "STRIDED_SLICE", "CONCATENATION", "CONV_2D"],
    ),
    "dilated_series": (
        SERIES,
        lambda k, x: k.BatchNormalization()(
            k.Conv1D(6, 3, padding="causal", dilation_rate=2)(x)
        ),
        ["PAD", "EXPAND_DIMS", "CONV_2D"],
    ),
    "einsum_of_heads": (
        SERIES,
        lambda k, x: k.EinsumDense("abc,cde->adbe", (2, None, 3), bias_axes="de")(x),
        ["FULLY_CONNECTED", "TRANSPOSE"],
    ),
    "elu": (
        VECTOR,
        lambda k, x: k.Dense(6, activation="elu")(x),
        ["FULLY_CONNECTED", "MINIMUM", "EXP", "SUB", "ADD", "ADD"],
    ),
    "hard_sigmoid": (
        VECTOR,
        lambda k, x: k.Dense(6, activation="hard_sigmoid")(x),
        ["FULLY_CONNECTED", "ADD", "MUL"],
    ),
    "layer_norm": (
        SERIES,
        lambda k, x: k.LayerNormalization()(x),
        ["MEAN", "SUB", "L2_NORMALIZATION", "EXPAND_DIMS", "DEPTHWISE_CONV_2D"],
    ),
    "maximum": (
        IMAGE,
        lambda k, x: k.Maximum()([k.Conv2D(4, 1)(x), k.Conv2D(4, 1)(x)]),
        ["CONV_2D", "CONV_2D", "MAXIMUM"],
    ),
    "pooled_volume": (
        VOLUME,
        lambda k, x: k.GlobalMaxPooling3D()(
            k.MaxPooling3D((2, 3, 2))(k.Conv3D(3, 1)(x))
        ),
        ["CONV_2D", "MAX_POOL_2D", "MAX_POOL_2D", "REDUCE_MAX"],
    ),
    "rescaled": (
        IMAGE,
        lambda k, x: k.Conv2D(3, 1)(k.Rescaling(0.5, offset=0.25)(x)),
        ["DEPTHWISE_CONV_2D", "CONV_2D"],
    ),
    "separable": (
        IMAGE,
        lambda k, x: k.SeparableConv2D(6, 3, activation="relu")(x),
        ["DEPTHWISE_CONV_2D", "CONV_2D"],
    ),
    "swish": (
        IMAGE,
        lambda k, x: k.Conv2D(4, 1, activation="swish")(x),
        ["CONV_2D", "LOGISTIC", "MUL"],
    ),
    "transposed": (
        IMAGE,
        lambda k, x: k.ReLU()(
            k.BatchNormalization()(k.Conv2DTranspose(4, 3, strides=2)(x))
        ),
        ["TRANSPOSE_CONV"],
    ),
    "reshape_last": (
        IMAGE,
        lambda k, x: k.Reshape((64, 3))(k.ZeroPadding2D(1)(k.Conv2D(3, 3)(x))),
        ["CONV_2D", "PAD"],
    ),
}


def dense_block(layers, x):
    for _ in range(2):
        more = layers.Conv2D(3, 3, padding="same", activation="relu")(x)
        x = layers.Concatenate()([x, more])
    return layers.Conv2D(2, 1)(x)


def int8_operators(file):
    """Names of the operators that make int8 tensors, but for those that move them."""
    subgraph = file.subgraphs[0]
    moves = ("RESHAPE", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND")
    return [
        operator.name
        for operator in subgraph.operators[1:]
        if subgraph.tensors[operator.outputs[0]].type == "INT8"
        and operator.name not in moves
    ]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_all_int8_and_equal_to_the_prepared_model(keras, name):
    shape, build, operators = NETWORKS[name]
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, build(keras.layers, inputs))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        # Biases and statistics: a bias of zero vanishes in conversion.
        layer.set_weights(
            [
                rng.uniform(0.5, 2, w.shape) if w.ndim == 1 else w
                for w in layer.get_weights()
            ]
        )
    data = rng.normal(size=(32, *shape)).astype(np.float32)
    method = QuantizeAware(representative_dataset=data, strict=True)
    prepared = method.prepare(model)
    final = method.finalize(prepared)
    content = convert(final, quantization="int8", verify=False)
    file = tflite_file.read(content)
    assert tflite_file.float_operators(file) == []
    assert sorted(int8_operators(file)) == sorted(operators)
    expected = np.asarray(prepared(data))
    step = file.subgraphs[0].tensors[file.subgraphs[0].operators[-1].inputs[0]].scale[0]
    with runner.Runner(content, num_workers=1) as run:
        got = run.run(data)
    assert np.abs(got - expected).mean() < 0.04 * step
    # And both are close to the float model, but not equal to it.
    distance = np.abs(expected - np.asarray(model(data))).mean()
    assert 0.05 * step < distance < 2 * step
