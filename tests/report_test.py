"""Reports: what is printed, written and refused."""

import json
import sys

import numpy as np
import pytest

from tfopt import artifacts
from tfopt.report import Column, Report, Table, accuracy, machine, versions
from tfopt.types import TfoptError

ROWS = {
    "base": {"accuracy": 0.981, "size_bytes": 78_117, "time_ms": 120.0, "x": "a"},
    "int8": {"accuracy": 0.98, "size_bytes": 8_044, "time_ms": None, "x": "b|c"},
}
COLUMNS = (
    Column(key="accuracy", format=".2%", better="higher"),
    Column(key="size_bytes", unit="bytes", better="lower"),
    Column(key="time_ms", title="one batch", unit="ms", format=".2f"),
)


def make_table(**changes):
    settings = {"title": "Sizes", "columns": COLUMNS, "rows": ROWS, **changes}
    return Table(**settings)


def make_report(**changes):
    settings = {
        "title": "Digits",
        "tables": [make_table(footnotes={"int8": "Quantized.", "accuracy": "Top 1."})],
        "notes": ["Medians of 7."],
        "data": {"engine": "native"},
        "machine": {"cpu": "abacus", "cores": 2},
        "versions": {"python": "3.11", "keras": None},
        **changes,
    }
    return Report(**settings)


def test_text():
    assert make_report().text().splitlines() == [
        "Digits",
        "",
        "Sizes",
        "",
        " model   accuracy²   size [bytes]   one batch [ms]",
        " ─────────────────────────────────────────────────",
        " base       98.10%         78,117           120.00",
        " int8¹      98.00%          8,044                –",
        "",
        "¹ Quantized.",
        "² Top 1.",
        "",
        "Medians of 7.",
        "Machine: cpu abacus, cores 2",
        "Versions: python 3.11",
    ]
    assert str(make_report()) == make_report().text()


def test_markdown():
    report = make_report(tables=[make_table(columns=(*COLUMNS, Column(key="x")))])
    assert report.markdown().split("\n\n")[2].splitlines() == [
        "| model | accuracy | size [bytes] | one batch [ms] | x |",
        "| :--- | ---: | ---: | ---: | ---: |",
        "| base | **98.10%** | 78,117 | 120.00 | a |",
        "| int8 | 98.00% | **8,044** | – | b\\|c |",
    ]


def test_json_keeps_the_values_and_the_extra_data():
    content = json.loads(artifacts.to_json(make_report()))
    assert content["engine"] == "native"
    table = content["tables"][0]
    assert table["rows"] == {
        name: {key: row[key] for key in ("accuracy", "size_bytes", "time_ms")}
        for name, row in ROWS.items()
    }
    assert [column["unit"] for column in table["columns"]] == ["", "bytes", "ms"]
    with pytest.raises(ValueError, match="tables"):
        make_report(data={"tables": []}).to_json()


def test_write_chooses_by_suffix(tmp_path):
    report = make_report()
    for suffix in ("md", "json", "txt"):
        report.write(tmp_path / f"report.{suffix}")
    assert (tmp_path / "report.md").read_text() == report.markdown()
    assert (tmp_path / "report.txt").read_text() == report.text() + "\n"
    assert json.loads((tmp_path / "report.json").read_text())["engine"] == "native"
    with pytest.raises(ValueError, match=r"\.md"):
        report.write(tmp_path / "report.pdf")


def test_text_fits_a_width():
    report = make_report()
    assert max(map(len, report.text(width=44).splitlines())) <= 44
    assert max(map(len, report.text().splitlines())) > 44


def test_colours_only_where_rich_prints():
    import io

    from rich.console import Console

    def shown(**settings):
        file = io.StringIO()
        Console(file=file, width=100, **settings).print(make_report())
        return file.getvalue()

    assert "\x1b[1m" in shown(force_terminal=True)
    assert "\x1b" not in shown()
    assert "\x1b" not in make_report().text()


def test_markup_in_names_is_printed_as_it_is():
    rows = {"[red]x[/red]": ROWS["base"]}
    report = make_report(tables=[make_table(rows=rows)], notes=["[/b]"])
    assert "[red]x[/red]" in report.text()
    assert "[/b]" in report.text()


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        (Column(key="a"), 1234567, "1,234,567"),
        (Column(key="a"), np.int64(1234), "1,234"),
        (Column(key="a"), 0.123456, "0.1235"),
        (Column(key="a"), np.float32(0.5), "0.5"),
        (Column(key="a"), float("nan"), "nan"),
        (Column(key="a"), None, "–"),
        (Column(key="a"), True, "True"),
        (Column(key="a", format=".1f"), "none", "none"),
        (Column(key="a", format=".2f", unit="×"), 3.05, "3.05×"),
        (Column(key="a", unit="ms"), 3, "3"),
    ],
)
def test_cells(column, value, text):
    assert column.cell(value) == text


@pytest.mark.parametrize(
    ("column", "header"),
    [
        (Column(key="loop_ms", unit="ms"), "loop [ms]"),
        (Column(key="raw_size", title="raw", unit="bytes"), "raw [bytes]"),
        (Column(key="size_ratio", unit="×"), "size ratio"),
    ],
)
def test_headers(column, header):
    assert column.header == header


