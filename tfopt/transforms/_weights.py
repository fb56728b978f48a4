"""The constants of a graph that are weights, and who takes them as such."""

from __future__ import annotations

import dataclasses
import fnmatch
import gzip
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tfopt.savedmodel import dtypes
from tfopt.transforms import _constants, _ops, _roles
from tfopt.transforms._graph import Body, GraphModel, Tensor

# Operation -> its attributes that are functions, and the input that is their first
# argument.
CALLS = {
    "While": (("cond", "body"), 0),
    "StatelessWhile": (("cond", "body"), 0),
    "If": (("then_branch", "else_branch"), 1),
    "StatelessIf": (("then_branch", "else_branch"), 1),
    "Case": (("branches",), 1),
    "StatelessCase": (("branches",), 1),
    "PartitionedCall": (("f",), 0),
    "StatefulPartitionedCall": (("f",), 0),
}
# Compressing more would take longer than all the rest.
_COMPRESS_UP_TO = 64 << 20
# Operations that ask only for the shape or the type.
_HARMLESS = ("Shape", "ShapeN", "Size", "Rank", "NoOp", "ZerosLike", "OnesLike")


@dataclasses.dataclass(frozen=True)
class Consumer:
    """An operation that takes a constant as a weight.

    Attributes:
        body: Where it is.
        node: The operation.
        position: As which input.
        view: The constant as it sees it.
        path: The nodes in between, that present it differently, each after its body.
        channels: The view's axes of output channels, or along which it looks up.
    """

    body: Body
    node: Any
    position: int
    view: _roles.View
    path: tuple[tuple[Body, Any], ...]
    channels: tuple[int, ...]

    @property
    def is_lookup(self) -> bool:
        """Whether it takes only some rows of the weight."""
        return self.node.op in _roles.LOOKUPS


