"""What is told of a freeze: counts, kept variables, how to initialise, warnings."""

from __future__ import annotations

import pathlib
from typing import Any

from tfopt.freezing.output import FrozenModel
from tfopt.freezing.sources import SERVING_DEFAULT, Source
from tfopt.savedmodel import assets, reader
from tfopt.types import Signature

# From where on loading a frozen graph is worth a warning.
_HEAVY_BYTES = 100 << 20


def details(model: FrozenModel) -> dict[str, Any]:
    """Returns the `Artifact.details` of a freeze, as plain JSON data."""
    graph, plan = model.graph, model.plan
    constant_bytes = sum(entry.value.size_bytes for entry in graph.constants)
    return {
        "nodes": len(graph.nodes),
        "functions": len(graph.functions),
        "constants": len(graph.constants),
        "constant_bytes": constant_bytes,
        "kept_variables": [
            {
                "name": kept.name,
                "reason": kept.reason,
                "writers": [{"op": use.op, "node": use.node} for use in kept.uses],
                "size_bytes": 0 if kept.value is None else kept.value.size_bytes,
                "storage": kept.storage,
            }
            for kept in plan.kept.values()
        ],
        "tables": sorted(plan.tables),
        "init_op": model.state.init_op,
        "asset_feeds": asset_feeds(model),
        "signatures": {
            key: {
                "inputs": _tensors(signature.inputs),
                "outputs": _tensors(signature.outputs),
            }
            for key, signature in model.source.signatures.items()
        },
        "warnings": _warnings(constant_bytes),
    }


def main_signature(source: Source) -> Signature:
    """Returns the signature `serving_default`, or else the first."""
    key = SERVING_DEFAULT
    if key not in source.signatures:
        key = next(iter(source.signatures))
    return reader.signature_of(key, source.signatures[key])


def asset_feeds(model: FrozenModel) -> dict[str, str]:
    """Returns tensor -> file that the init op of a plain graph has to be fed."""
    folder = model.source.folder
    if folder is None:
        return {}
    return {
        asset.tensor_info.name: str(assets.locate(folder, asset.filename))
        for asset in model.assets
    }


def original_model(source: Source) -> dict[str, Any]:
    """Returns how `checking.check_execution` loads the source."""
    if source.folder is not None:
        return {
            "kind": "saved_model",
            "path": str(source.folder),
            "tags": list(source.meta_graph.meta_info_def.tags),
        }
    return {
        "kind": "meta_graph",
        "path": source.where,
        "checkpoint": None if source.checkpoint is None else source.checkpoint.prefix,
    }


def frozen_model(model: FrozenModel, path: pathlib.Path) -> dict[str, Any]:
    """Returns how `checking.check_execution` loads the result."""
    if model.is_saved_model:
        tags = list(model.source.meta_graph.meta_info_def.tags) or [reader.SERVE]
        return {"kind": "saved_model", "path": str(path), "tags": tags}
    return {
        "kind": model.output_format,
        "path": str(path),
        "init_op": model.state.init_op,
        "asset_feeds": asset_feeds(model),
    }


def _tensors(infos: Any) -> dict[str, list[str]]:
    return {name: reader.tensor_names(infos[name]) for name in sorted(infos)}


def _warnings(constant_bytes: int) -> list[str]:
    if constant_bytes <= _HEAVY_BYTES:
        return []
    return [
        f"The graph holds {constant_bytes >> 20} MiB of constants. TensorFlow parses "
        "and copies them several times while loading: a 400 MB model that loads in "
        "2.5 s and 1 GB as a SavedModel took 8 to 91 s and 3 to 9 GB frozen. Serve "
        "large models unfrozen, or keep their large variables "
        "(keep_variables_over)."
    ]
