"""The published MNIST comparison that tfopt starts from, run again and extended.

A network of 20,410 parameters is trained, pruned, made quantization aware and
converted, alone and combined, and every result is measured three ways.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import pathlib
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tfopt import _child, artifacts
from tfopt.data import load_data
from tfopt.report import Report
from tfopt.types import TfoptError

if TYPE_CHECKING:  # Keras is chosen by the environment of the process that trains
    from tfopt.quickstart._recipes import Digits, Models

_logger = logging.getLogger(__name__)
_DIGITS = pathlib.Path(__file__).parents[2] / "testdata" / "mnist.npz"


def quickstart(
    *,
    engine: Literal["native", "tfmot"] = "native",
    epochs: int = 5,
    output_dir: str | os.PathLike[str] = "quickstart_output",
    data: str | None = None,
    seed: int = 1,
) -> Report:
    """Trains, shrinks, converts and measures the MNIST network.

    Writes `base.keras pruned.keras qat.keras pruned.tflite qat.tflite
    pruned_qat.tflite best.tflite report.md report.json`, and `report.png` where
    matplotlib is installed.

    Args:
        engine: `"native"`: tfopt's own methods, on the Keras that `tf.keras` is.
            `"tfmot"`: the original recipe through TensorFlow Model Optimization on
            tf_keras, in a child process, since importing TFMOT switches a process to
            tf_keras; the best row is tfopt's in both.
        epochs: Epochs of the base model and of each optimization; the best model
            takes three times as many.
        output_dir: Folder for models and reports.
        data: Digits [n, 28, 28] as `FILE.npz`, in the layout of Keras's `mnist.npz`,
            or as `module:function`; by default those that come with the source.
        seed: Makes initial weights and the order of the examples repeatable.

    Returns:
        Three tables, and all numbers under `data["models"]`.

    Raises:
        ValueError: An argument is wrong.
        TfoptError: The data cannot be read, or a model misses what it promises.

    Example:
        >>> from tfopt.quickstart import quickstart
        >>> report = quickstart(epochs=1, output_dir="/tmp/digits")  # doctest: +SKIP
    """
    _check_arguments(engine, epochs)
    arguments = {
        "engine": engine,
        "epochs": epochs,
        "output_dir": os.path.abspath(output_dir),
        "data": data or str(_DIGITS),
        "seed": seed,
    }
    if engine == "tfmot":
        return _in_child(arguments)
    return _run(arguments)


def _check_arguments(engine: str, epochs: int) -> None:
    if engine not in ("native", "tfmot"):
        raise ValueError(
            f'`engine` must be "native" or "tfmot". Received: engine={engine!r}'
        )
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(
            f"`epochs` must be a positive integer. Received: epochs={epochs!r}"
        )


def _in_child(arguments: dict[str, Any]) -> Report:
    from tfopt.quickstart import _measure, _tables

    content = _child.call("tfopt.quickstart:data_of_run", {"arguments": arguments})
    return _tables.make_report(
        content["engine"], content["models"], content["num_images"], _measure.BATCH
    )


def data_of_run(arguments: dict[str, Any]) -> Any:
    """Runs the quickstart in the child process that `engine="tfmot"` starts.

    Args:
        arguments: The arguments of `quickstart`.

    Returns:
        The report's `data`.
    """
    return _run(arguments).data


def _run(arguments: dict[str, Any]) -> Report:
    from tfopt import _keras
    from tfopt.quickstart import _measure, _recipes, _tables

    folder = pathlib.Path(arguments["output_dir"])
    digits = _digits(arguments["data"])
    with (
        artifacts.work_lock(folder, name="output_dir"),
        artifacts.atomic_set() as outputs,
        Progress(total=arguments["epochs"] * _recipes.PASSES) as progress,
    ):
        trainer = _recipes.Trainer(
            keras=_keras.preferred(),
            digits=digits,
            epochs=arguments["epochs"],
            seed=arguments["seed"],
            progress=progress,
        )
        is_native = arguments["engine"] == "native"
        models = _recipes.native(trainer) if is_native else _recipes.original(trainer)
        files = _save(models, folder, outputs)
        progress.stage("measuring")
        measured = _measure.measure(
            models.keras, files, digits.test_images, digits.test_labels
        )
        report = _tables.make_report(
            arguments["engine"], measured, len(digits.test_labels), _measure.BATCH
        )
        _write(report, folder, outputs)
    return report


def _digits(spec: str) -> Digits:
    from tfopt.quickstart._recipes import Digits

    data = load_data(spec)
    arrays: list[np.ndarray] = []
    for split in (data.train, data.test):
        images, labels = split.arrays()
        if (
            isinstance(images, dict)
            or isinstance(labels, dict)
            or images.shape[1:] != (28, 28)
        ):
            raise TfoptError(
                "Expected images [n, 28, 28] with pixels from 0 to 255 and one label "
                f"each, as in Keras's mnist.npz. Received: data={spec!r}"
            )
        arrays += [images.astype(np.float32) / np.float32(255), labels.astype(np.int32)]
    return Digits(*arrays)


def _save(
    models: Models, folder: pathlib.Path, outputs: artifacts.AtomicSet
) -> dict[str, pathlib.Path]:
    from tfopt import _keras

    files = {}
    for name, model in models.keras.items():
        files[name] = outputs.add(folder / f"{name}.keras")
        _keras.save(model, files[name])
    for name, content in models.tflite.items():
        place = folder / f"{name.removesuffix('_tflite')}.tflite"
        files[name] = outputs.add(place)
        files[name].write_bytes(content)
    return files


def _write(report: Report, folder: pathlib.Path, outputs: artifacts.AtomicSet) -> None:
    if importlib.util.find_spec("matplotlib"):
        plot = outputs.add(folder / "report.png")
        report.plot(plot, x="gzip_bytes", y="accuracy")
    else:
        _logger.info("no report.png without matplotlib: pip install 'tfopt[plot]'")
    report.write(outputs.add(folder / "report.md"))
    report.write(outputs.add(folder / "report.json"))


class Progress:
    """Stages and epochs: a bar on a terminal, one line a stage elsewhere.

    Args:
        total: Number of epochs of all trainings together.
    """

    def __init__(self, *, total: int):
        from rich.console import Console
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._bar = Bar(
            console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("", total=total)
        self._start = time.monotonic()

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def stage(self, what: str) -> None:
        """Says what comes next."""
        if self._bar.disable:
            _logger.info("%4.0f s  %s", time.monotonic() - self._start, what)
        self._bar.update(self._task, description=what)

    def epoch(self) -> None:
        """Counts an epoch."""
        self._bar.advance(self._task)
