"""The function behind the command `optimize`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tfopt import _trust, optimizing
from tfopt import data as datasets
from tfopt.optimizing import OptimizeResult, _problem
from tfopt.types import TfoptError


@_trust.with_safe_mode
def optimize_model(
    *,
    model: str,
    data: str,
    output_dir: str,
    max_accuracy_drop: float = 0.01,
    objective: Literal["size", "latency", "memory"] = "size",
    metric: str | None = None,
    higher_is_better: bool | None = None,
    output: str | None = None,
    input_scale: float = 1.0,
    teacher: str | None = None,
    methods: Sequence[str] | None = None,
    target: Literal["tflite", "saved_model"] = "tflite",
    time_budget: float | None = 600.0,
    epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    optimizer: str = "adam",
    loss: str | None = None,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    trials_dir: str | None = None,
    recipe: str | None = None,
    seed: int = 0,
    dry_run: bool = False,
    safe_mode: bool = True,
) -> OptimizeResult:
    """Searches for the best file that loses no more than a budget allows.

    Args:
        model: A .keras, .h5 or .pb file, or a SavedModel directory.
        data: FILE.npz with x_train, y_train, x_test, y_test; with x_test (and y_test)
            or inputs alone nothing is trained; or module:function.
        output_dir: Folder for best.tflite, recipe.json and the report.
        max_accuracy_drop: By how much the metric may be worse than the original's.
        objective: What is to be small: the size after gzip, the latency of one call,
            or the memory of a process.
        metric: Any of accuracy, top_5, auc, f1, mse, mae, cosine, mean_iou,
            module:function; or argmax_agreement, mean_difference, max_difference with
            the original. By default accuracy, without labels mean_difference.
        higher_is_better: Needed for a metric of your own.
        output: The output that is judged, where there are several.
        input_scale: Factor on the inputs, such as 0.00392156863 (1/255) for pixels.
        teacher: A model to learn from: .keras, .h5 or .tflite, or a SavedModel.
        methods: Methods that may be used, by default all that suit the target; a wrong
            name lists them.
        target: What is to come out.
        time_budget: Seconds after which no trial is begun; none: no limit.
        epochs: Of each training; by default as the time allows, 60 at most.
        batch_size: Examples in each training step.
        learning_rate: At the start of each training; it falls to zero.
        optimizer: Name of a Keras optimizer.
        loss: Name of a Keras loss, by default found out from model and labels.
        inputs: Input tensors of a .pb file.
        outputs: Output tensors of a .pb file.
        trials_dir: Folder for trials, by default trials in the output folder; the same
            command goes on there.
        recipe: Replay this recipe.json instead of searching.
        seed: Of the division of the examples and of everything that is drawn.
        dry_run: Print the plan with estimated times; nothing is tried.
        safe_mode: Refuse model files that could run code, reach other files or the
            network.

    Raises:
        TfoptError: Nothing keeps the budget; the message says what came closest. Or
            see `tfopt.optimize`.
    """
    result = optimizing.optimize(
        model,
        scaled(_problem.load(data), input_scale),
        max_accuracy_drop=max_accuracy_drop,
        objective=objective,
        metric=metric,
        higher_is_better=higher_is_better,
        output=output,
        teacher=teacher,
        methods=methods,
        target=target,
        time_budget=time_budget,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        loss=loss,
        inputs=inputs,
        outputs=outputs,
        trials_dir=trials_dir,
        output_dir=output_dir,
        recipe=recipe,
        seed=seed,
        dry_run=dry_run,
    )
    if result.best is None and not dry_run:
        raise TfoptError(f"{result.failure()} (the report is in {output_dir})")
    return result


def scaled(loaded: Any, factor: float) -> Any:
    """Returns examples with their inputs as float32, times a factor.

    Args:
        loaded: What `_problem.load` returns.
        factor: 1 leaves them as they are.
    """
    if factor == 1:
        return loaded
    if isinstance(loaded, datasets.Data):
        return datasets.Data(
            train=loaded.train.scaled(factor), test=loaded.test.scaled(factor)
        )
    inputs, labels = loaded
    number = np.float32(factor)
    if isinstance(inputs, Mapping):
        return {key: x.astype(np.float32) * number for key, x in inputs.items()}, labels
    return inputs.astype(np.float32) * number, labels
