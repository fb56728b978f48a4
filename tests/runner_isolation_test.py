"""Runner with `isolate=True`: whatever an interpreter does, this process goes on."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import runner_samples as samples

from tfopt.runner import Runner, _isolation
from tfopt.types import RunError, TfoptError

ROOT = pathlib.Path(__file__).parent.parent
SMALLEST = -(2**31)


def rows(count, width=8, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def children():
    """Process ids of this process's children, zombies included."""
    found = []
    for task in pathlib.Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended
            found += map(int, (task / "children").read_text().split())
    return set(found)


def numbers(count, bad=None):
    x, y = np.full(count, 17, np.int32), np.full(count, 5, np.int32)
    if bad is not None:
        x[bad], y[bad] = SMALLEST, -1
    return [x, y]


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = children()
    yield
    assert children() <= before


@pytest.fixture
def runner():
    with Runner(
        samples.remainder(), isolate=True, num_workers=2, num_threads=1, batch_size=4
    ) as runner:
        yield runner


@pytest.mark.parametrize(
    ("sample", "inputs"),
    [
        ("dense", rows(100)),
        ("baked", rows(3)),
        ("positive", rows(20, 3)),
        ("two_by_two", [rows(5, 3), rows(5, 3, seed=1)]),
        ("image_filter", rows(24, 10).reshape(2, 12, 10, 1)),
        ("words", [np.array(["one", "zwei", "três"]), np.int32([2, 0, 1, 1, 2])]),
    ],
)
def test_results_are_the_same(sample, inputs):
    model = getattr(samples, sample)()
    with Runner(model) as runner:
        expected = runner.run(inputs)
    with Runner(model, isolate=True, num_workers=1, num_threads=1) as runner:
        for result in (runner.run(inputs), runner.submit(inputs).result(timeout=60)):
            assert 1 <= len(runner._opener._processes._all) <= 2
            if isinstance(expected, dict):
                assert list(result) == list(expected)
            else:
                result, expected = {"": result}, {"": expected}
            for name, array in expected.items():
                assert result[name].dtype == array.dtype
                assert np.array_equal(result[name], array)
            expected = expected.get("", expected)


def test_paths_and_state(tmp_path):
    path = tmp_path / "modèle.tflite"
    path.write_bytes(samples.accumulator())
    ones = np.ones((1, 3), np.float32)
    with Runner(path, isolate=True, num_threads=1) as runner:
        assert [runner.run(ones)[0] for _ in range(3)] == [1, 2, 3]
        runner.reset_state()
        assert [total[0] for total in runner.map([ones] * 3)] == [1, 2, 3]


def test_a_file_that_crashes_is_an_error():
    with pytest.raises(TfoptError, match=r"crashed with SIG\w+ \(exit code 1") as got:
        Runner(samples.crashing(), isolate=True)
    assert "\n" not in str(got.value)
    # So it does, without isolation.
    code = "import sys, tfopt; tfopt.Runner(sys.stdin.buffer.read())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=samples.crashing(),
        cwd=ROOT,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode < 0


def test_a_batch_that_crashes_is_named(runner):
    with pytest.raises(
        RunError, match=r"Batch 3 failed \(rows 12 to 15\).*SIGFPE"
    ) as e:
        runner.run(numbers(40, bad=13))
    assert (e.value.batch, e.value.rows) == (3, (12, 16))
    assert isinstance(e.value.__cause__, _isolation.Crash)
    assert (runner.run(numbers(40)) == 2).all()
    future = runner.submit(numbers(3, bad=0))
    assert isinstance(future.exception(timeout=60), RunError)
    seen = []
    batches = [numbers(3)] * 5 + [numbers(3, bad=2), numbers(3)]
    with pytest.raises(RunError, match="Batch 5 failed"):
        seen.extend(runner.map(batches))
    assert len(seen) == 5
    assert (runner.run(numbers(7)) == 2).all()


