"""Folded convolutions: the same bytes from every possible fold, or the original."""

import dataclasses
import logging
import warnings

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from tfopt import tflite_file
from tfopt.runner import Runner, _folding, _specialize
from tfopt.runner._folding import Convolution
from tfopt.runner._model_file import read_model_file


def convert(
    function, *shapes, per_tensor=False, floats=False, quantize=True, rows=None
):
    """An int8 model of a function of float32 arrays, by default of any first axis."""
    specs = [tf.TensorSpec([rows, *shape], tf.float32) for shape in shapes]
    concrete = tf.function(function, input_signature=specs).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], concrete)
    random = np.random.default_rng(7)
    if quantize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: (
            [
                random.uniform(-1, 1, (rows or 1, *shape)).astype(np.float32)
                for shape in shapes
            ]
            for _ in range(8)
        )
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter._experimental_disable_per_channel = per_tensor
        if not floats:
            converter.inference_input_type = converter.inference_output_type = tf.int8
    with warnings.catch_warnings():
        # About quantization without "statistics"; there is a data set instead.
        warnings.simplefilter("ignore", UserWarning)
        return converter.convert()


def filters(*shape):
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def conv_model(size, kernel, count=5, padding="VALID", strides=1, relu=True, **options):
    channels = size[-1]
    weights = filters(*np.broadcast_to(kernel, 2), channels, count)
    bias = filters(count)

    def function(x):
        x = tf.nn.conv2d(x, weights, strides, padding) + bias
        return tf.nn.relu(x) if relu else x

    return convert(function, size, **options)


def run(content, *arrays):
    """Outputs of a plain interpreter, in the order of the subgraph."""
    interpreter = Interpreter(model_content=content)
    details = interpreter.get_input_details()
    for detail, array in zip(details, arrays, strict=True):
        interpreter.resize_tensor_input(detail["index"], array.shape)
    interpreter.allocate_tensors()
    for detail, array in zip(details, arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return [
        interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()
    ]


def images(rows, *size):
    image = np.random.default_rng(rows).integers(-128, 128, (rows, *size), np.int8)
    image[:1] = 127
    return image


def specialize(content, choose=None, rows=4):
    return _specialize.specialize(
        content, read_model_file(content), rows=rows, choose=choose
    )


def whole_row(conv, folds, alone):
    del alone
    return next(fold for fold in folds if fold.block == conv.width)


def the_convolution(content):
    model = tflite_file.unpack(content)
    found = [
        (graph, position, conv)
        for graph in model.subgraphs
        for position, operator in enumerate(graph.operators)
        if (conv := _folding.convolution(model, graph, operator))
    ]
    assert len(found) == 1
    return model, *found[0]


def folded_by(content, fold):
    model, graph, position, conv = the_convolution(content)
    _folding.apply_fold(model, graph, position, conv, fold)
    return tflite_file.pack(model)


def check_all_folds(content, image, wanted_blocks=()):
    expected = run(content, image)
    _, _, _, conv = the_convolution(content)
    folds = _folding.folds(conv)
    assert set(wanted_blocks) <= {fold.block for fold in folds}
    for fold in folds:
        changed = folded_by(content, fold)
        for one, other in zip(expected, run(changed, image), strict=True):
            assert one.dtype == other.dtype == np.int8
            np.testing.assert_array_equal(one, other, err_msg=str(fold))
    assert len(np.unique(expected[0])) > 20  # a constant would equal anything
    return folds


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_every_fold_of_every_kernel_gives_the_same_bytes(kernel, padding):
    content = conv_model((9, 12, 1), kernel, padding=padding)
    check_all_folds(content, images(3, 9, 12, 1), wanted_blocks={12})


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("width", [5, 9, 15])
def test_odd_widths_and_several_channels(width, channels, padding):
    content = conv_model((6, width, channels), 3, padding=padding)
    check_all_folds(content, images(3, 6, width, channels))


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [2, 3, (2, 1), (1, 2)])
@pytest.mark.parametrize("width", [12, 15])
def test_strides(width, strides, padding):
    content = conv_model((11, width, 3), 3, padding=padding, strides=strides)
    check_all_folds(content, images(3, 11, width, 3))


@pytest.mark.parametrize("kernel", [(1, 3), (3, 1), (2, 5)])
def test_kernels_that_are_not_square(kernel):
    content = conv_model((8, 12, 2), kernel, padding="SAME")
    check_all_folds(content, images(3, 8, 12, 2))


