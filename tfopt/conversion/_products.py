"""What builds for devices need beside a `.tflite` file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from tfopt import artifacts, inspection, micro
from tfopt.conversion import Conversion
from tfopt.types import Signature, TensorInfo, UsageError

_C_SUFFIXES = (".c", ".cc", ".cpp")
_PACKAGES = ("tensorflow", "ai-edge-litert", "numpy")


def check_paths(paths: Mapping[str, str]) -> None:
    """Raises unless all outputs have names of their own.

    Args:
        paths: By flag; `"c_array"` has a header beside it.

    Raises:
        UsageError: Two are the same, or the C source has another suffix.
    """
    if "c_array" in paths:
        source = pathlib.Path(paths["c_array"])
        if source.suffix not in _C_SUFFIXES:
            raise UsageError(
                "Expected a file name that ends in .c, .cc or .cpp. "
                f"Received: c_array={os.fspath(source)!r}"
            )
        paths = {**paths, "header of c_array": str(source.with_suffix(".h"))}
    seen: dict[str, str] = {}
    for name, path in paths.items():
        other = seen.setdefault(os.path.realpath(path), name)
        if other != name:
            raise UsageError(
                "Two outputs have the same name. Expected different files. "
                f"Received: {path!r} for {other} and {name}"
            )


def files(
    done: Conversion, paths: Mapping[str, str | None], *, c_name: str, source: str
) -> dict[str, bytes]:
    """Returns the content of each file, by path; the same model gives the same bytes.

    Args:
        done: The converted model.
        paths: By kind: `"tflite"`, `"c_array"`, `"op_resolver"`, `"required_ops"`,
            `"manifest"`; `None` for those not wanted.
        c_name: Name of the array, and prefix of the resolver's names.
        source: Where the model came from, for the manifest.

    Raises:
        ValueError: `c_name` is no identifier.
        TfoptError: TFLite Micro lacks an operator that the resolver would need.
    """
    content = done.content
    made: dict[str, bytes] = {}
    if paths["c_array"]:
        source_path = pathlib.Path(paths["c_array"])
        header = source_path.with_suffix(".h")
        code = micro.c_array(content, name=c_name)
        made[str(header)] = code.header.encode()
        made[str(source_path)] = code.source_beside(header.name).encode()
    if paths["op_resolver"]:
        made[paths["op_resolver"]] = micro.op_resolver(content, name=c_name).encode()
    if paths["required_ops"]:
        made[paths["required_ops"]] = _operators(content).encode()
    if paths["manifest"]:
        others = {path: hashlib.sha256(text).hexdigest() for path, text in made.items()}
        text = artifacts.to_json({**manifest(done, source), "files": _named(others)})
        made[paths["manifest"]] = (text + "\n").encode()
    # Last, so that a build that was interrupted does not take it for done.
    made[str(paths["tflite"])] = content
    return made


def manifest(done: Conversion, source: str) -> dict[str, Any]:
    """Returns what a build script wants to know of a file, without times or places."""
    content = done.content
    found = inspection.inspect(content)
    return {
        "format": "tflite",
        "source": source,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        "gzip_bytes": artifacts.gzip_size(content),
        "signatures": [_signature(signature) for signature in done.signatures],
        "conversion": _lasting(done.report),
        "operators": micro.operators(content),
        "macs": found.macs,
        "arena_bytes": found.arena_bytes,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _named(digests: Mapping[str, str]) -> dict[str, str]:
    """Digests by file name, as what builds together may be moved together."""
    return {pathlib.Path(path).name: digest for path, digest in digests.items()}


def _lasting(report: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a report that is the same for the same model.

    Sums in TensorFlow differ in the last bits from run to run, and errors with them.
    """
    kept = {name: value for name, value in report.items() if name != "seconds"}
    if kept["verification"] is not None:
        kept["verification"] = {
            name: kept["verification"][name] for name in ("data", "examples")
        }
    if "signatures" in kept:
        kept["signatures"] = {
            key: _lasting(part) for key, part in kept["signatures"].items()
        }
    return kept


def _operators(content: bytes) -> str:
    """One operator a line: its name, and the types it computes in."""
    lines = [
        " ".join(
            [_word(name), ",".join(kind.replace(" ", "_") for kind in kinds if kind)]
        ).rstrip()
        for name, kinds in micro.operators(content).items()
    ]
    return "\n".join(lines) + "\n"


def _word(name: str) -> str:
    """Returns the name of an operator, which a model chooses, as one word."""
    return re.sub(r"[^\w.:/-]", lambda found: f"\\x{ord(found[0]):02x}", name)


def _signature(signature: Signature) -> dict[str, Any]:
    return {
        "key": signature.key,
        "inputs": [_tensor(info) for info in signature.inputs],
        "outputs": [_tensor(info) for info in signature.outputs],
    }


def _tensor(info: TensorInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "dtype": info.dtype.name,
        "shape": info.shape,
        "scale": info.scale,
        "zero_point": info.zero_point,
    }
