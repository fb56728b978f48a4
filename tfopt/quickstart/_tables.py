"""The three printed tables, with the published figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfopt.report import Column, Report, Table

_TITLES = {
    "base": "base",
    "pruned": "pruned",
    "qat": "QAT",
    "pruned_tflite": "pruned + TFLite",
    "qat_tflite": "QAT + TFLite",
    "pruned_qat_tflite": "pruned + QAT + TFLite",
    "best_tflite": "best",
}
# gzip of the base model's file / gzip of the model's file.
_PUBLISHED_RATIO = {
    "base": "1.00×",
    "pruned": "3.05×",
    "qat": "0.98×",
    "pruned_tflite": "3.14×",
    "qat_tflite": "4.41×",
    "pruned_qat_tflite": "9.71×",
}
_PUBLISHED_SPEEDUP = {
    "batch32": {"pruned_qat_tflite": "24×"},
    "loop": {"pruned_qat_tflite": "0.69×"},
    "threads": {"pruned_qat_tflite": "1.20–1.37×"},
}
_TABLES = {
    "batch32": "1. One batch of 32 images",
    "loop": "2. {images:,} test images in {batches} batches, plain loop",
    "threads": "3. The same {batches} batches through the multithreaded Runner",
}


def make_report(
    engine: str, measured: Mapping[str, Mapping[str, Any]], images: int, batch: int
) -> Report:
    """Returns the report of what `measure` found.

    Args:
        engine: `"native"` or `"tfmot"`.
        measured: Metrics by model.
        images: Number of test images.
        batch: Images in one batch.
    """
    tables = [
        _table(key, title.format(images=images, batches=-(-images // batch)), measured)
        for key, title in _TABLES.items()
    ]
    return Report(
        title=f"tfopt quickstart, engine {engine}",
        tables=tables,
        notes=_notes(engine),
        data={"engine": engine, "num_images": images, "models": measured},
    )


def _table(key: str, title: str, measured: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = [
        Column(key="accuracy", format=".2%", better="higher"),
        Column(key=f"{key}_ms", title="time", unit="ms", format=".2f"),
        Column(
            key=f"{key}_speedup",
            title="speed-up",
            unit="×",
            format=".2f",
            better="higher",
        ),
        Column(key="published_speedup", title="published"),
        Column(key="gzip_bytes", title="gzip", unit="bytes"),
        Column(key="raw_bytes", title="raw", unit="bytes"),
        Column(
            key="gzip_ratio",
            title="size ratio",
            unit="×",
            format=".2f",
            better="higher",
        ),
        Column(key="published_ratio", title="published size ratio"),
    ]
    rows = {
        _TITLES[name]: {
            **row,
            "published_speedup": _PUBLISHED_SPEEDUP[key].get(name),
            "published_ratio": _PUBLISHED_RATIO.get(name),
        }
        for name, row in measured.items()
    }
    return Table(title=title, columns=columns, rows=rows)


def _notes(engine: str) -> list[str]:
    notes = [
        "Table 1 runs .tflite files through the Runner, table 2 by one interpreter in "
        "a plain loop.",
        "Times are medians of interleaved runs in one process. Speed-ups are over "
        "`predict(batch_size=32)` of the base model; most of what one batch gains is "
        "the fixed cost of a `predict` call.",
        "Size ratio: gzip -9 of the base model's file, saved without optimizer, over "
        "gzip -9 of the model's. Zeros and coarser grids shrink a file only once it "
        "is compressed, or sparsely encoded; the raw int8 files hold every weight.",
        "Published figures: base 78,117 bytes compressed, pruned + QAT + TFLite 8,044 "
        "bytes, accuracy 0.97 ± 0.01 for all.",
        "Best: global magnitude pruning to 90 % zeros and 4-bit codes during "
        "quantization-aware training, three times as long as the other trainings.",
    ]
    if engine == "tfmot":
        notes.append(
            "The pruned and QAT rows are made by TensorFlow Model Optimization on "
            "tf_keras, the best row and all conversions by tfopt. TFMOT's wrappers "
            "store every kernel twice in qat.keras."
        )
    return notes
