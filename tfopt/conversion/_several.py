"""Several signatures of a model in one file."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt import tflite_file
from tfopt.conversion import _history, _pipeline
from tfopt.types import Signature, VerificationError

_COMPARED = 8


def run(
    model: Any, request: _pipeline.Request
) -> tuple[bytes, tuple[Signature, ...], dict[str, Any]]:
    """Converts signatures one by one, each verified, and puts them into one file.

    The converter takes one function; files are merged afterwards, so that each
    signature is calibrated by its own data, and equal weights are stored once.

    Args:
        model: Path of a SavedModel.
        request: With `signature_keys`.

    Returns:
        The file, its signatures, and the report.

    Raises:
        ValueError: As `tfopt.convert`, or there is no such signature.
        ConversionError: As `tfopt.convert`.
        VerificationError: As `tfopt.convert`, or a signature computes otherwise in the
            file than alone.
    """
    keys = _checked_keys(model, request)
    parts = {}
    for key in keys:
        alone = dataclasses.replace(
            request,
            signature_keys=None,
            signature_key=key,
            representative_dataset=_data_of(request.representative_dataset, keys, key),
        )
        parts[key] = _pipeline.run(model, alone)
    content = tflite_file.merge([part.content for part in parts.values()])
    if not request.strip_debug_info:
        content = tflite_file.rewrite(
            content, metadata=_history.metadata(keys, request.history)
        )
    for part in parts.values():
        _verify(content, part, request)
    file = tflite_file.read(content)
    reports = {key: part.report for key, part in parts.items()}
    notes = (note for report in reports.values() for note in report["notes"])
    report = {
        **reports[keys[0]],
        "bytes": len(content),
        "operators": file.operator_counts(),
        "notes": list(dict.fromkeys(notes)),
        "signatures": reports,
    }
    return content, file.signatures, report


def _checked_keys(model: Any, request: _pipeline.Request) -> list[str]:
    keys = list(request.signature_keys or ())
    if isinstance(request.signature_keys, str) or not keys or len({*keys}) != len(keys):
        raise ValueError(
            "Expected a list of different keys. "
            f"Received: signature_keys={request.signature_keys!r}"
        )
    if request.signature_key is not None:
        raise ValueError(
            "Expected either `signature_key` or `signature_keys`. Received: "
            f"{request.signature_key!r} and {keys}"
        )
    if not isinstance(model, (str, os.PathLike)) or not pathlib.Path(model).is_dir():
        raise ValueError(
            "Only a SavedModel has several signatures. Expected the path of its "
            f"directory with `signature_keys`. Received: {type(model).__name__}"
        )
    return keys


def _data_of(dataset: Any, keys: list[str], key: str) -> Any:
    """Returns the data of one signature: `{key: data}`, or the same for all."""
    if isinstance(dataset, Mapping) and set(dataset) == set(keys):
        return dataset[key]
    return dataset


def _verify(content: bytes, part: _pipeline.Done, request: _pipeline.Request) -> None:
    """Raises unless a signature returns in the file what it does alone."""
    if part.samples is None:
        return
    run_file = request.lowering().run
    batches = part.samples.batches[:_COMPARED]
    alone, beside = (
        run_file(file, part.signature, batches) for file in (part.content, content)
    )
    for before, after in zip(alone, beside, strict=True):
        for name, value in before.items():
            if not np.array_equal(value, after[name]):
                raise VerificationError(
                    "A signature computes otherwise beside others than alone. Convert "
                    "it to a file of its own. Received: signature "
                    f"{part.signature.key!r}, output {name!r}"
                )
