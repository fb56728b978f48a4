"""Runner: what goes in and comes out, for every kind of model."""

import asyncio
import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import runner_samples as samples

import tfopt
from tfopt import affine
from tfopt.runner import Runner, _tuning
from tfopt.runner._model_file import read_model_file
from tfopt.types import Artifact, RunError, TfoptError

ROOT = pathlib.Path(__file__).parent.parent


def rows(count, width=8, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def run(model, inputs, **options):
    with Runner(model, **options) as runner:
        return runner.run(inputs)


def is_close(result, x, weights=samples.WEIGHTS):
    return np.allclose(result, x @ weights, rtol=1e-5, atol=1e-5)


# Results


@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000, None, "auto"])
def test_equals_numpy(batch_size):
    x = rows(333)
    result = run(samples.dense(), x, batch_size=batch_size)
    assert result.dtype == np.float32
    assert is_close(result, x)
    changed = samples.WEIGHTS.copy()
    changed[3, 2] += 1e-3
    assert not is_close(result, x, changed)


@pytest.mark.parametrize("batch_size", [1, 7, 64, "auto"])
@pytest.mark.parametrize("sample", ["dense", "fixed", "baked"])
def test_workers_do_not_change_a_bit(sample, batch_size):
    if sample != "dense":
        batch_size = "auto"
    x = rows(500)
    model = getattr(samples, sample)()
    expected = run(model, x, num_workers=1, batch_size=batch_size)
    for num_workers in (2, 3, 5):
        result = run(model, x, num_workers=num_workers, batch_size=batch_size)
        assert result.tobytes() == expected.tobytes()


@pytest.mark.parametrize("sample", ["dense", "fixed", "baked", "computed_shape"])
def test_tails_of_every_size(sample):
    x = rows(13)
    x = x.reshape(13, 2, 4) if sample == "computed_shape" else x
    size = {"fixed": 4, "baked": 1}.get(sample, 4)
    with Runner(getattr(samples, sample)(), batch_size=size, num_workers=2) as runner:
        assert runner.batch_size == size
        for count in range(14):
            result = runner.run(x[:count])
            assert result.shape == (count, 4)
            assert is_close(result, x[:count].reshape(count, 8))


def test_padding_does_not_show():
    x = rows(6)
    x[4:] = np.nan  # the tail is padded with its last row
    result = run(samples.fixed(), x)
    assert is_close(result[:4], x[:4])
    assert np.isnan(result[4:]).all()


def test_nan_stays_in_its_row():
    x = rows(40)
    x[17, 3] = np.nan
    result = run(samples.dense(), x, batch_size=8)
    assert np.isnan(result[17]).all()
    assert not np.isnan(np.delete(result, 17, 0)).any()


def test_results_are_new_arrays():
    with Runner(samples.dense(), num_workers=1) as runner:
        x = rows(5)
        first = runner.run(x)
        kept = first.copy()
        runner.run(x + 1)
        assert np.array_equal(first, kept)
        first[:] = 0
        assert np.array_equal(runner(x), kept)


def test_takes_any_memory_layout():
    x = rows(60)
    expected = run(samples.dense(), x[::2].copy())
    read_only = x[::2].copy()
    read_only.flags.writeable = False
    for same in (x[::2], np.asfortranarray(x[::2]), read_only):
        assert np.array_equal(run(samples.dense(), same), expected)


def test_tensorflow_tensors_are_arrays():
    import tensorflow as tf

    x = rows(3)
    assert is_close(run(samples.dense(), tf.constant(x)), x)


# Several inputs and outputs


def test_inputs_by_name_or_position_outputs_by_name():
    b, a = rows(50, 3), rows(50, 3, seed=1)
    with Runner(samples.two_by_two(), batch_size=8) as runner:
        names = [info.name for info in runner.signature.outputs]
        for inputs in ({"a": a, "b": b}, [b, a], (b, a)):
            result = runner.run(inputs)
            assert list(result) == names
            assert np.allclose(result[names[0]], b + 2 * a, atol=1e-6)
            assert np.allclose(result[names[1]], b * a, atol=1e-6)


