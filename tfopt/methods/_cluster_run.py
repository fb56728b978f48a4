"""The state of one `fit` with Cluster: which weights share values, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfopt._keras import variables
from tfopt.methods._clustering import Clusters
from tfopt.methods._codebook import Codebook
from tfopt.methods._guarding import GuardedRun
from tfopt.types import TfoptError


@dataclasses.dataclass
class Plan:
    """Which weights are clustered, and how.

    Attributes:
        candidates: All weights of the model.
        codebooks: Of the clustered ones, by name.
        reasons: Why others are not, by name.
    """

    candidates: Sequence[variables.Weight]
    codebooks: dict[str, Codebook]
    reasons: Mapping[str, str]

    @property
    def weights(self) -> dict[str, variables.Weight]:
        """The clustered weights by name."""
        return {w.name: w for w in self.candidates if w.name in self.codebooks}

    @property
    def skipped(self) -> dict[str, str]:
        """Why kernels are left alone, by name."""
        kernels = [weight.name for weight in self.candidates if weight.is_kernel]
        return {name: self.reasons[name] for name in kernels if name in self.reasons}

    def report(self) -> list[dict[str, Any]]:
        """Returns the rows of `Cluster.report`."""
        return [
            {
                "name": weight.name,
                "shape": weight.shape,
                "size": weight.size,
                "clustered": weight.name in self.codebooks,
                "reason": self.reasons.get(weight.name, ""),
                "clusters": (
                    self.codebooks[weight.name].num_clusters
                    if weight.name in self.codebooks
                    else None
                ),
                "distinct": None,
            }
            for weight in self.candidates
        ]

    def start(self, model: Any, method: Any) -> Clusters:
        """Returns the clusters to begin with.

        Args:
            model: Has the weights of the plan.
            method: The `Cluster`, whose arguments say how.

        Raises:
            TfoptError: Weights are not finite.
        """
        states, keep = {}, {}
        for name, weight in self.weights.items():
            values = variables.to_numpy(weight.variable)
            if not np.isfinite(values).all():
                raise TfoptError(
                    "Weights are not finite, so they have no clusters. Has the "
                    "training diverged? Try a lower learning rate. "
                    f"Received: weight={name!r}"
                )
            if method.preserve_zeros is not False and not values.all():
                keep[name] = values != 0
                self.codebooks[name] = dataclasses.replace(
                    self.codebooks[name], zero_cluster=True
                )
            states[name] = self.codebooks[name].begin(
                values, method.initialization, method.seed
            )
        return Clusters(
            model, self.weights, self.codebooks, states, keep, method.frequency
        )


@dataclasses.dataclass(kw_only=True)
class Run(GuardedRun):
    """The state of one `fit`.

    Attributes:
        plan: What is clustered.
        end: The step from which on weights stay in their clusters; None: not known,
            or past.
        guard: The clusters in force; None: not begun.
    """

    plan: Plan
    end: int | None
    guard: Clusters | None = None
