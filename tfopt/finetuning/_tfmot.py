"""Fine-tuning through TFMOT's own wrappers, in a child process on tf_keras."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from tfopt import _child, _keras, finetuning, tfmot
from tfopt.data import Data
from tfopt.finetuning import FinetuneResult
from tfopt.methods._base import Method
from tfopt.types import UsageError

_SCHEDULE = (
    *("initial_sparsity", "final_sparsity", "begin_step", "end_step", "frequency"),
)


class TfmotPrune(Method):
    """TFMOT's `prune_low_magnitude` with its PolynomialDecay.

    Args:
        final_sparsity: Fraction of zeros at `end_step`.
        end_step: Last step of the schedule.
        initial_sparsity: Fraction of zeros at `begin_step`.
        begin_step: First step of the schedule.
        frequency: Steps between two updates of the masks.
    """

    def __init__(
        self,
        *,
        final_sparsity: float,
        end_step: int,
        initial_sparsity: float = 0.0,
        begin_step: int = 0,
        frequency: int = 100,
    ):
        super().__init__()
        self.final_sparsity = final_sparsity
        self.end_step = end_step
        self.initial_sparsity = initial_sparsity
        self.begin_step = begin_step
        self.frequency = frequency
        self._updates: list[Any] = []

    def prepare(self, model: Any) -> Any:
        """Wraps the layers."""
        wrapped, self._updates = tfmot.prune_low_magnitude(model, **self.get_config())
        return wrapped

    def finalize(self, model: Any) -> Any:
        """Takes the wrappers off."""
        return tfmot.strip_pruning(model)

    def set_model(self, model: Any) -> None:
        """Hands the model to TFMOT's own callback."""
        super().set_model(model)
        for update in self._updates:
            update.set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        """Calls TFMOT's callback."""
        for update in self._updates:
            update.on_train_begin(logs)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Calls TFMOT's callback."""
        for update in self._updates:
            update.on_train_batch_begin(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Calls TFMOT's callback."""
        for update in self._updates:
            update.on_epoch_end(epoch, logs)


class TfmotQuantizeAware(Method):
    """TFMOT's `quantize_model`.

    Args:
        preserve_sparsity: Whether the zeros of a pruned model stay.
    """

    def __init__(self, *, preserve_sparsity: bool = False):
        super().__init__()
        self.preserve_sparsity = preserve_sparsity

    def prepare(self, model: Any) -> Any:
        """Wraps the layers."""
        return tfmot.quantize_model(model, preserve_sparsity=self.preserve_sparsity)


def finetune(
    model: str,
    examples: Data,
    output_dir: str | os.PathLike[str],
    *,
    methods: Sequence[str],
    method_options: Mapping[str, Mapping[str, Any]],
    **training: Any,
) -> FinetuneResult:
    """Trains with TFMOT, one method after the other, as it cannot do them at once.

    Args:
        model: A `.keras` or `.h5` file of tf_keras.
        examples: Training and test examples.
        output_dir: Folder for the results; that of pruning before quantization-aware
            training goes to `pruned` in it.
        methods: `prune`, `quantize_aware` or both, in this order.
        method_options: Options by method: those of TFMOT's PolynomialDecay.
        **training: Further arguments of `tfopt.finetune`.

    Raises:
        TfoptError: The model is of Keras 3, or TFMOT refuses it.
    """
    steps = training["epochs"] * examples.train.num_batches(
        batch_size=training["batch_size"]
    )
    made = _methods(methods, method_options, steps)
    loaded = _keras.load(model)
    quantization = training.pop("quantization")
    for position, method in enumerate(made):
        is_last = position == len(made) - 1
        folder = output_dir if is_last else os.path.join(output_dir, "pruned")
        result = finetuning.finetune(
            loaded,
            examples,
            folder,
            methods=[method],
            quantization=quantization if is_last else None,
            **training,
        )
        loaded = result.model
    return result


def check(names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises unless TFMOT has the methods, in this order, and their options.

    Raises:
        UsageError: It has not.
    """
    if list(names) not in (["prune"], ["quantize_aware"], ["prune", "quantize_aware"]):
        raise UsageError(
            "TFMOT prunes and trains for int8, in this order. Expected prune, "
            "quantize_aware or prune,quantize_aware with --engine=tfmot. "
            f"Received: --methods={','.join(names)}"
        )
    for name, given in options.items():
        known = _SCHEDULE if name == "prune" else ()
        unknown = [f"--{name}.{key}" for key in given if key not in known]
        if unknown:
            raise UsageError(
                "TFMOT has no such option. Expected of --prune those of its "
                f"PolynomialDecay ({', '.join(_SCHEDULE)}). "
                f"Received: {', '.join(unknown)} with --engine=tfmot"
            )
    if "prune" in names and "final_sparsity" not in options.get("prune", {}):
        raise UsageError("--methods=prune needs --prune.final_sparsity.")


def _methods(
    names: Sequence[str], options: Mapping[str, Mapping[str, Any]], steps: int
) -> list[Method]:
    made: list[Method] = []
    if "prune" in names:
        # Three quarters, as tfopt's own Prune.
        given = {"end_step": max(1, steps * 3 // 4), **options.get("prune", {})}
        made.append(TfmotPrune(**given))
    if "quantize_aware" in names:
        made.append(TfmotQuantizeAware(preserve_sparsity="prune" in names))
    return made


def call(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the command in a child process; returns the result as JSON, with its text.

    Args:
        arguments: Those of the command.

    Raises:
        TfoptError: The command raised it, or the child died.
    """
    return _child.call(
        "tfopt.finetuning.command:finetune_in_child", {"arguments": arguments}
    )
