"""Checkpoints and graph messages without TensorFlow, against TensorFlow itself."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from hypothesis import strategies as st

from tfopt.savedmodel import (
    crc32c,
    dtypes,
    extents,
    protos,
    reader,
    slices,
    table,
    wire,
)
from tfopt.savedmodel.bundle import BundleReader
from tfopt.savedmodel.bundle_writing import BundleWriter
from tfopt.savedmodel.extents import Extent, OutputFile
from tfopt.types import TfoptError

ROOT = pathlib.Path(__file__).parent.parent
MODEL = ROOT / "testdata/basic_pitch/saved_model"


def save(prefix, tensors, parts=None):
    """Writes a checkpoint with TensorFlow."""
    names = list(tensors)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=parts or [""] * len(names),
        tensors=[tensors[name] for name in names],
    )


def restore(prefix, name, dtype):
    """Reads one tensor with TensorFlow, quantized types as plain integers."""
    (tensor,) = tf.raw_ops.RestoreV2(
        prefix=str(prefix), tensor_names=[name], shape_and_slices=[""], dtypes=[dtype]
    )
    return plain(tensor)


def plain(tensor):
    if tensor.dtype.is_quantized:
        tensor = tf.bitcast(tensor, tensor.dtype.name[1:])
    return tensor.numpy()


def all_types():
    """Returns a tensor of every type that TensorFlow can save."""
    values = np.random.default_rng(0).integers(0, 2, (3, 5))
    found = {}
    for number, name in protos.data_types().items():
        kind = name.removeprefix("DT_").lower()
        if not 0 < number < dtypes.REF_OFFSET or kind in (
            *("string", "resource", "variant"),
            # Known to the schema, but not to this version's Python.
            *("int2", "uint2", "float4_e2m1fn"),
        ):
            continue
        dtype = tf.as_dtype(number)
        if dtype.is_quantized:
            integers = tf.constant(values.astype(dtypes.to_numpy(number)))
            found[kind] = tf.bitcast(integers, dtype)
        else:
            found[kind] = tf.constant(values.astype(dtype.as_numpy_dtype))
    assert len(found) == 27
    return found


TENSORS = {
    **all_types(),
    "strings": tf.constant([[b"", b"abc"], [b"x" * 1000, "ü".encode()]]),
    "no_strings": tf.constant([], tf.string),
    "scalar": tf.constant(3.5),
    "empty": tf.zeros([0, 4]),
    "large": tf.random.stateless_normal([300, 1000], [1, 2]),
    **{f"layer_{i}/kernel": tf.constant(float(i)) for i in range(200)},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Prefix of a checkpoint by TensorFlow with `TENSORS`, in three data files."""
    folder = tmp_path_factory.mktemp("checkpoint")
    names = list(TENSORS)
    for shard in range(3):
        own = {name: TENSORS[name] for name in names[shard::3]}
        save(folder / f"shard{shard}", own)
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[str(folder / f"shard{shard}") for shard in range(3)],
        destination_prefix=str(folder / "all"),
    )
    return folder / "all"


@pytest.fixture
def copy(checkpoint, tmp_path):
    """The same, to be damaged."""
    for file in checkpoint.parent.glob("all.*"):
        shutil.copy(file, tmp_path / file.name)
    return tmp_path / "all"


def test_reading_what_tensorflow_wrote(checkpoint):
    found = BundleReader(checkpoint)
    assert found.keys() == sorted(TENSORS)
    assert found.num_shards == 3
    for name, tensor in TENSORS.items():
        expected = plain(tensor)
        array = found.read(name)
        assert array.shape == expected.shape
        assert array.tolist() == expected.tolist(), name
        entry = found.entry(name)
        assert entry.dtype == tensor.dtype.as_datatype_enum
        assert entry.shape == tuple(tensor.shape)
        assert tf.as_dtype(dtypes.name_of(entry.dtype)) == tensor.dtype
    found.verify()


