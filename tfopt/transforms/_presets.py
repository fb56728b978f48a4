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


# Operations that hand on what they get, but for training. CheckNumerics is none: it
# stops a graph whose numbers are not finite.
_PASSED_ON = ("Identity", "IdentityN", "Snapshot", "StopGradient", "PreventGradient")

PRESETS: dict[str, Preset] = {
    "deploy": Preset(
        "Whatever makes a graph smaller and faster at no loss (differences up to "
        "rounding).",
        (
            "inline_functions",
            "sink_constants",
            "strip_unused_nodes",
            f"remove_nodes({', '.join(f'op={op}' for op in _PASSED_ON)})",
            # An expression that fails may be in a branch that is never taken.
            "fold_constants(ignore_errors=true)",
            # Behind BatchToSpaceND, batch normalization could not be folded.
            "flatten_atrous_conv",
            "fold_batch_norms(convert_rest=true)",
            "fuse_pad_and_conv",
            # After folding, which gives convolutions weights of their own.
            "merge_duplicate_nodes",
            "sort_by_execution_order",
        ),
    ),
    "small": Preset(
        "What deploy does, then weights in 8 bits.",
        ("deploy", "quantize_weights", "sort_by_execution_order"),
    ),
}
