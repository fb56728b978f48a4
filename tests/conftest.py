"""Fixtures shared by all tests."""

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

# Quiet C++ logs; set here because it must precede the first TensorFlow import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

ROOT = pathlib.Path(__file__).parent.parent
LEGACY = "TF_USE_LEGACY_KERAS"


class LegacyRun:
    """All tests that concern Keras, on tf_keras, in a process beside this one."""

    test = "test_all_marked_tests_pass_on_tf_keras"

    def __init__(self):
        self._process = None
        self._output = None

    def start(self, folder=ROOT / "tests", *arguments):
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (outlives this call)
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", str(folder), "-m", "both_keras"),
                # The cache belongs to the run that started this one.
                *("-q", "-p", "no:cacheprovider", "--durations=15", *arguments),
            ],
            env={**os.environ, LEGACY: "1", "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        return self

    def finish(self):
        """Waits; returns the exit code and all that was printed."""
        code = self._process.wait()
        self._output.seek(0)
        text = self._output.read()
        self._output.close()
        self._process = None
        return code, text

    def stop(self):
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._output.close()


legacy_run = LegacyRun()


def pytest_collection_modifyitems(items):
    """The second run goes on beside all other tests; its outcome is asked for last."""
    items.sort(key=lambda item: item.name == LegacyRun.test)


def pytest_collection_finish(session):
    wanted = any(item.name == LegacyRun.test for item in session.items)
    if wanted and LEGACY not in os.environ and not session.config.option.collectonly:
        legacy_run.start()


def pytest_sessionfinish():
    legacy_run.stop()


@pytest.fixture
def keras():
    """The Keras that `tf.keras` is: Keras 3, or tf_keras in the legacy run."""
    import tensorflow as tf

    return tf.keras


@pytest.fixture(scope="session")
def testdata():
    """The folder of small real inputs."""
    return ROOT / "testdata"
