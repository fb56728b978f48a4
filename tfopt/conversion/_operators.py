"""The operators of a converted model under the names of the layers they come from."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfopt import tflite_file
from tfopt._keras import variables
from tfopt.tflite_file import Operator, Subgraph

# Calls that freezing has inlined.
_CALLS = re.compile(r"((Stateful)?PartitionedCall(_\d+)?/)+")
_DIGITS = re.compile(r"\d+$")
_ACTIVATIONS = ("Relu", "Relu6", "Relu1", "Elu", "LeakyRelu", "BiasAdd", "Identity")
# Operations that own a kernel, by TensorFlow's names.
_LINEAR = re.compile(r"(Conv|Depthwise|MatMul|BatchMatMul|Einsum).*")
_LINEAR_KINDS = (
    *("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "TRANSPOSE_CONV"),
    *("FULLY_CONNECTED", "BATCH_MATMUL"),
)
# What the converter fuses into those, batch normalization included.
_FUSED = (*_ACTIVATIONS, "AddV2", "Sub", "Mul", "Squeeze", "Reshape")
_SHOWN = 40


@dataclasses.dataclass(frozen=True)
class LayerOperator:
    """One operator of the main subgraph, before quantization.

    Attributes:
        index: Its position in the execution order.
        kind: TFLite's name, for example `"CONV_2D"`.
        layer: Name of the layer (Keras) or graph node that it mainly computes.
        parts: Names of all layers or nodes that were fused into it.
        tensors: Names of its outputs: those the converter knows it by.
        macs: Multiply-accumulates for one example; `None` if sizes are free, 0 for
            operators that multiply no matrices.
        constant_bytes: Bytes of its float constants.
    """

    index: int
    kind: str
    layer: str
    parts: tuple[str, ...]
    tensors: tuple[str, ...]
    macs: int | None
    constant_bytes: int

    def __str__(self) -> str:
        return f"{self.kind} of {self.layer!r}"


def listed(
    content: bytes, function: Any, layers: Mapping[str, str]
) -> list[LayerOperator]:
    """Returns the operators of a float file under the names of their layers.

    Args:
        content: The file as the converter wrote it, with the graph's names.
        function: The frozen function that it was made from.
        layers: Graph node -> layer, as in `Source.layers`; nodes that are not in it
            stand for themselves.
    """
    graph = tflite_file.read(content).subgraphs[0]
    names = _Names(function, layers, graph)
    found = []
    for operator in graph.operators:
        layer, parts = names.of(operator)
        found.append(
            LayerOperator(
                index=operator.index,
                kind=operator.name,
                layer=layer,
                parts=parts,
                tensors=tuple(graph.tensors[i].name for i in operator.outputs),
                macs=0 if operator.is_custom else tflite_file.macs(operator, graph),
                constant_bytes=_constant_bytes(operator, graph),
            )
        )
    return found


def select(
    operators: Sequence[LayerOperator], patterns: variables.Patterns, *, argument: str
) -> list[LayerOperator]:
    """Chooses operators by globs for layers (or a leading part) or TFLite's kinds.

    Args:
        operators: What `listed` returned.
        patterns: `"conv1"`, `"block/*"`, `"DEPTHWISE_CONV_2D"`; `None` for none.
        argument: Where the patterns were given, for messages.

    Raises:
        ValueError: A pattern matches nothing.
    """
    wanted = variables.as_patterns(argument, patterns) or []
    for pattern in wanted:
        if not any(_matches(pattern, operator) for operator in operators):
            layers = list(dict.fromkeys(operator.layer for operator in operators))
            kinds = sorted({operator.kind for operator in operators})
            more = f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
            raise ValueError(
                f"A pattern of `{argument}` matches no layer of the converted model, "
                "where batch normalization is part of the layer before it. Expected "
                f"globs for {layers[:_SHOWN]}{more}, or kinds of operators: {kinds}. "
                f"Received: {argument}={pattern!r}"
            )
    return [
        operator
        for operator in operators
        if any(_matches(pattern, operator) for pattern in wanted)
    ]


def share(
    chosen: Iterable[LayerOperator], operators: Sequence[LayerOperator]
) -> dict[str, Any]:
    """Returns what chosen operators are of the whole, as JSON.

    `"layers"`, `"operators"`, `"macs_share"` (`None` where sizes are free) and
    `"bytes_share"` of the constants, both in [0, 1].
    """
    chosen = list(chosen)
    known = all(operator.macs is not None for operator in operators)
    macs, bytes_ = (
        [
            sum(getattr(operator, name) or 0 for operator in group)
            for group in (chosen, operators)
        ]
        for name in ("macs", "constant_bytes")
    )
    return {
        "layers": list(dict.fromkeys(operator.layer for operator in chosen)),
        "operators": [str(operator) for operator in chosen],
        "macs_share": macs[0] / macs[1] if known and macs[1] else None,
        "bytes_share": bytes_[0] / bytes_[1] if bytes_[1] else 0.0,
    }


def is_named(name: str, tensors: Iterable[str]) -> bool:
    """Returns whether a tensor has one of these names, but for digits at the end.

    The converter appends digits where another tensor got the same name.
    """
    wanted = set(tensors)
    return any(variant in wanted for variant in _without_digits(name))


def _matches(pattern: str, operator: LayerOperator) -> bool:
    return fnmatch.fnmatchcase(operator.kind, pattern) or any(
        variables.matches(pattern, part) for part in operator.parts
    )


class _Names:
    """Layers of operators, from the names of their outputs."""

    def __init__(self, function: Any, layers: Mapping[str, str], graph: Subgraph):
        self._graph = graph
        self._layers = {**_scopes(layers), **layers}
        self._types = {op.name: op.type for op in function.graph.get_operations()}
        # The converter gives outputs of the graph names of its own.
        self._results = {
            graph.tensors[index].name: tensor
            for index, tensor in zip(graph.outputs, function.outputs, strict=True)
        }

    def of(self, operator: Operator) -> tuple[str, tuple[str, ...]]:
        """Returns the main layer, and all layers."""
        nodes = [
            node
            for index in operator.outputs
            for node in self._nodes(self._graph.tensors[index].name, operator)
        ]
        if not nodes:
            # The converter made it up: it belongs to what gives it its constants.
            nodes = [
                node
                for index in operator.inputs
                if self._graph.tensors[index].is_constant
                for node in self._nodes(self._graph.tensors[index].name, operator)
            ]
        if not nodes:
            name = self._graph.tensors[operator.outputs[0]].name or f"#{operator.index}"
            return name, (name,)
        main = min(nodes, key=lambda node: (self._rank(node), nodes.index(node)))
        parts = dict.fromkeys(self._layer(node) for node in [main, *nodes])
        return self._layer(main), tuple(parts)

    def _rank(self, node: str) -> int:
        kind = self._types.get(node, "")
        return 0 if _LINEAR.fullmatch(kind) else 2 if kind in _ACTIVATIONS else 1

    def _nodes(self, name: str, operator: Operator) -> list[str]:
        if name in self._results:
            return _makers(self._results[name], fused=operator.name in _LINEAR_KINDS)
        found = []
        for piece in name.split(";"):
            node = next((n for n in _without_digits(piece) if n in self._types), None)
            if node is not None:
                found.append(node)
        return found

    def _layer(self, node: str) -> str:
        # A node of a function that a layer calls is behind the name of its scope.
        head = node
        while head:
            if head in self._layers:
                return self._layers[head]
            head = head.rpartition("/")[0]
        return _CALLS.sub("", node)


def _scopes(layers: Mapping[str, str]) -> dict[str, str]:
    """Layers by the name scopes of their nodes, for nodes of functions they call."""
    found = {}
    for node, layer in layers.items():
        scope = node.rpartition("/")[0]
        # Some nodes are outside: Keras scopes are named after the layer.
        if scope.rpartition("/")[2].startswith(layer.rpartition("/")[2]):
            found[scope] = layer
    return found


def _makers(tensor: Any, *, fused: bool) -> list[str]:
    """Names of the node that makes a tensor, and of those fused with it."""
    operation = tensor.op
    while operation.type in ("Identity", "IdentityN"):
        position = tensor.value_index if operation.type == "IdentityN" else 0
        tensor = operation.inputs[position]
        operation = tensor.op
    found = [operation.name]
    while fused and operation.type in _FUSED:
        operation = operation.inputs[0].op
        found.append(operation.name)
    return found


def _without_digits(name: str) -> Iterable[str]:
    yield name
    while _DIGITS.search(name):
        name = name[:-1]
        yield name


def _constant_bytes(operator: Operator, graph: Subgraph) -> int:
    tensors = [graph.tensors[index] for index in set(operator.inputs)]
    return sum(x.raw.nbytes for x in tensors if x.raw is not None and x.is_float)
