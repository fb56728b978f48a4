"""Values of constant expressions, as small as those around batch normalization."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np

from tfopt.savedmodel import dtypes
from tfopt.transforms import _constants, _ops
from tfopt.transforms._graph import Body, Tensor

_PASSED_ON = ("Identity", "Snapshot", "StopGradient")
_ARITHMETIC: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "AddV2": np.add,
    "Mul": np.multiply,
    "Neg": np.negative,
    "RealDiv": np.divide,
    "Reciprocal": np.reciprocal,
    "Rsqrt": lambda x: 1 / np.sqrt(x),
    "Sqrt": np.sqrt,
    "Square": np.square,
    "Sub": np.subtract,
}


class Known(NamedTuple):
    """A constant expression.

    Attributes:
        value: Its value; the result of arithmetic in double precision.
        controls: Names of all nodes that its nodes wait for.
    """

    value: np.ndarray
    controls: frozenset[str]


class Values:
    """Evaluates constant expressions of a body: a few operations, in NumPy.

    Args:
        body: The body.
        fed: Names of its nodes that callers feed.
    """

    def __init__(self, body: Body, *, fed: Collection[str] = ()):
        self._body = body
        self._fed = frozenset(fed)
        self._known: dict[tuple[Tensor, bool], Known | None] = {}

    def get(self, tensor: Tensor, *, arithmetic: bool = True) -> Known | None:
        """Returns a tensor's value; `None` if it isn't known to be constant.

        Args:
            tensor: The tensor.
            arithmetic: Whether to compute, too; else constants are merely found, and
                reshaped.
        """
        key = (tensor, arithmetic)
        if key not in self._known:
            self._known[key] = None  # In case of a cycle.
            self._known[key] = self._evaluate(tensor, arithmetic)
        return self._known[key]

    def integers(self, tensor: Tensor) -> list[int] | None:
        """Returns the elements of a constant of integers, `None` if it isn't one."""
        known = self.get(tensor, arithmetic=False)
        if known is None or known.value.dtype.kind != "i":
            return None
        return [int(element) for element in known.value.reshape(-1)]

    def _evaluate(self, tensor: Tensor, arithmetic: bool) -> Known | None:
        node = self._body.producer(tensor)
        if node is None or tensor.output != 0 or node.name in self._fed:
            return None
        controls = frozenset(self._body.controls(node))
        if node.op == "Const":
            if node.attr["value"].tensor.dtype in (dtypes.RESOURCE, dtypes.VARIANT):
                return None
            return Known(_constants.to_array(node.attr["value"].tensor), controls)
        is_known = node.op in _PASSED_ON or node.op in _VIEWS
        if not is_known and not (arithmetic and node.op in _ARITHMETIC):
            return None
        inputs = [self.get(t, arithmetic=arithmetic) for t in self._body.inputs(node)]
        known = [item for item in inputs if item is not None]
        if len(known) < len(inputs):
            return None
        value = _apply(node, [item.value for item in known])
        if value is None:
            return None
        return Known(value, controls.union(*(item.controls for item in known)))


def _apply(node: Any, values: list[np.ndarray]) -> np.ndarray | None:
    if node.op in _PASSED_ON:
        return values[0]
    try:
        if node.op in _VIEWS:
            return _VIEWS[node.op](node, values)
        if values[0].dtype.kind != "f":
            return None
        with np.errstate(all="ignore"):
            wide = [value.astype(np.float64) for value in values]
            return np.asarray(_ARITHMETIC[node.op](*wide))
    except (ValueError, IndexError, TypeError):
        return None  # Shapes that do not fit: the graph cannot run anyway.


def _squeeze(node: Any, values: list[np.ndarray]) -> np.ndarray:
    axes = _ops.get(node, "squeeze_dims")
    return np.squeeze(values[0], tuple(axes) if axes else None)


_VIEWS: dict[str, Callable[[Any, list[np.ndarray]], np.ndarray]] = {
    "ExpandDims": lambda _, v: np.expand_dims(v[0], int(v[1].reshape(()))),
    "Reshape": lambda _, v: v[0].reshape(v[1].tolist()),
    "Squeeze": _squeeze,
    "Transpose": lambda _, v: v[0].transpose(v[1].tolist()),
}
