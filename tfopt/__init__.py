"""Model optimization for TensorFlow: small, fast, verified.

Names are loaded on first use, so `import tfopt` imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it.
_PUBLIC = {
    "Artifact": "types",
    "Benchmark": "benchmark",
    "Cluster": "methods.cluster",
    "ConstantSparsity": "schedules",
    "Conversion": "conversion",
    "ConversionError": "types",
    "Data": "data",
    "Distill": "methods.distill",
    "Difference": "inspection",
    "FinetuneResult": "finetuning",
    "GrapplerConfig": "grappler",
    "Inspection": "inspection",
    "LightCheckpoint": "checkpoint",
    "Measurement": "benchmark",
    "PolynomialDecay": "schedules",
    "OptimizeResult": "optimizing",
    "Prune": "methods.prune",
    "QuantizationSensitivity": "quantization",
    "QuantizeAware": "methods.quantize_aware",
    "Recipe": "recipe",
    "Removal": "surgery",
    "Report": "report",
    "RunError": "types",
    "Runner": "runner",
    "Sensitivity": "pruning",
    "Signature": "types",
    "SparseSpeedup": "sparse_inference",
    "TensorInfo": "types",
    "TfoptError": "types",
    "Timing": "benchmark",
    "VerificationError": "types",
    "benchmark_models": "benchmark",
    "c_array": "micro",
    "cluster_once": "methods.cluster",
    "compare": "comparison",
    "convert": "conversion",
    "convert_with_report": "conversion",
    "diff": "inspection",
    "explain_graph": "grappler",
    "finalize": "training",
    "finetune": "finetuning",
    "freeze": "freezing",
    "inspect": "inspection",
    "interleave": "benchmark",
    "lift": "lifting",
    "load_data": "data",
    "load_examples": "data",
    "measure_costs": "grappler",
    "pack": "packing",
    "op_resolver": "micro",
    "optimize": "optimizing",
    "optimize_graph": "grappler",
    "prepare": "training",
    "prune_once": "pruning",
    "recalibrate_batch_norm": "checkpoint",
    "remove_channels": "surgery",
    "remove_channels_with_report": "surgery",
    "restore_slim_checkpoint": "checkpoint",
    "sensitivity": "analysis",
    "slim_checkpoint": "checkpoint",
    "sparse_speedup_possible": "sparse_inference",
    "sparsity": "analysis",
    "unpack": "packing",
    "transform_graph": "transforms",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tfopt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tfopt.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
