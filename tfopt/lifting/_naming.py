"""Names of layers: those of the graph, as short as they can be told apart."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from tfopt.lifting._covering import Item, Raw
from tfopt.lifting._match import Match, Step

# Scopes that TensorFlow's own functions open inside that of a layer.
_INNER = ("/batchnorm", "/Gelu", "/Tensordot", "/moments")


class Names:
    """Hands out names, each once.

    A layer is called after the scope that all its operations are in, without what all
    names begin with: `"block/conv/Conv2D"` and `"block/conv/BiasAdd"` are
    `"block_conv"`. If that is taken, the operation's own name is added: the ReLU of the
    same scope is `"block_conv_Relu"`. Layers with weights choose first.

    Args:
        items: All that there is to name.
        taken: Names that are given already.
    """

    def __init__(self, items: Sequence[Item], taken: Iterable[str]) -> None:
        self._taken = set(taken)
        paths = [path for item in items for path in _paths(item)]
        self._skip = _common_scope(paths)
        self._scopes: dict[int, str] = {}
        self._parents = Counter(os.path.dirname(_paths(item)[0]) for item in items)
        weighted = [item for item in items if _is_weighted(item)]
        others = [item for item in items if not _is_weighted(item)]
        for item in [*weighted, *others]:
            self._scopes[id(item)] = self._choose(item)

    def of(self, item: Item, step: Step | None = None) -> str:
        """Returns the name of an item, or of one of its layers."""
        name = self._scopes[id(item)]
        if step is None or not step.suffix:
            return name
        return self.unique(name + step.suffix)

    def unique(self, name: str) -> str:
        """Returns a name like this one that isn't given yet."""
        found, number = name, 0
        while found in self._taken:
            number += 1
            found = f"{name}_{number}"
        self._taken.add(found)
        return found

    def _choose(self, item: Item) -> str:
        paths = _paths(item)
        scope = self._short(os.path.commonpath(paths) if len(paths) > 1 else paths[0])
        for inner in _INNER:
            scope = scope.removesuffix(inner)
        own = self._short(paths[0])
        if len(paths) > 1 and isinstance(item, Match):
            step = item.steps[-1]
            own = f"{scope}/{step.config.get('activation') or step.kind}"
        parent = scope
        if len(paths) == 1:
            folder = os.path.dirname(paths[0])
            # A scope is the name of a layer if that is all it holds, or has weights.
            is_layer = _is_weighted(item) or self._parents[folder] == 1
            parent = self._short(folder) if is_layer else own
        for name in (_valid(parent), _valid(scope)):
            if name and name not in self._taken:
                return self.unique(name)
        return self.unique(_valid(own) or "layer")

    def _short(self, path: str) -> str:
        parts = path.split("/")
        return "/".join(parts[self._skip :])


def _paths(item: Item) -> list[str]:
    if isinstance(item, Raw):
        return [item.operation.name]
    return [operation.name for operation in item.operations]


def _is_weighted(item: Item) -> bool:
    return isinstance(item, Match) and any(step.weights for step in item.steps)


def _common_scope(paths: Sequence[str]) -> int:
    """Returns how many scopes all names begin with."""
    scopes = [path.split("/")[:-1] for path in paths]
    shortest = min(map(len, scopes), default=0)
    for depth in range(shortest):
        if len({scope[depth] for scope in scopes}) > 1:
            return depth
    # One of them is that of a layer, if there is more than one level.
    return max(shortest - 1, 0) if len(paths) == 1 else shortest


def _valid(path: str) -> str:
    return re.sub(r"[^\w.-]", "_", path).strip("_.-")
