"""What is inside a GraphDef: its constants, and what is multiplied with them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tfopt.inspection._types import (
    Layer,
    Weights,
    bytes_by_dtype,
    make_layer,
    total,
    weights_of,
)

Shape = list[int | None] | None

# What a constant passes on its way to the operation that computes with it.
_PASSING = frozenset(
    {
        *("Identity", "Cast", "Dequantize", "Reshape", "Transpose", "ExpandDims"),
        *("Squeeze", "Mul", "FakeQuantWithMinMaxVars", "ReadVariableOp"),
        *("FakeQuantWithMinMaxVarsPerChannel", "FakeQuantWithMinMaxArgs"),
    }
)
# Number types that index and shape arithmetic uses; constants of these are no weights.
_INDEX_TYPES = ("int32", "int64", "bool", "string", "resource", "variant")


def inspect_graph(graph: Any, *, prefer: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the fields of `Inspection` that a frozen GraphDef gives.

    Args:
        graph: GraphDef message without variables.
        prefer: Names of layers of a Keras model; weights below one of them count to
            it.
    """
    nodes = list(graph.node)
    bodies = [node for function in graph.library.function for node in function.node_def]
    constants = {node.name: _constant(node) for node in nodes if node.op == "Const"}
    weights = {name: item for name, item in constants.items() if item is not None}
    users = _users(nodes)
    costs, notes = _costs(graph)
    kinds, macs = _attribute(nodes, weights, users, costs)
    layers = _layers(weights, kinds, macs, tuple(prefer))
    inside = [_constant(node) for node in bodies if node.op == "Const"]
    listed = [*weights.values(), *(item for item in inside if item is not None)]
    listed.sort(key=lambda item: -item.size_bytes)
    counts = Counter(node.op for node in [*nodes, *bodies])
    every = total(costs.values())
    if any(_multiplies(node) for node in bodies):
        every = None
        notes.append(
            "Multiplications inside functions, loops and branches are not counted."
        )
    return {
        "operations": dict(sorted(counts.items())),
        "layers": tuple(layers),
        "weights": tuple(listed),
        "macs": every,
        "arena_bytes": None,
        "precision": {
            "weight_bytes": bytes_by_dtype(listed),
            "macs": _by_type(nodes, costs),
        },
        "notes": tuple(notes),
    }


def type_name(dtype: str) -> str:
    """Returns NumPy's name of a TensorFlow type."""
    known = {"float": "float32", "half": "float16", "double": "float64"}
    return known.get(dtype, dtype)


def _constant(node: Any) -> Weights | None:
    """Returns a Const node's content, `None` if it is no weight."""
    from tfopt.savedmodel import dtypes, tensors

    dtype = dtypes.name_of(node.attr["dtype"].type)
    tensor = node.attr["value"].tensor
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if dtype in _INDEX_TYPES or not shape or not all(shape):
        return None
    array = tensors.to_array(tensor)
    return weights_of(node.name, type_name(dtype), array, array.nbytes)


def _name(reference: str) -> str:
    return reference.removeprefix("^").split(":", 1)[0]


def _users(nodes: Iterable[Any]) -> dict[str, list[Any]]:
    users: dict[str, list[Any]] = {}
    for node in nodes:
        for reference in node.input:
            if not reference.startswith("^"):
                users.setdefault(_name(reference), []).append(node)
    return users


def _attribute(
    nodes: Iterable[Any],
    weights: Mapping[str, Weights],
    users: Mapping[str, list[Any]],
    costs: Mapping[str, int | None],
) -> tuple[dict[str, str], dict[str, dict[str, int | None]]]:
    """Finds what each weight is used by: its operation, and the multiplications."""
    kinds: dict[str, str] = {}
    macs: dict[str, dict[str, int | None]] = {}
    for name in weights:
        waiting, seen = [name], set()
        while waiting:
            current = waiting.pop()
            for user in users.get(current, ()):
                if user.name in seen:
                    continue
                seen.add(user.name)
                if user.name in costs:
                    macs.setdefault(name, {})[user.name] = costs[user.name]
                    kinds[name] = user.op
                elif user.op in _PASSING and user.name not in weights:
                    waiting.append(user.name)
                    kinds.setdefault(name, "")
                else:
                    kinds[name] = kinds.get(name) or user.op
    return kinds, macs


def _layers(
    weights: Mapping[str, Weights],
    kinds: Mapping[str, str],
    macs: Mapping[str, Mapping[str, int | None]],
    prefer: tuple[str, ...],
) -> list[Layer]:
    groups: dict[str, list[str]] = {}
    for name in weights:
        groups.setdefault(_layer_of(name, prefer), []).append(name)
    layers = []
    for layer, names in groups.items():
        used = {
            node: cost for name in names for node, cost in macs.get(name, {}).items()
        }
        found = [kinds.get(name, "") for name in names]
        multiplied = [kinds[name] for name in names if name in macs]
        kind = next((kind for kind in [*multiplied, *found] if kind), "Const")
        parts = [weights[name] for name in names]
        layers.append(make_layer(layer, kind, parts, total(used.values())))
    return layers


