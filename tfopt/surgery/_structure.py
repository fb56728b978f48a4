"""Which channels of a flat graph can only be cut together.

Every place of every channel axis is an *atom*. Atoms that one slice of a layer's
weights or one elementwise operation ties to each other are united; a class of united
atoms is removed as a whole or not at all. What is known of each kind of layer is in
`_rules.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from tfopt._keras.flatten import Call, Graph, LayerSpec, Value
from tfopt.types import TfoptError

# What a layer computes from channels that are constant (a `_constants.Constants`):
# float64 [channels], NaN where the output is not constant.
Transfer = Callable[[Any], np.ndarray]


class Refusal(Exception):
    """A layer mixes channels in a way that no rule describes; says how."""


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why channels stay; `refused` if only for want of a rule."""

    text: str
    refused: bool


@dataclasses.dataclass(frozen=True)
class Layout:
    """The channel axis of a value (0 is the batch axis) and its atoms, int64 [size]."""

    axis: int
    atoms: np.ndarray


@dataclasses.dataclass(frozen=True)
class Cut:
    """An axis of a layer's weight that shrinks when channels go.

    Attributes:
        weight: Index among the layer's weights.
        axis: Axis of that weight.
        atoms: The atoms along it, int64 [size].
        role: `"out"`: its slices make the channels, `"through"`: they go with channels
            made elsewhere, `"in"`: they read them.
    """

    weight: int
    axis: int
    atoms: np.ndarray
    role: Literal["out", "through", "in"]


@dataclasses.dataclass(frozen=True)
class Size:
    """An entry of a layer's configuration that counts channels.

    Its new value is the number of atoms that are left, divided by `divisor`. `index`
    is the place within the entry if that is a tuple.
    """

    key: str
    index: int | None
    atoms: np.ndarray
    divisor: int = 1


@dataclasses.dataclass(frozen=True)
class Contraction:
    """One call in which a layer sums over channels, `into` others."""

    call: Call
    value: Value
    atoms: np.ndarray
    into: np.ndarray


