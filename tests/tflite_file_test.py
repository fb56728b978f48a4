import dataclasses
import gzip
import inspect
import re
import warnings

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

import tfopt
from tfopt import tflite_file
from tfopt.tflite_schema import tables
from tfopt.types import TfoptError

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 1, 12)).astype(np.float32)
WEIGHTS = RNG.normal(size=(2028, 10)).astype(np.float32)
BIAS = RNG.normal(size=10).astype(np.float32)
IMAGES = RNG.random((4, 28, 28), dtype=np.float32)


def network(image):
    x = tf.reshape(image, [-1, 28, 28, 1])
    x = tf.nn.max_pool2d(tf.nn.relu(tf.nn.conv2d(x, KERNEL, 1, "VALID")), 2, 2, "VALID")
    return tf.reshape(x, [-1, 2028]) @ WEIGHTS + BIAS


def fake_quantized(image):
    def quantized(x, low, high):
        return tf.quantization.fake_quant_with_min_max_args(x, low, high)

    x = quantized(tf.reshape(image, [-1, 28, 28, 1]), 0, 1)
    x = quantized(tf.nn.relu(tf.nn.conv2d(x, KERNEL, 1, "VALID")), 0, 9)
    return quantized(tf.reshape(x, [-1, 8112]) @ np.tile(WEIGHTS, (4, 1)), -900, 900)


def loop(image):
    def double(step, x):
        return step + 1, tf.nn.relu(x) * 2.0

    x = image[:, :, 0]
    return tf.while_loop(lambda step, x: step < 3, double, (tf.constant(0), x))[1]


def lower(function, *optimizations):
    spec = tf.TensorSpec([None, 28, 28], tf.float32, "image")
    traced = tf.function(function, input_signature=[spec]).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], traced)
    converter.optimizations = list(optimizations)
    with warnings.catch_warnings():
        # The converter asks for input statistics that int8 files don't need.
        warnings.filterwarnings("ignore", message="Statistics for quantized inputs")
        return converter.convert()


@pytest.fixture(scope="module")
def files():
    """Flatbuffers as the converter writes them, each with other parts of the schema."""
    sparse = np.where(abs(WEIGHTS) > 1.5, WEIGHTS, 0)
    optimize = tf.lite.Optimize
    return {
        "float": lower(network),
        "dynamic": lower(network, optimize.DEFAULT),
        "int8": lower(fake_quantized, optimize.DEFAULT),
        "loop": lower(loop),
        "sparse": lower(
            lambda image: tf.reshape(image, [-1, 784]) @ sparse[:784],
            optimize.EXPERIMENTAL_SPARSITY,
        ),
    }


FILES = ("float", "dynamic", "int8", "loop", "sparse")


def outputs(content):
    interpreter = Interpreter(model_content=content)
    interpreter.resize_tensor_input(
        interpreter.get_input_details()[0]["index"], IMAGES.shape, strict=True
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], IMAGES)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def rewritten(content, **options):
    return tflite_file.rewrite(
        content,
        signature_key="serving_default",
        input_names=["image"],
        output_names=["logits"],
        **options,
    )


def parts(value):
    """A flatbuffer object as nested tuples."""
    if isinstance(value, np.ndarray):
        return (str(value.dtype), *value.tolist())
    if isinstance(value, list):
        return tuple(map(parts, value))
    if hasattr(value, "__dict__"):
        return (type(value).__name__, *((k, parts(v)) for k, v in vars(value).items()))
    return value


def facts(content):
    """All that a model says, independent of how its buffers are numbered."""
    model = schema.ModelT.InitFromPackedBuf(content)
    for holder in [t for g in model.subgraphs for t in g.tensors] + model.metadata:
        data = model.buffers[holder.buffer].data
        holder.buffer = None if data is None else data.tobytes()
    model.buffers = None
    return parts(model)


@pytest.mark.parametrize("name", FILES)
def test_rewriting_keeps_every_part(files, name):
    assert facts(tflite_file.rewrite(files[name])) == facts(files[name])


