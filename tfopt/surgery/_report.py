"""What was removed, what it saved, and what stayed for which reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tfopt._keras import flatten
from tfopt.surgery._cost import Cost


@dataclasses.dataclass(frozen=True)
class ChannelGroup:
    """Channels that the same layers make.

    Attributes:
        layers: Paths of the layers that make them.
        channels: How many there are; one that several layers make together (before an
            Add, say) counts once.
        removed: How many of them were removed.
        indices: Which ones, by layer: indices among its output channels.
        reason: Why none, or not more of them, was removed; else `""`.
        refused: Whether they all stay because a layer cannot be handled.
    """

    layers: tuple[str, ...]
    channels: int
    removed: int
    indices: Mapping[str, tuple[int, ...]]
    reason: str = ""
    refused: bool = False

    def __str__(self) -> str:
        left = f"{self.channels} -> {self.channels - self.removed} channels"
        reason = f" ({self.reason})" if self.reason else ""
        return f"{', '.join(self.layers)}: {left}{reason}"


@dataclasses.dataclass(frozen=True)
class Removal:
    """A model without some of its channels, and what is known about it.

    Attributes:
        model: The smaller Keras model, not compiled.
        groups: What was removed, group by group.
        refused: Why a layer keeps all channels that it reads or makes, by path, for
            want of a rule for layers of its kind.
        folded: Paths of layers whose biases took up the constants of removed channels.
        before: Parameters and multiplications of the model given.
        after: Those of `model`.
        max_error: Largest difference between the outputs of `model` and of the masked
            model, as a fraction of their largest absolute value; `None` if not
            verified.
        masked: The flat graph behind `masked_model`.
    """

    model: Any
    groups: tuple[ChannelGroup, ...]
    refused: Mapping[str, str]
    folded: tuple[str, ...]
    before: Cost
    after: Cost
    max_error: float | None
    masked: flatten.Graph = dataclasses.field(repr=False)

    def masked_model(self) -> Any:
        """Returns a new model of the old size with zeros in place of the channels.

        Where the channels to remove were those that are dead already, that is a copy
        of the model that was given.
        """
        return flatten.to_model(self.masked)

    def as_dict(self) -> dict[str, Any]:
        """Returns all but the models as plain values."""
        return {
            "groups": [
                {**dataclasses.asdict(group), "indices": dict(group.indices)}
                for group in self.groups
            ],
            "refused": dict(self.refused),
            "folded": list(self.folded),
            "before": dataclasses.asdict(self.before),
            "after": dataclasses.asdict(self.after),
            "max_error": self.max_error,
        }

    def __str__(self) -> str:
        lines = [
            _change("parameters", self.before.parameters, self.after.parameters),
            _change("multiply-adds", self.before.macs, self.after.macs),
            *map(str, self.groups),
            *(f"{path} {reason}" for path, reason in self.refused.items()),
        ]
        if self.folded:
            lines.append(f"constants went into the biases of {', '.join(self.folded)}")
        return "\n".join(lines)


def _change(what: str, before: int | None, after: int | None) -> str:
    if before is None or after is None:
        return f"{what}: unknown, as the model's inputs have free sizes"
    ratio = f", {before / after:.2f}x fewer" if after else ""
    return f"{what}: {before:,} -> {after:,}{ratio}"
