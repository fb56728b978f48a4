"""Chooses workers, threads and rows: by rule, by measuring, or from a file."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from tfopt.runner._engine import Engine
from tfopt.runner._inputs import random_input
from tfopt.runner._layout import Layout
from tfopt.runner._model_file import Entry
from tfopt.runner._options import Options
from tfopt.runner._tuning import auto_batch_rows, available_cores
from tfopt.types import TfoptError

_BUDGET_SECONDS = 0.3
_ROUNDS = 3
_SAMPLE_SECONDS = 5e-4  # a sample takes at least that long
# Less may be noise, so the rule stays; several cores are disturbed more than one.
_MIN_GAIN, _MIN_PARALLEL_GAIN = 1.1, 1.25
_MAX_ROWS = 512

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a Runner works.

    Attributes:
        num_workers: Interpreters that work in parallel.
        num_threads: Threads inside of each.
        batch_rows: The most rows of an invocation where that was left open and was
            measured; None: as given, or by rule.
        origin: Where it comes from.
        rows_per_second: What was measured, by candidate: "2 x 1" for 2 workers of 1
            thread, "64 rows" for a batch with one worker.
    """

    num_workers: int
    num_threads: int
    batch_rows: int | None = None
    origin: Literal["rule", "measured", "cache"] = "rule"
    rows_per_second: dict[str, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        figures = ", ".join(
            f"{name}: {speed:,.0f} rows/s"
            for name, speed in self.rows_per_second.items()
        )
        rows = f", batches of {self.batch_rows}" if self.batch_rows else ""
        return (
            f"{self.num_workers} workers x {self.num_threads} threads{rows} "
            f"({self.origin}{': ' * bool(figures)}{figures})"
        )


def by_rule(options: Options, limit: int | None, *, has_state: bool) -> Plan:
    """Returns the plan without measuring.

    A worker of one thread for each core gives the most rows per second, unless the
    memory allows fewer workers: then each gets several threads.

    Args:
        options: What was given.
        limit: The most workers that the memory allows; None: any number.
        has_state: Whether invocations must not run in parallel.
    """
    cores = available_cores()
    threads = options.num_threads if isinstance(options.num_threads, int) else 1
    if has_state:
        return Plan(1, threads)
    if isinstance(options.num_workers, int):
        return Plan(options.num_workers, threads)
    workers = max(1, cores // threads)
    if limit is not None and limit < workers:
        workers = limit
        if options.num_threads == "auto":
            threads = max(1, cores // workers)
        _logger.info(
            "%d workers, not %d, for want of memory; with isolate=True and one "
            "thread each they share the weights",
            *(workers, cores),
        )
    return Plan(workers, threads)


def measure(
    plan: Plan,
    options: Options,
    entry: Entry,
    layout: Layout,
    open_engine: Callable[[int], Engine],
    limit: int | None,
    engine: Engine,
) -> tuple[Plan, list[Engine]]:
    """Improves on the rule where a short trial shows that something else is faster.

    First the rows of an invocation are tried, half and double of the rule's, with one
    interpreter; then workers x threads. It takes about 0.3 s at most, with random
    inputs. What isn't faster by a tenth (a quarter, for workers x threads) does not
    count.

    Args:
        plan: The rule's.
        options: What was given; only what is "auto" is tried.
        entry: The signature.
        layout: How rows may be cut.
        open_engine: Opens an engine with a number of threads.
        limit: The most workers that the memory allows.
        engine: One with the rule's number of threads; it is kept or closed.

    Returns:
        The better plan, and engines with its number of threads. Where a trial fails
        the plan is the given one.
    """
    trial = _Trial(plan, options, entry, layout, open_engine, limit, engine)
    try:
        return trial.run(), trial.keep()
    except (RuntimeError, ValueError, TfoptError) as error:
        # It says nothing about real inputs; if it does, these will say it better.
        _logger.debug("not measured: %s", error)
        return plan, []
    finally:
        trial.close()


def is_measurable(plan: Plan, options: Options, layout: Layout | None) -> bool:
    """Whether there is something to choose that a trial can tell."""
    if layout is None or layout.mode == "whole":
        return False
    has_batch = options.batch_size == "auto" and layout.mode == "free"
    return has_batch or len(_splits(plan, options, None)) > 1


def _splits(plan: Plan, options: Options, limit: int | None) -> list[tuple[int, int]]:
    """Workers x threads to try, the rule's first; never more than the cores."""
    splits = [(plan.num_workers, plan.num_threads)]
    if options.num_threads != "auto" or options.batch_size is None:
        return splits
    cores = available_cores()
    if isinstance(options.num_workers, int):
        # Few or many: the cores are shared between the workers.
        splits.append((plan.num_workers, max(1, cores // plan.num_workers)))
    else:
        for threads in (1, 2, cores):
            splits.append((max(1, min(cores // threads, limit or cores)), threads))
    fitting = [(n, k) for n, k in splits[1:] if n * k <= cores]
    return list(dict.fromkeys([splits[0], *fitting]))


class _Trial:
    """Times candidates in turns; the engines that it opens are used again."""

    def __init__(
        self,
        plan: Plan,
        options: Options,
        entry: Entry,
        layout: Layout,
        open_engine: Callable[[int], Engine],
        limit: int | None,
        engine: Engine,
    ):
        self._plan = plan
        self._options = options
        self._entry = entry
        self._layout = layout
        self._open_engine = open_engine
        self._splits = _splits(plan, options, limit)
        self._engines: dict[int, list[Engine]] = {plan.num_threads: [engine]}
        self._latest = time.perf_counter() + _BUDGET_SECONDS
        self._speeds: dict[str, float] = {}

    def run(self) -> Plan:
        """Returns the fastest plan."""
        options, layout = self._options, self._layout
        batch_rows = None
        if options.batch_size == "auto" and layout.mode == "free":
            batch_rows = self._best_rows()
        rows = layout.rows or batch_rows or options.batch_size
        if isinstance(rows, int) and len(self._splits) > 1:
            workers, threads = self._best_split(rows)
        else:
            workers, threads = self._splits[0]
        self._plan = Plan(workers, threads, batch_rows, "measured", self._speeds)
        return self._plan

    def keep(self) -> list[Engine]:
        """Returns the engines that fit the plan, which `close` then leaves alone."""
        return self._engines.pop(self._plan.num_threads, [])[: self._plan.num_workers]

    def close(self) -> None:
        """Frees all other engines."""
        for engines in self._engines.values():
            for engine in engines:
                engine.close()

    def _best_rows(self) -> int:
        rule = auto_batch_rows(self._entry.activation_bytes)
        choices = [rule, *(n for n in (rule // 2, 2 * rule) if 1 <= n <= _MAX_ROWS)]
        (engine,) = self._take(1, self._plan.num_threads)
        arrays = {rows: self._inputs(rows) for rows in choices}
        seconds = _time(lambda: engine.run(arrays[rule]))  # with warming up
        seconds = min(seconds, _time(lambda: engine.run(arrays[rule])))
        if 5 * len(choices) * seconds > _BUDGET_SECONDS:
            return rule  # nothing can be said in time
        # The same rows for all, so that the samples are equally long.
        total = 2 * rule * max(1, math.ceil(_SAMPLE_SECONDS / (2 * seconds)))

        def sample(rows: int) -> float:
            engine.run(arrays[rows])  # at its size first
            calls = max(1, total // rows)
            taken = _time(lambda: [engine.run(arrays[rows]) for _ in range(calls)])
            return taken / (calls * rows)

        return self._fastest(choices, sample, lambda rows: f"{rows} rows", _MIN_GAIN)

    def _best_split(self, rows: int) -> tuple[int, int]:
        arrays = self._inputs(rows)
        (engine,) = self._take(1, self._plan.num_threads)
        engine.run(arrays)
        seconds = _time(lambda: engine.run(arrays))
        most = max(n for n, _ in self._splits)
        if 3 * len(self._splits) * seconds * most > _BUDGET_SECONDS:
            return self._splits[0]
        calls = 2 * most * max(1, math.ceil(_SAMPLE_SECONDS / seconds))
        for split in self._splits:  # opened and warm before anything counts
            for engine in self._take(*split):
                engine.run(arrays)

        def sample(split: tuple[int, int]) -> float:
            engines = self._take(*split)
            each = calls // len(engines)
            return _time_together(engines, arrays, each) / (each * len(engines) * rows)

        return self._fastest(
            self._splits,
            sample,
            lambda split: "{} x {}".format(*split),
            _MIN_PARALLEL_GAIN,
        )

    def _fastest(
        self,
        choices: Sequence,
        sample: Callable,
        name: Callable[..., str],
        min_gain: float,
    ) -> Any:
        """Returns the first choice, or the one that is clearly faster."""
        times: dict = {choice: [] for choice in choices}
        for _ in range(_ROUNDS):
            for choice in choices:
                times[choice].append(sample(choice))
            if time.perf_counter() > self._latest:
                break
        # Other processes only make a sample longer.
        best = {choice: min(seconds) for choice, seconds in times.items()}
        for choice, seconds in best.items():
            self._speeds[name(choice)] = 1 / seconds
        fastest = min(best, key=best.__getitem__)
        return fastest if best[choices[0]] > min_gain * best[fastest] else choices[0]

    def _take(self, workers: int, threads: int) -> list[Engine]:
        engines = self._engines.setdefault(threads, [])
        while len(engines) < workers:
            engines.append(self._open_engine(threads))
        return engines[:workers]

    def _inputs(self, rows: int) -> list[np.ndarray]:
        random = np.random.default_rng(0)
        infos = self._entry.signature.inputs
        return [
            random_input(random, info, (rows, *shape[1:]) if batched else shape)
            for info, shape, batched in zip(
                infos, self._entry.input_shapes, self._layout.is_batched, strict=True
            )
        ]


def _time(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _time_together(
    engines: Sequence[Engine], arrays: Sequence[np.ndarray], calls: int
) -> float:
    """Seconds that all engines take at once, each in a thread of its own."""
    if len(engines) == 1:
        return _time(lambda: [engines[0].run(arrays) for _ in range(calls)])
    start = threading.Barrier(len(engines) + 1)
    failures: list[BaseException] = []

    def work(engine: Engine) -> None:
        start.wait()
        try:
            for _ in range(calls):
                engine.run(arrays)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    start.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.perf_counter() - begin
