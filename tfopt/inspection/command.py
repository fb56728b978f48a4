"""The function behind the command `inspect_model`."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfopt import inspection


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the command prints."""

    found: inspection.Inspection
    largest: int

    def to_json(self) -> Any:
        """Returns the findings, for `--report`."""
        return self.found

    def __str__(self) -> str:
        return self.found.report(largest=self.largest).text()

    def __rich__(self) -> Any:
        return self.found.report(largest=self.largest).__rich__()


def inspect_model(
    *,
    model: str,
    signature_key: str | None = None,
    against: str | None = None,
    largest: int = 10,
) -> Shown | inspection.Difference:
    """Shows what is inside a model, or how two models differ.

    Args:
        model: A .tflite file, SavedModel directory, GraphDef (.pb, .pbtxt), .keras or
            .h5 file, or the prefix of a checkpoint.
        signature_key: Which signature of a SavedModel, by default serving_default.
        against: A second model; shown is what it has other than the first one.
        largest: How many of the largest weight tensors are listed.

    Raises:
        TfoptError: A model is nothing of that kind, or damaged.
        ValueError: `largest` is negative; `signature_key` for another format.
    """
    if largest < 0:
        raise ValueError(f"`largest` must be at least 0. Received: largest={largest}")
    found = inspection.inspect(model, signature_key=signature_key)
    if against is None:
        return Shown(found, largest)
    return inspection.diff(found, inspection.inspect(against))
