"""Named lists of transforms."""

from __future__ import annotations

from typing import NamedTuple


class Preset(NamedTuple):
    """A named list of transforms.

    Attributes:
        summary: What it is for, in one line.
        transforms: Names of transforms and presets, with options.
    """

    summary: str
    transforms: tuple[str, ...]


PRESETS: dict[str, Preset] = {}