def test_the_comparison_of_parts_sees_a_changed_weight(files):
    model = schema.ModelT.InitFromPackedBuf(files["float"])
    buffer = max(
        model.buffers, key=lambda item: 0 if item.data is None else item.data.size
    )
    buffer.data = buffer.data.copy()
    buffer.data[0] ^= 1
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    assert facts(bytes(builder.Output())) != facts(files["float"])


@pytest.mark.parametrize("name", FILES)
def test_stripping_keeps_outputs_to_the_bit(files, name):
    stripped = rewritten(files[name], strip_debug_info=True)
    np.testing.assert_array_equal(outputs(stripped), outputs(files[name]))
    assert len(stripped) < len(files[name])
    assert len(gzip.compress(stripped)) < len(gzip.compress(files[name])) - 100


def test_stripping_keeps_signature_names_and_drops_others(files):
    file = tflite_file.read(rewritten(files["int8"], strip_debug_info=True))
    signature = file.signatures[0]
    assert str(signature) == (
        "serving_default(image: float32 [?, 28, 28]) -> (logits: float32 [?, 10])"
    )
    graph = file.subgraphs[0]
    ends = {*graph.inputs, *graph.outputs}
    names = {tensor.index: tensor.name for tensor in graph.tensors}
    assert {names[index] for index in ends} == {"image", "logits"}
    assert {names[index] for index in set(names) - ends} == {""}
    assert file.metadata == {}
    assert file.description == graph.name == ""


def test_stripping_keeps_metadata_of_applications(files):
    model = schema.ModelT.InitFromPackedBuf(files["float"])
    model.metadata.append(schema.MetadataT(b"TFLITE_METADATA", len(model.buffers)))
    model.buffers.append(schema.BufferT(np.frombuffer(b"labels", np.uint8)))
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    content = bytes(builder.Output())
    assert "min_runtime_version" in tflite_file.read(content).metadata
    stripped = tflite_file.rewrite(content, strip_debug_info=True)
    assert tflite_file.read(stripped).metadata == {"TFLITE_METADATA": b"labels"}


@pytest.mark.parametrize("name", FILES)
def test_same_arguments_give_same_bytes(files, name):
    once = rewritten(files[name], strip_debug_info=True)
    assert rewritten(files[name], strip_debug_info=True) == once
    assert tflite_file.rewrite(once, strip_debug_info=True) == once


def data_offsets(content):
    """Where each buffer's data begins in the file."""
    model = schema.Model.GetRootAs(content)
    base = np.frombuffer(content, np.uint8).__array_interface__["data"][0]
    for index in range(model.BuffersLength()):
        data = model.Buffers(index).DataAsNumpy()
        if not isinstance(data, int):
            yield data.__array_interface__["data"][0] - base


def test_constants_are_aligned_as_the_schema_demands(files):
    for content in files.values():
        assert {offset % 16 for offset in data_offsets(rewritten(content))} == {0}


def test_generated_code_alone_does_not_align(files):
    model = schema.ModelT.InitFromPackedBuf(files["float"])
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    assert {offset % 16 for offset in data_offsets(bytes(builder.Output()))} != {0}


def test_unused_and_double_buffers_are_dropped(files):
    before, after = (
        schema.ModelT.InitFromPackedBuf(content).buffers
        for content in (files["float"], rewritten(files["float"]))
    )
    assert len(after) < len(before)
    contents = [item.data.tobytes() for item in after[1:]]
    assert after[0].data is None
    assert len(set(contents)) == len(contents)


def test_wrong_names_are_refused(files):
    def name(inputs, outputs):
        tflite_file.rewrite(
            files["float"],
            signature_key="run",
            input_names=inputs,
            output_names=outputs,
        )

    with pytest.raises(ValueError, match=r"1 different names.*input_names"):
        name(["a", "b"], ["c"])
    with pytest.raises(ValueError, match=r"1 different names.*output_names"):
        name(["a"], [])


