"""Honest timing: candidates in turn, medians, and a gauge of the machine's noise.

Two programs timed one after the other measure the machine's mood as much as the
programs: clocks change, neighbours come and go. So candidates run in turn, A B C A B C,
in one process, and for every sample the time that this process's threads spent
waiting for a core is read from the kernel. A comparison whose samples waited is not
wrong by default, but it says so.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

_TASKS = pathlib.Path("/proc/self/task")
# Samples that waited less than this share of their time count as quiet.
_QUIET_SHARE = 0.05
_MAX_CALLS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of one candidate, each sample being the mean over some calls.

    Attributes:
        samples_ms: Milliseconds of one call, sample by sample, in time order.
        calls_per_sample: How often the candidate was called in each sample.
        queue_shares: For each sample the share of its time that threads of this
            process were runnable but had no core; above 1 when several waited.
            None where the kernel doesn't tell.
    """

    samples_ms: tuple[float, ...]
    calls_per_sample: int
    queue_shares: tuple[float, ...] | None = None

    @property
    def median_ms(self) -> float:
        """Half of the samples took less."""
        return self._percentile(50)

    @property
    def min_ms(self) -> float:
        """The fastest sample: what the code can do on an idle machine."""
        return min(self.samples_ms)

    @property
    def mean_ms(self) -> float:
        """The arithmetic mean."""
        return float(np.mean(self.samples_ms))

    @property
    def p90_ms(self) -> float:
        """90 % of the samples took less."""
        return self._percentile(90)

    @property
    def p99_ms(self) -> float:
        """99 % of the samples took less."""
        return self._percentile(99)

    @property
    def max_ms(self) -> float:
        """The slowest sample."""
        return max(self.samples_ms)

    @property
    def spread(self) -> float:
        """Middle half of the samples (75 % minus 25 %) as a fraction of the median."""
        return (self._percentile(75) - self._percentile(25)) / self.median_ms

    @property
    def queue_share(self) -> float | None:
        """Median share of the time that threads waited for a core; None if unknown."""
        if self.queue_shares is None:
            return None
        return float(np.median(self.queue_shares))

    @property
    def num_quiet_samples(self) -> int | None:
        """Samples whose threads waited less than 5 % of the time; None if unknown."""
        if self.queue_shares is None:
            return None
        return sum(share < _QUIET_SHARE for share in self.queue_shares)

    def speedup_over(self, reference: Timing) -> float:
        """Returns how many times faster this is: the ratio of the medians."""
        return reference.median_ms / self.median_ms

    def to_dict(self) -> dict[str, float | int | None]:
        """Returns the figures for a JSON report."""
        return {
            "median_ms": self.median_ms,
            "min_ms": self.min_ms,
            "mean_ms": self.mean_ms,
            "p90_ms": self.p90_ms,
            "p99_ms": self.p99_ms,
            "max_ms": self.max_ms,
            "spread": self.spread,
            "num_samples": len(self.samples_ms),
            "calls_per_sample": self.calls_per_sample,
            "queue_share": self.queue_share,
            "num_quiet_samples": self.num_quiet_samples,
        }

    def __str__(self) -> str:
        noise = ""
        if self.num_quiet_samples is not None:
            noise = f", quiet {self.num_quiet_samples}/{len(self.samples_ms)}"
        return (
            f"median {self.median_ms:.4g} ms, min {self.min_ms:.4g}, "
            f"p90 {self.p90_ms:.4g}, spread {self.spread:.0%}{noise}"
        )

    def _percentile(self, percent: float) -> float:
        return float(np.percentile(self.samples_ms, percent))


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 10,
    warmup: int = 1,
    min_sample_ms: float = 20.0,
    time_limit_s: float | None = None,
) -> dict[str, Timing]:
    """Times candidates in turn: A B C A B C ...

    Args:
        candidates: Functions without arguments, by name. Results are thrown away.
        rounds: Samples of each candidate.
        warmup: Calls of each candidate before anything counts.
        min_sample_ms: A candidate that is faster than this is called several times
            within a sample, so that the clock and the gauge don't matter.
        time_limit_s: No round begins later than this after the first one; one round
            is always made. None: no limit.

    Returns:
        For each candidate its `Timing`, in the order given.

    Raises:
        ValueError: There is nothing to time, or an option is out of range. What a
            candidate raises comes through as it is.

    Example:
        >>> timings = interleave(
        ...     {
        ...         "predict": lambda: model.predict(images, verbose=0),
        ...         "runner": lambda: runner.run(images),
        ...     },
        ...     rounds=5,
        ... )
        >>> timings["runner"].speedup_over(timings["predict"])  # doctest: +SKIP
        13.2
    """
    _check(candidates, rounds, warmup, min_sample_ms, time_limit_s)
    for candidate in candidates.values():
        for _ in range(warmup):
            candidate()
    calls = {
        name: _calls_per_sample(candidate, min_sample_ms)
        for name, candidate in candidates.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    shares: dict[str, list[float | None]] = {name: [] for name in candidates}
    begin = time.perf_counter()
    for _ in range(rounds):
        for name, candidate in candidates.items():
            seconds, share = _sample(candidate, calls[name])
            samples[name].append(seconds * 1e3 / calls[name])
            shares[name].append(share)
        if time_limit_s is not None and time.perf_counter() - begin > time_limit_s:
            break
    return {
        name: Timing(
            samples_ms=tuple(samples[name]),
            calls_per_sample=calls[name],
            queue_shares=all_or_none(shares[name]),
        )
        for name in candidates
    }


def run_queue_delays() -> dict[str, int] | None:
    """Returns nanoseconds each thread of this process has waited for a core so far.

    Reads the second figure of `/proc/self/task/*/schedstat`
    (https://docs.kernel.org/scheduler/sched-stats.html).

    Returns:
        By thread id; None where the kernel does not tell.
    """
    delays = {}
    try:
        threads = list(_TASKS.iterdir())
    except OSError:
        return None
    for thread in threads:
        try:
            delays[thread.name] = int((thread / "schedstat").read_text().split()[1])
        except ProcessLookupError:  # it ended while we looked
            continue
        except (OSError, IndexError, ValueError):
            if thread.exists():
                return None
    return delays


def queue_share(
    before: Mapping[str, int] | None, after: Mapping[str, int] | None, seconds: float
) -> float | None:
    """Returns the share of a duration that threads waited for a core.

    Args:
        before: `run_queue_delays` at its begin.
        after: The same at its end.
        seconds: How long it took.
    """
    if before is None or after is None:
        return None
    waited_ns = sum(delay - before.get(thread, 0) for thread, delay in after.items())
    return waited_ns / 1e9 / seconds


def _check(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int,
    min_sample_ms: float,
    time_limit_s: float | None,
) -> None:
    if not candidates:
        raise ValueError(
            "Nothing to time. Expected at least one function. Received: candidates={}"
        )
    if rounds < 1:
        raise ValueError(f"Expected at least one round. Received: rounds={rounds}")
    if warmup < 0:
        raise ValueError(f"Expected 0 or more calls. Received: warmup={warmup}")
    if not 0 <= min_sample_ms < math.inf:
        raise ValueError(
            "Expected a duration of 0 or more milliseconds. "
            f"Received: min_sample_ms={min_sample_ms}"
        )
    if time_limit_s is not None and not time_limit_s >= 0:
        raise ValueError(
            f"Expected 0 or more seconds. Received: time_limit_s={time_limit_s}"
        )


def _calls_per_sample(candidate: Callable[[], object], min_sample_ms: float) -> int:
    calls = 1
    while True:
        taken_ms = _time(candidate, calls) * 1e3
        if taken_ms >= min_sample_ms or calls >= _MAX_CALLS:
            return calls
        # Never more than tenfold at once: the first calls may be untypical.
        missing = min_sample_ms / max(taken_ms, 1e-6)
        calls = min(math.ceil(calls * min(max(missing * 1.1, 1.5), 10)), _MAX_CALLS)


def _sample(candidate: Callable[[], object], calls: int) -> tuple[float, float | None]:
    before = run_queue_delays()
    seconds = _time(candidate, calls)
    return seconds, queue_share(before, run_queue_delays(), seconds)


def _time(candidate: Callable[[], object], calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        candidate()
    return time.perf_counter() - begin


def all_or_none(shares: Sequence[float | None]) -> tuple[float, ...] | None:
    """Returns the shares, or None if one isn't known."""
    known = tuple(share for share in shares if share is not None)
    return known if len(known) == len(shares) else None
