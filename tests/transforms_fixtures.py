"""Fixtures for the tests of transform_graph: a graph, and a shared child process."""

import contextlib

import pytest
import tensorflow as tf
from transforms_samples import normal

from tfopt.transforms import _verifier

v1 = tf.compat.v1


@pytest.fixture(scope="module")
def child():
    """One child process for all tests, as TensorFlow takes seconds to load."""
    with _verifier.open_verifier() as verifier:
        yield verifier


@pytest.fixture
def own_child():
    """For tests that kill their child."""


@pytest.fixture
def shared(request, monkeypatch):
    """Lets tests share a child, unless it may die."""
    if "own_child" not in request.fixturenames:
        shared = contextlib.nullcontext(request.getfixturevalue("child"))
        monkeypatch.setattr(_verifier, "open_verifier", lambda: shared)


@pytest.fixture(scope="module")
def graph():
    """A tf.Graph; `y` is its output."""
    with tf.Graph().as_default() as built:
        x = v1.placeholder(tf.float32, [None, 3], "x")
        hidden = tf.identity(tf.nn.relu(tf.matmul(x, normal(0, 3, 4))))
        tf.identity(hidden, name="y")
        tf.add(hidden, 1.0, name="unused")
    return built
