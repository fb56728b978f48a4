"""Fine-tuning: a model file and data in, the optimized model and its figures out."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import logging
import os
import pathlib
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tfopt import _keras, analysis, artifacts, data, training
from tfopt._keras import foreign
from tfopt.finetuning import _objective, _progress, _seeding, _teachers
from tfopt.finetuning._objective import Objective
from tfopt.finetuning._resuming import Backup
from tfopt.methods._base import Method
from tfopt.types import Artifact, TfoptError

_LOGGER = logging.getLogger(__name__)

LearningRateSchedule = Literal["constant", "cosine"]
Quantization = Literal["none", "dynamic", "float16", "int8"]


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """What fine-tuning made of a model.

    Attributes:
        model: The finalized Keras model, compiled with the loss and metrics.
        artifacts: What was written, by kind: `"keras"`, and `"tflite"` if asked for.
        before: Loss and metrics of the given model on the test examples.
        after: Those of the finalized model; for a `.tflite` under `"tflite"`, its
            accuracy.
        sparsity: Fraction of zeros by weight, and `"total"`.
        methods: Each method's name, arguments and, where it has one, report.
        epochs: Epochs trained in all, those before an interruption included.
        seconds: Time of training in this process.
        notes: How the loss was found, and what was done.
        teachers: Each teacher of `Distill`, with its accuracy on the test examples.
    """

    model: Any = dataclasses.field(repr=False)
    artifacts: Mapping[str, Artifact]
    before: Mapping[str, float]
    after: Mapping[str, Any]
    sparsity: Mapping[str, float]
    methods: Sequence[Mapping[str, Any]]
    epochs: int
    seconds: float
    notes: Sequence[str] = ()
    teachers: Sequence[_teachers.Taught] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the model."""
        fields = {field.name for field in dataclasses.fields(self)} - {"model"}
        return {name: getattr(self, name) for name in sorted(fields)}

    def __str__(self) -> str:
        lines = [str(artifact) for artifact in self.artifacts.values()]
        for name, value in self.before.items():
            line = f"{name}: {value:.4f} before, {self.after[name]:.4f} after"
            lines.append(line)
        for name, value in self.after.get("tflite", {}).items():
            lines.append(f"{name} of the .tflite: {value:.4f}")
        lines.append(f"zeros in the weights: {self.sparsity['total']:.1%}")
        lines += [
            f"  {name}: {value:.1%}"
            for name, value in self.sparsity.items()
            if name != "total" and value > 0
        ]
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        lines.append(f"trained {epochs}, {self.seconds:.1f} s in this run")
        return "\n".join([*lines, *self.notes])


