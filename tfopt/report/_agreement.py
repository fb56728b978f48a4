"""How close a model's outputs are to those of another one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def agreement(
    outputs: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], judged: str
) -> dict[str, float | None]:
    """Returns how close outputs are to those of a reference.

    Args:
        outputs: Of the model, by name, as the reference calls them.
        reference: Of the reference.
        judged: The output whose largest values are compared.

    Returns:
        `argmax_agreement`: the fraction of rows (or pixels) with the largest value at
        the same place, None for outputs without classes; `max_difference` and
        `mean_difference`: absolute ones, over all outputs, infinite for a NaN that
        isn't expected; `sqnr_db`: 10 log10 of the energy of the reference over that of
        the difference, of the output where it's lowest; infinite for equal outputs.

    Raises:
        ValueError: A shape differs.
    """
    largest, total, count, ratios = 0.0, 0.0, 0, []
    for name, expected in reference.items():
        value = outputs[name]
        if value.shape != expected.shape:
            raise ValueError(
                "Outputs cannot be compared with the reference's. Expected the shape "
                f"{list(expected.shape)}. Received: {list(value.shape)} of {name!r}"
            )
        exact = expected.astype(np.float64)
        # Equal infinities are no difference, nor is NaN where NaN is expected.
        different = (value != expected) & ~((value != value) & (expected != expected))
        gap = np.zeros(exact.shape)
        np.subtract(value, exact, out=gap, where=different)
        gap = np.abs(np.where(np.isnan(gap), np.inf, gap))
        exact = np.where(np.isfinite(exact), exact, 0.0)
        largest = max(largest, float(np.max(gap, initial=0.0)))
        total, count = total + float(gap.sum()), count + gap.size
        ratios.append(_sqnr(exact, gap))
    first, second = outputs[judged], reference[judged]
    has_classes = second.ndim >= 2 and second.shape[-1] >= 2
    same = (
        float(np.mean(first.argmax(-1) == second.argmax(-1))) if has_classes else None
    )
    return {
        "argmax_agreement": same,
        "max_difference": largest,
        "mean_difference": total / max(count, 1),
        "sqnr_db": min(ratios),
    }


def _sqnr(exact: np.ndarray, gap: np.ndarray) -> float:
    noise, signal = float(np.sum(gap**2)), float(np.sum(exact**2))
    if noise == 0:
        return float("inf")
    if signal == 0 or np.isinf(noise):
        return float("-inf")
    return 10 * float(np.log10(signal / noise))
