"""Metrics against plain loops over their definitions."""

import itertools
import math
import sys
import types

import numpy as np
import pytest

from tfopt.report import accuracy, agreement, find_metric
from tfopt.types import TfoptError


def measure(name, outputs, labels):
    return find_metric(name).function(np.asarray(outputs), np.asarray(labels))


def samples(seed=0, number=60, classes=5, *, ties=False):
    random = np.random.default_rng(seed)
    outputs = random.random([number, classes])
    if ties:
        outputs = np.round(outputs, 1)
    return outputs, random.integers(0, classes, number)


def pairwise_auc(scores, positive):
    """The share of pairs in the right order; equal ones count half."""
    won = 0.0
    for high, low in itertools.product(scores[positive], scores[~positive]):
        won += 1.0 if high > low else 0.5 if high == low else 0.0
    return won / (positive.sum() * (~positive).sum())


@pytest.mark.parametrize("seed", range(3))
def test_auc_with_ties(seed):
    random = np.random.default_rng(seed)
    scores = np.round(random.random(80), 1)
    labels = random.integers(0, 2, 80)
    expected = pairwise_auc(scores, labels == 1)
    assert measure("auc", scores, labels) == pytest.approx(expected, abs=1e-12)
    assert measure("auc", scores[:, None], labels[:, None]) == pytest.approx(expected)
    two = np.stack([1 - scores, scores], axis=1)
    assert measure("auc", two, labels) == pytest.approx(expected)
    # Pairs of logits count by their difference.
    logits = np.round(random.normal(size=(80, 2)), 1)
    expected = pairwise_auc(np.round(logits[:, 1] - logits[:, 0], 6), labels == 1)
    assert measure("auc", logits, labels) == pytest.approx(expected, abs=2e-3)
    assert measure("auc", scores, 1 - labels) != pytest.approx(expected)


def test_tiny_probabilities_are_no_ties():
    scores = np.array([1e-20, 3e-20, 2e-20, 1e-3])
    assert measure("auc", scores, [0, 1, 0, 1]) == 1.0


@pytest.mark.parametrize("ties", [False, True])
def test_auc_of_several_classes_is_a_mean(ties):
    outputs, labels = samples(1, ties=ties)
    labels[labels == 3] = 2  # a class that never occurs
    areas = [pairwise_auc(outputs[:, k], labels == k) for k in (0, 1, 2, 4)]
    assert measure("auc", outputs, labels) == pytest.approx(np.mean(areas), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_top_k(k, ties):
    outputs, labels = samples(2, ties=ties)
    right = 0
    for row, label in zip(outputs, labels, strict=True):
        # Stable: of equal ones the first counts.
        best = sorted(range(len(row)), key=lambda i, row=row: (-row[i], i))[:k]
        right += label in best
    assert measure(f"top_{k}", outputs, labels) == right / len(labels)
    if k == 1:
        assert measure("accuracy", outputs, labels) == right / len(labels)


def counts_of(predicted, labels, k):
    true = sum(p == k == y for p, y in zip(predicted, labels, strict=True))
    predicted_k = sum(p == k for p in predicted)
    actual = sum(y == k for y in labels)
    return true, predicted_k - true, actual - true  # TP, FP, FN


def test_f1_of_two_classes_is_that_of_class_1():
    outputs, labels = samples(3, classes=2)
    true, false, missed = counts_of(outputs.argmax(1), labels, 1)
    precision, recall = true / (true + false), true / (true + missed)
    expected = 2 * precision * recall / (precision + recall)
    assert measure("f1", outputs, labels) == pytest.approx(expected)
    probability = outputs[:, 1] / outputs.sum(axis=1)
    assert measure("f1", probability, labels) == pytest.approx(expected)
    assert measure("f1", outputs[:, ::-1], labels) != pytest.approx(expected)
    assert measure("f1", [[1.0, 0.0]], [0]) == 0.0  # no positive at all


def test_f1_and_iou_are_means_over_classes_that_occur():
    outputs, labels = samples(4)
    outputs[:, 3], labels[labels == 3] = -1, 0
    predicted = outputs.argmax(1)
    counts = [counts_of(predicted, labels, k) for k in (0, 1, 2, 4)]
    f1 = np.mean([2 * t / (2 * t + f + m) for t, f, m in counts])
    iou = np.mean([t / (t + f + m) for t, f, m in counts])
    assert measure("f1", outputs, labels) == pytest.approx(f1)
    assert measure("mean_iou", outputs, labels) == pytest.approx(iou)
    # Images are counted pixel by pixel.
    images = outputs.reshape(3, 4, 5, 5)
    masks = labels.reshape(3, 4, 5)
    assert measure("mean_iou", images, masks) == pytest.approx(iou)
    assert measure("mean_iou", images, masks[..., None]) == pytest.approx(iou)


def test_errors_and_cosine():
    random = np.random.default_rng(6)
    outputs, labels = random.normal(size=(2, 10, 3, 2))
    flat = list(zip(outputs.ravel().tolist(), labels.ravel().tolist(), strict=True))
    squares = sum((a - b) ** 2 for a, b in flat) / len(flat)
    assert measure("mse", outputs, labels) == pytest.approx(squares)
    distances = sum(abs(a - b) for a, b in flat) / len(flat)
    assert measure("mae", outputs, labels) == pytest.approx(distances)
    cosines = []
    for first, second in zip(outputs, labels, strict=True):
        product = sum(a * b for a, b in zip(first.flat, second.flat, strict=True))
        lengths = [math.hypot(*item.flat) for item in (first, second)]
        cosines.append(product / math.prod(lengths))
    assert measure("cosine", outputs, labels) == pytest.approx(np.mean(cosines))
    assert measure("cosine", outputs * 0, labels) == 0.0
    # A missing last axis of size 1 is no difference, one that counts is.
    assert measure("mse", outputs[:, :1, 0], labels[:, 0, 0]) == pytest.approx(
        np.mean((outputs[:, 0, 0] - labels[:, 0, 0]) ** 2)
    )
    with pytest.raises(ValueError, match="same shape"):
        measure("mae", outputs, labels[:, :, 0])


def test_labels_come_in_several_forms():
    outputs, labels = samples(7)
    expected = accuracy(outputs, labels)
    for form in (
        labels[:, None],
        labels.astype(np.float32),
        labels.astype(np.uint8),
        np.eye(5)[labels],
    ):
        assert measure("accuracy", outputs, form) == expected
    binary = (outputs[:, 0] > 0.5).astype(int)
    assert measure("accuracy", outputs[:, :1], binary) == 1.0
    tokens = np.eye(5)[labels].reshape(12, 5, 5)
    assert measure("accuracy", tokens, labels.reshape(12, 5)) == 1.0


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "message"),
    [
        ("accuracy", np.zeros([3, 2]), np.array([0, 1, 2]), "from 0 to 1"),
        ("accuracy", np.zeros([3, 2]), np.array([0, 1, -1]), "Received: -1"),
        ("accuracy", np.zeros([3, 2]), np.array([0, 1, 0.5]), "Received: 0.5"),
        ("accuracy", np.zeros([3, 2]), np.zeros(4), "don't belong together"),
        ("accuracy", np.zeros([0, 2]), np.zeros(0), "at least one"),
        ("f1", np.array([2.0, -1.0]), np.array([0, 1]), "probability"),
        ("auc", np.zeros([3, 2]), np.zeros(3), "more than one class"),
        ("auc", np.full([2, 2], np.nan), np.array([0, 1]), "NaN"),
        ("top_2", np.zeros([3, 2]), np.zeros(3), "top_2"),
    ],
)
def test_what_does_not_fit_is_refused(name, outputs, labels, message):
    with pytest.raises(ValueError, match=message):
        measure(name, outputs, labels)


