"""Runner: order, look-ahead, failures, several callers, and how it ends."""

import concurrent.futures
import gc
import itertools
import os
import pathlib
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref

import numpy as np
import pytest
import runner_samples as samples

from tfopt.runner import Runner
from tfopt.types import RunError, TfoptError

ROOT = pathlib.Path(__file__).parent.parent
BAD = 99  # an index that is not in the table


def rows(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)


def indices(count, seed=0):
    return np.random.default_rng(seed).integers(0, 10, count).astype(np.int32)


def runner_threads():
    return [t for t in threading.enumerate() if t.name.startswith("tfopt-runner")]


@pytest.fixture
def runner():
    with Runner(samples.look_up(), num_workers=3, batch_size=8) as runner:
        yield runner


# Order and look-ahead


@pytest.mark.parametrize("num_workers", [1, 2, 4])
@pytest.mark.parametrize("look_ahead", [1, 3, None])
def test_map_keeps_the_order(num_workers, look_ahead):
    batches = [indices(count % 23 + 1, seed=count) for count in range(200)]
    with Runner(samples.look_up(), num_workers=num_workers, batch_size=8) as runner:
        results = list(runner.map(batches, look_ahead=look_ahead))
    assert len(results) == len(batches)
    for result, batch in zip(results, batches, strict=True):
        assert np.array_equal(result, samples.TABLE[batch])


@pytest.mark.parametrize("look_ahead", [1, 2, 5, None])
def test_look_ahead_is_bounded(runner, look_ahead):
    read = 0

    def endless():
        nonlocal read
        for read in itertools.count(1):
            yield indices(4, seed=read)

    results = runner.map(endless(), look_ahead=look_ahead)
    assert read == 0
    limit = look_ahead or 8 * runner.num_workers
    for count in range(1, 100):
        result = next(results)
        assert np.array_equal(result, samples.TABLE[indices(4, seed=count)])
        assert count <= read <= count + limit
    results.close()
    assert read <= 99 + limit
    assert np.array_equal(runner.run(indices(50)), samples.TABLE[indices(50)])


def test_long_streams_keep_nothing(runner):
    made, freed = itertools.count(1), itertools.count(1)
    num_made = num_freed = most = 0

    def free():
        nonlocal num_freed
        num_freed = next(freed)

    def batches():
        nonlocal num_made
        for seed in range(3000):
            batch = indices(3, seed=seed % 7)
            weakref.finalize(batch, free)
            num_made = next(made)
            yield batch

    for _ in runner.map(batches(), look_ahead=4):
        most = max(most, num_made - num_freed)
    # Beside those ahead: the one in the generator, and one in each worker's hand.
    assert 1 <= most <= 4 + 2 + runner.num_workers
    gc.collect()
    assert num_made == 3000
    assert num_made - num_freed <= runner.num_workers
    assert not runner._pool._jobs


def test_map_checks_its_options(runner):
    for look_ahead in (0, -1, "auto", 1.5):
        with pytest.raises(ValueError, match="look_ahead"):
            runner.map([], look_ahead=look_ahead)
    assert list(runner.map([])) == []


# Failures


def test_a_failing_batch_is_named(runner):
    index = indices(200)
    index[70] = index[190] = BAD
    for _ in range(20):
        # Both fail, in any order; the first one is reported.
        with pytest.raises(RunError, match=r"Batch 8.*rows 64 to 71.*GATHER") as caught:
            runner.run(index)
        assert caught.value.batch == 8
        assert caught.value.rows == (64, 72)
        copy = pickle.loads(pickle.dumps(caught.value))  # as from another process
        assert (str(copy), copy.rows) == (str(caught.value), (64, 72))
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert "\n" not in str(caught.value)
        assert str(caught.value).count("GATHER") == 1
    assert np.array_equal(runner.run(indices(200)), samples.TABLE[indices(200)])


