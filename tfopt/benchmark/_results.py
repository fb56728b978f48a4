"""What `benchmark_models` returns: figures of each model, and their table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from tfopt.benchmark import _tables
from tfopt.benchmark._measurement import Measurement
from tfopt.report import Reported


@dataclasses.dataclass(frozen=True)
class Benchmark(Reported):
    """The figures of several models that were measured in turn.

    Attributes:
        measurements: One per model, in the order given.
        settings: The options, for the report.
    """

    measurements: tuple[Measurement, ...]
    settings: Mapping[str, Any]

    def __getitem__(self, name: str) -> Measurement:
        """Returns the figures of a model.

        Raises:
            KeyError: There is none of that name.
        """
        for item in self.measurements:
            if item.name == name:
                return item
        raise KeyError(name)

    @functools.cached_property
    def report(self) -> Any:
        """The figures as a `tfopt.Report`: tables, notes, machine and versions."""
        return _tables.report(self.measurements, self.settings)

    def to_json(self) -> Any:
        """Returns the report as plain data."""
        return self.report.to_json()
