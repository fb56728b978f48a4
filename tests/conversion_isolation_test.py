"""The converter in a process of its own: crashes, limits, and the same results."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from conversion_samples import IMAGES, digits, one_line, run

from tfopt import conversion
from tfopt.conversion import (
    _errors,
    _freezing,
    _isolation,
    _lowering,
    _pipeline,
    _sources,
)
from tfopt.types import ConversionError, TfoptError, VerificationError

pytestmark = pytest.mark.both_keras
FLOAT = _lowering.Options("none", "float32", "float32", allow_float=True)
INT8 = _lowering.Options("int8", "float32", "float32", allow_float=True)
SECONDS = 120


@pytest.fixture
def isolated():
    return _isolation.Isolated(SECONDS, None)


def frozen(function, *shape):
    function = tf.function(function, input_signature=[tf.TensorSpec(shape, name="x")])
    return _freezing.freeze(_sources.open_source(function).function)


def doubled():
    return frozen(lambda x: x * 2, None, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"quantization": "float16"},
        {"quantization": "int8", "representative_dataset": IMAGES[:20]},
        {
            "quantization": "int8",
            "representative_dataset": IMAGES[:20],
            "equalize": True,
            "correct_bias": True,
            "keep_float": "logits",
        },
    ],
    ids=["float16", "int8", "refined"],
)
def test_the_same_file_as_in_this_process(keras, options):
    model = digits(keras)
    here, there = (
        conversion.convert_with_report(model, isolate=isolate, **options)
        for isolate in (False, True)
    )
    assert here.content == there.content
    assert here.report["verification"] == there.report["verification"]


def test_isolation_is_the_default_where_it_is_possible():
    given = _pipeline.Request(
        **dict.fromkeys(
            (
                *("quantization", "representative_dataset", "calibration_examples"),
                *("inference_input_type", "inference_output_type", "keep_float"),
                *("equalize", "correct_bias", "signature_key", "strip_debug_info"),
                *("allow_float_fallback", "sparse", "verify", "min_sqnr"),
            )
        )
    )
    assert _isolation.is_possible()
    assert isinstance(given.lowering(), _isolation.Isolated)


def test_a_crash_is_an_error(keras, isolated, capfd):
    """Recurrent layers end the process that calibrates them for int8."""
    layers = keras.layers
    inputs = layers.Input((4, 2), batch_size=1)
    model = keras.Model(inputs, layers.GRU(3)(inputs))
    function = _freezing.freeze(_sources.open_source(model).function)
    data = [{"x": np.ones((1, 4, 2), np.float32)}] * 3
    with pytest.raises(ConversionError, match=r"crashed \(SIG\w+\)") as raised:
        isolated.lower(function, INT8, data)
    assert "Try fixed shapes" in one_line(raised)
    assert capfd.readouterr() == ("", "")
    # The next one doesn't notice.
    assert isolated.lower(doubled(), FLOAT)[4:8] == b"TFL3"


def test_a_file_that_cannot_run_is_an_error(isolated):
    content = isolated.lower(doubled(), FLOAT)
    signature = conversion.convert_with_report(
        tf.function(lambda x: x, input_signature=[tf.TensorSpec([3])])
    ).signature
    with pytest.raises(VerificationError, match="does not run as the model does"):
        isolated.run(content[: len(content) // 2], signature, [{"x": np.ones(3)}])


def test_limits():
    function = doubled()
    with pytest.raises(ConversionError, match=r"not end within 0\.001 s.*time_limit"):
        _isolation.Isolated(0.001, None).lower(function, FLOAT)
    with pytest.raises(ConversionError, match=r"more memory than the 1 MiB.*memory_li"):
        _isolation.Isolated(SECONDS, 1 << 20).lower(function, FLOAT)
    # The controls.
    assert _isolation.Isolated(SECONDS, 4 << 30).lower(function, FLOAT)
    for name in ("time_limit", "memory_limit"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            conversion.convert(function, **{name: 0})


def test_refusals_say_the_same(isolated):
    function = frozen(tf.linalg.det, None, 3, 3)
    texts = []
    for place in (_isolation.Local(), isolated):
        with pytest.raises(ConversionError) as raised:
            place.lower(function, FLOAT)
        texts.append(str(raised.value))
    assert texts[0] == texts[1]
    assert "tf.MatrixDeterminant" in texts[0]


def test_a_new_server_takes_the_place_of_one_that_was_ended(isolated):
    assert isolated.lower(doubled(), FLOAT)
    server = _isolation._server
    os.kill(server._process.pid, signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while server.is_usable and time.monotonic() < deadline:
        time.sleep(0.01)
    assert isolated.lower(doubled(), FLOAT)
    assert _isolation._server is not server


def test_where_isolation_is_impossible(monkeypatch):
    monkeypatch.setattr(_isolation, "is_possible", lambda: False)
    with pytest.raises(TfoptError, match="use isolate=False"):
        conversion.convert(doubled(), isolate=True)
    assert conversion.convert(doubled())  # by default, in this process then


def test_a_server_that_cannot_start_says_why(monkeypatch, isolated):
    isolated.lower(doubled(), FLOAT)
    monkeypatch.setattr(_isolation, "_server", None)
    monkeypatch.setattr(_isolation, "_START", "raise SystemExit('no room')")
    with pytest.raises(TfoptError, match="no room"):
        _isolation.Isolated(SECONDS, None).lower(doubled(), FLOAT)


def test_the_server_ends_with_the_process(tmp_path):
    """Also when that is killed, and in the middle of a job."""
    code = (
        "import os, time\n"
        "from tfopt.conversion import _isolation\n"
        "server = _isolation._start()\n"
        "print(server._process.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as user:
        pid = int(user.stdout.readline())
        user.kill()
    deadline = time.monotonic() + SECONDS
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(pid)


def _is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (
            "I0000 00:00:1.5  7 a.cc:1] hello\nF0000 00:00:1.5   77 b.cc:3] Check "
            "failed: rank == 4 (3 vs. 4) of tf.Conv2D\n#0 0x7f stack\n",
            "Check failed: rank == 4 (3 vs. 4) of tf.Conv2D.",
        ),
        ("LLVM ERROR: cannot do it\nPLEASE submit\n", "LLVM ERROR: cannot do it."),
        (
            "python: /a/b.h:20: T f(): Assertion `x > 0' failed.\n",
            "Assertion `x > 0' failed",
        ),
        ("terminate called after throwing 'std::bad_alloc'\n", "not enough memory"),
        ("#0 0x7f\n#1 0x7e\n", "crashed (SIGABRT). Try"),
    ],
)
def test_reasons_of_crashes(log, why):
    text = _errors.crash(log, signal.SIGABRT, time_limit=None, memory_limit=None)
    assert why in text
    assert "0x7" not in text
    assert "\n" not in text


def test_isolated_files_run(keras):
    content = conversion.convert(digits(keras), isolate=True)
    (found,) = run(content, {"image": IMAGES[:2]}).values()
    assert found.shape == (2, 10)
