"""Points in a PNG, through matplotlib (extra [plot])."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tfopt import artifacts
from tfopt.report._charts import Scatter, points
from tfopt.report._tables import Column, Table
from tfopt.types import TfoptError


def write_plot(
    path: str | os.PathLike[str], table: Table, x: Column, y: Column, log_x: bool
) -> None:
    """Writes a PNG with one labelled point for each row of a table.

    Raises:
        ValueError: No row has numbers in both columns.
        TfoptError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import (
            FuncFormatter,
            LogLocator,
            MaxNLocator,
            NullFormatter,
        )
    except ImportError as error:
        raise TfoptError(
            "Plots need matplotlib. Install it with: pip install 'tfopt[plot]'"
        ) from error
    found = points(table, Scatter(title=table.title, x=x.key, y=y.key))
    places = [left for left, _ in found.values()]
    if not found or (log_x and min(places) <= 0):
        raise ValueError(
            "Expected numbers in both columns of some row, positive ones on a "
            f"logarithmic axis. Received: x={x.key!r}, y={y.key!r}, {found}"
        )
    # Without pyplot there is no global state, and no display is needed.
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.scatter(*zip(*found.values(), strict=True), zorder=3)
    axes.set(title=table.title, xlabel=x.header, ylabel=y.header)
    axes.grid(alpha=0.3)
    axes.margins(0.15)
    if log_x:
        axes.set_xscale("log")
        low, high = min(places), max(places)
        # Powers of ten are too few marks for a narrow range.
        narrow = high < 5 * low
        axes.xaxis.set_major_locator(
            MaxNLocator(6) if narrow else LogLocator(subs=(1, 2, 5))
        )
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: y.cell(value)))
    _label_points(canvas, axes, found)
    with artifacts.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _label_points(
    canvas: Any, axes: Any, points: Mapping[str, tuple[float, float]]
) -> None:
    """Writes each name beside its point, where it covers no other name or point."""
    canvas.draw()  # fixes the places of the points
    renderer = canvas.get_renderer()
    places = [axes.transData.transform(point) for point in points.values()]
    covered: list[Any] = []
    for name, point in points.items():
        for right, up in ((7, 5), (7, -11), (-7, 5), (-7, -11), (0, 14), (0, -20)):
            label = axes.annotate(
                name,
                point,
                xytext=(right, up),
                textcoords="offset points",
                ha="left" if right > 0 else "right" if right < 0 else "center",
                fontsize=9,
            )
            extent = label.get_window_extent(renderer)
            free = (
                extent.x1 < axes.bbox.x1
                and not any(extent.overlaps(other) for other in covered)
                and not any(extent.contains(*place) for place in places)
            )
            if free or (right, up) == (0, -20):
                covered.append(extent)
                break
            label.remove()
