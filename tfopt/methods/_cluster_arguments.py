"""The arguments of Cluster: which are good."""

from __future__ import annotations

from typing import Any

from tfopt._keras import variables
from tfopt.methods import _centroids
from tfopt.methods._checks import check_arguments, is_integer


def check(method: Any) -> None:
    """Checks the arguments that a `Cluster` holds.

    Raises:
        ValueError: One is out of range, or doesn't go with another one.
    """
    for name in ("include", "exclude"):
        variables.as_patterns(name, getattr(method, name))
    checks = {
        "num_clusters": (
            is_integer(method.num_clusters, 2) and method.num_clusters <= 1 << 16,
            "an integer from 2 to 65536",
        ),
        "initialization": (
            method.initialization in _centroids.INITIALIZATIONS,
            f"one of {_centroids.INITIALIZATIONS}",
        ),
        "per_channel": (isinstance(method.per_channel, bool), "True or False"),
        "channel_scales": (
            method.channel_scales in (None, True, False)
            and not (method.channel_scales and method.per_channel),
            "True, False or None, and not True with `per_channel`",
        ),
        "preserve_zeros": (
            method.preserve_zeros in (True, False, "auto"),
            "True, False or 'auto'",
        ),
        "begin_step": (is_integer(method.begin_step, 0), "an integer >= 0"),
        "end_step": (
            method.end_step is None or is_integer(method.end_step, 0),
            "an integer >= 0, or None",
        ),
        "frequency": (
            method.frequency is None or is_integer(method.frequency, 1),
            "an integer >= 1, or None",
        ),
        "seed": (is_integer(method.seed, 0), "an integer >= 0"),
        "strict": (isinstance(method.strict, bool), "True or False"),
    }
    check_arguments(method, checks)
