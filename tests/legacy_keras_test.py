"""All tests that concern Keras, once more on tf_keras, in a process of their own."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
LEGACY = "TF_USE_LEGACY_KERAS"


def run_legacy(folder, *arguments):
    """Runs the marked tests of a folder on tf_keras; shows all that failed."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", str(folder), "-m", "both_keras", "-q"),
            # Files without a marked test need not even be imported, but must not end
            # the run; the cache belongs to the run that started this one.
            *("-p", "no:cacheprovider", "--durations=0", "--durations-min=10"),
            *arguments,
        ],
        env={**os.environ, LEGACY: "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.skipif(LEGACY in os.environ, reason="this is the run on one Keras")
def test_all_marked_tests_pass_on_tf_keras():
    done = run_legacy(ROOT / "tests")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert " passed" in done.stdout


@pytest.mark.skipif(LEGACY in os.environ, reason="this is the run on one Keras")
def test_the_second_run_fails_where_tf_keras_does(tmp_path):
    (tmp_path / "conftest.py").write_text(
        (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    )
    (tmp_path / "sample_test.py").write_text(
        "import pytest\n"
        "@pytest.mark.both_keras\n"
        "def test_which(keras):\n"
        "    assert keras.__name__.startswith('keras')\n"
        "def test_unmarked():\n"
        "    raise AssertionError('must not run')\n"
    )
    done = run_legacy(tmp_path, "-c", str(ROOT / "pyproject.toml"))
    assert done.returncode == 1
    assert "1 failed, 1 deselected" in done.stdout
    assert "tf_keras" in done.stdout