def test_best_values_ignore_what_is_no_number():
    column = Column(key="a", better="higher")
    rows = {"x": 1.0, "y": None, "z": float("nan"), "w": 1, "v": True}
    table = make_table(
        columns=[column], rows={name: {"a": item} for name, item in rows.items()}
    )
    assert [name for name in rows if table.is_best(name, column)] == ["x", "w"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": {"base": {"accuracy": 1}}}, r"base.*size_bytes"),
        ({"footnotes": {"int4": "?"}}, "int4"),
        ({"columns": COLUMNS * 2}, "different column keys"),
    ],
)
def test_inconsistent_tables_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_table(**changes)


def test_versions_and_machine_are_found_without_imports():
    before = set(sys.modules)
    found = versions()
    assert {"python", "tensorflow", "keras", "numpy", "litert", "tfmot"} <= set(found)
    assert found["numpy"] == np.__version__
    assert not {"tf_keras", "tensorflow_model_optimization"} & (
        set(sys.modules) - before
    )
    assert machine()["cpu"]
    assert machine()["cores"] >= 1
    assert f"numpy {np.__version__}" in Report(title="", tables=[]).text()


def png_size(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return tuple(
        int.from_bytes(content[start : start + 4], "big") for start in (16, 20)
    )


def test_plot_writes_a_png(tmp_path):
    path = tmp_path / "plot.png"
    make_report().plot(path, x="size_bytes", y="accuracy")
    assert png_size(path) == (1200, 750)
    first = path.read_bytes()
    make_report().plot(path, x="size_bytes", y="accuracy", log_x=False)
    assert path.read_bytes() != first
    assert [entry.name for entry in tmp_path.iterdir()] == ["plot.png"]


def test_labels_cover_neither_each_other_nor_points():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from tfopt.report import _plot

    figure = Figure(figsize=(8, 5), dpi=150)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Four points so close together that labels on one side would overlap.
    points = {f"a rather long name {i}": (1.0 + i % 2 * 0.01, i // 2) for i in range(4)}
    axes.scatter(*zip(*points.values(), strict=True))
    axes.margins(0.4)
    _plot._label_points(canvas, axes, points)
    boxes = [item.get_window_extent(canvas.get_renderer()) for item in axes.texts]
    assert [item.get_text() for item in axes.texts] == list(points)
    assert not any(
        left.overlaps(right)
        for index, left in enumerate(boxes)
        for right in boxes[index + 1 :]
    )
    places = [axes.transData.transform(point) for point in points.values()]
    assert not any(box.contains(*place) for box in boxes for place in places)


def test_plots_without_points_are_refused(tmp_path):
    with pytest.raises(ValueError, match="No table has both columns"):
        make_report().plot(tmp_path / "a.png", x="size_bytes", y="absent")
    rows = {"base": {**ROWS["base"], "time_ms": None}}
    report = make_report(tables=[make_table(rows=rows)])
    with pytest.raises(ValueError, match="Expected numbers"):
        report.plot(tmp_path / "a.png", x="size_bytes", y="time_ms")
    rows = {"base": {**ROWS["base"], "size_bytes": 0}}
    report = make_report(tables=[make_table(rows=rows)])
    with pytest.raises(ValueError, match="positive"):
        report.plot(tmp_path / "a.png", x="size_bytes", y="accuracy")
    report.plot(tmp_path / "a.png", x="size_bytes", y="accuracy", log_x=False)


def test_missing_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(TfoptError, match=r"pip install 'tfopt\[plot\]'"):
        make_report().plot(tmp_path / "a.png", x="size_bytes", y="accuracy")
    assert not list(tmp_path.iterdir())


def test_accuracy_counts_examples():
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=[200, 7]), rng.integers(0, 7, 200)
    right = sum(
        max(range(7), key=lambda k, row=row: row[k]) == label
        for row, label in zip(outputs.tolist(), labels.tolist(), strict=True)
    )
    assert accuracy(outputs, labels) == right / 200
    assert accuracy(outputs, labels[:, None].astype(np.uint8)) == right / 200
    assert accuracy(outputs, outputs.argmax(axis=1)) == 1.0
    quantized = (outputs * 20).astype(np.int8)
    assert accuracy(quantized, quantized.argmax(axis=1)) == 1.0


def test_accuracy_takes_no_nan_for_right():
    outputs = np.array([[np.nan, 0.0], [1.0, 0.0]])
    assert outputs[0].argmax() == 0
    assert accuracy(outputs, np.array([0, 0])) == 0.5


@pytest.mark.parametrize(
    ("outputs", "labels", "name"),
    [
        (np.zeros([3]), np.zeros(3, int), "outputs"),
        (np.zeros([3, 1]), np.zeros(3, int), "outputs"),
        (np.zeros([0, 2]), np.zeros(0, int), "outputs"),
        (np.zeros([3, 2]), np.zeros(4, int), "labels"),
        (np.zeros([3, 2]), np.zeros([3, 2], int), "labels"),
        (np.zeros([3, 2]), np.zeros(3), "labels"),
    ],
)
def test_accuracy_refuses_other_shapes(outputs, labels, name):
    with pytest.raises(ValueError, match=f"Received: {name}"):
        accuracy(outputs, labels)
