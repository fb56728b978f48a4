"""Masks of blocks, m:n and channels: literal arrays and brute force in plain Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt import masks

WORDS = ["unstructured", "1x4", "4x1", "3x2", "16x1", "2:4", "1:4", "3:5", "channel"]


def scores(shape, seed=0):
    return np.random.default_rng(seed).permutation(np.prod(shape)).reshape(shape) + 1.0


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("unstructured", masks.Structure()),
        ("1x1", masks.Structure()),
        ("1x4", masks.Structure("block", 1, 4)),
        ("16x1", masks.Structure("block", 16, 1)),
        ("2:4", masks.Structure("m:n", 2, 4)),
        ("channel", masks.Structure("channel")),
        ("filter", masks.Structure("channel")),
    ],
)
def test_words(word, expected):
    assert masks.Structure.parse(word) == expected
    assert masks.Structure.parse(expected) is expected


@pytest.mark.parametrize(
    "word", ["4:2", "4:4", "0:4", "x4", "1x0", "2:4:6", "", None, 4]
)
def test_wrong_words(word):
    with pytest.raises(ValueError, match="Received: structure="):
        masks.Structure.parse(word)


def test_blocks_literal():
    values = np.array([[9.0, 7, 1, 1], [1, 1, 1, 20], [5, 5, 0, 0]])[None]
    (mask,) = masks.compute([values], 0.5, structure="1x2")
    assert mask[0].astype(int).tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]]
    # The last row's blocks are cut off at the edge: 2 weights each, not 4. The two
    # that score least have 6 weights, and so has the half of 12.
    (mask,) = masks.compute([values], 0.5, structure="2x2")
    assert mask[0].astype(int).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]]


def test_pooling_is_mean_largest_or_norm():
    values = np.array([[[4.0, 0, 3, 3]]])
    for pooling, kept in (("avg", [0, 0, 1, 1]), ("max", [1, 1, 0, 0])):
        (mask,) = masks.compute([values], 0.5, structure="1x2", pooling=pooling)
        assert mask[0, 0].astype(int).tolist() == kept
    (mask,) = masks.compute([values], 0.5, structure="1x2", pooling="norm")
    assert mask[0, 0].astype(int).tolist() == [0, 0, 1, 1]  # 8 < 9
    with pytest.raises(ValueError, match="pooling='sum'"):
        masks.compute([values], 0.5, structure="1x2", pooling="sum")


def test_two_of_four_literal():
    values = np.array([5.0, 1, 2, 9, 1, 1, 1, 1, 7, 3])[None, :, None]
    (mask,) = masks.compute([values], 0.5, structure="2:4")
    # Of equals the lower index stays; the last group is short: two stay of two.
    assert mask.ravel().astype(int).tolist() == [1, 0, 0, 1, 1, 1, 0, 0, 1, 1]


def brute_force_m_of_n(values, m, n):
    mask = np.ones(values.shape, bool)
    positions, inputs, outputs = values.shape
    for position in range(positions):
        for output in range(outputs):
            for start in range(0, inputs, n):
                group = list(range(start, min(start + n, inputs)))
                order = sorted(group, key=lambda i: (-values[position, i, output], i))
                mask[position, order[n - m :], output] = False
    return mask


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 11), st.integers(1, 4)),
    st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 5), (3, 4)]),
    st.integers(0, 5),
)
def test_m_of_n_is_brute_force(shape, m_n, seed):
    m, n = m_n
    values = np.random.default_rng(seed).integers(0, 4, shape).astype(np.float32)
    (mask,) = masks.compute([values], m / n, structure=f"{m}:{n}")
    assert np.array_equal(mask, brute_force_m_of_n(values, m, n))
    assert np.count_nonzero(~mask) == masks.least_zeros(
        [shape], m / n, structure=f"{m}:{n}"
    )


def test_a_ramp_of_m_of_n_goes_over_the_groups_that_lose_least():
    values = np.array([9.0, 8, 7, 6, 1, 1, 9, 9, 5, 5, 5, 5])[None, :, None]
    counts = []
    for sparsity in (0.0, 0.17, 0.34, 0.5):
        (mask,) = masks.compute([values], sparsity, structure="2:4")
        groups = mask.reshape(3, 4)
        counts.append([int(4 - row.sum()) for row in groups])
    assert counts == [[0, 0, 0], [0, 2, 0], [0, 2, 2], [2, 2, 2]]


def test_channels_literal():
    values = np.zeros((2, 3, 4))
    values[..., 0], values[..., 1], values[..., 2], values[..., 3] = 1, 4, 2, 3
    (mask,) = masks.compute([values], 0.5, structure="channel", pooling="norm")
    assert mask.all(axis=(0, 1)).tolist() == [False, True, False, True]
    assert not mask[..., 0].any()
    (mask,) = masks.compute([values], 0.99, structure="channel")
    assert mask.any(axis=(0, 1)).tolist() == [False, True, False, False]


@pytest.mark.parametrize("scope", masks.SCOPES)
@pytest.mark.parametrize("word", WORDS)
def test_zeros_are_next_to_the_target_and_in_whole_units(word, scope):
    shapes = [(1, 10, 10), (9, 3, 8), (1, 12, 5), (4, 1, 7)]
    structure = masks.Structure.parse(word)
    values = [scores(shape, seed) for seed, shape in enumerate(shapes)]
    size = sum(value.size for value in values)
    for sparsity in (0.0, 0.1, 0.3, 0.5, 0.75, 0.9):
        if sparsity > structure.limit:
            continue
        options = {"scope": scope, "structure": word}
        found = masks.compute(values, sparsity, **options)
        zeros = sum(np.count_nonzero(~mask) for mask in found)
        kept = [value * mask for value, mask in zip(values, found, strict=True)]
        assert zeros == sum(masks.structured_zeros(value, word) for value in kept)
        assert zeros >= masks.least_zeros(shapes, sparsity, **options)
        assert all(mask.any() for mask in found)
        if structure.kind == "unstructured":
            assert zeros == masks.least_zeros(shapes, sparsity, **options)
        if word == "1x4":
            slack = 2 if scope == "global" else 2 * len(shapes)
            assert abs(zeros - sparsity * size) <= slack + 4


def test_equal_blocks_are_counted_like_weights():
    for sparsity in (0.1, 0.25, 0.5, 0.8, 0.99):
        (mask,) = masks.compute([scores((1, 20, 12))], sparsity, structure="4x3")
        kept = masks.num_kept(20, sparsity)
        assert np.count_nonzero(mask) == 12 * kept
        least = masks.least_zeros([(1, 20, 12)], sparsity, structure="4x3")
        assert least == 240 - 12 * kept


def test_weights_outside_of_pruned_units_are_no_structured_zeros():
    values = np.ones((1, 4, 4))
    values[0, :2, :2] = 0
    values[0, 3, 3] = 0
    assert masks.structured_zeros(values, "2x2") == 4
    assert masks.structured_zeros(values, "unstructured") == 5
    assert masks.structured_zeros(values, "channel") == 0
    assert masks.structured_zeros(values, "2:4") == 2 * 2


@pytest.mark.parametrize("word", WORDS)
def test_split_and_join_are_inverse(word):
    structure = masks.Structure.parse(word)
    values = scores((3, 7, 5))
    units = structure.split(values, fill=-1.0)
    assert np.array_equal(structure.join(units, values.shape), values)


def test_thresholds():
    values = np.array([[[0.5, 0.1, 0.3, 0.2]]])
    (mask,) = masks.above([values], 0.2)
    assert mask.ravel().tolist() == [True, False, True, True]
    (mask,) = masks.above([values], 9.0)
    assert mask.ravel().tolist() == [True, False, False, False]
    (mask,) = masks.above([values], 0.28, structure="1x2")
    assert mask.ravel().tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match="m:n"):
        masks.above([values], 0.2, structure="2:4")
