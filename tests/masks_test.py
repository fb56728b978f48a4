"""Masks: literal arrays, and brute force in plain NumPy and Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfopt import masks

# Few different values, so that ties are the rule.
SCORES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=4, max_side=5),
    elements=st.sampled_from([0.0, 0.25, 1.0, 1.5, 7.0]),
)


def best(flat, k):
    """Indices of the k largest; of equals the lower index."""
    return set(sorted(range(len(flat)), key=lambda i: (-flat[i], i))[:k])


def ones(mask):
    return set(np.flatnonzero(mask).tolist())


def test_literal_masks():
    scores = np.array([[0.1, 0.9, 0.3], [0.8, 0.2, 0.7]])
    (mask,) = masks.compute([scores], 0.5)
    assert mask.tolist() == [[False, True, False], [True, False, True]]
    assert mask.dtype == bool


def test_of_equals_the_lower_index_stays():
    assert masks.top_k(np.array([1.0, 2.0, 1.0, 1.0]), 3).tolist() == [
        *(True, True, True, False)
    ]
    (mask,) = masks.compute([np.ones((2, 5))], 0.5)
    assert mask.tolist() == [[True] * 5, [False] * 5]


def test_many_zeros_still_give_the_exact_count():
    scores = np.zeros(10)
    scores[7:9] = [3, 2]
    (mask,) = masks.compute([scores], 0.5)
    assert ones(mask) == {0, 1, 2, 7, 8}


@given(SCORES, st.data())
def test_top_k_is_brute_force(scores, data):
    k = data.draw(st.integers(0, scores.size))
    mask = masks.top_k(scores, k)
    assert mask.shape == scores.shape
    assert ones(mask) == best(scores.ravel(), k)


@given(SCORES, st.floats(0, 0.999))
def test_masks_are_idempotent(scores, sparsity):
    (mask,) = masks.compute([scores], sparsity)
    scores = scores + 1  # no zeros but masked ones
    (mask,) = masks.compute([scores], sparsity)
    (again,) = masks.compute([scores * mask], sparsity)
    assert np.array_equal(mask, again)


@given(SCORES, st.floats(0, 0.9), st.floats(0, 0.09))
def test_a_higher_sparsity_prunes_the_same_and_more(scores, sparsity, more):
    (mask,) = masks.compute([scores], sparsity)
    (smaller,) = masks.compute([scores], sparsity + more)
    assert not (smaller & ~mask).any()


@pytest.mark.parametrize(
    ("size", "sparsity", "kept"),
    [
        *((10, 0.5, 5), (10, 0.25, 8), (10, 0.75, 2)),  # 7.5 -> 8 and 2.5 -> 2
        *((5, 0.5, 2), (7, 0.5, 4)),  # 2.5 -> 2 and 3.5 -> 4
        *((1, 0.9, 1), (3, 0.99, 1), (100, 0.999, 1)),  # never the last one
        *((0, 0.5, 0), (10, 0.0, 10)),
        (15, 0.9, 2),  # 1.5 in float32, 1.4999999999999996 in double precision
        (2**24 + 1, 0.0, 2**24 + 1),  # not a float32
        (10**8, 0.8, 2 * 10**7),
    ],
)
def test_num_kept(size, sparsity, kept):
    assert masks.num_kept(size, sparsity) == kept


@given(st.integers(1, 10**9), st.floats(0, 0.9999))
def test_num_kept_is_within_one_weight_or_float32(size, sparsity):
    exact = size * (1 - sparsity)
    tolerance = 1 if size < 2**23 else 2 + size * 1e-7
    assert 1 <= masks.num_kept(size, sparsity) <= size
    assert abs(masks.num_kept(size, sparsity) - max(exact, 1)) <= tolerance


def test_global_scope_literal():
    scores = [np.array([9.0, 8.0, 7.0, 6.0]), np.array([[1.0, 5.0], [2.0, 3.0]])]
    local = masks.compute(scores, 0.5)
    assert [ones(mask) for mask in local] == [{0, 1}, {1, 3}]
    together = masks.compute(scores, 0.5, scope="global")
    # The best four are all in the first tensor; the second one keeps its best one.
    assert [ones(mask) for mask in together] == [{0, 1, 2}, {1}]
    assert [mask.shape for mask in together] == [(4,), (2, 2)]


def brute_force_global(scores, sparsity, min_density):
    sure = []
    for number, score in enumerate(scores):
        least = max(1, int(np.ceil(score.size * min_density)))
        least = min(least, masks.num_kept(score.size, sparsity))
        sure += [(number, index) for index in best(score.ravel(), least)]
    total = max(len(sure), masks.num_kept(sum(s.size for s in scores), sparsity))
    rest = [
        (-value, number, index)
        for number, score in enumerate(scores)
        for index, value in enumerate(score.ravel())
        if (number, index) not in set(sure)
    ]
    return {*sure, *((n, i) for _, n, i in sorted(rest)[: total - len(sure)])}


@settings(deadline=None)
@given(
    st.lists(SCORES, min_size=1, max_size=4),
    st.floats(0, 0.999),
    st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_global_scope_is_brute_force(scores, sparsity, min_density):
    options = {"scope": "global", "min_density": min_density}
    found = masks.compute(scores, sparsity, **options)
    expected = brute_force_global(scores, sparsity, min_density)
    assert {
        (number, index) for number, mask in enumerate(found) for index in ones(mask)
    } == expected
    total = masks.total_kept([s.size for s in scores], sparsity, **options)
    assert total == len(expected)
    assert all(mask.any() for mask in found)


def test_total_kept_local_is_the_sum():
    sizes = [10, 7, 5]
    assert masks.total_kept(sizes, 0.5) == 5 + 4 + 2
    assert masks.total_kept(sizes, 0.5, scope="global") == 11
    assert masks.total_kept(sizes, 0.8) == 2 + 1 + 1
    assert masks.total_kept(sizes, 0.9, scope="global") == 3  # 2.2, but one each


def test_large_half_pruned_tensor():
    rng = np.random.default_rng(0)
    scores = np.abs(rng.normal(size=(300, 200))).astype(np.float32)
    (mask,) = masks.compute([scores], 0.75)
    scores *= mask
    (mask,) = masks.compute([scores], 0.8)
    assert np.count_nonzero(mask) == 12000
    assert scores[mask].min() > scores[~mask].max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scope": "layer"}, "scope='layer'"),
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"sparsity": -0.5}, "sparsity=-0.5"),
        ({"scores": [np.array([1.0, np.nan])]}, "1 NaN"),
    ],
)
def test_wrong_arguments(arguments, message):
    good = {"scores": [np.arange(4.0)], "sparsity": 0.5}
    masks.compute(**good)
    with pytest.raises(ValueError, match=message):
        masks.compute(**{**good, **arguments})


def test_wrong_k():
    with pytest.raises(ValueError, match="k=5"):
        masks.top_k(np.arange(4.0), 5)