@pytest.mark.parametrize("how", ["copy", "add"])
def test_tensorflow_reads_what_was_written(checkpoint, how, tmp_path):
    source = BundleReader(checkpoint)
    with BundleWriter(tmp_path / "new") as writer:
        for name in reversed(TENSORS):
            if how == "copy":
                writer.copy(source, name)
            else:
                writer.add(name, source.read(name), dtype=source.entry(name).dtype)
    for name, tensor in TENSORS.items():
        array = restore(tmp_path / "new", name, tensor.dtype)
        assert array.tolist() == plain(tensor).tolist(), name
    listed = tf.train.load_checkpoint(str(tmp_path / "new"))
    assert set(listed.get_variable_to_shape_map()) == set(TENSORS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "new.data-00000-of-00001",
        "new.index",
    ]


def test_types_of_arrays(tmp_path):
    values = {
        "half": np.float16([1.5]),
        "int": 3,
        "bool": [True, False],
        "text": "abc",
        "big_endian": np.arange(3, dtype=">i4"),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }
    with BundleWriter(tmp_path / "x") as writer:
        for name, value in values.items():
            writer.add(name, value)
    found = tf.train.load_checkpoint(str(tmp_path / "x"))
    assert found.get_tensor("half").dtype == np.float16
    assert found.get_tensor("int").dtype == np.int64
    assert found.get_tensor("bool").tolist() == [True, False]
    assert found.get_tensor("text") == b"abc"
    assert found.get_tensor("big_endian").tolist() == [0, 1, 2]
    assert found.get_tensor("transposed").tolist() == values["transposed"].tolist()


def write(prefix, *tensors):
    with BundleWriter(prefix) as writer:
        for name, value in tensors:
            writer.add(name, value)


def test_writing_twice_or_failing(tmp_path):
    with pytest.raises(ValueError, match=r"has this tensor already.*'a'"):
        write(tmp_path / "x", ("a", 1), ("a", 2))
    assert not list(tmp_path.iterdir())
    with pytest.raises(TfoptError, match=r"cannot store this type.*datetime64"):
        write(tmp_path / "x", ("a", np.datetime64("2020-01-01")))


def test_a_missing_tensor_lists_what_exists(checkpoint):
    with pytest.raises(TfoptError, match=r"bfloat16, bool,.*key='no/such'"):
        BundleReader(checkpoint).read("no/such")


# ------------------------------------------------------------------- partitioned


FULL = np.arange(60, dtype=np.float32).reshape(10, 6)
PARTITIONS = {
    "rows": ["10 6 0,3:-", "10 6 3,7:-"],
    "uneven": ["10 6 0,9:0,6", "10 6 9,1:-"],
    "columns": ["10 6 0,10:0,2", "10 6 -:2,4"],
    "tiles": ["10 6 0,3:0,6", "10 6 3,1:0,3", "10 6 3,1:3,3", "10 6 4,6:-"],
    "far": ["10 6 0,10:0,6"],
}


def cut(text):
    _, part = slices.parse(text)
    return FULL[tuple(slice(start, start + length) for start, length in part)], part


@pytest.mark.parametrize("texts", PARTITIONS.values(), ids=PARTITIONS)
def test_slices_of_partitioned_variables(texts, tmp_path):
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "tf"),
        tensor_names=["w/ü"] * len(texts),
        shape_and_slices=texts,
        tensors=[cut(text)[0] for text in texts],
    )
    found = BundleReader(tmp_path / "tf")
    assert found.keys() == ["w/ü"]
    assert found.read("w/ü").tolist() == FULL.tolist()
    for text in texts:
        expected, part = cut(text)
        assert found.read("w/ü", part).tolist() == expected.tolist()
        assert joined(found.extents("w/ü", part)) == expected.tobytes()
    for part in (((2, 4), (1, 3)), ((2, 4), (0, 6)), ((3, 1), (2, 2))):
        (row, rows), (column, columns) = part
        expected = FULL[row : row + rows, column : column + columns]
        assert found.read("w/ü", part).tolist() == expected.tolist()
        ranges = found.extents("w/ü", part)
        assert ranges is None or joined(ranges) == expected.tobytes()
    with BundleWriter(tmp_path / "copied") as writer:
        writer.copy(found, "w/ü", new_key="renamed")
    with BundleWriter(tmp_path / "added") as writer:
        for text in texts:
            writer.add_part("renamed", FULL.shape, cut(text)[1], cut(text)[0])
    for name in ("copied", "added"):
        array = restore(tmp_path / name, "renamed", tf.float32)
        assert array.tolist() == FULL.tolist()