def test_a_first_mobilenet_convolution_has_folds_of_part_of_a_row():
    content = conv_model((24, 24, 3), 3, count=8, padding="SAME", strides=2)
    folds = check_all_folds(content, images(2, 24, 24, 3), wanted_blocks={4, 8, 24})
    assert any(fold.taps == 2 for fold in folds)


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_scales_and_activations_are_kept(per_tensor, relu):
    content = conv_model((7, 10, 1), 3, per_tensor=per_tensor, relu=relu)
    _, graph, position, _ = the_convolution(content)
    operator = graph.operators[position]
    scales = graph.tensors[operator.inputs[1]].quantization.scale
    assert len(scales) == (1 if per_tensor else 5)
    assert operator.builtinOptions.fusedActivationFunction == int(relu)
    check_all_folds(content, images(3, 7, 10, 1))


def test_a_fixed_batch_stays_fixed():
    content = conv_model((8, 12, 2), 3, rows=4)
    check_all_folds(content, images(4, 8, 12, 2))
    found = specialize(content, whole_row)
    image = images(7, 8, 12, 2)  # runs as 4 and as 3 with a filling
    with (
        Runner(content, specialize=False) as plain,
        Runner(found.content, specialize=False) as folded,
    ):
        assert plain.batch_size == folded.batch_size == 4
        assert plain.signature == folded.signature
        np.testing.assert_array_equal(plain.run(image), folded.run(image))


@pytest.mark.parametrize("shift", ["first", "group"])
def test_a_wrong_fold_is_refused(shift, caplog):
    content = conv_model((8, 12, 1), 3)
    good = Convolution(8, 12, 1, 5, (3, 3), (1, 1), is_same=False)
    fold = _folding.folds(good)[0]
    wrong = dataclasses.replace(fold, first=fold.first + 1)
    if shift == "group":  # as many columns, but of the wrong pixels
        wrong = dataclasses.replace(fold, taps=fold.taps + 1, first=-1)
    with caplog.at_level(logging.DEBUG, "tfopt.runner"):
        assert specialize(content, lambda *_: wrong) is None
    assert "refused" in caplog.text or "not specialized" in caplog.text
    assert specialize(content, lambda *_: fold) is not None


def test_the_whole_model_is_compared_too():
    content = conv_model((8, 12, 1), 3)
    other = conv_model((8, 12, 1), 3, relu=False)
    entries = read_model_file(content).entries
    assert _specialize.same_outputs(content, content, entries)
    assert not _specialize.same_outputs(content, other, entries)


def digits_and_sums(image, other):
    """Two outputs, two convolutions, one of them with a second consumer."""
    image = tf.reshape(image, [-1, 14, 14, 1])
    x = tf.nn.relu(tf.nn.conv2d(image, filters(3, 3, 1, 6), 1, "VALID"))
    y = tf.nn.relu6(tf.nn.conv2d(x, filters(3, 3, 6, 4), 2, "SAME"))
    flat = tf.reshape(tf.nn.max_pool2d(x, 2, 2, "VALID"), [-1, 6 * 6 * 6])
    z = tf.matmul(flat, filters(216, 10)) + tf.matmul(other, filters(3, 10))
    return {"logits": z, "map": y}


@pytest.fixture(scope="module")
def two_outputs():
    return convert(digits_and_sums, (14, 14), (3,), floats=True)


def test_several_convolutions_inputs_and_outputs(two_outputs):
    found = specialize(two_outputs, whole_row)
    assert len(found.changes) == 2
    assert all("folded to" in change for change in found.changes)
    random = np.random.default_rng(0)
    inputs = {
        "image": random.uniform(-1.5, 1.5, (70, 14, 14)).astype(np.float32),
        "other": random.uniform(-1, 1, (70, 3)).astype(np.float32),
    }
    for rows in (1, 31, 32, 70):  # one row, a tail, whole batches
        part = {name: array[:rows] for name, array in inputs.items()}
        with (
            Runner(two_outputs, specialize=False, batch_size=32) as plain,
            Runner(found.content, specialize=False, batch_size=32) as folded,
        ):
            assert plain.signature == folded.signature
            expected, results = plain.run(part), folded.run(part)
        assert list(expected) == list(results)
        assert len(expected) == 2
        for name in expected:
            np.testing.assert_array_equal(expected[name], results[name])


