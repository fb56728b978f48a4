"""Pruning without training: at once, and finding out how much each layer takes."""

from __future__ import annotations

from tfopt.pruning._once import prune_once
from tfopt.pruning._sensitivity import Sensitivity, sensitivity

__all__ = ["Sensitivity", "prune_once", "sensitivity"]
