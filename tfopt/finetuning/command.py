"""The `finetune` command: files in, files out."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tfopt import _trust, data, finetuning, methods
from tfopt.finetuning import FinetuneResult
from tfopt.methods._base import Method
from tfopt.types import UsageError

_CALIBRATION_EXAMPLES = 256


@_trust.with_safe_mode
def finetune_model(
    *,
    model: str,
    data: str,
    output_dir: str,
    methods: Sequence[str] = (),
    method_options: Mapping[str, Mapping[str, Any]] | None = None,
    teacher: Sequence[str] = (),
    recipe: str | None = None,
    input_scale: float = 1.0,
    epochs: int = 1,
    batch_size: int = 32,
    optimizer: str = "adam",
    learning_rate: float | None = None,
    learning_rate_schedule: Literal["constant", "cosine"] = "constant",
    loss: str | None = None,
    metrics: Sequence[str] | None = None,
    steps_per_execution: int = 1,
    quantization: Literal["none", "dynamic", "float16", "int8", "int16x8"]
    | None = None,
    seed: int = 0,
    resume: bool = True,
    engine: Literal["native", "tfmot"] = "native",
    safe_mode: bool = True,
) -> FinetuneResult | ToldResult:
    """Trains a model file with training-time methods.

    Args:
        model: The .keras or .h5 file to start from, or a SavedModel directory, of
            which a Keras model is made.
        data: FILE.npz with x_train, y_train, x_test, y_test, or module:function.
        output_dir: Folder for model.keras, report.json and, with quantization,
            model.tflite.
        methods: Methods in order, such as prune,quantize_aware; their options are the
            flags --prune.final_sparsity and so on.
        method_options: Options by method.
        teacher: Models that --methods=distill learns from: .keras, .h5 or .tflite
            files, or SavedModel folders. They see the inputs after --input_scale.
        recipe: A recipe.json, as optimize writes; its training step gives methods,
            their options and how to train, its last step the quantization.
        input_scale: Factor on the inputs, such as 0.00392156863 (1/255) for pixels.
        epochs: Passes over the training examples.
        batch_size: Examples in each step.
        optimizer: Name of a Keras optimizer.
        learning_rate: Step size at the start, by default the optimizer's own.
        learning_rate_schedule: It stays constant, or falls to zero along a cosine.
        loss: Name of a Keras loss, by default found out from model and labels.
        metrics: Names of Keras metrics, by default accuracy for classes.
        steps_per_execution: Training steps in one call; more are faster for small
            models.
        quantization: Also write model.tflite in this form.
        seed: Makes the order of the examples repeatable.
        resume: Whether to go on where an interrupted run with the same flags stopped.
        engine: "native" for tfopt's methods; "tfmot" for those of TensorFlow Model
            Optimization, on a tf_keras model and in a child process.
        safe_mode: Refuse model files that could run code, reach other files or the
            network.

    Raises:
        UsageError: A method is unknown, or its options are wrong or for another one.
        TfoptError: See `tfopt.finetune`.
    """
    given: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "learning_rate_schedule": learning_rate_schedule,
        "loss": loss,
        "metrics": metrics,
        "steps_per_execution": steps_per_execution,
        "quantization": quantization,
        "seed": seed,
        "resume": resume,
    }
    options = method_options or {}
    if recipe is not None:
        if methods or options:
            raise UsageError(
                "A recipe names the methods. Expected --recipe or --methods. "
                f"Received: --recipe={recipe}, --methods={','.join(methods)}"
            )
        methods, options, own = _of_recipe(recipe)
        given |= own
    _check_options(methods, options)
    _check_teacher(methods, teacher, engine)
    if engine == "tfmot":
        from tfopt.finetuning import _tfmot

        _tfmot.check(methods, options)
        files = {"model": model, "data": data, "output_dir": output_dir}
        more = {"methods": methods, "method_options": options, "scale": input_scale}
        return ToldResult(**_tfmot.call({**files, **more, "training": given}))
    from tfopt import lifting

    examples = _load(data, input_scale)
    made = [_make(name, options.get(name, {}), examples, teacher) for name in methods]
    loaded = lifting.open_model(model)
    return finetuning.finetune(loaded, examples, output_dir, methods=made, **given)


@dataclasses.dataclass(frozen=True)
class ToldResult:
    """The result of a child process, which keeps the model.

    Attributes:
        text: What a command prints.
        report: What it writes as JSON.
    """

    text: str
    report: Mapping[str, Any]

    def to_json(self) -> Mapping[str, Any]:
        """Returns the report."""
        return self.report

    def __str__(self) -> str:
        return self.text


def finetune_in_child(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Fine-tunes through TFMOT; meant for a child process on tf_keras.

    Args:
        arguments: Files, methods, their options, and how to train.

    Returns:
        The fields of a `ToldResult`.

    Raises:
        TfoptError: See `tfopt.finetune`.
    """
    from tfopt.finetuning import _tfmot

    result = _tfmot.finetune(
        arguments["model"],
        _load(arguments["data"], arguments["scale"]),
        arguments["output_dir"],
        methods=arguments["methods"],
        method_options=arguments["method_options"],
        **arguments["training"],
    )
    return {"text": str(result), "report": result.to_json()}


