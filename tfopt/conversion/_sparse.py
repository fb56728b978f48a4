"""Sparse encoding: weights stored by their nonzero values, where that is sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfopt import tflite_file
from tfopt.conversion import _verification
from tfopt.conversion._samples import Batch
from tfopt.types import ConversionError, VerificationError

# The two files hold the same weights; kernels may add up in another order.
_MIN_SQNR = 100.0
Run = Callable[..., list[dict[str, np.ndarray]]]


def choose(
    dense: bytes,
    encode: Callable[[], bytes],
    batches: Sequence[Batch],
    run: Run = _verification.run,
) -> tuple[bytes, dict[str, Any]]:
    """Returns the sparse file if it is smaller and computes the same, else the dense.

    The converter encodes some models so that no interpreter can load them, and others
    so that they return wrong numbers; so both files are run.

    Args:
        dense: The file without sparse encoding.
        encode: Makes the same file with sparse encoding.
        batches: Inputs to run.
        run: Runs a file.

    Returns:
        The chosen file, and a report: `"encoded"`, `"reason"` (why not, else `""`),
        `"dense_bytes"`, `"sparse_bytes"` and the number of sparse `"tensors"`.
    """
    report: dict[str, Any] = {"encoded": False, "dense_bytes": len(dense)}
    try:
        sparse = encode()
        tensors = _sparse_tensors(sparse)
        report |= {"sparse_bytes": len(sparse), "tensors": tensors}
        report["reason"] = _objection(dense, sparse, tensors, batches, run)
    except (ConversionError, VerificationError) as error:
        report |= {"sparse_bytes": None, "tensors": 0, "reason": str(error)}
    if report["reason"]:
        return dense, report
    return sparse, {**report, "encoded": True}


def _objection(
    dense: bytes, sparse: bytes, tensors: int, batches: Sequence[Batch], run: Run
) -> str:
    """Returns why the sparse file will not do, `""` if it will."""
    if not tensors:
        return "the converter found no weight that is worth it"
    if len(sparse) >= len(dense):
        return f"it would take {len(sparse):,} bytes instead of {len(dense):,}"
    signature = tflite_file.read(dense).signatures[0]
    expected = run(dense, signature, batches)
    found = run(sparse, signature, batches)
    for info in signature.outputs:
        agreement = _verification.measure(
            [np.asarray(item[info.name]) for item in expected],
            [np.asarray(item[info.name]) for item in found],
        )
        if not agreement.sqnr_db >= _MIN_SQNR:
            return (
                f"LiteRT computes it wrongly: output {info.name!r} is off by "
                f"{agreement.max_error:.3g}"
            )
    return ""


def _sparse_tensors(content: bytes) -> int:
    return sum(
        tensor.is_sparse
        for graph in tflite_file.read(content).subgraphs
        for tensor in graph.tensors
    )