def test_an_input_without_rows_goes_to_every_batch():
    x = rows(50, 3)
    for limit in (0.25, np.float32(0.25), np.array(0.25, np.float32)):
        result = run(samples.above(), {"x": x, "limit": limit}, batch_size=8)
        assert np.array_equal(result, x > 0.25)
    assert np.array_equal(run(samples.above(), [x, 1]), x > 1)
    for limit in (True, np.float64(0.25), "1"):
        with pytest.raises(ValueError, match=r"'limit' has the wrong dtype"):
            run(samples.above(), [x, limit])


def test_numbers_are_not_rounded():
    with pytest.raises(ValueError, match=r"'index' has the wrong dtype.*float64"):
        run(samples.look_up(), 1.5)


def test_a_table_goes_to_every_batch():
    table = rows(10, 3)
    index = np.random.default_rng(0).integers(0, 10, 100).astype(np.int32)
    # As long as the index, too: that the sizes agree says nothing.
    for count in (100, 10):
        result = run(samples.look_up_in(), [table, index[:count]], batch_size=4)
        assert np.array_equal(result, table[index[:count]])


def test_rows_have_to_agree():
    with pytest.raises(ValueError, match=r"number of rows.*'b': 4, 'a': 5"):
        run(samples.two_by_two(), [rows(4, 3), rows(5, 3)])


def test_strings():
    words = np.array(["one", "zwei", "três"])
    index = np.array([2, 0, 1, 1, 2], np.int32)
    expected = [b"tr\xc3\xaas", b"one", b"zwei", b"zwei", b"tr\xc3\xaas"]
    with Runner(samples.words(), batch_size=2) as runner:
        for given in (words, words.astype(object), np.char.encode(words, "utf-8")):
            assert runner.run([given, index]).tolist() == expected


def test_signatures():
    x, y = rows(20, 3), rows(20, 3, seed=1)
    model = samples.two_signatures()
    with Runner(model, signature_key="subtract", batch_size=8) as runner:
        assert runner.signature.key == "subtract"
        result = runner.run({"y": y, "x": x})
        assert np.array_equal(result["difference"], x - y)
        assert np.array_equal(result["distance"], np.abs(x - y))
        with pytest.raises(ValueError, match="wrong shape"):
            runner.run({"y": y[:, :2], "x": x[:, :2]})
    assert np.array_equal(run(model, x, signature_key="double"), 2 * x)
    for key in (None, "triple"):
        with pytest.raises(ValueError, match=r"'double', 'subtract'.*Received: sig"):
            Runner(model, signature_key=key)
    with pytest.raises(ValueError, match=r"\(none\), so leave it out"):
        Runner(samples.dense(), signature_key="double")


# Batches


def test_fixed_batches_keep_their_size():
    for sample, size in ((samples.fixed(), 4), (samples.baked(), 1)):
        with Runner(sample) as runner:
            assert runner.batch_size == size
        with pytest.raises(ValueError, match=f"batches of {size} rows.*batch_size=3"):
            Runner(sample, batch_size=3)


def test_outputs_without_rows_take_everything_at_once():
    x = rows(300)
    with Runner(samples.mean()) as runner:
        assert runner.batch_size is None
        assert np.isclose(runner.run(x), x.mean(), atol=1e-6)
    with pytest.raises(ValueError, match="does not have one row per input row"):
        Runner(samples.mean(), batch_size=32)


def test_rows_that_depend_on_each_other_need_one_batch():
    x = rows(300)
    expected = x - x.mean(0)
    assert np.allclose(run(samples.centered(), x, batch_size=None), expected, atol=1e-5)
    assert not np.allclose(run(samples.centered(), x, batch_size=8), expected, atol=0.1)


