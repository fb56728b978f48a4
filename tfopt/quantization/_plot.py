"""Horizontal bars in a PNG, through matplotlib (extra [plot])."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tfopt import artifacts
from tfopt.types import TfoptError

_INCHES_PER_BAR = 0.22


def write_bars(
    path: str | os.PathLike[str],
    values: Mapping[str, float | None],
    *,
    title: str,
    label: str,
) -> None:
    """Writes one labelled bar per entry; entries without a value are left out.

    Raises:
        ValueError: There is no value.
        TfoptError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TfoptError(
            "Plots need matplotlib. Install it with: pip install 'tfopt[plot]'"
        ) from error
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        raise ValueError(f"Expected numbers to draw. Received: {dict(values)}")
    # Without pyplot there is no global state, and no display is needed.
    height = 1.2 + _INCHES_PER_BAR * len(known)
    figure = Figure(figsize=(8, max(height, 2.5)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.barh(list(known), list(known.values()), zorder=3)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=label)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    with artifacts.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