def joined(ranges):
    return b"".join(chunk for extent in ranges for chunk in extents.read(extent))


def test_rows_are_byte_ranges_and_columns_are_not(tmp_path):
    save(tmp_path / "whole", {"w": tf.constant(FULL)})
    found = BundleReader(tmp_path / "whole")
    assert joined(found.extents("w", ((2, 3), (0, 6)))) == FULL[2:5].tobytes()
    assert joined(found.extents("w", ((2, 1), (1, 3)))) == FULL[2, 1:4].tobytes()
    assert found.extents("w", ((2, 3), (0, 5))) is None


def test_a_missing_slice(tmp_path):
    parts = PARTITIONS["rows"]
    with BundleWriter(tmp_path / "x") as writer:
        writer.add_part("w", FULL.shape, cut(parts[1])[1], cut(parts[1])[0])
    with pytest.raises(TfoptError, match=r"do not cover the variable.*'w'"):
        BundleReader(tmp_path / "x").read("w")


integers = st.integers(-(2**63), 2**63 - 1)


@hypothesis.given(integers, integers)
@hypothesis.settings(deadline=None)
def test_encoded_integers_compare_as_integers(first, second):
    encoded = [slices._signed(value) for value in (first, second)]
    assert (encoded[0] < encoded[1]) == (first < second)
    assert (encoded[0] == encoded[1]) == (first == second)


@pytest.mark.parametrize("text", ["10 4", "10 x 0,1:-", "10 4 0,1", "10 4 0:-"])
def test_slice_text_that_is_none(text):
    with pytest.raises(TfoptError, match="Received"):
        slices.parse(text)


# ------------------------------------------------------------------------ damage


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)


def test_every_flipped_bit_of_the_index_is_noticed(copy):
    path = copy.with_name("all.index")
    intact = path.read_bytes()
    expected = table.read_table(path)
    # The padding of the footer means nothing; all else does.
    for position in range(0, len(intact) - 1, 97):
        flip(path, position)
        message = ""
        try:
            assert table.read_table(path) == expected
        except TfoptError as error:
            message = str(error)
        assert str(path) in message or position >= len(intact) - 48
        assert not message or "damaged" in message or "compressed" in message
        path.write_bytes(intact)


@pytest.mark.parametrize("size", [0, 20, 47, 48, 1000, -1])
def test_a_truncated_index(copy, size):
    path = copy.with_name("all.index")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(TfoptError, match=r"index is damaged.*all\.index"):
        BundleReader(copy)


def test_a_missing_index(copy):
    copy.with_name("all.index").unlink()
    with pytest.raises(TfoptError, match=r"Cannot read.*all\.index \(No such file"):
        BundleReader(copy)


def copy_tensor(source, name, prefix):
    with BundleWriter(prefix) as writer:
        writer.copy(source, name)


