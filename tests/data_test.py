"""Data specs, on real files."""

import dataclasses
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from tfopt.data import Data, Split, load_data
from tfopt.types import TfoptError

RNG = np.random.default_rng(7)
ARRAYS = {
    "x_train": RNG.integers(0, 255, [10, 4, 3], np.uint8),
    "y_train": np.arange(10),
    "x_test": RNG.integers(0, 255, [5, 4, 3], np.uint8),
    "y_test": np.arange(5),
}


def save(path, **changes):
    arrays = {
        key: item for key, item in {**ARRAYS, **changes}.items() if item is not None
    }
    np.savez(path, **arrays)
    return path


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module with a data function; returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(body):
        name = f"data_of_{tmp_path.name.replace('-', '_')}"
        text = textwrap.indent(body, "    ")
        (tmp_path / f"{name}.py").write_text(
            f"import numpy as np\ndef load():\n{text}\n"
        )
        return f"{name}:load"

    return write


def equal(left, right):
    return left.dtype == right.dtype and np.array_equal(left, right)


def test_npz_arrays_arrive_as_they_are(tmp_path):
    data = load_data(save(tmp_path / "a.npz"))
    assert isinstance(data, Data)
    for split, name in ((data.train, "train"), (data.test, "test")):
        inputs, labels = split.arrays()
        assert equal(inputs, ARRAYS[f"x_{name}"])
        assert equal(labels, ARRAYS[f"y_{name}"])
    assert not equal(data.test.arrays()[0], ARRAYS["x_train"])


def test_the_shipped_digits_load(testdata):
    data = load_data(str(testdata / "mnist.npz"))
    assert data.train.arrays()[0].shape == (60_000, 28, 28)
    assert data.test.arrays()[1].shape == (10_000,)


def test_several_inputs_and_outputs_are_dictionaries(tmp_path):
    changes = {"x_train": None, "x_test": None, "y_train": None, "y_test": None}
    for name, size in (("train", 6), ("test", 3)):
        changes[f"x_{name}/image"] = np.ones([size, 2, 2])
        changes[f"x_{name}/meta/age"] = np.ones([size, 1])
        changes[f"y_{name}/class"] = np.arange(size)
    split = load_data(save(tmp_path / "a.npz", **changes)).train
    inputs, labels = split.arrays()
    assert {key: item.shape for key, item in inputs.items()} == {
        "image": (6, 2, 2),
        "meta/age": (6, 1),
    }
    assert list(labels) == ["class"]
    sizes = [len(part["image"]) for part, _ in split.batches(batch_size=4)]
    assert sizes == [4, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "y_test"),
        ({"x_train": None}, "x_train"),
        ({"x_train/a": np.zeros(10)}, "either the array x_train"),
        ({"y_train": np.arange(9)}, r"\(10, 4, 3\), \(9,\)"),
        ({"y_train": np.array(3)}, "as many labels as inputs"),
        ({"x_test": np.zeros([0, 2]), "y_test": np.zeros(0)}, "at least one"),
        ({"x_train": np.array([{}] * 10, dtype=object)}, "without pickled objects"),
    ],
)
def test_incomplete_files_are_refused_in_one_line(tmp_path, changes, message):
    path = save(tmp_path / "a.npz", **changes)
    with pytest.raises(TfoptError, match=message) as caught:
        load_data(path)
    assert "\n" not in str(caught.value)
    assert "a.npz" in str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused(tmp_path, keep):
    path = save(tmp_path / "a.npz")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(TfoptError, match="Cannot read the data file"):
        load_data(path)


def test_damaged_contents_are_refused(tmp_path):
    path = save(tmp_path / "a.npz")
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("x_train.npy").header_offset + 200
    content[start] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(TfoptError, match="Cannot read the data file"):
        load_data(path)
    path.write_bytes(b"no archive at all")
    with pytest.raises(TfoptError, match="Cannot read the data file"):
        load_data(path)


def test_a_pickle_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    bomb = np.empty(10, dtype=object)
    bomb[:] = [Bomb() for _ in range(10)]
    path = save(tmp_path / "a.npz", x_train=bomb)
    with pytest.raises(TfoptError, match="pickled"):
        load_data(path)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("absent.npz", "No such data file"),
        ("digits.csv", "Unknown kind of data"),
        ("no_such_module_anywhere:load", "Cannot find the data function"),
        ("json:absent", "Cannot find the data function"),
        ("json:__name__", "function without arguments"),
        ("json:", "Unknown kind of data"),
    ],
)
def test_unusable_specs_are_refused(spec, message):
    with pytest.raises(TfoptError, match=message) as caught:
        load_data(spec)
    assert spec in str(caught.value)


def test_a_function_may_return_arrays(module):
    spec = module(
        "x, y = np.arange(6).reshape(3, 2), np.arange(3)\n"
        "return {'train': (x, y), 'test': ({'a': x}, y)}"
    )
    data = load_data(spec)
    assert data.train.arrays()[0].shape == (3, 2)
    assert list(data.test.arrays()[0]) == ["a"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 3", "int"),
        ("return {'train': ([1], [1])}", r"\['train'\]"),
        ("return {'train': ([1], [1]), 'test': 3}", "pair"),
        ("return {'train': ([1], [1]), 'test': ([1], [1], [1])}", "pair"),
        ("return {'train': ([1], [1]), 'test': ([1], [1, 2])}", "as many labels"),
    ],
)
def test_wrong_results_of_a_function_are_refused(module, body, message):
    with pytest.raises(TfoptError, match=message):
        load_data(module(body))


