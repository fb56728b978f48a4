"""Weights and biases of a `.tflite` file, to read and to change in place."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from tfopt import tflite_file

# The schema's numbers of fused activations.
NO_ACTIVATION, RELU, RELU6 = 0, 1, 3
# Axis of output channels, and of input channels, of each operator's weights.
OUTPUT_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
INPUT_AXIS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 1}


class Constants:
    """The main subgraph of a file whose constants change.

    Args:
        content: The file.

    Attributes:
        file: It, as it was.
        graph: Its main subgraph, as it was.
    """

    def __init__(self, content: bytes):
        self.file = tflite_file.read(content)
        self.graph = self.file.subgraphs[0]
        self._model = tflite_file.unpack(content)
        self._size = len(content)
        self._subgraph = self._model.subgraphs[0]
        self._dtypes = [tensor.dtype for tensor in self.graph.tensors]

    def pack(self) -> bytes:
        """Returns the file as it is now, without signature; this object is used up."""
        drop_unused(self._subgraph)
        self._model.signatureDefs = None  # tensors may have other numbers now
        return tflite_file.pack(self._model, self._size)

    def has(self, operator: int, position: int) -> bool:
        """Returns whether an operator has a constant as one of its inputs."""
        inputs = self._subgraph.operators[operator].inputs
        if position >= len(inputs) or inputs[position] < 0:
            return False
        tensor = self._subgraph.tensors[inputs[position]]
        return self._model.buffers[tensor.buffer].data is not None

    def value(self, operator: int, position: int) -> np.ndarray:
        """Returns a copy of an operator's constant, as stored.

        Args:
            operator: Index of the operator.
            position: Which of its inputs: 1 for weights, 2 for the bias.
        """
        index = self._subgraph.operators[operator].inputs[position]
        tensor = self._subgraph.tensors[index]
        data = np.asarray(self._model.buffers[tensor.buffer].data, np.uint8)
        return np.array(data.view(self._dtypes[index]).reshape(tensor.shape))

    def is_shared(self, operator: int, position: int) -> bool:
        """Returns whether other operators read the same input."""
        index = self._subgraph.operators[operator].inputs[position]
        return sum(index in item.inputs for item in self._subgraph.operators) > 1

    def tensor(self, operator: int, position: int) -> Any:
        """Returns the `TensorT` of an operator's input."""
        return self._subgraph.tensors[
            self._subgraph.operators[operator].inputs[position]
        ]

    def set(self, operator: int, position: int, value: np.ndarray) -> None:
        """Gives an operator a constant of its own, of the same type and shape."""
        item = self._subgraph.operators[operator]
        index = item.inputs[position]
        if self.is_shared(operator, position):
            self._subgraph.tensors.append(copy.copy(self._subgraph.tensors[index]))
            self._dtypes.append(self._dtypes[index])
            index = len(self._dtypes) - 1
            inputs = list(item.inputs)
            inputs[position] = index
            item.inputs = inputs
        tensor = self._subgraph.tensors[index]
        # Equal constants have one buffer.
        buffer = copy.copy(self._model.buffers[tensor.buffer])
        buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        tensor.buffer = len(self._model.buffers) - 1

    def set_activation(self, operator: int, activation: int) -> None:
        """Sets the activation that is fused into an operator."""
        options = self._subgraph.operators[operator].builtinOptions
        options.fusedActivationFunction = activation


def drop_unused(graph: Any) -> None:
    """Drops conversions that nothing reads any more, and tensors that nothing uses."""
    read = {index for operator in graph.operators for index in operator.inputs}
    read.update(graph.outputs)
    graph.operators = [
        operator
        for operator in graph.operators
        if len(operator.outputs) == 0 or read.intersection(operator.outputs)
    ]
    used = {*graph.inputs, *graph.outputs}
    for operator in graph.operators:
        used.update(operator.inputs, operator.outputs, operator.intermediates or ())
    kept = [index for index in range(len(graph.tensors)) if index in used]
    number = {-1: -1, **{old: new for new, old in enumerate(kept)}}
    graph.tensors = [graph.tensors[index] for index in kept]
    for item in (graph, *graph.operators):
        item.inputs = [number[index] for index in item.inputs]
        item.outputs = [number[index] for index in item.outputs]
        if getattr(item, "intermediates", None) is not None:
            item.intermediates = [number[index] for index in item.intermediates]
