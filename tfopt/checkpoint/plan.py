"""What goes into a slim checkpoint, whatever it is made from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from tfopt.savedmodel import dtypes
from tfopt.savedmodel.bundle import BundleReader
from tfopt.types import TfoptError

# The key of the JSON text (a scalar string tensor) that describes the content.
METADATA_KEY = "_TFOPT_SLIM_CHECKPOINT"
_VERSION = 1
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


@dataclasses.dataclass(frozen=True)
class Item:
    """One tensor to write.

    Attributes:
        key: Its name in the slim checkpoint.
        name: What people call it, for example `"block/dense/kernel"`.
        shape: Sizes by axis.
        dtype: TensorFlow's DataType number in the source.
        value: Returns the content; `None`: copy it from the plan's checkpoint.
        position: Index among the weights of the model, `None` if no model is known.
        trainable: Whether it is trained, `None` if unknown.
    """

    key: str
    name: str
    shape: tuple[int, ...]
    dtype: int
    value: Callable[[], np.ndarray] | None = None
    position: int | None = None
    trainable: bool | None = None


@dataclasses.dataclass
class Plan:
    """All tensors to write, and what is left out.

    Attributes:
        kind: `"keras"`, `"object"` (TF2) or `"saver"` (TF1).
        where: The source, for messages.
        items: What to write.
        dropped: Why -> keys of the source that are left out.
        reader: The source, if it is a checkpoint.
        graph: The object graph without what is left out, if there is one.
        model_weights: Number of weights of the model, `None` if no model is known.
    """

    kind: str
    where: str
    items: list[Item]
    dropped: dict[str, list[str]]
    reader: BundleReader | None = None
    graph: Any = None
    model_weights: int | None = None


@dataclasses.dataclass(frozen=True)
class Stored:
    """What the metadata says of one tensor of a slim checkpoint; see `Item`."""

    key: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    stored_dtype: str
    position: int | None
    trainable: bool | None


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The description inside a slim checkpoint.

    Attributes:
        kind: See `Plan`.
        keep: `"inference"` or `"trainable"`.
        model_weights: See `Plan`.
        weights: The tensors.
    """

    kind: str
    keep: str
    model_weights: int | None
    weights: tuple[Stored, ...]

    def to_text(self) -> str:
        """Returns the JSON text."""
        content = {"version": _VERSION, **dataclasses.asdict(self)}
        return json.dumps(content, separators=(",", ":"))


def stored(item: Item, stored_dtype: int) -> Stored:
    """Returns the description of an item as it was written."""
    return Stored(
        key=item.key,
        name=item.name,
        shape=item.shape,
        dtype=dtypes.name_of(item.dtype),
        stored_dtype=dtypes.name_of(stored_dtype),
        position=item.position,
        trainable=item.trainable,
    )


def read_metadata(reader: BundleReader) -> Metadata:
    """Reads the description of a slim checkpoint.

    Raises:
        TfoptError: It is another checkpoint, of a later version or damaged.
    """
    if METADATA_KEY not in reader:
        raise TfoptError(
            "Not a slim checkpoint: it has no description of its weights. Expected one "
            "written by `tfopt.slim_checkpoint` or `tfopt.LightCheckpoint`. "
            f"Received: path={reader.prefix!r}"
        )
    try:
        content = json.loads(reader.read(METADATA_KEY).item())
        version = content.pop("version")
        if version == _VERSION:
            return _metadata(content)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        raise TfoptError(
            "The slim checkpoint's description is damaged. Expected one written by "
            f"`tfopt.slim_checkpoint`. Received: path={reader.prefix!r} ({error})"
        ) from error
    raise TfoptError(
        "The slim checkpoint was written by another version of tfopt. Expected "
        f"format {_VERSION}; update tfopt. Received: path={reader.prefix!r}"
    )


def _metadata(content: dict[str, Any]) -> Metadata:
    weights = tuple(
        Stored(**{**entry, "shape": tuple(entry["shape"])})
        for entry in content.pop("weights")
    )
    metadata = Metadata(weights=weights, **content)
    texts = [metadata.kind, metadata.keep]
    for weight in weights:
        texts += [weight.key, weight.name, weight.dtype, weight.stored_dtype]
        flags = (weight.trainable in (None, True, False), weight.position is None)
        if not flags[0] or not (flags[1] or isinstance(weight.position, int)):
            raise ValueError(f"what it says of {weight.key!r:.100}")
        if not all(isinstance(size, int) for size in weight.shape):
            raise ValueError(f"the shape of {weight.key!r:.100}")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("names that are no texts")
    return metadata
