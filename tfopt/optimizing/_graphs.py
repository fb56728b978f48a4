"""Stages for SavedModels: rewriting of the graph, and Grappler."""

from __future__ import annotations

from typing import Any

from tfopt.optimizing._search import Search

# Name of the method -> name of the candidate -> steps; cheap and harmless ones first.
_CANDIDATES: dict[str, dict[str, list[dict[str, Any]]]] = {
    "deploy": {"deploy": [{"do": "transform_graph", "transforms": "deploy"}]},
    "grappler": {
        "Grappler, lossless": [{"do": "optimize_graph", "config": "lossless"}],
        "deploy, then Grappler": [
            {"do": "transform_graph", "transforms": "deploy"},
            {"do": "optimize_graph", "config": "default"},
        ],
    },
    "small": {
        "weights in float16": [
            {
                "do": "transform_graph",
                "transforms": "deploy quantize_weights(bits=float16)",
            }
        ],
        "weights in 8 bits": [{"do": "transform_graph", "transforms": "small"}],
        "weights in 4 bits": [
            {"do": "transform_graph", "transforms": "deploy quantize_weights(bits=4)"}
        ],
    },
    "half": {
        "computed in bfloat16": [
            {"do": "transform_graph", "transforms": "deploy cast_bfloat16"}
        ],
    },
}
METHODS = tuple(_CANDIDATES)
TRIALS = sum(len(group) for group in _CANDIDATES.values())


def rewritten(search: Search) -> None:
    """Tries every rewriting that is wanted."""
    for method, group in _CANDIDATES.items():
        if method not in search.methods:
            continue
        for name, steps in group.items():
            if search.seconds_left <= 0:
                search.notes.append(f"Left out for lack of time: {name}.")
                continue
            search.attempt(name, steps, parent=search.study.baseline)
