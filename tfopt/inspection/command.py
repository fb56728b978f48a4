"""The function behind the command `inspect_model`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from tfopt import _trust, inspection
from tfopt.types import UsageError

SensitivityMethod = Literal[
    "int8", "dynamic", "int8_weights", "int4_weights", "float16"
]


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the command prints."""

    found: inspection.Inspection
    largest: int
    sensitivity: Any = None

    def to_json(self) -> dict[str, Any]:
        """Returns the findings, for `--report`."""
        content = self.found.to_json()
        if self.sensitivity is not None:
            content["sensitivity"] = self.sensitivity.report().to_json()
        return content

    def __str__(self) -> str:
        return "\n\n".join(report.text() for report in self._reports())

    def __rich__(self) -> Any:
        from rich.console import Group

        return Group(*(report.__rich__() for report in self._reports()))

    def _reports(self) -> list[Any]:
        reports = [self.found.report(largest=self.largest)]
        if self.sensitivity is not None:
            reports.append(self.sensitivity.report())
        return reports


@_trust.with_safe_mode
def inspect_model(
    *,
    model: str,
    signature_key: str | None = None,
    against: str | None = None,
    largest: int = 10,
    sensitivity: Sequence[SensitivityMethod] = (),
    data: str | None = None,
    input_scale: float = 1.0,
    examples: int = 512,
    sensitivity_cache: str | None = None,
    safe_mode: bool = True,
) -> Shown | inspection.Difference:
    """Shows what is inside a model, or how two models differ.

    Args:
        model: A .tflite file, SavedModel directory, GraphDef (.pb, .pbtxt), .keras or
            .h5 file, or the prefix of a checkpoint.
        signature_key: Which signature of a SavedModel, by default serving_default.
        against: A second model; shown is what it has other than the first one.
        largest: How many of the largest weight tensors are listed.
        sensitivity: Also measure what each layer loses when it alone is quantized:
            int8 (weights and activations), dynamic, int8_weights, int4_weights,
            float16.
        data: For sensitivity: FILE.npz with x_test and, for accuracy, y_test; or
            module:function.
        input_scale: Factor on these inputs, such as 0.00392156863 (1/255) for pixels.
        examples: How many of them are used.
        sensitivity_cache: JSON file to keep the scores in, from which an interrupted
            run goes on.
        safe_mode: Refuse model files that could run code, reach other files or the
            network.

    Raises:
        UsageError: sensitivity without data, or together with against.
        TfoptError: A model is nothing of that kind, or damaged.
        ValueError: A number is out of range; `signature_key` for another format.
    """
    if largest < 0:
        raise ValueError(f"`largest` must be at least 0. Received: largest={largest}")
    if bool(sensitivity) != (data is not None) or (sensitivity and against):
        raise UsageError(
            "--sensitivity and --data need each other, and one model. Received: "
            f"--sensitivity={','.join(sensitivity)}, --data={data}, --against={against}"
        )
    found = inspection.inspect(model, signature_key=signature_key)
    if against is not None:
        return inspection.diff(found, inspection.inspect(against))
    measured = None
    if sensitivity:
        from tfopt import analysis

        measured = analysis.sensitivity(
            model,
            _examples(data or "", input_scale, examples),
            methods=list(sensitivity),
            signature_key=signature_key,
            examples=examples,
            cache=sensitivity_cache,
        )
    return Shown(found, largest, measured)


def _examples(spec: str, scale: float, count: int) -> Any:
    import numpy as np

    from tfopt import data

    def prepared(array: Any) -> Any:
        if isinstance(array, dict):
            return {name: prepared(part) for name, part in array.items()}
        cut = np.asarray(array[:count])
        return cut if scale == 1.0 else (cut * np.float32(scale)).astype(np.float32)

    inputs, labels = data.load_examples(spec)
    if labels is None:
        return prepared(inputs)
    return prepared(inputs), labels[:count] if not isinstance(labels, dict) else labels
