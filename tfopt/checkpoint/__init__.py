"""Light checkpoints: a model's weights without what only training needs.

A full checkpoint holds optimizer slots (for Adam, twice the weights), counters, metrics
and, from TF1, the graph. A slim one is an ordinary TensorFlow checkpoint (`.index` and
`.data`) with the weights alone, the pruned object graph of TF2, so that
`tf.train.Checkpoint(model).read(path).expect_partial()` works in float32, and a scalar
string tensor `_TFOPT_SLIM_CHECKPOINT`: JSON with name, shape, type, position in the
model and trainability of each weight. Tensors keep the keys of the source checkpoint.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any, Literal, get_args

from tfopt import _trust
from tfopt.checkpoint import sources, writing
from tfopt.checkpoint.writing import StoredDtype
from tfopt.savedmodel import graphs
from tfopt.types import Artifact

Keep = Literal["inference", "trainable"]

_LOGGER = logging.getLogger(__name__)
# These need TensorFlow, which the command does without.
_WITH_TENSORFLOW = {
    "LightCheckpoint": "callback",
    "recalibrate_batch_norm": "recalibration",
    "restore_slim_checkpoint": "restoring",
}

__all__ = ["slim_checkpoint", *_WITH_TENSORFLOW]


def __getattr__(name: str) -> Any:
    if name not in _WITH_TENSORFLOW:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_WITH_TENSORFLOW[name]}")
    return getattr(module, name)


@_trust.with_safe_mode
def slim_checkpoint(
    source: Any,
    output: str | os.PathLike[str],
    *,
    keep: Keep = "inference",
    dtype: StoredDtype = "float32",
    model: Any = None,
    safe_mode: bool = True,
) -> Artifact:
    """Writes a checkpoint with a model's weights only.

    Optimizer state, counters, metrics, seed generators and the TF1 graph are left out.
    What belongs to them is read from the object graph in a TF2 checkpoint, from names
    and the `.meta` file in a TF1 one. From checkpoint to checkpoint no TensorFlow is
    loaded, and tensors that keep their type are copied as bytes. The output replaces
    an earlier one only when it is complete.

    Args:
        source: A TF2 or TF1 checkpoint: its prefix, one of its files, or a directory,
            of which the latest is meant; a SavedModel directory; a Keras model of
            either version, or its `.keras` or `.h5` file; a slim checkpoint.
        output: Prefix of the checkpoint to write, `output.index` and `output.data-...`.
        keep: `"inference"`: all weights of the model, also those that aren't trained,
            such as BatchNorm statistics. `"trainable"`: only those that are. BatchNorm
            then needs `recalibrate_batch_norm` after restoring, else accuracy is lost.
        dtype: `"float32"` stores all as it is. `"float16"` and `"bfloat16"` cast 32
            and 64 bit floats; a tensor with values outside of the range of the type
            keeps its own. Integers, booleans and strings are never cast.
        model: Keras model, or its `.keras` or `.h5` file, that says which weights of a
            checkpoint are trainable. Then just this model's weights are written.
        safe_mode: Refuse model files that could run code, reach other files or the
            network. False opens and runs whatever they hold.

    Returns:
        The artifact. Its `details` count the tensors and those dropped by reason, and
        list the tensors kept in full precision, and warnings.

    Raises:
        ValueError: An unknown `keep` or `dtype`, or `model` with a Keras source.
        TfoptError: The source is missing, damaged or has no weights; `model` doesn't
            fit it; or it is unknown what is trainable.

    Example:
        >>> artifact = slim_checkpoint(model, "light", dtype="float16")
        >>> artifact.format, artifact.details["converted"]
        ('checkpoint', 2)
    """
    return _slim(source, output, keep=keep, dtype=dtype, model=model, measure=True)


def _slim(
    source: Any,
    output: str | os.PathLike[str],
    *,
    keep: str,
    dtype: StoredDtype,
    model: Any,
    measure: bool,
) -> Artifact:
    check_options(keep, dtype)
    prefix = os.fspath(output).removesuffix(".index")
    with graphs.errors_of(source):
        plan = sources.make_plan(source, keep=keep, model=model)
        details = writing.write(plan, prefix, keep=keep, dtype=dtype)
    details["warnings"] = warnings = []
    if keep == "trainable" and "not trainable" in plan.dropped:
        warnings.append(
            f"{len(plan.dropped['not trainable'])} weights that are not trained, such "
            "as BatchNorm statistics, are gone: after restoring, call "
            "tfopt.recalibrate_batch_norm(model, data), or slim with keep='inference'."
        )
    for name, reason in details["kept_in_full"].items():
        warnings.append(f"{name} keeps its type: {reason}")
    for warning in warnings if measure else ():
        _LOGGER.warning("%s", warning)
    return writing.describe(prefix, details=details, source=plan.where, measure=measure)


def check_options(keep: Any, dtype: Any) -> None:
    """Raises unless these are options of `slim_checkpoint`.

    Raises:
        ValueError: One isn't.
    """
    for name, value, known in (
        ("keep", keep, get_args(Keep)),
        ("dtype", dtype, get_args(StoredDtype)),
    ):
        if value not in known:
            raise ValueError(
                f"Unknown `{name}`. Expected one of {', '.join(known)}. "
                f"Received: {name}={value!r}"
            )