def test_read_gives_graph_and_constants(files, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(files["float"])
    file = tflite_file.read(path)
    assert file.operator_counts() == {
        "CONV_2D": 1,
        "FULLY_CONNECTED": 1,
        "MAX_POOL_2D": 1,
        "RESHAPE": 2,
    }
    graph = file.subgraphs[0]
    by_name = {operator.name: operator for operator in graph.operators}
    data, weights, bias = by_name["FULLY_CONNECTED"].inputs
    assert not graph.tensors[data].is_constant
    np.testing.assert_array_equal(graph.tensors[weights].codes(), WEIGHTS.T)
    np.testing.assert_array_equal(graph.tensors[bias].values(), BIAS)
    assert by_name["CONV_2D"].options.strideW == 1
    assert graph.tensors[graph.inputs[0]].shape == (None, 28, 28)
    assert file.metadata["min_runtime_version"].rstrip(b"\0").count(b".") == 2


def test_quantized_constants_have_values_per_channel(files):
    graph = tflite_file.read(files["int8"]).subgraphs[0]
    conv = next(item for item in graph.operators if item.name == "CONV_2D")
    kernel = graph.tensors[conv.inputs[1]]
    assert kernel.type == "INT8"
    assert kernel.codes().dtype == np.int8
    assert len(kernel.scale) == len(kernel.zero_point) == 12
    wanted = KERNEL.transpose(3, 0, 1, 2)
    steps = np.array(kernel.scale).reshape(12, 1, 1, 1)
    assert np.all(abs(kernel.values() - wanted) <= steps * 0.501)
    # The control: a kernel with its channels turned round is far off.
    assert not np.all(abs(kernel.values()[::-1] - wanted) <= steps * 0.501)


def test_loop_bodies_are_subgraphs(files):
    file = tflite_file.read(files["loop"])
    assert len(file.subgraphs) == 3
    assert file.operator_counts()["WHILE"] == 1


def constant(kind, raw, shape, **fields):
    values = {"scale": (), "zero_point": (), "channel_axis": 0, "is_variable": False}
    return tflite_file.Tensor(
        index=0,
        name="t",
        type=kind,
        shape=shape,
        raw=None if raw is None else np.array(raw, np.uint8),
        **{**values, **fields},
    )


def test_four_bit_codes():
    # 7 and -8 in one byte, -1 in the next, whose upper half is padding.
    tensor = constant("INT4", [0x87, 0x0F], (3, 1))
    np.testing.assert_array_equal(tensor.codes(), np.int8([[7], [-8], [-1]]))
    assert tensor.dtype is None
    scaled = constant("INT4", [0x87, 0x0F], (3,), scale=(0.5,), zero_point=(0,))
    np.testing.assert_array_equal(scaled.values(), np.float32([3.5, -4, -0.5]))


def test_brain_floats():
    tensor = constant("BFLOAT16", [0x80, 0x3F, 0x20, 0xC0], (2,))
    np.testing.assert_array_equal(tensor.values(), np.float32([1, -2.5]))


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (constant("FLOAT32", None, (1,)), "not constant"),
        (constant("FLOAT32", [0] * 4, (9,), is_sparse=True), "sparse"),
        (constant("STRING", [0] * 4, (1,)), "numeric"),
        (constant("FLOAT8_E5M2", [0], (1,)), "numeric"),
    ],
)
def test_constants_without_an_array_are_refused(tensor, why):
    with pytest.raises(TfoptError, match=why):
        tensor.codes()


def test_sparse_weights_are_marked(files):
    graph = tflite_file.read(files["sparse"]).subgraphs[0]
    assert [tensor.is_sparse for tensor in graph.tensors].count(True) == 1


def test_int8_network_has_no_float_operator(files):
    file = tflite_file.read(files["int8"])
    assert tflite_file.float_operators(file) == []
    assert file.operator_counts()["QUANTIZE"] == 1
    assert file.operator_counts()["DEQUANTIZE"] == 1


