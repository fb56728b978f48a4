"""Sparse encoding: smaller where it is sound, refused where it isn't."""

import numpy as np
import pytest
import tensorflow as tf

import tfopt
from tfopt import conversion, masks, sparse_inference, tflite_file
from tfopt.conversion import _sparse, _verification

X = np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)


def dense_net(sparsity):
    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    hidden = layers.Dense(256, activation="relu")
    model = tf.keras.Sequential([layers.Input((96,)), hidden, layers.Dense(10)])
    return pruned(model, sparsity)


def pruned(model, sparsity):
    for layer in model.layers:
        if sparsity and hasattr(layer, "kernel"):
            kernel = layer.kernel.numpy()
            mask = masks.compute([np.abs(kernel)], sparsity)[0]
            layer.kernel.assign(kernel * mask)
    return model


def mobile_net(sparsity, first_stride=2, end="mean"):
    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    head = {
        "mean": [layers.GlobalAveragePooling2D(keepdims=True)],
        "flatten": [layers.Flatten()],
    }[end]
    model = tf.keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Conv2D(16, 3, first_stride, "same", activation="relu"),
            layers.Conv2D(64, 1, activation="relu"),
            layers.DepthwiseConv2D(3, padding="same", activation="relu"),
            layers.Conv2D(64, 1, activation="relu"),
            *head,
        ]
    )
    for layer in model.layers[1:4:2]:
        kernel = layer.kernel.numpy() if hasattr(layer, "kernel") else None
        if kernel is not None and kernel.shape[:2] == (1, 1):
            mask = masks.compute([np.abs(kernel)], sparsity)[0]
            layer.kernel.assign(kernel * mask)
    return model


@pytest.mark.parametrize(("sparsity", "ratio"), [(0.8, 0.4), (0.95, 0.15)])
def test_float_weights_take_the_room_of_their_nonzeros(sparsity, ratio):
    model = dense_net(sparsity)
    done = conversion.convert_with_report(model, sparse=True)
    report = done.report["sparse"]
    assert report["encoded"]
    assert report["reason"] == ""
    assert report["sparse_bytes"] == len(done.content) < ratio * report["dense_bytes"]
    with tfopt.Runner(done.content) as runner:
        np.testing.assert_allclose(
            runner.run(X), model.predict(X, verbose=0), atol=1e-5
        )


def test_a_dense_model_stays_dense():
    model = dense_net(0.0)
    done = conversion.convert_with_report(model, sparse=True)
    assert not done.report["sparse"]["encoded"]
    assert done.content == conversion.convert(model)


def test_what_grows_or_cannot_run_stays_dense():
    model = dense_net(0.5)
    options = {"quantization": "int8", "representative_dataset": X}
    done = conversion.convert_with_report(model, sparse=True, **options)
    assert not done.report["sparse"]["encoded"]
    assert "bytes instead of" in done.report["sparse"]["reason"]
    done = conversion.convert_with_report(dense_net(0.9), sparse=True, **options)
    report = done.report["sparse"]
    # What the interpreter says about it differs from version to version.
    assert report["encoded"] or report["reason"]
    with tfopt.Runner(done.content) as runner:
        assert runner.run(X).shape == (64, 10)


def test_a_file_with_other_numbers_is_not_taken():
    dense, other = (conversion.convert(dense_net(s)) for s in (0.0, 0.5))
    sparse = conversion.convert(dense_net(0.8), sparse=True)
    name = tflite_file.read(dense).signatures[0].inputs[0].name
    batches = [{name: X}]
    chosen, report = _sparse.choose(other, lambda: sparse, batches)
    assert chosen == other
    assert "computes it wrongly" in report["reason"]
    # The comparison itself lets the right file pass.
    right = conversion.convert(dense_net(0.8))
    name = tflite_file.read(right).signatures[0].inputs[0].name
    assert _sparse.choose(right, lambda: sparse, [{name: X}])[1]["encoded"]


def test_dynamic_quantization_is_refused():
    with pytest.raises(ValueError, match="sparse=True with quantization='dynamic'"):
        conversion.convert(dense_net(0.8), quantization="dynamic", sparse=True)


def test_speed_is_promised_only_where_there_are_kernels():
    content = conversion.convert(mobile_net(0.9), sparse=True)
    answer = tfopt.sparse_speedup_possible(content, target="arm")
    assert answer, answer
    assert answer.convolutions == (2, 2)
    avx = tfopt.sparse_speedup_possible(content, target="x86_avx")
    assert not avx
    assert "AVX" in str(avx)
    assert "remove_channels" in str(avx)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (lambda: mobile_net(0.5), {"sparse": True}, "are needed"),
        (lambda: mobile_net(0.9), {}, "stored sparsely"),
        (lambda: mobile_net(0.9, first_stride=1), {"sparse": True}, "doesn't begin"),
        (
            lambda: mobile_net(0.9, end="flatten"),
            {"sparse": True},
            "to end the cluster",
        ),
        (lambda: dense_net(0.9), {"sparse": True}, "no 1x1 convolution"),
        (
            lambda: mobile_net(0.9),
            {
                "quantization": "int8",
                "representative_dataset": np.zeros((2, 32, 32, 3), np.float32) + 0.5,
            },
            "float weights only",
        ),
    ],
)
def test_every_obstacle_is_named(model, options, reason):
    content = conversion.convert(model(), verify=False, **options)
    answer = sparse_inference.sparse_speedup_possible(content, target="arm")
    assert not answer
    assert reason in str(answer)


def test_unknown_targets_are_named():
    with pytest.raises(ValueError, match="target='riscv'"):
        sparse_inference.sparse_speedup_possible(b"", target="riscv")


def test_the_comparison_can_fail():
    agreement = _verification.measure([np.ones(4)], [np.ones(4) + 1e-3])
    assert agreement.sqnr_db < _sparse._MIN_SQNR