class Structure:
    """Atoms, what ties them together, and where they sit in a graph.

    Attributes:
        graph: The flat model; it is only read.
        layouts: Of each value that has a known channel axis.
        cuts: By layer.
        sizes: By layer.
        contractions: In the order of the calls.
        transfers: How constants pass through each call that a rule describes.
        refused: Why no rule fits a layer, by layer.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.layouts: dict[Value, Layout] = {}
        self.cuts: dict[LayerSpec, list[Cut]] = {}
        self.sizes: dict[LayerSpec, list[Size]] = {}
        self.contractions: list[Contraction] = []
        self.transfers: dict[Call, Transfer] = {}
        self.refused: dict[LayerSpec, str] = {}
        self._parents: list[int] = []
        self._classes: np.ndarray | None = None  # once asked for
        self._frozen: list[tuple[np.ndarray, Reason]] = []

    def new_atoms(self, count: int, reason: Reason | None = None) -> np.ndarray:
        """Returns atoms tied to nothing, which stay if there is a reason."""
        atoms = np.arange(len(self._parents), len(self._parents) + count)
        self._parents.extend(atoms.tolist())
        if reason is not None:
            self.freeze(atoms, reason)
        return atoms

    def unite(self, first: np.ndarray, second: np.ndarray) -> None:
        """Ties atoms to each other, place by place."""
        if len(first) != len(second):
            raise Refusal(f"ties {len(first)} channels to {len(second)}")
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            one, other = self._find(one), self._find(other)
            if one != other:
                self._classes = None
                self._parents[max(one, other)] = min(one, other)

    def freeze(self, atoms: np.ndarray, reason: Reason) -> None:
        """Lets atoms stay, and whatever is tied to them."""
        self._frozen.append((atoms, reason))

    def classes(self) -> np.ndarray:
        """Returns the class of each atom, int64 [atoms]; equal means united."""
        if self._classes is None or len(self._classes) != len(self._parents):
            found = [self._find(atom) for atom in range(len(self._parents))]
            self._classes = np.array(found, np.int64)
        return self._classes

    def frozen(self) -> dict[int, Reason]:
        """Returns why classes stay; being an input or output comes before all else."""
        classes = self.classes()
        found: dict[int, Reason] = {}
        for atoms, reason in sorted(self._frozen, key=lambda item: item[1].refused):
            for label in np.unique(classes[atoms]).tolist():
                found.setdefault(label, reason)
        return found

    def channels(self, value: Value, axis: int) -> np.ndarray:
        """Returns the atoms of an axis that a layer is about to treat as channels.

        If the value's channels are on another axis, both stay as they are.
        """
        size = value.shape[axis] if value.shape else None
        if size is None:
            raise Refusal("the number of its input channels is not fixed")
        layout = self.layouts.get(value)
        if layout is not None and layout.axis == axis:
            return layout.atoms
        reason = Reason("a layer reads another axis as channels", refused=True)
        if layout is not None:
            self.freeze(layout.atoms, reason)
        return self.new_atoms(size, reason)

    def bind(
        self,
        spec: LayerSpec,
        weight: int,
        axis: int,
        atoms: np.ndarray,
        role: Literal["out", "through", "in"],
    ) -> None:
        """Ties atoms to slices of a weight; those of a shared layer to each other."""
        for cut in self.cuts.setdefault(spec, []):
            if (cut.weight, cut.axis) == (weight, axis):
                self.unite(cut.atoms, atoms)
                return
        self.cuts[spec].append(Cut(weight, axis, atoms, role))

    def made_by(self, spec: LayerSpec, weight: int, axis: int) -> np.ndarray:
        """Returns the atoms of the channels that slices of a weight make."""
        for cut in self.cuts.get(spec, []):
            if (cut.weight, cut.axis) == (weight, axis):
                return cut.atoms
        if spec.weights is None:
            raise Refusal("it has no weights")
        atoms = self.new_atoms(spec.weights[weight].shape[axis])
        self.bind(spec, weight, axis, atoms, "out")
        return atoms

    def count(
        self,
        spec: LayerSpec,
        key: str,
        atoms: np.ndarray,
        *,
        index: int | None = None,
        divisor: int = 1,
    ) -> None:
        """Notes that a configuration entry counts these atoms."""
        for size in self.sizes.setdefault(spec, []):
            if (size.key, size.index) == (key, index):
                self.unite(size.atoms, atoms)
                return
        self.sizes[spec].append(Size(key, index, atoms, divisor))

    def refuse(self, call: Call, text: str) -> None:
        """Lets all channels stay that a call reads, makes or holds."""
        self.refused.setdefault(call.layer, text)
        reason = Reason(f"{call.layer.path!r} {text}", refused=True)
        for cut in self.cuts.get(call.layer, []):
            self.freeze(cut.atoms, reason)
        for size in self.sizes.get(call.layer, []):
            self.freeze(size.atoms, reason)
        for value in call.inputs:
            if value in self.layouts:
                self.freeze(self.layouts[value].atoms, reason)
        self.transfers.pop(call, None)
        for value in call.outputs:
            self.put_frozen(value, reason)

    def put_frozen(self, value: Value, reason: Reason) -> None:
        """Gives a value channels on its last axis that stay."""
        if value.shape and len(value.shape) > 1 and value.shape[-1] is not None:
            atoms = self.new_atoms(value.shape[-1], reason)
            self.layouts[value] = Layout(len(value.shape) - 1, atoms)

    def _find(self, atom: int) -> int:
        parents = self._parents
        while parents[atom] != atom:
            parents[atom] = parents[parents[atom]]
            atom = parents[atom]
        return atom


def weight_index(spec: LayerSpec, *names: str) -> int:
    """Returns the index of the weight that has one of the names.

    Raises:
        TfoptError: There is none.
    """
    for name in names:
        if name in spec.weight_names:
            return spec.weight_names.index(name)
    raise TfoptError(
        f"The layer {spec.path!r} lacks a weight. Expected one named "
        f"{' or '.join(names)}. Received: {spec.weight_names}"
    )
