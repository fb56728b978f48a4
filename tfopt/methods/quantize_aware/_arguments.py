"""The arguments of QuantizeAware: which are good, and which go together."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from typing import Any

from tfopt._keras.flatten import Graph
from tfopt.methods._checks import check_arguments, is_integer
from tfopt.methods.quantize_aware._schemes import SCHEMES, scheme_of

_TRACKINGS = ("ema", "minmax", "percentile", "mse")


def patterns(
    graph: Graph, *options: str | Sequence[str] | None
) -> tuple[str, ...] | None:
    """Returns the patterns for layers' paths that options stand for, `None` for none.

    What matches the class of a layer stands for the layers of that class.
    """
    if all(option is None for option in options):
        return None
    found: dict[str, None] = {}
    for option in options:
        for pattern in (option,) if isinstance(option, str) else option or ():
            of_class = [
                spec.path
                for spec in graph.layers()
                if fnmatch.fnmatchcase(spec.kind, pattern)
            ]
            by_name = any(spec.matches(pattern) for spec in graph.layers())
            if by_name or not of_class:
                found[pattern] = None
            found |= dict.fromkeys(of_class)
    return tuple(found)


def check(method: Any) -> None:
    """Checks the arguments that a `QuantizeAware` holds.

    Raises:
        ValueError: One is out of range, or doesn't go with another one.
    """
    check_arguments(method, _ranges(method))
    for is_bad, names, why in _conflicts(method):
        if is_bad:
            received = ", ".join(f"{name}={getattr(method, name)!r}" for name in names)
            raise ValueError(f"{why}. Received: {received}")


def _ranges(method: Any) -> dict[str, tuple[bool, str]]:
    least = {
        # Statistics may be those of the model as it is; ranges must be seen first.
        "freeze_batch_norm_after": 0,
        "freeze_ranges_after": 1,
        "calibration_batches": 1,
    }
    optional = {
        name: (
            getattr(method, name) is None or is_integer(getattr(method, name), bound),
            f"an integer of at least {bound}, or None",
        )
        for name, bound in least.items()
    }
    return {
        "scheme": (method.scheme in SCHEMES, f"one of {SCHEMES}"),
        "weight_bits": (
            is_integer(method.weight_bits, 2) and method.weight_bits <= 8,
            "an integer from 2 to 8",
        ),
        "activation_bits": (
            method.activation_bits in (8, 16),
            "8 or 16, as LiteRT's integer kernels take int8 or int16 activations",
        ),
        "range_tracking": (
            method.range_tracking in _TRACKINGS,
            f"one of {_TRACKINGS}",
        ),
        "ema_decay": (0 <= method.ema_decay < 1, "in [0, 1)"),
        "percentile": (50 < method.percentile <= 100, "above 50 and at most 100"),
        "delay_steps": (
            is_integer(method.delay_steps, 0),
            "an integer of at least 0",
        ),
        **optional,
        "calibration_examples": (
            is_integer(method.calibration_examples, 1),
            "an integer of at least 1",
        ),
    }


def _conflicts(method: Any) -> Iterator[tuple[bool, tuple[str, ...], str]]:
    """Yields conditions, the arguments that are concerned, and what is wrong."""
    used = scheme_of(method)
    yield (
        method.scheme == "int8_weights" and method.activation_bits == 16,
        ("scheme", "activation_bits"),
        "The scheme of weights alone rounds no activations, to any number of bits",
    )
    yield (
        used == "int8_weights" and bool(method.delay_steps),
        ("scheme", "delay_steps"),
        "The scheme of weights alone rounds no activations that could wait",
    )
    yield (
        used != "int8" and not method.per_channel,
        ("per_channel", "scheme"),
        "The converter takes one scale per weight only with int8 activations; use "
        "per_channel=True",
    )
    yield (
        used == "int16x8" and method.range_tracking not in ("ema", "minmax"),
        ("scheme", "range_tracking"),
        "With int16 activations nothing needs to be cut off; use 'ema' or 'minmax'",
    )
    yield (
        method.packed and (method.weight_bits != 4 or used != "int8"),
        ("packed", "weight_bits", "scheme"),
        "LiteRT has packed weights of 4 bits, beside int8 activations, and no others; "
        "use weight_bits=4 and scheme='int8', or packed=False",
    )
    yield (
        method.packed and not method.per_channel,
        ("packed", "per_channel"),
        "Packed weights have a scale per channel; use per_channel=True",
    )