def test_datasets_of_a_function(module):
    spec = module(
        "import tensorflow as tf\n"
        "x, y = np.arange(20).reshape(10, 2), np.arange(10)\n"
        "data = tf.data.Dataset.from_tensor_slices(({'a': x}, y))\n"
        "return {'train': data.batch(4), 'test': data.repeat().batch(4)}"
    )
    data = load_data(spec)
    inputs, labels = data.train.arrays()
    assert np.array_equal(inputs["a"], np.arange(20).reshape(10, 2))
    assert np.array_equal(labels, np.arange(10))
    sizes = [len(labels) for _, labels in data.train.batches(batch_size=3)]
    assert sizes == [3, 3, 3, 1]
    for endless in (data.test.arrays, lambda: list(data.test.batches())):
        with pytest.raises(TfoptError, match="endless"):
            endless()
    first = next(iter(data.test.dataset(batch_size=16)))
    assert first[1].shape == (16,)


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: (x, y),
        lambda x, y: x,
        lambda x, y: (x, y, y),
        lambda x, y: ((x, x), y),
    ],
)
def test_datasets_that_are_no_batches_of_pairs_are_refused(make):
    import tensorflow as tf

    x, y = np.zeros([10, 2]), np.arange(10)
    data = tf.data.Dataset.from_tensor_slices(make(x, y))
    is_pair = make(x, y)[0] is x and len(make(x, y)) == 2
    with pytest.raises(TfoptError, match="batches"):
        Split(data if is_pair else data.batch(2), "train")


def test_an_empty_dataset_has_no_arrays():
    import tensorflow as tf

    pair = (np.zeros([3, 2]), np.arange(3))
    data = tf.data.Dataset.from_tensor_slices(pair).batch(2).take(0)
    with pytest.raises(TfoptError, match="empty"):
        Split(data).arrays()


@pytest.mark.parametrize("wrap", [False, True])
def test_shuffled_datasets_hold_each_example_once(wrap):
    import tensorflow as tf

    x, y = np.arange(100, dtype=np.float32)[:, None] * 2, np.arange(100)
    split = Split((x, y))
    if wrap:
        split = Split(tf.data.Dataset.from_tensor_slices((x, y)).batch(7))

    def epochs(**settings):
        data = split.dataset(batch_size=32, **settings)
        return [
            np.concatenate([labels for _, labels in data.as_numpy_iterator()])
            for _ in range(2)
        ]

    assert np.array_equal(epochs()[0], y)
    shuffled = epochs(shuffle=True, seed=3)
    assert not np.array_equal(shuffled[0], y)
    assert not np.array_equal(shuffled[0], shuffled[1])
    assert np.array_equal(np.sort(shuffled[0]), y)
    again = epochs(shuffle=True, seed=3)
    assert all(np.array_equal(*pair) for pair in zip(shuffled, again, strict=True))
    for inputs, labels in split.dataset(shuffle=True).as_numpy_iterator():
        assert np.array_equal(inputs[:, 0], labels * 2)


@pytest.mark.both_keras
def test_a_model_trains_on_the_dataset(keras):
    x = RNG.normal(size=[64, 3]).astype(np.float32)
    split = Split((x, (x[:, 0] > 0).astype(np.int64)))
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(split.dataset(shuffle=True), epochs=2, shuffle=False, verbose=0)
    assert len(history.history["loss"]) == 2


def test_batch_sizes_are_positive():
    split = Split((np.zeros([3, 2]), np.arange(3)))
    for call in (split.batches, split.dataset):
        with pytest.raises(ValueError, match="batch_size"):
            call(batch_size=0)


def test_splits_are_values():
    split = Split((np.zeros([3, 2]), np.arange(3)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        split.source = None


def test_arrays_need_no_tensorflow(tmp_path):
    path = save(tmp_path / "a.npz")
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from tfopt.data import load_data\n"
        f"data = load_data({str(path)!r})\n"
        "print(data.train.arrays()[0].shape, len(list(data.test.batches())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout == "(10, 4, 3) 1\n", done.stderr


@pytest.mark.parametrize("kind", ["arrays", "dataset"])
def test_an_epoch_has_the_same_order_wherever_training_starts(kind):
    tf.random.set_seed(1)
    labels = np.arange(50)
    source = (labels[:, None].astype(np.float32), labels)
    if kind == "dataset":
        source = tf.data.Dataset.from_tensor_slices(source).batch(7)
    split = Split(source)

    def orders(numbers, seed=3):
        batches = split.epochs(numbers, batch_size=16, seed=seed).as_numpy_iterator()
        return np.concatenate([labels for _, labels in batches]).reshape(-1, 50)

    whole = orders(range(4))
    tf.random.set_seed(2 if kind == "arrays" else 1)
    np.testing.assert_array_equal(orders(range(2, 4)), whole[2:])
    assert (np.sort(whole, axis=1) == labels).all()
    assert len({tuple(order) for order in whole.tolist()}) == 4
    assert (orders(range(4), seed=9) != whole).any()
    assert split.num_batches(batch_size=16) == 4
