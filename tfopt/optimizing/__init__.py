"""From a model and a budget to the best deployable file.

How it is built: `_problem` divides the examples and says how quality is measured,
`_trials` applies one recipe and keeps what came out on disk, `_judging` gives verdicts;
`_after_training`, `_mixed`, `_training` and `_graphs` are the stages of the search,
which share `_search`; `_result` is what comes out. Everything that is done to a model
is a step of a `tfopt.Recipe`.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from tfopt import _trust, artifacts
from tfopt.optimizing import (
    _adopting,
    _finishing,
    _graphs,
    _models,
    _planning,
    _problem,
    _trials,
)
from tfopt.optimizing._judging import Objective
from tfopt.optimizing._result import Candidate, OptimizeResult
from tfopt.optimizing._search import Search, Training
from tfopt.recipe import Recipe

__all__ = ["METHODS", "Candidate", "OptimizeResult", "optimize"]

Target = Literal["tflite", "saved_model"]
# What the search may use, for each kind of result.
METHODS: dict[str, tuple[str, ...]] = {
    "tflite": (
        *("float16", "dynamic", "int8", "equalize", "int16x8", "mixed", "low_bit"),
        *("prune_once", "prune", "quantize_aware", "cluster", "distill"),
        "remove_channels",
    ),
    "saved_model": _graphs.METHODS,
}


@_trust.with_safe_mode
def optimize(
    model: Any,
    data: Any,
    *,
    max_accuracy_drop: float = 0.01,
    objective: Objective = "size",
    metric: str | Callable[[Any, Any], float] | None = None,
    higher_is_better: bool | None = None,
    output: str | None = None,
    teacher: Any = None,
    methods: Sequence[str] | None = None,
    target: Target = "tflite",
    time_budget: float | None = 600.0,
    epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    optimizer: str = "adam",
    loss: str | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    trials_dir: str | os.PathLike[str] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    recipe: Recipe | str | os.PathLike[str] | None = None,
    seed: int = 0,
    dry_run: bool = False,
    safe_mode: bool = True,
) -> OptimizeResult:
    """Searches for the best file that loses no more than a budget allows.

    Cheap recipes come first: plain quantization, its refinements where that breaks the
    budget, then float16, dynamic or int8 with the fewest layers in float32, chosen by
    measured sensitivity, then zeros without training. Recipes that train follow if
    there are training examples and time. Sparsities and numbers of layers are found by
    bisection. Low bits that already break the budget with float activations are not
    tried at all.

    Every trial is a folder with its file, recipe and figures. A search that was
    interrupted, even killed, goes on where it was when it is called again with the same
    `trials_dir`, in the middle of a training too. With another budget or objective
    nothing is measured twice, and all that was tried before is a candidate.

    Examples are divided: candidates are compared on one half of those to measure on,
    and `best` has to keep the budget on the other half too.

    Args:
        model: A Keras model, a `.keras` or `.h5` file, a SavedModel directory, a
            `tf.function` with an input signature, or a frozen graph: a GraphDef or its
            file, with `inputs` and `outputs` unless they are clear. It is not changed.
        data: With training examples: a `tfopt.Data` or a data spec, see
            `tfopt.load_data`. Without: a pair (inputs, labels) of arrays [n, ...] (or
            dictionaries of them by name), or inputs alone.
        max_accuracy_drop: By how much the metric may be worse than the original's.
        objective: What is to be small: `"size"` after gzip, `"latency"` of one call,
            or `"memory"`, the peak of a process.
        metric: As for `tfopt.compare`; or `"argmax_agreement"`, `"mean_difference"` or
            `"max_difference"`, which compare with the original and need no labels. By
            default the accuracy; without labels, the mean absolute difference.
        higher_is_better: Needed for a metric of your own.
        output: Which output is judged, where there are several.
        teacher: A model to learn from, see `tfopt.Distill`; by default none.
        methods: Which methods may be used, some of `METHODS[target]`; by default all.
        target: `"tflite"`, or `"saved_model"`: graph transforms, Grappler, smaller
            weights, and pruning, which lifts the graph (`tfopt.lift`) if it trains.
        time_budget: Seconds for everything: no trial is begun that isn't expected to
            end, and be reported, in time. What trials took that are taken over from an
            earlier call counts. None: no limit.
        epochs: Of each training; by default as the time allows: a few to find out what
            can be reached, then all that there is time for.
        batch_size: Examples in each training step.
        learning_rate: At the start of each training; it falls to zero.
        optimizer: Name of a Keras optimizer.
        loss: Name of a Keras loss, by default found out, see `tfopt.finetune`.
        inputs: Input tensors of a frozen graph, by default its placeholders.
        outputs: Its output tensors, by default the only result that nothing else uses.
        trials_dir: Folder for trials; by default `trials` in `output_dir`, else a
            temporary folder that stays.
        output_dir: Folder for `best.tflite` (or `best`), `recipe.json`, `report.json`,
            `report.md`, `report.html` and plots; by default nothing is written.
        recipe: Replay this recipe instead of searching.
        seed: Of the division of examples and of everything that is drawn. The same
            seed gives the same result, if neither times nor latencies decide.
        dry_run: Measure the original and the speed of training, and return the plan.
        safe_mode: Refuse model files that could run code, reach other files or the
            network. False opens and runs whatever they hold.

    Returns:
        The best candidate, all others with verdicts and reasons, and the report.
        `best` is None if nothing keeps the budget; `closest` says what came closest.

    Raises:
        ValueError: An argument is wrong, or doesn't go with another one.
        TfoptError: The model or data cannot be read, the model cannot be converted, or
            another process works in `trials_dir`.

    Example:
        >>> found = optimize(model, (images, labels), max_accuracy_drop=0.05,
        ...                  methods=["float16"])
        >>> found.best.name
        'float16'
    """
    started = time.monotonic()
    _check(max_accuracy_drop, objective, target, time_budget, epochs, methods)
    if recipe is not None and not isinstance(recipe, Recipe):
        recipe = Recipe.load(recipe)
    folder = _folder(trials_dir, output_dir)
    opened = _models.open_model(model, inputs=inputs, outputs=outputs, folder=folder)
    problem = _problem.pose(
        opened, data, metric=metric, higher_is_better=higher_is_better, seed=seed
    )
    wanted = recipe.target if recipe is not None else target
    if output_dir is not None and not dry_run:
        artifacts.prepare([pathlib.Path(output_dir) / "report.json"])
    with artifacts.work_lock(folder, name="trials_dir"):
        study = _trials.Study(
            problem,
            folder,
            teacher=teacher,
            seed=seed,
            baseline=_planning.baseline(wanted, seed),
            output=output,
        )
        search = Search(
            problem=problem,
            study=study,
            budget=max_accuracy_drop,
            objective=objective,
            methods=frozenset(METHODS[wanted] if methods is None else methods),
            time_budget=time_budget,
            training=Training(epochs, batch_size, learning_rate, optimizer, loss),
            has_teacher=teacher is not None,
            started=started,
        )
        stages = _planning.stages(search, wanted, recipe)
        if not dry_run:
            for stage in stages:
                stage.run()
            if recipe is None:
                _adopting.adopt(search)
        result = _finishing.finish(search, stages, dry_run=dry_run)
        if output_dir is not None and not dry_run:
            result.write(output_dir)
    return result


def _folder(trials_dir: Any, output_dir: Any) -> pathlib.Path:
    if trials_dir is not None:
        return pathlib.Path(trials_dir)
    if output_dir is not None:
        return pathlib.Path(output_dir) / "trials"
    return pathlib.Path(tempfile.mkdtemp(prefix="tfopt-optimize-"))


def _check(
    budget: Any,
    objective: Any,
    target: Any,
    time_budget: Any,
    epochs: Any,
    methods: Any,
) -> None:
    if not isinstance(budget, (int, float)) or not 0 <= budget < float("inf"):
        raise ValueError(
            "Expected a number that isn't negative. "
            f"Received: max_accuracy_drop={budget!r}"
        )
    for name, value, choices in (
        ("objective", objective, get_args(Objective)),
        ("target", target, get_args(Target)),
    ):
        if value not in choices:
            raise ValueError(f"Expected one of {choices}. Received: {name}={value!r}")
    if time_budget is not None and not time_budget > 0:
        raise ValueError(
            f"Expected seconds, or None. Received: time_budget={time_budget!r}"
        )
    if epochs is not None and (isinstance(epochs, bool) or not epochs >= 1):
        raise ValueError(f"Expected a positive integer. Received: epochs={epochs!r}")
    known = METHODS[target]
    if methods is not None and (
        isinstance(methods, str) or not methods or not set(methods) <= set(known)
    ):
        raise ValueError(
            f"Expected some of {list(known)} for target={target!r}. "
            f"Received: methods={methods!r}"
        )
