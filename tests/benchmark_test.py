"""Timing in turn; no assertion depends on how fast the machine is."""

import dataclasses
import itertools
import json
import math
import os
import threading
import time

import numpy as np
import pytest

from tfopt import benchmark
from tfopt.benchmark import Timing, interleave


def recorder():
    """Candidates a, b, c that note the order of their calls."""
    calls = []
    return calls, {name: lambda name=name: calls.append(name) for name in "abc"}


def test_runs_in_turn():
    calls, candidates = recorder()
    timings = interleave(candidates, rounds=4, warmup=2, min_sample_ms=0)
    assert list(timings) == ["a", "b", "c"]
    # Two calls each to warm up, one each to see how long it takes, then in turn.
    assert calls == [*"aabbcc", *"abc", *"abcabcabcabc"]
    assert all(len(timing.samples_ms) == 4 for timing in timings.values())
    assert all(timing.calls_per_sample == 1 for timing in timings.values())


def test_without_warmup():
    calls, candidates = recorder()
    interleave(candidates, rounds=1, warmup=0, min_sample_ms=0)
    assert calls == [*"abc", *"abc"]


def test_samples_have_a_minimum_duration(monkeypatch):
    clock = 0.0

    def work(seconds):
        nonlocal clock
        clock += seconds

    monkeypatch.setattr(benchmark._timing.time, "perf_counter", lambda: clock)
    timings = interleave(
        {"short": lambda: work(1e-5), "long": lambda: work(0.5)},
        rounds=3,
        min_sample_ms=10,
    )
    short, long = timings["short"], timings["long"]
    # 10 ms in all, and not many times that.
    assert 1000 <= short.calls_per_sample <= 2000
    assert long.calls_per_sample == 1
    assert np.allclose(short.samples_ms, 0.01)
    assert np.allclose(long.samples_ms, 500)
    assert math.isclose(short.speedup_over(long), 50_000)


def test_time_limit():
    calls = []
    timings = interleave(
        {"a": lambda: calls.append(time.sleep(0.01))},
        rounds=1_000_000,
        min_sample_ms=0,
        time_limit_s=0.05,
    )
    assert 1 <= len(timings["a"].samples_ms) <= 6
    one = interleave(
        {"a": int}, rounds=1_000_000, min_sample_ms=0, time_limit_s=0, warmup=0
    )
    assert len(one["a"].samples_ms) == 1


def test_figures():
    samples = [float(value) for value in np.random.default_rng(0).permutation(101)]
    timing = Timing(tuple(samples), 3, tuple(value / 1000 for value in samples))
    assert timing.median_ms == 50
    assert timing.min_ms == 0
    assert timing.max_ms == 100
    assert timing.mean_ms == 50
    assert timing.p90_ms == 90
    assert timing.p99_ms == 99
    assert timing.spread == (75 - 25) / 50
    assert timing.queue_share == 0.05
    assert timing.num_quiet_samples == 50  # 0 to 0.049
    assert timing.speedup_over(dataclasses.replace(timing, samples_ms=(200.0,))) == 4
    figures = json.loads(json.dumps(timing.to_dict()))
    assert figures["num_samples"] == 101
    assert figures["calls_per_sample"] == 3
    for name, value in figures.items():
        assert getattr(timing, name, value) == value
    assert str(timing) == ("median 50 ms, min 0, p90 90, spread 100%, quiet 50/101")


def test_without_a_gauge(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark._timing, "_TASKS", tmp_path / "missing")
    assert benchmark.run_queue_delays() is None
    timing = interleave({"a": int}, rounds=2, min_sample_ms=0)["a"]
    assert timing.queue_shares is None
    assert timing.queue_share is None
    assert timing.num_quiet_samples is None
    assert "quiet" not in str(timing)
    # A kernel that was built without these statistics.
    (tmp_path / "task" / "1").mkdir(parents=True)
    monkeypatch.setattr(benchmark._timing, "_TASKS", tmp_path / "task")
    assert benchmark.run_queue_delays() is None


@pytest.mark.skipif(benchmark.run_queue_delays() is None, reason="needs schedstat")
def test_the_gauge_sees_waiting():
    def spin(seconds):
        # Thread time, so that each of them really needs that much of a core.
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    def contended():
        # Pinned to one core, a child and this process have to share it.
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        try:
            process = os.posix_spawn(
                "/bin/sh", ["sh", "-c", "while :; do :; done"], os.environ
            )
            try:
                spin(0.2)
            finally:
                os.kill(process, 9)
                os.waitpid(process, 0)
        finally:
            os.sched_setaffinity(0, cores)

    timing = interleave({"a": contended}, rounds=1, warmup=0, min_sample_ms=0)["a"]
    assert timing.queue_share > 0.2
    assert timing.num_quiet_samples == 0
    # Sleeping is not waiting for a core.
    idle = interleave({"a": lambda: time.sleep(0.1)}, rounds=3, min_sample_ms=0)["a"]
    assert min(idle.queue_shares) < 0.2


@pytest.mark.skipif(benchmark.run_queue_delays() is None, reason="needs schedstat")
def test_the_gauge_reads_every_thread():
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait, args=(30,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    delays = benchmark.run_queue_delays()
    stop.set()
    for thread in threads:
        assert delays[str(thread.native_id)] >= 0
        thread.join()


def test_errors_come_through():
    counter = itertools.count()

    def fails():
        if next(counter) == 3:
            raise OSError("no such device")

    with pytest.raises(OSError, match="no such device"):
        interleave({"a": int, "b": fails}, rounds=10, min_sample_ms=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": {}}, "candidates={}"),
        ({"rounds": 0}, "rounds=0"),
        ({"warmup": -1}, "warmup=-1"),
        ({"min_sample_ms": -1}, "min_sample_ms=-1"),
        ({"min_sample_ms": math.inf}, "min_sample_ms=inf"),
        ({"min_sample_ms": math.nan}, "min_sample_ms=nan"),
        ({"time_limit_s": -1}, "time_limit_s=-1"),
        ({"time_limit_s": math.nan}, "time_limit_s=nan"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        interleave(**{"candidates": {"a": int}, **options})