@pytest.mark.parametrize("name", ["large", "strings", "int8", "scalar"])
def test_a_flipped_bit_of_a_tensor(copy, name, tmp_path):
    found = BundleReader(copy)
    (extent,) = found.raw_extents(name)
    flip(pathlib.Path(extent.path), extent.offset + extent.size // 2)
    message = rf"crc32c mismatch for tensor '{name}'.*all\.data-0000\d-of-00003"
    with pytest.raises(TfoptError, match=message):
        found.read(name)
    with pytest.raises(TfoptError, match=message):
        found.verify([name])
    with pytest.raises(TfoptError, match=message):
        copy_tensor(found, name, tmp_path / "new")
    assert not list(tmp_path.glob("new*"))
    found.verify(set(TENSORS) - {name})


def test_a_flipped_bit_beside_the_wanted_rows(tmp_path):
    save(tmp_path / "x", {"w": tf.constant(FULL)})
    found = BundleReader(tmp_path / "x")
    flip(pathlib.Path(found.shard_path(0)), 0)
    # A part has no checksum of its own, so all of it is checked.
    with pytest.raises(TfoptError, match="crc32c mismatch for tensor 'w'"):
        found.extents("w", ((5, 2), (0, 6)))


@pytest.mark.parametrize("name", ["large", "strings"])
def test_a_truncated_shard(copy, name):
    found = BundleReader(copy)
    (extent,) = found.raw_extents(name)
    os.truncate(extent.path, extent.offset + extent.size - 1)
    with pytest.raises(TfoptError, match=rf"truncated: tensor '{name}'.*all\.data"):
        found.read(name)


def test_a_missing_shard(copy):
    found = BundleReader(copy)
    os.unlink(found.shard_path(1))
    with pytest.raises(TfoptError, match=r"No such file.*all\.data-00001-of-00003"):
        found.verify()


def test_the_checks_pass_without_damage(copy):
    BundleReader(copy).verify()


def test_an_index_that_contradicts_itself(copy):
    path = copy.with_name("all.index")
    pairs = table.read_table(path)
    entry = protos.message_class("BundleEntryProto").FromString(pairs[b"large"])
    entry.shape.dim[0].size += 1
    table.write_table(path, pairs | {b"large": entry.SerializeToString()})
    with pytest.raises(TfoptError, match=r"contradicts itself.*1204000 bytes"):
        BundleReader(copy).read("large")


# ------------------------------------------------------------------ tables, crc32c


@hypothesis.given(
    st.dictionaries(st.binary(max_size=40), st.binary(max_size=60), max_size=200)
)
@hypothesis.settings(deadline=None, max_examples=50)
def test_tables_round_trip(tmp_path_factory, pairs):
    path = tmp_path_factory.mktemp("table") / "x"
    table.write_table(path, pairs)
    assert list(table.read_table(path).items()) == sorted(pairs.items())


def test_a_table_of_many_blocks(tmp_path):
    pairs = {f"key/{i:06d}".encode(): bytes(50) for i in range(20_000)}
    table.write_table(tmp_path / "x", pairs)
    assert (tmp_path / "x").stat().st_size > 4 * table._BLOCK_BYTES
    assert table.read_table(tmp_path / "x") == pairs


def test_a_checkpoint_of_many_tensors(tmp_path):
    with BundleWriter(tmp_path / "x") as writer:
        for i in range(5000):
            writer.add(f"a/rather/long/prefix/of/layer_{i}/kernel", np.float32(i))
    found = tf.train.load_checkpoint(str(tmp_path / "x"))
    for i in (0, 7, 1234, 4999):
        assert found.get_tensor(f"a/rather/long/prefix/of/layer_{i}/kernel") == i


def test_crc32c_is_the_known_one():
    # RFC 3720, appendix B.4.
    assert crc32c.extend(0, bytes(32)) == 0x8A9136AA
    assert crc32c.extend(crc32c.extend(0, bytes(10)), bytes(22)) == 0x8A9136AA


@hypothesis.given(st.integers(0, 2**32 - 1))
def test_masking_is_undone(crc):
    assert crc32c.unmask(crc32c.mask(crc)) == crc


# ------------------------------------------------------------------------- files


@pytest.mark.parametrize("kernel_copy", [True, False])
@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("size", [0, 1, 1 << 16, (1 << 16) + 1, (33 << 20) + 7])
def test_copying_between_files(tmp_path, size, kernel_copy, checksums):
    content = np.random.default_rng(size).bytes(size)
    (tmp_path / "in").write_bytes(b"head" + content + b"tail")
    crc = crc32c.mask(crc32c.extend(0, content))
    extent = Extent(str(tmp_path / "in"), 4, size, "x", crc)
    with OutputFile(tmp_path / "out", checksums=checksums) as out:
        out._kernel_copy = kernel_copy
        out.write(b"before")
        out.copy(extent)
        out.write(b"after")
        assert out.position == 11 + size
    assert (tmp_path / "out").read_bytes() == b"before" + content + b"after"
    assert extents.checksum(extent) == crc
    os.truncate(tmp_path / "in", 3 + size)
    with (
        pytest.raises(TfoptError, match="truncated: x ends at byte"),
        OutputFile(tmp_path / "out", checksums=checksums) as out,
    ):
        out.copy(dataclasses.replace(extent, size=size + 1))


def test_copying_to_where_the_kernel_cannot(tmp_path):
    if not os.path.isdir("/dev/shm"):
        pytest.skip("needs a second file system")
    (tmp_path / "in").write_bytes(bytes(range(256)) * 5000)
    extent = Extent(str(tmp_path / "in"), 0, 256 * 5000, "x")
    target = pathlib.Path("/dev/shm") / f"tfopt-test-{os.getpid()}"
    try:
        with OutputFile(target) as out:
            out.copy(extent)
        assert target.read_bytes() == (tmp_path / "in").read_bytes()
    finally:
        target.unlink()


# ---------------------------------------------------------------------- messages


def test_no_tensorflow_is_imported():
    done = run(
        "import sys\n"
        # Importing it would fail; its files are still found.
        "sys.modules['tensorflow'] = None\n"
        "from tfopt.savedmodel import reader\n"
        "model = reader.read_saved_model(sys.argv[1])\n"
        "print(len(model.meta_graphs[0].graph_def.node))\n"
        "print(len(reader.open_variables(sys.argv[1]).keys()))\n",
        MODEL,
    )
    keys = tf.train.load_checkpoint(f"{MODEL}/variables/variables")
    count = len(keys.get_variable_to_shape_map())
    assert (done.stdout.split(), done.stderr) == (["156", str(count)], "")


def test_without_an_installed_tensorflow_the_error_says_so():
    done = run(
        "import sys, importlib.machinery\n"
        "sys.modules['tensorflow'] = None\n"
        "from tfopt.savedmodel import protos\n"
        "importlib.machinery.PathFinder.find_spec = lambda *_: None\n"
        "protos.message_class('GraphDef')\n"
    )
    assert "TfoptError: tensorflow is not installed" in done.stderr


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_messages_coexist_with_those_of_tensorflow():
    ours = protos.message_class("GraphDef")
    theirs = tf.compat.v1.GraphDef
    assert ours is not theirs
    graph = theirs()
    graph.node.add(name="x", op="NoOp").attr["T"].type = 1
    copied = ours.FromString(graph.SerializeToString())
    assert copied.node[0].attr["T"].type == 1
    assert copied.SerializeToString() == graph.SerializeToString()
    with pytest.raises(TfoptError, match=r"no such message.*'Nonsense'"):
        protos.message_class("Nonsense")


def constant_tree(name, content, path):
    """A Const node whose bytes are in a file."""
    path.write_bytes(content)
    node = protos.message_class("NodeDef")(name=name, op="Const")
    node.attr["dtype"].type = dtypes.FLOAT
    tensor = protos.message_class("TensorProto")(dtype=dtypes.FLOAT)
    tensor.tensor_shape.dim.add(size=len(content) // 4)
    entry = protos.map_entry_class(node, "attr")(key="value")
    extent = Extent(str(path), 0, len(content), name)
    inner = wire.Tree(tensor, [("tensor_content", wire.FileBytes((extent,)))])
    value = wire.Tree(protos.message_class("AttrValue")(), [("tensor", inner)])
    return wire.Tree(node, [("attr", wire.Tree(entry, [("value", value)]))])


@pytest.fixture
def graph_tree(tmp_path):
    """A graph with constants outside and inside a function, and their values."""
    values = {
        name: np.random.default_rng(size).standard_normal(size).astype(np.float32)
        for name, size in {"small": 3, "large": 40_000, "inside": 30_000}.items()
    }
    nodes = {
        name: constant_tree(name, value.tobytes(), tmp_path / name)
        for name, value in values.items()
    }
    other = protos.message_class("NodeDef")(name="y", op="Identity", input=["large"])
    other.attr["T"].type = dtypes.FLOAT
    function = protos.message_class("FunctionDef")()
    function.signature.name = "f"
    library = wire.Tree(
        protos.message_class("FunctionDefLibrary")(),
        [("function", wire.Tree(function, [("node_def", nodes["inside"])]))],
    )
    graph = protos.message_class("GraphDef")()
    graph.versions.producer = 1987
    children = [("node", nodes["small"]), ("node", nodes["large"])]
    children += [("node", wire.Tree(other)), ("library", library)]
    return wire.Tree(graph, children), values


def check_graph(graph, values):
    assert graph.versions.producer == 1987
    assert [node.name for node in graph.node] == ["small", "large", "y"]
    (inside,) = graph.library.function[0].node_def
    for node in (*graph.node[:2], inside):
        array = tf.make_ndarray(node.attr["value"].tensor)
        assert array.tobytes() == values[node.name].tobytes()


def test_a_streamed_graph_is_what_tensorflow_reads(graph_tree, tmp_path):
    tree, values = graph_tree
    with OutputFile(tmp_path / "graph.pb") as out:
        tree.write(out)
    content = (tmp_path / "graph.pb").read_bytes()
    assert len(content) == tree.size
    check_graph(tf.compat.v1.GraphDef.FromString(content), values)


def test_a_streamed_text_is_what_tensorflow_reads(graph_tree, tmp_path):
    tree, values = graph_tree
    with OutputFile(tmp_path / "graph.pbtxt") as out:
        tree.write_text(out)
    text = (tmp_path / "graph.pbtxt").read_text(encoding="utf-8")
    graph = text_format.Parse(text, tf.compat.v1.GraphDef())
    check_graph(graph, values)
    assert text_format.MessageToString(graph).startswith('node {\n  name: "small"')


def test_a_skeleton_has_all_but_large_tensors(graph_tree, tmp_path):
    tree, values = graph_tree
    path = tmp_path / "graph.pb"
    with OutputFile(path) as out:
        tree.write(out)
    skeleton = wire.read_skeleton(path, "GraphDef")
    assert len(skeleton.data) < 1000
    graph = protos.message_class("GraphDef").FromString(skeleton.data)
    assert [node.name for node in graph.node] == ["small", "large", "y"]
    assert len(graph.node[0].attr["value"].tensor.tensor_content) == 12
    assert not graph.node[1].attr["value"].tensor.tensor_content
    names = []
    for content in skeleton.contents:
        node = protos.message_class("NodeDef").FromString(content.node)
        function = protos.message_class("OpDef").FromString(content.function)
        names.append((function.name, node.name))
        assert joined([content.extent]) == values[node.name].tobytes()
    assert names == [("", "large"), ("f", "inside")]


def test_skeletons_of_what_is_no_graph(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff" * 100)
    with pytest.raises(TfoptError, match="Cannot read the file as a GraphDef"):
        wire.read_skeleton(tmp_path / "x", "GraphDef")
    (tmp_path / "x").write_bytes(b"")
    assert wire.read_skeleton(tmp_path / "x", "GraphDef").data == b""


# ------------------------------------------------------------------ saved models


@pytest.fixture(scope="module")
def saved_model():
    return reader.read_saved_model(MODEL)


def test_a_signature(saved_model):
    meta_graph = reader.select_meta_graph(saved_model, None, MODEL)
    signatures = reader.select_signatures(meta_graph, None, "x")
    assert list(signatures) == ["serving_default"]
    assert str(reader.signature_of("s", signatures["serving_default"])) == (
        "s(input_2: float32 [?, 43844, 1]) -> (contour: float32 [?, 172, 264], "
        "note: float32 [?, 172, 88], onset: float32 [?, 172, 88])"
    )


def test_wrong_tags_and_signatures_list_what_exists(saved_model):
    with pytest.raises(TfoptError, match=r"one of \{serve\}.*tags='gpu,serve'"):
        reader.select_meta_graph(saved_model, ["serve", "gpu"], MODEL)
    meta_graph = reader.select_meta_graph(saved_model, ["serve"], MODEL)
    with pytest.raises(TfoptError, match=r"\['serving_default'\].*'predict' in here"):
        reader.select_signatures(meta_graph, ["predict"], "here")


def test_what_is_no_saved_model(tmp_path):
    with pytest.raises(TfoptError, match="Not a SavedModel"):
        reader.read_saved_model(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"nonsense")
    with pytest.raises(TfoptError, match="Cannot read the file as a SavedModel"):
        reader.read_saved_model(tmp_path)
    (tmp_path / "saved_model.pb").unlink()
    (tmp_path / "saved_model.pbtxt").write_text("meta_graphs {")
    with pytest.raises(TfoptError, match="Cannot read the file as a SavedModel"):
        reader.read_saved_model(tmp_path)
    (tmp_path / "saved_model.pbtxt").write_text("saved_model_schema_version: 1")
    assert reader.read_saved_model(tmp_path).saved_model_schema_version == 1


def test_shards_without_an_index(tmp_path):
    assert reader.open_variables(tmp_path) is None
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables/variables.data-00000-of-00001").write_bytes(b"x")
    with pytest.raises(TfoptError, match=r"Cannot read.*variables\.index"):
        reader.open_variables(tmp_path)