def test_tensors_and_buffers_keep_their_numbers(two_outputs):
    before = tflite_file.unpack(two_outputs)
    after = tflite_file.unpack(specialize(two_outputs, whole_row).content)
    old, new = before.subgraphs[0], after.subgraphs[0]
    assert list(old.inputs) == list(new.inputs)
    assert list(old.outputs) == list(new.outputs)
    for one, other in zip(old.tensors, new.tensors[: len(old.tensors)], strict=True):
        assert (one.name, one.buffer, one.type) == (
            other.name,
            other.buffer,
            other.type,
        )
    for one, other in zip(before.buffers, after.buffers, strict=False):
        assert (one.data is None) == (other.data is None)
        assert one.data is None or bytes(one.data) == bytes(other.data)


@pytest.mark.parametrize(
    "make",
    [
        lambda: conv_model((8, 8, 3), 3, quantize=False),
        lambda: conv_model((8, 8, 64), 3),
        lambda: conv_model((8, 8, 3), 1),
        lambda: convert(lambda x: tf.matmul(x, filters(4, 3)), (4,)),
    ],
    ids=["float", "many channels", "one pixel", "no convolution"],
)
def test_models_without_a_narrow_int8_convolution_are_untouched(make):
    content = make()
    assert not read_model_file(content).has_narrow_convolution
    assert specialize(content, whole_row) is None
    with Runner(content) as runner:
        assert runner.specialized == ()


def test_dilated_and_grouped_convolutions_are_left_alone():
    def dilated(x):
        return tf.nn.conv2d(x, filters(3, 3, 2, 4), 1, "SAME", dilations=2)

    def grouped(x):
        return tf.nn.conv2d(x, filters(3, 3, 2, 4), 1, "SAME")

    for function, channels in ((dilated, 2), (grouped, 4)):
        content = convert(function, (8, 12, channels))
        model = tflite_file.unpack(content)
        graph = model.subgraphs[0]
        assert any(
            _folding._code(model, operator) == schema.BuiltinOperator.CONV_2D
            for operator in graph.operators
        )
        assert specialize(content, whole_row) is None
        image = images(3, 8, 12, channels)
        with Runner(content) as runner:
            np.testing.assert_array_equal(run(content, image)[0], runner.run(image))


def test_strings_stay_with_the_original(caplog):
    content = conv_model((8, 12, 1), 3)
    file = read_model_file(content)
    entry = file.entries[0]
    info = dataclasses.replace(entry.signature.inputs[0], dtype=np.dtype(object))
    signature = dataclasses.replace(entry.signature, inputs=(info,))
    file = dataclasses.replace(
        file, entries=(dataclasses.replace(entry, signature=signature),)
    )
    with caplog.at_level(logging.DEBUG, "tfopt.runner"):
        found = _specialize.specialize(content, file, rows=4, choose=whole_row)
    assert found is None
    assert "no random value" in caplog.text


def test_only_bounded_folds_are_offered():
    offered = []

    def choose(conv, folds, alone):
        offered.extend((fold.weights_bytes(conv), fold.growth(conv)) for fold in folds)

    specialize(conv_model((6, 96, 3), 3, count=64, padding="SAME"), choose)
    assert offered
    assert max(size for size, _ in offered) <= 1 << 20
    assert max(growth for _, growth in offered) <= 16


@pytest.mark.parametrize("rows", [1, 31, 70])
def test_measured_or_not_the_runner_gives_the_same_bytes(rows, two_outputs, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(two_outputs)
    inputs = [np.ones((rows, 14, 14), np.float32), np.ones((rows, 3), np.float32)]
    with (
        Runner(path, specialize=False, num_workers=2, batch_size=16) as plain,
        Runner(path, num_workers=2, batch_size=16) as runner,
    ):
        assert plain.specialized == ()
        expected, results = plain.run(inputs), runner.run(inputs)
    for name in expected:
        np.testing.assert_array_equal(expected[name], results[name])
    assert path.read_bytes() == two_outputs


def test_the_measured_choice_is_one_of_the_folds_and_kept():
    conv = Convolution(28, 28, 1, 12, (3, 3), (1, 1), is_same=False)
    content = conv_model((28, 28, 1), 3, count=12)
    _specialize._choices.pop(conv, None)
    specialize(content, rows=2)
    choice = _specialize._choices[conv]
    assert choice is None or choice in _folding.folds(conv)
    found = specialize(content, rows=2)
    assert (found is None) == (choice is None)