def finetune(
    model: Any,
    examples: data.Data,
    output_dir: str | os.PathLike[str],
    *,
    methods: Sequence[Method],
    epochs: int = 1,
    batch_size: int = 32,
    optimizer: str = "adam",
    learning_rate: float | None = None,
    learning_rate_schedule: LearningRateSchedule = "constant",
    loss: str | None = None,
    metrics: Sequence[str] | None = None,
    steps_per_execution: int = 1,
    quantization: Quantization | None = None,
    seed: int = 0,
    resume: bool = True,
) -> FinetuneResult:
    """Trains a model with training-time methods, and writes and measures the result.

    Writes `model.keras`, `report.json` and, with `quantization`, `model.tflite` to the
    output folder; they appear together, and those of an earlier run go. After each
    epoch the state of the training is saved there, in `.training/`; the same call after
    a crash or an interruption goes on with the next epoch, with the examples in the
    order they would have had.

    Args:
        model: Built Keras 3 or tf_keras model; it is not changed.
        examples: Training and test examples, see `tfopt.load_data`.
        output_dir: Folder for the results.
        methods: Methods to train with, in order; an empty list trains plainly.
        epochs: Passes over the training examples.
        batch_size: Examples in each step.
        optimizer: Name of a Keras optimizer.
        learning_rate: Step size at the start, by default the optimizer's own.
        learning_rate_schedule: `"constant"`, or `"cosine"`: down to zero at the end.
        loss: Name of a Keras loss that takes the model's outputs as they are. By
            default found out: cross-entropy for integer or one-hot labels, with or
            without softmax as the model ends; else the mean squared error.
        metrics: Names of Keras metrics, by default accuracy for classes.
        steps_per_execution: Training steps in one call; more are faster for small
            models.
        quantization: Convert the result as well, see `tfopt.convert`; `"int8"`
            calibrates on training examples, unless the model was trained for it.
        seed: Makes the order of the examples repeatable, and what layers draw, such as
            dropout, unless they have seeds of their own.
        resume: Whether to go on where an interrupted call with the same settings
            stopped.

    Returns:
        Model, files and figures.

    Raises:
        ValueError: An argument is wrong.
        TfoptError: The model or data do not fit, a method refuses the model, or another
            process works in the output folder.
        VerificationError: The result misses what a method promises; nothing is written.

    Example:
        >>> prune = tfopt.Prune(final_sparsity=0.8)
        >>> result = finetune(model, data, folder, methods=[prune])  # doctest: +SKIP
        >>> result.sparsity["total"]  # doctest: +SKIP
        0.8
    """
    _check_arguments(epochs, batch_size, steps_per_execution, learning_rate)
    folder = pathlib.Path(output_dir)
    settings = _settings(locals())
    with artifacts.work_lock(folder, name="output_dir"):
        _, labels = _first_batch(examples.train)
        objective = _objective.find(
            model, _all_labels(examples.train, labels), loss=loss, metrics=metrics
        )
        before = _evaluate(_keras.clone(model), objective, examples.test, batch_size)
        student = training.prepare(model, methods)
        plan = _Plan(examples.train, epochs, batch_size, seed)
        student.compile(
            optimizer=_optimizer(
                _keras.module_of(model),
                optimizer,
                learning_rate,
                plan.steps if learning_rate_schedule == "cosine" else None,
            ),
            loss=objective.loss,
            metrics=list(objective.metrics),
            steps_per_execution=steps_per_execution,
        )
        backup = Backup(folder / ".training", settings)
        start = time.monotonic()
        done = backup.restore(student) if resume else 0
        with _seeding.seeded(student, seed) as beginner:
            _fit(student, plan, done, [beginner, *methods], backup)
        seconds = time.monotonic() - start
        final = training.finalize(student, methods)
        taught = _teachers.measure(methods, examples.test)
        after: dict[str, Any] = _evaluate(final, objective, examples.test, batch_size)
        notes = [objective.note, *map(str, taught)]
        if done:
            notes.append(f"continued after epoch {done}")
        result = FinetuneResult(
            model=final,
            artifacts={},
            before=before,
            after=after,
            sparsity=analysis.sparsity(final),
            methods=[_described(method) for method in methods],
            teachers=taught,
            epochs=epochs,
            seconds=seconds,
            notes=notes,
        )
        result = _write(result, folder, quantization, examples)
        backup.remove()
    return result


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The batches of all epochs, so that each epoch has an order of its own."""

    split: data.Split
    epochs: int
    batch_size: int
    seed: int

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.split.num_batches(batch_size=self.batch_size)

    @property
    def steps(self) -> int:
        """Batches in all epochs."""
        return self.epochs * self.steps_per_epoch

    def dataset(self, first: int) -> Any:
        """Returns the batches from an epoch on, for `fit` with `steps_per_epoch`."""
        return self.split.epochs(
            range(first, self.epochs), batch_size=self.batch_size, seed=self.seed
        )


def _fit(
    student: Any, plan: _Plan, done: int, methods: Sequence[Method], backup: Backup
) -> None:
    if done >= plan.epochs:
        return
    with _progress.bar(plan.steps, done * plan.steps_per_epoch) as bar:
        try:
            student.fit(
                plan.dataset(done),
                epochs=plan.epochs,
                initial_epoch=done,
                steps_per_epoch=plan.steps_per_epoch,
                shuffle=False,  # the dataset does it
                verbose=0,
                callbacks=[*methods, backup.callback(), bar.callback()],
            )
        except KeyboardInterrupt:
            _LOGGER.warning(
                "interrupted after %d of %d epochs; the same call goes on from there",
                backup.epochs,
                plan.epochs,
            )
            raise


def _evaluate(
    model: Any, objective: Objective, split: data.Split, batch_size: int
) -> dict[str, float]:
    """Compiles the model and returns its loss and metrics."""
    model.compile(optimizer="sgd", loss=objective.loss, metrics=list(objective.metrics))
    found = model.evaluate(
        split.dataset(batch_size=batch_size), verbose=0, return_dict=True
    )
    return {name: float(value) for name, value in found.items()}


def _optimizer(
    keras: Any, name: str, learning_rate: float | None, decay_steps: int | None
) -> Any:
    try:
        optimizer = keras.optimizers.get(name)
    except ValueError as error:
        raise TfoptError(
            "Keras has no such optimizer. Expected a name such as adam or sgd. "
            f"Received: optimizer={name!r}"
        ) from error
    config = optimizer.get_config()
    rate = config["learning_rate"] if learning_rate is None else learning_rate
    if decay_steps is not None:
        rate = keras.optimizers.schedules.CosineDecay(float(rate), decay_steps)
    return type(optimizer).from_config({**config, "learning_rate": rate})


def _write(
    result: FinetuneResult,
    folder: pathlib.Path,
    quantization: Quantization | None,
    examples: data.Data,
) -> FinetuneResult:
    """Writes the files of a result, which appear together; returns it with them."""
    written, after = {}, dict(result.after)
    # TFMOT's fake quantization can only be read back from .h5.
    suffix = "h5" if foreign.is_quantized(result.model) else "keras"
    with artifacts.atomic_set() as outputs:
        path = folder / f"model.{suffix}"
        temporary = outputs.add(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that .h5 is an outdated format
            _keras.save(result.model, temporary)
        written["keras"] = dataclasses.replace(
            artifacts.describe(temporary, format="keras"), path=str(path)
        )
        if quantization is not None:
            from tfopt.finetuning import _deploying

            path = folder / "model.tflite"
            made, after["tflite"] = _deploying.convert(
                result.model, quantization, examples, outputs.add(path)
            )
            written["tflite"] = dataclasses.replace(made, path=str(path))
        names = {pathlib.Path(item.path).name for item in written.values()}
        for name in _of_earlier_run(folder) - names:
            _LOGGER.info("removing %s of an earlier run", folder / name)
            outputs.remove(folder / name)
        result = dataclasses.replace(result, artifacts=written, after=after)
        artifacts.write_json(outputs.add(folder / "report.json"), result)
    return result


def _of_earlier_run(folder: pathlib.Path) -> set[str]:
    """Returns the models that the report in a folder lists."""
    try:
        text = (folder / "report.json").read_text(encoding="utf-8")
        kinds = set(json.loads(text)["artifacts"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    found = {"model.tflite"} if "tflite" in kinds else set()
    found |= {"model.keras", "model.h5"} if "keras" in kinds else set()
    return {name for name in found if (folder / name).is_file()}


def _described(method: Method) -> dict[str, Any]:
    arguments = {name: _plain(item) for name, item in method.get_config().items()}
    found = {"name": type(method).__name__, "arguments": arguments}
    report = getattr(method, "report", None)
    return found if report is None else {**found, "report": report}


def _first_batch(split: data.Split) -> tuple[data.Arrays, data.Arrays]:
    for batch in split.batches(batch_size=256):
        return batch
    raise TfoptError(f"The data is empty. Expected examples. Received: {split.name}")


def _all_labels(split: data.Split, first: data.Arrays) -> data.Arrays:
    """Returns all labels of arrays; of a dataset those of its first batch."""
    return split.source[1] if isinstance(split.source, tuple) else first


def _settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what must be the same for a training to be continued."""
    irrelevant = {
        "model",
        "examples",
        "output_dir",
        "methods",
        "quantization",
        "resume",
    }
    plain = {k: v for k, v in arguments.items() if k not in irrelevant | {"folder"}}
    model = arguments["model"]
    weights = [np.asarray(weight) for weight in model.get_weights()]
    return {
        **plain,
        "methods": [_described_arguments(method) for method in arguments["methods"]],
        "weights": [[list(w.shape), float(np.abs(w).sum())] for w in weights],
    }