def graph_of(*operators, inputs=(0,), outputs=(3,), types=()):
    tensors = tuple(
        dataclasses.replace(constant(kind, None, (1,)), index=index, name=f"t{index}")
        for index, kind in enumerate(types)
    )
    named = tuple(
        tflite_file.Operator(index, name, False, (source,), (target,), None)
        for index, (name, source, target) in enumerate(operators)
    )
    graph = tflite_file.Subgraph("", inputs, outputs, tensors, named)
    return tflite_file.TfliteFile((graph,), (), {}, "")


@pytest.mark.parametrize(
    ("middle", "types", "found"),
    [
        # A view of the input may come before its conversion.
        (("QUANTIZE", 1, 2), ("FLOAT32", "FLOAT32", "INT8", "INT8"), []),
        (
            ("RELU", 1, 2),
            ("FLOAT32", "FLOAT32", "FLOAT32", "INT8"),
            ["RELU", "QUANTIZE"],
        ),
        (
            ("DEQUANTIZE", 1, 2),
            ("INT8", "INT8", "FLOAT32", "INT8"),
            ["DEQUANTIZE", "QUANTIZE"],
        ),
        (("SHAPE", 1, 2), ("FLOAT32", "FLOAT32", "INT32", "INT8"), []),
    ],
)
def test_conversions_count_only_inside(middle, types, found):
    file = graph_of(("RESHAPE", 0, 1), middle, ("QUANTIZE", 2, 3), types=types)
    assert [item.operator.name for item in tflite_file.float_operators(file)] == found


def test_float_operators_are_named_with_their_tensors(files):
    found = tflite_file.float_operators(tflite_file.read(files["dynamic"]))
    names = [item.operator.name for item in found]
    assert "FULLY_CONNECTED" in names
    assert "CONV_2D" in names
    text = str(found[names.index("FULLY_CONNECTED")])
    assert text.startswith("FULLY_CONNECTED (")
    assert "float32 [?, 2028]" in text


def test_float_operators_inside_loops_count():
    def inner(x):
        return tf.quantization.fake_quant_with_min_max_args(x, 0, 1)

    def body(step, x):
        return step + 1, tf.sin(x)

    def function(image):
        x = inner(image[:, :, 0])
        x = tf.while_loop(lambda step, x: step < 3, body, (tf.constant(0), x))[1]
        return inner(x)

    file = tflite_file.read(lower(function, tf.lite.Optimize.DEFAULT))
    found = tflite_file.float_operators(file)
    assert any(item.operator.name == "SIN" and item.subgraph > 0 for item in found)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(TfoptError, match=r"No such file.*none\.tflite"):
        tflite_file.read(tmp_path / "none.tflite")
    for content in (b"", b"PK\x03\x04 something else"):
        with pytest.raises(TfoptError, match="does not begin as"):
            tflite_file.read(content)