@dataclasses.dataclass(frozen=True)
class Weight:
    """A constant that is a weight.

    Attributes:
        body: Where it is.
        node: Its Const node.
        array: Its value, float32 or float64, finite, read-only.
        consumers: Who takes it as a weight; may be empty if it was named explicitly.
        others: Operations that take it as something else.
    """

    body: Body
    node: Any
    array: np.ndarray
    consumers: tuple[Consumer, ...]
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its node's name, after the function's if it is in one."""
        return label(self.body, self.node.name)

    def set_array(self, array: np.ndarray) -> None:
        """Replaces the value by one of the same shape and type."""
        proto = _constants.to_proto(array.astype(self.array.dtype, copy=False))
        _ops.set_attributes(self.node, value=proto)


@dataclasses.dataclass
class Selection:
    """What was found.

    Attributes:
        weights: The weights, in the order of the graph.
        skipped: Other float constants that are large enough: `node` and `reason`.
        num_small: How many float constants are too small.
    """

    weights: list[Weight] = dataclasses.field(default_factory=list)
    skipped: list[dict[str, str]] = dataclasses.field(default_factory=list)
    num_small: int = 0

    def skip(self, name: str, reason: str) -> None:
        """Notes that a constant is left alone."""
        self.skipped.append({"node": name, "reason": reason})

    def findings(self) -> dict[str, Any]:
        """Returns the part of the findings that all transforms of weights share."""
        return {"below_minimum_size": self.num_small, "skipped": self.skipped}


def label(body: Body, name: str) -> str:
    """Returns a node's name, after the function's if it is in one."""
    return f"{body.name}/{name}" if body.name else name


def select(
    graph: GraphModel,
    *,
    minimum_size: int,
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
) -> Selection:
    """Finds the weights: float constants that operations take as their weights.

    Args:
        graph: The graph; isn't changed.
        minimum_size: Elements that a constant must have.
        include: Globs of constants' names: only these, and those also where no
            operation is known to take them as weights. `None`: all weights.
        exclude: Globs of constants to leave alone.

    Raises:
        ValueError: `minimum_size` is no count, or a pattern matches no node.
    """
    if (
        not isinstance(minimum_size, int)
        or isinstance(minimum_size, bool)
        or minimum_size < 0
    ):
        raise ValueError(
            "Expected a number of elements, 0 or more. "
            f"Received: minimum_size={minimum_size!r}"
        )
    wanted, unwanted = patterns("include", include), patterns("exclude", exclude)
    _check_matches(graph, {"include": wanted, "exclude": unwanted})
    found = Selection()
    for body in graph.bodies:
        for node in body:
            if node.op != "Const" or not is_float(node):
                continue
            if _num_elements(node) < minimum_size:
                found.num_small += 1
                continue
            name = label(body, node.name)
            if matches(node.name, unwanted):
                found.skip(name, "excluded")
            elif wanted and not matches(node.name, wanted):
                found.skip(name, "not included")
            else:
                _judge(graph, body, node, found, is_named=bool(wanted))
    return found


def gzip_sizes(
    changed: Sequence[tuple[np.ndarray, np.ndarray]],
) -> dict[str, int | None]:
    """Returns how well values compressed before and after they changed.

    Args:
        changed: Old and new values of each constant.

    Returns:
        `gzip_before`, `gzip_after`: bytes after `gzip -4`, which is several times
        faster than `-9` and, for such values, nearly as good; `None` above 64 MB.
    """
    sizes: dict[str, int | None] = {"gzip_before": None, "gzip_after": None}
    if sum(old.nbytes for old, _ in changed) <= _COMPRESS_UP_TO:
        for index, key in enumerate(sizes):
            sizes[key] = sum(
                len(gzip.compress(pair[index].tobytes(), 4)) for pair in changed
            )
    return sizes


def patterns(name: str, value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns an option that is one glob or several as a tuple.

    Raises:
        ValueError: It is something else.
    """
    found = (value,) if isinstance(value, str) else tuple(value or ())
    if not all(isinstance(pattern, str) and pattern for pattern in found):
        raise ValueError(f"Expected globs of node names. Received: {name}={value!r}")
    return found


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether a node's name matches one of the globs."""
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def _check_matches(graph: GraphModel, options: dict[str, tuple[str, ...]]) -> None:
    if not any(options.values()):
        return
    # A quantized table goes on under a longer name.
    names = {
        name.removesuffix("/codes") for body in graph.bodies for name in body.nodes
    }
    for option, globs in options.items():
        for glob in globs:
            if graph.num_nodes and not fnmatch.filter(names, glob):
                raise ValueError(
                    "Expected globs that match the name of a constant. "
                    f"Received: {option}={glob!r}, which matches no node"
                )


def is_float(node: Any) -> bool:
    """Whether a Const holds floats, of 16 bits or more."""
    return dtypes.name_of(node.attr["dtype"].type) in _roles.FLOATS


def _num_elements(node: Any) -> int:
    shape = node.attr["value"].tensor.tensor_shape
    return int(np.prod([dim.size for dim in shape.dim], dtype=np.int64))


def _judge(
    graph: GraphModel, body: Body, node: Any, found: Selection, *, is_named: bool
) -> None:
    name = label(body, node.name)
    proto = node.attr["value"].tensor
    kind = dtypes.name_of(proto.dtype)
    if kind not in ("float", "double"):
        return found.skip(name, f"has 16 bits already ({kind})")
    shape = [dim.size for dim in proto.tensor_shape.dim]
    consumers, others = consumers_of(graph, body, Tensor(node.name), shape)
    if any(_scales_codes(*use) for use in others + _uses(consumers)):
        return found.skip(name, "holds scales of quantized weights")
    if len(shape) < 2:  # A list to look up, such as frequencies of words.
        others += _uses(item for item in consumers if item.is_lookup)
        consumers = [item for item in consumers if not item.is_lookup]
    if not consumers and not is_named:
        return found.skip(name, _why_not(shape, others))
    array = _constants.to_array(proto)
    if not np.isfinite(array.astype(np.float32, copy=False)).all():
        return found.skip(name, "has values that are infinite or NaN in float32")
    ops = tuple(dict.fromkeys(other.op for _, other in others))
    found.weights.append(Weight(body, node, array, tuple(consumers), ops))
    return None


