"""Runner: how workers, threads and rows are chosen, and what memory allows."""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib

import numpy as np
import pytest
import runner_samples as samples

from tfopt import affine
from tfopt.runner import Runner, _memory, _plan_cache, _planning, _tuning
from tfopt.runner._model_file import read_model_file
from tfopt.types import TfoptError


def rows(count, width=8, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@pytest.fixture
def forgetful(monkeypatch):
    """As in a process that has measured nothing so far, on four cores."""
    monkeypatch.setattr(_plan_cache, "_plans", {})
    for module in (_tuning, _planning, _plan_cache):
        monkeypatch.setattr(module, "available_cores", lambda: 4)


def test_what_is_open_is_measured_once(forgetful, caplog):
    caplog.set_level(logging.DEBUG, "tfopt.runner._plan_cache")
    with Runner(samples.dense()) as runner:
        first = runner.plan
        assert "(measured: " in first
        assert " rows/s" in first
        assert "4 x 1: " in first
        assert "1 x 4: " in first
        assert first in caplog.text
        assert runner.num_workers * runner.num_threads <= 4
        rule = _tuning.auto_batch_rows(32)
        assert runner.batch_size in (rule // 2, rule, 2 * rule)
        assert np.allclose(runner.run(rows(999)), rows(999) @ samples.WEIGHTS, 1e-4)
    caplog.clear()
    with Runner(samples.dense()) as runner:
        assert runner.plan == first
    assert not caplog.records


def test_what_is_given_stays(forgetful):
    given = {"num_workers": 3, "num_threads": 2, "batch_size": 5}
    with Runner(samples.dense(), **given) as runner:
        assert "(rule)" in runner.plan
        assert (runner.num_workers, runner.num_threads, runner.batch_size) == (3, 2, 5)
    with Runner(samples.dense(), num_threads=2, batch_size=5) as runner:
        assert (runner.num_workers, runner.num_threads) == (2, 2)
    with Runner(samples.dense(), num_workers=2, batch_size=5) as runner:
        assert runner.num_workers == 2
        assert runner.num_threads in (1, 2)
        assert "2 x 2: " in runner.plan
    for sample in ("mean", "positive", "image_filter", "accumulator"):
        with Runner(getattr(samples, sample)()) as runner:
            assert "(rule)" in runner.plan
    with Runner(samples.fixed()) as runner:
        assert "4 x 1: " in runner.plan
        assert " rows:" not in runner.plan
    with Runner(samples.words()) as runner:  # strings cannot be made up
        assert "(rule)" in runner.plan


class Clock:
    """Stands in for the module `time`; engines move it on."""

    now = 0.0

    def perf_counter(self):
        return self.now


class Slow:
    """An engine that takes a given time for a number of rows."""

    last_thread = 0

    def __init__(self, clock, seconds):
        self._clock = clock
        self._seconds = seconds

    def run(self, arrays):
        self._clock.now += self._seconds(len(arrays[0]))
        return []

    def close(self):
        pass


@pytest.fixture
def chosen(forgetful, monkeypatch):
    """Returns the plan for engines that take `seconds(threads, rows)`."""
    clock = Clock()
    monkeypatch.setattr(_planning, "time", clock)

    def together(engines, arrays, calls):
        return _planning._time(lambda: [engines[0].run(arrays) for _ in range(calls)])

    monkeypatch.setattr(_planning, "_time_together", together)
    with Runner(samples.dense(), num_workers=1, num_threads=1, batch_size=1) as runner:
        entry, layout, options = runner._entry, runner._layout, runner._options

    def choose(seconds, **given):
        given = {"num_workers": "auto", "num_threads": "auto", "batch_size": 8, **given}
        asked = dataclasses.replace(options, **given)
        rule = _planning.by_rule(asked, None, has_state=False)

        def open_engine(threads):
            return Slow(clock, lambda count: seconds(threads, count))

        engine = open_engine(rule.num_threads)
        arguments = (rule, asked, entry, layout, open_engine, None, engine)
        plan, engines = _planning.measure(*arguments)
        assert 1 <= len(engines) <= plan.num_workers
        return plan

    return choose


def test_the_faster_one_is_chosen(chosen):
    plan = chosen(lambda threads, count: 4e-3 / (8 if threads == 4 else 1))
    assert (plan.num_workers, plan.num_threads, plan.origin) == (1, 4, "measured")
    assert plan.rows_per_second["4 x 1"] == pytest.approx(4 * 8 / 4e-3)
    assert plan.rows_per_second["1 x 4"] == pytest.approx(8 / 0.5e-3)
    plan = chosen(lambda threads, count: 4e-3)
    assert (plan.num_workers, plan.num_threads) == (4, 1)
    rule = _tuning.auto_batch_rows(32)
    few = {"num_workers": 1, "num_threads": 1, "batch_size": "auto"}
    plan = chosen(lambda threads, count: 1e-3, **few)
    assert plan.batch_rows == 2 * rule
    plan = chosen(lambda threads, count: 1e-3 * count**2 / rule**2, **few)
    assert plan.batch_rows == rule // 2
    # A gain of less than a tenth may be noise.
    plan = chosen(lambda threads, count: 1e-3 * (count + 0.1 * rule), **few)
    assert plan.batch_rows == rule
    # What takes too long is not measured.
    plan = chosen(lambda threads, count: 0.1, **few)
    assert (plan.batch_rows, plan.rows_per_second) == (rule, {})


def test_a_cache_file(forgetful, tmp_path, monkeypatch):
    path = tmp_path / "tuning.json"
    with Runner(samples.dense(), tuning_cache=path) as runner:
        first = runner.plan
    content = json.loads(path.read_text())
    (name,) = content["plans"]
    assert "4 cores" in name
    assert "ai-edge-litert" in name
    monkeypatch.setattr(_plan_cache, "_plans", {})
    with Runner(samples.dense(), tuning_cache=str(path)) as runner:
        assert runner.plan == first.replace("measured", "cache")
    with Runner(samples.fixed(), tuning_cache=path):
        pass
    (tmp_path / "m.tflite").write_bytes(samples.dense())  # the content counts
    with Runner(tmp_path / "m.tflite", tuning_cache=path) as runner:
        assert "cache" in runner.plan
    with Runner(samples.dense(), tuning_cache=path, batch_size=4):
        pass
    assert len(json.loads(path.read_text())["plans"]) == 3
    # Values are taken from there, whatever they are.
    content["plans"][name] |= {"num_workers": 3, "batch_rows": 17}
    path.write_text(json.dumps(content))
    with Runner(samples.dense(), tuning_cache=path) as runner:
        assert (runner.num_workers, runner.batch_size) == (3, 17)


@pytest.mark.parametrize("content", ["", "[]", '{"format": "other"}', "\xff"])
def test_other_files_are_no_cache(forgetful, tmp_path, content):
    path = tmp_path / "notes.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(TfoptError, match="Not a tuning cache"):
        Runner(samples.dense(), tuning_cache=path)
    assert path.read_bytes() == content.encode("latin-1")


def test_damaged_entries_are_errors(forgetful, tmp_path):
    path = tmp_path / "tuning.json"
    with Runner(samples.dense(), tuning_cache=path):
        pass
    path.write_text(path.read_text().replace("num_threads", "threads"))
    with pytest.raises(TfoptError, match="damaged entry"):
        Runner(samples.dense(), tuning_cache=path)


def large():
    """x [?, 2048] -> x @ 16 MB @ 16 MB."""
    import tensorflow as tf

    weights = np.random.default_rng(0).normal(size=(2048, 2048)).astype(np.float32)
    return samples.convert(
        lambda x: tf.matmul(tf.matmul(x, weights), weights, transpose_b=True),
        samples.spec(None, 2048),
    )


@pytest.fixture(scope="module")
def large_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "large.tflite"
    path.write_bytes(large())
    return path


def children_of(pid):
    main = os.getpid() if pid == "self" else pid
    found = []
    for task in pathlib.Path(f"/proc/{main}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended
            found += (task / "children").read_text().split()
    return found


def private_bytes(others):
    """Memory of this process and its new children, shared pages counted once."""
    total = 0
    children = [pid for pid in children_of("self") if pid not in others]
    forks = [pid for child in children for pid in children_of(child)]
    for pid in ("self", *children, *forks):
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Pss_Anon:"):
                    total += int(line.split()[1]) * 1024
    return total


def test_isolated_workers_share_the_weights(large_path):
    x = np.ones((8, 2048), np.float32)
    size = os.path.getsize(large_path)
    others = children_of("self")  # such as another run of tests
    with Runner(large_path, num_workers=3, num_threads=1, isolate=True) as runner:
        pool = runner._pool._engines
        used = []
        engines = []
        for _ in range(3):
            engines.append(pool.take())
            engines[-1].run([x])
            used.append(private_bytes(others))
        for engine in engines:
            pool.give(engine)
        needed = _memory.needs(
            runner._file, runner._entry, runner._options, isolate=True
        )
        assert needed.shared > size
        assert needed.each < 0.5 * size
        # Two more copies would be twice the size; this is what forks touch.
        assert used[2] - used[0] < 0.9 * size
        alone = _memory.needs(
            runner._file, runner._entry, runner._options, isolate=False
        )
        assert alone.shared == 0
        assert alone.each > 0.99 * size


def test_memory_bounds_the_workers(forgetful, large_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "tfopt.runner")
    size = os.path.getsize(large_path)
    with Runner(large_path, max_memory=4 * size, batch_size=8) as runner:
        assert runner.num_workers in (1, 2, 3)  # fewer with threads may be faster
        assert "for want of memory" in caplog.text
    with Runner(large_path, max_memory=2 * size, num_threads=1) as runner:
        assert runner.num_workers == 1
    with Runner(large_path, max_memory=100 * size, num_threads=1) as runner:
        assert runner.num_workers == 4
    # So does what is free.
    monkeypatch.setattr(_memory, "available_bytes", lambda: 7 * size)
    with Runner(large_path, num_threads=1, batch_size=1) as runner:
        assert runner.num_workers == 3
    with Runner(large_path, num_threads=1, num_workers=4) as runner:
        assert runner.num_workers == 4
    with pytest.raises(ValueError, match=r"1 worker of this model needs about.*memory"):
        Runner(large_path, max_memory=size // 2)
    with pytest.raises(ValueError, match=r"4 workers of this model need about"):
        Runner(large_path, max_memory=3 * size, num_workers=4)
    for value in (0, -5, 1.5, "auto"):
        with pytest.raises(ValueError, match="max_memory"):
            Runner(large_path, max_memory=value)


def test_free_memory_is_known():
    assert _memory.available_bytes() is None or _memory.available_bytes() > 1 << 20


def test_float16_weights_are_no_activations():
    import tensorflow as tf

    def setting(converter):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]

    weights = np.ones((256, 512), np.float32)
    content = samples.convert(
        lambda x: tf.matmul(x, weights), samples.spec(None, 256), setting=setting
    )
    file = read_model_file(content)
    (entry,) = file.entries
    assert entry.activation_bytes == 4 * 512
    assert entry.derived_bytes == 4 * weights.size
    assert 2 * weights.size <= file.weight_bytes < 2.1 * weights.size


def test_16_bit_integers():
    x = rows(40)
    with Runner(samples.integers16(), batch_size=8) as runner:
        (info,), (out,) = runner.signature.inputs, runner.signature.outputs
        assert info.dtype == out.dtype == np.int16
        codes = np.rint(x / info.scale[0]).clip(-(2**15), 2**15 - 1).astype(np.int16)
        integers = runner.run(codes)
        assert integers.dtype == np.int16
        expected = affine.dequantize(integers, out.scale[0], out.zero_point[0])
        floats = runner.run(x)
        assert np.array_equal(floats, expected)
        reference = np.maximum(x @ samples.WEIGHTS, 0)
        assert np.abs(floats - reference).max() < 0.1
        assert np.abs(floats - 1.05 * reference).max() > 0.1