def test_outputs_that_depend_on_values():
    x = rows(50, 3)
    with Runner(samples.positive()) as runner:
        assert np.array_equal(runner.run(x), x[x[:, 0] > 0])
    with Runner(samples.positive(), batch_size=4) as runner:
        x[:, 0] = 1
        assert np.array_equal(runner.run(x), x)
        x[9, 0] = -1
        with pytest.raises(RunError, match=r"Batch 2.*batch_size=None"):
            runner.run(x)


def test_open_image_sizes():
    with Runner(samples.image_filter(), num_workers=2) as runner:
        for height, width in ((3, 3), (40, 31), (300, 200)):
            x = rows(20 * height, width).reshape(20, height, width, 1)
            windows = np.lib.stride_tricks.sliding_window_view(
                x[..., 0], (3, 3), (1, 2)
            )
            result = runner.run(x)[..., 0]
            assert np.allclose(result, windows.sum((3, 4)), atol=1e-4)
        with pytest.raises(TfoptError):
            runner.run(np.zeros((1, 2, 2, 1), np.float32))
        assert runner.run(x[:1]).shape == (1, 298, 198, 1)


def test_automatic_choices(monkeypatch):
    cores = _tuning.available_cores()
    assert 1 <= cores <= (os.cpu_count() or 1)
    for num_threads in (1, 2, cores, cores + 1):
        with Runner(samples.dense(), num_threads=num_threads) as runner:
            assert runner.num_workers == max(1, cores // num_threads)
    cache = _tuning.cache_bytes()
    assert cache >= 1 << 16
    for row_bytes in (0, 1, cache // 200, cache // 20, cache, 10 * cache):
        expected = min(max(cache // max(2 * row_bytes, 1), 8), 128)
        assert _tuning.auto_batch_rows(row_bytes) == expected
    for cores in (1, 2, 64):
        monkeypatch.setattr(_tuning, "available_cores", lambda cores=cores: cores)
        for count in (1, 7, 8, 16, 40, 100, 1000):
            # 32 rows fill half of the cache: pieces are as even as can be.
            size = _tuning.auto_piece_rows(count, cache // 64)
            assert size == -(-count // -(-count // 32))
            # A single row does: a piece for each core, of two rows at least.
            size = _tuning.auto_piece_rows(count, cache)
            pieces = -(-count // size)
            assert size <= 8
            assert size >= 2 or count == 1
            assert pieces >= min(cores, count // 2) / 2


# Integers


def test_integers_in_integers_out():
    x = rows(40)
    with Runner(samples.integers(np.int8), batch_size=8) as runner:
        (info,), (out,) = runner.signature.inputs, runner.signature.outputs
        codes = affine.quantize(x, info.scale[0], info.zero_point[0])
        integers = runner.run(codes)
        assert integers.dtype == np.int8
        floats = runner.run(x)
        assert floats.dtype == np.float32
        expected = affine.dequantize(integers, out.scale[0], out.zero_point[0])
        assert np.array_equal(floats, expected)
        assert np.abs(floats - np.maximum(x @ samples.WEIGHTS, 0)).max() < 0.3


def test_floats_saturate():
    with Runner(samples.integers(np.uint8)) as runner:
        (info,) = runner.signature.inputs
        assert info.dtype == np.uint8
        x = np.stack([np.full(8, value, np.float32) for value in (-1e6, 1e6, np.inf)])
        ends = np.repeat(np.uint8([[0], [255], [255]]), 8, 1)
        with Runner(samples.integers(np.uint8), quantized_io="raw") as raw:
            expected = raw.run(ends)
        (out,) = runner.signature.outputs
        expected = affine.dequantize(expected, out.scale[0], out.zero_point[0])
        assert np.array_equal(runner.run(x), expected)


def test_ways_to_hand_over_integers():
    x = rows(4)
    model = samples.integers(np.int8)
    with pytest.raises(ValueError, match=r"Expected x: int8 \[\?, 8\] \(as by"):
        run(model, x, quantized_io="raw")
    with pytest.raises(ValueError, match="or float32, which is quantized"):
        run(model, x.astype(np.float64))
    assert run(model, x.astype(np.int8), quantized_io="float").dtype == np.float32
    with pytest.raises(ValueError, match="quantized_io='int'"):
        Runner(model, quantized_io="int")
    x[2, 2] = np.nan
    with pytest.raises(RunError, match="'x' holds NaN"):
        run(model, x)


# State


def test_state():
    ones = np.ones((1, 3), np.float32)
    model = samples.accumulator()
    with pytest.raises(ValueError, match=r"ASSIGN_VARIABLE.*num_workers=2"):
        Runner(model, num_workers=2)
    with Runner(model) as runner, Runner(model) as other:
        assert runner.is_stateful
        assert runner.num_workers == 1
        assert [runner.run(ones)[0] for _ in range(3)] == [1, 2, 3]
        assert other.run(ones)[0] == 1
        assert [total[0] for total in runner.map([ones] * 3)] == [4, 5, 6]
        futures = [runner.submit(ones) for _ in range(50)]
        assert [future.result()[0] for future in futures] == list(range(7, 57))
        runner.reset_state()
        assert runner.run(ones)[0] == 1
        with pytest.raises(ValueError, match="wrong shape"):
            runner.run(np.ones((2, 3), np.float32))
    with Runner(samples.dense()) as runner:
        assert not runner.is_stateful
        runner.reset_state()


def test_variable_tensors_are_state():
    from ai_edge_litert import schema_py_generated as schema

    content = bytearray(samples.dense())
    assert read_model_file(bytes(content)).state is None
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    model.subgraphs[0].tensors[1].isVariable = True
    assert "variable tensor" in read_model_file(samples.pack(model)).state


# What is refused


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (rows(3).astype(np.float64), r"wrong dtype.*float32 \[\?, 8\].*dtype=float64"),
        (rows(3).astype(">f4"), "wrong dtype.*dtype=>f4"),
        (rows(3)[:, :7], r"wrong shape.*Received: dtype=float32, shape=\(3, 7\)"),
        (rows(3)[0], r"wrong rank.*array\[np.newaxis\].*shape=\(8,\)"),
        (rows(3)[None, None], "wrong rank"),
        (list(rows(3)), "one array for each input.*np.stack.*Received: 3 items"),
        ({"y": rows(3)}, r"missing: \['x'\], unknown: \['y'\]"),
        ({"x": rows(3), "y": 1}, r"missing: \[\], unknown: \['y'\]"),
        ("photo.png", "wrong dtype"),
        (None, "wrong dtype"),
        (3, "wrong rank"),
    ],
)
def test_wrong_inputs(inputs, message):
    with Runner(samples.dense()) as runner:
        for call in (runner.run, runner.submit):
            with pytest.raises(ValueError, match=message):
                call(inputs)
        assert runner.run(rows(2)).shape == (2, 4)


def test_one_array_for_two_inputs():
    with pytest.raises(ValueError, match=r"Expected 2 arrays.*b: float32.*one ndarray"):
        run(samples.two_by_two(), rows(3, 3))


@pytest.mark.parametrize("name", ["num_workers", "num_threads", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "all", True])
def test_wrong_counts(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        Runner(samples.dense(), **{name: value})
    with Runner(samples.dense(), **{name: np.int64(2)}) as runner:
        assert getattr(runner, name) == 2


# Files


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "modèle.tflite"
    path.write_bytes(samples.dense())
    return path


def test_forms_of_a_model(path):
    x = rows(5)
    artifact = Artifact(str(path), "tflite", 1, 1, "")
    content = samples.dense()
    for model in (path, str(path), artifact, content, bytearray(content)):
        assert is_close(run(model, x), x)
    for model in (None, 3, object()):
        with pytest.raises(ValueError, match=r"Not a model.*Received: model="):
            Runner(model)


def test_missing_and_broken_files(path, tmp_path):
    content = path.read_bytes()
    pieces = [content[:size] for size in range(0, len(content), 7)]
    garbage = np.random.default_rng(0).bytes(5000)
    for broken in (*pieces, garbage, garbage[:4] + b"TFL3" + garbage, b"PK" * 100):
        path.write_bytes(broken)
        for model in (path, broken):
            with pytest.raises(TfoptError) as caught:
                Runner(model)
            assert "\n" not in str(caught.value)
            assert "Received: model" in str(caught.value)
    with pytest.raises(TfoptError, match=r"Cannot read.*No such file.*nothing"):
        Runner(tmp_path / "nothing.tflite")
    with pytest.raises(TfoptError, match=r"Cannot read.*directory"):
        Runner(tmp_path)


def test_reading_survives_any_damage():
    content = samples.two_signatures()
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(1000):
        damaged = bytearray(content)
        for position in random.integers(0, len(content), 3):
            damaged[position] = random.integers(256)
        try:
            read_model_file(bytes(damaged))
            outcomes.add("read")
        except TfoptError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("kind", ["flex", "custom"])
def test_missing_operators_are_named(kind):
    with pytest.raises(
        TfoptError, match=r"no operator (Flex)?MatrixDeterminant;"
    ) as got:
        Runner(samples.determinant(kind))
    assert "\n" not in str(got.value)


def test_a_replaced_file_is_noticed(path):
    with Runner(path, num_workers=2, num_threads=1, batch_size=1) as runner:
        assert runner.run(rows(1)).shape == (1, 4)
        path.unlink()
        path.write_bytes(samples.dense() + b"\0")
        # Work enough that the second worker opens the file before the first is done.
        with pytest.raises(TfoptError, match="was replaced"):
            runner.run(rows(100_000))


# Without TensorFlow

WITHOUT_TENSORFLOW = """
    import sys
    for name in ("tensorflow", "keras", "tf_keras"):
        sys.modules[name] = None  # importing it raises
    {statement}
    import numpy as np
    import tfopt
    from tfopt import benchmark
    with tfopt.runner.Runner(sys.argv[1]) as runner:
        print(runner.run(np.ones((3, 8), np.float32)).shape)
    found = [name for name in sys.modules if name.startswith(("tensorflow.", "keras."))]
    assert not found, found
"""


@pytest.mark.parametrize("statement", ["import tfopt.runner", "import tensorflow"])
def test_needs_no_tensorflow(path, statement):
    script = textwrap.dedent(WITHOUT_TENSORFLOW.format(statement=statement))
    done = subprocess.run(
        [sys.executable, "-c", script, path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    if statement == "import tensorflow":  # the trap fires
        assert "ModuleNotFoundError" in done.stderr
    else:
        assert done.stdout == "(3, 4)\n", done.stderr


def test_works_in_coroutines():
    async def both(runner, x):
        futures = [asyncio.wrap_future(runner.submit(item)) for item in x]
        return await asyncio.gather(*futures)

    x = [rows(5), rows(70, seed=1)]
    with Runner(samples.dense()) as runner:
        results = asyncio.run(both(runner, x))
    assert all(is_close(result, item) for result, item in zip(results, x, strict=True))


def test_shows_what_it_is(path):
    with Runner(path, num_workers=2, batch_size=16) as runner:
        assert repr(runner) == (
            f"Runner({str(path)!r}, num_workers=2, num_threads=1, batch_size=16, "
            "signature_key='main')"
        )
        assert str(runner.signature) == "main(x: float32 [?, 8]) -> " + (
            "(Identity: float32 [?, 4])"
        )
    assert tfopt.__version__
