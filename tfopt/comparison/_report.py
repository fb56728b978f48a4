"""The report of a comparison: its tables and charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfopt.comparison._judging import Judged
from tfopt.report import Bars, Column, Metric, Report, Scatter, Table

_BARS = 12
_AGREEMENT = (
    Column(key="argmax_agreement", title="same argmax", format=".2%", better="higher"),
    Column(key="max_difference", title="largest difference", better="lower"),
    Column(key="mean_difference", title="mean difference", better="lower"),
    Column(key="sqnr_db", title="SQNR", unit="dB", format=".1f", better="higher"),
)
_SIZES = (
    Column(key="size_bytes", title="file", unit="bytes", better="lower"),
    Column(key="gzip_bytes", title="gzip", unit="bytes", better="lower"),
    Column(key="size_ratio", title="gzip ratio", unit="×", format=".2f"),
)
_TIMES = (
    Column(key="p50_ms", title="latency", unit="ms", better="lower"),
    Column(key="p90_ms", title="p90", unit="ms"),
    Column(key="speedup", title="speed-up", unit="×", format=".2f"),
    Column(key="rows_per_second", title="rows per s", format=",.0f", better="higher"),
    Column(key="quiet", title="quiet rounds"),
)
_CONTENT = (
    Column(key="format"),
    Column(key="parameters"),
    Column(key="sparsity", format=".1%"),
    Column(key="macs", title="multiplications"),
    Column(key="weight_bytes", title="weights", unit="bytes"),
    Column(key="load_ms", title="load", unit="ms", format=",.0f"),
    Column(key="peak_mb", title="peak memory", unit="MB", format=",.1f"),
)
_NOTES = (
    "Latency is the median over single calls, NumPy array to NumPy array; rows per s "
    "that of all workers. Models were timed in turn, each in a process of its own. "
    "Quiet rounds waited for a core in less than 5 % of the time; a row with few of "
    "them is noisy, and its times say little.",
    "SQNR: energy of the reference's outputs over that of the difference, in decibels. "
    "Differences are absolute. Quantized outputs were dequantized before.",
    "Sparsity: fraction of the weights that are zero. Ratios and speed-ups are over "
    "the reference.",
)


def make(
    judged: Sequence[Judged], metrics: Sequence[Metric], reference: str, examples: int
) -> Report:
    """Returns the report.

    Args:
        judged: The models' figures.
        metrics: What their quality was measured by.
        reference: Name of the model that the others are compared with.
        examples: How many there were.
    """
    base = next(item for item in judged if item.measurement.name == reference)
    rows = {item.measurement.name: _row(item, base, metrics) for item in judged}
    failed = {
        item.measurement.name: f"Failed: {item.error}" for item in judged if item.error
    }
    quality = [
        Column(key=item.name, format=item.format, better=item.better)
        for item in metrics
    ] or [_AGREEMENT[0] if _have_classes(rows) else _AGREEMENT[-1]]
    rows_a_call = base.measurement.rows
    tables = [
        Table(
            title=f"Models on {examples:,} examples, timed with {rows_a_call} a call",
            columns=[*quality, *_SIZES, *_TIMES],
            rows=rows,
            footnotes=failed,
        ),
        Table(title=f"Agreement with {reference}", columns=_AGREEMENT, rows=rows),
        Table(title="Content", columns=_CONTENT, rows=rows),
        *_precision(judged),
    ]
    return Report(
        title="Comparison of models",
        tables=tables,
        notes=[*_NOTES, *_own_notes(judged, rows_a_call)],
        data={
            "reference": reference,
            "num_examples": examples,
            "metrics": [item.name for item in metrics],
            "models": {item.measurement.name: _plain(item) for item in judged},
        },
        charts=[*_scatters(quality), *_bars(judged)],
    )


def plots(report: Report) -> list[tuple[str, str]]:
    """Returns the x and y columns of the plots of a report."""
    return [(item.x, item.y) for item in report.charts if isinstance(item, Scatter)]


def _row(item: Judged, base: Judged, metrics: Sequence[Metric]) -> dict[str, Any]:
    found, inside = item.measurement, item.inspection or {}
    figures = found.to_json()
    peak = found.peak_added_bytes
    quiet, rounds = found.quiet_rounds
    noisy = " (noisy)" if found.is_noisy else ""
    first = base.measurement
    return {
        **figures,
        **{metric.name: item.metrics.get(metric.name) for metric in metrics},
        **{column.key: item.agreement.get(column.key) for column in _AGREEMENT},
        **_sizes(item, first.gzip_bytes),
        "speedup": _ratio(first.percentile_ms(50), found.percentile_ms(50)),
        "quiet": None if quiet is None else f"{quiet} of {rounds}{noisy}",
        "parameters": inside.get("parameters"),
        "sparsity": inside.get("sparsity"),
        "macs": inside.get("macs"),
        "weight_bytes": inside.get("weight_bytes"),
        "peak_mb": None if peak is None else peak / 1e6,
    }


def _sizes(item: Judged, base: int | None) -> dict[str, Any]:
    """The sizes of a model that works: a broken file is no small model."""
    if item.error:
        return {column.key: None for column in _SIZES}
    found = item.measurement
    return {
        "size_bytes": found.size_bytes,
        "gzip_bytes": found.gzip_bytes,
        "size_ratio": _ratio(base, found.gzip_bytes),
    }


def _precision(judged: Sequence[Judged]) -> Iterator[Table]:
    """Yields how weights and operators divide among number types, in shares."""
    titles = {
        "weight_bytes": "Share of the weights' bytes, by type",
        "operators": "Share of the operators, by the type they compute in",
    }
    for key, title in titles.items():
        counts = {
            item.measurement.name: _counts(item, key)
            for item in judged
            if item.inspection is not None
        }
        kinds = sorted({kind for row in counts.values() for kind in row})
        if not kinds:
            continue
        columns = [Column(key=kind, title=kind, format=".1%") for kind in kinds]
        rows = {}
        for name, row in counts.items():
            total = sum(row.values())
            rows[name] = {
                kind: row.get(kind, 0) / total if total else None for kind in kinds
            }
        yield Table(title=title, columns=columns, rows=rows)


def _counts(item: Judged, key: str) -> Mapping[str, int]:
    precision = (item.inspection or {}).get("precision", {})
    return {kind: count for kind, count in precision.get(key, {}).items() if kind}


def _have_classes(rows: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(row["argmax_agreement"] is not None for row in rows.values())


def _scatters(quality: Sequence[Column]) -> list[Scatter]:
    """Quality, or without labels the agreement, against size and latency."""
    return [
        Scatter(title=f"{column.header} and {what}", x=x, y=column.key)
        for column in quality
        for x, what in (("gzip_bytes", "size"), ("p50_ms", "latency"))
    ]


def _bars(judged: Sequence[Judged]) -> Iterator[Bars]:
    for item in judged:
        name = item.measurement.name
        layers = [
            layer
            for layer in (item.inspection or {}).get("layers", ())
            if layer["weight_bytes"]
        ]
        largest = sorted(layers, key=lambda layer: -layer["weight_bytes"])[:_BARS]
        if largest:
            yield Bars(
                title=f"Weights of {name}, layer by layer",
                values={layer["name"]: layer["weight_bytes"] for layer in largest},
                unit="bytes",
                notes={layer["name"]: _layer_note(layer) for layer in largest},
            )
        shown = [row for row in item.measurement.profile if row.time_us][:_BARS]
        if shown:
            yield Bars(
                title=f"Time of {name}, operator by operator",
                values={f"{row.name} {row.op}": row.time_us for row in shown},
                unit="µs",
                notes={f"{row.name} {row.op}": f"({row.share:.0%})" for row in shown},
            )


def _layer_note(layer: Mapping[str, Any]) -> str:
    note = layer["dtype"]
    if layer["sparsity"] and layer["sparsity"] >= 0.005:
        note += f", {layer['sparsity']:.0%} zero"
    return f"({note})"


def _own_notes(judged: Sequence[Judged], rows: int | None) -> list[str]:
    notes = []
    for item in judged:
        found = item.measurement
        notes += [f"{found.name}: {note}" for note in item.notes]
        if found.rows not in (None, rows):
            notes.append(
                f"{found.name}: it has a fixed batch, and was timed with {found.rows} "
                "examples a call."
            )
    return notes


def _plain(item: Judged) -> dict[str, Any]:
    return {
        "error": item.error,
        "metrics": dict(item.metrics),
        "agreement": dict(item.agreement),
        "measurement": item.measurement,
        "inspection": item.inspection,
        "notes": item.notes,
    }


def _ratio(base: float | None, value: float | None) -> float | None:
    return base / value if base is not None and value else None
