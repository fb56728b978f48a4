"""All tests that concern Keras, once more on tf_keras, in a process of their own."""

import os

import pytest
from conftest import LEGACY, ROOT, LegacyRun, legacy_run


@pytest.mark.slow
@pytest.mark.skipif(LEGACY in os.environ, reason="this is the run on one Keras")
def test_all_marked_tests_pass_on_tf_keras():
    code, text = legacy_run.finish()  # conftest has started it
    assert code == 0, text
    assert " passed" in text


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
    run = LegacyRun().start(tmp_path, "-c", str(ROOT / "pyproject.toml"))
    code, text = run.finish()
    assert code == 1
    assert "1 failed, 1 deselected" in text
    assert "tf_keras" in text
