"""Charts as inline SVG: no script, no network, colours of the page."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence

from tfopt.report._charts import Bars, Scatter, points
from tfopt.report._tables import Column, Table

# In a drawing of this width, letters are as large as the page's on a phone.
_WIDTH, _HEIGHT = 360, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 46
_LETTER = 7.0  # width of a letter at font size 12, on average and in wide fonts
_LINE = 13.0
_BAR, _GAP = 12, 34
_LONGEST = 44
_COLOURS = 8

Box = tuple[float, float, float, float]


def scatter(chart: Scatter, table: Table) -> str:
    """Returns a scatter plot with labelled points; "" without points.

    Args:
        chart: What goes where.
        table: Where the numbers are.
    """
    found = points(table, chart)
    if not found:
        return ""
    x_column, y_column = table.column(chart.x), table.column(chart.y)
    xs, ys = zip(*found.values(), strict=True)
    x_axis = _Axis(xs, _LEFT, _WIDTH - _RIGHT, log=chart.log_x and min(xs) > 0)
    y_axis = _Axis(ys, _HEIGHT - _BOTTOM, _TOP, log=False)
    parts = [
        *_x_marks(x_axis, x_column),
        *_y_marks(y_axis, y_column),
        _text(
            (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_column.header, anchor="middle"
        ),
    ]
    places = {
        name: (x_axis.place(x), y_axis.place(y)) for name, (x, y) in found.items()
    }
    labels = _labels(places)
    for index, (name, (x, y)) in enumerate(places.items()):
        figures = ", ".join(
            f"{column.header} {column.cell(value)}"
            for column, value in zip((x_column, y_column), found[name], strict=True)
        )
        parts.append(
            f'<circle class="c{index % _COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="5">'
            f"<title>{_escaped(f'{name}: {figures}')}</title></circle>"
        )
        parts.append(labels[name])
    description = f"{chart.title}: {y_column.header} upwards, {x_column.header} across"
    return _drawing(_HEIGHT, description, parts)


def bars(chart: Bars) -> str:
    """Returns horizontal bars, each below its name; "" without bars."""
    if not chart.values:
        return ""
    longest = max(chart.values.values()) or 1.0
    parts = []
    for index, (name, value) in enumerate(chart.values.items()):
        top = index * _GAP
        words = " ".join(
            filter(None, (_amount(value), chart.unit, chart.notes.get(name, "")))
        )
        length = max((_WIDTH - 2) * value / longest, 1.0)
        room = int((_WIDTH - len(words) * _LETTER - 10) / _LETTER)
        parts += [
            _text(0, top + 13, _shortened(name, max(room, 8)), title=name),
            _text(_WIDTH, top + 13, words, anchor="end", kind="dim"),
            f'<rect class="c0" x="0" y="{top + 18}" width="{length:.1f}" '
            f'height="{_BAR}" rx="2"/>',
        ]
    return _drawing(len(chart.values) * _GAP + 2, chart.title, parts)


class _Axis:
    """Where values of a range lie between two ends of the drawing."""

    def __init__(
        self, values: Sequence[float], begin: float, end: float, *, log: bool
    ) -> None:
        self.log = log
        self._begin, self._end = begin, end
        low, high = min(values), max(values)
        if log:
            low, high = math.log10(low), math.log10(high)
        # Some room on both sides; a single value gets an axis around it.
        margin = 0.12 * (high - low) or (0.3 if log else 0.05 * abs(high) or 1.0)
        self._low, self._high = low - margin, high + margin

    def place(self, value: float) -> float:
        """Returns the coordinate of a value."""
        position = math.log10(value) if self.log else value
        share = (position - self._low) / (self._high - self._low)
        return self._begin + share * (self._end - self._begin)

    def marks(self, most: int) -> list[float]:
        """Returns round values within the range, at most about so many."""
        if self.log and self._high - self._low >= 0.7:
            first, last = math.floor(self._low), math.ceil(self._high)
            for factors in ((1, 2, 5), (1, 3), (1,)):
                found = [
                    factor * 10.0**power
                    for power in range(first, last + 1)
                    for factor in factors
                    if self._low <= math.log10(factor * 10.0**power) <= self._high
                ]
                if len(found) <= most:
                    break
            return found[:: math.ceil(len(found) / most)] if found else []
        low, high = self._low, self._high
        if self.log:
            low, high = 10**low, 10**high
        return _round_steps(low, high, most)


def _round_steps(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step) + 1)]


def _x_marks(axis: _Axis, column: Column) -> Iterable[str]:
    bottom = _HEIGHT - _BOTTOM
    for value in axis.marks(5):
        x = axis.place(value)
        yield _line((x, x), (_TOP, bottom))
        yield _text(x, bottom + 16, _figure(value, column), anchor="middle", kind="dim")


def _y_marks(axis: _Axis, column: Column) -> Iterable[str]:
    marks = axis.marks(5)
    for value in marks:
        y = axis.place(value)
        yield _line((_LEFT, _WIDTH - _RIGHT), (y, y))
        yield _text(
            _LEFT - 6, y + 4, _figure(value, column, marks), anchor="end", kind="dim"
        )


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"


def _line(
    xs: tuple[float, float], ys: tuple[float, float], *, kind: str = "grid"
) -> str:
    return (
        f'<line class="{kind}" x1="{xs[0]:.1f}" x2="{xs[1]:.1f}" '
        f'y1="{ys[0]:.1f}" y2="{ys[1]:.1f}"/>'
    )


def _figure(value: float, column: Column, marks: Sequence[float] = ()) -> str:
    """Returns a mark of an axis: short, and different from its neighbours."""
    if column.format.endswith("%"):
        step = abs(marks[1] - marks[0]) if len(marks) > 1 else 0.1
        digits = max(0, math.ceil(-math.log10(step * 100) - 1e-9))
        return f"{value:.{min(digits, 4)}%}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.6g}{letter}"
    return f"{value:.4g}"


def _labels(places: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    """Returns each name beside its point, where it covers no other name or point."""
    covered: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in places.values()]
    found = {}
    for index, (name, (x, y)) in enumerate(places.items()):
        shown = _shortened(name, _LONGEST // 2)
        width = len(shown) * _LETTER
        options = [
            (x + left, y + up, anchor)
            for up in (4, -9, 18, -22, 31)
            for left, anchor in ((9, "start"), (-9, "end"), (0, "middle"))
            if left or up != 4
        ]
        boxes = [_box(left, up, width, anchor) for left, up, anchor in options]
        own = covered[index]
        others = [box for box in covered if box is not own]
        free = [
            (option, box)
            for option, box in zip(options, boxes, strict=True)
            if box[0] >= _LEFT
            and box[2] <= _WIDTH
            and box[1] >= 0
            and not any(_overlap(box, other) for other in others)
        ]
        (left, up, anchor), box = free[0] if free else (options[0], boxes[0])
        covered.append(box)
        found[name] = _text(left, up, shown, anchor=anchor, kind="label")
        if up != y + 4:  # not beside its point: a line leads there
            end = (min(max(x, box[0]), box[2]), box[3] if up < y else box[1])
            line = _line((x, end[0]), (y, end[1]), kind="lead")
            found[name] = line + found[name]
    return found


def _box(x: float, y: float, width: float, anchor: str) -> Box:
    left = x - {"start": 0.0, "end": width, "middle": width / 2}[anchor]
    return (left, y - _LINE + 3, left + width, y + 3)


def _overlap(first: Box, second: Box) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )


def _drawing(height: float, description: str, parts: Iterable[str]) -> str:
    label = html.escape(description, quote=True)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    kind: str = "",
    title: str = "",
) -> str:
    more = f"<title>{_escaped(title)}</title>" if title else ""
    style = f' class="{kind}"' if kind else ""
    return (
        f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{_escaped(words)}{more}</text>"
    )


def _shortened(name: str, length: int) -> str:
    """Returns a name whose middle is left out if it is too long."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[-(length - 1 - head) :]}"


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)