def test_metrics_are_found_by_name(monkeypatch):
    module = types.ModuleType("my_metrics")
    module.spread = lambda outputs, labels: float(np.ptp(outputs - labels))
    monkeypatch.setitem(sys.modules, "my_metrics", module)
    found = find_metric("my_metrics:spread")
    assert (found.name, found.better) == ("spread", "")
    assert found.function(np.array([1.0, 4.0]), np.array([0.0, 0.0])) == 3.0
    assert find_metric(module.spread).function is module.spread
    assert find_metric("mse").better == "lower"
    with pytest.raises(ValueError, match=r"mean_iou.*metric='acuracy'"):
        find_metric("acuracy")
    with pytest.raises(ValueError, match="top_0"):
        find_metric("top_0")
    with pytest.raises(TfoptError, match="no_such_module"):
        find_metric("no_such_module:f")
    with pytest.raises(TfoptError, match="no_such_name"):
        find_metric("my_metrics:no_such_name")


def test_agreement():
    random = np.random.default_rng(8)
    reference = {"a": random.normal(size=(50, 4)), "b": random.normal(size=(50, 3))}
    noise = {name: random.normal(size=item.shape) for name, item in reference.items()}
    outputs = {name: reference[name] + 0.1 * noise[name] for name in reference}
    found = agreement(outputs, reference, "a")
    gaps = np.concatenate([0.1 * np.abs(item).ravel() for item in noise.values()])
    assert found["max_difference"] == pytest.approx(gaps.max())
    assert found["mean_difference"] == pytest.approx(gaps.mean())
    ratios = [
        10 * math.log10(np.sum(reference[n] ** 2) / np.sum((0.1 * noise[n]) ** 2))
        for n in reference
    ]
    assert found["sqnr_db"] == pytest.approx(min(ratios))
    same = [
        int(a.argmax()) == int(b.argmax())
        for a, b in zip(outputs["a"], reference["a"], strict=True)
    ]
    assert found["argmax_agreement"] == sum(same) / 50
    equal = agreement(reference, reference, "a")
    assert equal["sqnr_db"] == math.inf
    assert (equal["max_difference"], equal["argmax_agreement"]) == (0, 1)
    single = {"a": reference["a"][:, :1]}
    assert agreement(single, single, "a")["argmax_agreement"] is None
    infinite = {"a": np.array([[np.inf, 1.0]])}
    assert agreement(infinite, infinite, "a")["max_difference"] == 0
    broken = {"a": np.array([[np.nan, 1.0]])}
    assert agreement(broken, broken, "a")["max_difference"] == 0
    found = agreement(broken, {"a": np.ones([1, 2])}, "a")
    assert (found["max_difference"], found["sqnr_db"]) == (math.inf, -math.inf)
    with pytest.raises(ValueError, match="cannot be compared"):
        agreement(single, {"a": reference["a"]}, "a")