def test_a_failing_request_is_named(runner):
    index = np.array([1, BAD], np.int32)
    with pytest.raises(RunError) as caught:
        runner.run(index)
    assert (caught.value.batch, caught.value.rows) == (0, (0, 2))
    future = runner.submit(index)
    assert isinstance(future.exception(timeout=30), RunError)
    assert np.array_equal(runner.run(index[:1]), samples.TABLE[index[:1]])


@pytest.mark.parametrize("look_ahead", [1, 4, None])
def test_map_yields_all_before_the_failure(runner, look_ahead):
    batches = [indices(20, seed=seed) for seed in range(30)]
    batches[17][11] = batches[25][0] = BAD
    seen = []
    with pytest.raises(RunError, match="Batch 17 failed") as caught:
        seen.extend(runner.map(batches, look_ahead=look_ahead))
    assert len(seen) == 17
    assert (caught.value.batch, caught.value.rows) == (17, (8, 16))
    assert len(list(runner.map(batches[:17]))) == 17


def test_map_names_the_batch_that_does_not_fit(runner):
    batches = [indices(4), indices(4), indices(4).astype(np.int64), indices(4)]
    seen = []
    with pytest.raises(ValueError, match=r"Batch 2: Input 'index'.*dtype=int64"):
        seen.extend(runner.map(batches))
    assert len(seen) == 2


def test_map_passes_on_what_its_source_raises(runner):
    def source():
        yield from [indices(4)] * 5
        raise OSError("the camera was unplugged")

    seen = []
    with pytest.raises(OSError, match="camera"):
        seen.extend(runner.map(source()))
    assert len(seen) == 5


# Several callers


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_several_callers_at_once(num_workers):
    num_callers = 6
    barrier = threading.Barrier(num_callers)
    inputs = [rows(seed * 37 + 5, seed) for seed in range(num_callers)]
    with Runner(samples.dense(), num_workers=1, batch_size=16) as alone:
        expected = [alone.run(x).tobytes() for x in inputs]
    with Runner(samples.dense(), num_workers=num_workers, batch_size=16) as runner:

        def call(caller):
            barrier.wait(timeout=30)
            x, results = inputs[caller], []
            for _ in range(15):
                results.append(runner.run(x))
                results.append(runner.submit(x).result(timeout=30))
                results.extend(runner.map([x, x]))
                with pytest.raises(ValueError, match="wrong shape"):
                    runner.run(x[:, 1:])
            return {result.tobytes() for result in results}

        with concurrent.futures.ThreadPoolExecutor(num_callers) as pool:
            for caller, found in enumerate(pool.map(call, range(num_callers))):
                assert found == {expected[caller]}
        assert len(runner_threads()) <= num_workers


def test_failures_of_one_caller_do_not_touch_others(runner):
    barrier = threading.Barrier(4)
    good, bad = indices(300), indices(300)
    bad[150] = BAD

    def call(caller):
        barrier.wait(timeout=30)
        for _ in range(20):
            if caller % 2:
                with pytest.raises(RunError, match="Batch 18"):
                    runner.run(bad)
            elif not np.array_equal(runner.run(good), samples.TABLE[good]):
                return False
        return True

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(4)))


def test_futures_can_be_cancelled():
    release = threading.Event()
    with Runner(samples.dense(), num_workers=1) as runner:
        first = runner.submit(rows(1))
        first.add_done_callback(lambda future: release.wait(30))  # holds the worker
        waiting = [runner.submit(rows(3)) for _ in range(5)]
        assert waiting[2].cancel()
        release.set()
        done = [future for future in waiting if future is not waiting[2]]
        assert all(future.result(timeout=30).shape == (3, 4) for future in done)
        assert waiting[2].cancelled()
        assert runner.run(rows(2)).shape == (2, 4)


def test_a_callback_may_use_the_runner():
    with Runner(samples.dense(), num_workers=1) as runner:
        found = concurrent.futures.Future()
        runner.submit(rows(3)).add_done_callback(
            lambda future: found.set_result(runner.run(rows(5)).shape)
        )
        assert found.result(timeout=30) == (5, 4)


# The end


