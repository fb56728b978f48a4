"""The steps of a recipe, each one a call of another part of tfopt."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tfopt import (
    _keras,
    artifacts,
    conversion,
    finetuning,
    grappler,
    lifting,
    methods,
    pruning,
    surgery,
    transforms,
)
from tfopt.methods._base import Method
from tfopt.recipe import _rules
from tfopt.recipe._checking import DIVIDED_MODES, Step
from tfopt.types import TfoptError

if TYPE_CHECKING:
    from tfopt.recipe import Recipe

_CALIBRATION_EXAMPLES = 256
# What a method takes from the run, where it takes it at all.
_REPRESENTATIVE, _TEACHER = "representative_dataset", "teacher"


@dataclasses.dataclass(frozen=True)
class Given:
    """What a recipe is applied with; see `Recipe.apply`."""

    representative: Any
    examples: Any
    teacher: Any
    stages: pathlib.Path | None


@dataclasses.dataclass
class _State:
    """What has become of the model, and what may be used on the way."""

    recipe: Recipe
    model: Any
    given: Given
    output: pathlib.Path
    work: pathlib.Path
    position: int = 0
    quantization_aware: bool = False
    reports: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def is_last(self) -> bool:
        return self.position == len(self.recipe.steps) - 1

    def keras_model(self) -> Any:
        """Returns the model as a Keras model."""
        if not _keras.is_model(self.model):
            self.model = lifting.open_model(self.model)
        return self.model

    def kept_float(self, **options: Any) -> list[str]:
        """Returns globs for the layers that the rules keep in float."""
        given = self.given.representative
        return _rules.kept_float(self.recipe.rules, self.model, given, **options)


def run(
    recipe: Recipe, model: Any, output: pathlib.Path, given: Given
) -> tuple[pathlib.Path, str, list[dict[str, Any]]]:
    """Does the steps; see `Recipe.apply`."""
    with _folder(given.stages) as work:
        state = _State(recipe, model, given, output, work)
        for position, step in enumerate(recipe.steps):
            state.position = position
            report = _doing(step, state)
            state.reports.append({"do": step.do, **report})
    return output, recipe.target, state.reports


def _doing(step: Step, state: _State) -> dict[str, Any]:
    """Does one step, and says which one it was if it fails."""
    try:
        return _STEPS[step.do](state, dict(step.options))
    except TfoptError as error:
        raise type(error)(f"{step.do}: {error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{step.do}: {error}") from error


def _remove_channels(state: _State, options: dict[str, Any]) -> dict[str, Any]:
    removal = surgery.remove_channels_with_report(
        state.keras_model(), seed=state.recipe.seed, **options
    )
    state.model = removal.model
    return {"summary": str(removal)}


def _prune_once(state: _State, options: dict[str, Any]) -> dict[str, Any]:
    model = state.keras_model()
    per_layer = _rules.sparsities(state.recipe.rules, model)
    if per_layer:
        options["per_layer"] = per_layer
    state.model = pruning.prune_once(model, seed=state.recipe.seed, **options)
    return {}


def _train(state: _State, options: dict[str, Any]) -> dict[str, Any]:
    if state.given.examples is None:
        raise TfoptError(
            "The recipe trains. Expected training examples. Received: examples=None"
        )
    start = state.keras_model()
    named = options.pop("methods")
    chosen = [_method(item, state) for item in named]
    key = state.recipe.digest(steps=state.position + 1)
    folder = state.work / f"{state.position}_{key}"
    report = folder / "report.json"
    if not report.exists():  # it is written last
        finetuning.finetune(
            start,
            state.given.examples,
            folder,
            methods=chosen,
            seed=state.recipe.seed,
            **options,
        )
    # From the file in any case, so that a run that was resumed makes the same.
    state.model = _keras.load(folder / "model.keras")
    aware = any(item["name"] == "quantize_aware" for item in named)
    state.quantization_aware = state.quantization_aware or aware
    return {"folder": folder.name}


def _method(item: Mapping[str, Any], state: _State) -> Method:
    cls = methods.get(item["name"])
    options = {key: value for key, value in item.items() if key != "name"}
    known = inspect.signature(cls).parameters
    if _TEACHER in known:
        if state.given.teacher is None:
            raise TfoptError(
                "The recipe distills. Expected a teacher. Received: teacher=None"
            )
        options[_TEACHER] = state.given.teacher
    if _REPRESENTATIVE in known:
        options[_REPRESENTATIVE] = _inputs(state.given)
        kept = state.kept_float()
        if kept:
            options["keep_float"] = kept
    if "per_layer" in known:
        per_layer = _rules.sparsities(state.recipe.rules, state.model)
        if per_layer:
            options["per_layer"] = per_layer
    if options.get("score") == "activation":  # which only examples can tell
        options["data"] = [_inputs(state.given)]
    if "seed" in known and "seed" not in options:
        options["seed"] = state.recipe.seed
    return cls(**options)


def _inputs(given: Given) -> Any:
    if given.representative is not None:
        return given.representative
    inputs, _ = next(given.examples.train.batches(batch_size=_CALIBRATION_EXAMPLES))
    return inputs


def _transform_graph(state: _State, options: dict[str, Any]) -> dict[str, Any]:
    artifact = transforms.transform_graph(
        state.model,
        _graph_output(state),
        options.pop("transforms"),
        output_format="saved_model",
        # Once, not after each transform: a search makes many of them.
        verify="final",
        **options,
    )
    state.model = artifact.path
    return {"details": artifact.details}


def _optimize_graph(state: _State, options: dict[str, Any]) -> dict[str, Any]:
    config = options.pop("config")
    if isinstance(config, Mapping):
        config = grappler.GrapplerConfig(**config)
    artifact = grappler.optimize_graph(
        state.model,
        _graph_output(state),
        config,
        output_format="saved_model",
        **options,
    )
    state.model = artifact.path
    return {"details": artifact.details}


def _convert(state: _State, options: dict[str, Any]) -> dict[str, Any]:
    divided = options.get("quantization") in DIVIDED_MODES
    if divided and not state.quantization_aware:
        key = options.get("signature_key")
        options["keep_float"] = state.kept_float(signature_key=key) or None
    # A model that was trained for it has its ranges; real inputs verify it.
    done = conversion.convert_with_report(
        state.model, representative_dataset=state.given.representative, **options
    )
    artifacts.write_bytes(state.output, done.content)
    return {"report": done.report}


def _graph_output(state: _State) -> pathlib.Path:
    if state.is_last:
        return state.output
    return state.work / f"{state.output.stem}_{state.position}"


@contextlib.contextmanager
def _folder(given: pathlib.Path | None) -> Iterator[pathlib.Path]:
    if given is not None:
        yield given
        return
    with artifacts.temporary_folder() as folder:
        yield pathlib.Path(folder)


_STEPS: dict[str, Callable[[_State, dict[str, Any]], dict[str, Any]]] = {
    "remove_channels": _remove_channels,
    "prune_once": _prune_once,
    "train": _train,
    "transform_graph": _transform_graph,
    "optimize_graph": _optimize_graph,
    "convert": _convert,
}
