"""Result tables, models in rows and metrics in columns: text, markdown, JSON, HTML."""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tfopt import artifacts
from tfopt.report import _html, _tables
from tfopt.report._agreement import agreement
from tfopt.report._charts import Bars, Chart, Scatter, table_with
from tfopt.report._metrics import Metric, accuracy, find_metric
from tfopt.report._origin import machine, versions
from tfopt.report._plot import write_plot
from tfopt.report._reported import Reported
from tfopt.report._tables import Column, Table

__all__ = [
    "Bars",
    "Column",
    "Metric",
    "Report",
    "Reported",
    "Scatter",
    "Table",
    "accuracy",
    "agreement",
    "find_metric",
    "machine",
    "versions",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Tables with what one has to know to read and repeat them.

    `print(report)` shows it as text, `rich.print(report)` with colours.

    Attributes:
        title: Its heading.
        tables: The tables, in order.
        notes: Sentences printed below all tables.
        data: Further machine-readable results; top-level keys of the JSON.
        machine: What it was measured on.
        versions: The packages it was measured with.
        charts: Drawn on the HTML page, below the first table.

    Example:
        >>> columns = [
        ...     Column(key="accuracy", format=".2%"),
        ...     Column(key="size", unit="bytes"),
        ... ]
        >>> rows = {
        ...     "float": {"accuracy": 0.9812, "size": 84_210},
        ...     "int8": {"accuracy": 0.98, "size": 24_016},
        ... }
        >>> table = Table(title="Digits", columns=columns, rows=rows)
        >>> report = Report(title="Sizes", tables=[table], machine={}, versions={})
        >>> print(report)  # doctest: +NORMALIZE_WHITESPACE +ELLIPSIS
        Sizes
        <BLANKLINE>
        Digits
        model   accuracy   size [bytes]
        ...
        float     98.12%         84,210
        int8      98.00%         24,016
    """

    title: str
    tables: Sequence[Table]
    notes: Sequence[str] = ()
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    machine: Mapping[str, Any] = dataclasses.field(default_factory=machine)
    versions: Mapping[str, str | None] = dataclasses.field(default_factory=versions)
    charts: Sequence[Chart] = ()

    def text(self, *, width: int | None = None) -> str:
        """Returns the report as text without colours.

        Args:
            width: Characters in a line; by default as many as the tables take.
        """
        from rich.console import Console

        file = io.StringIO()
        console = Console(file=file, width=width or 10_000, color_system=None)
        console.print(self.__rich__())
        lines = file.getvalue().splitlines()
        return "\n".join(line.rstrip() for line in lines).strip("\n")

    def __str__(self) -> str:
        return self.text()

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = [Text(self.title, style="bold")]
        for table in self.tables:
            parts += ["", _tables.to_rich(table)]
            parts += [Text(line, style="dim") for line in table.footer()]
        parts.append("")
        parts += [Text(line) for line in (*self.notes, *self._origin())]
        return Group(*parts)

    def markdown(self) -> str:
        """Returns the report as GitHub-flavoured markdown."""
        blocks = [f"# {_tables.escaped(self.title)}"]
        for table in self.tables:
            blocks += [f"## {_tables.escaped(table.title)}", _tables.to_markdown(table)]
            blocks += map(_tables.escaped, table.footer())
        origin = map(_tables.escaped, self._origin())
        blocks += [*map(_tables.escaped, self.notes), "  \n".join(origin)]
        return "\n\n".join(blocks) + "\n"

    def html(self) -> str:
        """Returns the report as one HTML page that loads nothing and runs no script."""
        return _html.page(
            self.title, self.tables, self.charts, self.notes, self._origin()
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain data, for `artifacts.to_json`.

        Raises:
            ValueError: `data` has a key that the report itself uses.
        """
        own: dict[str, Any] = {
            "title": self.title,
            "tables": [table.to_json() for table in self.tables],
            "notes": list(self.notes),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
        }
        taken = own.keys() & self.data.keys()
        if taken:
            raise ValueError(
                f"Expected data without the keys {sorted(own)}. "
                f"Received: {sorted(taken)}"
            )
        return {"title": self.title, **self.data, **own}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the report to a file, in the form that its suffix names.

        Args:
            path: A path that ends in `.md`, `.json`, `.html` or `.txt`.

        Raises:
            ValueError: Another suffix.
            TfoptError: The file cannot be written.
        """
        writers = {
            ".md": self.markdown,
            ".json": lambda: artifacts.to_json(self) + "\n",
            ".html": self.html,
            ".txt": lambda: self.text() + "\n",
        }
        suffix = pathlib.Path(path).suffix
        if suffix not in writers:
            raise ValueError(
                f"Expected a file name that ends in one of {list(writers)}. "
                f"Received: path={os.fspath(path)!r}"
            )
        artifacts.write_bytes(path, writers[suffix]().encode())

    def plot(
        self, path: str | os.PathLike[str], *, x: str, y: str, log_x: bool = True
    ) -> None:
        """Writes a PNG with one labelled point for each model.

        Args:
            path: A path that ends in `.png`.
            x: Key of the column that goes from left to right.
            y: Key of the column that goes upwards. The first table with both columns
                is drawn; rows without finite numbers in both are left out.
            log_x: Whether the x axis is logarithmic.

        Raises:
            ValueError: No table has both columns, or there is nothing to draw.
            TfoptError: matplotlib is not installed, or the file cannot be written.
        """
        table = table_with(self.tables, x, y)
        if table is None:
            titles = [item.title for item in self.tables]
            raise ValueError(
                "No table has both columns. "
                f"Received: x={x!r}, y={y!r}, tables={titles}"
            )
        write_plot(path, table, table.column(x), table.column(y), log_x)

    def _origin(self) -> list[str]:
        machine = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        packages = ", ".join(
            f"{name} {version}" for name, version in self.versions.items() if version
        )
        lines = {"Machine": machine, "Versions": packages}
        return [f"{name}: {text}" for name, text in lines.items() if text]
