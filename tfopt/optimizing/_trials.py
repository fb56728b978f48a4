"""Trials: one recipe applied, measured and kept on disk; none is done twice."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import pathlib
import time
import typing
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfopt import _json_files, _progress, artifacts
from tfopt.optimizing._measuring import BASELINE, Figures, Judge
from tfopt.optimizing._problem import Problem
from tfopt.recipe import Recipe
from tfopt.types import TfoptError

__all__ = ["BASELINE", "Figures", "Study", "Trial"]

_LOGGER = logging.getLogger(__name__)
_FILE = "trial.json"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One candidate.

    Attributes:
        key: Digest of its recipe; the name of its folder.
        recipe: How it was made.
        parent: Key of the trial that it was derived from; None of the first ones.
        path: The file, or the SavedModel directory; None if there is none.
        figures: On the examples that are searched on; None if there are none.
        error: Why there is no file; None if there is one.
        seconds: What making and measuring it took.
        reports: What the steps of the recipe told.
    """

    key: str
    recipe: Recipe
    parent: str | None
    path: str | None
    figures: Figures | None
    error: str | None
    seconds: float
    reports: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.recipe.name

    @property
    def kept_float(self) -> Mapping[str, Any] | None:
        """What the conversion says about layers left in float; None if there are none.

        `"layers"`, `"macs_share"` and `"bytes_share"`, see `tfopt.Conversion`.
        """
        last = self.reports[-1] if self.reports else {}
        return last.get("report", {}).get("kept_float")


class Study:
    """All trials of one model on one set of examples.

    Args:
        problem: The task.
        folder: Where trials are kept; those of another task are told apart.
        teacher: For recipes that distill.
        seed: Of all recipes.
        baseline: The recipe of the model as it is.
        output: The output that is judged, where there are several.

    Attributes:
        folder: Where the trials of this task are.
        judge: Measures files.
        trials: Those that were run or found, by key.
        found_seconds: What those took that an earlier call has made.
    """

    def __init__(
        self,
        problem: Problem,
        folder: pathlib.Path,
        *,
        teacher: Any,
        seed: int,
        baseline: Recipe,
        output: str | None = None,
    ):
        self.problem = problem
        self.trials: dict[str, Trial] = {}
        self.found_seconds = 0.0
        self.seed = seed
        self._teacher = teacher
        first = folder / "baseline" / _file_of(baseline)
        first.parent.mkdir(parents=True, exist_ok=True)
        baseline.apply(problem.model, first, representative_dataset=problem.calibration)
        identity = first.read_bytes() if first.is_file() else _digest(first)
        self.folder = folder / problem.fingerprint(identity + _identity(teacher))
        self.judge = Judge(problem, first, output)
        self.baseline = self.run(baseline)
        if self.baseline.figures is None:
            artifacts.remove(self.folder / self.baseline.key)  # it may work next time
            raise TfoptError(f"The model cannot be measured. {self.baseline.error}")

    def run(self, recipe: Recipe, *, parent: Trial | None = None) -> Trial:
        """Returns the trial of a recipe, made now or found on disk.

        What goes wrong is part of the trial: its `error`.
        """
        key = recipe.digest()
        if key in self.trials:
            return self.trials[key]
        folder = self.folder / key
        trial = _read(folder)
        if trial is None:
            _LOGGER.info("trying %s", recipe.name or recipe)
            _LOGGER.debug("%s", recipe)
            with _progress.task(f"trying {recipe.name or 'a recipe'}"):
                trial = self._make(recipe, folder, parent)
        else:
            self.found_seconds += trial.seconds
        self.trials[key] = trial
        return trial

    def is_begun(self, recipe: Recipe) -> bool:
        """Whether a trial, or a training for it, is there already."""
        stages = self.folder / "stages"
        begun = (
            f"{position}_{recipe.digest(steps=position + 1)}"
            for position, step in enumerate(recipe.steps)
            if step.do == "train"
        )
        return (self.folder / recipe.digest()).exists() or any(
            (stages / name).exists() for name in begun
        )

    def adopt(self, is_wanted: Callable[[Recipe], bool]) -> int:
        """Takes over what earlier searches of the same task have tried besides.

        Args:
            is_wanted: Whether a recipe may be used.

        Returns:
            How many trials they are.
        """
        count = 0
        found = self.folder.glob(f"*/{_FILE}")
        for place in sorted(found, key=lambda path: path.stat().st_mtime):
            key = place.parent.name
            # Those that are being made have names with a dot.
            if key.startswith(".") or key in self.trials:
                continue
            trial = _read(place.parent)
            if trial is not None and is_wanted(trial.recipe):
                self.trials[key] = trial
                count += 1
        return count

    def _make(
        self, recipe: Recipe, folder: pathlib.Path, parent: Trial | None
    ) -> Trial:
        start = time.monotonic()
        name = _file_of(recipe)
        trial = Trial(
            key=recipe.digest(),
            recipe=recipe,
            parent=None if parent is None else parent.key,
            path=str(folder / name),
            figures=None,
            error=None,
            seconds=0.0,
        )
        with artifacts.atomic_path(folder) as temporary:
            temporary.mkdir()
            try:
                trial = self._filled(trial, temporary / name)
            except (TfoptError, ValueError) as error:
                trial = dataclasses.replace(trial, path=None, error=str(error))
            seconds = time.monotonic() - start
            trial = dataclasses.replace(trial, seconds=seconds)
            fields = [field.name for field in dataclasses.fields(trial)]
            plain = {field: getattr(trial, field) for field in fields}
            plain["seed"] = recipe.seed
            artifacts.write_json(temporary / _FILE, plain)
        return trial

    def _filled(self, trial: Trial, place: pathlib.Path) -> Trial:
        """Makes the file at a place and measures it there."""
        applied = trial.recipe.apply(
            self.problem.model,
            place,
            representative_dataset=self.problem.calibration,
            examples=self.problem.train,
            teacher=self._teacher,
            stages_dir=self.folder / "stages",
        )
        return dataclasses.replace(
            trial,
            figures=self.judge.measure(str(place)),
            reports=tuple(applied.reports),
        )


