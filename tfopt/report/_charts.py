"""Charts of a report, as data; `_svg` draws them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from tfopt.report._tables import Table, is_number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scatter:
    """One point for each row of a table that has both numbers.

    Attributes:
        title: What it shows.
        x: Key of the column that goes from left to right.
        y: Key of the column that goes upwards.
        log_x: Whether the x axis is logarithmic, where all values are positive.
    """

    title: str
    x: str
    y: str
    log_x: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bars:
    """Horizontal bars, one below the other.

    Attributes:
        title: What it shows.
        values: Length of each bar, 0 or more, by its name.
        unit: Of the values.
        notes: Words behind the number of a bar, by its name.
    """

    title: str
    values: Mapping[str, float]
    unit: str = ""
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)


Chart = Scatter | Bars


def table_with(tables: Sequence[Table], *keys: str) -> Table | None:
    """Returns the first table with all these columns."""
    for table in tables:
        if set(keys) <= {column.key for column in table.columns}:
            return table
    return None


def points(table: Table, chart: Scatter) -> dict[str, tuple[float, float]]:
    """Returns the finite points of a table by row name."""
    found = {}
    for name, row in table.rows.items():
        x, y = row[chart.x], row[chart.y]
        if is_finite(x) and is_finite(y):
            found[name] = (float(x), float(y))
    return found


def is_finite(value: object) -> bool:
    """Returns whether a cell holds a number that has a place on an axis."""
    return is_number(value) and float(value) - float(value) == 0  # type: ignore[arg-type]
