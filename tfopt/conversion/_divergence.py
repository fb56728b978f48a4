"""Where a file and the model that was trained for it part ways."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt import tflite_file
from tfopt.conversion import _freezing, _operators, _tensors
from tfopt.tflite_file import Subgraph, Tensor
from tfopt.types import TfoptError

# Mean error of a tensor, in its own steps, from which on it has diverged: roundings
# that fall otherwise leave it far below.
_LIMIT = 1.0


@dataclasses.dataclass(frozen=True)
class Point:
    """A fake-quantized tensor of the model.

    Attributes:
        node: The operation that rounds it.
        nodes: That and the operations behind the last rounded tensors: together they
            are one operator of the file, or few.
        output: Its tensor's name.
    """

    node: str
    nodes: tuple[str, ...]
    output: str


@dataclasses.dataclass(frozen=True)
class Divergence:
    """A tensor that the file computes otherwise than the model.

    Attributes:
        operator: The file's operator that makes it, by TFLite's name.
        layers: The layers that the operator computes, the last one first.
        mean_error: Mean absolute error, in steps of the tensor's scale.
        scale: That step.
    """

    operator: str
    layers: tuple[str, ...]
    mean_error: float
    scale: float

    def __str__(self) -> str:
        return (
            f"The first layer that diverges is {self.layers[0]!r} ({self.operator} of "
            f"{', '.join(self.layers)}): its output is {self.mean_error:.3g} steps of "
            f"{self.scale:.3g} off on average"
        )


def find(
    function: Any,
    content: bytes,
    batches: Sequence[Mapping[str, np.ndarray]],
    layers: Mapping[str, str],
) -> Divergence | None:
    """Returns the first tensor of a file that isn't what the model rounds it to.

    Both are run, and each tensor that the model fake-quantizes is compared with the
    file's tensor of that name, in the file's order of execution.

    Args:
        function: The frozen function, with fake quantization of activations.
        content: The file, with names.
        batches: Inputs by name, in order.
        layers: Node -> layer; a node that isn't in it names itself.

    Returns:
        `None` if all tensors agree whose names are still in the file.
    """
    graph = tflite_file.read(content).subgraphs[0]
    pairs = list(_pairs(function, graph))
    if not pairs:
        return None
    inner = _freezing.with_outputs(function, [point.output for point, *_ in pairs])
    errors = np.zeros(len(pairs))
    for batch, read in zip(batches, _tensors.runs(content, batches), strict=True):
        expected = inner(*map(tf.constant, batch.values()))
        for position, (_, _, tensor) in enumerate(pairs):
            errors[position] += _error(expected[position].numpy(), read(tensor.index))
    for (point, operator, tensor), error in zip(pairs, errors, strict=True):
        steps = float(error) / len(batches) / tensor.scale[0]
        if not steps <= _LIMIT:
            nodes = point.nodes[1:] or point.nodes
            named = dict.fromkeys(layers.get(node, node) for node in nodes)
            return Divergence(operator, tuple(named), steps, tensor.scale[0])
    return None


def explain(
    function: Any,
    content: bytes,
    batches: Sequence[Mapping[str, np.ndarray]],
    layers: Mapping[str, str],
) -> str:
    """Returns what `find` finds as a sentence; also if it finds nothing."""
    graph = tflite_file.read(content).subgraphs[0]
    border = {*graph.inputs, *graph.outputs}
    if not any(x.name for x in graph.tensors if x.index not in border):
        return "Without strip_debug_info=True, the message would name the first layer."
    try:
        divergence = find(function, content, batches, layers)
    except (TfoptError, ValueError, RuntimeError) as error:
        return f"Its inner tensors could not be compared: {error}"
    if divergence is not None:
        return f"{divergence}."
    return (
        "With LiteRT's plain kernels, no inner tensor whose name the file keeps is "
        f"more than {_LIMIT:g} step off on average."
    )


def _error(expected: np.ndarray, actual: np.ndarray) -> float:
    return float(np.mean(np.abs(expected.ravel() - actual.ravel())))


def _pairs(function: Any, graph: Subgraph) -> list[tuple[Point, str, Tensor]]:
    """Returns points, and the operators and tensors they are in the file, in order."""
    points = list(_points(function))
    found: dict[str, tuple[Point, str, Tensor]] = {}
    makers = {node: point for point in reversed(points) for node in point.nodes}
    outputs = _outputs(function, graph, {point.node: point for point in points})
    for operator in graph.operators:
        for index in operator.outputs:
            tensor = graph.tensors[index]
            point = outputs.get(index) or next(
                (
                    makers[node]
                    for part in tensor.name.split(";")
                    for node in makers
                    if _operators.is_named(part, [node])
                ),
                None,
            )
            if point is not None and len(tensor.scale) == 1:
                # Of several operators in between, the last one makes the tensor.
                found.pop(point.node, None)
                found[point.node] = (point, operator.name, tensor)
    return list(found.values())


def _outputs(
    function: Any, graph: Subgraph, points: Mapping[str, Point]
) -> dict[int, Point]:
    """Returns the points that are outputs, whose tensors lose their names."""
    sources = {
        operator.outputs[0]: operator.inputs[0]
        for operator in graph.operators
        if operator.name == "DEQUANTIZE"
    }
    found = {}
    for index, tensor in zip(graph.outputs, function.outputs, strict=True):
        operation = tensor.op
        while operation.type == "Identity":
            operation = operation.inputs[0].op
        if operation.name in points:
            found[sources.get(index, index)] = points[operation.name]
    return found


def _points(function: Any) -> Iterator[Point]:
    for operation in function.graph.get_operations():
        if _is_rounding(operation):
            nodes = dict.fromkeys([operation.name])
            _collect(operation.inputs[0].op, nodes)
            yield Point(operation.name, tuple(nodes), operation.outputs[0].name)


def _collect(operation: Any, nodes: dict[str, None]) -> None:
    """Adds the operations from one back to what is rounded before."""
    pending = [operation]
    while pending:
        operation = pending.pop()
        if _is_rounding(operation) or operation.type in ("Const", "Placeholder"):
            continue
        if operation.name not in nodes:
            nodes[operation.name] = None
            pending.extend(tensor.op for tensor in operation.inputs)


def _is_rounding(operation: Any) -> bool:
    return operation.type in ("FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars")