def _of_recipe(
    path: str,
) -> tuple[list[str], dict[str, dict[str, Any]], dict[str, Any]]:
    """Returns methods, their options and settings of the training of a recipe."""
    from tfopt.recipe import Recipe

    recipe = Recipe.load(path)
    if [step.do for step in recipe.steps] != ["train", "convert"] or recipe.rules:
        raise UsageError(
            "Fine-tuning takes recipes that train and convert, and nothing else; "
            "tools/optimize.py --recipe replays others. "
            f"Received: --recipe={path}, {recipe}"
        )
    train, convert = recipe.steps
    settings = {"seed": recipe.seed, **train.options}
    listed = settings.pop("methods")
    settings["quantization"] = convert.options.get("quantization", "none")
    options = {
        item["name"]: {key: value for key, value in item.items() if key != "name"}
        for item in listed
    }
    return list(options), options, settings


def _check_options(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]]
) -> None:
    known = methods.names()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(
            f"There is no such method. Expected some of {', '.join(known)}. "
            f"Received: --methods={','.join(names)}"
        )
    unused = [name for name, given in options.items() if given and name not in names]
    if unused:
        flags = [f"--{name}.{key}" for name in unused for key in options[name]]
        raise UsageError(
            "Options are given for a method that isn't used. Expected it in --methods. "
            f"Received: {', '.join(flags)} with --methods={','.join(names)}"
        )


def _check_teacher(names: Sequence[str], teacher: Sequence[str], engine: str) -> None:
    if "distill" in names and engine == "tfmot":
        raise UsageError(
            "TFMOT has no distillation. Expected --engine=native. "
            f"Received: --engine=tfmot with --methods={','.join(names)}"
        )
    if bool(teacher) != ("distill" in names):
        raise UsageError(
            "--methods=distill and --teacher need each other. "
            f"Received: --methods={','.join(names)}, --teacher={','.join(teacher)}"
        )


def _make(
    name: str, options: Mapping[str, Any], examples: data.Data, teacher: Sequence[str]
) -> Method:
    cls = methods.get(name)
    given = dict(options)
    if "teacher" in inspect.signature(cls).parameters:
        given["teacher"] = list(teacher) if len(teacher) > 1 else teacher[0]
    if "representative_dataset" in inspect.signature(cls).parameters:
        # Ranges are then known before the first step.
        given["representative_dataset"] = _calibration(examples.train)
    if given.get("score") == "activation":  # which only examples can tell
        given["data"] = [_calibration(examples.train)]
    try:
        return cls(**given)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--methods={name}: {error}") from error


def _calibration(split: data.Split) -> data.Arrays:
    inputs, _ = next(iter(split.batches(batch_size=_CALIBRATION_EXAMPLES)))
    return inputs


def _load(spec: str | os.PathLike[str], scale: float) -> data.Data:
    loaded = data.load_data(spec)
    if scale == 1:
        return loaded
    return data.Data(train=loaded.train.scaled(scale), test=loaded.test.scaled(scale))
