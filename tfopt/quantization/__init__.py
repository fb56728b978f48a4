"""Quantization after training, layer by layer: what it costs where."""

from __future__ import annotations

from tfopt.quantization._measuring import METHODS, measure
from tfopt.quantization._result import (
    Constant,
    Layer,
    QuantizationSensitivity,
    Range,
    Score,
)

__all__ = [
    "METHODS",
    "Constant",
    "Layer",
    "QuantizationSensitivity",
    "Range",
    "Score",
    "measure",
]
