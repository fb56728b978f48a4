"""What the models give for the examples, and how good that is."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfopt.benchmark import Benchmark, Measurement, _models, _process
from tfopt.report import Metric, agreement
from tfopt.types import TfoptError

# Rows of a call; no figure depends on it beyond rounding.
_ROWS = 32


@dataclasses.dataclass(frozen=True)
class Judged:
    """All figures of one model.

    Attributes:
        measurement: Time, memory and size.
        error: Why there is nothing more; None if there is.
        metrics: Metric -> value.
        agreement: See `tfopt.report.agreement`; None where the metrics failed.
        inspection: What `tfopt.inspect` says, as plain data; None if it failed.
        notes: What is worth knowing about it.
    """

    measurement: Measurement
    error: str | None
    metrics: Mapping[str, float]
    agreement: Mapping[str, float | None]
    inspection: Mapping[str, Any] | None
    notes: tuple[str, ...]


@dataclasses.dataclass
class Runs:
    """Outputs and contents, as the models' processes delivered them.

    Attributes:
        folder: Where each model's outputs are written.
        data: Folder of the inputs.
        names: Model -> names of its outputs.
        inspections: Model -> what `tfopt.inspect` says, as plain data.
        notes: Model -> what is worth knowing.
    """

    folder: pathlib.Path
    data: str
    names: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    inspections: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    _numbers: dict[str, int] = dataclasses.field(default_factory=dict)

    def finish(self, file: _models.ModelFile, process: _process.ModelProcess) -> None:
        """Runs the examples in a model's process, and has it looked into there."""
        place = self._place(file.name)
        place.mkdir()
        self.names[file.name] = process.call(
            "predict", data=self.data, output=str(place), rows=_ROWS
        )
        try:
            self.inspections[file.name] = process.call(
                "call",
                target="tfopt.inspection:inspect",
                arguments={"model": file.path},
            )
        except TfoptError as error:
            self.notes[file.name] = [f"Its content could not be read: {error}"]

    def outputs(self, name: str) -> dict[str, np.ndarray]:
        """Returns what a model gave, by its own names."""
        return {
            key: np.load(self._place(name) / f"{index}.npy", mmap_mode="r")
            for index, key in enumerate(self.names[name])
        }

    def _place(self, name: str) -> pathlib.Path:
        # By number, as names of models may hold anything.
        number = self._numbers.setdefault(name, len(self._numbers))
        return self.folder / f"outputs_{number}"


def judge(
    benchmark: Benchmark,
    runs: Runs,
    reference: str,
    labels: Any,
    metrics: Sequence[Metric],
    output: str | None,
) -> list[Judged]:
    """Judges what the models gave.

    Args:
        benchmark: Their measurements.
        runs: Their outputs.
        reference: The model to agree with.
        labels: What should have come out; None if that is not known.
        metrics: By which.
        output: Which output is judged.

    Raises:
        ValueError: Which output is meant is unclear.
        TfoptError: The reference failed.
    """
    problem = benchmark[reference].error
    if problem is not None:
        raise TfoptError(
            f"The reference model fails, so there is nothing to agree with. Received: "
            f"{reference}: {problem}"
        )
    expected = runs.outputs(reference)
    judged = _judged_output(list(expected), output)
    wanted = _labels_of(labels, judged)
    return [
        _judge_one(item, runs, expected, judged, wanted, metrics)
        for item in benchmark.measurements
    ]


def _judge_one(
    item: Measurement,
    runs: Runs,
    expected: Mapping[str, np.ndarray],
    judged: str,
    labels: Any,
    metrics: Sequence[Metric],
) -> Judged:
    notes = [*item.notes, *runs.notes.get(item.name, ())]
    values: dict[str, float] = {}
    agreed: Mapping[str, float | None] = {}
    error = item.error
    if error is None:
        try:
            outputs, by_position = aligned(runs.outputs(item.name), expected)
            if by_position:
                notes.append(
                    "Its outputs have other names than the reference's; they were "
                    f"taken in order: {', '.join(runs.names[item.name])}."
                )
            for metric in metrics:
                values[metric.name] = float(metric.function(outputs[judged], labels))
            agreed = agreement(outputs, expected, judged)
        except (ValueError, TypeError, TfoptError) as problem:
            error, values = str(problem), {}
    return Judged(
        measurement=item,
        error=error,
        metrics=values,
        agreement=agreed,
        inspection=runs.inspections.get(item.name),
        notes=tuple(notes),
    )


def aligned(
    outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], bool]:
    """Returns outputs by the reference's names, and whether their order decided.

    Formats rename outputs. Where names differ, shapes that occur once are matched, and
    failing that the order.

    Raises:
        ValueError: There are more or fewer of them.
    """
    if set(outputs) == set(reference):
        return dict(outputs), False
    if len(outputs) != len(reference):
        raise ValueError(
            "Its outputs are not the reference's. Expected "
            f"{list(reference)}. Received: {list(outputs)}"
        )
    shapes = [value.shape for value in reference.values()]
    by_shape = {value.shape: value for value in outputs.values()}
    if len(set(shapes)) == len(shapes) and set(shapes) == set(by_shape):
        return {name: by_shape[value.shape] for name, value in reference.items()}, False
    return dict(zip(reference, outputs.values(), strict=True)), len(outputs) > 1


def _judged_output(names: list[str], output: str | None) -> str:
    if output is None and len(names) == 1:
        return names[0]
    if output is None or output not in names:
        raise ValueError(
            "Which output is judged is unclear. Expected `output` to be one of the "
            f"reference's outputs {names}. Received: output={output!r}"
        )
    return output


def _labels_of(labels: Any, output: str) -> Any:
    if not isinstance(labels, Mapping):
        return labels
    if len(labels) == 1:
        return next(iter(labels.values()))
    if output not in labels:
        raise ValueError(
            f"There are no labels for the output {output!r}. "
            f"Received: labels of {list(labels)}"
        )
    return labels[output]