def _layer_of(name: str, prefer: tuple[str, ...]) -> str:
    """Returns the layer that a constant belongs to: by default its name's folder."""
    folder = name.rsplit("/", 1)[0]
    fitting = [
        layer
        for layer in prefer
        if folder == layer or folder.endswith(f"/{layer}") or f"/{layer}/" in f"/{name}"
    ]
    return max(fitting, key=len, default=folder)


def _by_type(nodes: Iterable[Any], costs: Mapping[str, int | None]) -> dict[str, int]:
    from tfopt.savedmodel import dtypes

    found: dict[str, int] = {}
    for node in nodes:
        cost = costs.get(node.name)
        if cost:
            dtype = type_name(dtypes.name_of(node.attr["T"].type))
            found[dtype] = found.get(dtype, 0) + cost
    return found


# Operation -> sizes to multiply, from the shapes of its first two inputs and its
# output. Kernels are [..., in, out]; of depthwise ones [h, w, in, multiplier].
_RULES: dict[str, Callable[[list, list, list], list]] = {
    "Conv2D": lambda x, w, y: y + w[:-1],
    "Conv3D": lambda x, w, y: y + w[:-1],
    "_FusedConv2D": lambda x, w, y: y + w[:-1],
    "DepthwiseConv2dNative": lambda x, w, y: y + w[:-2],
    "_FusedDepthwiseConv2dNative": lambda x, w, y: y + w[:-2],
    "MatMul": lambda x, w, y: y + x[-1:],
    "_FusedMatMul": lambda x, w, y: y + x[-1:],
    "BatchMatMul": lambda x, w, y: y + x[-1:],
    "BatchMatMulV2": lambda x, w, y: y + x[-1:],
    "BatchMatMulV3": lambda x, w, y: y + x[-1:],
}


_OTHERS = ("Einsum", "Conv2DBackpropInput", "Conv3DBackpropInputV2")


def _multiplies(node: Any) -> bool:
    return node.op in _RULES or node.op in _OTHERS


def _costs(graph: Any) -> tuple[dict[str, int | None], list[str]]:
    """Returns the multiply-accumulates of each operation that multiplies."""
    wanted = [node for node in graph.node if _multiplies(node)]
    if not wanted:
        return {}, []
    try:
        shapes = _shapes(graph)
    except Exception as error:  # TensorFlow refuses graphs in many ways
        reason = str(error).splitlines()[0]
        return dict.fromkeys(node.name for node in wanted), [
            "Multiplications are not counted: TensorFlow cannot load the graph "
            f"({reason})"
        ]
    costs = {node.name: _cost(node, *shapes[node.name]) for node in wanted}
    unknown = [name for name, cost in costs.items() if cost is None]
    notes = []
    if unknown:
        notes.append(
            "Multiplications depend on sizes that the model leaves free, at "
            f"{len(unknown)} operations: {', '.join(unknown[:3])}"
        )
    return costs, notes


def _cost(node: Any, inputs: list[Shape], output: Shape) -> int | None:
    if node.op == "Einsum":
        return _einsum(node.attr["equation"].s.decode(), inputs)
    if node.op.endswith(("BackpropInput", "BackpropInputV2")):
        # Inputs are sizes, kernel [..., out, in] and data: the kernel is applied at
        # each position of the data.
        kernel, data = inputs[1:3]
        sizes = None if kernel is None or data is None else data + kernel[:-1]
    elif None in (output, *inputs[:2]):
        sizes = None
    else:
        first, second = inputs[:2]
        if node.attr["transpose_a"].b or node.attr["adj_x"].b:
            first = [*first[:-2], first[-1], first[-2]]  # type: ignore[index]
        sizes = _RULES[node.op](first or [], second or [], output or [])
    if sizes is None or None in sizes:
        return None
    return math.prod(size or 0 for size in sizes)


def _einsum(equation: str, inputs: list[Shape]) -> int | None:
    """Multiplications of an einsum: the product of the sizes of all its labels."""
    terms = equation.split("->")[0].split(",")
    sizes: dict[str, int | None] = {}
    for term, shape in zip(terms, inputs, strict=False):
        if shape is None or "." in term:
            return None
        sizes |= dict(zip(term, shape, strict=False))
    if None in sizes.values():
        return None
    return math.prod(size or 0 for size in sizes.values())


def _shapes(graph: Any) -> dict[str, tuple[list[Shape], Shape]]:
    """Returns shapes of inputs and first output by node, for one example."""
    import tensorflow as tf

    copy = tf.compat.v1.GraphDef.FromString(graph.SerializeToString())
    for node in copy.node:
        if node.op == "Placeholder" and not node.attr["shape"].shape.unknown_rank:
            for dim in node.attr["shape"].shape.dim[:1]:
                if dim.size < 0:
                    dim.size = 1
        if "_output_shapes" in node.attr:
            del node.attr["_output_shapes"]
    loaded = tf.Graph()
    with loaded.as_default():
        tf.graph_util.import_graph_def(copy, name="")

    def shape(tensor: Any) -> Shape:
        known = tensor.shape
        return None if known.rank is None else known.as_list()

    return {
        operation.name: (
            list(map(shape, operation.inputs)),
            shape(operation.outputs[0]) if operation.outputs else None,
        )
        for operation in loaded.get_operations()
    }
