"""The figures of one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfopt.benchmark._timing import Timing


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpTime:
    """What one operator takes.

    Attributes:
        name: Its name in a graph; in a `.tflite` file its number, or `"1.3"` for
            kernel 3 in the second part of the graph that a delegate runs.
        op: What it does, such as `"Convolution (NHWC, F32) IGEMM"` or `"Conv2D"`.
        time_us: Mean microseconds of a run.
        share: Its part of the sum over all operators.
    """

    name: str
    op: str
    time_us: float
    share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """The figures of one model; `None` where something could not be measured.

    Attributes:
        name: What it is called.
        path: Where it is.
        format: `"tflite"`, `"keras"`, `"saved_model"` or `"graph_def"`.
        error: Why there are no more figures; `None` if there are.
        size_bytes: Size of the file or folder.
        gzip_bytes: Its size after `gzip -9`.
        rows: Examples in one call.
        num_workers: Parallel calls in the throughput measurement.
        num_threads: Threads inside of a call; `"auto"`: as many as TensorFlow takes.
        import_ms: Milliseconds to import what runs the model.
        load_ms: Milliseconds from the file to a model that is ready.
        first_ms: Milliseconds of the first call.
        calls_ms: Milliseconds of every single call, round by round.
        latency: The rounds' medians, and their spread.
        throughput: Milliseconds for one row, in rounds with all workers.
        peak_added_bytes: How far the resident set rose above that before loading.
        private_bytes: Added memory that is this process's alone, after the first call.
        profile: Operators, dearest first; empty unless asked for.
        autotuned: The set-ups that were tried, fastest first.
        signature: What the model takes and gives.
        notes: What else is worth knowing.
    """

    name: str
    path: str
    format: str
    error: str | None = None
    size_bytes: int | None = None
    gzip_bytes: int | None = None
    rows: int | None = None
    num_workers: int | None = None
    num_threads: int | str | None = None
    import_ms: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    calls_ms: tuple[float, ...] = dataclasses.field(default=(), repr=False)
    latency: Timing | None = None
    throughput: Timing | None = None
    peak_added_bytes: int | None = None
    private_bytes: int | None = None
    profile: tuple[OpTime, ...] = ()
    autotuned: tuple[Mapping[str, Any], ...] = ()
    signature: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def rows_per_second(self) -> float | None:
        """Examples in a second with all workers, by the median round."""
        return None if self.throughput is None else 1e3 / self.throughput.median_ms

    @property
    def quiet_rounds(self) -> tuple[int | None, int]:
        """Rounds whose threads waited less than 5 % of the time, and all rounds."""
        timings = [item for item in (self.latency, self.throughput) if item is not None]
        quiet = [item.num_quiet_samples for item in timings]
        known = [number for number in quiet if number is not None]
        rounds = sum(len(item.samples_ms) for item in timings)
        return sum(known) if known and len(known) == len(quiet) else None, rounds

    @property
    def is_noisy(self) -> bool:
        """Whether threads waited for a core in more than half of the rounds."""
        quiet, rounds = self.quiet_rounds
        return quiet is not None and quiet * 2 < rounds

    def percentile_ms(self, percent: float) -> float | None:
        """Returns the milliseconds that so many percent of the calls took at most."""
        return float(np.percentile(self.calls_ms, percent)) if self.calls_ms else None

    def to_json(self) -> dict[str, Any]:
        """Returns plain data; of the calls their number and percentiles."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "calls_ms"
        }
        for name in ("latency", "throughput"):
            timing = fields[name]
            fields[name] = None if timing is None else timing.to_dict()
        return {
            **fields,
            "num_calls": len(self.calls_ms),
            "p50_ms": self.percentile_ms(50),
            "p90_ms": self.percentile_ms(90),
            "p99_ms": self.percentile_ms(99),
            "rows_per_second": self.rows_per_second,
            "is_noisy": self.is_noisy,
        }


def mean_profile(runs: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[OpTime, ...]:
    """Returns what each operator takes on average, dearest first.

    Args:
        runs: For each run its operators: `name`, `op` and `time_us`. Those that only
            some of the runs have (copies that TensorFlow makes at need) count as 0
            in the others.
    """
    times: dict[tuple[str, str], float] = {}
    for run in runs:
        for row in run:
            key = (row["name"], row["op"])
            times[key] = times.get(key, 0.0) + row["time_us"] / len(runs)
    total = sum(times.values()) or 1.0
    rows = [
        OpTime(name=name, op=op, time_us=time, share=time / total)
        for (name, op), time in times.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.time_us))
