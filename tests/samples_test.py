"""Typical inputs, in all forms in which users have them."""

import numpy as np
import pytest

from tfopt import _samples
from tfopt.quantization import _data
from tfopt.types import TensorInfo, TfoptError

ROWS = np.arange(10, dtype=np.float32).reshape(5, 2)
TOKENS = np.arange(5, dtype=np.int64)[:, None]
ONE = [TensorInfo("image", np.dtype("float32"), (None, 2))]
TWO = [*ONE, TensorInfo("tokens", np.dtype("int32"), (None, 1))]


def merged(dataset, inputs, **options):
    batches = list(_samples.read(dataset, inputs, **options))
    assert all(list(batch) == [info.name for info in inputs] for batch in batches)
    return {
        info.name: np.concatenate([batch[info.name] for batch in batches])
        for info in inputs
    }


class Dataset:
    """Like an h5py.Dataset: no np.ndarray, and read by parts."""

    shape = ROWS.shape

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        return ROWS[rows]

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("read as a whole")


@pytest.mark.parametrize(
    "dataset",
    [
        ROWS,
        ROWS.astype(np.float64),
        Dataset(),
        {"image": ROWS, "labels": TOKENS},
        list(ROWS),
        [ROWS[:2], ROWS[2:]],
        [(ROWS,)],
        [[ROWS[:4]], {"image": ROWS[4]}],
        [({"image": ROWS}, TOKENS)],
        (row for row in ROWS),
        lambda: ROWS,
        lambda: iter([ROWS]),
    ],
)
def test_forms_for_one_input(dataset):
    found = merged(dataset, ONE)["image"]
    assert found.dtype == np.float32
    assert np.array_equal(found, ROWS)


@pytest.mark.parametrize(
    "dataset",
    [
        {"tokens": TOKENS, "image": ROWS},
        [(ROWS, TOKENS)],
        [[ROWS, TOKENS]],
        zip(ROWS, TOKENS, strict=True),
        [((ROWS, TOKENS), "labels")],
        [([ROWS, TOKENS], "labels", "weights")],
        [({"image": ROWS, "tokens": TOKENS}, "labels")],
        {"image": ROWS, "tokens": TOKENS.astype(np.float32)},  # whole numbers
    ],
)
def test_forms_for_two_inputs(dataset):
    found = merged(dataset, TWO)
    assert np.array_equal(found["image"], ROWS)
    assert found["tokens"].dtype == np.int32
    assert np.array_equal(found["tokens"], TOKENS)


def test_files(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    np.savez(tmp_path / "two.npz", image=ROWS, tokens=TOKENS)
    np.savez(tmp_path / "train.npz", x_train=ROWS, y_train=TOKENS)
    assert np.array_equal(merged(tmp_path / "rows.npy", ONE)["image"], ROWS)
    assert np.array_equal(merged(str(tmp_path / "train.npz"), ONE)["image"], ROWS)
    assert np.array_equal(merged(tmp_path / "two.npz", TWO)["tokens"], TOKENS)
    with pytest.raises(TfoptError, match="No such data file"):
        merged(tmp_path / "none.npz", ONE)


def test_sizes_of_batches():
    def sizes(inputs, **options):
        return [len(b["image"]) for b in _samples.read(ROWS, inputs, **options)]

    assert sizes(ONE) == [1] * 5
    assert sizes(ONE, batch_size=2) == [2, 2, 1]
    # What does not fill a fixed batch is left out.
    fixed = [TensorInfo("image", np.dtype("float32"), (2, 2))]
    assert sizes(fixed) == sizes(fixed, batch_size=3) == [2, 2]


@pytest.mark.parametrize(
    ("dataset", "inputs", "message"),
    [
        (3, ONE, "Expected an array"),
        (np.float32(3), ONE, "Expected an array"),
        ([(ROWS, TOKENS)], ONE, "labels don't belong here.*item 0 with 2"),
        (ROWS[:, :1], ONE, r"\(\?, 2\).*of shape \(1, 1\)"),
        ({"picture": ROWS}, ONE, r"\['image'\]. Received: .*\['picture'\]"),
        ({"image": ROWS, "tokens": TOKENS[:3]}, TWO, "'image': 5, 'tokens': 3"),
        ([ROWS, np.full([2], np.inf)], ONE, "item 1, input 'image' with NaN or inf"),
        ([(ROWS[0], [0.5])], TWO, "Expected int32 values.*'tokens' of float64"),
        ([(ROWS[0], [1e20])], TWO, "Expected int32 values"),
        ([np.array(["a", "b"])], ONE, "Expected float32 values"),
    ],
)
def test_what_does_not_fit(dataset, inputs, message):
    with pytest.raises(ValueError, match=message):
        merged(dataset, inputs)


@pytest.mark.parametrize(
    ("data", "inputs"),
    [
        ((ROWS, TOKENS), ONE),
        ((list(ROWS), TOKENS), ONE),
        ([(ROWS[:2], TOKENS[:2]), (ROWS[2:], TOKENS[2:])], ONE),
        ([(ROWS, TOKENS, np.ones(5))], ONE),
        (lambda: zip(ROWS, TOKENS[:, 0], strict=True), ONE),
        (({"image": ROWS, "tokens": TOKENS}, TOKENS), TWO),
        (((ROWS, TOKENS), TOKENS), TWO),
        ([((ROWS, TOKENS), TOKENS)], TWO),
    ],
)
def test_labels_are_separated(data, inputs):
    found, labels = _data.split(data, len(inputs), limit=9)
    assert np.array_equal(merged(found, inputs)["image"], ROWS)
    assert np.array_equal(np.ravel(labels), TOKENS[:, 0])


def test_labels_of_files(tmp_path):
    np.savez(tmp_path / "test.npz", x_test=ROWS, y_test=TOKENS)
    np.save(tmp_path / "rows.npy", ROWS)
    found, labels = _data.split(tmp_path / "test.npz", 1, limit=3)
    assert np.array_equal(merged(found, ONE)["image"], ROWS)
    assert np.array_equal(labels, TOKENS[:3])
    assert _data.split(str(tmp_path / "rows.npy"), 1, limit=3)[1] is None


def test_labels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\[5, 3\] examples and 5 labels"):
        _data.split(((ROWS, TOKENS[:3]), TOKENS), 2, limit=9)
    with pytest.raises(ValueError, match="1 of 2"):
        _data.split([(ROWS, TOKENS), ROWS], 1, limit=9)
    assert _data.split([(ROWS, TOKENS)], 2, limit=9)[1] is None
