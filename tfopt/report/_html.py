"""A report as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from tfopt.report import _svg
from tfopt.report._charts import Chart, Scatter, table_with
from tfopt.report._tables import Table

# Colours that differ for colour-blind readers too (Okabe and Ito, 2008).
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --dim: #59636e;
  --line: #d5dae0; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --paper: #14171a;
  --dim: #9aa4ae; --line: #343b42; --band: #1d2126; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.1rem; line-height: 1.3; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .4rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; white-space: normal; background: var(--band); }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child { text-align: left; position: sticky; left: 0;
  background: var(--band); }
tbody th span { display: inline-block; width: max-content; max-width: 9rem;
  white-space: normal; overflow-wrap: anywhere; }
td.best { font-weight: 700; }
.foot, footer { color: var(--dim); font-size: .875rem; }
.foot { margin: .4rem 0 0; }
.charts { display: grid; gap: 0 2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 0; min-width: 0; }
svg { display: block; width: 100%; max-width: 34rem; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg .dim { fill: var(--dim); font-size: 11px; }
svg .label { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
svg .lead { stroke: var(--dim); stroke-width: 1; }
svg .grid { stroke: var(--line); stroke-width: 1; }
.c0 { fill: #0072b2; } .c1 { fill: #d55e00; } .c2 { fill: #009e73; }
.c3 { fill: #cc79a7; } .c4 { fill: #e69f00; } .c5 { fill: #56b4e9; }
.c6 { fill: #8f7a00; } .c7 { fill: #7f7f7f; }
footer { margin-top: 2rem; border-top: 1px solid var(--line); }
"""


def page(
    title: str,
    tables: Sequence[Table],
    charts: Sequence[Chart],
    notes: Sequence[str],
    origin: Sequence[str],
) -> str:
    """Returns the page; whatever comes from outside is escaped.

    Args:
        title: The heading.
        tables: All tables, in order.
        charts: Shown below the first table; those without a value are left out.
        notes: Sentences below all tables.
        origin: Lines about machine and versions.
    """
    shown = [_table(table) for table in tables]
    drawn = [part for chart in charts if (part := _figure(chart, tables))]
    if drawn:
        shown.insert(1, f'<div class="charts">{"".join(drawn)}</div>')
    texts = [f"<p>{html.escape(note)}</p>" for note in notes]
    lines = "<br>\n".join(map(html.escape, origin))
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            f"<h1>{html.escape(title)}</h1>",
            *shown,
            *(["<h2>Notes</h2>", *texts] if texts else []),
            f"<footer><p>{lines}</p></footer>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _table(table: Table) -> str:
    heads = "".join(
        f'<th scope="col">{html.escape(head)}</th>'
        for head in (table.corner, *table.headers())
    )
    rows = "\n".join(_rows(table))
    foot = "".join(
        f'<p class="foot">{html.escape(line)}</p>\n' for line in table.footer()
    )
    return (
        f"<section>\n<h2>{html.escape(table.title)}</h2>\n"
        # Reachable by keyboard, as it may have to be scrolled.
        f'<div class="wide" tabindex="0"><table>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>\n{foot}</section>"
    )


def _rows(table: Table) -> Iterable[str]:
    for name in table.rows:
        cells = []
        for cell, column in zip(table.cells(name), table.columns, strict=True):
            best = ' class="best"' if table.is_best(name, column) else ""
            cells.append(f"<td{best}>{html.escape(cell)}</td>")
        head = html.escape(name + table.mark(name))
        yield f'<tr><th scope="row"><span>{head}</span></th>{"".join(cells)}</tr>'


def _figure(chart: Chart, tables: Sequence[Table]) -> str:
    if isinstance(chart, Scatter):
        table = table_with(tables, chart.x, chart.y)
        drawing = "" if table is None else _svg.scatter(chart, table)
    else:
        drawing = _svg.bars(chart)
    if not drawing:
        return ""
    return f"<figure><h2>{html.escape(chart.title)}</h2>{drawing}</figure>"
