"""The HTML page of a report: complete, escaped, and readable in a real browser."""

import html
import html.parser
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree

import pytest

from tfopt.report import Bars, Column, Report, Scatter, Table, _svg

EVIL = "<script>alert(1)</script> & \"x\" 'y'"
COLUMNS = (
    Column(key="accuracy", format=".2%", better="higher"),
    Column(key="size_bytes", unit="bytes", better="lower"),
    *(
        Column(key=f"column_{index}", title=f"some figure {index}")
        for index in range(8)
    ),
)


def row(accuracy, size):
    return {
        "accuracy": accuracy,
        "size_bytes": size,
        **{f"column_{index}": 12345.678 for index in range(8)},
    }


ROWS = {
    "base": row(0.981, 78_117),
    EVIL: row(0.98, 8_044),
    "a model with a name that is a good deal longer than any column": row(0.98, 8_100),
    "failed": {**row(None, None), "column_0": EVIL},
}


def make_report():
    table = Table(
        title=f"Sizes {EVIL}", columns=COLUMNS, rows=ROWS, footnotes={EVIL: EVIL}
    )
    return Report(
        title=EVIL,
        tables=[table, Table(title="Again", columns=COLUMNS[:2], rows=ROWS)],
        notes=[EVIL],
        machine={"cpu": EVIL},
        versions={"python": "3.11"},
        charts=[
            Scatter(title=EVIL, x="size_bytes", y="accuracy"),
            Scatter(title="no such column", x="absent", y="accuracy"),
            Bars(
                title="layers",
                values={EVIL: 1_234_567, "a/rather/long/path/of/a/layer/kernel": 10.5},
                unit="bytes",
                notes={EVIL: "(int8)"},
            ),
            Bars(title="empty", values={}),
        ],
    )