@given(share=st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_cut_off_files_are_errors_of_ours(files, share):
    content = files["int8"][: int(share * len(files["int8"]))]
    if share > 0.99:
        return  # only the end of a buffer's padding may be missing
    with pytest.raises(TfoptError) as raised:
        tflite_file.read(content)
    assert "\n" not in str(raised.value)


def test_weights_behind_the_flatbuffer_are_refused(files):
    model = schema.ModelT.InitFromPackedBuf(files["float"])
    model.buffers[2].offset, model.buffers[2].size = 1 << 31, 10
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    with pytest.raises(TfoptError, match="below 2 GB"):
        tflite_file.rewrite(bytes(builder.Output()))


def damaged(content, change):
    """Returns the content after a change of the unpacked model."""
    model = schema.ModelT.InitFromPackedBuf(content)
    change(model)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def first(model):
    return model.subgraphs[0]


def write_to_constant(model):
    numbers = [tensor.buffer for tensor in first(model).tensors]
    constant = next(n for n in numbers if model.buffers[n].data is not None)
    result = first(model).operators[0].outputs[0]
    first(model).tensors[result].buffer = constant


def call_in_a_circle(model):
    for operator in model.subgraphs[1].operators:
        options = schema.WhileOptionsT(condSubgraphIndex=0, bodySubgraphIndex=0)
        operator.builtinOptions = options
        operator.builtinOptionsType = schema.BuiltinOptions.WhileOptions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(first(m).operators[0], "opcodeIndex", 99), "code 99"),
        (lambda m: setattr(first(m).operators[0], "inputs", [77]), "tensor 77"),
        (lambda m: setattr(first(m).tensors[0], "buffer", 999), "buffer 999"),
        (lambda m: setattr(first(m), "outputs", np.int32([-7])), "tensor -7"),
        (lambda m: setattr(m, "subgraphs", []), "holds no graph"),
        (write_to_constant, "constant"),
    ],
)
def test_numbers_of_what_is_not_there_are_named(files, tmp_path, change, message):
    # The interpreter follows these into a crash.
    path = tmp_path / "damaged.tflite"
    path.write_bytes(damaged(files["float"], change))
    for read in (tflite_file.read, tfopt.Runner):
        with pytest.raises(TfoptError, match=f"{message}.*damaged.tflite"):
            read(path)


def test_zero_points_that_are_no_values_are_refused(files, tmp_path):
    def change(model):
        tensors = [t for t in first(model).tensors if t.type == schema.TensorType.INT8]
        quantized = next(t for t in tensors if sizes(t) == 1)
        quantized.quantization.zeroPoint = np.int64([1 << 16])

    def sizes(tensor):
        return 0 if tensor.quantization is None else np.size(tensor.quantization.scale)

    path = tmp_path / "damaged.tflite"
    path.write_bytes(damaged(files["int8"], change))
    with pytest.raises(TfoptError, match=r"no value of its type.*damaged\.tflite"):
        tfopt.Runner(path)


def test_subgraphs_that_call_each_other_in_a_circle_are_refused():
    content = lower(
        lambda x: tf.while_loop(lambda x: x[0, 0, 0] < 3, lambda x: (x + 1,), (x,))
    )
    with pytest.raises(TfoptError, match="in a circle"):
        tflite_file.read(damaged(content, call_in_a_circle))


def test_tables_that_are_shared_again_and_again_are_refused(files):
    # A few bytes for each reference, and thousands of objects for each in memory.
    count = 5000
    model = schema.ModelT.InitFromPackedBuf(files["float"])
    builder = flatbuffers.Builder()
    place = model.subgraphs[0].Pack(builder)
    schema.ModelStartSubgraphsVector(builder, count)
    for _ in range(count):
        builder.PrependUOffsetTRelative(place)
    subgraphs = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, subgraphs)
    builder.Finish(schema.ModelEnd(builder), file_identifier=b"TFL3")
    with pytest.raises(TfoptError, match="again and again"):
        tflite_file.read(bytes(builder.Output()))


def test_the_tables_of_the_schema_are_those_of_the_installed_one():
    sizes = {"Bool": 1, "Int8": 1, "Uint8": 1, "Byte": 1, "Int16": 2, "Uint16": 2}
    sizes |= {"Int32": 4, "Uint32": 4, "Float32": 4, "Int64": 8, "Uint64": 8}
    found = re.findall(
        r"^def (\w+)\(builder, \w+\):\n    builder\.Prepend(\w+?)Slot\((\d+),",
        inspect.getsource(schema),
        re.MULTILINE,
    )
    assert len(found) > 300
    for function, kind, slot in found:
        owners = [name for name in tables.TABLES if function.startswith(f"{name}Add")]
        word = tables.TABLES[max(owners, key=len)].split()[int(slot)]
        if kind == "UOffsetTRelative":
            assert not word.isdigit(), function
        else:
            assert word == str(sizes[kind]), function
    for name, members in tables.UNIONS.items():
        numbers = {value: key for key, value in vars(getattr(schema, name)).items()}
        assert members.split() == [numbers[i] for i in range(len(members.split()))]