def _described_arguments(method: Method) -> str:
    config = [(name, _plain(item)) for name, item in method.get_config().items()]
    return f"{type(method).__name__}({sorted(config)})"


def _plain(value: Any) -> Any:
    """Returns what can be printed; of data and models their type and size."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(x, str) for x in value.values()):
        return dict(value)
    if _keras.is_model(value):
        # Names that Keras makes differ from process to process.
        size = sum(float(np.abs(weight).sum()) for weight in value.get_weights())
        return f"{type(value).__name__}, {value.count_params()} weights, sum {size:.6g}"
    if inspect.isroutine(value):
        return value.__qualname__
    if isinstance(value, (np.ndarray, Mapping)) or hasattr(value, "element_spec"):
        return f"{type(value).__name__} {getattr(value, 'shape', '')}".strip()
    return value


def _check_arguments(
    epochs: int, batch_size: int, steps_per_execution: int, learning_rate: float | None
) -> None:
    counts = {
        "epochs": epochs,
        "batch_size": batch_size,
        "steps_per_execution": steps_per_execution,
    }
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"`{name}` must be a positive integer. Received: {name}={value!r}"
            )
    if learning_rate is not None and not learning_rate > 0:
        raise ValueError(
            "`learning_rate` must be positive. "
            f"Received: learning_rate={learning_rate!r}"
        )


__all__ = ["FinetuneResult", "finetune"]