def test_close_cancels():
    release, started = threading.Event(), threading.Event()

    def hold(future):
        started.set()
        release.wait(30)

    runner = Runner(samples.dense(), num_workers=1)
    runner.submit(rows(1)).add_done_callback(hold)
    assert started.wait(30)
    pending = [runner.submit(rows(1000)) for _ in range(3)]
    results = runner.map([rows(10)] * 50)
    threading.Timer(0.05, release.set).start()
    runner.close()
    for future in pending:
        with pytest.raises(TfoptError, match="closed before the work was done"):
            future.result(timeout=30)
    with pytest.raises(TfoptError, match="The Runner is closed"):
        next(results)
    assert not runner_threads()


def test_close_ends_a_run_of_another_thread():
    runner = Runner(samples.dense(), num_workers=2, batch_size=1)
    x = np.broadcast_to(np.float32(1), (2_000_000, 8))
    begun = threading.Event()

    def call():
        begun.set()
        runner.run(x)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        assert begun.wait(30)
        while not runner._pool._jobs:
            assert not future.done()
        runner.close()
        with pytest.raises(TfoptError, match="closed"):
            future.result(timeout=30)


def test_a_closed_runner_says_so():
    with Runner(samples.dense()) as runner:
        runner.run(rows(3))
    runner.close()
    calls = (runner.run, runner.submit, runner.map, lambda x: runner.reset_state())
    for call in calls:
        with pytest.raises(TfoptError, match="The Runner is closed"):
            call(rows(3))


def test_a_dropped_runner_ends_its_threads():
    runner = Runner(samples.dense(), num_workers=2, batch_size=4)
    runner.run(rows(100))
    assert runner_threads()
    del runner
    gc.collect()
    assert not runner_threads()


def test_work_keeps_the_runner_alive():
    future = Runner(samples.dense(), num_workers=2).submit(rows(100))
    assert future.result(timeout=30).shape == (100, 4)
    results = list(Runner(samples.dense()).map([rows(5)] * 30))
    assert len(results) == 30


def test_an_unclosed_runner_does_not_keep_the_process(tmp_path):
    done = child(
        tmp_path,
        """
        futures = [runner.submit(x) for _ in range(100)]
        print(futures[0].result().shape)
        """,
    )
    assert (done.returncode, done.stdout) == (0, "(1000, 4)\n"), done.stderr


def test_an_interrupt_ends_a_run(tmp_path):
    done = child(
        tmp_path,
        """
        import os, signal, threading
        many = np.broadcast_to(np.float32(1), (20_000_000, 8))
        threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            runner.run(many)
        except KeyboardInterrupt:
            print("interrupted")
        print(runner.run(x).shape)
        runner.close()
        """,
    )
    expected = "interrupted\n(1000, 4)\n"
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_runner_says_so(tmp_path):
    done = child(
        tmp_path,
        """
        import os, warnings
        warnings.simplefilter("ignore")  # Python 3.12 about threads and fork
        runner.run(x)
        process = os.fork()
        if process == 0:
            for call in (runner.run, runner.submit, runner.map):
                try:
                    call(x)
                except tfopt.TfoptError as error:
                    assert "before a fork" in str(error)
                else:
                    os._exit(3)
            runner.close()
            with tfopt.runner.Runner(sys.argv[1]) as fresh:
                assert fresh.run(x).shape == (1000, 4)
            sys.exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
        print(runner.run(x).shape)
        """,
    )
    assert (done.returncode, done.stdout) == (0, "0\n(1000, 4)\n"), done.stderr


def child(folder, script):
    (folder / "model.tflite").write_bytes(samples.dense())
    before = """
        import sys
        import numpy as np
        import tfopt, tfopt.runner
        runner = tfopt.runner.Runner(sys.argv[1], num_workers=2)
        x = np.ones((1000, 8), np.float32)
    """
    code = textwrap.dedent(before) + textwrap.dedent(script)
    return subprocess.run(
        [sys.executable, "-c", code, folder / "model.tflite"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
