"""`round_weights`: puts weights on a grid, so that files compress better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfopt.transforms import _weights
from tfopt.transforms._base import Findings, GraphModel, transform


@transform(outputs="reported", keeps_nodes=True)
def round_weights(
    graph: GraphModel,
    *,
    num_steps: int = 256,
    minimum_size: int = 1024,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> Findings:
    """Rounds weights to a few values, evenly spaced within each tensor.

    They stay floats, so the graph is as large and runs as fast as before; but its file
    compresses to about a third. `quantize_weights` makes the file itself smaller.

    The grid goes from a tensor's smallest value to its largest. Zeros stay zero, so
    that pruned weights stay pruned. (The Graph Transform Tool takes the middles of
    `num_steps` equal intervals instead, which neither holds the largest value, nor
    zero, nor stays as it is when applied again.)

    Args:
        graph: The graph.
        num_steps: How many values the grid has, at least 2; there may be zero besides.
        minimum_size: Elements that a constant must have.
        include: Globs of constants' names: only these, and those also that no
            operation is known to take as weights.
        exclude: Globs of constants to leave alone.

    Returns:
        `rounded`: how many constants; `gzip_before` and `gzip_after`: bytes of their
        contents after `gzip -4`, together (`None` above 64 MB, where it takes too
        long); `tensors`: for each one `node`, `shape` and `max_error`;
        `below_minimum_size`: how many constants are too small; `skipped`.

    Raises:
        ValueError: An option is wrong, or a glob matches no node.

    Example:
        >>> artifact = tfopt.transform_graph(
        ...     "saved_model",
        ...     "out.pb",
        ...     "round_weights(num_steps=256)",
        ...     verify="structure",
        ... )
        >>> artifact.details["steps"][0]["findings"]["rounded"]
        1
    """
    if not isinstance(num_steps, int) or isinstance(num_steps, bool) or num_steps < 2:
        raise ValueError(
            f"Expected an integer from 2. Received: num_steps={num_steps!r}"
        )
    found = _weights.select(
        graph, minimum_size=minimum_size, include=include, exclude=exclude
    )
    changed = []
    tensors = []
    for weight in found.weights:
        values = on_grid(weight.array, num_steps)
        error = float(np.abs(values - weight.array).max(initial=0))
        tensors.append(
            {
                "node": weight.name,
                "shape": list(values.shape),
                "max_error": error,
            }
        )
        changed.append((weight.array, values))
        if error:
            weight.set_array(values)
    return {
        "rounded": len(tensors),
        **_weights.gzip_sizes(changed),
        "tensors": tensors,
        **found.findings(),
    }


def on_grid(array: np.ndarray, num_steps: int) -> np.ndarray:
    """Returns the nearest of `num_steps` values from the smallest to the largest.

    Args:
        array: Finite floats.
        num_steps: At least 2.

    Returns:
        Array of the same shape and type, zero where `array` is.

    Example:
        >>> on_grid(np.array([-1.0, -0.4, 0.0, 0.3, 1.0]), 4)
        array([-1.        , -0.33333333,  0.        ,  0.33333333,  1.        ])
    """
    low, high = float(array.min(initial=np.inf)), float(array.max(initial=-np.inf))
    if not low < high:
        return array
    step = (high - low) / (num_steps - 1)
    result = np.empty_like(array)
    # Bounded pieces, as they are computed in double precision: rounding again must
    # find the same values.
    flat, target = array.reshape(-1), result.reshape(-1)
    for start in range(0, flat.size, 1 << 16):
        part = slice(start, start + (1 << 16))
        steps = np.rint((flat[part].astype(np.float64) - low) / step)
        target[part] = np.where(flat[part] == 0, 0, steps * step + low)
    return result