def _uses(consumers: Iterable[Consumer]) -> list[tuple[Body, Any]]:
    return [(item.body, item.node) for item in consumers]


def _why_not(shape: Sequence[int], others: Sequence[tuple[Body, Any]]) -> str:
    if not others:
        return "nothing takes it"
    ops = ", ".join(dict.fromkeys(node.op for _, node in others))
    if len(shape) < 2:
        return f"a vector, such as a bias or a statistic (taken by {ops})"
    return f"not a weight of an operation that is known (taken by {ops})"


def _scales_codes(body: Body, node: Any) -> bool:
    """Whether what the node makes of a constant multiplies integers cast to floats."""
    users = [node]
    if node.op in (*_roles.LOOKUPS, "Cast"):
        users = [use.node for use in body.uses(Tensor(node.name))]
    for user in users:
        if user.op != "Mul":
            continue
        for tensor in body.inputs(user):
            other = body.producer(tensor)
            while other is not None and other.op == "Reshape":
                other = body.producer(body.input(other, 0))
            if other is not None and other.op == "Cast":
                kind = dtypes.name_of(other.attr["SrcT"].type)
                if kind == "int8":
                    return True
    return False


def consumers_of(
    graph: GraphModel, body: Body, tensor: Tensor, shape: Sequence[int]
) -> tuple[list[Consumer], list[tuple[Body, Any]]]:
    """Returns who takes a tensor as a weight, and who takes it as something else.

    Followed are views (`_roles.through`) and arguments of functions.

    Args:
        graph: The graph.
        body: Where the tensor is.
        tensor: A constant's output.
        shape: Its sizes.
    """
    consumers: list[Consumer] = []
    others: list[tuple[Body, Any]] = []
    seen: set[tuple[str, Tensor]] = set()
    start: tuple[Any, ...] = ()
    pending = [(body, tensor, _roles.View.of(shape), start)]
    while pending:
        where, current, view, path = pending.pop()
        if (where.name, current) in seen:
            continue
        seen.add((where.name, current))
        for node, position in where.uses(current):
            channels = _roles.channel_axes(where, node, position, len(view.sizes))
            if channels is not None:
                item = Consumer(where, node, position, view, path, channels)
                consumers.append(item)
                continue
            after = _roles.through(where, node, position, view)
            if after is not None:
                for output in range(_num_outputs(node)):
                    made = Tensor(node.name, output)
                    pending.append((where, made, after, (*path, (where, node))))
                continue
            called = list(arguments(graph, node, position))
            for inner, argument in called:
                pending.append((inner, argument, view, (*path, (where, node))))
            if not called and node.op not in _HARMLESS:
                others.append((where, node))
    return consumers, others


def _num_outputs(node: Any) -> int:
    if node.op in ("Split", "SplitV"):
        return _ops.get(node, "num_split")
    return _ops.get(node, "num") if node.op == "Unpack" else 1


def arguments(
    graph: GraphModel, node: Any, position: int
) -> Iterator[tuple[Body, Tensor]]:
    """Yields the functions' arguments that an input of a calling node becomes."""
    names: list[str] = []
    first = 0
    if node.op in graph.functions:
        names = [node.op]
    elif node.op in CALLS:
        attributes, first = CALLS[node.op]
        for attribute in attributes:
            value = _ops.get(node, attribute)
            names += value if isinstance(value, list) else [value]
    for name in names:
        inner = graph.functions.get(name)
        if inner is not None and first <= position < first + len(inner.arguments):
            yield inner, Tensor(inner.arguments[position - first])
