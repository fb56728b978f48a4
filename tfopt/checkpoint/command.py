"""The function behind the command `slim_checkpoint`."""

from __future__ import annotations

import dataclasses

from tfopt import _trust, artifacts, checkpoint
from tfopt.checkpoint.writing import StoredDtype


@dataclasses.dataclass(frozen=True)
class Slimmed(artifacts.Outcome):
    """What the command prints: the artifact, and what is gone from it."""

    def __str__(self) -> str:
        details = self.artifact.details
        lines = [
            str(self.artifact),
            f"{details['tensors']} tensors, {details['converted']} of them stored as "
            f"{details['dtype']}",
        ]
        if details["dropped"]:
            dropped = (f"{why} {count}" for why, count in details["dropped"].items())
            lines.append(f"left out: {', '.join(dropped)}")
        return "\n".join(lines)


@_trust.with_safe_mode
def slim_checkpoint(
    *,
    input_checkpoint: str,
    output_checkpoint: str,
    keep: checkpoint.Keep = "inference",
    dtype: StoredDtype = "float32",
    model: str | None = None,
    safe_mode: bool = True,
) -> Slimmed:
    """Writes the weights of one checkpoint to another, without what training needs.

    Args:
        input_checkpoint: Prefix of a TF2 or TF1 checkpoint, a directory with
            checkpoints (the latest is meant), a SavedModel directory, or a .keras or
            .h5 file.
        output_checkpoint: Prefix of the checkpoint to write.
        keep: All weights of the model (inference), BatchNorm statistics among them, or
            those that are trained (trainable).
        dtype: Type to store 32 and 64 bit floats in; float32 leaves all as it is.
        model: A .keras or .h5 file that says which weights are trainable, where the
            checkpoint doesn't.
        safe_mode: Refuse model files that could run code, reach other files or the
            network.

    Raises:
        TfoptError: See `tfopt.slim_checkpoint`.
    """
    return Slimmed(
        checkpoint.slim_checkpoint(
            input_checkpoint, output_checkpoint, keep=keep, dtype=dtype, model=model
        )
    )
