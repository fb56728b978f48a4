"""Titled tables: models in rows, metrics in columns; as text and as markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_ABSENT = "–"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One metric of a table.

    Attributes:
        key: Its key in the rows.
        title: Its header; by default the key with spaces for underscores, without
            the unit at its end.
        unit: A word goes into the header ("time [ms]"), a sign such as "×" behind
            each number.
        format: Format specification of a number, such as ".2f", ",d" or ".2%"; by
            default integers get thousands separators and floats four digits.
        better: Which end is the good one; its best value is then printed bold.
    """

    key: str
    title: str = ""
    unit: str = ""
    format: str = ""
    better: Literal["", "higher", "lower"] = ""

    @property
    def header(self) -> str:
        """Title and unit."""
        title = self.title or self.key.removesuffix(f"_{self.unit}").replace("_", " ")
        return f"{title} [{self.unit}]" if self.unit[:1].isalpha() else title

    def cell(self, value: Any) -> str:
        """Returns a value as text; None, which says "does not apply", is a dash."""
        if value is None:
            return _ABSENT
        if not is_number(value):
            return str(value)
        default = ",d" if isinstance(value, (int, np.integer)) else ".4g"
        sign = "" if self.unit[:1].isalpha() else self.unit
        return f"{value:{self.format or default}}{sign}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """One titled table.

    Attributes:
        title: What it shows.
        columns: The metrics, from left to right.
        rows: Model name -> column key -> value, from top to bottom. Every row has
            every key; None says that a metric does not apply. Other keys are left
            out, so that several tables can show parts of the same rows.
        footnotes: Column key or row name -> text printed below.
        corner: Header of the names.
    """

    title: str
    columns: Sequence[Column]
    rows: Mapping[str, Mapping[str, Any]]
    footnotes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    corner: str = "model"

    def __post_init__(self) -> None:
        keys = [column.key for column in self.columns]
        if len(set(keys)) != len(keys):
            raise ValueError(f"Expected different column keys. Received: {keys}")
        for name, row in self.rows.items():
            missing = [key for key in keys if key not in row]
            if missing:
                raise ValueError(
                    f"The row {name!r} lacks {missing}. Expected a value, or None "
                    f"where it does not apply. Received: {sorted(row)}"
                )
        unknown = set(self.footnotes) - {*keys, *self.rows}
        if unknown:
            raise ValueError(
                "Expected footnotes of column keys or row names. "
                f"Received: {sorted(unknown)}"
            )

    def column(self, key: str) -> Column:
        """Returns the column of a key.

        Raises:
            ValueError: There is none.
        """
        for column in self.columns:
            if column.key == key:
                return column
        raise ValueError(
            f"No such column. Expected one of {[item.key for item in self.columns]}. "
            f"Received: {key!r}"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the table as plain data, values unformatted."""
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": {
                name: {column.key: row[column.key] for column in self.columns}
                for name, row in self.rows.items()
            },
            "footnotes": dict(self.footnotes),
        }

    def headers(self) -> list[str]:
        """Returns the headers of the columns, with footnote marks."""
        return [column.header + self.mark(column.key) for column in self.columns]

    def cells(self, name: str) -> list[str]:
        """Returns the formatted cells of a row."""
        return [column.cell(self.rows[name][column.key]) for column in self.columns]

    def mark(self, key: str) -> str:
        """Returns the footnote mark of a column key or row name, or ""."""
        if key not in self.footnotes:
            return ""
        return str(list(self.footnotes).index(key) + 1).translate(_SUPERSCRIPTS)

    def footer(self) -> list[str]:
        """Returns the footnotes, one line each."""
        return [f"{self.mark(key)} {text}" for key, text in self.footnotes.items()]

    def is_best(self, name: str, column: Column) -> bool:
        """Returns whether a row has the best value of a column."""
        value = self.rows[name][column.key]
        if not column.better or not is_number(value) or len(self.rows) < 2:
            return False
        numbers = [row[column.key] for row in self.rows.values()]
        numbers = [item for item in numbers if is_number(item) and item == item]
        best = max if column.better == "higher" else min
        return bool(numbers) and value == best(numbers)


def to_rich(table: Table) -> Any:
    """Returns a table for rich's console."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(
        title=table.title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False
    )
    shown.add_column(Text(table.corner), no_wrap=True)
    for header in table.headers():
        longest = max(map(len, header.split()), default=0)
        shown.add_column(Text(header), justify="right", min_width=longest)
    for name in table.rows:
        styles = [
            "bold" if table.is_best(name, column) else "" for column in table.columns
        ]
        cells = map(Text, table.cells(name), styles)
        shown.add_row(Text(name + table.mark(name)), *cells)
    return shown


def to_markdown(table: Table) -> str:
    """Returns a table as GitHub-flavoured markdown, without its title."""
    lines = [
        [table.corner, *table.headers()],
        [":---", *["---:"] * len(table.columns)],
    ]
    for name in table.rows:
        cells = [
            f"**{cell}**" if table.is_best(name, column) else cell
            for cell, column in zip(table.cells(name), table.columns, strict=True)
        ]
        lines.append([name + table.mark(name), *cells])
    return "\n".join(f"| {' | '.join(map(_escape, line))} |" for line in lines)


def _escape(cell: str) -> str:
    return escaped(cell).replace("|", "\\|").replace("\n", " ")


def escaped(text: str) -> str:
    """Returns a text for markdown in which names cannot be HTML."""
    return text.replace("<", "&lt;")


def is_number(value: Any) -> bool:
    """Returns whether a cell holds a number; True and False are none."""
    number = isinstance(value, (int, float, np.integer, np.floating))
    return number and not isinstance(value, bool)