def test_a_killed_process_is_an_error(runner):
    pool = runner._pool._engines
    for engine in [pool.take() for _ in range(2)]:
        pool.give(engine)
    victims = list(runner._opener._processes._all)
    assert len(victims) == 3  # two workers and their template
    for process in victims:
        os.kill(process.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(RunError, match=r"SIGKILL \(exit code 137\), perhaps for"):
            runner.run(numbers(4))
    assert (runner.run(numbers(4)) == 2).all()


def test_errors_of_the_interpreter_stay_what_they_are():
    options = {"num_workers": 1, "num_threads": 1, "isolate": True, "batch_size": 8}
    with Runner(samples.look_up(), **options) as runner:
        with pytest.raises(RunError, match=r"Batch 1.*GATHER") as caught:
            runner.run(np.repeat(np.int32([4, 99, 4]), [8, 8, 4]))
        assert not isinstance(caught.value.__cause__, _isolation.Crash)
        with pytest.raises(ValueError, match="wrong dtype"):
            runner.run(rows(3))
        assert np.array_equal(runner.run(np.int32([4])), samples.TABLE[[4]])
    with pytest.raises(TfoptError, match="no operator MatrixDeterminant"):
        Runner(samples.determinant("custom"), isolate=True)


def test_strings_only():
    with (
        Runner(samples.words(), isolate=True, num_workers=1, num_threads=1) as runner,
        pytest.raises(RunError, match=r"Expected strings.*Received: float"),
    ):
        runner.run([np.array(["a", 1.5], object), np.int32([0])])


def test_what_takes_too_long_is_ended():
    options = {"num_workers": 1, "num_threads": 1, "isolate": True, "timeout_s": 1}
    with Runner(samples.endless(), **options) as runner:
        assert runner.run(np.float32([0.9]))[0] < 0.5
        with pytest.raises(RunError, match=r"no answer within 1 s.*timeout_s"):
            runner.run(np.float32([1]))
        assert runner.run(np.float32([0.9]))[0] < 0.5


def test_close_ends_what_hangs(monkeypatch):
    monkeypatch.setattr("tfopt.runner._pool._GRACE_SECONDS", 0.1)
    runner = Runner(samples.endless(), isolate=True, num_workers=1, num_threads=1)
    futures = [runner.submit(np.float32([1])) for _ in range(3)]
    while not futures[0].running():
        time.sleep(0.01)
    runner.close()
    assert all(isinstance(f.exception(timeout=30), TfoptError) for f in futures)
    with pytest.raises(TfoptError, match="The Runner is closed"):
        runner.run(np.float32([1]))


def test_several_callers(runner):
    def call():
        for _ in range(20):
            if not (runner.run(numbers(30)) == 2).all():
                return
        good.append(1)

    good = []
    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(good) == 3


def test_options_that_do_not_go_together():
    with pytest.raises(ValueError, match=r"isolate=True with it.*timeout_s=3"):
        Runner(samples.dense(), timeout_s=3)
    for value in (0, -1, float("nan"), "1"):
        with pytest.raises(ValueError, match="timeout_s"):
            Runner(samples.dense(), isolate=True, timeout_s=value)


def test_no_process_outlives_its_runner(tmp_path):
    """Not even when that is killed while a child is busy."""
    (tmp_path / "model.tflite").write_bytes(samples.endless())
    script = """
        import os, sys, time
        import numpy as np
        from tfopt.runner import Runner
        runner = Runner(sys.argv[1], isolate=True, num_workers=1, num_threads=1)
        future = runner.submit(np.float32([1]))
        while not future.running():
            time.sleep(0.01)
        print(*(process.pid for process in runner._opener._processes._all), flush=True)
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), tmp_path / "model.tflite"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == -9
    pids = list(map(int, done.stdout.split()))
    assert len(pids) == 2  # with the template
    for _ in range(200):
        if not any(map(is_running, pids)):
            return
        time.sleep(0.05)
    for pid in filter(is_running, pids):
        os.kill(pid, 9)
    pytest.fail("a process is still running")


def is_running(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state.split()[0] not in "ZX"  # a zombie waits for init only
