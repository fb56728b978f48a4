"""Scores kept in a file while they are being measured."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

from tfopt import _json_files, artifacts
from tfopt.quantization._result import Score

_FORMAT = "tfopt.scores"
_SECONDS_BETWEEN_WRITES = 2.0


class ScoreFile:
    """Measures each score once, over several runs if there is a file.

    A context manager: at its end, also by an exception, everything is written.

    Args:
        path: A JSON file, which need not exist; `None` keeps scores in memory.
        fingerprint: Of model, data and metric.

    Raises:
        ValueError: The file has scores of others, or is of another kind.
    """

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: str):
        self._path = None if path is None else pathlib.Path(path)
        self._fingerprint = fingerprint
        self._scores: dict[str, Score] = {}
        self._written = time.monotonic()
        if self._path is not None and self._path.exists():
            self._scores = self._read(self._path)

    def __enter__(self) -> ScoreFile:
        return self

    def __exit__(self, *error: Any) -> None:
        self._write()

    def get(self, key: str, measure: Callable[[], Score]) -> Score:
        """Returns a score, measured if it isn't known yet."""
        if key not in self._scores:
            self._scores[key] = measure()
            if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
                self._write()
        return self._scores[key]

    def _read(self, path: pathlib.Path) -> dict[str, Score]:
        try:
            data = _json_files.make(dict[str, Any], _json_files.read(path))
            if data.get("format") != _FORMAT:
                raise _json_files.Damaged(f"its format is not {_FORMAT}")
            scores = _json_files.make(dict[str, Score], data.get("scores"))
        except _json_files.Damaged as error:
            raise ValueError(
                "Not a file of scores. Expected one that `sensitivity` wrote, or none. "
                f"Received: cache={os.fspath(path)!r} ({error})"
            ) from error
        if data.get("fingerprint") != self._fingerprint:
            raise ValueError(
                "The file has scores of another model, of other data or of another "
                "metric. Give it another name, or delete it. "
                f"Received: cache={os.fspath(path)!r}"
            )
        return scores

    def _write(self) -> None:
        if self._path is None:
            return
        data = {
            "format": _FORMAT,
            "fingerprint": self._fingerprint,
            "scores": {
                key: dataclasses.asdict(score) for key, score in self._scores.items()
            },
        }
        artifacts.write_json(self._path, data)
        self._written = time.monotonic()
