"""Schemes: what of a model is quantized."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfopt.methods.quantize_aware._placement import Plan
from tfopt.methods.quantize_aware._report import LayerReport

SCHEMES = ("int8", "int8_weights", "int16x8")


def scheme_of(method: Any) -> str:
    """Returns the scheme; `activation_bits=16` is a name for one."""
    return "int16x8" if method.activation_bits == 16 else method.scheme


def weights_alone(plan: Plan) -> Plan:
    """Returns the part of a plan that concerns weights: every tensor stays float."""
    weighted = {spec.path for spec in plan.weighted}
    return Plan(
        points={},
        barriers=frozenset(),
        weighted=plan.weighted,
        report=tuple(_reported(entry, weighted) for entry in plan.report),
    )


def _reported(entry: LayerReport, weighted: set[str]) -> LayerReport:
    if entry.path in weighted or entry.treatment in ("float", "identity"):
        return entry
    return dataclasses.replace(
        entry, treatment="float", reason="only weights are quantized"
    )
