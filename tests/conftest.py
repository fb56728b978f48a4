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

    # The file of the test that waits for it.
    file = "legacy_keras_test.py"

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
        """Waits, after a start if need be; returns the exit code and what it wrote."""
        if self._process is None:
            self.start()
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


def is_shared(config):
    """Whether this process runs a part of the tests, as pytest-xdist deals them out."""
    return hasattr(config, "workerinput")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at its options
def pytest_cmdline_main(config):
    """Two processes share the suite, file by file, when all of it is asked for."""
    option = config.option
    is_all = config.args_source is config.ArgsSource.TESTPATHS
    is_part = option.keyword or option.markexpr or option.collectonly or option.usepdb
    # With -n0, pytest-xdist has been told to leave it.
    is_free = getattr(option, "numprocesses", 0) is None and not is_shared(config)
    if is_all and is_free and not is_part:
        option.numprocesses, option.dist = 2, "loadfile"
        option.loadscopereorder = False


def pytest_collection_modifyitems(config, items):
    """The run on tf_keras goes on beside all others.

    One of two processes waits for it from the start, so that two are busy at all times;
    short files come last. A process that runs all tests asks for its outcome last.
    """
    if not is_shared(config):
        items.sort(key=lambda item: item.name == LegacyRun.test)
        return
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(
        key=lambda item: (item.path.name != LegacyRun.file, item.path not in long)
    )


def pytest_collection_finish(session):
    config = session.config
    wanted = any(item.name == LegacyRun.test for item in session.items)
    wanted &= not (config.option.collectonly or is_shared(config))
    if wanted and LEGACY not in os.environ:
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
