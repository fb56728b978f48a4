"""What results have in common that can be had as a report."""

from __future__ import annotations

from typing import Any


class Reported:
    """A result that is printed as its `report`, an attribute or a method."""

    report: Any

    def __str__(self) -> str:
        return self._shown().text()

    def __rich__(self) -> Any:
        return self._shown().__rich__()

    def _shown(self) -> Any:
        return self.report() if callable(self.report) else self.report
