"""The tables of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfopt.benchmark._measurement import Measurement
from tfopt.report import Column, Report, Table

_MB = 1e6
_PROFILED_ROWS = 15
_NOTES = (
    "A call goes from NumPy arrays to NumPy arrays, in every format; Keras files run "
    "as one traced tf.function. Percentiles are over all calls, the spread is that of "
    "the rounds' medians (75 % minus 25 %, of the median).",
    "Each model has a process of its own; rounds go from one to the next in turn. "
    "Waiting: the share of the time that its threads were ready to run but had no "
    "core, by the kernel's count; quiet rounds waited less than 5 %. Where most "
    "rounds waited, the row is marked as noisy: measure it again on an idle machine.",
    "Memory is what came on top of the process with its libraries imported: at the "
    "peak of the resident set, and what is private to the process after a call.",
)
_TIMES = (
    Column(key="p50_ms", title="p50", unit="ms", better="lower"),
    Column(key="p90_ms", title="p90", unit="ms"),
    Column(key="p99_ms", title="p99", unit="ms"),
    Column(key="spread", format=".0%"),
    Column(key="rows_per_second", title="rows per s", format=",.0f", better="higher"),
    Column(key="queue_share", title="waiting", format=".0%"),
    Column(key="quiet", title="quiet rounds"),
    Column(key="num_calls", title="calls"),
    Column(key="rows"),
    Column(key="setup", title="workers × threads"),
)
_COSTS = (
    Column(key="size_bytes", title="file", unit="bytes", better="lower"),
    Column(key="gzip_bytes", title="gzip", unit="bytes", better="lower"),
    Column(key="load_ms", title="load", unit="ms"),
    Column(key="first_ms", title="first call", unit="ms"),
    Column(key="import_ms", title="import", unit="ms", format=",.0f"),
    Column(key="peak_mb", title="peak memory", unit="MB", format=",.1f"),
    Column(key="private_mb", title="private memory", unit="MB", format=",.1f"),
)
_PROFILE = (
    Column(key="op", title="operator"),
    Column(key="time_us", title="time", unit="µs", format=",.1f"),
    Column(key="share", format=".1%"),
)
_TUNING = (
    Column(key="rows"),
    Column(key="rows_per_second", title="rows per s", format=",.0f", better="higher"),
)


def report(measurements: Sequence[Measurement], settings: Mapping[str, Any]) -> Report:
    """Returns the report of a benchmark."""
    rows = {item.name: _row(item) for item in measurements}
    failed = {
        item.name: f"Not measured: {item.error}" for item in measurements if item.error
    }
    tables = [
        Table(
            title="Latency of a call, and throughput",
            columns=_TIMES,
            rows=rows,
            footnotes=failed,
        ),
        Table(title="What a model takes", columns=_COSTS, rows=rows),
    ]
    for item in measurements:
        tables += _profile_tables(item) + _tuning_tables(item)
    return Report(
        title="Benchmark",
        tables=tables,
        notes=[
            *_NOTES,
            *_profile_notes(measurements),
            *(f"{item.name}: {note}" for item in measurements for note in item.notes),
        ],
        data={"settings": dict(settings), "models": list(measurements)},
    )


def _row(item: Measurement) -> dict[str, Any]:
    latency = item.latency
    figures = item.to_json()
    setup = None
    if item.num_workers is not None:
        setup = f"{item.num_workers} × {item.num_threads}"
    if item.error:  # a broken file is no small model
        figures |= {"size_bytes": None, "gzip_bytes": None}
    return {
        **figures,
        "spread": latency and latency.spread,
        "queue_share": latency and latency.queue_share,
        "quiet": _quiet(item),
        "setup": setup,
        "num_calls": figures["num_calls"] or None,
        "peak_mb": _megabytes(item.peak_added_bytes),
        "private_mb": _megabytes(item.private_bytes),
    }


def _quiet(item: Measurement) -> str | None:
    """How many rounds were quiet; a row with few of them is marked."""
    quiet, rounds = item.quiet_rounds
    if quiet is None:
        return None
    return f"{quiet} of {rounds}" + (" (noisy)" if item.is_noisy else "")


def _profile_tables(item: Measurement) -> list[Table]:
    if not item.profile:
        return []
    shown = item.profile[:_PROFILED_ROWS]
    rows: dict[str, dict[str, Any]] = {}
    for row in shown:
        name = row.name if row.name not in rows else f"{row.name} ({row.op})"
        rows[name] = {"op": row.op, "time_us": row.time_us, "share": row.share}
    rest = item.profile[_PROFILED_ROWS:]
    if rest:
        rows[f"{len(rest)} more"] = {
            "op": None,
            "time_us": sum(row.time_us for row in rest),
            "share": sum(row.share for row in rest),
        }
    title = f"Where the time of {item.name} goes"
    return [Table(title=title, columns=_PROFILE, rows=rows, corner="node")]


def _tuning_tables(item: Measurement) -> list[Table]:
    if not item.autotuned:
        return []
    rows = {
        f"{row['num_workers']} × {row['num_threads']}, {row['rows']} rows": row
        for row in item.autotuned
    }
    title = f"Set-ups of {item.name}, best first"
    return [Table(title=title, columns=_TUNING, rows=rows, corner="workers × threads")]


def _profile_notes(measurements: Sequence[Measurement]) -> list[str]:
    formats = {item.format for item in measurements if item.profile}
    notes = []
    if "tflite" in formats:
        notes.append(
            "Operators of .tflite files are timed by LiteRT's own profiler (its C "
            "interface, on what the Runner loads) in whole microseconds, XNNPACK's "
            "kernels rounded down; means of many runs. 1.3 is kernel 3 in the second "
            "part of the graph that XNNPACK runs, 7 is node 7 of the file."
        )
    if formats - {"tflite"}:
        notes.append(
            "Operators of graphs are timed by TensorFlow's tracing of the frozen graph "
            "after its own optimization; parallel ones overlap, and tracing takes time."
        )
    return notes


def _megabytes(size: int | None) -> float | None:
    return None if size is None else size / _MB
