"""Recipes: what is done to a model, as data that can be kept, read and replayed.

How it is built: `_checking` says what a recipe may hold, `_rules` divides layers by
patterns, and `_steps` does the steps, each one a call of another part of tfopt.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tfopt import _json_files, artifacts
from tfopt.recipe import _checking
from tfopt.recipe._checking import Rule, Step
from tfopt.types import TfoptError

__all__ = ["Applied", "Recipe", "Rule", "Step"]

_FORMAT = "tfopt.recipe"
_VERSION = 1
_MAX_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Applied:
    """What a recipe made of a model.

    Attributes:
        path: The file, or the SavedModel directory.
        format: `"tflite"` or `"saved_model"`.
        reports: What each step tells, as plain JSON data, in the order of the steps.
    """

    path: pathlib.Path
    format: str
    reports: Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Steps from a trained model to a deployable file, and rules for its layers.

    The steps are done one after the other; each is a function of tfopt with options by
    its own names: `"remove_channels"`, `"prune_once"`, `"train"` (that is
    `tfopt.finetune`, with `"methods"`), `"transform_graph"`, `"optimize_graph"` and
    `"convert"`. A recipe ends with `"convert"` and makes a `.tflite` file, or with one
    of the graph steps and makes a SavedModel.

    Rules divide the layers of the model that the steps start from. Each names layers
    by a glob (as `keep_float` of `tfopt.convert` does) and gives them a `precision`,
    `"float"` (float32) or `"quantized"` (as the conversion says: int8, dynamic, float16
    or int4), or a `sparsity` for the weights. Of several rules for a layer the last one
    counts; a rule that matches nothing, or that no step heeds, is an error.

    A recipe is data: numbers, texts and lists. Models, examples and teachers are given
    when it is applied, and nothing in it is run as code.

    Attributes:
        steps: What is done, in order.
        rules: What is special about layers, later ones outranking earlier ones.
        name: What reports call it.
        seed: Of all that is drawn at random.

    Example:
        >>> recipe = Recipe(
        ...     steps=[{"do": "convert", "quantization": "int8"}],
        ...     rules=[{"layers": "logits", "precision": "float"}])
        >>> recipe.save("recipe.json")
        >>> Recipe.load("recipe.json") == recipe
        True
    """

    steps: Sequence[Any]
    rules: Sequence[Any] = ()
    name: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        steps = _checking.checked_steps(self.steps)
        own = {
            "steps": steps,
            "rules": _checking.checked_rules(self.rules, steps),
            "name": _checking.checked_name(self.name),
            "seed": _checking.checked_seed(self.seed),
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @property
    def target(self) -> str:
        """What it makes: `"tflite"` or `"saved_model"`."""
        return "tflite" if self.steps[-1].do == "convert" else "saved_model"

    @property
    def trains(self) -> bool:
        """Whether it takes training examples."""
        return any(step.do == "train" for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain data, which `from_json` takes."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "name": self.name,
            "seed": self.seed,
            "rules": [rule.to_json() for rule in self.rules],
            "steps": [step.to_json() for step in self.steps],
        }

    @classmethod
    def from_json(cls, content: Any) -> Recipe:
        """Makes a recipe of plain data.

        Raises:
            TfoptError: It is no recipe, or holds what no recipe may hold; the message
                says where.
        """
        if not isinstance(content, Mapping) or content.get("format") != _FORMAT:
            kind = type(content).__name__
            raise TfoptError(
                f'Not a recipe. Expected an object with "format": "{_FORMAT}". '
                f"Received: a {kind}"
            )
        if content.get("version") != _VERSION:
            raise TfoptError(
                f"A recipe of another version. Expected {_VERSION}. "
                f"Received: version={content.get('version')!r}"
            )
        fields = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(content) - fields - {"format", "version"}, key=str)
        if unknown or "steps" not in content:
            raise TfoptError(
                f"Expected the keys {sorted(fields)} in a recipe. "
                f"Received: {unknown or 'no steps'}"
            )
        try:
            return cls(**{name: content[name] for name in fields if name in content})
        except ValueError as error:
            raise TfoptError(f"The recipe is wrong. {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON; `load` reads it.

        Raises:
            TfoptError: The file cannot be written.
        """
        artifacts.write_json(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Reads what `save` wrote, or what was written by hand.

        Raises:
            TfoptError: The file is missing, larger than 1 MB, or holds no recipe.
        """
        try:
            with open(path, "rb") as file:
                content = file.read(_MAX_BYTES + 1)
            if len(content) > _MAX_BYTES:
                raise ValueError(f"more than {_MAX_BYTES:,} bytes")
            data = _json_files.loads(content)
        except (OSError, ValueError) as error:
            raise TfoptError(
                "Cannot read the recipe. Expected a JSON file as Recipe.save writes. "
                f"Received: recipe={os.fspath(path)!r} ({error})"
            ) from error
        try:
            return cls.from_json(data)
        except TfoptError as error:
            where = os.fspath(path)
            raise TfoptError(f"{error} (in recipe={where!r})") from error

    def digest(self, *, steps: int | None = None) -> str:
        """Returns what identifies it, whatever its name.

        Args:
            steps: Of the first so many steps alone.
        """
        content = self.to_json()
        content["steps"] = content["steps"][:steps]
        del content["name"]
        return hashlib.sha256(artifacts.to_json(content).encode()).hexdigest()[:16]

    def apply(
        self,
        model: Any,
        output: str | os.PathLike[str],
        *,
        representative_dataset: Any = None,
        examples: Any = None,
        teacher: Any = None,
        stages_dir: str | os.PathLike[str] | None = None,
    ) -> Applied:
        """Does the steps.

        Args:
            model: What `tfopt.convert` takes, and for steps on Keras models also what
                `tfopt.lift` takes; it is not changed.
            output: The `.tflite` file, or the SavedModel directory, to write.
            representative_dataset: Typical inputs, see `tfopt.convert`.
            examples: A `tfopt.Data`, for recipes that train.
            teacher: Model or models to learn from, where the recipe distills.
            stages_dir: Folder for trainings, by digest. A training that is found
                there is taken over, one that was interrupted goes on.

        Returns:
            Where the result is, and what each step tells.

        Raises:
            ValueError: A rule matches nothing, or an option is wrong.
            TfoptError: A step cannot be done; the message says which.

        Example:
            >>> recipe = Recipe(steps=[{"do": "convert", "quantization": "float16"}])
            >>> recipe.apply(model, "small.tflite").format
            'tflite'
        """
        from tfopt.recipe import _steps

        return Applied(
            *_steps.run(
                self,
                model,
                pathlib.Path(output),
                _steps.Given(
                    representative=representative_dataset,
                    examples=examples,
                    teacher=teacher,
                    stages=None if stages_dir is None else pathlib.Path(stages_dir),
                ),
            )
        )

    def __str__(self) -> str:
        parts = [str(step) for step in self.steps]
        parts += [f"[{rule}]" for rule in self.rules]
        return (f"{self.name}: " if self.name else "") + "; ".join(parts)