def _read(folder: pathlib.Path) -> Trial | None:
    """Returns a trial from its folder; None if there is none."""
    try:
        content = _json_files.make(dict[str, Any], _json_files.read(folder / _FILE))
        hints = typing.get_type_hints(Trial)
        plain = {
            name: _json_files.make(hints[name], content.get(name), where=f".{name}")
            for name in hints
            if name != "recipe"
        }
        trial = Trial(recipe=Recipe.from_json(content.get("recipe")), **plain)
        if trial.path is None:
            return trial
        # Where it lies now: folders move, and none may name a file elsewhere.
        return dataclasses.replace(trial, path=str(folder / _file_of(trial.recipe)))
    except FileNotFoundError:
        return None
    except (_json_files.Damaged, TfoptError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: pathlib.Path, error: Exception) -> TfoptError:
    return TfoptError(
        "Cannot read a trial. Expected what an earlier run wrote; delete the folder "
        f"to make it again. Received: {folder} ({error})"
    )


def _file_of(recipe: Recipe) -> str:
    return "model.tflite" if recipe.target == "tflite" else "model"


def _identity(teacher: Any) -> bytes:
    """Tells teachers apart: what they teach is part of every trial."""
    if teacher is None:
        return b""
    if isinstance(teacher, (str, os.PathLike)):
        is_there = os.path.exists(teacher)  # else reading it says what is wrong
        return artifacts.sha256(teacher).encode() if is_there else b"missing"
    if not hasattr(teacher, "get_weights"):
        return type(teacher).__name__.encode()
    digest = hashlib.sha256()
    for weight in teacher.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.digest()


def _digest(folder: pathlib.Path) -> bytes:
    return artifacts.sha256(folder).encode()
