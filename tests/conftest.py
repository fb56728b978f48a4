"""Fixtures shared by all tests."""

import os
import pathlib

import pytest

# Quiet C++ logs; set here because it must precede the first TensorFlow import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def keras():
    """The Keras that `tf.keras` is: Keras 3, or tf_keras in the legacy run."""
    import tensorflow as tf

    return tf.keras


@pytest.fixture(scope="session")
def testdata():
    """The folder of small real inputs."""
    return ROOT / "testdata"