class Page(html.parser.HTMLParser):
    """Tags, attributes and texts of a page; every tag is closed."""

    VOID = frozenset({"meta", "br", "!doctype"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def test_a_page_is_escaped_and_needs_nothing_else(tmp_path):
    make_report().write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "b"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {"src", "href", "style"} & names
    assert not [name for name in names if name.startswith("on")]
    assert "http" not in text
    assert "url(" not in text
    assert "<script" not in text
    # Heading, table, footnote, cell, note, machine and charts all show it as it is.
    assert sum(EVIL in part for part in page.text) >= 7
    assert page.tags.count("table") == 2
    assert page.tags.count("svg") == 2  # charts without a value are left out
    assert page.tags.count("h1") == 1


def test_charts_are_well_formed_and_inside():
    table = make_report().tables[0]
    drawing = _svg.scatter(Scatter(title="t", x="size_bytes", y="accuracy"), table)
    tree = xml.etree.ElementTree.fromstring(drawing)
    width, height = map(float, tree.get("viewBox").split()[2:])
    circles = list(tree.iter("circle"))
    assert len(circles) == 3
    for circle in circles:
        assert 0 < float(circle.get("cx")) < width
        assert 0 < float(circle.get("cy")) < height
    # To the right is larger, upwards is better.
    base, small = circles[0], circles[1]
    assert float(base.get("cx")) > float(small.get("cx"))
    assert float(base.get("cy")) < float(small.get("cy"))
    assert EVIL in small.find("title").text
    bars = xml.etree.ElementTree.fromstring(
        _svg.bars(Bars(title="t", values={"a": 4.0, "b": 1.0, "c": 0.0}))
    )
    lengths = [float(bar.get("width")) for bar in bars.iter("rect")]
    assert lengths[0] == pytest.approx(4 * lengths[1], rel=0.01)
    assert lengths[0] <= width
    assert lengths[2] == 1.0  # still to be seen


@pytest.mark.parametrize(
    "values", [(0.5,), (0.5, 0.5), (1e-9, 1e9), (-3.0, 7.0), (0.0,)]
)
@pytest.mark.parametrize("log_x", [False, True])
def test_any_range_has_an_axis(values, log_x):
    columns = [Column(key="x"), Column(key="y", format=".2%")]
    rows = {str(i): {"x": value, "y": value} for i, value in enumerate(values)}
    table = Table(title="t", columns=columns, rows=rows)
    drawing = _svg.scatter(Scatter(title="t", x="x", y="y", log_x=log_x), table)
    tree = xml.etree.ElementTree.fromstring(drawing)
    marks = [text.text for text in tree.iter("text") if text.get("class") == "dim"]
    assert 2 <= len(marks) <= 16
    assert len(list(tree.iter("circle"))) == len(values)


def test_labels_cover_neither_each_other_nor_points():
    places = {f"model {index}": (150.0 + index % 2, 100.0) for index in range(5)}
    labels = [
        xml.etree.ElementTree.fromstring(f"<g>{label}</g>").find("text")
        for label in _svg._labels(places).values()
    ]
    boxes = [
        _svg._box(
            float(item.get("x")),
            float(item.get("y")),
            len(item.text) * _svg._LETTER,
            item.get("text-anchor"),
        )
        for item in labels
    ]
    for index, box in enumerate(boxes):
        assert not any(_svg._overlap(box, other) for other in boxes[index + 1 :])
        assert not any(
            box[0] < x < box[2] and box[1] < y < box[3] for x, y in places.values()
        )


MEASURE = """
<script>
const box = (item) => item.getBoundingClientRect();
const all = (what) => Array.from(document.querySelectorAll(what));
const overflowing = all("h1, h2, p, svg, .wide").filter(
  (item) => box(item).right > window.innerWidth + 0.5);
document.body.dataset.found = JSON.stringify({
  inner: window.innerWidth,
  scroll: document.documentElement.scrollWidth,
  overflowing: overflowing.length,
  names: Math.min(...all("tbody th").map((item) => box(item).width)),
  rows: Math.max(...all("tbody tr").map((item) => box(item).height)),
  chart: Math.min(...all("svg").map((item) => box(item).width)),
  letters: 11 * Math.min(...all("svg").map(
    (item) => box(item).width / item.viewBox.baseVal.width)),
});
</script></body>
"""


# A window is never narrower than 500 pixels, a frame may be.
FRAME = """<!DOCTYPE html><body>
<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {{
  document.body.dataset.found = frame.contentDocument.body.dataset.found;
}});
</script></body>
"""


def in_browser(page, width, folder):
    """Opens a page at a width and returns what the script above finds."""
    text = page.replace("</body>", MEASURE)
    file = folder / "frame.html"
    frame = FRAME.format(width=width, page=html.escape(text, quote=True))
    file.write_text(frame, encoding="utf-8")
    done = subprocess.run(
        [
            *(shutil.which("chromium"), "--headless", "--no-sandbox", "--disable-gpu"),
            *(f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000"),
            *("--virtual-time-budget=2000", "--dump-dom", file.as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = re.search(r'<body data-found="([^"]*)"', done.stdout)
    return json.loads(html.unescape(found[1]))


@pytest.mark.skipif(
    shutil.which("chromium") is None,
    reason="needs Debian's chromium, to look at the page in a real browser",
)
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_page_at_desktop_and_phone_width(width, tmp_path):
    page = make_report().html()
    found = in_browser(page, width, tmp_path)
    assert found["inner"] == width
    assert found["scroll"] <= width  # nothing to scroll sideways but tables
    assert found["overflowing"] == 0
    assert found["names"] >= 60  # names of models are words, not single letters
    assert found["rows"] <= 130
    assert 300 <= found["chart"] <= 560
    assert found["letters"] >= 10
    if width == 390:  # the check sees a page that is too wide
        wide = page.replace("<h1>", '<h1 style="width: 99em">')
        assert in_browser(wide, width, tmp_path)["overflowing"] > 0
