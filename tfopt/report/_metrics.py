"""How good a model is: metrics of its outputs, in NumPy."""

from __future__ import annotations

import numpy as np


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the fraction of examples whose largest output is at the label.

    Args:
        outputs: Logits or probabilities [n, classes], of any real type, quantized
            ones included. Equal largest outputs count as the first of them, and an
            example with a NaN as wrong.
        labels: Class indices, integers [n] or [n, 1].

    Raises:
        ValueError: The shapes or types are others.

    Example:
        >>> accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
        0.5
    """
    outputs, labels = np.asarray(outputs), np.asarray(labels)
    if outputs.ndim != 2 or outputs.shape[1] < 2 or len(outputs) == 0:
        raise ValueError(
            "Expected outputs [n, classes], n >= 1 and at least two classes. "
            f"Received: outputs.shape={outputs.shape}"
        )
    if labels.shape == (len(outputs), 1):
        labels = labels[:, 0]
    if labels.shape != (len(outputs),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"Expected integer labels, shape {(len(outputs),)}. "
            f"Received: labels.shape={labels.shape}, labels.dtype={labels.dtype}"
        )
    right = outputs.argmax(axis=1) == labels
    if np.issubdtype(outputs.dtype, np.inexact):
        right &= ~np.isnan(outputs).any(axis=1)
    return float(right.mean())
